"""The CSV of a study: texts, settings, runs and effects, to and from a file.

A row's first column names its kind, and cells are empty where a column says nothing of that kind:

- `about`: a `name` and its `text`: the question, the look, the preregistration, versions.
- `setting`: a key of the config (`name`) and its value (`text`), where all runs share it.
- `run`: an arm and a seed, with the keys in which runs differ and the metrics of the page.
- `effect`: a value with its interval and what it was made with. `name` says which: `difference` of
  an arm to the baseline, `secondary` endpoint, `finding` of the paper, `headroom`, `gain` (share of
  the baseline's tokens), `best weight`, `equal MaxVio`. Nats are nats a byte.

No CSV holds a path of the machine: DIR stands in its place.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.disk import write_bytes
from moebench.errors import RecordError

SHOWN = (
    *("valid/nats", "valid/bits_per_byte", "tune/bits_per_byte", "load/max_vio_micro"),
    *("load/max_vio_batch", "load/max_vio_global", "load/within_even_share"),
    *("specialization/domain", "specialization/domain_given_token", "specialization/purity"),
    *("router/replay_cost", "ep/slowdown", "balance/gradient_error", "balance/gradient_cosine"),
)
NO_VERDICT = "no verdict"
TUNING, NOISE = "tuning", "noise"  # the CSVs of runs on tuning seeds; those of sweeps named noise
TUNED = (TUNING, NOISE)
KINDS = ("about", "setting", "run", "effect")
NUMBERS = ("value", "low", "high", "level", "p", "tokens")
FIXED = (
    *("row", "part", "name", "arm", "against", "seed", "metric", "value", "low", "high", "level"),
    *("p", "unit", "verdict", "text", "claim", "source", "tokens", "seeds", "prereg", "command"),
    *("moebench", "commit", "processor", "seconds"),
)
PATH = re.compile(r"(^|[\s=,:\[({\"'])/[^\s,\])}\"']+")
Row = dict[str, Any]


@dataclass
class Study:
    """What one CSV holds.

    Attributes:
        about: texts by name.
        settings: keys of the config that all runs share, with their values.
        runs: `arm`, `seed`, `part`, `seconds`, `science` and `metrics` of each.
        effects: cells by column.
    """

    about: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[Row] = field(default_factory=list)
    effects: list[Row] = field(default_factory=list)

    def found(self, name: str, **cells: Any) -> list[Row]:
        """The effects of a name whose cells have these values."""
        return [
            effect
            for effect in self.effects
            if effect["name"] == name and all(effect[key] == of for key, of in cells.items())
        ]

    @property
    def installed(self) -> bool:
        """Whether it was trained on the text that every machine has."""
        return self.about.get("source") == "installed"

    @property
    def parts(self) -> list[str]:
        """Keys and values of the tables that it has; "" for a single one."""
        return [*dict.fromkeys(run["part"] for run in self.runs)]

    def runs_of(self, part: str) -> list[Row]:
        return [run for run in self.runs if run["part"] == part]

    def by_arm(self, part: str | None = None) -> dict[str, list[Row]]:
        """The runs of each arm, of a part or of all."""
        found: dict[str, list[Row]] = {}
        for run in self.runs if part is None else self.runs_of(part):
            found.setdefault(run["arm"], []).append(run)
        return found

    def made(self, part: str | None = None) -> Row:
        """An effect, for what all of a part were made with."""
        return next(each for each in self.effects if part in (None, each["part"]))

    def to_csv(self) -> str:
        """The content of the file.

        Raises RecordError where a cell holds a path of the machine.
        """
        keys = sorted({key for run in self.runs for key in run["science"]} - {*self.settings})
        metrics = [name for name in SHOWN if any(name in run["metrics"] for run in self.runs)]
        rows: list[Row] = [
            *({"row": "about", "name": name, "text": text} for name, text in self.about.items()),
            *({"row": "setting", "name": n, "text": _cell(v)} for n, v in self.settings.items()),
            *({"row": "run", **run, **run["science"], **run["metrics"]} for run in self.runs),
            *({"row": "effect", **effect} for effect in self.effects),
        ]
        columns = [name for name in FIXED if any(row.get(name) is not None for row in rows)]
        columns += [*keys, *metrics]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = [_cell(row.get(column)) for column in columns]
            _refuse_paths(dict(zip(columns, cells, strict=True)))
            writer.writerow(cells)
        return file.getvalue()

    @classmethod
    def of_csv(cls, text: str) -> "Study":
        """What `to_csv` wrote.

        Raises RecordError for a line that it did not write, as where the file is cut off, and for a
        path of a machine; ValueError for a number that is none, KeyError for a column that lacks.
        """
        study, rows = cls(), csv.DictReader(io.StringIO(text))
        for cells in rows:
            kind = cells.pop("row", None)
            if kind not in KINDS or None in cells or None in cells.values():
                raise RecordError(f"line {rows.line_num}: is cut off, or no row of a study")
            _refuse_paths(cells)
            if kind == "about":
                study.about[cells["name"]] = cells["text"]
            elif kind == "setting":
                study.settings[cells["name"]] = _value(cells["text"])
            elif kind == "run":
                own = {key: _value(cell) for key, cell in cells.items() if cell != ""}
                fixed = {key: own.pop(key) for key in FIXED if key in own}
                fixed["seed"] = int(cells["seed"])
                metrics = {key: float(cells[key]) for key in SHOWN if key in own}
                metrics |= {"seconds": float(cells["seconds"])} if "seconds" in fixed else {}
                science = study.settings | {key: own[key] for key in own if key not in SHOWN}
                study.runs.append(
                    {"part": "", **fixed, "arm": cells["arm"], "science": science}
                    | {"metrics": metrics}
                )
            else:
                empty = dict.fromkeys(FIXED[1:], "")
                numbers = {key: _number(cells.get(key, "")) for key in NUMBERS}
                known = {key: cell for key, cell in cells.items() if key in FIXED}
                study.effects.append(empty | known | numbers)
                if not all(map(str.isdecimal, cells.get("seeds", "").split())):
                    raise ValueError(f"seeds {cells['seeds']}: are no whole numbers")
        return study


def _refuse_paths(cells: Mapping[str, str]) -> None:
    for column, cell in cells.items():
        if PATH.search(cell):
            raise RecordError(f"{column} {cell}: holds a path, which is not published")


def _cell(value: Any) -> str:
    """A value as a CSV has it: words as they are, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return f"{value:.7g}"
    return json.dumps(value)


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def lost(old: Study, new: Study) -> int:
    """How many runs of one are not in another, by seed and loss to the digits of a CSV."""

    def counted(study: Study) -> Counter[tuple[int, str]]:
        return Counter((of["seed"], _cell(of["metrics"].get("valid/nats"))) for of in study.runs)

    return (counted(old) - counted(new)).total()


def save(path: Path, study: Study) -> None:
    """Write a CSV, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, study.to_csv().encode())


def read(folder: Path) -> Mapping[str, Study]:
    """The CSVs of a folder, by name.

    Raises RecordError naming the file that is damaged.
    """
    return {path.stem: _read(path) for path in sorted(folder.glob("*.csv"))}


def _read(path: Path) -> Study:
    try:
        study = Study.of_csv(path.read_text(encoding="utf-8"))
        if not study.runs or (
            path.stem not in TUNED and not (study.effects and "study" in study.about)
        ):
            raise RecordError("holds no whole study")
    except (RecordError, ValueError, KeyError, csv.Error) as error:
        lacks = "lacks the column " if isinstance(error, KeyError) else ""
        again = f"git checkout {path}, or make it again from its runs"
        raise RecordError(f"{path}: {lacks}{error}; {again}") from error
    return study
