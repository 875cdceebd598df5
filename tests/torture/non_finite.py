"""nan and inf in each term, gradient and weight: named, never saved, and no other run of a stack.

What is put in is put in once, as by a fault of memory, so that the run continues from its last
checkpoint and must then end as if nothing had happened.
"""

import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from moebench.records import Record
from moebench.train.build import make_model
from tests.processes import Process
from tests.torture.runs import KINDS, assert_same, configs, finish, found, reference, train
from tests.torture.topic import DEADLINE, Counts, Topic

STEP = 3
VALUES = ("nan", "inf", "-inf")
TERMS = {
    "cross-entropy": "the cross-entropy is",
    "balance loss": "the balance loss over",
    "z-loss": "the z-loss is",
    "penalty": "the penalty of the method is",
}
TERM_WORDS = ("loss.z=0.001", "method=importance", "loss.balance=0.02")
PLACES = ("alone", "in a stack")
ARM = "micro"  # the run of the stack that is hurt
FAULT = """
import torch
from moebench.balance.importance import Importance
from moebench.train import loop, share
what, name, value, step, arm = {what!r}, {name!r}, float({value!r}), {step}, {arm!r}

def hurt(config, number):
    return number == step and (not arm or config.scope == arm)

next_step, finish, loss = loop.TrainingRun.next_step, loop.TrainingRun.finish, share.ArmStep.loss
own, penalty = share.ActiveTerm.loss, Importance.penalty
now = [0]

def stepping(self):
    made = next_step(self)
    now[0] = made.number if hurt(self.config, made.number) else 0
    if what == "weight" and now[0]:
        self.state.model.get_parameter(name).data.view(-1)[-1] = value
    return made

def finishing(self, made, outcome):
    if what == "gradient" and hurt(self.config, made.number):
        self.state.model.get_parameter(name).grad.view(-1)[-1] = value
    return finish(self, made, outcome)

def losing(self, nats, routing, span):
    if what == "cross-entropy" and now[0] == self.step.number:
        nats = nats + value
    if what == "z-loss" and now[0] == self.step.number:
        routing = routing._replace(logsumexp_sq=routing.logsumexp_sq + value)
    return loss(self, nats, routing, span)

loop.TrainingRun.next_step, loop.TrainingRun.finish = stepping, finishing
share.ArmStep.loss = losing
if what == "balance loss":
    share.ActiveTerm.loss = lambda self, *more: own(self, *more) + (value if now[0] else 0)
if what == "penalty":
    Importance.penalty = lambda self, *more: penalty(self, *more) + (value if now[0] else 0)
"""


def attempts() -> list[str]:
    """What is hurt, with which value, in a run alone and in one of a stack."""
    whats = [f"{kind} {name}" for kind in ("gradient", "weight") for name in _parameters()]
    in_both = [f"{what} {value} {place}" for what in whats for value in VALUES for place in PLACES]
    return [f"term {term} {value} alone" for term in TERMS for value in VALUES] + in_both


def attempt(name: str, folder: Path) -> Counts:
    """Hurt a run at one step."""
    what, part, value, place = _parsed(name)
    stacked, runs_dir = place == "in a stack", folder / "runs"
    kind = "stack" if stacked else "global"
    words = TERM_WORDS if what in TERMS else ()
    wanted = reference(kind, *words)
    code = FAULT.format(what=what, name=part, value=value, step=STEP, arm=ARM if stacked else "")
    out, errors = (process := Process(train, (kind, str(runs_dir), words, code))).communicate(
        DEADLINE
    )
    assert process.returncode == 1, f"ended with {process.returncode}: {out}{errors}"
    hurt = [record for record in _records(runs_dir) if record.status()["state"] == "failed"]
    assert len(hurt) == 1, f"{len(hurt)} runs failed: {out}{errors}"
    reason = hurt[0].status()["reason"]
    named = {"gradient": f"the gradient of {part} is", "weight": f"the weight {part} is", **TERMS}
    assert f"step {STEP}: {named[what]}" in reason, f"does not name it: {reason}"
    for file in hurt[0].path.glob("checkpoints/*/*.safetensors"):
        for tensor, values in load_file(file).items():
            assert torch.isfinite(values).all(), f"{file.name}: {tensor} is not finite"
    ended = found_done(runs_dir)
    for run, results in ended.items():
        assert results == wanted[run], f"{run}: another run of the stack is harmed"
    assert len(ended) == (len(KINDS["stack"]) - 1 if stacked else 0), f"{len(ended)} others ended"
    finish(kind, runs_dir, *words)
    if stacked:  # it continued alone, where products of other shapes may round otherwise
        [nats] = [record.summary()["valid/nats"] for record in hurt]
        before = float.fromhex(wanted[hurt[0].name]["summary"]["valid/nats"])
        assert hurt[0].damage() == []
        assert math.isclose(nats, before, rel_tol=1e-4), f"{nats} nats, not {before}"
    else:
        assert_same(kind, runs_dir, *words)
    return {what: 1, place: 1}


def found_done(runs_dir: Path) -> dict:
    """What the runs that are done ended with."""
    done = [record for record in _records(runs_dir) if record.is_done()]
    return {record.name: found(record.path)[record.name] for record in done}


def _records(runs_dir: Path) -> list[Record]:
    return [Record(path.parent) for path in sorted(runs_dir.glob("*/config.yaml"))]


def _parsed(name: str) -> tuple[str, str, str, str]:
    """What, of which parameter, value and place."""
    place = next(place for place in PLACES if name.endswith(place))
    what, *middle, value = name.removesuffix(f" {place}").split()
    part = " ".join(middle)
    return (part, "", value, place) if what == "term" else (what, part, value, place)


@cache
def _parameters() -> list[str]:
    [config] = configs("global")
    return [name for name, _ in make_model(config, 257).named_parameters()]


TOPIC = Topic(
    "non-finite",
    "A nan or inf in any term, gradient or weight fails the run at that step and is named; no "
    "checkpoint holds it, other runs of the stack end as if alone, and the run continues.",
    attempts,
    attempt,
    short=6,
)
