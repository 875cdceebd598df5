"""Preregistrations: what a study will be, written beside its plan before its first seed.

`runs/studies/<name>-<hash>/prereg.json` holds the arms, seeds, looks, order of findings, endpoint,
margin and commit, sealed by a hash that the report prints, with what deviated from it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moebench.checkout import commit
from moebench.contents import DIGEST, FLAG, NUMBER, TEXT, WORD, each, fields, maybe, table, whole
from moebench.disk import read_checked, write_json
from moebench.errors import ConfigError, RecordError
from moebench.evaluations import KEY, others
from moebench.looks import FEWEST, looks
from moebench.plans import Plan, study_of
from moebench.record_files import SEED
from moebench.records import Record, cannot_write, printable
from moebench.seals import is_sealed, with_digest

FILE = "prereg.json"
RESTORE = "restore it, or take other seeds"
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
CONTENT = fields(
    {
        "study": TEXT,
        "seeds": each(SEED),
        "arms": table(TEXT),
        "overrides": each(TEXT),
        "date": WORD,
        **dict.fromkeys(("size", "baseline", "primary"), TEXT),
        **dict.fromkeys(("secondary", "order"), each(TEXT)),
        "average_twin": FLAG,
        "most_seeds": maybe(whole(FEWEST)),
        "margin": maybe(NUMBER),
    },
    {"plan": TEXT, "commit": maybe(TEXT), "dirty": maybe(FLAG), "sha256": DIGEST},
)


@dataclass(frozen=True)
class Registration:
    """A preregistration as it was written.

    Attributes:
        path: of its file.
        content: of the file.
        sound: whether its seal holds.
        damage: why it cannot be read; "" if it can.
    """

    path: Path
    content: Mapping[str, Any]
    sound: bool
    damage: str = ""

    @property
    def digest(self) -> str:
        return str(self.content.get("sha256", ""))

    @property
    def date(self) -> str:
        return printable(str(self.content.get("date", "")))

    @property
    def seeds(self) -> list[int]:
        return list(self.content.get("seeds", ()))


def describe(plan: Plan, margin_from: str = "") -> dict[str, Any]:
    """What a preregistration holds, without its date and seal.

    Args:
        margin_from: where the margin comes from.
    """
    return {
        "study": plan.name,
        "plan": plan.slug,
        "question": plan.question,
        **_fixed(plan),
        "margin_from": margin_from,
        "looks": [look._asdict() for look in looks(plan.most_seeds)] if plan.most_seeds else [],
        "typed": list(plan.typed or ()),
        **commit(),
    }


def _fixed(plan: Plan) -> dict[str, Any]:
    """What may not differ from a preregistration without a deviation."""
    shared = _shared(plan)
    return {
        **{key: _plain(getattr(plan, key)) for key in COMPARED},
        "seeds": list(plan.seeds),
        "overrides": shared,
        "arms": {
            job.arm_hash: " ".join(word for word in _words(job.overrides) if word not in shared)
            for job in plan.jobs
        },
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
    if path.exists():
        known = read(path)
        if not known.sound:
            raise ConfigError(f"--register: {path}: was changed since; {RESTORE}")
        if other := otherwise(known, plan):
            raise ConfigError(
                f"--register: {path}: is registered otherwise in its {other[0]}; take other seeds"
            )
        return known
    refuse_begun(plan, runs_dir, "--register")
    content = with_digest(
        {**describe(plan, margin_from), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    plan.write(runs_dir)
    try:
        write_json(path, content)
    except OSError as error:
        raise cannot_write(runs_dir, error) from None
    return read(path)


def otherwise(registration: Registration, plan: Plan) -> list[str]:
    """In what a preregistration is not what a plan is now, a word or two each."""
    now, said = _fixed(plan), registration.content
    return [COMPARED.get(key, key) for key in now if said.get(key) != now[key]]


def refuse_begun(plan: Plan, runs_dir: Path, about: str, remedy: str = "") -> None:
    """Raise ConfigError if a run of a plan has begun, whatever its `train.eval_every`.

    Args:
        about: begins the error.
        remedy: an alternative to other seeds.
    """
    begun = {
        other.job.run: f"{other.record.name} ({KEY}={other.every})"
        for other in others(plan.jobs, runs_dir)
    }
    begun |= {job.run: job.run for job in plan.jobs if Record(runs_dir / job.run).exists()}
    if begun:
        which = f"{min(begun.values())} has" if len(begun) == 1 else f"{len(begun)} runs have"
        raise ConfigError(
            f"{about}: {which} begun before; {remedy}take seeds that nobody has seen, as in "
            f"seed=range(100,{100 + len(plan.seeds)})"
        )


def read(path: Path) -> Registration:
    """A preregistration; RecordError if the file is no such thing."""
    found = _read(path)
    if found.damage:
        raise RecordError(f"{path}: is no preregistration ({found.damage}); {RESTORE}")
    return found


def find(roots: Iterable[Path]) -> list[Registration]:
    """The preregistrations among some runs, the latest last, damaged ones first."""
    paths = {path.resolve(): path for root in roots for path in root.glob(f"studies/*/{FILE}")}
    return sorted(map(_read, paths.values()), key=lambda each: each.date)


def _read(path: Path) -> Registration:
    """A preregistration; of a damaged one, only what the name of its folder tells."""
    content, wrong = read_checked(path, CONTENT)
    if wrong:
        about = {"study": study_of(path.parent), "plan": path.parent.name}
        return Registration(path, about, False, wrong)
    return Registration(path, content, is_sealed(content))


def deviations(
    registration: Registration,
    plan: Plan,
    *,
    seeds: Mapping[str, Set[int]],
    arms: Mapping[str, str],
    commits: Sequence[str],
    first_end: str = "",
    complete: bool = True,
) -> list[str]:
    """In what a study differs from what was registered, a phrase each.

    Args:
        plan: of the study, which may be another one than the registered.
        seeds: with results, by arm hash; of all tables.
        arms: names of the reported ones, those of one table, by arm hash.
        commits: of the code of their runs: ten digits, and " with changes".
        first_end: when the first of them ended, in ISO format; "" if unknown.
        complete: whether all seeds of the study, or of its last look, should be there.
    """
    if registration.damage:
        return [printable(f"{FILE} is damaged ({registration.damage})")]
    said, measured = registration.content, set[int]().union(*(seeds.get(arm, ()) for arm in arms))
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
    if more := sorted(measured - {*registration.seeds}):
        found.append(f"seeds that are not registered: {', '.join(map(str, more))}")
    wanted = {*(plan.seeds if said.get("most_seeds") else registration.seeds)}
    if complete and not other:  # with other overrides, all arms are others
        found += _lacking(said["arms"], seeds, wanted & {*registration.seeds})
    code = str(said.get("commit") or "unknown")[:10] + " with changes" * bool(said.get("dirty"))
    if others := sorted({*commits} - {code}):
        found.append(f"code: {', '.join(others)} (registered: {code})")
    if first_end and first_end < str(said["date"]):
        found.append(f"a run ended before it was registered on {said['date']}")
    return list(map(printable, found))


def _lacking(
    arms: Mapping[str, str], seeds: Mapping[str, Set[int]], wanted: Set[int]
) -> Iterator[str]:
    """What was registered and has no results: seeds, arms, and runs of the others.

    Args:
        arms: overrides of the registered ones, by arm hash.
        seeds: with results, by arm hash.
        wanted: seeds that should have some.
    """
    there = {arm: {*seeds.get(arm, ())} & wanted for arm in arms}
    whole = set[int]().union(*there.values())
    if less := sorted(wanted - whole):
        yield f"seeds without results: {', '.join(map(str, less))}"
    if none := [arms[arm] or "all defaults" for arm in arms if whole and not there[arm]]:
        yield f"arms without results: {', '.join(none)}"
    runs = [
        f"{arms[arm]} seed={seed}".strip()
        for arm in arms
        if there[arm]
        for seed in sorted(whole - there[arm])
    ]
    if runs:
        yield f"runs without results: {', '.join(runs)}"


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
