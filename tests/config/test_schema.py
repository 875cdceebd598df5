"""Types and ranges of knobs, and the values that cannot work together."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.config.check import check_experiment, check_ranges, check_study
from moebench.config.knob import as_type, flat, knobs, type_words
from moebench.config.schema import ExperimentConfig, ModelConfig, StudyConfig
from moebench.errors import ConfigError
from moebench.ranges import LARGEST

EVERY = [*knobs(ExperimentConfig()), *knobs(StudyConfig())]


@pytest.mark.parametrize(("key", "each", "value"), EVERY, ids=[key for key, _, _ in EVERY])
def test_every_knob_is_documented_and_its_default_is_in_range(
    key: str, each: Any, value: Any
) -> None:
    assert each.metadata["meaning"], key
    assert value == "" or as_type(value, each.type) == value
    assert each.metadata["range"].words or type_words(each.type)


def test_defaults_pass() -> None:
    check_experiment(ExperimentConfig())


@pytest.mark.parametrize(
    ("value", "kind", "made"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (2020, str, "2020"),
        (None, int | None, None),
        (4, int | None, 4),
        (["a", 1], list[str], ["a", "1"]),
        (None, list[str] | None, None),
        ({"cpu": ["a"]}, dict[str, list[str]], {"cpu": ["a"]}),
        (True, bool, True),
    ],
)
def test_a_value_of_its_knobs_type_is_taken(value: Any, kind: Any, made: Any) -> None:
    found = as_type(value, kind)
    assert (found, type(found)) == (made, type(made))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (1.0, int),
        ("1", int),
        (None, int),
        (True, float),
        ("1e-3", float),
        (1, bool),
        ("true", bool),
        ("", str),
        (1.5, str),
        ("a", list[str]),
        ([None], list[str]),
        ([["a"]], list[str]),
        (["a"], dict[str, list[str]]),
        ({"cpu": "a"}, dict[str, list[str]]),
        ({"a": 1}, int),
    ],
)
def test_a_value_of_another_type_is_refused(value: Any, kind: Any) -> None:
    with pytest.raises(TypeError):
        as_type(value, kind)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"seed": -1}, f"seed=-1: must be between 0 and {LARGEST}"),
        ({"seed": 10**30}, f"seed={10**30}: must be at most {LARGEST}"),
        ({"run.threads": 1025}, "run.threads=1025: must be between 1 and 1024"),
        ({"global_bsz": LARGEST + 1}, f"global_bsz={LARGEST + 1}: must be at most {LARGEST}"),
        ({"seq_len": 1}, "seq_len=1: must be at least 2"),
        ({"optim.lr": 0.0}, "optim.lr=0.0: must be above 0"),
        ({"optim.lr": math.nan}, "optim.lr=nan: must be a finite number"),
        ({"optim.lr": -math.inf}, "optim.lr=-inf: must be a finite number"),
        ({"optim.beta2": 1.0}, "optim.beta2=1.0: must be at least 0 and below 1"),
        ({"scope": "macro"}, "scope=macro: must be one of none, sequence, micro, shuffled, "),
        ({"model.top_k": 17}, "model.top_k=17: must be between 1 and model.num_experts=16"),
        (
            {"model.num_heads": 3},
            "model.num_heads=3: must divide model.d_model=128; try model.num_heads=2",
        ),
        ({"model.num_heads": 128}, "model.num_heads=128: rotary positions need an even "),
        ({"micro_bsz": 10**9}, "micro_bsz=1000000000: must divide global_bsz=128; try micro_bsz="),
        ({"balance_bsz": 3}, "balance_bsz=3: must divide global_bsz=128; try balance_bsz=2"),
        ({"run.device_bsz": 5}, "run.device_bsz=5: must divide global_bsz=128; try run.device_"),
        (
            {"scope": "micro", "balance_bsz": 128},
            "balance_bsz=128: contradicts scope=micro, whose groups hold micro_bsz=4 "
            "sequences; use scope=global balance_bsz=128",
        ),
        ({"scope": "sequence", "balance_bsz": 2}, "balance_bsz=2: contradicts scope=sequence"),
        ({"scope": "none", "balance_bsz": 4}, "balance_bsz=4: scope=none has no groups"),
        ({"scope": "domain", "balance_bsz": 4}, "balance_bsz=4: scope=domain has no groups"),
        (
            {"scope": "shuffled", "balance_bsz": 2},
            "balance_bsz=2: must be a multiple of micro_bsz",
        ),
        ({"data.source": "folder"}, "data.path=null: data=folder needs a folder; add data.path="),
        ({"data.path": "x"}, "data.path=x: data=installed reads no folder; add data=folder"),
    ],
)
def test_what_cannot_work_is_one_line(changes: dict[str, Any], error: str) -> None:
    config = ExperimentConfig()
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group) if group else config, name, value)
    with pytest.raises(ConfigError) as caught:
        check_experiment(config)
    assert str(caught.value).startswith(error)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(part=st.integers(1, 400), total=st.integers(1, 400))
def test_the_divisor_that_is_proposed_works(part: int, total: int) -> None:
    config = ExperimentConfig(micro_bsz=part, global_bsz=total)
    try:
        check_experiment(config)
    except ConfigError as error:
        proposed = int(str(error).rsplit("=", 1)[1])
        assert proposed < part
        assert total % proposed == 0
        assert all(total % n for n in range(proposed + 1, min(part, total) + 1))
    else:
        assert total % part == 0


def test_unwise_values_are_taken() -> None:
    config = ExperimentConfig()
    config.optim = replace(config.optim, lr=1e30, weight_decay=100.0)
    config.model = ModelConfig(top_k=16, num_experts=16)
    check_experiment(config)


def test_a_study_needs_arms_and_one_of_its_sizes() -> None:
    with pytest.raises(ConfigError, match=r"study\.arms=\[\]"):
        check_study(StudyConfig(name="x"))
    with pytest.raises(ConfigError, match=r"study\.size=gpu: study=x has no such size; it has cpu"):
        check_study(StudyConfig(name="x", arms=["scope=micro"], size="gpu"))
    check_study(StudyConfig(name="x", arms=["scope=micro"]))
    check_ranges(StudyConfig(name="x"))


def test_flat_names_leaves_by_dotted_key() -> None:
    nested = {"a": 1, "b": {"c": [2], "d": {"e": None}}}
    assert list(flat(nested)) == [("a", 1), ("b.c", [2]), ("b.d.e", None)]
