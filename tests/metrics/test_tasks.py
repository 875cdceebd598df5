"""Accuracies, intervals and cloze questions, by hand."""

import numpy as np
import pytest

from moebench.metrics.tasks import accuracy, by_group, cloze, won

END = 255


def test_wilson_interval_of_a_textbook_case() -> None:
    found = accuracy([1] * 8 + [0] * 2, 0.5)
    assert (found.accuracy, found.n, found.chance) == (0.8, 10, 0.5)
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)
    assert accuracy([1], 0.5).high == 1


def test_interval_holds_the_truth_in_95_of_100() -> None:
    draw = np.random.default_rng(0)
    found = [accuracy(draw.random(60) < 0.7, 0.5) for _ in range(1000)]
    assert np.mean([each.low <= 0.7 <= each.high for each in found]) == pytest.approx(
        0.95, abs=0.02
    )


def test_the_first_candidate_wins_alone_or_shares_a_tie() -> None:
    assert won([[-1, -2], [-2, -1], [-1, -1]]).tolist() == [1, 0, 0.5]
    assert won([[0, 0, 0, -1]]).tolist() == pytest.approx([1 / 3])


def test_guessing_has_the_chance_level() -> None:
    scores = np.random.default_rng(0).random((4000, 4))
    assert accuracy(won(scores), 0.25).low < 0.25 < accuracy(won(scores), 0.25).high


def test_groups_are_by_name() -> None:
    found = by_group([1, 0, 1], ["b", "a", "b"], 0.5)
    assert [(name, each["accuracy"], each["n"]) for name, each in found.items()] == [
        ("a", 0.0, 1),
        ("b", 1.0, 2),
    ]


def made(seed: int = 0, questions: int = 50) -> list:
    draw = np.random.default_rng(1)
    streams = []
    for name in ("one", "two"):
        stream = draw.integers(0, 200, 3000).astype(np.uint8)
        stream[::97] = END
        streams.append((name, stream))
    return [
        streams,
        cloze(streams, end=END, questions=questions, context=20, length=8, seed=seed),
    ]


def test_cloze_continues_the_text_and_distractors_are_of_the_same_domain() -> None:
    streams, questions = made()
    text = dict(streams)
    assert len(questions) == 100
    for each in questions:
        whole = text[each.domain].astype(np.int64).tobytes()
        joined = np.concatenate([each.context, each.candidates[0]]).tobytes()
        assert joined in whole
        for other in each.candidates[1:]:
            assert other.tobytes() in whole
            assert not np.array_equal(other, each.candidates[0])
            assert np.concatenate([each.context, other]).tobytes() not in whole
        assert len(each.candidates) == 4
        assert not any((other == END).any() for other in each.candidates)


def test_cloze_is_seeded_and_true_continuations_do_not_repeat() -> None:
    keys = [[q.candidates[0].tobytes() for q in made(seed)[1]] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert len(set(keys[0])) == len(keys[0])


def test_cloze_of_text_too_short_or_all_alike_has_no_questions() -> None:
    streams = [("short", np.zeros(30, np.int64)), ("alike", np.zeros(3000, np.int64))]
    assert cloze(streams, end=END, questions=5, context=20, length=8) == []
