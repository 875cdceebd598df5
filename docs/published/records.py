"""Records become studies for the page: what the report says of them, as rows of a CSV."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tuning_runs import tell_problems, with_metrics
from docs.published.study import NO_VERDICT, NOISE, PATH, SHOWN, TUNING, Row, Study
from moebench.errors import RecordError
from moebench.plans import PRIMARY, Plan
from moebench.records import find_records
from moebench.registration import TUNING as FIRST_TUNING
from moebench.report import Report, make_report
from moebench.report.infer.arms import Table
from moebench.report.infer.decisions import LEVEL, Decision
from moebench.report.infer.frontier import WEIGHT, frontier
from moebench.report.infer.headroom import headroom
from moebench.report.infer.statistics import Estimate
from moebench.report.paper.verdicts import CANNOT_TELL, TOO_EARLY, Verdict
from moebench.report.read.frame import load
from moebench.report.read.studies import find_plans
from moebench.report.show.registered import look, registration
from moebench.report.show.sentences import cautions, control, interim

STUDIES = Path(__file__).parents[2] / "conf" / "study"
VERSIONS = ("moebench", "commit", "torch", "python", "precision", "device_name")
KINDS = ("x86_64", "aarch64", "arm64", "AMD64", "cpu", "?", "")  # names that tell no processor


def reports(
    roots: Sequence[Path], tell: Callable[[str], None], *, unfinished: bool = False
) -> Iterable[tuple[Plan, Report]]:
    """The studies with reported seeds whose runs lie in some directories.

    Args:
        tell: is given a line on each study that is left out.
        unfinished: whether to give studies that have not ended, as they are.
    """
    plans, problems = find_plans(roots)
    for name, why in problems:
        tell(f"left out: {name}: {why}")
    for name in sorted({plan.name for plan in plans if f"study={plan.name}" in (plan.typed or ())}):
        if not (STUDIES / f"{name}.yaml").is_file():
            tell(f"study={name} is no preset of conf/study: others cannot run its command")
    for plan in plans:
        if plan.folder is None or max(plan.seeds) >= FIRST_TUNING:
            continue
        runs_dir = plan.folder.parents[1]
        try:
            report = make_report([runs_dir], study=plan.folder.name, runs_dir=runs_dir)
        except RecordError as error:
            tell(f"left out: {plan.slug}: {error}")
            continue
        if not unfinished and any(table.interim for table in report.tables):
            tell(f"left out: {plan.slug}: has not ended; --unfinished takes it as it is")
            continue
        if not all(table.comparisons.arms for table in report.tables):
            tell(f"left out: {plan.slug}: has an arm with nothing to compare it with")
            continue
        yield plan, report


def study_of(plan: Plan, report: Report, machine: str) -> Study:
    """A study from its report."""
    first = report.tables[0]
    rows = [row for row in report.frame.rows() if row["state"] == "done"]
    made = Study(_about(plan, first, rows))
    made.runs = _runs(report, with_metrics(report.frame))
    made.settings = _shared(made.runs)
    for table, verdicts in zip(report.tables, report.verdicts, strict=True):
        part = ", ".join(f"{key}={value}" for key, value in table.differs.items())
        effects = [*_differences(table), *map(_finding, verdicts), *_rooms(table)]
        effects += [*_gains(table), *_frontier(table)]
        common = {"part": part, **_made(plan, table, machine)}
        made.effects += [{**common, **effect} for effect in effects]
    return made


def tuned(roots: Sequence[Path], machine: str, tell: Callable[[str], None]) -> dict[str, Study]:
    """The runs on tuning seeds, by the name of their CSV: of sweeps named `noise`, and all others.

    A run that both have is in both. The others chose sizes and weights.

    Args:
        tell: is given a line on each record that is left out.
    """
    plans = [plan for plan in find_plans(roots)[0] if max(plan.seeds) >= FIRST_TUNING]
    of_noise = [plan for plan in plans if plan.name == NOISE]
    others = [plan for plan in plans if plan.name != NOISE]
    named, known = ({job.run for plan in of for job in plan.jobs} for of in (of_noise, others))
    every = {record.name for root in roots for record in find_records(root)}
    found = {}
    for name, of, names in (NOISE, of_noise, named), (TUNING, others, every - (named - known)):
        frame = load(roots, names)
        tell_problems(frame, tell)
        rows = [row for row in with_metrics(frame) if row["seed"] >= FIRST_TUNING]
        found[name] = _tuned(rows, of, machine)
    return {name: study for name, study in found.items() if study.runs}


def _tuned(rows: Sequence[Row], plans: Sequence[Plan], machine: str) -> Study:
    commands = dict.fromkeys(typed(plan) for plan in plans if plan.typed is not None)
    versions = {key: _all(row["made_with"].get(key) for row in rows) for key in VERSIONS}
    about = {f"command {i}": command for i, command in enumerate(commands, 1)}
    made = Study({**versions, "processor": _processor(versions["device_name"], machine), **about})
    made.about.pop("device_name")
    made.runs = [_run(row, "") for row in sorted(rows, key=lambda row: (row["arm"], row["run"]))]
    made.settings = _shared(made.runs)
    return made


def typed(plan: Plan) -> str:
    """The command that makes a plan, with DIR in place of paths.

    It names the order of findings of a plan that was made before its preset declared another.
    """
    preset = STUDIES / f"{plan.name}.yaml"
    if plan.order and not plan.order_is_typed and preset.is_file():
        declared = yaml.safe_load(preset.read_text(encoding="utf-8")).get("order", ())
        plan = plan if tuple(declared) == plan.order else plan.in_order(plan.order)
    if plan.typed is None:
        return ""
    words = ["moebench", "sweep", *(PATH.sub(r"\1DIR", word) for word in plan.typed)]
    return shlex.join(words)


def _about(plan: Plan, table: Table, rows: Sequence[Row]) -> dict[str, str]:
    """Texts on a study, without empty ones."""
    found = {
        "study": plan.name,
        "question": plan.question,
        "size": plan.size,
        "data": _all(row["science"].get("data", "")[:10] for row in rows),
        "source": str(plan.jobs[0].config.get("data", {}).get("source", "")),
        "domains": _all(len(row["domains"]) for row in rows),
        "baseline": table.baseline,
        "control": control(table),
        "steps": _all(f"{row['steps']:.0f}" for row in rows),
        **{key: _all(row["made_with"].get(key) for row in rows) for key in ("torch", "python")},
        "interim": interim(table),
        "too early": table.too_early,
        "few seeds": _few(table),
        "order": ", ".join(plan.order),
        "look": look(table),
        "registration": registration(table),
        "cautions": " ".join(cautions(table, pooled=False)),
    }
    return {name: text for name, text in found.items() if text}


def _few(table: Table) -> str:
    """That too few seeds are there for a verdict; "" for enough."""
    compared = [len(each.per_seed) for each in table.comparisons.arms.values()]
    if table.no_verdict or not compared or max(compared) >= table.fewest:
        return ""
    return f"A verdict takes {table.fewest} seeds."


def _made(plan: Plan, table: Table, machine: str) -> Row:
    """What all effects of a table were made with."""
    devices = ", ".join(table.made_with.get("device_name", ()))
    seeds = sorted({seed for arm in table.arms for seed in arm.seeds})
    return {
        "tokens": table.tokens[1] if table.tokens else None,
        "seeds": " ".join(map(str, seeds)),
        "prereg": table.registered.sha256[:12] if table.registered else "",
        "command": typed(plan),
        "moebench": ", ".join(table.made_with.get("moebench", ())),
        "commit": ", ".join(table.made_with.get("commit", ())),
        "processor": _processor(devices, machine),
    }


def _processor(name: str, machine: str) -> str:
    """The name of a device; of a processor that a record names by its kind alone, the machine's."""
    return machine if name in KINDS else name


def _all(texts: Iterable[Any]) -> str:
    return ", ".join(sorted({str(text) for text in texts if text not in (None, "")}))


def _runs(report: Report, rows: Sequence[Row]) -> list[Row]:
    """The runs of the report's tables, in the order of its arms."""
    by_name = {row["run"]: row for row in rows}
    found = []
    for table in report.tables:
        part = ", ".join(f"{key}={value}" for key, value in table.differs.items())
        for arm in table.arms:
            named = [name for _, name in sorted(arm.runs.items()) if name in by_name]
            found += [{**_run(by_name[name], part), "arm": arm.name} for name in named]
    return found


def _run(row: Row, part: str) -> Row:
    science = {key: value for key, value in row["science"].items() if key != "seed"}
    if "data" in science:
        science["data"] = str(science["data"])[:10]
    return {
        "part": part,
        "arm": row["arm"],
        "seed": row["seed"],
        "seconds": row["metrics"].get("seconds"),
        "science": science,
        "metrics": {name: row["metrics"][name] for name in SHOWN if name in row["metrics"]},
    }


def _shared(runs: Sequence[Row]) -> dict[str, Any]:
    """The keys that all runs have with one value."""
    first = runs[0]["science"] if runs else {}
    return {
        key: value
        for key, value in sorted(first.items())
        if all(key in run["science"] and run["science"][key] == value for run in runs)
    }


def _ends(estimate: Estimate, size: float = 1.0) -> Row:
    parts = ("value", "low", "high")
    values = (getattr(estimate, part) for part in parts)
    scaled = (None if value is None else value / size for value in values)
    return dict(zip(parts, scaled, strict=True))


def _differences(table: Table) -> Iterable[Row]:
    """Of each arm to the baseline, in the primary and the secondary endpoints."""
    of_bytes = table.bytes_per_token or 1.0
    unit = "nats a byte" if table.bytes_per_token else "nats a token" * (table.primary == PRIMARY)
    families = {table.primary: table.decisions, **table.secondary_decisions}
    for metric, decisions in families.items():
        primary = metric == table.primary
        for arm, decision in decisions.items():
            yield {
                "name": "difference" if primary else "secondary",
                "arm": arm,
                "against": control(table),
                "metric": metric,
                **_ends(decision.estimate, of_bytes if primary else 1.0),
                "level": decision.level,
                "p": decision.p,
                "unit": unit if primary else "",
                **_word(table, decision),
            }


def _word(table: Table, decision: Decision) -> Row:
    if decision.p is None:
        return {
            "verdict": TOO_EARLY if table.too_early else NO_VERDICT,
            "text": decision.withheld,
        }
    if not decision.decided:
        return {"verdict": CANNOT_TELL, "text": ""}
    return {"verdict": "lower" if decision.estimate.value < 0 else "higher", "text": ""}


def _finding(verdict: Verdict) -> Row:
    unit = f"nats a {verdict.unit}" if verdict.metric == PRIMARY else verdict.unit
    return {
        "name": "finding",
        "arm": verdict.arms[0] if len(verdict.arms) == 2 else " ".join(verdict.arms),
        "against": verdict.arms[1] if len(verdict.arms) == 2 else verdict.type,
        "metric": verdict.metric,
        **_ends(verdict.here),
        "level": verdict.level,
        "p": verdict.p,
        "unit": f"{unit}{verdict.per}",
        "verdict": verdict.verdict,
        "text": verdict.reason,
        "claim": verdict.claim,
        "source": verdict.source.partition(", ")[2],
    }


def _rooms(table: Table) -> Iterable[Row]:
    """Headroom, and how far each arm is from the hash of the token."""
    room = headroom(table)
    if room is None:
        return
    about = {"name": "headroom", "metric": PRIMARY, "level": LEVEL, "unit": "nats a byte"}
    for arm, against, value in (("T", "TD", room.by_token), ("S", "D", room.by_sequence)):
        if value is not None:
            yield {**about, "arm": arm, "against": against, **_ends(value)}
    for place in room.places:
        if place.to_token is not None:
            behind = "behind T in every seed" if place.behind else ""
            kind = place.role or ("learned" if place.learned else "")
            row = {"arm": place.arm.name, "against": "T", "verdict": kind, "text": behind}
            yield {**about, **row, **_ends(place.to_token)}


def _gains(table: Table) -> Iterable[Row]:
    """Compute-equivalent gains: shares of the baseline's tokens."""
    for arm, gain in table.gains.items():
        yield {
            "name": "gain",
            "arm": arm,
            "against": control(table),
            "metric": PRIMARY,
            **{key: getattr(gain, key) for key in ("value", "low", "high")},
            "level": LEVEL,
            "unit": "share of the tokens",
            "text": "more than the curve fell" if gain.beyond else "",
        }


def _frontier(table: Table) -> Iterable[Row]:
    """Each scope at its best weight, and all at one MaxVio."""
    of_bytes = table.bytes_per_token or 1.0
    scopes = frontier(table)
    for scope in scopes:
        best = f"{WEIGHT}={scope.best.science[WEIGHT]:g}"
        at = "" if scope.at is None else f"MaxVio {scope.at:.2f}"
        for name, value, text in (
            ("best weight", scope.best_difference, best),
            ("equal MaxVio", scope.matched_difference, at),
        ):
            row = {"name": name, "arm": scope.name, "against": scopes[0].name, "metric": PRIMARY}
            ends = {} if value is None else _ends(value, of_bytes)
            yield {**row, **ends, "level": LEVEL, "unit": "nats a byte", "text": text}
