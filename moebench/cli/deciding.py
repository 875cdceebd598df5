"""`sweep --register` and `--until-decided`: a study that is fixed beforehand and ends by rule."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from moebench.cli.hours import Timer
from moebench.cli.launching import follow
from moebench.cli.margin import margin_of, read_margin, typed_margin
from moebench.cli.options import parse_number
from moebench.cli.output import print_json, print_message
from moebench.errors import ConfigError, RecordError
from moebench.looks import FEWEST, MOST, PARTS

if TYPE_CHECKING:
    from rich.console import Console

    from moebench.plans import Plan
    from moebench.report import Report
    from moebench.study import Launcher
    from moebench.study.engines import Engine

FIXED = ("most_seeds", "margin", "order", "secondary", "average_twin")
"""What a plan that ends by rule keeps from its first run on."""

Register = Annotated[
    bool,
    typer.Option(
        "--register",
        help="write what the study will be to prereg.json beside its plan, before its first seed, "
        "and stop; the report says what deviated from it",
    ),
]
UntilDecided = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="train a quarter, half and all of the seeds, and stop as soon as the study's first "
        "finding is decided, with an error of 5 % over all looks",
    ),
]
MostSeeds = Annotated[
    int | None,
    typer.Option(
        "--most-seeds",
        parser=parse_number,
        metavar="N",
        help=f"with --until-decided: seeds of the last look, a multiple of {PARTS[0]} and at least "
        f"{FEWEST}; by default {MOST}",
    ),
]
Margin = Annotated[
    str | None,
    typer.Option(
        "--margin",
        metavar="NATS",
        help="a difference or slope below so many nats a byte is none that matters; or a headroom "
        "study, of whose H a quarter is taken",
    ),
]


class Rule(NamedTuple):
    """What is typed of a study that is fixed beforehand."""

    register: bool
    until_decided: bool
    most_seeds: int | None
    margin: str | None

    def check(self, launcher: str, *, detach: bool, shows: str = "") -> None:
        """ConfigError for options that do not go together.

        Args:
            shows: the option by which the sweep shows something and stops.
        """
        if self.register and shows:
            raise ConfigError(f"--register {shows}: one writes, one shows; use only one")
        if self.most_seeds and not self.until_decided:
            raise ConfigError(
                f"--most-seeds {self.most_seeds}: is for --until-decided; add that, or use --seeds"
            )
        if self.margin is not None and not self.margin.strip():
            raise ConfigError("--margin: is empty; type nats a byte, or leave it out")
        if self.margin and not (self.until_decided or self.register):
            raise ConfigError(
                f"--margin {self.margin}: is for --until-decided and --register; add one of them"
            )
        if self.margin:
            typed_margin(self.margin)  # before data are prepared
        if self.until_decided and (detach or launcher == "commands"):
            option = "--detach" if detach else "--launcher commands"
            raise ConfigError(
                f"--until-decided {option}: looks at the runs of each step before it starts the "
                "next, and so must stay; use only one"
            )

    def seeds(self, words: Sequence[str], seeds: int | None) -> int | None:
        """The number of seeds from 0 on; None where the words say which."""
        if not self.until_decided:
            return seeds
        if seeds is not None:
            raise ConfigError(f"--seeds {seeds}: takes --most-seeds with --until-decided")
        if any(word.startswith("seed=") for word in words):
            return None
        return self.most_seeds or MOST

    def applied(self, plan: "Plan", runs_dir: Path) -> "tuple[Plan, str]":
        """The plan with this rule, or with that of an earlier sweep; and where the margin is from.

        Raises ConfigError where the rule does not fit the plan, or is not the earlier one.
        """
        from moebench.registration import COMPARED, refuse_begun

        _check_order(plan)
        known, damage = _known(plan, runs_dir)
        margin, source = read_margin(self.margin, runs_dir) if self.margin else (None, "")
        if known is not None and known.most_seeds and not self.until_decided:
            raise ConfigError(
                f"{plan.slug}: was planned to end by rule; add --until-decided, or take other seeds"
            )
        if damage:  # what was edited tells that there was a rule, and no more
            known = None
        if known is not None and margin is None:
            margin = known.margin
        if not self.until_decided:
            _tell_added(plan, runs_dir)
        plan = _in_its_order(plan, known)
        most = _most(plan, self.most_seeds) if self.until_decided else None
        typed = self._words(plan.typed or (), margin)
        plan = replace(plan, most_seeds=most, margin=margin, typed=typed)
        if known is not None and known.margin is not None and known.margin != margin:
            raise ConfigError(
                f"--margin {margin}: {plan.slug} was planned with {known.margin}; leave it "
                "out, or take other seeds"
            )
        if damage and self.until_decided:
            refuse_begun(plan, runs_dir, f"--until-decided: {damage}", "restore the plan, or ")
        if damage:
            anew = "as it is typed now" if self.until_decided else "without a stopping rule"
            print_message(f"{damage}; the sweep writes it again, {anew}")
        other = [key for key in FIXED if known is None or getattr(known, key) != getattr(plan, key)]
        if other and self.until_decided:
            ruled = known is not None and known.most_seeds is not None
            changed = f" with a change of its {COMPARED[other[0]]}" if ruled else ""
            lost = "" if known else f"restore {plan.path(runs_dir)} if it was lost, or "
            refuse_begun(plan, runs_dir, f"--until-decided{changed}", lost)
        if not self.register:
            _tell_registered(plan, runs_dir)
        return plan, source

    def _words(self, typed: Sequence[str], margin: float | None) -> tuple[str, ...]:
        """What is typed again to go on."""
        words = list(typed)
        if self.until_decided and "--seeds" in words:
            place = words.index("--seeds")
            words[place : place + 2] = ["--most-seeds", words[place + 1]]
        if self.until_decided:
            words += ["--until-decided", *(() if margin is None else ("--margin", repr(margin)))]
        return tuple(words)


def _known(plan: "Plan", runs_dir: Path) -> "tuple[Plan | None, str]":
    """The plan of an earlier sweep, and its damage if nothing tells by which rule it ends.

    The rule of a damaged, edited or lost plan is that of its preregistration, if that one is sound.
    Else the plan is None, or, with its damage, as it was edited. Versions of moebench that sealed
    no plan had no rule: such a plan is as it was written.
    """
    from moebench.plans import read_plan
    from moebench.registration import FILE, read

    path = plan.path(runs_dir)
    if not any(map(os.path.lexists, (path, path.with_name(FILE)))):
        return None, ""
    try:
        return read_plan(path, unedited=True), ""
    except RecordError as error:
        damage = str(error).partition("; ")[0]  # the remedy is what is done here
    try:
        registered = read(path.with_name(FILE))
    except RecordError:
        registered = None
    if registered is None or not registered.sound:
        readable = _readable(path)
        unsealed = readable is not None and not readable.edited and not readable.most_seeds
        return readable, "" if unsealed else damage
    said = {key: registered.content[key] for key in FIXED}
    fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    print_message(f"{damage}; the sweep writes it again by {registered.path.name}")
    return replace(plan, **fixed), ""


def _readable(path: Path) -> "Plan | None":
    """A plan that may have been edited; None where it cannot be read."""
    from moebench.plans import read_plan

    try:
        return read_plan(path)
    except RecordError:
        return None


def _tell_added(plan: "Plan", runs_dir: Path) -> None:
    """Name the studies that end by rule and lose their verdict beside the seeds of a plan."""
    from moebench.plans import find_ruled
    from moebench.report.read.reached import at_its_look

    for other in find_ruled(runs_dir, {job.arm_hash for job in plan.jobs}):
        now = at_its_look(other).seeds
        if {*plan.seeds} - {*other.seeds}:
            print_message(
                f"{other.slug}: ends by rule, and has no verdict in a report with other seeds; "
                f"moebench report --study {other.slug} reports it alone"
            )
        elif {*plan.seeds} - {*now}:
            print_message(
                f"{other.slug}: may end by rule at its look at {len(now)} seeds; it has no verdict "
                "then with the later ones that this sweep trains"
            )


def _tell_registered(plan: "Plan", runs_dir: Path) -> None:
    """Say in what a plan is not what was registered, or that the file is damaged."""
    from moebench.registration import FILE, otherwise, read

    path = plan.path(runs_dir).with_name(FILE)
    if not os.path.lexists(path):
        return
    try:
        known = read(path)
    except RecordError as error:
        print_message(f"{error}; the report says so")
        return
    what = otherwise(known, plan) if known.sound else ["seal, as it was changed since"]
    if what:
        print_message(
            f"{path}: is registered otherwise in its {', '.join(what)}; the report says so"
        )


def _in_its_order(plan: "Plan", known: "Plan | None") -> "Plan":
    """The plan in the order of findings that an earlier sweep stored, unless another is typed.

    A preset may begin with another finding since.
    """
    if known is None or known.order == plan.order or plan.order_is_typed:
        return plan
    print_message(
        f"{plan.slug}: keeps the order of findings that it was planned with, "
        f"{', '.join(known.order) or 'none'}, and not that of study={plan.name}"
    )
    return plan.in_order(known.order)


def _check_order(plan: "Plan") -> None:
    """ConfigError for an order of findings with a name of none, or the same one twice."""
    from moebench.report.paper.findings import order_error

    if wrong := order_error(plan.order):
        raise ConfigError(wrong)


def _most(plan: "Plan", typed: int | None) -> int:
    """The most seeds of a plan. ConfigError for a plan that cannot be looked at."""
    from moebench.looks import looks
    from moebench.plans import GRID
    from moebench.report.paper.findings import findings
    from moebench.report.paper.judge import shown_by

    if not plan.order:
        named = ", or name one, as in 'study.order=[01-global-below-micro]'"
        raise ConfigError(
            f"--until-decided: {'a grid' if plan.name == GRID else plan.name} has no order of "
            "findings, whose first one is looked at; choose a study with one, as study=scope"
            f"{named if plan.question else ''}"  # a grid has no question, and takes no order
        )
    most = len(plan.seeds)
    named = "--until-decided" if typed is None else f"--most-seeds {typed}"
    by = next((word for word in plan.typed or () if word.startswith("seed=")), named)
    if typed not in (None, most):
        raise ConfigError(f"--most-seeds {typed}: {by} names {most} of them; keep one of the two")
    looks(most, by)
    if several := _differing(plan):
        raise ConfigError(
            f"--until-decided: {plan.name} has arms that no table compares, as they differ in "
            f"{', '.join(several)}, and a rule looks at one finding; type one value of each"
        )
    if plan.order[0] not in (shown := shown_by(_sciences(plan), plan.primary)):
        others = [name for name in findings() if name in shown]
        remedy = "choose other arms or another study.primary"
        if others:
            remedy = f"name another first, as in 'study.order=[{others[0]}]'"
        raise ConfigError(
            f"--until-decided: {plan.name} has no arms that show {plan.order[0]} in "
            f"{plan.primary}, the first finding of its order; {remedy}"
        )
    arms = len({job.arm_hash for job in plan.jobs})
    if len(plan.jobs) != arms * most:
        raise ConfigError(
            f"--until-decided: {plan.name} has {len(plan.jobs)} runs of {arms} arms and {most} "
            "seeds; give every arm every seed"
        )
    return most


def _differing(plan: "Plan") -> list[str]:
    """The keys in which the runs of a plan come to differ in their tables."""
    from moebench.report.read.grouping import comparable

    tables = [comparable(science) for science in _sciences(plan)]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]


def _sciences(plan: "Plan") -> list[dict[str, Any]]:
    """What the record of each arm will hold of its settings."""
    from moebench.config.compose import from_dict
    from moebench.config.identity import science
    from moebench.study.plan import data_key

    jobs = {job.arm_hash: job for job in plan.jobs}
    configs = [from_dict(job.config) for job in jobs.values()]
    return [science(config, data_key(config.data)) for config in configs]


def print_registered(plan: "Plan", runs_dir: Path, margin_from: str, *, as_json: bool) -> None:
    """Write the preregistration of a plan, and print its hash."""
    from moebench.registration import register

    made = register(plan, runs_dir, margin_from)
    if as_json:
        print_json({"study": plan.slug, "path": str(made.path), "sha256": made.digest})
        return
    print_message(f"{made.path}: sha256 {made.digest}")
    print_message(
        "publish this hash before the first run; the same command without --register trains it"
    )


def print_rule(plan: "Plan", console: "Console") -> None:
    """Print the looks of a plan that ends by rule."""
    from moebench.looks import looks

    if plan.most_seeds:
        each = [f"{look.seeds} ({100 * look.level:g} %)" for look in looks(plan.most_seeds)]
        margin = "no margin" if plan.margin is None else margin_of(plan.order[0], plan.margin)
        at = f"{', '.join(each[:-1])} and {each[-1]} seeds"
        print_message(f"stopping rule: {plan.order[0]} is looked at after {at}; {margin}", console)


def train_until_decided(
    plan: "Plan", runs_dir: Path, engine: "Engine", hours: float | None
) -> "Launcher":
    """Train whole seeds until the rule ends the study, or the next look does not fit in the hours.

    Looks that were taken are taken again: seeds that were added by hand move no end.

    Returns:
        The launcher of the last look; its `failed` runs end the sweep there.
    """
    from moebench.looks import looks
    from moebench.study import Launcher

    plan.write(runs_dir)
    timer = Timer(hours)
    launcher = Launcher(plan.first(0), runs_dir, engine, within=plan)
    for look in looks(plan.most_seeds or 0):
        launcher = Launcher(plan.first(look.seeds), runs_dir, engine, within=plan)
        if launcher.waiting:
            if not timer.fits(launcher, look.seeds):
                return launcher
            began = time.monotonic()
            follow(launcher)
            timer.took(time.monotonic() - began)
        if launcher.failed or _ended(plan, runs_dir, look.number):
            return launcher
    return launcher


def _ended(plan: "Plan", runs_dir: Path, number: int) -> bool:
    """Whether the rule ends a study at a look, or nothing can be decided; prints why."""
    from moebench.report import make_report
    from moebench.report.read.reached import at_its_look
    from moebench.report.show.registered import look

    report: Report = make_report([runs_dir], study=plan.slug, runs_dir=runs_dir, look=number)
    ruled = [(table, table.rule) for table in report.tables if table.rule]
    for table, _ in ruled:
        print_message(look(table))
    ended = all(rule.ended or table.no_verdict for table, rule in ruled)
    if ended and any(at_its_look(whole) != at_its_look(whole, number) for whole in report.plans):
        print_message("later seeds were added by hand, with which a report gives no verdict")
    return ended
