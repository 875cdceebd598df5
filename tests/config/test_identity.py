"""One treatment has one identity, whatever it is called, and what can change a result is in it."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import pytest

from moebench.config.balance_keys import COUNTS
from moebench.config.compose import Composer, from_dict, to_dict
from moebench.config.identity import (
    arm_hash,
    coefficients,
    hashed_term,
    label,
    run_hash,
    run_name,
    science,
)
from moebench.config.knob import HASHED, NOT_HASHED, knobs
from moebench.config.schema import ExperimentConfig
from moebench.config.treatment import BalanceTerm, Treatment

COMPOSER = Composer()
DATA = "0" * 64
BIASED = ["method=bias", "loss.balance=0.02"]


def identity(*overrides: str) -> str:
    return run_hash(COMPOSER.compose(overrides), DATA)


@pytest.mark.parametrize(
    "names",
    [
        [["scope=micro"], ["scope=global", "balance_bsz=4"], ["scope=shuffled", "balance_bsz=4"]],
        [["scope=micro", "micro_bsz=8"], ["balance_bsz=8", "micro_bsz=8"]],
        [["scope=sequence", "micro_bsz=1"], ["scope=micro", "micro_bsz=1"]],
        [["scope=sequence", "micro_bsz=1"], ["balance_bsz=1", "micro_bsz=1"]],
        [["scope=sequence"], ["scope=global", "balance_bsz=1"]],
        [["scope=global"], ["balance_bsz=128"], []],
        [["scope=shuffled"], ["scope=shuffled", "balance_bsz=128"]],
        [["scope=none"], ["loss.balance=0"], ["scope=none", "loss.balance=3"]],
        [["scope=none"], ["scope=micro", "loss.balance=0", "loss.local=0.5"]],
        [[f"scope={scope}", "micro_bsz=128"] for scope in ("micro", "shuffled", "global")],
        [["optim.lr=3e-3"], ["optim.lr=0.003"], []],
        [["optim.router_lr=1", "optim.ema=0", "router.init=1"], []],
        [["model.moe=false", "scope=none", f"optim.router_lr={rate}"] for rate in (1, 3)],
        [["loss.balance=1"], ["loss.balance=1.0"]],
        [["model.top_k=2"], ["model=tiny"], []],
        [["data.max_epochs=9"], []],
        [["balance.terms=[{}]"], ["balance.terms=[{scope:global}]"], []],
        [["loss.balance=0.5", "balance.terms=[{weight:4}]"], ["loss.balance=2"]],
        [["loss.local=0.01"], ["balance.terms=[{},{scope:micro,weight:0.01}]"]],
        [["balance.terms=[{},{scope:micro,weight:0}]"], []],
        [["balance.terms=[{},{scope:micro,stop:0.001}]"], []],
        [["balance.terms=[{stop:0.001}]"], ["scope=none"]],
        [["balance.terms=[{start:0,ramp:1}]"], []],
        [[f"balance.terms=[{a}]"] for a in ("{},{scope:micro}", "{scope:micro},{}")],
        [["scope=micro", "loss.balance=0.5", "loss.local=1"], ["scope=micro", "loss.balance=1"]],
        [["balance.terms=[{start:0,stop:400}]"], ["balance.terms=[{stop:500,ramp:9}]"], []],
        [["balance.terms=[{stop:200}]"], ["balance.terms=[{stop:0.5}]"]],
        [["balance.terms=[{stop:200}]"], ["balance.terms=[{stop:200,ramp:1}]"]],
        [["scope=domain", "balance.terms=[{domains:{a:1}}]"], ["scope=domain"]],
        [["balance.estimator=ema", "balance.decay=0"], ["balance.estimator=stale"]],
        [["scope=micro", "balance.estimator=buffer"], ["scope=micro"]],
        [["balance_bsz=8", "balance.estimator=buffer", "balance.pass_bsz=16"], ["balance_bsz=8"]],
        [["balance.estimator=buffer"], ["balance.estimator=buffer", "balance.pass_bsz=4"]],
        [["scope=none"], ["scope=none", "balance.estimator=stale", "balance.layers=sum"]],
        [["router=topk_softmax"], ["router.gate=topk_softmax", "router.renormalize=false"], []],
        [["method=none"], ["scope=none"], ["method=bias", "method.name=loss", "method.options={}"]],
        [["method=bias"], ["method=bias", "method.options.balance_bsz=128"]],
        [["method=bias"], ["method=bias", "method.options={}"], ["method=bias", "scope=none"]],
        [["router=capacity"], ["router=capacity", "router.group_bsz=4"]],
        [
            ["router=capacity", "router.renormalize=false"],
            ["router=capacity_weight", "router.renormalize=false"],  # a weight is the score
        ],
        [["model.top_k=1"], ["model.top_k=1", "router=softmax_raw"]],
        [["router=topk_softmax", "method=quantile"], ["method=quantile_logits"]],
        [["router=topk_softmax", "method=bias"], ["method=bias_logits"]],
        [["router=grouped_max"], ["router=grouped_max", "router.group_worth=share"]],
        [["model.top_k=1"], ["model.top_k=1", "balance.counts=first"]],
        [["router=topk_softmax", f"method={each}"] for each in ("quantile", "quantile_logits")],
        [[f"balance.counts={each}"] for each in ("scores", "grouped", "biased")],
        [[*BIASED, "balance.counts=grouped"], BIASED],
        [["router=grouped", f"balance.counts={each}"] for each in ("grouped", "biased")],
        [["method=sinkhorn", f"balance.counts={each}"] for each in ("scores", "biased")],
        [["router=growing"], ["router=growing", "router.full_at=200"]],
        [["router.prune_every=7"], ["router.full_at=0.1"], []],
        [["model.moe=false"], ["model.moe=false", "router=sigmoid", "model.dense_layers=1"]],
        [["model.moe=false"], ["model.moe=false", "scope=none"]],
    ],
)  # fmt: skip
def test_one_treatment_has_one_identity(names: list[list[str]]) -> None:
    assert len({identity(*overrides) for overrides in names}) == 1
    assert len({label(COMPOSER.compose(overrides)) for overrides in names}) == 1


def test_every_scope_is_another_treatment() -> None:
    scopes = ("none", "sequence", "micro", "shuffled", "global", "domain")
    assert len({identity(f"scope={scope}") for scope in scopes}) == len(scopes)
    assert len({identity("scope=shuffled", f"balance_bsz={n}") for n in (4, 8, 128)}) == 3


def with_knob(key: str, value: Any) -> ExperimentConfig:
    """The default config but for one knob; the scope sets its size again."""
    nested = to_dict(COMPOSER.compose()) | {"balance_bsz": None}
    *path, name = key.split(".")
    inner = reduce(dict.__getitem__, path, nested)
    assert name in inner
    inner[name] = value
    if key == "data.temperature":
        inner["sampling"] = "proportional"  # the other has none
    return from_dict(nested)


def another(value: Any, known: Mapping[str, Any]) -> Any:
    """Some other value that a knob may have."""
    if known["range"].choices:
        choices = known["range"].choices
        return next(each for each in choices if each not in (value, "auto"))  # which means another
    if isinstance(value, bool):
        return not value
    if isinstance(value, list | dict):
        return ["a"] if isinstance(value, list) else {"a": 2.0}
    if isinstance(value, str):
        return "2"  # of run.stack, the only word that may be a number
    return type(value)(value / 2) or 2 * value if value else 1


# keys of the router that count only beside others, or of which two values are one
OF_OTHERS = (
    "gate",
    *("top_groups", "drop", "group_bsz", "start_experts", "full_at", "prune_every"),
    *("hash_layers", "shared_gate", "group_worth"),
)
SCIENCE = [
    (key, another(value, each.metadata))
    for key, each, value in knobs(COMPOSER.compose())
    if not key.startswith("run.")
    and each.metadata["neutral"] is not NOT_HASHED
    and key
    not in (
        "scope",
        "balance.pass_bsz",
        "balance.decay",
        "balance.plugins",
        "balance.counts",
    )  # have tests of their own
    and not key.startswith("method.")  # these have tests of their own, too
    and key.removeprefix("router.") not in OF_OTHERS
]


@pytest.mark.parametrize(("key", "value"), SCIENCE)
def test_every_science_key_changes_the_identity(key: str, value: Any) -> None:
    config, other = COMPOSER.compose(), with_knob(key, value)
    assert run_hash(other, DATA) != run_hash(config, DATA)
    assert (arm_hash(other, DATA) == arm_hash(config, DATA)) == (key == "seed")


@pytest.mark.parametrize(
    "names",
    [
        [[], ["balance.terms=[{stop:200}]"], ["balance.terms=[{stop:200,ramp:9}]"]],
        [["balance.terms=[{start:0,ramp:9}]"], ["balance.terms=[{start:9}]"], []],
        [["balance.terms=[{},{scope:micro}]"], ["balance.terms=[{},{scope:sequence}]"], []],
        [["balance.terms=[{},{scope:micro}]"], ["balance.terms=[{},{scope:micro,weight:2}]"]],
        [["scope=domain", f"balance.terms=[{{domains:{{{each}}}}}]"] for each in ("a:2", "b:2")],
        [["balance.estimator=buffer"], ["balance.estimator=buffer", "balance.pass_bsz=8"], []],
        [["balance.estimator=ema"], ["balance.estimator=ema", "balance.decay=0.5"]],
        [["scope=domain", "balance.estimator=buffer"], ["scope=domain"]],
        [["method=bias", f"method.options.balance_bsz={n}"] for n in (1, 4, 128)],
        [["method=bias"], ["method=bias", "loss.balance=0.02"], ["method=none"], []],
        [["method=bias"], ["method=bias_proportional"], ["method=bias_multiplicative"]],
        [["method=bias", f"router={gate}"] for gate in ("softmax", "topk_softmax", "sigmoid")],
        [
            ["router=capacity", each]
            for each in ("router.drop=position", "router.drop=weight", "router.group_bsz=2")
        ],
        [["model.top_k=1", f"router={each}"] for each in ("softmax_raw", "sigmoid", "relu")],
        [["method=quantile", f"router={gate}"] for gate in ("softmax", "topk_softmax", "sigmoid")],
        [[f"method={each}", "router=sigmoid"] for each in ("quantile", "quantile_logits")],
        [[*BIASED, f"balance.counts={each}"] for each in ("scores", "biased")],
        [["router=grouped", f"balance.counts={each}"] for each in ("scores", "grouped")],
        [[*BIASED, "router=grouped", f"balance.counts={each}"] for each in COUNTS],
        [["router=grouped_max", f"router.group_worth={each}"] for each in ("max", "top_two")],
        [["model.num_shared_experts=1"], ["model.num_shared_experts=1", "router.shared_gate=true"]],
        [["router=growing", f"router.{each}"] for each in ("start_experts=2", "full_at=9")],
        [["router.expert_groups=4", f"router.top_groups={n}"] for n in (1, 2)],
        [[f"router={gate}"] for gate in ("softmax", "sigmoid", "sqrt_softplus", "sparsemax")],
        [["model.moe=false"], ["model.dense_layers=1"], ["scope=none"]],
    ],
)  # fmt: skip
def test_terms_and_estimators_that_differ_are_other_treatments(names: list[list[str]]) -> None:
    assert len({identity(*overrides) for overrides in names}) == len(names)
    assert len({label(COMPOSER.compose(overrides)) for overrides in names}) == len(names)


EXECUTION = [
    (key, another(value, each.metadata))
    for key, each, value in knobs(COMPOSER.compose())
    if key.startswith("run.")
]


@pytest.mark.parametrize(("key", "value"), EXECUTION)
def test_how_a_run_is_executed_is_no_part_of_its_identity(key: str, value: Any) -> None:
    assert run_name(with_knob(key, value), DATA) == run_name(COMPOSER.compose(), DATA)


def test_the_content_of_data_counts_and_its_path_does_not() -> None:
    here = COMPOSER.compose(["data=folder", "data.path=here"])
    there = COMPOSER.compose(["data=folder", "data.path=there"])
    assert run_hash(here, DATA) == run_hash(there, DATA)
    assert run_hash(here, DATA) != run_hash(here, "1" * 64)
    assert "here" not in str(science(here, DATA))


def test_a_relu_gate_scales_weights_at_top_k_1_too() -> None:
    """A token may have several experts there."""
    scaled = identity("router.gate=relu", "model.top_k=1")
    assert scaled != identity("router=relu", "model.top_k=1")


def test_what_f_counts_is_in_the_identity_where_it_is_not_what_it_was_before_the_key() -> None:
    """Before: the selection without the bias, within the groups."""

    def told(*words: str) -> list[str | None]:
        composed = [COMPOSER.compose([*words, f"balance.counts={each}"]) for each in COUNTS]
        return [science(each, DATA).get("balance.counts") for each in composed]

    assert told() == [None, None, None, "first"]
    assert told(*BIASED) == [None, None, "biased", "first"]
    assert told("router=grouped") == ["scores", None, None, "first"]
    assert told("router=grouped", "scope=none") == ["scores", None, None, "first"]  # as logged
    assert told(*BIASED, "router=grouped") == ["scores", None, "biased", "first"]
    assert told(*BIASED, "router=sparsemax") == ["scores", "scores", "biased", "first"]
    assert told("router=grouped", "model.moe=false") == [None] * 4


def test_a_key_at_its_neutral_value_leaves_the_identity_as_it_was_before_the_key_came() -> None:
    keys = science(COMPOSER.compose(), DATA)
    neutral = {
        key: each.metadata["neutral"]
        for key, each, _ in knobs(ExperimentConfig())
        if each.metadata["neutral"] not in (HASHED, NOT_HASHED)
    }
    assert {"loss.z", "router.renormalize", "data.homogeneity"} <= neutral.keys()
    assert not keys.keys() & neutral.keys()
    assert "loss.z" in science(COMPOSER.compose(["loss.z=0.1"]), DATA)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "global"),
        (["balance_bsz=64"], "global-64"),
        (["balance_bsz=4"], "micro"),
        (["scope=shuffled", "balance_bsz=8"], "shuffled-8"),
        (["scope=domain"], "domain"),
        (["scope=none", "loss.local=0.5"], "none"),
        (["loss.local=0.01"], "global + 0.01 micro"),
        (
            ["scope=micro", "balance.terms=[{stop:0.5},{scope:global,start:0.5,ramp:20}]"],
            "micro to 200 + global from 200 ramp 20",
        ),
        (
            ["scope=domain", "balance.terms=[{domains:{law:2}},{scope:global,weight:0.5}]"],
            "domain law=2 + 0.5 global",
        ),
        (["balance.estimator=buffer"], "global buffer=4"),
        (["balance.estimator=stale", "balance.window_steps=3"], "global stale window=3"),
        (["balance.estimator=ema"], "global ema=0.9"),
        (["balance.layers=sum", "balance.uniform=k"], "global layers=sum uniform=k"),
        (["data.homogeneity=0"], "global homogeneity=0"),
        (["router.perturb=1e-6"], "global perturb=1e-06"),
    ],
)
def test_an_arm_is_labelled_by_what_is_balanced_over_what(overrides: list[str], name: str) -> None:
    assert label(COMPOSER.compose(overrides)) == name


def test_a_runs_name_is_safe_in_every_file_system() -> None:
    config = COMPOSER.compose(["loss.local=1e-5", "data.homogeneity=0.25", "seed=4294967295"])
    name = run_name(config, DATA)
    assert name.startswith("global-1e-05-micro-homogeneity-0.25-s4294967295-")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert len(name) < 100


def test_treatment_is_canonical() -> None:
    def terms(*overrides: str) -> list[BalanceTerm]:
        return list(Treatment.of(COMPOSER.compose(overrides)).terms)

    assert terms("scope=micro", "loss.balance=2") == [BalanceTerm("global", 4, 2.0)]
    assert terms("scope=domain") == [BalanceTerm("domain", None, 0.02)]
    assert terms("scope=micro", "loss.balance=0") == terms("scope=none") == []
    given = "[{stop:0.25,ramp:8},{scope:domain,weight:2,start:100,domains:{b:0,a:3}}]"
    assert terms("loss.balance=0.5", f"balance.terms={given}") == [
        BalanceTerm("global", 128, 0.5, stop=100, ramp=8),
        BalanceTerm("domain", None, 1.0, start=100, domains=(("a", 3.0), ("b", 0.0))),
    ]


def test_terms_are_hashed_as_the_first_records_have_them() -> None:
    def hashed(*overrides: str) -> list[dict[str, Any]]:
        terms = Treatment.of(COMPOSER.compose(overrides)).terms
        return [hashed_term(term) for term in terms]

    assert hashed("scope=micro") == [{"scope": "group", "balance_bsz": 4, "weight": 0.02}]
    assert hashed("scope=domain") == [{"scope": "domain", "weight": 0.02}]
    given = "[{stop:0.25,ramp:8},{scope:domain,weight:2,start:100,domains:{b:0,a:3}}]"
    assert hashed("loss.balance=0.5", f"balance.terms={given}") == [
        {"scope": "group", "weight": 0.5, "stop": 100, "balance_bsz": 128, "ramp": 8},
        {"scope": "domain", "weight": 1.0, "start": 100, "domains": {"a": 3.0, "b": 0.0}},
    ]


def test_the_coefficient_of_a_router_counts_every_convention() -> None:
    def found(*overrides: str) -> dict[str, float]:
        config = COMPOSER.compose(["loss.balance=0.6", *overrides])  # 3 layers, top-2
        return coefficients(config)

    assert found() == {"global": pytest.approx(0.2)}
    assert found("balance.layers=pooled") == {"global": pytest.approx(0.2)}
    assert found("balance.layers=sum") == {"global": pytest.approx(0.6)}
    assert found("balance.layers=sum", "balance.uniform=k") == {"global": pytest.approx(1.2)}
    assert found("loss.local=0.5") == {
        "global": pytest.approx(0.2),
        "0.5 micro": pytest.approx(0.1),
    }
    assert found("scope=none") == {}
