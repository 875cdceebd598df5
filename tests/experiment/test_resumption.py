"""Runs of a stack that was killed continue together, so that products keep their shapes."""

from pathlib import Path
from typing import Any

import pytest

from moebench.data.corpus import Corpus
from moebench.experiment import run_stack, session
from moebench.records import Record, find_records
from tests.experiment.conftest import Compose


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [8, 12])
def test_a_stack_continues_from_the_last_step_that_all_runs_saved(
    compose: Compose,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """It is killed when the first run has saved a step and the second has not."""
    configs = [compose(f"scope={scope}", "train.eval_every=0") for scope in ("micro", "global")]
    corpora, save = [corpus, corpus], session.save_checkpoint

    def killing(directory: Path, state: Any, *more: Any) -> Path:
        made = save(directory, state, *more)
        if state.step == step:
            raise Killed
        return made

    monkeypatch.setattr(session, "save_checkpoint", killing)
    with pytest.raises(Killed):
        run_stack(configs, corpora, tmp_path)
    monkeypatch.undo()
    records = find_records(tmp_path)
    kept = [sorted(path.name for path in each.path.glob("checkpoints/*")) for each in records]
    assert kept[0] != kept[1]
    assert not any(record.is_done() for record in records)
    assert run_stack(configs, corpora, tmp_path) == [None, None]
    for record in map(Record, [record.path for record in records]):
        assert [each["step"] for each in record.manifest()["resumed"]] == [step - 4]
        assert record.damage() == []
