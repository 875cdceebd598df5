"""docs/results.md is made from the CSVs of docs/results/, and these from reports."""

import math
import re
import runpy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs.published import beyond, picture, records
from docs.published.cells import titles
from docs.published.papers import weighed
from docs.published.study import Study
from docs.published.tuned import chosen
from moebench.config.compose import Composer
from moebench.errors import RecordError
from moebench.plans import read_plan
from moebench.report import make_report
from moebench.report.infer.statistics import mean_interval
from tests.report.conftest import SCIENCE
from tests.report.published import GLOBAL, fake_study

FOLDER = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(FOLDER / "results.py"))


def test_the_page_is_what_its_csvs_make() -> None:
    page = (FOLDER / "results.md").read_text(encoding="utf-8")
    assert page == SCRIPT["updated"](page), "run `python docs/results.py`"


def test_a_page_without_its_comments_is_not_written() -> None:
    page = (FOLDER / "results.md").read_text(encoding="utf-8")
    for comment in (SCRIPT["START"], SCRIPT["END"]):
        with pytest.raises(RecordError, match=f"lacks {re.escape(comment.strip())}; git checkout"):
            SCRIPT["updated"](page.replace(comment, ""), {})


def test_every_study_on_the_page_can_be_run() -> None:
    page = (FOLDER / "results.md").read_text(encoding="utf-8")
    shipped = {path.stem for path in (FOLDER.parent / "conf" / "study").glob("*.yaml")}
    assert {*re.findall(r"study=(\w+)", page)} <= shipped


def test_effects_are_those_of_the_report(runs: Path) -> None:
    study = fake_study(runs)
    [effect] = study.found("difference", arm="global")
    table = make_report([runs], study="scope", runs_dir=runs).tables[0]
    decided = table.decisions["global"]
    assert table.bytes_per_token == pytest.approx(1.0)
    assert effect["value"] == pytest.approx(decided.estimate.value)
    assert (effect["p"], effect["level"], effect["verdict"]) == (decided.p, 0.05, "lower")
    [finding] = study.found("finding", metric="valid/nats")
    assert (finding["verdict"], finding["value"]) == ("agrees", pytest.approx(effect["value"]))


def test_the_page_tells_verdicts_and_what_was_not_run(runs: Path) -> None:
    page = SCRIPT["generated"]({"scope-0a1b2c": fake_study(runs)})
    assert "### scope on 2 domains\n" in page
    assert "data.path=DIR" in page
    assert "agrees: in the paper's direction (p < 0.001)" in page
    left = page.split("## Not run yet")[1]
    assert "study=weight data=folder data.path=DIR" in left
    assert "study=scope data=folder" not in left
    assert "moebench sweep study=scope\n" in left  # on installed text


def test_the_first_lines_say_what_was_tested_and_how_far_it_reaches(runs: Path) -> None:
    study = fake_study(runs)
    study.settings |= {"model.num_layers": 2, "model.d_model": 64}
    page = SCRIPT["generated"]({"a": study, "b": study})
    short, rest = page.split("## Words")
    [effect] = study.found("finding", metric="valid/nats")
    assert (
        "- **Global gives a lower perplexity than micro**\n  - [scope on 2 domains, a](#scope-on-2-"
        f"domains-a): agrees, {effect['value']:.4f} (95 %: {effect['low']:.4f} to "
        f"{effect['high']:.4f}).\n"
    ) in short
    assert "*eligible*" not in short
    assert "It depends on the weight" not in short
    assert "- Of the paper's 17 findings, 1 is tested:\n  - here 1 (agrees: 1).\n" in short
    assert "have 2 layers of width 64 and saw 6.6 million tokens" in short
    assert "of the 48 runs in their tables, 24 are distinct" in rest
    assert "Studies share" not in SCRIPT["generated"]({"a": study})
    assert "ended" not in rest.split("| finding |")[0].split("Studies share")[1]
    study.about["look"] = "Stopping rule: the first finding is decided, which ends the study."
    rest = SCRIPT["generated"]({"a": study, "b": study})
    assert "One test, of global less micro, ended [scope on 2 domains, a](#scope-on-2" in rest
    study.about["order"] = "02-shuffled-below-micro, 01-global-below-micro"
    assert "One test, of global less micro" not in SCRIPT["generated"]({"a": study, "b": study})
    study.settings = {}
    assert "layers of width" not in SCRIPT["generated"]({"a": study})


def test_a_command_names_an_order_of_findings_that_its_preset_no_longer_declares(
    runs: Path,
) -> None:
    study = fake_study(runs)
    assert study.about["order"] == "01-global-below-micro"
    assert study.made()["command"].endswith("data.path=DIR 'study.order=[01-global-below-micro]'")
    [path] = runs.glob("studies/*/plan.json")
    plan = read_plan(path)
    preset = replace(plan, order=tuple(Composer().study(plan.name).order))
    assert "study.order" not in records.typed(preset)
    assert records.typed(plan.in_order(plan.order)).count("study.order") == 1


def test_headroom_stands_beside_the_effect_of_a_study_of_that_size(runs: Path) -> None:
    study = fake_study(runs)
    room = {"name": "headroom", "arm": "T", "value": 0.05, "low": 0.04, "high": 0.06, "tokens": 1e6}
    other = Study({"study": "headroom"}, runs=[*study.by_arm()["global"]])
    other.effects.append({**study.effects[0], **room})
    for seed, (arm, shift) in product(range(2, 20), {"hash": 0.08, "domain_token": 0.0}.items()):
        bits = {"valid/bits_per_byte": (1.6 + shift + 1e-4 * (seed % 3)) / math.log(2)}
        fixed = {"arm": arm, "seed": seed, "part": "", "metrics": bits}
        other.runs.append({**fixed, "science": {"router.map": arm}})
    shown = SCRIPT["generated"]({"scope-1": study, "headroom-2": other})
    assert "| `global` | 0.0500 (0.0400 to 0.0600) | -0.0" in shown
    assert ") | 24.4 % | 4 | agrees: in the paper's direction" in shown  # seeds 2 to 5: too few
    other.runs = [{**run, "science": run["science"] | {"model.d_model": 9}} for run in other.runs]
    assert "beside headroom" not in SCRIPT["generated"]({"scope-1": study, "headroom-2": other})


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (0.04, "is larger than H: the effect less H, paired by seed, is 0.0100 (0.00"),
        (0.05, "is not told apart from H: the effect less H, paired by seed, is 0.0000 (-"),
        (0.06, "is smaller than H: the effect less H, paired by seed, is -0.0100 (-0.01"),
    ],
)
def test_an_effect_is_compared_with_headroom_and_discussed(token: float, told: str) -> None:
    """The effect of the scope is 0.03, and H is 0.02, 0.03 or 0.04."""
    shifts = {"hash": token, "domain_token": 0.02, "micro": 0.09, "global": 0.06}
    study = Study({"study": "headroom", "domains": "13"})
    for (place, (arm, shift)), seed in product(enumerate(shifts.items()), range(6)):
        nats = 1.6 + shift + 1e-4 * ((7 * seed + 3 * place) % 5)
        metrics = {"valid/bits_per_byte": nats / math.log(2)}
        study.runs.append({"arm": arm, "seed": seed, "part": "", "science": {}, "metrics": metrics})
    part = {"name": "headroom", "against": "T", "verdict": "learned", "value": 0.03, "low": 0.01}
    study.effects = [part]
    [shown] = beyond._beyond_headroom({"headroom": study})
    assert told in shown
    assert "(#headroom-on-13-domains), all learned routers end on average behind T" in shown
    part["low"] = -0.01
    [shown] = beyond._beyond_headroom({"headroom": study})
    assert "(where intervals do not tell all of them from T), all learned routers end on a" in shown
    part["value"] = -0.03
    [shown] = beyond._beyond_headroom({"headroom": study})
    assert "behind T" not in shown


def test_a_share_of_headroom_has_the_ends_at_which_the_paired_t_rejects_it() -> None:
    rng = np.random.default_rng(0)
    gains, rooms = rng.normal(1, 0.3, 12), rng.normal(4, 0.5, 12)
    low, high = beyond.ratio_interval(gains, rooms)
    assert low is not None
    assert high is not None
    assert low < gains.mean() / rooms.mean() < high
    for end in (low, high):
        assert mean_interval(gains - end * rooms).p == pytest.approx(0.05)
    assert beyond.ratio_interval(gains, rooms - 4) == (None, None)  # no headroom to be a share of
    assert beyond.ratio_interval(gains[:5], rooms[:5]) == (None, None)


def test_learned_routers_of_the_same_seeds_are_compared_once_on_cost(runs: Path) -> None:
    study, later = (fake_study(runs / str(first)) for first in (0, 1))
    for run in later.runs:
        run["seed"] += 100
    few = replace(study, runs=[run for run in study.runs if run["seed"] < 3])
    table = beyond._by_cost({"few": few, "a": study, "b": study, "c": later})[-1]
    rows = [line.split(" | ")[:3] for line in table.splitlines()[2:]]
    assert rows == [
        [f"| `{arm}`", f"[scope on 2 domains, {name}](#scope-on-2-domains-{name})", seeds]
        for name, seeds in (("a", "0 to 5"), ("c", "100 to 105"))
        for arm in ("micro", "global")
    ]


def test_a_picture_of_arms_shows_the_table_and_each_seed(runs: Path) -> None:
    study = fake_study(runs)
    plot = picture.arms(study)
    assert plot is not None
    spec = plot.panels[0].spec
    shown = {row["row"]: row for row in spec["data"]["values"]}
    [effect] = study.found("difference", arm="global")
    ends = [shown["global"][key] for key in ("value", "low", "high")]
    assert ends == pytest.approx([effect[key] for key in ("value", "low", "high")], abs=1e-6)
    assert {row: of["tested"] for row, of in shown.items()} == {
        "global": True,
        "none": False,
        "micro perturb=1e-06": False,
    }
    [ticks] = [layer["data"]["values"] for layer in spec["layer"] if "tick" in str(layer["mark"])]
    of_seeds = [tick["value"] for tick in ticks if tick["row"] == "global"]
    assert len(of_seeds) == 6
    assert sum(of_seeds) / 6 == pytest.approx(effect["value"], abs=1e-6)


def test_labels_name_a_weight_once_and_where_arms_have_several(runs: Path) -> None:
    assert picture._less("global a=1", "micro a=1") == "global less micro, a=1"
    assert picture._less("global + micro", "global") == "global + micro less global"
    assert picture._less("shuffled a=1", "global a=2") == "shuffled a=1 less global a=2"
    study = fake_study(runs)
    name, own = "micro perturb=1e-06", study.by_arm()["micro perturb=1e-06"]
    assert picture._named(name, own, study) == name
    study.runs[0]["science"] = study.runs[0]["science"] | {"loss.balance": 0.5}
    assert picture._named(name, own, study) == f"{name} loss.balance=0.1"
    assert picture._named("micro loss.balance=0.1", own, study) == "micro loss.balance=0.1"


def test_a_picture_that_no_csv_stands_for_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SCRIPT["draw"].__globals__, "IMAGES", tmp_path)
    kept = {"results-of-mine.png", "other.png"}
    old = {"results.png", "results-scope-3d08512d.png", "results-weight-3d08512d-frontier.png"}
    for name in kept | old:
        (tmp_path / name).touch()
    SCRIPT["draw"]({})
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"docs/img/{name}" for name in sorted(old)
    ]


def tuned(behind: float) -> Study:
    """One size on tuning seeds, whose learned arms end so much above T."""
    prescribed = {"loss.balance": None, "scope": "none"}
    arms: dict[str, tuple[float, dict[str, Any]]] = {
        "T": (0.0, prescribed | {"router.map": "hash"}),
        "TD": (-0.1, prescribed | {"router.map": "domain_token"}),
        "micro": (behind, {"balance_bsz": 4}),
        "shuffled": (behind, GLOBAL | {"scope": "shuffled"}),
        "global": (behind, GLOBAL),
        "micro A/A": (behind, {"balance_bsz": 4, "router.perturb": 1e-6}),
        "global A/A": (behind, GLOBAL | {"router.perturb": 1e-6}),
    }
    study = Study({"command 1": "moebench sweep study=headroom_size"})
    for seed, (arm, (shift, own)), steps in product((1000, 1001, 1002), arms.items(), (400, 200)):
        nats = 1.6 + shift + seed % 7 / 1000 + 0.001 * ("A/A" in arm)
        science = SCIENCE | own | {"train.steps": steps}
        known = {key: value for key, value in science.items() if value is not None}
        metrics = {"valid/bits_per_byte": nats / math.log(2), "seconds": 60.0}
        study.runs.append({"run": arm, "seed": seed, "science": known, "metrics": metrics})
    return study


def test_tuning_seeds_choose_a_size_and_show_what_lacks() -> None:
    page = SCRIPT["generated"]({"tuning": tuned(-0.01)})
    assert "no study reports (400 steps and weight 0.1) is eligible; the lower 80 %" in page
    page = SCRIPT["generated"]({"tuning": tuned(0.02)})
    told = "the only size tried on seeds that no study reports (400 steps and weight 0.1)"
    assert f"{told} is not eligible. It fails because" in page
    assert "It fails because: learned routers are behind the hash (" in page
    assert "learned routers are behind the hash |" in page
    same = "seeds 1000, 1001, 1002"
    assert f"| arms | seeds | less T, {same} | less T at defaults, {same} | less T, all" in page
    assert "|  | 400 | 0.1 | 1 | 1 | global, micro, shuffled | 3 | 0.0200 | 0.0200 |  |" in page
    assert "moebench sweep study=headroom_size" in page


def test_a_trial_is_compared_with_a_hash_of_its_own_router_settings() -> None:
    """Gates of T train, too: a setting that helps them helps T."""
    study = tuned(0.02)
    for run in [*study.runs]:
        nats = run["metrics"]["valid/bits_per_byte"] - 0.05 / math.log(2)
        science = run["science"] | {"router.init": 10.0}
        study.runs.append({**run, "science": science, "metrics": {"valid/bits_per_byte": nats}})
    page = SCRIPT["generated"]({"tuning": study})
    assert "|  | 400 | 0.1 | 1 | 10 | global, micro, shuffled | 3 | 0.0200 | -0.0300 |" in page


def test_the_page_says_which_studies_take_the_chosen_size() -> None:
    """By the keys of their runs: of other studies, why their size is not chosen."""
    size, behind = tuned(-0.01), tuned(0.02)
    for run in behind.runs:
        run["science"] = run["science"] | {"model.num_experts": 64}
    size.runs += behind.runs
    studies = {"tuning": size}
    for number, keys in {"13": {"model.num_experts": 64}, "4": {}, "2": {"optim.lr": 1}}.items():
        science = SCIENCE | GLOBAL | {"train.steps": 400, "train.eval_every": 200} | keys
        runs = [{"arm": "global", "seed": 0, "part": "", "science": science, "metrics": {}}]
        studies[number] = Study({"study": "scope", "domains": number}, runs=runs)
    marked = SCRIPT["in_order"](studies)
    assert [*titles(marked).values()] == [
        "scope on 4 domains (eligible)",
        "scope on 13 domains",
        "scope on 2 domains",
    ]
    size, *told = chosen(studies)
    assert "`model.num_experts=16` with 400 steps and weight 0.1 alone is eligible; the" in size
    why = "another size, which is not eligible: learned routers are behind the hash"
    assert told == [
        "[scope](#scope-on-4-domains) on 4 domains takes the chosen size.",
        f"[scope](#scope-on-13-domains) on 13 domains takes {why}.",
        "[scope](#scope-on-2-domains) on 2 domains takes a size that was not tried for headroom.",
    ]
    studies["again"] = replace(studies["13"], about={"study": "weight", "domains": "13"})
    assert chosen(studies)[2] == f"All 2 studies on 13 domains take {why}."


def test_few_seeds_bear_no_verdict_on_the_page(runs: Path) -> None:
    page = SCRIPT["generated"]({"scope-0a1b2c": fake_study(runs, seeds=3)})
    assert "A verdict takes 6 seeds." in page
    assert "not tested: 3 seeds, and a verdict takes 6" in page
    assert "agrees" not in page.split("## Findings of arXiv 2604.07030")[0].split("*Here*")[1]


def test_a_contrast_weighs_arms_seed_by_seed() -> None:
    runs = [
        {"arm": arm, "seed": seed, "metrics": {"valid/bits_per_byte": bits / math.log(2)}}
        for arm, values in {"a": (1.0, 2.0, 4.0), "b": (0.5, 1.0, 2.0)}.items()
        for seed, bits in enumerate(values)
    ]
    found = weighed(runs, {"a": 1, "b": -2})
    assert found is not None
    assert found.value == pytest.approx(0.0)
    assert weighed(runs, {"a": 1, "c": -1}) is None


def test_a_study_that_was_not_run_has_the_size_of_the_others() -> None:
    words = "moebench sweep study=scope train.steps=600 loss.balance=0.05 --until-decided"
    like = SCRIPT["_like"]
    assert like(words, "homogeneity") == words.replace("scope", "homogeneity")
    assert like(words, "weight") == words.replace("scope", "weight").replace(
        "loss.balance=0.05 ", ""
    )
    assert (
        like(words, "headroom") == "moebench sweep study=headroom train.steps=600 loss.balance=0.05"
    )
