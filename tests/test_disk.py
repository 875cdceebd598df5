"""Writes survive crashes, and reads accept nothing that could hang or fill the memory."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from moebench.disk import (
    cache_root,
    expanded,
    finite,
    open_regular,
    parse_json,
    publish,
    read_bytes,
    read_json,
    read_lines,
    read_unpacked,
    reason,
    regular_status,
    remove_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
    sha256,
    why_not_written,
    write_bytes,
    write_json,
)
from moebench.yaml_files import MAX_YAML_BYTES, read_yaml

# Writing


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = (
        "import sys; from pathlib import Path; from moebench.disk import write_json\n"
        "for n in range(10**9): write_json(Path(sys.argv[1]), {'n': n, 'pad': 'x' * 5000})"
    )
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads(path.read_bytes())["pad"] == "x" * 5000
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # pyright: ignore[reportArgumentType]
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        interrupt(file.write(b"half"))
    assert json.loads(path.read_bytes()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "a"
    existed: list[bool] = []
    monkeypatch.setattr("moebench.disk.os.fsync", lambda _: existed.append(path.exists()))
    write_bytes(path, b"new")
    assert existed == [False, False, True], "the folder of `deep`, the content, the name"
    assert path.read_bytes() == b"new"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step-1"
    for content in ({"a": b"1", "b": b"2"}, {"b": b"3"}):
        with replacing_folder(folder) as aside:
            for name, data in content.items():
                (aside / name).write_bytes(data)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as aside:
        interrupt((aside / "b").write_bytes(b"half"))
    assert (folder / "b").read_bytes() == b"3"
    assert list(tmp_path.iterdir()) == [folder]
    synced: list[str] = []
    monkeypatch.setattr("moebench.disk._sync", lambda path: synced.append(path.name))
    publish(folder, tmp_path / "step-2")
    assert synced == ["b", "step-1", tmp_path.name]
    monkeypatch.setattr("moebench.disk.shutil.rmtree", lambda *_, **__: None)  # killed here
    remove_folder(tmp_path / "step-2")
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."], "nothing passes for a folder"
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_with_its_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moebench.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=12345))
    full = OSError(errno.ENOSPC, "No space left on device")
    inside = tmp_path / "not" / "there"
    assert why_not_written(inside, full) == "No space left on device: 12,345 bytes are free"
    assert why_not_written(inside, OSError(errno.EROFS, "Read-only")) == "Read-only"


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".step-4.123.tmp").mkdir(parents=True)
    (tmp_path / "deep" / ".step-4.123.tmp" / ".a.1.tmp").touch()
    (tmp_path / ".status.json.123.tmp").touch()
    for name in ("a.tmp", ".hidden"):
        (tmp_path / "deep" / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", "a.tmp", "deep"]


def test_json_holds_finite_numbers_only() -> None:
    nan, inf = float("nan"), float("inf")
    assert finite({"a": [1.5, nan, (inf,)], "b": "nan"}) == {"a": [1.5, None, [None]], "b": "nan"}


# Reading


def why(read: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises((OSError, ValueError, yaml.YAMLError)) as refused:
        read(*arguments)
    return reason(refused.value)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 2048)
    assert read_bytes(path, 2048) == b"x" * 2048
    assert why(read_bytes, path, 2047) == "is larger than 1 KiB"
    assert why(read_bytes, tmp_path / "none") == "No such file or directory"
    assert why(read_bytes, tmp_path) == "Is a directory"
    assert why(read_bytes, Path("/dev/zero")) == "is not a regular file"
    os.mkfifo(tmp_path / "pipe")
    assert why(read_bytes, tmp_path / "pipe") == "is not a regular file"
    os.truncate(path, 2**40)
    assert why(read_json, path) == "is larger than 64 MiB"
    assert why(lambda: list(read_lines(path))) == "is larger than 256 MiB"
    os.truncate(path, 2**25)
    assert why(lambda: list(read_lines(path))) == "has a line of more than 16 MiB"
    path.write_bytes(b"a\n\nb\ntorn")
    assert list(read_lines(path)) == [b"a", b"", b"b"]


def test_no_reader_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gz")
    for read in (sha256, open_regular, read_unpacked, regular_status):
        assert why(read, tmp_path / "pipe.gz") == "is not a regular file"


def test_what_a_small_file_unpacks_to_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.GZ"
    path.write_bytes(gzip.compress(bytes(1 << 22)))
    assert read_unpacked(path, 1 << 22) == bytes(1 << 22)
    assert why(read_unpacked, path, (1 << 22) - 1) == "is larger than 3 MiB"
    for name, packed in (("a.gz", "gzip"), ("a.zst", "zstd")):
        (tmp_path / name).write_bytes(b"plain text")
        assert why(read_unpacked, tmp_path / name).startswith(f"broken {packed} (")


def test_a_user_without_a_home_is_told_where_to_put_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOME", "MOEBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # of no entry in the password file
    assert why(cache_root).startswith("there is no home directory; set MOEBENCH_CACHE")
    assert expanded("~/x") == Path("~/x")
    assert expanded("~nosuchuser/x") == Path("~nosuchuser/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root() == Path("/somewhere/moebench")


def test_a_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-4


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        *((text, "is not a JSON object") for text in ("", "{", "5", "[]", "[" * 100_000, "\x00")),
        ('{"a": ' * 17 + "1" + "}" * 17, "is nested too deeply"),
        ('{"a": ' + "9" * 10_000 + "}", "holds a number of 10000 digits"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
    ],
)
def test_what_no_writer_makes_is_refused(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "a").write_text(text)
    assert why(parse_json, text.encode()) == wrong
    assert why(read_json, tmp_path / "a") == wrong
    assert parse_json(b'{"a": ' + b"[" * 15 + b"]" * 15 + b"}")["a"]


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (BOMB.encode(), "has a YAML alias, which no config needs"),
        (b"[" * 20, "is nested too deeply"),
        (b"[" * 5000, "is nested too deeply"),
        (b"#" * (MAX_YAML_BYTES + 1), "is larger than 64 KiB"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a: [", "did not find expected node content in line 2"),
    ],
)
def test_yaml_that_is_unsafe_or_broken_is_refused(
    tmp_path: Path, content: bytes, error: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert why(read_yaml, tmp_path / "a") == error


def test_yaml_is_read_as_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a: {b: [1, 2.5, x]}\n")
    assert read_yaml(tmp_path / "a") == {"a": {"b": [1, 2.5, "x"]}}


def test_a_reason_is_one_line() -> None:
    assert reason(ValueError("is wrong.\nand more")) == "is wrong"
    assert reason(KeyError()) == "KeyError"


def test_a_leftover_that_is_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".a.1.tmp").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
