"""Commands while every connection to another machine is noted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tests.torture.calls import Call, call
from tests.torture.input import RUN, a_copy, seal_again
from tests.torture.runs import words
from tests.torture.topic import Counts, Topic

LOCAL = ("127.0.0.1", "::1", "localhost")


def _run(place: Path) -> None:
    a_copy(place)


def _of_the_hub(place: Path) -> None:
    """The record of a stranger, whose config names a dataset of the Hub."""
    record = a_copy(place)
    path = record.path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    about = {"source": "huggingface", "name": "someone/something", "path": None}
    config["data"] |= about | {"revision": "0" * 40}
    path.write_text(yaml.safe_dump(config))
    seal_again(record)


def _dataset(place: Path) -> None:
    """A folder of a stranger, whose card names text on the network."""
    folder = place / "dataset"
    folder.mkdir()
    rows = "".join(json.dumps({"text": f"some words {n}"}) + "\n" for n in range(200))
    (folder / "train.jsonl").write_text(rows)
    urls = "configs:\n- config_name: default\n  data_files: https://localhost:9/x.jsonl\n"
    (folder / "README.md").write_text(f"---\n{urls}---\n")


def _nothing(_: Path) -> None:
    pass


HUB = ["data=huggingface", "data.name=dataset", "data.text_column=text"]
COMMANDS: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "train": (_nothing, ["train"], ""),
    "report": (_run, ["report", "runs"], ""),
    "page": (_run, ["report", "runs", "--html", "runs/page.html"], ""),
    "evaluate": (_run, ["evaluate", RUN, "--questions", "2"], ""),
    "inspect": (_run, ["inspect", RUN, "--text", "abc"], ""),
    "verify": (_run, ["verify", "runs"], ""),
    "diff": (_run, ["diff", RUN, RUN], ""),
    "a preset": (_nothing, ["train", "--print-config", "data=huggingface", "data.name=x/y"], ""),
    "a stranger's record": (_of_the_hub, ["evaluate", RUN], "downloads nothing"),
    "a stranger's record, inspected": (_of_the_hub, ["inspect", RUN], ""),
    "a stranger's record, verified": (_of_the_hub, ["verify", RUN], ""),
    "a stranger's dataset": (_dataset, ["data", "show", *HUB], "names data on the network"),
}


def attempt(name: str, folder: Path) -> Counts:
    prepare, command, refused = COMMANDS[name]
    prepare(folder)
    more = words() if name == "train" else []
    made = call([*command, *more], folder)
    assert not (away := connections(made)), f"connects: {away[0]}"
    if refused:
        assert made.code == 2, f"{made.out}{made.err}"
        assert refused in made.err, made.err
    else:
        assert made.code == 0, made.err
    return {"commands": 1}


def connections(made: Call) -> list[str]:
    """The connections of a call to other machines."""
    return [each for each in made.deeds.connected if not any(name in each for name in LOCAL)]


def attempts() -> Sequence[str]:
    return list(COMMANDS)


TOPIC = Topic(
    name="network",
    promise="No command connects to another machine unless its words name a dataset of the Hub.",
    attempts=attempts,
    attempt=attempt,
    short=("a stranger's record", "a stranger's dataset", "report", "evaluate"),
)
