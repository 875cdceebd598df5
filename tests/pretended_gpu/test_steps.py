"""Steps on the pretended GPU: they agree with those of the CPU, and the host never waits."""

from dataclasses import replace

import pytest
import torch

from moebench.errors import TrainingError
from moebench.train.stack import GradientRequest, Stack
from tests.pretended_gpu.conftest import MadeRun, step
from tests.pretended_gpu.gpu import Gpu

pytestmark = pytest.mark.gpu
WORDS = [
    *("scope=micro", "scope=shuffled", "scope=domain", "scope=sequence", "scope=global"),
    *("run.device_bsz=4", "balance.estimator=buffer balance.pass_bsz=4", "balance.window_steps=2"),
    *("balance.estimator=ema", "router=topk_softmax method=bias", "router=grouped method=bias"),
    *("router=sparsemax router.form=mlp", "router=noisy router.jitter=0.1", "router=cosine"),
    *("router=random", "router=capacity", "router=growing", "router=pruning router.prune_every=1"),
    *("router=relu method=remoe", "router=hash scope=none", "router=sequence_hash scope=none"),
    *("method=quantile", "method=expert_choice", "method=load_error", "method=simbal"),
    *("method=orthogonality", "method=specialize", "method=snippet", "method=sinkhorn"),
    *("model.moe=false", "model.num_shared_experts=1", "data.mask_documents=true"),
]


@pytest.mark.parametrize("words", WORDS)
def test_two_steps_agree_with_those_of_the_cpu(made: MadeRun, gpu: Gpu, words: str) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        run = made(device, words, "train.precision=fp32", "run.threads=1")
        step(run)
        step(run)
        weights.append({name: each.cpu() for name, each in run.state.model.state_dict().items()})
    on_cpu, on_gpu = weights
    for name, value in on_cpu.items():
        assert (on_gpu[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("words", WORDS)
def test_no_logged_step_waits(made: MadeRun, gpu: Gpu, words: str) -> None:
    run = made("cuda", words, "train.precision=bf16", "model.d_model=64")
    step(run)  # the first one makes state
    gpu.forget()
    step(run)
    if words == "method=sinkhorn":  # asks after some iterations whether all groups are done
        assert {place.split(":")[0] for place in gpu.waits} == {"balance/assignment.py"}
    else:
        assert not gpu.waits
    assert not gpu.unordered, "sums have a fixed order"


def test_runs_of_the_same_data_keep_one_copy_of_it(made: MadeRun, gpu: Gpu) -> None:
    first = made("cuda")
    before = gpu.memory.live
    second = made("cuda", "seed=1")
    size = sum(parameter.nbytes for parameter in second.state.model.parameters())
    corpus = sum(first.corpus.train(domain).nbytes for domain in first.corpus.domains)
    assert size <= gpu.memory.live - before < size + corpus


@pytest.mark.parametrize("words", ["", "run.device_bsz=4 scope=shuffled", "method=bias"])
def test_arms_of_a_stack_agree_with_each_alone_on_the_cpu(
    made: MadeRun, gpu: Gpu, words: str
) -> None:
    seeds, arms = (0, 1, 2), [made("cuda", words, f"seed={seed}") for seed in (0, 1, 2)]
    arms[1].config = replace(arms[1].config, optim=replace(arms[1].config.optim, clip=0.1))
    stack = Stack([run.state.model for run in arms])
    for _ in range(2):
        requests = [GradientRequest(run, run.next_step()) for run in arms]
        outcomes = stack.update(requests, stack.gradients(requests))
        for request, outcome in zip(requests, outcomes, strict=True):
            assert outcome.norm is not None
            request.run.finish(request.step, outcome)
    for seed, of_stack in zip(seeds, arms, strict=True):
        alone = made("cpu", words, f"seed={seed}", f"optim.clip={0.1 if seed == 1 else 1.0}")
        step(alone)
        step(alone)
        for name, value in alone.state.model.state_dict().items():
            found = of_stack.state.model.state_dict()[name].cpu()
            assert (found - value).norm() <= 1e-4 * value.norm(), name


def test_an_arm_that_is_not_finite_leaves_the_others_as_they_are(made: MadeRun, gpu: Gpu) -> None:
    arms = [made("cuda", f"seed={seed}") for seed in (0, 1)]
    stack = Stack([run.state.model for run in arms])
    with torch.no_grad():
        arms[0].state.model.head.fill_(float("nan"))
    before = [run.state.model.embedding.clone() for run in arms]
    requests = [GradientRequest(run, run.next_step()) for run in arms]
    outcomes = stack.update(requests, stack.gradients(requests))
    for request, outcome in zip(requests, outcomes, strict=True):
        request.run.finish(request.step, outcome)
    changed = [
        bool((run.state.model.embedding != was).any())
        for run, was in zip(arms, before, strict=True)
    ]
    assert changed == [False, True]
    with pytest.raises(TrainingError, match="step 1"):
        arms[0].finite.check()
    arms[1].finite.check()
