"""The page of `make gpu`: the machine, the parts and their state, and every figure."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_parts import Part
from tables import Row, Tables, markdown

METRICS = ("valid/nats", "load/max_vio_global", "load/max_vio_micro", "specialization/domain")
OF_RUN = ("speed/tokens_per_second", "speed/step_seconds", "speed/mfu", "memory/peak_bytes")
LINES = 12  # of an error


def tables_of(text: str) -> Tables:
    """The tables in what a part printed; none if it is no JSON."""
    try:
        made = json.loads(text)
    except ValueError:
        return {}
    if "rows" in made:  # moebench report
        return {"Arms": [_arm(row) for row in made["rows"]]}
    if "tables" in made:  # a benchmark
        return made["tables"]
    if "findings" in made:  # moebench doctor
        return {"Findings": made["findings"]}
    if "arms" in made:  # moebench bench
        return {"Steps": [{"arm": arm, **_numbers(each)} for arm, each in made["arms"].items()]}
    if "summary" in made:  # moebench train
        run = {"run": made["run"].rsplit("/", 1)[-1]}
        return {"A run": [{**run, **{key: made["summary"].get(key) for key in OF_RUN}}]}
    return {}


def _numbers(figures: Mapping[str, Any]) -> Row:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _arm(row: Mapping[str, Any]) -> Row:
    """The means of an arm, and its difference to the baseline with its interval."""
    cells: dict[str, str | float | None] = {"arm": row["arm"], "n": row["n"]}
    for name in METRICS:
        cells[name] = row["metrics"].get(name, {}).get("mean")
    found = row["metrics"].get(METRICS[0], {})
    for key in ("difference", "difference_low", "difference_high"):
        cells[f"{METRICS[0]}, {key.replace('_', ' ')}"] = found.get(key)
    return cells


def page(about: Mapping[str, Any], results: Mapping[str, Any], parts: Iterable[Part]) -> str:
    """The page in Markdown.

    Args:
        about: what `gpu_machine.py` says, of the latest call.
        results: by the name of a part: its state, command, seconds, tables and reason.
    """
    parts = list(parts)
    lines = [f"# {about['card']}", "", INTRO, "", markdown(list(_machine(about))), ""]
    lines += ["## Parts", "", markdown([_summary(part, results) for part in parts])]
    shown: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        result = results.get(part.name, {})
        if result.get("tables"):
            shown[part.title or part.name] = result
        elif result.get("output"):  # an error, which hides no figures
            shown[part.name] = result
    for title, result in shown.items():
        lines += ["", f"## {title}", "", *_commands(result)]
        for name, rows in result["tables"].items():
            lines += ["", f"### {name}", "", markdown(rows)]
        if result.get("output"):
            lines += ["", "```", *result["output"].splitlines()[-LINES:], "```"]
    return "\n".join(lines) + "\n"


INTRO = (
    "Written by `make gpu`, which continues where it stopped; the file of the same name that ends "
    "in `.json` has all figures. Times are wall times."
)


def _machine(about: Mapping[str, Any]) -> Iterable[Row]:
    for name, value in about.items():
        if name == "versions":
            yield from ({"machine": package, "": version} for package, version in value.items())
        elif name in ("memory", "in use by others"):
            yield {"machine": name, "": f"{value / 2**30:.1f} GiB"}
        else:
            dotted = ".".join(map(str, value)) if isinstance(value, list) else str(value)
            yield {"machine": name, "": dotted}


def _summary(part: Part, results: Mapping[str, Any]) -> Row:
    result = results.get(part.name, {"state": "waiting"})
    keys = ("state", "seconds", "reason", "source")
    return {"part": part.name, **{key: result.get(key) for key in keys}}


def _commands(result: Mapping[str, Any]) -> list[str]:
    return ["```", *result["commands"], "```"]
