"""How certain a difference between two methods is, for other seeds and other test samples.

We run two tests and report the more cautious one.

The pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007,
https://arxiv.org/abs/0712.1111): a table of seeds by test samples is resampled by rows and by
columns, both with replacement. A test over samples alone mistakes a lucky seed for a difference
(test_bootstrap.py shows how often); one over seeds alone ignores that other test samples could
differ. One draw fewer than there are rows, or columns, keeps the variance of a mean from being too
small by the factor (n - 1) / n (Rao and Wu, 1988).

A bootstrap over two to five seeds treats their spread as known: if three happen to lie on one side,
so do all its repeats. Student's paired t over seeds accounts for how little they tell, but ignores
the samples, which all seeds share. If seeds differ a lot, the t-test has the wider interval; if
they hardly differ, the bootstrap does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from evenly.lab.statistics.paired import CONFIDENCE, paired_p, summarise

CONSTANT = 1e-6
"""Variance below which numbers count as constant, relative to the whole test split's."""
REPEATS = 5_000


@dataclass(frozen=True)
class Weights:
    """The weight of each seed and each test sample in every repeat; each repeat's sum is 1."""

    seeds: Float[np.ndarray, "b s"]
    samples: Float[np.ndarray, "b n"]


@dataclass(frozen=True)
class Difference:
    """The difference of a metric, ours minus theirs.

    Attributes:
        low: Lower end of its 95 % interval, the wider of both tests'.
        high: Upper end.
        p_value: Two-sided p-value of no difference, the larger of both tests'; at least
            2 / (repeats + 1).
    """

    low: float
    high: float
    p_value: float


@cache
def weights(seeds: int, samples: int) -> Weights:
    """The draws of a comparison: the same for all of its methods, and every time.

    Args:
        seeds: Number of seeds, 2 or more.
        samples: Number of test samples, 2 or more.
    """
    stream = np.random.default_rng(0)
    return Weights(_drawn(stream, seeds), _drawn(stream, samples))


def _drawn(stream: np.random.Generator, count: int) -> Float[np.ndarray, "b n"]:
    chosen = stream.integers(count, size=(REPEATS, count - 1))
    places = chosen + count * np.arange(REPEATS)[:, None]
    times = np.bincount(places.ravel(), minlength=REPEATS * count).reshape(REPEATS, count)
    return (times / (count - 1)).astype(np.float32)


def mean(
    samples: Float[np.ndarray, "b n"], scores: Shaped[np.ndarray, "s n"]
) -> Float[np.ndarray, "b s"]:
    """The mean over samples for each seed in every repeat, such as accuracy from correctness."""
    found: Float[np.ndarray, "b s"] = samples @ scores.T.astype(np.float32)
    return found


def among(
    samples: Float[np.ndarray, "b n"], some: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "b m"]:
    """The weights of some of the samples, whose sum is again 1; NaN in a repeat without any."""
    kept = samples[:, some]
    total = kept.sum(1, keepdims=True)
    found: Float[np.ndarray, "b m"] = np.full_like(kept, np.nan)
    np.divide(kept, total, out=found, where=total > 0)
    return found


def balanced_accuracy(
    samples: Float[np.ndarray, "b n"],
    guess: Int[np.ndarray, "s n"],
    target: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "b s"]:
    """The balanced accuracy of each seed in every repeat.

    It is the accuracy on the samples of each class, averaged over the classes of a repeat's labels.
    """
    true = (target[:, None] == np.unique(target)).astype(np.float32)
    there = samples @ true
    columns = []
    for one in guess:
        hit = samples @ (true * (one == target)[:, None])
        recall = np.divide(hit, there, out=np.zeros_like(hit), where=there > 0)
        columns.append(recall.sum(1) / (there > 0).sum(1))
    return np.stack(columns, 1)


def weighted_f1(
    samples: Float[np.ndarray, "b n"],
    guess: Bool[np.ndarray, "s n"],
    target: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, "b s"]:
    """The mean F1 of two classes, weighted by how often each occurs in a repeat, for each seed."""
    columns = []
    for one in guess:
        found = np.zeros(len(samples), np.float32)
        for said, true in ((one, target), (~one, ~target)):
            there = samples @ true.astype(np.float32)
            both = there + samples @ said.astype(np.float32)
            hit = 2 * (samples @ (said & true).astype(np.float32))
            found += there * np.divide(hit, both, out=np.zeros_like(hit), where=both != 0)
        columns.append(found)
    return np.stack(columns, 1)


def macro_f1(
    samples: Float[np.ndarray, "b n"],
    guess: Int[np.ndarray, "s n"],
    target: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "b s"]:
    """The macro-F1 of each seed in every repeat.

    It is 2 TP / (2 TP + FP + FN) for each class, averaged over the classes that occur in a repeat's
    labels or predictions.
    """
    classes = np.arange(1 + max(int(guess.max()), int(target.max())))
    true = (target[:, None] == classes).astype(np.float32)
    there = samples @ true
    columns = []
    for one in guess:
        said = (one[:, None] == classes).astype(np.float32)
        both = there + samples @ said
        hit = 2 * (samples @ (true * said))
        f1 = np.divide(hit, both, out=np.zeros_like(hit), where=both > 0)
        columns.append(f1.sum(1) / (both > 0).sum(1))
    return np.stack(columns, 1)


def label_f1(
    samples: Float[np.ndarray, "b n"],
    guess: Bool[np.ndarray, "s n c"],
    target: Bool[np.ndarray, "n c"],
    average: Literal["macro", "micro"],
) -> Float[np.ndarray, "b s"]:
    """The F1 of each seed in every repeat, for several labels per sample.

    It is 2 TP / (2 TP + FP + FN), averaged over labels that occur in a repeat's truth or
    predictions, or over all decisions.
    """
    true = target.astype(np.float32)
    there = samples @ true
    columns = []
    for one in guess.astype(np.float32):
        both, hit = there + samples @ one, 2 * (samples @ (true * one))
        if average == "micro":
            both, hit = both.sum(1, keepdims=True), hit.sum(1, keepdims=True)
        f1 = np.divide(hit, both, out=np.zeros_like(hit), where=both > 0)
        occurs = (both > 0).sum(1)
        columns.append(np.where(occurs > 0, f1.sum(1) / np.maximum(occurs, 1), 1.0))
    return np.stack(columns, 1)


def correlation(
    samples: Float[np.ndarray, "b n"],
    guess: Float[np.ndarray, "s n c"],
    target: Float[np.ndarray, "n c"],
    kind: Literal["pearson", "concordance"],
) -> Float[np.ndarray, "b s"]:
    """The correlation of numbers with their targets for each seed in every repeat.

    It uses the weighted moments of a repeat's samples and averages over columns for which it is
    defined, see `evenly.data.tasks`; NaN if there is none.
    """
    y, size = _centred(target)
    mean_y = samples @ y
    var_y = np.maximum(samples @ (y * y) - mean_y**2, 0)
    columns = []
    for one in guess:
        x, scale = _centred(one)
        mean_x = samples @ x
        var_x = np.maximum(samples @ (x * x) - mean_x**2, 0)
        both = samples @ (x * y) - mean_x * mean_y
        if kind == "pearson":
            below = np.sqrt(var_x * var_y)
            defined = (var_x > CONSTANT) & (var_y > CONSTANT)
        else:  # in units of the target
            ratio = scale / size
            apart = ratio * mean_x - mean_y + (one.mean(0) - target.mean(0)) / size
            both, below = 2 * ratio * both, ratio**2 * var_x + var_y + apart**2
            defined = var_y > CONSTANT
        found = np.divide(both, below, out=np.zeros_like(both), where=defined).sum(1)
        count = defined.sum(1)
        columns.append(np.divide(found, count, out=np.full_like(found, np.nan), where=count > 0))
    return np.stack(columns, 1)


def _centred(
    x: Float[np.ndarray, "n c"],
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " c"]]:
    """Numbers minus their mean, over their deviation, so that moments lose little; and that.

    What varies only by rounding becomes 0, with a deviation of 1.
    """
    wide = x.astype(np.float64)
    middle, size = wide.mean(0), wide.std(0)
    varies = size > 1e-7 * np.sqrt(np.square(wide).mean(0))
    size = np.where(varies, size, 1.0)
    return np.where(varies, (wide - middle) / size, 0.0).astype(np.float32), size


def difference(
    drawn: Weights,
    ours: Float[np.ndarray, "b s"],
    theirs: Float[np.ndarray, "b s"],
    by_seed: tuple[Sequence[float], Sequence[float]],
) -> Difference:
    """Interval and p-value of a difference.

    Args:
        drawn: The draws behind the repeats.
        ours: A method's metric in every repeat, by seed.
        theirs: The other method's.
        by_seed: The metrics of both on the original test split, by seed.
    """
    repeats = (drawn.seeds * (ours - theirs)).sum(1)
    repeats = repeats[~np.isnan(repeats)]  # in few samples, all targets may be equal
    of_seeds = summarise([one - other for one, other in zip(*by_seed, strict=True)])
    assert of_seeds.low is not None
    assert of_seeds.high is not None
    if not len(repeats):
        return Difference(of_seeds.low, of_seeds.high, paired_p(*by_seed) or 1.0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(repeats, [tail, 1 - tail])
    beyond = min(int((repeats <= 0).sum()), int((repeats >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(repeats) + 1))
    return Difference(
        min(float(low), of_seeds.low),
        max(float(high), of_seeds.high),
        max(p_value, paired_p(*by_seed) or 0.0),
    )
