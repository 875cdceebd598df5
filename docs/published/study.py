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
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.config.overrides import typed_value
from moebench.config.presets import KNOBS
from moebench.disk import write_bytes
from moebench.errors import MoebenchError, RecordError

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
MAY_LACK = ("gain", "best weight", "equal MaxVio")  # effects that need no value
NUMBERS = ("value", "low", "high", "level", "p", "tokens")
RANGES = {"level": (0, 1), "p": (0, 1), "tokens": (0, math.inf), "seconds": (0, math.inf)}
FIXED = (
    *("row", "part", "name", "arm", "against", "seed", "metric", "value", "low", "high", "level"),
    *("p", "unit", "verdict", "text", "claim", "source", "tokens", "seeds", "prereg", "command"),
    *("moebench", "commit", "processor", "seconds"),
)
PRESETS = Path(__file__).parents[2] / "conf" / "study"
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
        eligible: whether the page found that it takes an eligible size; no part of the file.
    """

    about: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[Row] = field(default_factory=list)
    effects: list[Row] = field(default_factory=list)
    eligible: bool = False

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

        Raises RecordError where a cell holds a path of the machine, or what is no text.
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
            _check_cells(dict(zip(columns, cells, strict=True)))
            writer.writerow(cells)
        return file.getvalue()

    @classmethod
    def of_csv(cls, text: str) -> "Study":
        """What `to_csv` wrote.

        Raises RecordError for a line that it did not write, as where the file is cut off, for a
        value that its column cannot have, and for a path of a machine.
        """
        study, rows = cls(), csv.DictReader(io.StringIO(text))
        try:
            for cells in rows:
                kind = cells.pop("row", None)
                if kind not in KINDS or None in cells or None in cells.values():
                    raise RecordError("is cut off, or no row of a study")
                _check_cells(cells)
                study._add(kind, cells)
        except KeyError as error:
            raise RecordError(f"lacks the column {error}") from None
        except (MoebenchError, csv.Error) as error:
            raise RecordError(f"line {max(rows.line_num, 1)}: {error}") from None
        pairs = zip(text.split("\n"), study.to_csv().split("\n"), strict=False)
        for number, (line, again) in enumerate(pairs, 1):
            if line != again:  # as with a quote that lacks
                raise RecordError(f"line {number}: is not as it was written")
        return study

    def _add(self, kind: str, cells: Mapping[str, str]) -> None:
        """Add a row. Raises KeyError for a column that lacks, RecordError for a value."""
        if kind == "about":
            self.about[cells["name"]] = cells["text"]
        elif kind == "setting":
            self.settings |= _science({cells["name"]: _value(cells["text"])})
        elif kind == "run":
            own = {key: _value(cell) for key, cell in cells.items() if cell != ""}
            fixed = {key: own.pop(key) for key in FIXED if key in own}
            fixed["seed"] = _seed(cells["seed"])
            metrics = {key: _number(key, cells[key]) for key in SHOWN if key in own}
            if "seconds" in fixed:
                metrics["seconds"] = _number("seconds", cells["seconds"])
            science = {key: value for key, value in own.items() if key not in SHOWN}
            science = self.settings | _science(science)
            if "train.steps" not in science:
                raise RecordError("lacks train.steps")
            run = {"part": "", **fixed, "arm": cells["arm"], "metrics": metrics}
            self.runs.append(run | {"science": science})
        else:
            for seed in cells["seeds"].split():
                _seed(seed)
            empty = dict.fromkeys(FIXED[1:], "")
            known = {key: cell for key, cell in cells.items() if key in FIXED}
            needed = {"level"} if cells["name"] in MAY_LACK else {"level", "value"}
            numbers = {
                key: _number(key, cells[key]) if key in needed or cells.get(key) else None
                for key in NUMBERS
            }
            self.effects.append(empty | known | numbers)


def _check_cells(cells: Mapping[str, str]) -> None:
    """Raises RecordError for a path, and for a cell that is no line of text."""
    for column, cell in cells.items():
        if not cell.isprintable():
            raise RecordError(f"{column}: holds more than one line of text, or what is no text")
        if PATH.search(cell):
            raise RecordError(f"{column} {cell}: holds a path, which is not published")


def _science(values: Row) -> Row:
    """Values of keys of the config, as they are. Raises ConfigError for one of another type."""
    for key in values.keys() & KNOBS.keys():
        typed_value(f"{key}={str(values[key])[:40]}", key, values[key], KNOBS)
    return values


def _cell(value: Any) -> str:
    """A value as a CSV has it: words in one line, anything else as JSON."""
    if value is None or isinstance(value, str):
        return " ".join((value or "").split())
    if isinstance(value, float):
        return f"{value:.7g}"
    return json.dumps(value)


def _value(cell: str) -> Any:
    """What `_cell` wrote: the words themselves if it would write their value in another way."""
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    return value if _cell(value) == cell else cell


def _number(column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    low, high = RANGES.get(column, (-math.inf, math.inf))
    if math.isinf(value) or not (low <= value <= high or (math.isnan(value) and column in SHOWN)):
        between = f" from {low} to {high}" if high == 1 else " of 0 or more" * (low == 0)
        raise RecordError(f"{column} {cell[:20]}: must be a number{between}")
    return value


def _seed(cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) < 20):
        raise RecordError(f"seed {cell[:20]}: must be a whole number of 0 or more")
    return int(cell)


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
        name = study.about.get("study", "")
        if not study.runs or (path.stem not in TUNED and not (study.effects and name)):
            raise RecordError("holds no whole study")
        if name and not (PRESETS / f"{name}.yaml").is_file():
            raise RecordError(f"study {name[:40]}: is not one of conf/study")
    except (MoebenchError, OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        again = f"git checkout {path}, or make it again from its runs"
        raise RecordError(f"{path}: {why}; {again}") from error
    return study
