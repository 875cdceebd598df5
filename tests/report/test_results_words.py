"""The first lines of docs/results.md, its headings, and its table of findings."""

from typing import Any

import pytest

from docs.published.cells import titles
from docs.published.papers import by_arm, paper
from docs.published.study import Study
from docs.published.words import in_short, over_weights

CLAIM = "Global gives a lower perplexity than micro."
SIZE = {"model.num_layers": 2, "model.d_model": 64}


def effect_of(name: str, arm: str, **cells: Any) -> dict[str, Any]:
    """An effect as a CSV has it, of 8 seeds."""
    known = {"claim": CLAIM, "metric": "valid/nats", "unit": "nats a byte", "part": "", "text": ""}
    made = {"tokens": 1e6, "seeds": "0 1 2 3 4 5 6 7", "command": "moebench sweep"}
    return {"name": name, "arm": arm, "level": 0.05, "p": None, **known, **made, **cells}


@pytest.mark.parametrize(("low", "told"), [(-0.03, "."), (-0.01, ", which shows no difference.")])
def test_the_first_lines_say_how_scopes_compare_over_weights(low: float, told: str) -> None:
    study = Study({"study": "weight", "domains": "13"})
    first = dict.fromkeys(("value", "low", "high"))
    best = {"value": -0.02 if low < -0.02 else 0.0, "low": low, "high": low + 0.02}
    study.effects = [
        effect_of("equal MaxVio", "micro", against="micro", **first),
        effect_of("equal MaxVio", "global", against="micro", text="MaxVio 0.50", **best),
        effect_of("best weight", "micro", against="micro", **first),
        effect_of("best weight", "global", against="micro", **best),
    ]
    [line] = over_weights({"weight": study})
    assert "`global` less `micro` is " in line
    assert "where loads are equal (MaxVio 0.50), and" in line
    assert line.endswith(f"at the best weight of each{told}")
    assert line.startswith("- **At other weights** (described")
    sure = {"value": -0.02, "low": -0.03, "high": -0.01}
    other = Study({"study": "weight", "domains": "4"}, effects=[*study.effects])
    other.effects[1] = other.effects[1] | sure
    other.effects[3] = other.effects[3] | {"low": -0.03, "high": 0.01}
    [line] = over_weights({"other": other})
    assert line.startswith("- **It depends on the weight of the balance loss** (described")
    both = {"weight": study, "other": other}
    [line] = over_weights(both)
    assert line.startswith("- **It can depend on the weight")
    assert line.count("where loads are equal") == 2


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
        "|  |  |  | not tested | -0.0300 to -0.0200 nats a byte, over 2 arms "
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
    assert by_arm(study) == []


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
