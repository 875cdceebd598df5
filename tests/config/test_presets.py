"""Which presets there are, and what an overlay may be: it adds, and shadows nothing."""

import os
from pathlib import Path

import pytest

from moebench.config.presets import Presets, opening, shipped_conf
from moebench.errors import ConfigError

SHIPPED = Presets()
BOMB = "a: &a [1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """A folder with one preset."""
    path = tmp_path / "mine" / "model" / "good.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("d_model: 64\n")
    return tmp_path / "mine"


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Presets(path)
    text = str(caught.value)
    assert text.startswith(f"--config-dir {path}: ")
    assert "\n" not in text
    return text.removeprefix(f"--config-dir {path}: ")


def test_where_conf_is() -> None:
    assert (shipped_conf() / "config.yaml").is_file()


def test_groups_come_from_the_defaults_list_and_not_from_folders() -> None:
    assert set(SHIPPED.groups) >= {"model", "scope", "loss", "data", "optim", "experiment"}
    assert "study" not in SHIPPED.groups


def test_a_preset_is_a_visible_file_directly_in_its_group(overlay: Path) -> None:
    group = overlay / "model"
    (group / "folder.yaml").mkdir()
    (group / "deep").mkdir()
    (group / "deep" / "x.yaml").touch()
    (group / ".#good.yaml").symlink_to("user@host.1234:5678")  # as Emacs leaves it while it edits
    (group / "gone.yaml").symlink_to("nowhere")
    (group / "linked.yaml").symlink_to("good.yaml")
    os.mkfifo(group / "pipe.yaml")
    found = Presets(overlay)
    assert found.choices("model") == sorted([*SHIPPED.choices("model"), "good", "linked"])
    assert found.choices("scope") == SHIPPED.choices("scope")
    assert found.path("model", "good") == group / "good.yaml"
    assert found.path("model", "tiny") == shipped_conf() / "model" / "tiny.yaml"


@pytest.mark.parametrize(
    "name", ["model/tiny.yaml", "config.yaml", "schema.yaml", "study/demo.yaml"]
)
def test_an_overlay_shadows_nothing(overlay: Path, name: str) -> None:
    (overlay / "study").mkdir()
    (overlay / name).touch()
    assert refused(overlay) == f"{name} would shadow the shipped preset; rename it"


def test_an_overlay_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none"):
        assert refused(path) == "is not a folder; name one with presets"


def test_an_overlay_without_presets_says_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.yaml").touch()
    assert refused(tmp_path) == (
        "holds no presets; put each in a folder of its group, as in "
        f"{tmp_path / 'model' / 'mine.yaml'}"
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (BOMB.encode(), "has a YAML alias, which no config needs"),
        (b"[" * 5000, "is nested too deeply"),
        (b"#" * 2**19, "is larger than 64 KiB"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_yaml_that_is_unsafe_to_read_is_refused_unread(
    overlay: Path, content: bytes, error: str
) -> None:
    (overlay / "model" / "it.yaml").write_bytes(content)
    assert refused(overlay) == f"model/it.yaml {error}; correct the preset"


def test_a_file_that_a_preset_includes_is_checked_too(overlay: Path) -> None:
    (overlay / "more").mkdir()
    included = overlay / "more" / "it.yaml"
    included.write_text("defaults: ['/model/${oc.env:HOME}']\n")
    Presets(overlay)  # no preset includes anything
    (overlay / "model" / "it.yaml").write_text("defaults: [/more/it, _self_]\n")
    assert refused(overlay).startswith("more/it.yaml has an interpolation of something else")
    included.unlink()
    included.symlink_to("/etc/hostname")
    assert refused(overlay).startswith("more/it.yaml is a link out of the folder")


def test_no_spelling_hides_what_a_preset_includes_or_interpolates(overlay: Path) -> None:
    (overlay / "more").mkdir()
    (overlay / "more" / "it.yaml").write_text("top_k: ${oc.env:HOME}\n")
    preset = overlay / "model" / "it.yaml"
    preset.write_text('"\\x64efaults": [/more/it, _self_]\n')
    assert refused(overlay).startswith("more/it.yaml has an interpolation of something else")
    preset.write_text("%SOME directive\n---\ntop_k: ${oc.env:HOME}\n")  # libyaml refuses it
    assert refused(overlay).startswith("model/it.yaml has an interpolation of something else")


def test_yaml_that_is_merely_broken_hinders_no_other_preset(overlay: Path) -> None:
    (overlay / "model" / "it.yaml").write_text("top_k: [")
    assert "it" in Presets(overlay).choices("model")


def test_an_overlay_is_not_searched_where_no_preset_can_be(overlay: Path) -> None:
    """So that a home folder or a disk named by mistake is not walked through."""
    (overlay / "elsewhere").mkdir()
    (overlay / "elsewhere" / "it.yaml").write_bytes(b"\xff")
    Presets(overlay)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "# @package _global_\n# One, of 2.5 and\n# more. Two.\nkey: 1\n# Three.\n",
            "One, of 2.5 and more.",
        ),
        ("# Which? That.\n", "Which?"),
        ("# No end\nkey: 1\n", "No end"),
        ("key: 1\n", ""),
    ],
)
def test_a_preset_opens_with_a_sentence(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / "it.yaml").write_text(file)
    assert opening(tmp_path / "it.yaml") == said
