"""Small runs of every kind, trained in processes of their own, and what each must end with."""

import json
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config.compose import Composer
from moebench.config.schema import ExperimentConfig
from moebench.data.corpus import prepare
from moebench.errors import MoebenchError
from moebench.records import Record, find_records
from tests.processes import Process, environments
from tests.results import results
from tests.torture.topic import DEADLINE

STEPS = 6
SMALL = (
    *("model=smoke", "model.d_model=16", "model.num_layers=2", "model.num_experts=4"),
    *("model.num_heads=1", "model.expert_dim=8", f"train.steps={STEPS}", "train.eval_every=4"),
    *("micro_bsz=2", "global_bsz=4", "seq_len=16", "data=folder", "data.valid_sequences=2"),
    *("run.device=cpu", "run.threads=1", "run.log_every=1", "run.checkpoint_every=1"),
)
STACK = ("scope=micro", "scope=global", "scope=shuffled")
KINDS: dict[str, tuple[str, ...]] = {
    "micro": ("scope=micro",),
    "shuffled": ("scope=shuffled",),
    "global": ("scope=global",),
    "bias": ("method=bias",),
    "quantile": ("method=quantile",),
    "ema": ("scope=global", "balance.estimator=ema"),
    "stack": STACK,
    "ranks": ("scope=global",),
}
RANKS = 2
DOMAINS = {"digits": "0123456789 ", "letters": "abcdefghij "}


def make_text(folder: Path) -> None:
    """Two domains of random characters, the same in every session, so that names are too."""
    for number, (domain, letters) in enumerate(DOMAINS.items()):
        draw = np.random.default_rng(number)
        (folder / domain).mkdir(parents=True)
        for split, documents in (("train", 40), ("valid", 20)):
            texts = ["".join(draw.choice(list(letters), 200)) for _ in range(documents)]
            lines = [json.dumps({"text": text}) + "\n" for text in texts]
            (folder / domain / f"{split}.jsonl").write_text("".join(lines))


def room() -> Path:
    """The folder of this session of tortures."""
    return Path(os.environ["TORTURE_ROOM"])


def words(*overrides: str) -> list[str]:
    """The words of a small run on the text of this session; a later one wins."""
    text = f"data.path={os.environ['TORTURE_TEXT']}"
    all_of_them = (*SMALL, text, *overrides)
    return list({word.split("=")[0]: word for word in all_of_them}.values())


def configs(kind: str, *overrides: str) -> list[ExperimentConfig]:
    """The configs of the runs of a kind: one, or those of a stack."""
    typed = KINDS[kind] if kind == "stack" else [" ".join(KINDS[kind])]
    composer = Composer()
    return [composer.compose(words(*each.split(), *overrides)) for each in typed]


def train(kind: str, runs_dir: str, overrides: Sequence[str] = (), code: str = "") -> None:
    """Train a kind of run, or continue it, in this process; exits with 1 and a line for an error.

    Args:
        code: run before; it may put hooks into the product.
    """
    from moebench.experiment import run_experiment, run_stack

    if code:
        exec(code, {"__name__": "torture"})
    made = configs(kind, *overrides)
    corpora = [prepare(config.data) for config in made]
    if len(made) > 1:
        errors = run_stack(made, corpora, Path(runs_dir))
    else:
        errors: list[Exception | None] = [None]
        try:
            run_experiment(made[0], corpora[0], Path(runs_dir), resume=True)
        except MoebenchError as error:
            errors = [error]
    for error in filter(None, errors):
        if not isinstance(error, MoebenchError):
            raise error
        print(f"error: {error}", flush=True)
    raise SystemExit(any(errors))


def start(kind: str, runs_dir: Path, *overrides: str, code: str = "") -> list[Process]:
    """Processes that train a kind of run: one, or several ranks."""
    arguments = (kind, str(runs_dir), overrides, code)
    sets = environments(RANKS) if kind == "ranks" else [None]
    return [Process(train, arguments, env) for env in sets]


def finish(kind: str, runs_dir: Path, *overrides: str) -> None:
    """Train a kind of run to its end; AssertionError with what it said if it does not get there."""
    for process in start(kind, runs_dir, *overrides):
        out, errors = process.communicate(DEADLINE)
        assert process.returncode == 0, f"does not continue: {out}{errors}"


def found(runs_dir: Path) -> dict[str, Any]:
    """What the runs of a folder ended with, by name."""
    return {record.name: results(record) for record in find_records(runs_dir)}


@cache
def reference(kind: str, *overrides: str) -> dict[str, Any]:
    """What the uninterrupted runs of a kind end with."""
    folder = room() / "reference" / "-".join((kind, *overrides))
    finish(kind, folder, *overrides)
    return found(folder)


def assert_same(kind: str, runs_dir: Path, *overrides: str) -> None:
    """The runs of a folder ended as uninterrupted ones do."""
    ended, wanted = found(runs_dir), reference(kind, *overrides)
    assert ended.keys() == wanted.keys(), f"runs {sorted(ended)}, not {sorted(wanted)}"
    for name, parts in wanted.items():
        for part, value in parts.items():
            if ended[name][part] != value:
                raise AssertionError(f"{name}: {part} differ: {_first(ended[name][part], value)}")


def _first(one: Any, other: Any) -> str:
    """Where two values first differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{sorted(one.keys() ^ other.keys())} are in one of them"
        key = next(key for key in one if one[key] != other[key])
        return f"{key}: {_first(one[key], other[key])}"
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        at = next(at for at in range(len(one)) if one[at] != other[at])
        return f"[{at}] {_first(one[at], other[at])}"
    return f"{str(one)[:80]} / {str(other)[:80]}"


def draw(name: str) -> random.Random:
    """The random numbers of an attempt."""
    return random.Random(name)


def records(runs_dir: Path) -> list[Record]:
    return find_records(runs_dir)
