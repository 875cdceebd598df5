"""The keys `method.*` and `router.*`: options are numbers by name, and what cannot be is said."""

from pathlib import Path

import pytest

from moebench.config.compose import Composer, from_dict, to_dict
from moebench.config.identity import label
from moebench.errors import ConfigError

COMPOSER = Composer()


def test_options_are_complete_typed_and_survive_a_record() -> None:
    config = COMPOSER.compose(["method=bias", "method.options.rate=1", "global_bsz=32"])
    assert config.method.options == {
        "rate": 1.0,
        "balance_bsz": 32.0,
        "proportional": 0.0,
        "multiplicative": 0.0,
        "centred": 0.0,
        "logits": 0.0,
    }
    assert from_dict(to_dict(config)) == config
    again = COMPOSER.compose(["method=loss"])  # composing one run leaves nothing in the next
    assert (again.method.options, again.loss.balance) == ({}, 0.02)


def test_a_method_acts_instead_of_the_loss_unless_that_has_a_weight() -> None:
    assert label(COMPOSER.compose(["method=bias"])) == "bias"
    assert label(COMPOSER.compose(["method=bias", "scope=micro"])) == "bias"
    both = COMPOSER.compose(["method=bias", "scope=micro", "loss.balance=0.02"])
    assert label(both) == "micro + bias"
    assert label(COMPOSER.compose(["method=z_loss"])) == "z-loss"
    assert label(COMPOSER.compose(["method=none"])) == "none"


def test_a_method_brings_the_router_that_it_needs_unless_one_is_typed() -> None:
    config = COMPOSER.compose(["method=remoe"])
    assert (config.router.gate, config.router.renormalize) == ("relu", False)
    for words in (["router=relu", "method=remoe"], ["method=remoe", "router=relu"]):
        assert COMPOSER.compose(words) == config
    with pytest.raises(ConfigError, match=r"not for softmax; use router.gate=relu"):
        COMPOSER.compose(["router=softmax", "method=remoe"])
    over_experiment = COMPOSER.compose(["experiment=deepseek-v3", "method=remoe", "router=relu"])
    assert over_experiment.router.gate == "relu"
    noisy = COMPOSER.compose(["router=sigmoid", "method=importance_load"]).router
    assert (noisy.gate, noisy.noise) == ("sigmoid", 1.0)
    assert label(COMPOSER.compose(["method=budget"])) == "budget zero_experts=4"


def test_a_preset_of_ones_own_may_name_the_router_of_its_method(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\nmethod: {name: bias}\nrouter: {gate: sigmoid}\n"
    )
    composer = Composer(tmp_path)
    assert composer.compose(["method=mine"]).router.gate == "sigmoid"
    assert composer.compose(["router=softmax_raw", "method=mine"]).router.gate == "softmax"


WRONG = {
    "method.name=bais": "method.name=bais: no such method; did you mean bias or base? There are "
    "loss, ",
    "method=bais": "method=bais: no such method; did you mean base or bias?",
    "method.options.rate=1": "method.options.rate=1: method=loss has no options; choose a method",
    "method=bias method.options.rat=1": "method.options.rat=1: method=bias has no such option; did "
    "you mean rate?",
    "method=bias method.options.xyzzy=1": "method.options.xyzzy=1: method=bias has no such option; "
    "there are rate, balance_bsz,",
    "method=bias method.options={rate:fast}": "method.options={rate:fast}: must be a table of ",
    "method=bias method.options.rate=fast": "method.options.rate=fast: must be a number",
    "method=bias method.options.rate=0": "method.options.rate=0: must be above 0",
    "method=bias method.options.rate=nan": "method.options.rate=nan: must be a finite number",
    "method=bias method.options.balance_bsz=3": "method.options.balance_bsz=3: must divide "
    "global_bsz=128; try method.options.balance_bsz=2",
    "method=bias method.options.balance_bsz=1.5": "method.options.balance_bsz=1.5: must be a whole",
    "method=bias method.options.centred=2": "method.options.centred=2: must be between 0 and 1",
    "method=bias method.plugin=mine@0": "method.plugin=mine@0: method=bias is of no plugin; set ",
    "method.plugin=evil@123": "method.plugin=evil@123: method=loss is of no plugin; set method.pl",
    "method=bias method.plugin=evil@": "method.plugin=evil@: method=bias is of no plugin; set met",
    "method=bias router=relu": "method=bias: moves scores, and router.gate=relu selects every ",
    "method=bias router=random": "method=bias: moves scores, and router.random draws experts; ",
    "method=bias model.moe=false": "model.moe=false: has no router for method=bias to balance",
    "router.drop=position": "router.drop=position: a dropless router drops nothing; add ",
    "router.drop=weight": "router.drop=weight: a dropless router drops nothing; add ",
    "router=topk_softmax model.top_k=1": "model.top_k=1: with router.gate=topk_softmax every "
    "weight is 1, and routers get no gradient of the cross-entropy; use router.gate=softmax",
    "method=quantile method.options.logits=2": "method.options.logits=2: must be between 0 and 1",
    "balance.counts=bias": "balance.counts=bias: must be one of scores, grouped, biased, first",
    "balance.counts=first router=hash": "balance.counts=first: router.map=hash prescribes experts",
    "method=importance run.device_bsz=2": "run.device_bsz=2: would split the groups of "
    "method.options.balance_bsz=4; use a multiple",
    "method=importance method.options.load=1": "method.options.load=1: needs router.noise, which ",
    "method=bias method.options={multiplicative:1,logits:1}": "method.options.multiplicative=1: ",
    "method=expert_threshold router=hash": "method.name=threshold: would select experts, and ",
    "method=expert_threshold router.expert_groups=2": "router.expert_groups=2: does not go with ",
    "method=moving_quantile router=sqrt_softplus": "method=moving_quantile: is for router.gate=",
    "method=bias router=round_robin": "method=bias: moves scores, and router.round_robin takes ",
    "router=round_robin router.random=true": "router.round_robin=true: takes experts in turn; ",
    "router.shared_gate=true": "router.shared_gate=true: there are no shared experts; set ",
    "router.shared_gate=true model.num_shared_experts=1 router=softmax_raw": "router.shared_gate=",
    "router.group_worth=max": "router.group_worth=max: ranks groups of experts; add ",
    "model.zero_experts=16": "model.zero_experts=16: must be below model.num_experts=16",
    "method=erc router=cosine": "method=erc: is for router.form=linear, and not for cosine",
    "router.group_bsz=4": "router.group_bsz=4: is for router.capacity_factor and for methods that ",
    "router=capacity router.group_bsz=3": "router.group_bsz=3: must divide global_bsz=128",
    "router=capacity run.device_bsz=2": "run.device_bsz=2: would split the router's groups of "
    "micro_bsz=4; use a multiple",
    "router=capacity data.valid_sequences=6": "data.valid_sequences=6: must be a multiple of "
    "micro_bsz=4, the router's groups",
    "router.capacity_factor=0": "router.capacity_factor=0.0: must be above 0",
    "router.expert_groups=3": "router.expert_groups=3: must divide model.num_experts=16",
    "router.top_groups=2": "router.top_groups=2: must be between 1 and router.expert_groups=1",
    "router.expert_groups=16": "router.top_groups=1: holds 1 experts, and model.top_k=2 are needed",
    "router=relu router.random=true": "router.gate=relu: selects every expert with a score above ",
    "router.start_experts=1": "router.start_experts=1: must be between model.top_k=2 and ",
    "router=growing router.expert_groups=2": "router.expert_groups=2: a group could be left ",
    "router.jitter=2": "router.jitter=2.0: must be between 0 and 1",
    "model.dense_layers=3": "model.dense_layers=3: must be below model.num_layers=3; ",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_is_one_line(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        COMPOSER.compose(line.split(" "))
    assert str(caught.value).startswith(WRONG[line])
    assert "\n" not in str(caught.value)
