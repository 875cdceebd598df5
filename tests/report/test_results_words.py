"""The first lines of docs/results.md, its headings, and its table of findings."""

import math
from itertools import product
from typing import Any

from docs.published.cells import titles
from docs.published.papers import by_arm, paper
from docs.published.study import Study
from docs.published.weights import over_weights
from docs.published.words import in_short
from tests.report.conftest import SCIENCE

CLAIM = "Global gives a lower perplexity than micro."
SIZE = {"model.num_layers": 2, "model.d_model": 64}


def effect_of(name: str, arm: str, **cells: Any) -> dict[str, Any]:
    """An effect as a CSV has it, of 8 seeds."""
    known = {"claim": CLAIM, "metric": "valid/nats", "unit": "nats a byte", "part": "", "text": ""}
    made = {"tokens": 1e6, "seeds": "0 1 2 3 4 5 6 7", "command": "moebench sweep"}
    return {"name": name, "arm": arm, "level": 0.05, "p": None, **known, **made, **cells}


def weights_of(gaps: dict[float, float], best: float = 0.01) -> Study:
    """Micro and global at three weights, by how much micro is behind, and the best of micro."""
    study = Study({"study": "weight", "domains": "13", "baseline": "micro loss.balance=0.05"})
    for (weight, gap), seed in product(gaps.items(), range(4)):
        for scope, size, nats in (("micro", 4, 1.0 + gap), ("global", 128, 1.0)):
            own = SCIENCE | {"balance_bsz": size, "loss.balance": weight}
            nats += (seed - 1.5) * (size % 3) * weight / 1000  # so that gaps and their change vary
            bits = {"valid/bits_per_byte": nats / math.log(2)}
            arm = {"arm": f"{scope} loss.balance={weight:g}", "seed": seed, "part": ""}
            study.runs.append({**arm, "science": own, "metrics": bits})
    unknown = dict.fromkeys(("value", "low", "high"))
    sides = {"arm": "micro", "against": "micro", "text": f"loss.balance={best:g}"}
    study.effects = [effect_of("best weight", **sides, **unknown)]
    return study


def compared(study: Study, kind: str, value: float, text: str) -> None:
    """What the CSV says of global and micro, give or take 0.01."""
    ends = {"value": value, "low": value - 0.01, "high": value + 0.01}
    study.effects.append(effect_of(kind, "global", against="micro", text=text, **ends))


def test_the_first_lines_say_how_scopes_compare_over_weights() -> None:
    study = weights_of({0.01: 0.0, 0.05: 0.02, 0.5: 0.06})
    compared(study, "best weight", -0.004, "loss.balance=0.05")
    [told] = over_weights({"weight": study})  # loads of scopes need have nothing in common
    head, line = told.splitlines()
    assert head.startswith("- **It depends on the weight of the balance loss** (described, not")
    assert line == (
        "  - [weight on 13 domains](#weight-on-13-domains): `global` less `micro` at the best "
        "weight of each is -0.0040 (95 %: -0.0140 to 0.0060), which shows no difference; from "
        "weight 0.01 (the smallest other) to 0.05 (the baseline's) it changes by -0.0200 (95 %: "
        "-0.0201 to -0.0199). The best of `micro`, 0.01, is the smallest that was tried, so that a "
        "smaller one may be better."
    )
    compared(study, "equal MaxVio", -0.03, "MaxVio 0.50")
    [told] = over_weights({"weight": study})
    there = "at equal loads (MaxVio 0.50) it is -0.0300 (95 %: -0.0400 to -0.0200)"
    assert f"no difference; {there}; from weight 0.01" in told


def test_the_first_lines_say_depends_by_the_change_alone() -> None:
    """One interval without 0 and one with it are no difference of the two."""
    same = weights_of({0.01: 0.02, 0.05: 0.02, 0.5: 0.06}, best=0.05)
    compared(same, "best weight", -0.004, "loss.balance=0.5")
    compared(same, "equal MaxVio", -0.03, "MaxVio 0.50")
    [told] = over_weights({"same": same})
    assert told.startswith("- **At other weights** (described, not tested).")
    assert "), which shows no change. The best of `global`, 0.5, is the largest" in told
    assert "best of `micro`" not in told
    other = weights_of({0.01: 0.0, 0.05: 0.02, 0.5: 0.06})
    compared(other, "best weight", -0.02, "loss.balance=0.05")
    [told] = over_weights({"same": same, "other": other})
    assert told.startswith("- **It can depend on the weight of the balance loss** (")
    assert len(told.splitlines()) == 3
    other.about["baseline"] = "micro"  # of no weight
    [told] = over_weights({"other": other})
    assert told.startswith("- **At other weights**")
    assert (
        "at the best weight of each is -0.0200 (95 %: -0.0300 to -0.0100). The best of `m" in told
    )


def test_the_first_lines_name_the_finding_on_which_tests_differ() -> None:
    of = {"p": 0.01, "value": -0.02, "low": -0.03, "high": -0.01}
    study = Study({"study": "weight", "domains": "13"}, SIZE)
    study.effects = [
        effect_of("finding", "global a", against="micro a", verdict="agrees", **of),
        effect_of("finding", "global b", against="micro b", verdict="cannot tell", **of),
        effect_of("finding", "global a", against="micro a", verdict="agrees", **of)
        | {"claim": "Another."},
    ]
    assert (
        "- Of the paper's 17 findings, 2 are tested:\n"
        "  - here 2 (tests differ: 1, agrees: 1). Tests differ on "
        "*Global gives a lower perplexity than micro* (agrees: 1, cannot tell: 1)."
    ) in in_short({"a": study})[1]


def test_the_first_lines_begin_with_the_eligible_size_and_hide_nothing_of_it() -> None:
    """What it does not test stands there, too, as far as others test it, and all that it tests."""
    own, other = (Study({"study": "scope", "domains": of}, SIZE) for of in ("4", "13"))
    own.eligible = True
    within = {"p": 0.2, "value": -0.003, "low": -0.007, "high": 0.001, "verdict": "within margin"}
    why = "between -0.008 and 0.008"
    own.effects = [
        effect_of("finding", "global", against="micro", **within | {"text": why}),
        effect_of("finding", "shuffled", against="micro", **within | {"p": None})
        | {"claim": "Shuffled gives a lower perplexity than micro.", "verdict": "not tested"},
        effect_of("finding", "a b c", against="trend", **within | {"text": f"{why} a doubling"})
        | {"claim": "It falls.", "unit": "nats a byte a doubling"},
    ]
    agrees = {"p": 0.01, "value": -0.004, "verdict": "agrees", "text": ""}
    other.effects = [of | agrees for of in own.effects[:2]]
    link = "[scope on 4 domains (eligible)](#scope-on-4-domains-eligible)"
    about, lines, *_ = in_short({"own": own, "other": other})
    assert "Studies marked *eligible* stand first" in about
    interval = "-0.0030 (95 %: -0.0070 to 0.0010)"
    assert lines.startswith(
        "- **Global gives a lower perplexity than micro**\n"
        f"  - {link}: within margin ({why}), {interval}.\n"
        f"  - [scope on 13 domains](#scope-on-13-domains): agrees, -0.0040 (95 %: -0.0070 to "
        "0.0010).\n"
        "- **Shuffled gives a lower perplexity than micro**\n"
        f"  - {link}: not tested, {interval}.\n"
        f"  - [scope on 13 domains](#scope-on-13-domains): agrees, -0.0040 (95 %: -0.0070 to "
        "0.0010).\n"
        "- **It falls**\n"
        f"  - {link}: within margin ({why} a doubling), {interval} nats a byte a doubling.\n"
        "- Of the paper's 17 findings, 3 are tested:\n"
        "  - at an eligible size 2 (within margin: 2).\n"
        "  - at others 2 (agrees: 2)."
    )
    assert "not tested" not in in_short({"other": other})[1]


def test_headroom_stands_with_its_test_and_with_learned_routers_that_are_behind() -> None:
    """The size was chosen on other seeds, on which they were not."""
    study, ends = Study({"study": "headroom", "domains": "4"}, SIZE), {"low": 0.001, "high": 0.04}
    study.effects = [
        effect_of("headroom", "T", against="TD", value=0.02, **ends),
        *(
            effect_of("headroom", arm, against="T", value=value, verdict="learned", **ends)
            for arm, value in {"micro": 0.01, "shuffled": -0.004, "global": 0.006}.items()
        ),
        effect_of("difference", "domain_token", against="hash", value=-0.02, **ends, p=0.35)
        | {"verdict": "cannot tell"},
    ]
    _, lines, *_ = in_short({"a": study})
    assert "H is 0.0200 (95 %: 0.0010 to 0.0400), and `global` less T is 0.0060 (95 %: " in lines
    assert lines.endswith(" TD less T, tested among all arms of the study: cannot tell (p 0.35).")
    study.eligible = True
    behind = "On these seeds `micro`, `shuffled` and `global` end on average 0.0040 behind T; on "
    assert behind in in_short({"a": study})[1]
    study.effects[1]["value"] = -0.01
    assert "behind T" not in in_short({"a": study})[1]


def test_arms_of_which_a_study_says_the_same_share_a_row() -> None:
    study = Study({"study": "weight", "domains": "13"})
    ends = {"low": -0.05, "high": 0.01, "verdict": "not tested"}
    study.effects = [
        effect_of("finding", "global a", against="micro a", p=0.2, value=0.001, **ends),
        *(
            effect_of("finding", f"global {arm}", against=f"micro {arm}", value=value, **ends)
            for arm, value in {"b": -0.03, "c": -0.02}.items()
        ),
    ]
    study.effects[0]["verdict"] = "cannot tell"
    _, about, table, _, left = paper({"weight": study})
    assert "All rows are of 1.0 million tokens and 8 seeds." in about
    first, second = table.splitlines()[2:]
    assert first.startswith("| Global gives a lower perplexity than micro | Table 2")
    assert "| cannot tell (p 0.20) | 0.0010 (-0.0500 to 0.0100) nats a byte at 95 % |" in first
    assert first.endswith(", `global a` |")
    assert second == (
        "|  |  |  | not tested | means of 2 arms from -0.0300 to -0.0200 nats a byte "
        "| [weight on 13 domains](#weight-on-13-domains) |"
    )
    assert len(left.splitlines()) == 16
    study.effects[0]["tokens"] = 2e6
    assert "| tokens | study |" in paper({"weight": study})[2]
    rows = by_arm(study)[-1].splitlines()[2:]
    assert rows[1].endswith(
        "| `global b` | `micro b` | -0.0300 (-0.0500 to 0.0100) nats a byte | not tested |"
    )
    study.effects = study.effects[:1]
    assert by_arm(study) == []  # it has no rule, and another study that shares its runs may have
    study.about["look"] = "Stopping rule: look 2 of 3."
    assert by_arm(study)[-1].splitlines()[2].startswith("| Global gives a lower perplexity")
    study.about["control"] = "micro a"  # so that the table of arms has it
    assert by_arm(study) == []
    study.effects[0] |= {"arm": "micro a global a", "against": "trend"}
    assert "| Global gives a lower perplexity than micro |  |  | 0.0010" in by_arm(study)[-1]


def test_studies_of_one_name_are_told_apart_by_their_size() -> None:
    found = {}
    for name, steps in {"a": 600, "b": 2400}.items():
        effect = effect_of("difference", "global", value=-0.01, tokens=4096.0 * steps)
        settings = SIZE | {"train.steps": steps}
        found[name] = Study({"study": "scope", "domains": "13"}, settings, effects=[effect])
    told = {
        "a": "scope on 13 domains, train.steps=600",
        "b": "scope on 13 domains, train.steps=2400",
    }
    assert titles(found) == told
    assert titles({"a": found["a"]}) == {"a": "scope on 13 domains"}
    told |= {name: f"scope on 13 domains, {name}" for name in "bc"}
    assert titles({**found, "c": found["b"]}) == told
    models = "2 layers of width 64"
    assert f"{models} and saw 2.5 million to 9.8 million tokens" in in_short(found)[1]
    found["b"].settings["model.d_model"] = 128
    assert f"{models} or 2 layers of width 128 and saw" in in_short(found)[1]
