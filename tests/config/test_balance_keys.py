"""The keys `balance.*`: terms are tables, and what contradicts itself is one line."""

import pytest

from moebench.config.balance_keys import TermConfig
from moebench.config.check import check_experiment
from moebench.config.compose import Composer, from_dict, to_dict, to_yaml
from moebench.config.treatment import in_steps
from moebench.errors import ConfigError

COMPOSER = Composer()


def test_terms_are_typed_and_survive_a_record() -> None:
    config = COMPOSER.compose(
        ["scope=domain", "balance.terms=[{domains:{a:2}},{scope:micro,weight:1,start:3}]"]
    )
    assert config.balance.terms == [
        TermConfig(domains={"a": 2.0}),
        TermConfig(scope="micro", weight=1.0, start=3.0),
    ]
    assert from_dict(to_dict(config)) == config
    assert "weight: 1.0" in to_yaml(config)


def test_a_moment_is_a_step_or_a_share_of_the_steps() -> None:
    assert [in_steps(each, 400) for each in (None, 0.0, 0.25, 0.999, 1.0, 37.0)] == [
        *(None, 0, 100, 400, 1, 37),
    ]


WRONG = {
    "balance.terms=1": "balance.terms=1: must be a list of tables, as in [{scope:global},",
    "balance.terms=[global]": "balance.terms=[global]: must be a list of tables, as in",
    "balance.terms=[{weigth:1}]": "balance.terms=[{weigth:1}]: has the key weigth, where there "
    "are scope, balance_bsz, weight,",
    "balance.terms=[{weight:x}]": "balance.terms=[{weight:x}]: weight must be a number",
    "balance.terms=[{domains:[a]}]": "balance.terms=[{domains:[a]}]: domains must be a table of",
    "balance.terms=[{weight:-1}]": "balance.terms[0].weight=-1.0: must be at least 0",
    "balance.terms=[{weight:nan}]": "balance.terms[0].weight=nan: must be a finite number",
    "balance.terms=[{},{scope:none}]": "balance.terms[1].scope=none: balances nothing; leave "
    "the term out",
    "balance.terms=[{},{scope:glob}]": "balance.terms[1].scope=glob: must be one of none, ",
    "balance.terms=[{scope:micro}]": "scope=global: is the scope of none of balance.terms; use "
    "scope=micro",
    "balance.terms=[{balance_bsz:3}]": "balance.terms[0].balance_bsz=3: must divide global_bsz=128",
    "balance.terms=[{},{scope:micro,balance_bsz:8}]": "balance.terms[1].balance_bsz=8: contradicts "
    "scope=micro, whose groups hold micro_bsz=4 sequences",
    "balance.terms=[{start:9,stop:9}]": "balance.terms[0].stop=9: must come after "
    "balance.terms[0].start=9, here 9 and 9 steps",
    "balance.terms=[{start:0.5,stop:9}]": "balance.terms[0].stop=9: must come after "
    "balance.terms[0].start=0.5, here 9 and 200 steps",
    "balance.terms=[{start:400}]": "balance.terms[0].start=400: must be below train.steps=400, or",
    "balance.terms=[{start:1.5}]": "balance.terms[0].start=1.5: must be a whole number of steps, ",
    "balance.terms=[{stop:0}]": "balance.terms[0].stop=0.0: must be above 0",
    "balance.terms=[{ramp:5}]": "balance.terms[0].ramp=5: needs a start or a stop; give one",
    "balance.terms=[{domains:{a:1}}]": "balance.terms[0].domains: need scope=domain, and the ",
    "balance.terms=[{},{}]": "balance.terms[1].scope=global: acts at the same time as "
    "balance.terms[0] over the same groups; give one term one weight",
    "balance.terms=[{stop:9,ramp:5},{start:9}]": "balance.terms[1].scope=global: acts at the same ",
    "balance.terms=[{},{scope:micro},{balance_bsz:4}]": "balance.terms[2].scope=global: "
    "acts at the same time as balance.terms[1] over the same groups",
    "balance.window_steps=401": "balance.window_steps=401: must be at most train.steps=400, the ",
    "balance.terms=[{}] loss.local=0.1": "loss.local=0.1: does not go with balance.terms; add the "
    "term {scope:micro,weight:0.1}",
    "balance.terms=[{}] scope=none": "scope=none: contradicts balance.terms; use the scope of one",
    "balance.estimator=sync": "balance.estimator=sync: must be one of exact, buffer, stale, ema",
    "balance.pass_bsz=8": "balance.pass_bsz=8: only balance.estimator=buffer has logical passes",
    "balance.pass_bsz=3 balance.estimator=buffer": "balance.pass_bsz=3: must divide global_bsz=128",
    "balance.pass_bsz=2 balance.estimator=buffer scope=shuffled": "balance.pass_bsz=2: must hold "
    "whole micro-batches of micro_bsz=4 for scope=shuffled to draw from",
    "balance.window_steps=0": "balance.window_steps=0: must be at least 1",
    "balance.decay=1": "balance.decay=1.0: must be at least 0 and below 1",
    "balance.uniform=2": "balance.uniform=2: must be one of 1, k",
    "loss.balance=nan": "loss.balance=nan: must be a finite number",
    "loss.balance=-1": "loss.balance=-1.0: must be at least 0",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_contradicts_itself_is_one_line(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        COMPOSER.compose(line.split(" "))
    assert str(caught.value).startswith(WRONG[line])
    assert "\n" not in str(caught.value)


def test_a_domains_weight_is_a_finite_number() -> None:
    config = COMPOSER.compose(["scope=domain", "balance.terms=[{domains:{a:2}}]"])
    config.balance.terms[0].domains["a"] = float("inf")
    with pytest.raises(ConfigError, match=r"^balance\.terms\[0\]\.domains\.a=inf: must be a"):
        check_experiment(config)


@pytest.mark.parametrize(
    "line",
    [
        "balance.terms=[{},{scope:micro,weight:0.01,start:200}]",
        "balance.terms=[{stop:50,balance_bsz:8},{start:50,balance_bsz:32}]",
        "balance.terms=[{stop:50},{start:50}]",
        "balance.terms=[{stop:50,ramp:10},{scope:micro,start:50,ramp:10}]",
        "balance.terms=[{},{scope:domain,weight:0.1,domains:{a:3}}]",
        "balance.terms=[{start:0,ramp:100}]",
    ],
)
def test_what_the_paper_and_others_do_can_be_said(line: str) -> None:
    COMPOSER.compose([line])
