"""Balance in other trainers: the gradient of a step is that of one big batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moebench.balance import Domain, Global, Micro, Shuffled
from moebench.errors import ConfigError
from moebench.hooks import Balancer, balance_trainer
from tests.hooks.families import build
from tests.processes import on_ranks

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "qwen3_moe": lambda logits: logits.softmax(-1),
    "olmoe": lambda logits: logits.softmax(-1),
    "mixtral": lambda logits: logits.softmax(-1),
    "deepseek_v3": lambda logits: logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True),
}
WEIGHT, TOP_K, EXPERTS = 0.5, 2, 8


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("transformers")


def made(family: str) -> Any:
    """A tiny model in double precision, with its own balance loss switched on."""
    torch.manual_seed(0)
    model: Any = build(family, output_router_logits=True).double().train()
    model.set_experts_implementation("eager")  # which knows double precision
    return model


def text() -> tuple[Tensor, Tensor]:
    """[12, 10] tokens, and which of them are no padding."""
    torch.manual_seed(1)
    tokens = torch.randint(3, 60, (12, 10))
    length = torch.tensor([10, 4, 7, 10, 10, 2, 9, 10, 3, 10, 10, 6])
    return tokens, torch.arange(10) < length[:, None]


def batches_of(sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    tokens, mask = text()
    parts = zip(tokens.split(list(sizes)), mask.split(list(sizes)), strict=True)
    return [{"input_ids": ids, "attention_mask": real.long()} for ids, real in parts]


def task_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A part of the mean cross-entropy of the whole text."""
    _, mask = text()
    logits, real = model(**batch).logits[:, :-1], batch["attention_mask"][:, 1:].bool()
    return F.cross_entropy(logits[real], batch["input_ids"][:, 1:][real], reduction="sum") / int(
        mask[:, 1:].sum()
    )


@contextmanager
def logits_of(model: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, result: seen.append(result[0] if isinstance(result, tuple) else result)
        )
        for name, module in model.named_modules()
        if name.endswith((".gate", ".router"))
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def expected(family: str, groups: Sequence[int] = (12,)) -> dict[str, Tensor]:
    """The gradient of one big batch, whose f counts so many sequences each: from the definition."""
    model, (batch,), mask = made(family), batches_of([12]), text()[1]
    for owner in (model, model.config):
        if hasattr(owner, "router_aux_loss_coef"):
            owner.router_aux_loss_coef = 0.0
    with logits_of(model) as seen:
        loss = task_loss(model, batch)
    for logits in seen:
        probs = GATES[family](logits).view(12, 10, EXPERTS)
        for rows, real in zip(probs.split(list(groups)), mask.split(list(groups)), strict=True):
            p = rows[real]
            chosen = p.topk(TOP_K, dim=-1).indices.flatten()
            f = torch.bincount(chosen, minlength=EXPERTS) / len(chosen)
            part = EXPERTS * (f * p.sum(0)).sum() / mask.sum()
            loss = loss + WEIGHT / len(seen) * part
    loss.backward()
    return gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_equal(given: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-12) -> None:
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (given[name] - value).norm() <= bound * value.norm(), name


def trained(model: nn.Module, balancer: Balancer, batches: list[dict[str, Tensor]]) -> None:
    balancer.begin(batches)
    for batch in batches:
        (task_loss(model, batch) / 7).mul(7).backward()


@pytest.mark.parametrize("family", GATES)
def test_any_accumulation_has_the_gradient_of_one_big_batch(family: str) -> None:
    wanted, model = expected(family), made(family)
    balancer = Balancer(model, weight=WEIGHT)
    for sizes in ([12], [6, 6], [4, 4, 4], [5, 1, 4, 2]):
        model.zero_grad()
        trained(model, balancer, batches_of(sizes))
        # the router of DeepSeek-V3 computes in single precision
        assert_equal(gradients(model), wanted, 1e-6 if family == "deepseek_v3" else 1e-12)
    assert {*balancer.counts().sum(1).tolist()} == {TOP_K * int(text()[1].sum())}
    assert 1 <= balancer.loss() < EXPERTS


def test_recomputed_layers_count_once() -> None:
    wanted, model = expected("qwen3_moe"), made("qwen3_moe")
    for estimator in ("exact", "buffer"):
        balancer = Balancer(model, weight=WEIGHT, estimator=estimator)
        results = []
        for reentrant in (None, False, True):
            model.activation_checkpointing_disable()
            if reentrant is not None:
                options = {"use_reentrant": reentrant}
                model.activation_checkpointing_enable(options)
                model.enable_input_require_grads()
            model.zero_grad()
            trained(model, balancer, batches_of([6, 6]))
            results.append((gradients(model), balancer.counts(), balancer.loss()))
        for grads, counts, loss in results:
            assert_equal(grads, wanted if estimator == "exact" else results[0][0])
            assert torch.equal(counts, results[0][1])
            assert loss == pytest.approx(results[0][2], rel=1e-12)
        balancer.remove()


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_may_be_recomputed_after_later_passes(reentrant: bool) -> None:
    """Two passes forward, one back, one forward, two back."""
    model, (first, second, third) = made("qwen3_moe"), batches_of([5, 4, 3])
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    balancer = Balancer(model, weight=WEIGHT)
    balancer.begin([first, second, third])
    losses = [task_loss(model, batch) for batch in (first, second)]
    losses[0].backward()
    losses.append(task_loss(model, third))
    (losses[1] + losses[2]).backward()
    assert_equal(gradients(model), expected("qwen3_moe"))


def test_a_balancer_that_was_removed_begins_again() -> None:
    model = made("mixtral")
    balancer = Balancer(model, weight=WEIGHT)
    balancer.begin(batches_of([12]))
    balancer.remove()
    trained(model, balancer, batches_of([12]))
    assert_equal(gradients(model), expected("mixtral"))


def test_the_buffer_counts_the_passes_so_far() -> None:
    model = made("olmoe")
    trained(model, Balancer(model, weight=WEIGHT, estimator="buffer"), batches_of([4, 4, 4]))
    by_prefix, mask, (batch,) = made("olmoe"), text()[1], batches_of([12])
    for owner in (by_prefix, by_prefix.config):
        owner.router_aux_loss_coef = 0.0
    with logits_of(by_prefix) as seen:
        loss = task_loss(by_prefix, batch)
    for logits in seen:
        probs = GATES["olmoe"](logits).view(12, 10, EXPERTS)
        for end in (4, 8, 12):
            chosen = probs[:end][mask[:end]].topk(TOP_K, dim=-1).indices.flatten()
            f = torch.bincount(chosen, minlength=EXPERTS) / len(chosen)
            mass = probs[end - 4 : end][mask[end - 4 : end]].sum(0)
            loss = loss + WEIGHT / len(seen) * EXPERTS * (f * mass).sum() / mask.sum()
    loss.backward()
    assert_equal(gradients(model), gradients(by_prefix))


def test_groups_within_a_pass_need_no_counting_pass() -> None:
    model, calls = made("mixtral"), []
    balancer = Balancer(model, Micro(4), weight=WEIGHT)
    balancer.begin(batches_of([12]))  # looks for the routers
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trained(model, balancer, batches_of([4, 8]))
    assert calls == [True, True]
    assert_equal(gradients(model), expected("mixtral", [4, 4, 4]))
    trained(model, balancer, batches_of([6, 6]))
    assert calls == [True, True, False, False, True, True]


def test_what_runs_between_the_passes_changes_nothing() -> None:
    model = made("qwen3_moe")
    own = model.config.router_aux_loss_coef, model.router_aux_loss_coef
    balancer, batches = Balancer(model, weight=WEIGHT), batches_of([6, 6])
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda _, __, out: F.dropout(out, 0.2))
    model.zero_grad()
    results = []
    for disturbed in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        balancer.begin(batches)
        for batch in batches:
            if disturbed:
                with torch.no_grad(), torch.random.fork_rng():
                    model(input_ids=torch.randint(3, 60, (2, 5)))
            task_loss(model, batch).backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0])
    with pytest.raises(ConfigError, match=r"pass 3 of a step of 2: call Balancer.begin"):
        model(**batches[0])
    balancer.remove()
    assert (model.config.router_aux_loss_coef, model.router_aux_loss_coef) == own
    model.zero_grad()
    model(**batches[0], labels=batches[0]["input_ids"]).loss.backward()  # its own loss again


class Dense(nn.Module):
    """A model without experts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ConfigError, match="estimator='prefix': must be 'exact' or 'buffer'"):
        Balancer(Dense(), weight=0.1, estimator="prefix")  # pyright: ignore
    with pytest.raises(ConfigError, match="Dense: does not say which tokens its experts get; use"):
        Balancer(Dense(), weight=0.1).begin([torch.randn(2, 10)])
    model = made("qwen3_moe")
    for scope, reason in (
        (Micro(5), "must divide the 12"),
        (Shuffled(4), "draws tokens of other ranks; use Global"),
        (Domain(), "Domain needs the domain of each sequence"),
    ):
        balancer = Balancer(model, scope, weight=0.1)
        with pytest.raises(ConfigError, match=reason):
            balancer.begin(batches_of([6, 6]))
        balancer.remove()
    balancer = Balancer(model, weight=0.1, estimator="buffer")
    with pytest.raises(ConfigError, match=r"passes of \[4, 8\] sequences: estimator='buffer'"):
        balancer.begin(batches_of([4, 8]))
    with pytest.raises(ConfigError, match="a step of no batches"):
        balancer.begin([])


def on_rank(family: str) -> tuple[dict[str, Tensor], float, Tensor, str]:
    """One rank's gradient, the loss and counts of all, and how unequal passes are refused."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = made(family)
    parallel = DistributedDataParallel(model)
    balancer = Balancer(parallel, weight=WEIGHT)
    mine = batches_of([5, 1, 4, 2])[2 * rank : 2 * rank + 2]
    balancer.begin(mine)
    with parallel.no_sync():
        (2 * task_loss(parallel, mine[0])).backward()  # DDP takes the mean over two ranks
    (2 * task_loss(parallel, mine[1])).backward()
    grads = gradients(model)
    loss, counts = balancer.loss(), balancer.counts()
    with pytest.raises(ConfigError) as refused:
        balancer.begin(mine[: 1 + rank])
    dist.destroy_process_group()
    return grads, loss, counts, str(refused.value)


def test_ranks_have_the_gradient_of_one_big_batch() -> None:
    one = made("qwen3_moe")
    balancer = Balancer(one, weight=WEIGHT)
    trained(one, balancer, batches_of([12]))
    for grads, loss, counts, refused in on_ranks(on_rank, 2, "qwen3_moe"):
        assert_equal(grads, expected("qwen3_moe"))
        assert loss == pytest.approx(balancer.loss(), rel=1e-12)
        assert torch.equal(counts, balancer.counts())
        assert refused.startswith("passes of the ranks [1, 2]: must be equally many")


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
def test_a_trainer_takes_the_step_of_one_big_batch(accumulation: int, tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    model, (whole,) = made("qwen3_moe"), batches_of([12])
    rows = [{name: value[i] for name, value in whole.items()} for i in range(12)]
    for row in rows:
        row["labels"] = row["input_ids"].where(row["attention_mask"].bool(), -100)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=12 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    balance_trainer(trainer, Global(), weight=WEIGHT)
    trainer.train()
    moved = {name: before[name] - each.detach() for name, each in model.named_parameters()}
    # the cross-entropy of transformers is in single precision
    assert_equal(moved, expected("qwen3_moe"), 1e-6)
