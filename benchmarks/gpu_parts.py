"""What `make gpu` runs, in the order of its value for someone with eight minutes."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SEEDS = 10  # of study=scope study.size=gpu
BF16 = (8, 0)  # compute capability

Command = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Commands that end with one that prints JSON.

    Attributes:
        name: in the page and the file.
        seconds: about what the part takes, guessed before it ever ran on a GPU; it starts only if
            so much time is left, and may take `gpu.PATIENCE` times as much.
        needs: what the machine must have: a package, a package>=version, or bf16.
        resumable: whether SIGTERM loses nothing, so that the part may take all the time left.
        title: of its figures, if that is not its name: of parts with one title, the last shows.
    """

    name: str
    seconds: float
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()
    resumable: bool = False
    title: str = ""


def script(name: str, *words: str) -> tuple[Command]:
    """A benchmark of this folder, as commands."""
    return ((sys.executable, str(FOLDER / f"{name}.py"), *words, "--json"),)


def moebench(*words: str) -> Command:
    return (sys.executable, "-m", "moebench.cli", *words, "--json")


def parts(runs_dir: Path) -> list[Part]:
    """All parts, the most valuable first.

    Args:
        runs_dir: for the records of the runs.
    """
    runs = ("--runs-dir", str(runs_dir))
    hydra, race_needs = ("hydra-core",), ("transformers>=5.17", "bf16")

    def race(shape: str, what: str, seconds: int, *words: str) -> Part:
        commands = script("race", "--shapes", shape, *words)
        return Part(f"race {shape} {what}", seconds, commands, race_needs)

    def compiled(shape: str) -> Part:
        return race(shape, "compiled", 150, "--compile", "--only", "compiled")

    def eager(shape: str) -> Part:
        return race(shape, "eager", 50, "--memory")

    def stack(shape: str) -> Part:
        commands = script("stack", "--shape", shape)
        return Part(f"stack {shape}", 50, commands, (*hydra, "bf16"))

    def study(seeds: int) -> Part:
        study = ("study=scope", "study.size=gpu", f"seed=range(0,{seeds})")
        commands = moebench("sweep", *study, *runs), moebench("report", "--study", "scope", *runs)
        name, title = f"study of {seeds} seed{'s' * (seeds > 1)}", "study=scope study.size=gpu"
        return Part(name, 120, commands, hydra, resumable=True, title=title)

    return [
        Part("doctor", 30, (moebench("doctor", *runs),)),
        Part("tests", 90, script("gpu_tests"), ("pytest", "jaxtyping", *hydra)),
        eager("A"),
        Part("launches", 90, script("launches"), (*hydra, "bf16")),
        stack("D"),
        compiled("A"),
        Part("experts", 60, script("experts"), ("triton", "bf16")),
        Part("bench", 40, (moebench("bench", "model=small", *runs),), hydra),
        Part("train", 60, (moebench("train", "model=small", "train.steps=300", *runs),), hydra),
        eager("D"),
        compiled("D"),
        race("A", "CUDA graphs", 120, "--compile", "--only", "moebench bf16"),
        stack("A"),
        eager("C"),
        eager("B"),
        compiled("C"),
        compiled("B"),
        *(study(seeds) for seeds in range(1, SEEDS + 1)),
    ]


def lacks(part: Part, about: Mapping[str, Any]) -> str:
    """Why a part cannot run on the machine that `gpu_machine.py` describes; "" if it can."""
    versions, capability = about["versions"], tuple(about["capability"])
    for need in part.needs:
        name, _, least = need.partition(">=")
        if name == "bf16":
            if capability < BF16:
                return f"compute capability {_dotted(capability)} has no bf16, which takes 8.0"
        elif name not in versions:
            return f"{name} is not there"
        elif _numbers(versions[name]) < _numbers(least):
            return f"{name} {versions[name]} is too old; the part takes {least}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for word in version.split("+")[0].split("."):
        if not word.isdecimal():
            break
        numbers.append(int(word))
    return tuple(numbers)


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))
