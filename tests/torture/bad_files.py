"""Hostile contents: values, overrides, presets, corpora, and what can be in the place of a file."""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path], object]

DEEP = "[" * 3000
ESCAPE = "\x1b[2J\x1b]0;x\x07"
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**53 + 1, 10**19, 10**400, -(10**400), 0.5, 1e308, -1e308),
    *("", "x", "0" * 64, "a" * 5000, "a" * 70_000, ESCAPE, "\0", "\ud800", "../../escaped", "/etc"),
    *("${oc.env:HOME}", "<script>", "=cmd", [], [[]], [None], ["x"], {}, {"a": 1}, {"": {"": []}}),
    json.loads("[" * 14 + "]" * 14),
]


def _raw(text: bytes) -> Make:
    return lambda path: path.write_bytes(text)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def huge(path: Path) -> None:
    """8 GB in one line, which take no room."""
    path.touch()
    os.truncate(path, 8 << 30)


def bomb(path: Path) -> None:
    """An .npz whose arrays unpack to 2 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("counts.npy", "probe_index.npy", "table.npy"):
            with packed.open(name, "w") as file:
                for _ in range(20):
                    file.write(bytes(1 << 20))


def arrays(**named: Any) -> Make:
    def make(path: Path) -> None:
        file = io.BytesIO()
        np.savez(file, **named)
        path.write_bytes(file.getvalue())

    return make


def lying(path: Path) -> None:
    """An .npz whose array says that it has a trillion numbers."""
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000, 1000000, 1)}"
    text = header.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("counts.npy", content)


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> Make:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = (len(text) if length is None else length).to_bytes(8, "little")
    return _raw(size + text + data)


EMBEDDING = {"dtype": "F32", "shape": [256, 16], "data_offsets": [0, 16384]}
BAD_FILES: list[Make] = [
    *map(
        _raw, (b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", bytes(5000), b"\x1b[2J\n", b"a: 1\n")
    ),
    *map(
        _raw, (DEEP.encode(), b'{"a": ' * 3000, b'{"step": 1e999}\n', b'{"step": 1, "a/b": "x"}\n')
    ),
    _raw(b'{"a": ' + b"9" * 10_000 + b"}"),
    _raw(b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
    _raw(b"!!python/object/apply:os.system [id]\n"),
    *(pipe, folder, endless, loop, huge, bomb, lying),
    arrays(counts=np.zeros((2, 2), np.int64)),
    arrays(probe_index=np.zeros((1, 1, 1, 1), np.int16)),
    arrays(counts=np.zeros((1, 2, 3)), probe_index=np.zeros((1, 1, 1, 1), np.int16)),
    arrays(counts=np.full((1, 2, 3), -5), probe_index=np.zeros((2, 1, 1, 1), np.int16)),
    arrays(counts=np.zeros((0, 0, 0), np.int64), probe_index=np.zeros((0, 0, 0, 0), np.int16)),
    arrays(kind="hash", domains=0, turns=0, table=np.zeros((1, 1, 1), np.int16)),
    arrays(kind="hash", domains=1, turns=1, table=np.full((2, 256, 2), 900, np.int16)),
    arrays(counts=np.array([{"a": 1}], dtype=object)),
    tensors({}),
    tensors(b"{", length=2**62),
    tensors({"embedding": {**EMBEDDING, "data_offsets": [0, 2**60]}}),
    tensors({"embedding": {**EMBEDDING, "shape": [2**40, 2**40]}}, bytes(16384)),
    tensors({"embedding": {**EMBEDDING, "dtype": "X9"}}, bytes(16384)),
    tensors({"embedding": EMBEDDING}, bytes(16384)),
    tensors({"recent": {**EMBEDDING, "shape": [4096]}}, bytes(16384)),
]

BAD_OVERRIDES = [
    *("seed=", "seed=1" + "0" * 400, f"seed={'1' * 30_000}", f"seed={DEEP}", f"seed={'(' * 3000}"),
    *("seed=range(1,1000000000)", "scope=range(1,1000000000)", "seed=1,1,1", "seed=range(0)"),
    *("scope=" + ",".join(f"x{n}" for n in range(2000)), "seed=" + ",".join(map(str, range(2000)))),
    *(
        "seed=\0",
        f"seed={ESCAPE}",
        "seed=\ud800",
        "seed=\u202e1",
        "seed=${oc.env:HOME}",
        "seed=*&^",
    ),
    *("optim.lr=nan", "optim.lr=1e400", "optim.lr=-0.0", "model.d_model=1e9", "model.d_model=-4"),
    *(
        "model.num_layers=1000000000000",
        "global_bsz=0",
        "seq_len=0",
        "train.steps=0",
        "micro_bsz=0",
    ),
    *("data.path=/dev/zero", "data.path=/proc/self/mem", "data.path=\n", "data.domains=[a,[b]]"),
    *(
        "data.tokenizer=/dev/zero",
        "data.tokenizer=/etc/passwd",
        "method.options.x=1",
        "method.plugin=x",
    ),
    *("method.plugin=evil@123", "balance.plugins={a:b}", "balance.terms=[{}]", "balance.terms=[1]"),
    *(
        "balance.terms=[{scope:micro,weight:nan}]",
        "router.map=hash",
        "+a=1",
        "~seed",
        "hydra.run.dir=x",
    ),
    *(
        "a.b.c.d=1",
        "=",
        "==",
        "seed",
        "--",
        "seed=[1",
        "seed={a:1}",
        "seed='",
        'seed="',
        "scope=../x",
    ),
    *(
        "model=../../etc/passwd",
        "experiment=/etc/passwd",
        "model=glob(*)",
        "seed=choice(1,2",
        "seed=1:2",
    ),
    *("run.threads=99999999999", "run.device=cuda:9", "run.device_bsz=7", "data.max_epochs=-1"),
    *("data.weights={a:-1}", "data.sources=['huggingface name=x/y']", "data.sources=['x y z']"),
    "data.sources=[" + ",".join(["'synthetic'"] * 50) + "]",
]

PRESET = "# A preset.\n"
BAD_PRESETS: list[str | Make] = [
    *BAD_FILES[:20],
    PRESET + "d_model: ${oc.env:HOME}\n",
    PRESET + "d_model: ${.num_layers}\n",
    PRESET + "defaults: ['/model/${oc.env:HOME}']\n",
    PRESET + "defaults: [/sub/x, _self_]\n",
    PRESET + "defaults: [odd, _self_]\n",
    PRESET + "defaults: ['../../../../etc/passwd']\n",
    PRESET + "defaults: [{override /hydra/launcher: basic}]\n",
    PRESET + "hydra: {run: {dir: /tmp/escaped}}\n",
    PRESET + "_target_: os.system\n",
    PRESET + "d_model: 1" + "0" * 5000 + "\n",
    PRESET + "x: " + "[" * 15 + "]" * 15 + "\n",
    PRESET + "overrides: 5\narms: 7\n",
    PRESET + "arms: ['scope=micro', '" + "(" * 100 + "']\nbaseline: micro\n",
]

TEXT = b"some words\n" * 50
BAD_CORPORA: list[tuple[str, bytes | Make]] = [
    *(("odd.txt", make) for make in (pipe, endless, loop, huge)),
    *(("odd.jsonl", make) for make in (pipe, endless, huge)),
    *(
        ("odd.txt", text)
        for text in (b"\xff\xfea\0b\0", bytes(100_000), b"a" * 5_000_000, ESCAPE.encode())
    ),
    *(("odd.jsonl", text) for text in (DEEP.encode(), b'{"text": 5}\n', b'{"text": "\\ud800"}\n')),
    *(
        ("odd.jsonl", text)
        for text in (b'{"text": "a", "text": "b"}\n', b'{"text": "\\u0000"}\n', b"{}\n")
    ),
    ("odd.jsonl", b'{"text": "' + b"a" * 3_000_000),
    ("odd.json", b"[" * 100_000),
    ("odd.json", b'[{"text": "a"},'),
    ("odd.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    ("odd.txt.gz", gzip.compress(bytes(200 << 20), 1)),
    ("odd.txt.gz", gzip.compress(b"word\n" * (30 << 20), 1)),
    ("odd.jsonl.gz", gzip.compress(b'{"text": "' + b"a" * (150 << 20), 1)),
    ("odd.txt.gz", gzip.compress(TEXT)[:-4]),
    ("odd.txt.zst", b"\x28\xb5\x2f\xfd" + bytes(50)),
    ("LICENSE.txt", ESCAPE.encode()),
    (f"{'a' * 250}.txt", TEXT),
    ("a\nb.txt", TEXT),
]
