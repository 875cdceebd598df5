"""Plans on disk: read as they were written, found by name, and refused where they are damaged."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moebench import plans
from moebench.errors import RecordError
from moebench.plans import Job, Plan, find_plan, find_ruled, read_plan
from moebench.step_costs import read_costs

CONFIG = {"train": {"steps": 4}}


def a_plan(name: str = "mine", seed: int = 0) -> Plan:
    run = f"micro-s{seed}-0123456789"
    job = Job(0, run, "micro", "0123456789", seed, ("scope=micro",), CONFIG)
    return Plan(name, "Which?", "cpu", "micro", "valid/nats", (job,))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = a_plan()
    path = plan.write(tmp_path / "runs")
    assert path == tmp_path / "runs" / "studies" / plan.slug / "plan.json"
    assert read_plan(path) == plan
    assert read_plan(path).folder == path.parent
    assert plan.baseline_hash() == "0123456789"
    assert replace(plan, baseline="global").baseline_hash() is None


@pytest.mark.parametrize("name", ["studies", "studies/SLUG", "studies/SLUG/logs"])
def test_a_plan_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    link = tmp_path / "runs" / name.replace("SLUG", a_plan().slug)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(RecordError, match=r"is a link (to|out of the study).*nothing may be writ"):
        a_plan().write(tmp_path / "runs")
    assert not list((tmp_path / "outside").iterdir())


def test_a_plan_is_found_by_its_name_and_the_last_one_by_none(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(RecordError, match=f"^{runs}: no sweep was started here; moebench sweep"):
        find_plan(runs)
    first, second, last = a_plan(), a_plan(seed=7), a_plan("sweep")
    for seconds, plan in enumerate((first, second, last)):
        os.utime(plan.write(runs), (seconds, seconds))
    assert find_plan(runs) == find_plan(runs, "sweep") == last
    assert find_plan(runs, "mine") == second
    assert find_plan(runs, first.slug) == first
    with pytest.raises(RecordError, match=f"^min: no such study in {runs}; there are mine"):
        find_plan(runs, "min")
    with pytest.raises(RecordError, match=r"^\.\./x: no such study in .*; there are mine, sweep$"):
        find_plan(runs, "../x")


def test_plans_that_end_by_rule_are_found_by_their_arms_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(plans, "read_plan", lambda path: [seen.append(path), read_plan(path)][1])
    ruled, arm = replace(a_plan(), most_seeds=12), a_plan().jobs[0].arm_hash
    path = ruled.write(tmp_path)
    a_plan("without_rule").write(tmp_path)
    damaged = replace(a_plan("damaged"), most_seeds=12).write(tmp_path)
    damaged.write_text(damaged.read_text().replace('"name"', '"nome"'))
    assert (find_ruled(tmp_path, {"other"}), seen) == ([], [])
    assert (find_ruled(tmp_path, {arm}), seen) == ([ruled], [damaged, path])


def config(seed: int, balance: object, options: object, terms: object) -> dict[str, Any]:
    return {
        "train": {"steps": 4},
        "seed": seed,
        "loss": {"balance": balance},
        "method": options,
        "terms": terms,
    }


CONFIGS = [
    config(0, 0.1, {"options": {}}, [{}]),
    config(1, 0.2, {"options": {"a": 1}}, [{}]),
    config(2, 0, {"options": {"a": 1, "b": {}}}, None),
    config(3, True, {"options": {"a": {}}}, {}),
]


@pytest.mark.parametrize("configs", [CONFIGS[:n] for n in (1, 2, 3, 4)] + [CONFIGS[1:3]])
def test_what_configs_share_is_written_once(tmp_path: Path, configs: list[Any]) -> None:
    [job] = a_plan().jobs
    jobs = tuple(replace(job, id=n, config=own) for n, own in enumerate(configs))
    path = replace(a_plan(), jobs=jobs).write(tmp_path)
    read = [job.config for job in read_plan(path).jobs]
    assert json.dumps(read, sort_keys=True) == json.dumps(configs, sort_keys=True)


def test_a_plan_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    plan = replace(a_plan(), jobs=tuple(replace(a_plan().jobs[0], id=n) for n in range(9)))
    path = plan.write(tmp_path)
    content = json.loads(path.read_text())
    assert [run["config"] for run in content["runs"]] == [{}] * 9
    for run in content["runs"]:
        run["config"] = content["shared"]
        del run["differs"]
    del content["shared"]
    path.write_text(json.dumps(content))
    assert read_plan(path) == plan


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"runs": [{}]}', '{"runs": 1}', "\x00"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=f"^{path}: is not a plan"):
        read_plan(path)


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        ({"name": 3}, "name is not a name of a file"),
        ({"primary": None}, "primary is not a text"),
        ({"name": "../../escaped"}, "name is not a name of a file"),
        ({"name": ""}, "name is not a name of a file"),
        ({"run": "/tmp/escaped"}, "runs[0].run is not a name of a file"),
        ({"run": ".."}, "runs[0].run is not a name of a file"),
        ({"run": "a\0b"}, "runs[0].run is not a name of a file"),
        ({"run": "a" * 256}, "runs[0].run is not a name of a file"),
        ({"runs": {}}, "runs is not a list"),
        ({"runs": [1]}, "runs[0] is not an object"),
        ({"runs": []}, "runs is empty"),
        ({"runs": [{}]}, "runs[0].id is missing"),
        ({"id": "0"}, "runs[0].id is not a whole number"),
        ({"id": 10**400}, "holds a number of 401 digits"),
        ({"arm_hash": None}, "runs[0].arm_hash is not a text"),
        ({"seed": True}, "runs[0].seed is not a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "runs[0].seed is not a whole number from 0 to 4294967295"),
        ({"overrides": [1]}, "runs[0].overrides[0] is not a text"),
        ({"config": []}, "runs[0].config is not an object"),
        ({"shared": {}}, "runs[0].config.train is missing"),
        ({"average_twin": 1}, "average_twin is not true or false"),
        ({"order": "a"}, "order is not a list"),
        ({"shared": []}, "shared is not an object"),
        ({"differs": None}, "runs[0].differs is not a text"),
    ],
)
def test_a_damaged_plan_is_refused_with_what_is_wrong(
    tmp_path: Path, damage: dict[str, Any], wrong: str
) -> None:
    path = a_plan().write(tmp_path)
    content = json.loads(path.read_text())
    for key, value in damage.items():
        (content if key in content else content["runs"][0])[key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: is not a plan ({wrong}")


def test_a_plan_whose_looks_are_not_whole_is_refused(tmp_path: Path) -> None:
    path = replace(a_plan(), most_seeds=13).write(tmp_path)
    with pytest.raises(RecordError, match=r"is not a plan \(most_seeds is not a multiple of 4\)"):
        read_plan(path)


def test_an_id_stands_for_one_run(tmp_path: Path) -> None:
    plan = a_plan()
    path = replace(plan, jobs=plan.jobs * 2).write(tmp_path)
    with pytest.raises(RecordError, match=r"is not a plan \(two runs have one id\)"):
        read_plan(path)


def test_costs_are_read_where_a_study_was_timed(tmp_path: Path) -> None:
    assert read_costs(tmp_path) == {}
    path = tmp_path / "cost.json"
    timed = {"step_seconds": [1, 2], "machine": "a CPU"}
    path.write_text(json.dumps({"0123": timed, "4567": {"step_seconds": []}}))
    assert read_costs(tmp_path) == {"0123": ((1.0, 2.0), (), "a CPU")}
    for text in ("[]", "{", '{"0123": {"step_seconds": "x"}}', '{"0123": {"step_seconds": 1}}'):
        path.write_text(text)
        with pytest.raises(
            RecordError, match=r"cost\.json: is not a table of costs \(.*\); time the study"
        ):
            read_costs(tmp_path)
