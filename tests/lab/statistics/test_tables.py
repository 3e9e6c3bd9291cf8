import numpy as np
import pytest
import torch

from evenly.data.tasks import Classes, Numbers
from evenly.lab.statistics.tables import _ANEW, RESAMPLED, Answers, summary

SENTIMENT = "acc_2", "acc_2_nonzero", "acc_5", "acc_7", "f1", "f1_nonzero"
STREAM = np.random.default_rng(0)
COUNT = STREAM.integers(0, 3, 60)
"""How often each of 60 samples is drawn in a repeat."""
DRAWN = (COUNT / COUNT.sum()).astype(np.float32)[None]
ROWS = np.repeat(np.arange(60), COUNT)


def test_metrics_of_sentiment_in_repeats_are_those_of_the_samples_drawn():
    target = STREAM.choice(np.arange(-6, 7) / 2, (60, 1)).astype(np.float32)
    guess = (target + STREAM.normal(size=(2, 60, 1))).astype(np.float32)
    task = Numbers(("a",), scale="sentiment")
    assert set(SENTIMENT) < set(task.metrics)
    for name in SENTIMENT:
        found = _ANEW[name](DRAWN, guess, Answers(target, {}))
        assert found.shape == (1, 2)
        for value, one in zip(found[0], guess, strict=True):
            said, truth = torch.from_numpy(one[ROWS]), torch.from_numpy(target[ROWS])
            assert value == pytest.approx(task.measured(said, truth)[name], rel=1e-5)


def test_a_repeat_of_zeros_alone_tells_nothing_without_zeros():
    """Of two repeats, the first draws the one sample that is 0; in the second all are right."""
    drawn = np.array([[1, 0, 0], [0, 0.5, 0.5]], np.float32)
    target = np.array([[0.0], [1.0], [-1.0]], np.float32)
    for name in ("acc_2_nonzero", "f1_nonzero"):
        found = _ANEW[name](drawn, target[None], Answers(target, {}))
        assert found.tolist() == [[pytest.approx(np.nan, nan_ok=True)], [pytest.approx(1)]]


def test_balanced_accuracy_in_repeats_is_that_of_the_samples_drawn():
    target, guess = STREAM.integers(4, size=60), STREAM.integers(4, size=(2, 60))
    found = _ANEW["balanced_accuracy"](DRAWN, guess, Answers(target, {}))
    for value, one in zip(found[0], guess, strict=True):
        logits = torch.nn.functional.one_hot(torch.from_numpy(one[ROWS]), 4).float()
        measured = Classes(tuple("abcd")).measured(logits, torch.from_numpy(target[ROWS]))
        assert value == pytest.approx(measured["balanced_accuracy"], rel=1e-5)


def test_balanced_accuracy_counts_the_classes_drawn():
    """Class 0 is drawn twice and right, class 1 once and wrong, class 2 never: (1 + 0) / 2."""
    drawn = np.array([[2, 1, 0]], np.float32) / 3
    answers = Answers(np.array([0, 1, 2]), {})
    found = _ANEW["balanced_accuracy"](drawn, np.array([[0, 0, 0]]), answers)
    assert found[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["balanced_accuracy", *SENTIMENT])
def test_these_are_tested_over_seeds_and_samples(name):
    numbers = name in SENTIMENT
    target = np.resize([-2.0, -1.0, 1.0, 2.0] if numbers else [0, 1, 2, 3], 80)
    target = target[:, None].astype(np.float32) if numbers else target.astype(int)
    stream = np.random.default_rng(0)
    guess = {
        method: {
            seed: np.where(stream.random(target.shape) < right, target, target[::-1])
            for seed in range(3)
        }
        for method, right in (("joint", 0.6), ("a", 0.9))
    }
    even = np.full((1, 80), 1 / 80, np.float32)
    rows = [
        {"method": method, "seed": seed, "split": "test", "metric": name,
         "value": float(_ANEW[name](even, one[None], Answers(target, {}))[0, 0])}
        for method, by_seed in guess.items()
        for seed, one in by_seed.items()
    ]  # fmt: skip
    row = next(row for row in summary(rows, Answers(target, guess)) if row["method"] == "a")
    assert row["test"] == RESAMPLED
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert row["p_value"] < 0.5
