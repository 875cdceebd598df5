"""Too little memory: the run that does not fit fails alone, and its error names it.

The limit is real: of the address space of a process, at many levels, and a model that no machine
holds, as each arm of a sweep. In a stack, the arms that fit end as if alone.
"""

import math
import os
from pathlib import Path

from tests.processes import moebench
from tests.torture.commands import said
from tests.torture.runs import KINDS, assert_same, finish, found, reference, words
from tests.torture.topic import DEADLINE, Counts, Topic

LEVELS = 20
NATS = "valid/nats"
MOST = 320 << 20  # bytes beside what the process has at its start; with all, a run fits
WIDE = ("model.d_model=128", "model.expert_dim=128", "train.steps=3", "train.eval_every=0")
TOO_LARGE = "4000000000"  # hidden units of an expert: more than any memory holds
SIZES = ("8", "16", TOO_LARGE)
STEPS = ("train.steps=3", "train.eval_every=0")
LIMITED = """
import os, resource
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (now + {more}, now + {more}))
"""
STACKED = """
import torch
from moebench.train import stack
gradients = stack.Stack.gradients
def full(self, requests):
    sizes = [request.run.config.scope for request in requests]
    if len(requests) > {most} or {arm!r} in sizes and requests[0].step.number == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB")
    return gradients(self, requests)
stack.Stack.gradients = full
"""


def attempts() -> list[str]:
    """Levels of a limit, places of the arm in a sweep, and stacks that do not fit as a whole."""
    limits = [f"limit {level}/{LEVELS}" for level in range(LEVELS)]
    sweeps = [f"sweep {place}" for place in range(len(SIZES))]
    return [*sweeps, "stack as a whole", "stack micro", *limits]


def attempt(name: str, folder: Path) -> Counts:
    """One limit, one sweep, or one stack."""
    kind, rest = name.split(maxsplit=1)
    if kind == "limit":
        return _limited(int(rest.split("/")[0]), folder)
    if kind == "sweep":
        return _swept(int(rest), folder)
    return _stacked("" if rest == "as a whole" else rest, folder)


def _limited(level: int, folder: Path) -> Counts:
    reference("global", *WIDE)
    env = _troubled(folder, LIMITED.format(more=MOST * level // LEVELS))
    typed = words(*KINDS["global"], *WIDE)
    process = moebench("train", *typed, cwd=folder, env=env)
    _, errors = process.communicate(DEADLINE)
    last = said(errors)
    if process.returncode:
        assert "out of memory" in last, f"does not say why: {errors}"
    finish("global", folder / "runs", *WIDE)
    assert_same("global", folder / "runs", *WIDE)
    return {"limits": 1, "did not fit": int(process.returncode != 0)}


def _troubled(folder: Path, code: str) -> dict[str, str]:
    """The environment of processes that run `code` when they start."""
    trouble = folder / "trouble"
    trouble.mkdir()
    (trouble / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(trouble)}


def _swept(place: int, folder: Path) -> Counts:
    sizes = [size for size in SIZES if size != TOO_LARGE]
    sizes.insert(place, TOO_LARGE)
    typed = words(*STEPS, f"model.expert_dim={','.join(sizes)}", "scope=global")
    process = moebench("sweep", *typed, "--jobs", "1", cwd=folder)
    _, errors = process.communicate(DEADLINE)
    last = said(errors)
    assert process.returncode == 3, f"exit code {process.returncode}: {errors}"
    assert "out of memory" in last, f"does not say why: {last}"
    assert "global" in last.split()[1], f"names no run: {last}"
    wanted = {**reference("global", *STEPS, "model.expert_dim=16"), **reference("global", *STEPS)}
    done = {}
    for path in (folder / "runs").glob("*/summary.json"):
        done |= found(path.parent)
    assert done == wanted, f"{sorted(done)} ended"
    return {"sweeps": 1}


def _stacked(arm: str, folder: Path) -> Counts:
    """A stack that does not fit: its runs follow one by one, and those that fit end."""
    env = _troubled(folder, STACKED.format(most=1 if not arm else 3, arm=arm))
    typed = words(*STEPS, "scope=micro,global,shuffled", "run.stack=3")
    process = moebench("sweep", *typed, "--jobs", "1", cwd=folder, env=env)
    _, errors = process.communicate(DEADLINE)
    last = said(errors)
    done = {}
    for file in (folder / "runs").glob("*/summary.json"):
        done |= found(file.parent)
    if not arm:
        assert process.returncode == 0, errors
        assert len(done) == 3
    else:
        assert process.returncode == 3, errors
        assert "out of memory" in last, last
        assert f"{arm}-s0" in last, f"names no run: {last}"
        assert len(done) == 2
    for scope in {"micro", "global", "shuffled"} - {arm}:
        for run, results in reference(scope, *STEPS).items():
            if arm:  # it began in the stack, where products of other shapes may round otherwise
                nats = [float.fromhex(each["summary"][NATS]) for each in (done[run], results)]
                assert math.isclose(*nats, rel_tol=1e-4), f"{run}: {nats} nats"
                continue
            other = {**done[run], "config": results["config"]}  # which says run.stack=3
            differ = [part for part in results if other[part] != results[part]]
            assert not differ, f"{run} is not as alone: {differ}"
    return {"stacks": 1}


TOPIC = Topic(
    "memory",
    "A run that does not fit fails alone with a line that names it; the others of its sweep or "
    "stack end as if alone.",
    attempts,
    attempt,
    short=("sweep 1", "stack micro", "limit 10/20"),
)
