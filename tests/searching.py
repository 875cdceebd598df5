"""A stand-in with the part of Optuna's interface that is used, where Optuna is not installed."""

import importlib.util
import os
import random
from types import SimpleNamespace
from typing import Any

INSTALLED = importlib.util.find_spec("optuna") is not None


class State:
    """The state of a stand-in's trial."""

    FAIL = "fail"

    def __init__(self, name: str) -> None:
        self.name = name

    def is_finished(self) -> bool:
        return self.name != "running"


class Trial:
    def __init__(self, number: int, values: dict[str, float]) -> None:
        self.number, self.state, self.values = number, State("running"), values
        self.value: float | None = None
        self.user_attrs: dict[str, str] = {}

    def suggest_float(self, key: str, low: float, high: float, log: bool) -> float:
        return self.values.get(key, random.Random(self.number).uniform(low, high))

    def suggest_int(self, key: str, low: int, high: int, log: bool) -> int:
        return int(self.values.get(key, random.Random(self.number).randint(low, high)))

    def set_user_attr(self, key: str, value: str) -> None:
        self.user_attrs[key] = value


class Study:
    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.queued: list[dict[str, float]] = []

    def get_trials(self) -> list[Trial]:
        return [*self.trials]

    def ask(self) -> Trial:
        values = self.queued.pop() if self.queued else {}
        self.trials.append(Trial(len(self.trials), values))
        return self.trials[-1]

    def enqueue_trial(self, values: dict[str, float]) -> None:
        self.queued.append(values)

    def tell(self, number: int, value: float | None = None, state: str | None = None) -> None:
        assert self.trials[number].value is None
        self.trials[number].value = value
        self.trials[number].state = State(state or "complete")


def backend(path: str, lock_obj: Any = None) -> str:
    assert lock_obj or not os.path.lexists(f"{path}.lock"), "Optuna would wait for it"
    return path


def stand_in() -> Any:
    kept: dict[str, Study] = {}

    def create_study(storage: Any, study_name: str, **_: Any) -> Study:
        return kept.setdefault(storage.path + study_name, Study())

    return SimpleNamespace(
        logging=SimpleNamespace(set_verbosity=lambda _: None, ERROR=0),
        storages=SimpleNamespace(
            journal=SimpleNamespace(JournalFileBackend=backend),
            JournalStorage=lambda path: SimpleNamespace(path=path, get_all_studies=list),
        ),
        create_study=create_study,
        samplers=SimpleNamespace(TPESampler=lambda **_: None),
        trial=SimpleNamespace(TrialState=State),
    )
