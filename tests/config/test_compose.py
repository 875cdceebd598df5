"""Presets, an overlay and what is typed: which wins, and what each error says."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from moebench.config.compose import Composer, from_dict, sources_of, to_dict, to_yaml
from moebench.config.schema import ExperimentConfig
from moebench.errors import ConfigError

COMPOSER = Composer()
Overlay = Callable[[dict[str, str]], Composer]


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    """Makes a composer whose overlay holds some files, in a folder with an awkward name."""

    def made(files: dict[str, str]) -> Composer:
        root = tmp_path / "my presets, it's [v1] {a=b}"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Composer(root)

    return made


def refused(composer: Composer, *overrides: str, base: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        composer.compose(overrides, base=base)
    text = str(caught.value)
    assert "\n" not in text
    return text


# What a run is made of


def test_defaults_are_those_of_the_design() -> None:
    config = COMPOSER.compose()
    assert (config.scope, config.balance_bsz) == ("global", 128)
    assert (config.micro_bsz, config.global_bsz, config.seq_len, config.seed) == (4, 128, 128, 0)
    assert asdict(config.model) == {
        "moe": True,
        "dense_layers": 0,
        "d_model": 128,
        "num_layers": 3,
        "num_heads": 4,
        "num_experts": 16,
        "zero_experts": 0,
        "top_k": 2,
        "expert_dim": 96,
        "num_shared_experts": 0,
        "init": None,
        "weights": {},
    }
    assert (config.method.name, config.router.gate) == ("loss", "softmax")
    assert (config.data.source, config.data.path) == ("installed", None)
    assert (config.train.steps, config.train.precision) == (400, "fp32")
    assert config.run.device == "auto"


@pytest.mark.parametrize(
    ("scope", "size"),
    [
        ("none", None),
        ("sequence", 1),
        ("micro", 4),
        ("shuffled", 128),
        ("global", 128),
        ("domain", None),
    ],
)
def test_a_scope_fills_in_its_size(scope: str, size: int | None) -> None:
    assert COMPOSER.compose([f"scope={scope}"]).balance_bsz == size


def test_a_key_wins_over_a_preset_wherever_it_stands() -> None:
    for overrides in (["model=smoke", "model.top_k=1"], ["model.top_k=1", "model=smoke"]):
        model = COMPOSER.compose(overrides).model
        assert (model.d_model, model.top_k) == (32, 1)


def test_a_config_survives_yaml_and_dict(tmp_path: Path) -> None:
    config = COMPOSER.compose(
        [
            *("scope=shuffled", "optim.lr=1e-7", "data=folder"),
            *("data.path='a: [b] #é'", "data.domains=[a,2]"),
        ]
    )
    assert from_dict(to_dict(config)) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert COMPOSER.compose(base=tmp_path / "config.yaml") == config


def test_the_order_of_domains_is_no_choice() -> None:
    """Else two runs of one identity would see other batches."""
    one, other = (COMPOSER.compose([f"data.domains={names}"]) for names in ("[b,a,c]", "[c,b,a]"))
    assert one == other
    assert one.data.domains == ["a", "b", "c"]
    assert from_dict(to_dict(one) | {"data": {"domains": ["b", "a"]}}).data.domains == ["a", "b"]


def test_two_configs_share_nothing_that_could_be_changed() -> None:
    one, other = COMPOSER.compose(), COMPOSER.compose()
    one.model.top_k = 9
    assert other.model.top_k == COMPOSER.compose().model.top_k == 2


# Experiments and overlays

EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: small
scope: micro
seed: 7
train: {steps: 3}
optim: {lr: 1e-4}
"""


def test_an_experiment_may_set_anything(overlay: Overlay) -> None:
    config = overlay({"experiment/x.yaml": EXPERIMENT}).compose(["experiment=x"])
    assert (config.scope, config.balance_bsz, config.seed) == ("micro", 4, 7)
    assert (config.model.d_model, config.train.steps, config.optim.lr) == (256, 3, 1e-4)
    assert config.global_bsz == 128


@pytest.mark.parametrize("last", [True, False])
def test_what_is_typed_wins_over_an_experiment(overlay: Overlay, last: bool) -> None:
    typed = ["scope=shuffled", "model=smoke", "seed=1", "optim.lr=1"]
    overrides = [*typed, "experiment=x"] if last else ["experiment=x", *typed]
    config = overlay({"experiment/x.yaml": EXPERIMENT}).compose(overrides)
    assert (config.scope, config.balance_bsz, config.seed) == ("shuffled", 128, 1)
    assert (config.model.d_model, config.train.steps, config.optim.lr) == (32, 3, 1.0)


def test_a_typed_preset_wins_over_the_keys_of_an_experiment(overlay: Overlay) -> None:
    composer = overlay(
        {"experiment/x.yaml": "# @package _global_\nmodel: {top_k: 1, num_shared_experts: 1}\n"}
    )
    model = composer.compose(["experiment=x", "model=small"]).model
    assert (model.top_k, model.num_shared_experts) == (4, 1)
    assert composer.compose(["experiment=x"]).model.top_k == 1


def test_no_experiment_can_be_asked_for() -> None:
    assert COMPOSER.compose(["experiment=null"]) == COMPOSER.compose()


def test_an_overlay_adds_presets_to_every_group_and_studies(overlay: Overlay) -> None:
    composer = overlay(
        {
            "model/mine.yaml": "d_model: 64\n",
            "optim/v1.5.yaml": "lr: 0.5\n",
            "scope/mine.yaml": "# @package _global_\nscope: global\nbalance_bsz: ${micro_bsz}\n",
            "study/mine.yaml": "arms: [scope=micro, scope=mine]\nbaseline: micro\n",
        }
    )
    config = composer.compose(["model=mine", "optim=v1.5", "scope=mine", "micro_bsz=8"])
    assert (config.model.d_model, config.model.num_experts, config.optim.lr) == (64, 16, 0.5)
    assert config.balance_bsz == 4, "a preset is read before what is typed"
    assert composer.study("mine").arms == ["scope=micro", "scope=mine"]
    assert "demo" in composer.choices("study")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("model: {top_k: 2}", "model=it: model.model: Key 'model' not in 'ModelConfig'; correct"),
        ("topk: 2", "model=it: model.topk: Key 'topk' not in 'ModelConfig'; correct the preset"),
        ("top_k: two", "model=it: model.top_k: Value 'two' of type 'str' could not be converted "),
        ("top_k: [", "model=it: expected the node content, but found '<stream end>' in line 1"),
        ("top_k: ${nope}", "model=it: model.top_k: Interpolation key 'nope' not found"),
        ("_target_: os.system", "model=it: model._target_: Key '_target_' not in 'ModelConfig'"),
        ("- 1", "model=it: "),
        ("5", "model=it: Invalid loaded object type: int; correct the preset"),
        ("defaults: [it]", "model=it: includes itself; correct the preset"),
        ("a: 1\na: 2", "model=it: found duplicate key a in line 2; correct the preset"),
        ("a\0b", "model=it: unacceptable character #x0000: special characters are not allowed; "),
        ("top_k: .inf", "model=it: model.top_k: Value 'inf' of type 'float' could not be conv"),
        ("defaults: [../../x]", "model=it: In 'model/it': Could not load 'model/../../x'; correct"),
        ("a: !!python/object/apply:os.getcwd []", "model=it: could not determine a constructor "),
        ("defaults: [nope]", "model=it: In 'model/it': Could not load 'model/nope'; correct the"),
    ],
)
def test_a_broken_preset_is_named(overlay: Overlay, text: str, error: str) -> None:
    assert refused(overlay({"model/it.yaml": text}), "model=it").startswith(error)


@pytest.mark.parametrize(
    "text",
    [
        "top_k: ${oc.env:MOEBENCH_TEST_SECRET}",
        "top_k: '${oc.decode:${oc.env:MOEBENCH_TEST_SECRET}}'",
        'top_k: "\\x24{oc.env:MOEBENCH_TEST_SECRET}"',
        "top_k: $${top_k}{oc.env:MOEBENCH_TEST_SECRET}",
        "'${oc.env:MOEBENCH_TEST_SECRET}': 1",
        "defaults: ['${oc.env:MOEBENCH_TEST_SECRET}']",
        "defaults: [/other/it]",
        "top_k: ${hydra:runtime.cwd}",
    ],
)
def test_a_preset_reads_nothing_but_keys(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MOEBENCH_TEST_SECRET", "hunter2")
    other = "# @package _global_\ndata: {name: '${oc.env:MOEBENCH_TEST_SECRET}'}\n"
    with pytest.raises(ConfigError) as caught:
        overlay({"model/it.yaml": text, "other/it.yaml": other}).compose(["model=it"])
    line = str(caught.value)
    assert "has an interpolation of something else than a key" in line
    assert "hunter2" not in line
    assert "\n" not in line


def test_a_preset_is_no_link_out_of_its_folder(overlay: Overlay, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("top_k: 1\n")
    root = overlay({"model/it.yaml": ""}).roots[1]
    (root / "model" / "linked.yaml").symlink_to(root / "model" / "it.yaml")
    Composer(root)  # within the folder
    (root / "model" / "out.yaml").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"out\.yaml is a link out of the folder; copy the file"):
        Composer(root)


def test_a_preset_that_builds_on_another_wins_over_it(overlay: Overlay) -> None:
    files = {"model/it.yaml": "defaults: [small]\ntop_k: 1\n"}
    model = overlay(files).compose(["model=it"]).model
    assert (model.d_model, model.top_k) == (256, 1)


def test_an_empty_preset_changes_nothing(overlay: Overlay) -> None:
    assert overlay({"model/it.yaml": ""}).compose(["model=it"]).model.d_model == 128


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("arms: scope=micro", "study=it: study.arms=scope=micro: must be a list, as in [a,b]"),
        ("arm: [scope=micro]", "study=it: study.arm=['scope=micro']: no such key; did you mean "),
        ("arms: [scope=micro]\nsizes: {cpu: 1}", "study=it: study.sizes={'cpu': 1}: must be a ta"),
        ("arms: [modle=x]", "study=it: modle=x: no such key; did you mean model?"),
        ("arms: [scope=micro]\noverrides: [5]", "study=it: 5: is neither an option nor an overr"),
        ("arms: [scope=micro]\noverrides: [seed=0, seed=1]", "study=it: seed: is set twice (seed="),
        ("arms: [scope=micro]\nsizes: {cpu: [sede=0]}", "study=it: sede=0: no such key; did you "),
        ("arms: []", "study.arms=[]: is empty; give at least one"),
        ("", "study.arms=[]: is empty; give at least one"),
        (
            "arms: ['scope=\"micro']",
            'study.arms=scope="micro: does not parse (No closing quotation); correct study=it',
        ),
        ("arms: [", "study=it: expected the node content, but found '<stream end>' in line 1; "),
    ],
)
def test_a_broken_study_is_named(overlay: Overlay, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overlay({"study/it.yaml": text}).study("it")
    assert str(caught.value).startswith(error)


# A record's config


def test_a_records_config_is_started_from(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(COMPOSER.compose(["scope=micro", "seed=3", "model=small"])))
    config = COMPOSER.compose(["scope=shuffled", "optim.lr=0.5"], base=path)
    assert (config.scope, config.balance_bsz, config.seed) == ("shuffled", 128, 3)
    assert (config.model.d_model, config.optim.lr) == (256, 0.5)


def test_an_experiment_goes_over_a_records_config_and_under_what_is_typed(
    tmp_path: Path, overlay: Overlay
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(COMPOSER.compose(["seed=3"])))
    composer = overlay({"experiment/x.yaml": "# @package _global_\nseed: 7\nscope: micro\n"})
    config = composer.compose(["scope=none", "experiment=x"], base=path)
    assert (config.seed, config.scope) == (7, "none")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "cannot be used (holds no config); name a run's config.yaml"),
        ("5", "cannot be used ("),
        ("[1, 2]", "cannot be used (holds no config); "),
        ("a: [", "cannot be used (did not find expected node content in line 2)"),
        ("seed: 1\nseed: 2", "cannot be used (found duplicate key seed in line 2)"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be used (could not determine a constru"),
        ("a: &a [1]\nb: [*a, *a]", "cannot be used (has a YAML alias, which no config needs)"),
        ("model: {topk: 2}", "model.topk=2: no such key; did you mean model.top_k?"),
        ("model: {top_k: two}", "model.top_k=two: must be a whole number, written out"),
        ("model: 3", "model=3: no such key"),
        ("seed: null", "seed=None: must be a whole number"),
        ("data: {domains: [[a]]}", "data.domains=[['a']]: must be a list, as in [a,b], or null"),
        ("seed: ${oc.env:HOME}", "seed=${oc.env:HOME}: must be a whole number"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert refused(COMPOSER, base=path).startswith(f"--config {path}: {error}")


def test_a_config_file_resolves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('data: {source: folder, path: "${oc.env:HOME}"}')
    assert COMPOSER.compose(base=path).data.path == str(Path("${oc.env:HOME}").absolute())


def test_paths_of_a_config_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its record would mean another text in another folder."""
    (tmp_path / "a b" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a b")
    folder = COMPOSER.compose(["data=folder", "data.path=../x", "data.tokenizer=tok.json"]).data
    assert folder.path == f"{tmp_path}/x"
    assert folder.tokenizer == f"{tmp_path}/a b/tok.json"
    for name, recorded in (("set", f"{tmp_path}/a b/set"), ("org/set", "org/set")):
        data = COMPOSER.compose(["data=huggingface", f"data.name={name}"]).data
        assert (data.name, data.tokenizer) == (recorded, "bytes")
    entries = 'data.sources=["folder path=text domains=[a]","synthetic num_domains=2"]'
    mixture = COMPOSER.compose(["data=mixture", entries]).data
    assert mixture.sources[1] == "synthetic num_domains=2"
    assert [source.path for source in sources_of(mixture)] == [f"{tmp_path}/a b/text", None]
    base = tmp_path / "config.yaml"
    base.write_text(to_yaml(COMPOSER.compose(["data=mixture", entries])))
    monkeypatch.chdir(tmp_path)
    assert COMPOSER.compose(base=base).data == mixture


def test_a_config_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    assert refused(COMPOSER, base=tmp_path).endswith("(Is a directory); name a run's config.yaml")
    (tmp_path / "x").write_bytes(b"\xff")
    assert refused(COMPOSER, base=tmp_path / "x").startswith(f"--config {tmp_path / 'x'}: cannot")


def test_a_grid_is_composed_from_few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    composer = Composer()
    composer.compose(["model=smoke", "scope=micro"])
    monkeypatch.setattr("moebench.config.compose.hydra_compose", None)  # none from here on
    for job in composer.expand(["model=smoke", "scope=micro", "seed=range(0,50)"]):
        assert composer.compose(job).scope == "micro"


def test_the_schema_is_what_a_composed_config_is() -> None:
    assert isinstance(COMPOSER.compose(), ExperimentConfig)
    with pytest.raises(ConfigError, match=r"model\.top_k=x: must be a whole number"):
        from_dict({"model": {"top_k": "x"}})
    with pytest.raises(ConfigError, match="nope=1: no such key"):
        from_dict({"nope": 1})
