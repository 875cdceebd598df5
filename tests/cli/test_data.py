"""`moebench data`: what it prints, and that hostile text does not control the terminal."""

import json
import re
from pathlib import Path

from tests.calls import Call


def test_data_are_shown_in_eighty_columns(call: Call, text_folder: Path) -> None:
    words = ["data=folder", f"data.path={text_folder}"]
    result = call("data", "show", *words)
    assert result.code == 0
    title, _, header, _, *rows, _, trigram = result.out.splitlines()
    assert re.match(r"data [0-9a-f]{10} *$", title)
    assert re.fullmatch(r"a byte trigram of the training text: \d\.\d{3} bits a byte", trigram)
    cells = [cell.strip() for cell in header.strip("┃").split("┃")]
    assert cells == ["domain", "docs", "MB", "Mtokens", "valid docs", "kB", "overlap", "sample"]
    assert [row.strip("│").split("│")[0].strip() for row in rows] == ["digits", "letters", "shapes"]
    assert max(map(len, result.out.splitlines())) <= 80
    shown = json.loads(call("data", "show", "--json", *words).out)
    assert shown["content_hash"].startswith(title.split()[1])
    assert list(shown["domains"][0]) == [
        *("domain", "train_documents", "train_mb", "train_tokens", "valid_documents", "valid_kb"),
        *("duplicates", "overlap", "licence", "sample"),
    ]


def test_control_characters_in_text_are_not_printed(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    line = "\x1b[31m [bold] [/nope] \x07 words of a hostile text {}\n"
    (folder / "[red].txt").write_text("".join(line.format(i) for i in range(400)))
    result = call("data", "show", "data=folder", f"data.path={folder}")
    assert result.code == 0
    assert "[red]" in result.out
    assert "[bold]" in result.out
    assert not {"\x1b", "\x07"} & {*result.out, *result.err}


def test_data_are_prepared_checked_and_made_again(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"a line of some text, the {i}th\n" for i in range(400)))
    words = ["data=folder", f"data.path={folder}"]
    first = call("data", "prepare", *words)
    assert first.code == 0
    content_hash, directory = first.out.split()
    assert "preparing a in" in first.err
    assert len([line for line in first.err.splitlines() if "preparing" in line]) == 1
    printed = json.loads(call("data", "prepare", "--json", *words).out)
    assert printed == {"schema_version": 1, "content_hash": content_hash, "directory": directory}
    warning = (
        "warning: all text is of one domain, a: data.homogeneity has no effect\n"
        "warning: fewer than 10 documents for validation: a (5); the losses there depend on single "
        "documents, so add text\n"
    )
    assert call("data", "check", *words) == (0, f"{directory}: complete and unchanged\n", warning)
    checked = json.loads(call("data", "check", "--json", *words).out)
    assert checked == {**printed, "damage": []}
    tokens = Path(directory) / "a.train.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"X")
    damaged = call("data", "check", *words)
    assert (damaged.code, damaged.out) == (2, "")
    error = damaged.err.removeprefix(warning)
    assert error.startswith(f"error: {tokens}: does not match its checksum")
    assert call("data", "prepare", *words).out == first.out
    assert call("data", "check", *words).code == 0
