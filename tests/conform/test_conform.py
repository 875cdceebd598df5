"""`moebench conform` finds what is right right, and names what is wrong."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moebench.conform import Conformance, conformance
from moebench.conform.problem import SCENARIOS, Scenario
from moebench.conform.trial import combined, of_rank
from moebench.conform.verdict import judge
from moebench.errors import ConfigError
from tests.processes import on_ranks

LOSSES = str(Path(__file__).with_name("losses.py"))
NAMES = (
    *("Exact", "Summed", "OverRanks", "TimesRanks", "Prefix", "Kept", "RaisingOnce"),
    *("micro", "pooled", "unmasked", "detached", "own", "raising"),
)
LARGEST = "2 ranks, 4 passes, padding"


def tried(folder: str) -> dict[str, dict[Scenario, Tensor | str]]:
    """One rank's gradients of all losses."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    results = {}
    for name in NAMES:
        place = Path(folder, name)
        place.mkdir(exist_ok=True)
        results[name] = dict(of_rank(f"{LOSSES}:{name}", rank, str(place), "mean"))
    return results


@pytest.fixture(scope="module")
def found() -> dict[str, Conformance]:
    """What is found of each loss, all tried by one pair of processes."""
    with tempfile.TemporaryDirectory() as folder:
        told = on_ranks(tried, 2, folder)
    by_name = {
        name: {
            scenario: combined([each[name][scenario] for each in told[: scenario.ranks]], "mean")
            for scenario in SCENARIOS
        }
        for name in NAMES
    }
    return {name: judge(each, "global") for name, each in by_name.items()} | {
        "micro as micro": judge(by_name["micro"], "micro")
    }


def said(found: Conformance) -> dict[str, str]:
    return {each.scenario: each.said for each in found.verdicts if not each.conforms}


def test_the_definition_conforms(found: dict[str, Conformance]) -> None:
    assert found["Exact"].conforms
    assert found["Exact"].coefficient == pytest.approx(1, rel=1e-5)
    assert max(each.error for each in found["Exact"].verdicts) < 1e-5


def test_a_factor_of_passes_is_named(found: dict[str, Conformance]) -> None:
    """`Summed` is right where passes are summed; here their mean is taken."""
    wrong = said(found["Summed"])
    assert "divided by the passes" in wrong["4 passes"]
    assert {"one pass", "padding"}.isdisjoint(wrong)


@pytest.mark.parametrize(
    ("name", "right", "words"),
    [
        ("OverRanks", "padding, 4 passes", "0.5 times the gradient of one pass (divided by the"),
        (
            "TimesRanks",
            "padding, 4 passes",
            "2 times the gradient of one pass (multiplied by t",
        ),
        ("Prefix", "2 ranks", "f counts the passes so far (the buffer of arXiv 2501.11873"),
        ("micro", "padding", "f counts its own pass; passes weigh equally"),
        ("pooled", "", "f counts its own pass; layers are pooled before the product (Hugging F"),
        ("unmasked", "one pass", "f counts its own pass; padding counts in f; padding counts in P"),
        ("detached", "", "no gradient reaches the router"),
        ("own", "", "matches no known bug; nearest"),
        ("raising", "", "raised ValueError: no such layer"),
    ],
)
def test_each_known_bug_is_named(
    found: dict[str, Conformance], name: str, right: str, words: str
) -> None:
    wrong = said(found[name])
    assert wrong[LARGEST].startswith(words)
    assert right not in wrong
    assert not found[name].conforms


def test_counts_that_outlive_their_step_are_named(found: dict[str, Conformance]) -> None:
    assert said(found["Kept"]) == {"a second step": "f counts earlier steps as well"}


def test_a_rank_that_raises_leaves_the_other_steps_as_they_are(
    found: dict[str, Conformance],
) -> None:
    wrong = said(found["RaisingOnce"])
    assert wrong.keys() == {"2 ranks"}
    assert "raised ValueError: of the second rank" in wrong["2 ranks"]


def test_one_kind_of_counts_is_named_in_all_steps(found: dict[str, Conformance]) -> None:
    assert {text.partition(";")[0] for text in said(found["micro"]).values()} == {
        "f counts its own pass"
    }
    assert found["pooled"].convention() == "top_k at uniform routing"


def test_a_micro_loss_deviates_by_the_weights_of_its_passes_alone(
    found: dict[str, Conformance],
) -> None:
    assert said(found["micro as micro"]) == dict.fromkeys(
        ("padding, 4 passes", LARGEST), "passes weigh equally, whatever their tokens"
    )


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("losses", "losses: must be MODULE:FUNCTION or FILE.py:FUNCTION"),
        (f"{LOSSES}:exact", "has no function exact; did you mean Exact"),
        ("nowhere.py:loss", "there is no such module"),
    ],
)
def test_a_function_that_is_not_there(target: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        conformance(target)
