"""Expert thresholds: quantiles against sorting, averages against a loop, and no look ahead."""

import pytest
import torch
from torch import Tensor

from moebench.balance.threshold import Threshold, ThresholdState, upper_quantile
from moebench.errors import ConfigError
from moebench.model.router import Gating, Router, Selection

METHOD = Threshold(decay=0.5, top_k=2)
GATING = Gating("sigmoid", renormalize=False, threshold=True, observes=METHOD.observes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thresholds(method: Threshold, state: ThresholdState) -> Tensor:
    bias = method.steering(state).bias
    assert bias is not None
    return -bias


def router() -> Router:
    made = Router(6, 4, 2, GATING)
    made.weight.data = normal(4, 6, seed=1) + torch.tensor([[3.0], [0], [0], [-3]])
    return made


def experts(found: Selection) -> list[set[int]]:
    return [{e for e in token if e >= 0} for token in found.routing.expert_index[0, 0].tolist()]


def test_a_quantile_is_that_of_sorting() -> None:
    scores = normal(2, 50, 3)
    expected = scores.sort(1, descending=True).values[:, 50 * 2 // 3]
    assert upper_quantile(scores, 2).equal(expected)
    with pytest.raises(ConfigError, match="fewer than 3"):
        upper_quantile(scores, 3)


def test_thresholds_even_the_step_they_are_from() -> None:
    one, x = router(), normal(1, 8, 6)
    state = METHOD.begin(1, 4)
    first = one(x, METHOD.steering(state).layer(0), training=True)
    top = first.routing.scores[0, 0].topk(2).indices.tolist()
    assert experts(first) == [set(each) for each in top], "top-k before there is a threshold"
    assert first.routing.counts.flatten().tolist() != [4, 4, 4, 4]
    state = METHOD.update(state, first.routing)
    again = one(x, METHOD.steering(state).layer(0))
    assert again.routing.counts.flatten().tolist() == [4, 4, 4, 4]  # T k / E
    above = again.routing.scores[0, 0] > upper_quantile(first.routing.scores[0], 2)
    assert experts(again) == [set(row.nonzero().flatten().tolist()) for row in above]
    scores, weights = again.routing.scores[0, 0], again.weights[0]
    for token, row in enumerate(again.expert_index[0].tolist()):
        for slot, expert in enumerate(row):
            expected = scores[token, expert] if above[token, expert] else 0
            assert weights[token, slot] == expected
    assert len({len(each) for each in experts(again)}) > 1, "tokens differ in their experts"


def test_the_average_is_a_loop_corrected_for_its_start() -> None:
    state, total = METHOD.begin(2, 4), torch.zeros(2, 4)
    one = router()
    for number in range(1, 4):
        routing = one(normal(3, 5, 6, seed=number)).routing
        routing = routing._replace(scores=routing.scores.repeat(2, 1, 1, 1))
        state = METHOD.update(state, routing)
        total = 0.5 * total + 0.5 * upper_quantile(routing.scores.flatten(1, 2), 2)
        expected = total / (1 - 0.5**number)
        assert torch.allclose(thresholds(METHOD, state), expected)
    first = METHOD.update(METHOD.begin(1, 4), one(normal(1, 8, 6)).routing)
    slow = Threshold(decay=0.99).update(Threshold().begin(1, 4), one(normal(1, 8, 6)).routing)
    assert torch.allclose(thresholds(METHOD, first), thresholds(Threshold(), slow))


@pytest.mark.parametrize("training", [True, False])
def test_no_token_sees_another(training: bool) -> None:
    one = router()
    state = METHOD.update(METHOD.begin(1, 4), one(normal(1, 8, 6)).routing)
    steering = METHOD.steering(state).layer(0)
    x = normal(1, 8, 6, seed=5)
    whole = experts(one(x, steering, training=training))
    alone = [experts(one(x[:, t : t + 1], steering, training=training))[0] for t in range(8)]
    assert whole == alone
