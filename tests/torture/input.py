"""Hostile inputs: overrides, configs, presets, records, plans, corpora, each read by commands."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from moebench.disk import read_json, write_bytes, write_json
from moebench.records import Record
from moebench.seals import seal_of, sealable, with_digest
from tests.torture.bad_files import BAD_CORPORA, BAD_FILES, BAD_OVERRIDES, BAD_PRESETS, VALUES
from tests.torture.calls import Call, assert_in_order, call
from tests.torture.fuzzed import READINGS, fuzz
from tests.torture.runs import draw, room, words
from tests.torture.specimens import OVERRIDES, files, specimen
from tests.torture.topic import Counts, Topic

FUZZED = 20  # attempts of each kind that hypothesis makes
LIMIT = 2.0  # seconds of the processor; a command that trains or imports is warm by then
Words = list[list[str]]
RUN = "runs/specimen"


def overrides(random: Random, _: Path) -> Words:
    text = random.choice(BAD_OVERRIDES)
    command = random.choice(
        (["train", "--dry-run"], ["sweep", "--dry-run"], ["train", "--print-config"])
    )
    return [[*command, *data(), text]]


def data() -> list[str]:
    return [word for word in words() if word.startswith("data")]


def configs(random: Random, place: Path) -> Words:
    """A config of a stranger: a file that is none, or one with an odd value."""
    path = place / "config.yaml"
    if random.random() < 0.4:
        random.choice(BAD_FILES)(path)
    else:
        lines = (specimen("finished").path / "config.yaml").read_text().splitlines()
        at = random.randrange(len(lines))
        lines[at] = lines[at].split(":")[0] + ": " + yaml_of(random.choice(VALUES))
        path.write_text("\n".join(lines), errors="replace")
    return [["train", "--dry-run", "--config", str(path)]]


def yaml_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def presets(random: Random, place: Path) -> Words:
    path = place / "mine" / random.choice(("model", "experiment", "data", "study")) / "odd.yaml"
    path.parent.mkdir(parents=True)
    content = random.choice(BAD_PRESETS)
    content(path) if callable(content) else path.write_text(content)
    group = path.parent.name
    command = ["sweep"] if group == "study" else ["train"]
    return [[*command, "--dry-run", "--config-dir", "mine", *data(), f"{group}=odd"]]


def a_copy(place: Path, name: str = "finished") -> Record:
    record = Record(place / RUN)
    shutil.copytree(specimen(name).path, record.path, ignore=shutil.ignore_patterns("tensorboard"))
    return record


def seal_again(record: Record) -> None:
    """Seal what a stranger changed, so that its content is all that can be refused."""
    summary = record.path / "summary.json"
    if summary.exists():
        content = {**read_json(summary), **seal_of(record.path, sealable(record.path))}
        write_json(summary, with_digest(content))


def write_raw(path: Path, content: Any) -> None:
    write_bytes(path, json.dumps(content).encode())


def commands(random: Random) -> Words:
    """A few commands that read a record."""
    every: Words = [
        ["report", "runs"],
        ["report", "runs", "--json"],
        ["inspect", RUN],
        ["inspect", RUN, "--text", "abc"],
        ["evaluate", RUN, "--questions", "2"],
        ["verify", RUN],
        ["diff", RUN, RUN],
        ["sweep", "--status"],
    ]
    return random.sample(every, 3)


def odd_values(random: Random, place: Path) -> Words:
    """A record with an odd value in one of its JSON files."""
    record = a_copy(place, random.choice(("finished", "stopped")))
    names = ["manifest.json", "status.json", "summary.json", "checkpoints/*/state.json"]
    found = [path for name in names for path in record.path.glob(name)]
    path = random.choice(found)
    content = read_json(path)
    holder, key = content, random.choice(sorted(content))
    while isinstance(holder[key], dict) and holder[key] and random.random() < 0.7:
        holder = holder[key]
        key = random.choice(sorted(holder))
    holder[key] = random.choice(VALUES)
    if path.name in ("summary.json", "status.json"):
        content = with_digest(content)
    write_raw(path, content)
    if path.name not in ("summary.json", "status.json"):
        seal_again(record)
    return commands(random)


def odd_files(random: Random, place: Path) -> Words:
    """A record in which something else is in the place of a file."""
    record = a_copy(place, random.choice(("finished", "stopped")))
    path = random.choice(sorted(path for path in record.path.rglob("*") if path.is_file()))
    path.unlink()
    random.choice(BAD_FILES)(path)
    if random.random() < 0.7 and path.is_file() and path.name != "summary.json":
        seal_again(record)
    return commands(random)


def continued(random: Random, place: Path) -> Words:
    """A run that continues, in which something else is in the place of a file, or of a lock."""
    run = specimen("stopped").path
    record = Record(place / "runs" / run.name)
    shutil.copytree(run, record.path, ignore=shutil.ignore_patterns("tensorboard"))
    path = record.path / random.choice(files(record))
    if random.random() < 0.2:
        path = record.path.with_name(".locks") / f"{run.name}.lock"
        path.parent.mkdir()
    path.unlink(missing_ok=True)
    random.choice(BAD_FILES)(path)
    return [["train", "--resume", *words(*OVERRIDES)]]


def plans(random: Random, place: Path) -> Words:
    """A study's plan with an odd value, or a file that is none."""
    path = place / "runs" / "studies" / "odd-0123" / "plan.json"
    path.parent.mkdir(parents=True)
    if random.random() < 0.3:
        random.choice(BAD_FILES)(path)
    else:
        content: dict[str, Any] = json.loads(json.dumps(a_plan()))
        holder = random.choice((content, content["runs"][0], content["runs"][0]["config"]))
        holder[random.choice(sorted(holder))] = random.choice(VALUES)
        write_raw(path, content)
    if random.random() < 0.3:
        random.choice(BAD_FILES)(path.with_name("cost.json"))
    return [
        ["sweep", "--status", "odd"],
        ["report", "runs", "--study", "odd"],
        ["sweep", "--status"],
    ]


@cache
def a_plan() -> dict[str, Any]:
    manifest = specimen("finished").manifest()
    run = {key: manifest[key] for key in ("run", "arm", "arm_hash", "seed")}
    run |= {"id": 0, "overrides": ["seed=0"], "config": {"train": {"steps": 6}}}
    about = dict.fromkeys(("question", "size"), "") | {"name": "odd", "primary": "valid/nats"}
    return {"schema_version": 1, **about, "baseline": manifest["arm"], "runs": [run]}


def corpora(random: Random, place: Path) -> Words:
    """A folder of text with an odd file."""
    for domain in ("one", "two"):
        (place / "texts" / domain).mkdir(parents=True)
        (place / "texts" / domain / "train.txt").write_text("some words\n" * 400)
    name, content = random.choice(BAD_CORPORA)
    path = place / "texts" / "one" / name
    content(path) if callable(content) else path.write_bytes(content)
    return [["data", "show", "data=folder", "data.path=texts"]]


def others(random: Random, place: Path) -> Words:
    """A tokenizer, a task, a lock or a folder of runs that is something else."""
    bad, record = random.choice(BAD_FILES), a_copy(place)
    what = random.choice(("tokenizer", "blimp", "lock", "runs", "hub", "kernels"))
    if what == "tokenizer":
        bad(place / "tokenizer.json")
        return [["data", "show", *data(), "data.tokenizer=tokenizer.json"]]
    if what == "blimp":
        (place / "blimp").mkdir()
        bad(place / "blimp" / random.choice(("a.jsonl", "a.jsonl.gz")))
        return [["evaluate", RUN, "--tasks", "blimp"]]
    if what == "hub":
        config = record.path / "config.yaml"
        text = config.read_text().replace("source: folder", "source: huggingface")
        config.write_text(text.replace("  name: null", "  name: someone/something"))
        seal_again(record)
        return [["evaluate", RUN]]
    path = (
        place
        / "runs"
        / {"lock": ".locks/specimen.lock", "runs": "odd", "kernels": ".kernels"}[what]
    )
    path.parent.mkdir(exist_ok=True)
    bad(path)
    return [["report", "runs"], ["verify", "runs"], ["train", "--dry-run", *words(*OVERRIDES)]]


def logged_counts(random: Random, place: Path) -> Words:
    """A file of counts, or of costs, that no trainer logged."""
    path = place / random.choice(("counts.npz", "counts.parquet", "costs.csv"))
    random.choice(BAD_FILES)(path)
    command = ["inspect", "--counts", str(path), "--top-k", "2"]
    if path.suffix == ".csv":
        counts = next((specimen("finished").path / "routing").glob("*.npz"))
        command = ["inspect", "--counts", str(counts), "--top-k", "2", "--cost", str(path)]
    return [command]


KINDS: dict[str, tuple[Callable[[Random, Path], Words], int]] = {
    "override": (overrides, 90),
    "config": (configs, 60),
    "preset": (presets, 50),
    "value in a record": (odd_values, 120),
    "file of a record": (odd_files, 80),
    "file of a run that continues": (continued, 60),
    "plan": (plans, 50),
    "corpus": (corpora, 40),
    "other file": (others, 30),
    "file of counts": (logged_counts, 30),
}


def attempts() -> Sequence[str]:
    counts = {kind: count for kind, (_, count) in KINDS.items()} | dict.fromkeys(READINGS, FUZZED)
    numbers = range(max(counts.values()))
    return [f"{kind} {n}" for n in numbers for kind, count in counts.items() if n < count]


@cache
def _warm() -> None:
    """Import what commands import, which takes seconds once."""
    place = room() / "warm"
    a_copy(place)
    for command in (["report", "runs"], ["inspect", RUN], ["evaluate", RUN, "--questions", "1"]):
        made = _call(command, place)
        assert made.code == 0, made.err
    _call(["train", "--dry-run", *words()], place)


def _call(command: list[str], place: Path) -> Call:
    return call(command, place)


def attempt(name: str, folder: Path) -> Counts:
    _warm()
    if name.rpartition(" ")[0] in READINGS:
        return fuzz(name, folder, LIMIT)
    make, _ = KINDS[name.rpartition(" ")[0]]
    allowed = [folder / "runs", folder / "cache", Path(os.environ["MOEBENCH_CACHE"])]
    made = [_call(command, folder) for command in make(draw(name), folder)]
    for each in made:
        assert_in_order(each, allowed, LIMIT)
    refused = any(each.code for each in made)
    return {"hostile inputs": 1, "of them refused": int(refused), "commands": len(made)}


TOPIC = Topic(
    name="input",
    promise="A hostile input ends a command within two seconds, with errors of one line each, and "
    "nothing is written but in the folder of runs and the cache.",
    attempts=attempts,
    attempt=attempt,
    short=[f"{kind} {n}" for n in range(3) for kind in KINDS] + [f"{kind} 0" for kind in READINGS],
)
