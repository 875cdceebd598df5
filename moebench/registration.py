"""Preregistrations: what a study will be, written beside its plan before its first seed.

`runs/studies/<name>-<hash>/prereg.json` holds the arms, seeds, looks, order of findings, endpoint,
margin and commit, sealed by a hash that the report prints, with what deviated from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moebench.checkout import commit
from moebench.disk import read_json, reason, write_json
from moebench.errors import ConfigError, RecordError
from moebench.looks import looks
from moebench.plans import Plan
from moebench.records import Record, cannot_write, printable
from moebench.seals import is_sealed, with_digest

FILE = "prereg.json"
TUNING = 1000  # seeds from here on are for choices, and never reported
COMPARED = {
    "size": "size",
    "baseline": "baseline",
    "primary": "endpoint",
    "secondary": "secondary endpoints",
    "order": "order of findings",
    "average_twin": "averaging of the A/A twin",
    "most_seeds": "most seeds of the stopping rule",
    "margin": "margin",
}


@dataclass(frozen=True)
class Registration:
    """A preregistration as it was written.

    Attributes:
        path: of its file.
        content: of the file.
        sound: whether its seal holds.
    """

    path: Path
    content: Mapping[str, Any]
    sound: bool

    @property
    def digest(self) -> str:
        return str(self.content.get("sha256", "?"))

    @property
    def seeds(self) -> list[int]:
        return list(self.content.get("seeds", ()))


def describe(plan: Plan, margin_from: str = "") -> dict[str, Any]:
    """What a preregistration holds, without its date and seal.

    Args:
        margin_from: where the margin comes from.
    """
    shared = _shared(plan)
    return {
        "study": plan.name,
        "plan": plan.slug,
        "question": plan.question,
        **{key: _plain(getattr(plan, key)) for key in COMPARED},
        "margin_from": margin_from,
        "looks": [look._asdict() for look in looks(plan.most_seeds)] if plan.most_seeds else [],
        "seeds": list(plan.seeds),
        "overrides": shared,
        "arms": {
            job.arm_hash: " ".join(word for word in _words(job.overrides) if word not in shared)
            for job in plan.jobs
        },
        "typed": list(plan.typed or ()),
        **commit(),
    }


def register(plan: Plan, runs_dir: Path, margin_from: str = "") -> Registration:
    """Write a plan and its preregistration.

    Raises:
        ConfigError: for seeds that are never reported, if a run has begun, or if the study is
            registered otherwise.
    """
    tuning = [seed for seed in plan.seeds if seed >= TUNING]
    if tuning:
        raise ConfigError(
            f"--register: seed={tuning[0]}: seeds from {TUNING} on are for choices and are never "
            "reported; register others"
        )
    path = plan.path(runs_dir).with_name(FILE)
    now = describe(plan, margin_from)
    if path.exists():
        known = read(path)
        fixed = ("seeds", "overrides", "arms", *COMPARED)
        differs = [key for key in fixed if known.content.get(key) != now[key]]
        if differs or not known.sound:
            what = f"with another {differs[0]}" if differs else "and was changed since"
            raise ConfigError(f"--register: {path}: is registered {what}; take other seeds")
        return known
    refuse_begun(plan, runs_dir, "--register")
    content = with_digest({**now, "date": datetime.now(UTC).isoformat(timespec="seconds")})
    plan.write(runs_dir)
    try:
        write_json(path, content)
    except OSError as error:
        raise cannot_write(runs_dir, error) from None
    return read(path)


def refuse_begun(plan: Plan, runs_dir: Path, option: str) -> None:
    """Raise ConfigError if a run of a plan has begun."""
    begun = [job for job in plan.jobs if Record(runs_dir / job.run).exists()]
    if begun:
        which = f"{begun[0].run} has" if len(begun) == 1 else f"{len(begun)} runs have"
        raise ConfigError(
            f"{option}: {which} begun before; take seeds that nobody has seen, as in "
            f"seed=range(100,{100 + len(plan.seeds)})"
        )


def read(path: Path) -> Registration:
    """A preregistration; RecordError if the file is no such thing."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: is no preregistration ({reason(error)})") from None
    shapes = {"study": str, "seeds": list, "arms": dict, "overrides": list, "date": str}
    for key, shape in shapes.items():
        if not isinstance(content.get(key), shape):
            raise RecordError(f"{path}: is no preregistration ({key} is missing)")
    return Registration(path, content, is_sealed(content))


def find(roots: Iterable[Path]) -> list[Registration]:
    """The preregistrations among some runs, the latest last; RecordError for a damaged one."""
    paths = {path.resolve(): path for root in roots for path in root.glob(f"studies/*/{FILE}")}
    return sorted(map(read, paths.values()), key=lambda each: str(each.content["date"]))


def deviations(
    registration: Registration,
    plan: Plan,
    *,
    seeds: Iterable[int],
    arms: Mapping[str, str],
    commits: Sequence[str],
    first_end: str = "",
    complete: bool = True,
) -> list[str]:
    """In what a study differs from what was registered, a phrase each.

    Args:
        plan: of the study, which may be another one than the registered.
        seeds: that are reported.
        arms: names of the reported ones, by arm hash.
        commits: of the code of their runs: ten digits, and " with changes".
        first_end: when the first of them ended, in ISO format; "" if unknown.
        complete: whether all seeds of the study, or of its last look, should be there.
    """
    said, seeds = registration.content, set(seeds)
    found = [] if registration.sound else ["the file was changed after it was written"]
    for key, words in COMPARED.items():
        now = _plain(getattr(plan, key))
        if said.get(key) != now:
            found.append(f"{words}: {_shown(now)} (registered: {_shown(said.get(key))})")
    other = set(_shared(plan)) - set(said["overrides"])
    if other:
        found.append(
            f"overrides: {' '.join(sorted(other))} (registered: "
            f"{' '.join(sorted(set(said['overrides']) - set(_shared(plan)))) or 'none'})"
        )
    elif more := [name for arm, name in arms.items() if arm not in said["arms"]]:
        found.append(f"arms that are not registered: {', '.join(more)}")
    if more := sorted(seeds - {*registration.seeds}):
        found.append(f"seeds that are not registered: {', '.join(map(str, more))}")
    wanted = {*(plan.seeds if said.get("most_seeds") else registration.seeds)}
    if complete and (less := sorted((wanted & {*registration.seeds}) - seeds)):
        found.append(f"seeds without results: {', '.join(map(str, less))}")
    code = str(said.get("commit") or "unknown")[:10] + " with changes" * bool(said.get("dirty"))
    if others := sorted({*commits} - {code}):
        found.append(f"code: {', '.join(others)} (registered: {code})")
    if first_end and first_end < str(said["date"]):
        found.append(f"a run ended before it was registered on {said['date']}")
    return list(map(printable, found))


def _words(overrides: Sequence[str]) -> list[str]:
    return [word for word in overrides if not word.startswith("seed=")]


def _shared(plan: Plan) -> list[str]:
    """The overrides of all runs, without the seed."""
    jobs = plan.jobs
    return [w for w in _words(jobs[0].overrides) if all(w in job.overrides for job in jobs)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
