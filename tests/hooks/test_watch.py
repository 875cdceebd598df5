"""The routing of Hugging Face models: what their experts computed, in every family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebench.errors import ConfigError
from moebench.hooks.watch import Watch
from moebench.inspect.hf_checkpoint import route, without_unknown
from moebench.inspect.hf_loading import Checkpoint, language_model
from tests.hooks.families import Computed, build, families, save

TOKENS = (2, 12)
# correction biases, groups, hash tables, sigmoids, skipped and zero experts, experts of attention
SOME = (
    *("afmoe", "dbrx", "deepseek_v3", "deepseek_v4", "doge", "ernie4_5_moe", "gemma4_text"),
    *("glm4_moe", "gpt_oss", "inkling_text", "jetmoe", "kolibri1", "lfm2_moe", "llama4_text"),
    *("longcat_flash", "minimax_m2", "mixtral", "phimoe", "qwen3_moe", "zaya"),
)
# their weights are no function of one router's logits alone
NO_GATE = {"doge", "phimoe", "zaya"}
# what cannot be inspected, and how it is said
REFUSED = {
    "diffusion_gemma": "sees 16 of 24 tokens",
    "qwen3_omni_moe": "cannot read text",
}


def check(family: str) -> None:
    """Assert that what is counted is what the experts of a tiny model computed."""
    model = build(family)
    torch.manual_seed(0)
    ids = torch.randint(3, 60, TOKENS)
    with torch.no_grad(), Computed(model) as computed, Watch(model, ids.numel()) as watch:
        model(input_ids=ids, use_cache=False)
    assert watch.layers, "no layer"
    assert not watch.missed()
    none = 0
    for layer in watch.layers:
        told = torch.bincount(layer.index.flatten(), minlength=layer.experts).tolist()
        assert sum(told) == ids.numel() * layer.index.shape[-1]
        rows = computed.of_layer(layer.name)
        assert rows, layer.name
        real = min(layer.experts, *map(len, rows.values()))  # the others compute nothing
        for name, each in rows.items():
            assert each[:real] == told[:real], name
            assert not any(each[layer.experts :]), name
        skipped = torch.bincount(layer.index[layer.weights == 0], minlength=layer.experts)
        routing = layer.routing(len(ids))
        counted = routing.counts.sum((0, 1)) + skipped
        assert counted.tolist() == told
        none += int(skipped.sum())
        assert (layer.gate() is None) == (family in NO_GATE), "gate"
        if family not in NO_GATE:
            assert routing.prob_mass.sum(-1).flatten().tolist() == pytest.approx([12, 12], rel=1e-4)
    assert (none > 0) == (family == "zaya"), f"{none} of weight 0"
    claimed = tuple(layer.name.rpartition(".")[0] for layer in watch.layers)
    stacked = [name for name, each in model.named_parameters() if each.dim() == 3]
    for name in set(stacked) & set(computed.rows):
        assert name.startswith(claimed) or "shared" in name, name


def check_loaded(family: str, folder: Path) -> None:
    """Assert that a saved checkpoint is loaded, with the routing of the model."""
    model, tokens = build(family), torch.randint(3, 60, (2, 13))
    loaded = Checkpoint.open(save(model, folder)).model()
    names = [name for name, _ in loaded.named_buffers() if name.endswith("balancing_biases")]
    for name in names:  # transformers 5.23 sets the bias against skipping when it loads Zaya
        loaded.get_buffer(name).copy_(model.get_buffer(name))
    found, expected = (route(each, tokens, family)[1].counts for each in (loaded, model))
    assert torch.equal(found, expected), "loaded"


@pytest.mark.parametrize("family", SOME)
def test_what_is_counted_is_what_each_expert_computed(family: str) -> None:
    pytest.importorskip("transformers")
    check(family)


@pytest.mark.slow
def test_every_family_that_transformers_has(tmp_path: Path) -> None:
    """A new family is met here: it is right, or its reason stands in `REFUSED`."""
    transformers = pytest.importorskip("transformers")
    wrong: dict[str, str] = {}
    for family in families():
        try:
            if language_model(transformers.CONFIG_MAPPING[family], transformers) is None:
                (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
                with pytest.raises(ConfigError, match="predicts no next token"):
                    Checkpoint.open(tmp_path)
            elif family in REFUSED:
                with pytest.raises(ConfigError, match=REFUSED[family]):
                    route(build(family), torch.randint(3, 60, (2, 13)), family)
            else:
                check(family)
                check_loaded(family, tmp_path / family)
        except (Exception, pytest.fail.Exception) as error:
            wrong[family] = f"{type(error).__name__}: {error}"[:500]
    assert not wrong
    assert len(families()) > 100


@pytest.mark.parametrize(
    ("family", "function"),
    [
        ("mixtral", lambda logits: logits.softmax(-1)),
        ("glm4_moe", torch.sigmoid),
        ("deepseek_v4", lambda logits: F.softplus(logits).sqrt()),
        ("gemma4_text", lambda probs: probs),
        ("llama4_text", torch.sigmoid),
    ],
)
def test_probabilities_are_of_the_gate_that_the_model_uses(
    family: str, function: Callable[[Tensor], Tensor]
) -> None:
    pytest.importorskip("transformers")
    model = build(family)
    seen: list[Tensor] = []
    for name, each in model.named_modules():
        if name.endswith((".gate", ".router")):
            at = 1 if family == "llama4_text" else 0
            each.register_forward_hook(lambda *call, at=at: seen.append(call[2][at]))
    with torch.no_grad(), Watch(model, 24) as watch:
        model(input_ids=torch.randint(3, 60, TOKENS), use_cache=False)
    assert len(seen) == len(watch.layers) > 0
    for layer, given in zip(watch.layers, seen, strict=True):
        values = function(given.float()).view(2, 12, -1)
        expected = (values / values.sum(-1, keepdim=True)).sum(1)
        assert torch.allclose(layer.routing(2).prob_mass[0], expected, rtol=1e-4)


def test_a_skipped_expert_counts_nowhere() -> None:
    """Zaya lets a token skip the experts: its router then gives weight 0 to expert 0."""
    pytest.importorskip("transformers")
    model = build("zaya")
    tokens = torch.randint(3, 60, (2, 13))
    with torch.no_grad(), Watch(model, 24) as watch:
        model(input_ids=tokens[:, :-1], use_cache=False)
    skipped = [int((each.weights == 0).sum()) for each in watch.layers]
    _, routing, _ = route(model, tokens, "zaya")
    assert (24 - routing.counts.sum((1, 2))).tolist() == skipped
    _, notes = without_unknown(routing)
    assert notes[0].startswith(f"{sum(skipped) / 72:.2%} of the assignments have weight 0")


def test_an_unknown_way_to_call_experts_is_said() -> None:
    """Experts that ran, and were told nothing."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 4, 4))

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden @ self.weight[0]

    model = nn.ModuleDict({"experts": Experts()})
    with Watch(model, 6) as watch:
        model["experts"](torch.ones(6, 4))
    assert (watch.layers, watch.missed()) == ([], ["experts"])
