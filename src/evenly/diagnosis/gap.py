"""How well each encoder is learnt: purity of its clusters on training and validation split.

Wei, Li, Feng, Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.diagnosis.kmeans import Clusters, assign, check_sample, kmeans
from evenly.diagnosis.purity import MOST, purity
from evenly.diagnosis.rows import chunk_rows, first_not_finite, floats
from evenly.errors import UserError
from evenly.features import Features
from evenly.suggest import unknown

Gap = Literal["paper", "matched", "shared"]

DRAWS = 5
"""Draws of the training split for the `matched` gap."""

BINS = 10
"""Equal-count bins that a regression target is cut into."""


@dataclass(frozen=True)
class Diagnosis:
    """The learning state of each encoder. Its text is a readable table.

    Attributes:
        train: By modality, purity on the training split, in [0, 1].
        val: By modality, purity on the validation split, in [0, 1].
        gap: By modality, |train - val|: large where an encoder is over-trained, small where it
            is under-fitted or has little to learn.
        standard_error: By modality, of the gap, where it was drawn several times (`matched`).
        estimator: Which gap it is.
        notes: What a reader must know of the numbers.
    """

    train: Mapping[str, float]
    val: Mapping[str, float]
    gap: Mapping[str, float]
    standard_error: Mapping[str, float] | None = None
    estimator: Gap = "paper"
    notes: tuple[str, ...] = ()

    def strength(self, scale: float = 3.0) -> dict[str, float]:
        """By modality, how far to pull the encoder back: tanh(scale · gap), in [0, 1)."""
        return {name: math.tanh(scale * gap) for name, gap in self.gap.items()}

    def __str__(self) -> str:
        width = max(len("modality"), *(len(name) for name in self.gap))
        error = "" if self.standard_error is None else "   ± s.e."
        lines = [f"{'modality':<{width}}  purity train  purity val     gap{error}  strength (λ=3)"]
        for name, strength in self.strength().items():
            if self.standard_error is not None:
                error = f"  {self.standard_error[name]:7.3f}"
            lines.append(
                f"{name:<{width}}  {self.train[name]:12.3f}  {self.val[name]:10.3f}  "
                f"{self.gap[name]:6.3f}{error}  {strength:14.3f}"
            )
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class _Rows:
    """One modality on one split."""

    x: Shaped[Tensor, "n d"]
    y: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    sharded: bool


@dataclass(frozen=True)
class _Clustering:
    """How every clustering of a diagnosis is made."""

    k: int
    seed: int
    restarts: int
    sample: int | None = None

    def purity(self, rows: _Rows) -> float:
        """Purity of a split that is scaled and clustered by itself."""
        clusters = self.fit(rows, *extent(rows.x, sharded=rows.sharded))
        return purity(clusters.labels, rows.y, sharded=rows.sharded)

    def fit(self, rows: _Rows, low: Tensor, high: Tensor) -> Clusters:
        """Clusters of the rows as they are when [low, high] is mapped to [-1, 1]."""
        return kmeans(
            rows.x,
            self.k,
            seed=self.seed,
            restarts=self.restarts,
            index=rows.index,
            sharded=rows.sharded,
            unit=unit(low, high),
            sample=self.sample,
        )


@torch.no_grad()
def diagnose(
    train: Features,
    val: Features,
    *,
    gap: Gap = "paper",
    seed: int = 0,
    restarts: int = 10,
    sample: int | None = None,
) -> Diagnosis:
    """Measures how well each encoder is learnt; changes nothing.

    Representations are clustered by k-means with as many clusters as classes, and the purity of
    the clusters is compared between the splits (the paper's: purity
    P = (1/N) Σ_cluster max_class |cluster ∩ class|, gap g = |P(train) - P(val)|).

    Three estimators of the gap:

    - `paper`: each split scaled to [-1, 1] and clustered by itself, as published. k-means
      recovers classes worse from fewer points, so part of this gap is the splits' sizes.
    - `matched`: the training split drawn down to the validation split's size and class counts,
      five times; returns the mean and its standard error. Removes most of the size effect.
    - `shared`: scaling and clusters fitted on the training split, validation rows assigned to
      them. Near 0 where nothing is over-fitted; half the cost.

    Args:
        train: Representations and labels of the training split. A target of floats is cut into
            ten bins of equal counts; where it has ten values or fewer, each is taken for a class.
        val: The same of the validation split. Never the test split.
        gap: The estimator.
        seed: Of the clusterings; the global random stream is not used.
        restarts: Of each k-means, the best by inertia kept. The released code's result depends
            on scikit-learn's version here: 10 restarts before 1.4, one since.
        sample: For splits of more rows, how many of them the restarts see (20 a class at
            least), as `kmeans` has it: time, and memory beside the features, then stay small,
            and the purities of features whose classes overlap within 0.01. Features may be
            of any real type and memory maps. Where some samples lack a modality, and with
            `matched`, those that count are copied.

    Raises:
        ValueError: If features are not finite, a class is missing from a split, there is one
            class only, or a split or sample has too few rows for the number of classes.
    """
    check_gap(gap)
    _check_modalities(train, val)
    train, val, counts, notes = in_classes(train, val)
    clustering = _Clustering(int((counts > 0).sum()), seed, restarts, sample)
    check_sample(sample, clustering.k)
    scores: dict[str, tuple[float, float, float | None]] = {}
    for name in train.features:
        check_finite(train, name, "training")
        check_finite(val, name, "validation")
        scores[name] = _ESTIMATORS[gap](clustering, _rows(train, name), _rows(val, name))
    errors = {name: error for name, (_, _, error) in scores.items() if error is not None}
    return Diagnosis(
        train={name: of_train for name, (of_train, _, _) in scores.items()},
        val={name: of_val for name, (_, of_val, _) in scores.items()},
        gap={name: abs(of_train - of_val) for name, (of_train, of_val, _) in scores.items()},
        standard_error=errors or None,
        estimator=gap,
        notes=notes,
    )


def _paper(clustering: _Clustering, train: _Rows, val: _Rows) -> tuple[float, float, float | None]:
    return clustering.purity(train), clustering.purity(val), None


def _matched(
    clustering: _Clustering, train: _Rows, val: _Rows
) -> tuple[float, float, float | None]:
    of_train, of_val = _counts(train.y, val.y, sharded=train.sharded)
    wanted = torch.minimum(of_train, of_val)
    draws = torch.tensor(
        [clustering.purity(_draw(train, wanted, clustering.seed + n)) for n in range(DRAWS)],
        dtype=torch.float64,
        device="cpu",
    )
    val_purity = clustering.purity(_draw(val, wanted, clustering.seed))
    return float(draws.mean()), val_purity, float(draws.std() / math.sqrt(DRAWS))


def _shared(clustering: _Clustering, train: _Rows, val: _Rows) -> tuple[float, float, float | None]:
    low, high = extent(train.x, sharded=train.sharded)
    clusters = clustering.fit(train, low, high)
    of_val = assign(val.x, clusters.centers, unit(low, high))
    return (
        purity(clusters.labels, train.y, sharded=train.sharded),
        purity(of_val, val.y, sharded=val.sharded),
        None,
    )


_ESTIMATORS = {"paper": _paper, "matched": _matched, "shared": _shared}


def extent(
    x: Shaped[Tensor, "n d"], *, sharded: bool = False
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Smallest and largest value of each dimension, over all ranks."""
    low = floats(x[:0]).new_full(
        x.shape[1:], math.inf
    )  # which stays where there are more ranks than rows
    high = -low
    step = chunk_rows(x.shape[1])
    for start in range(0, len(x), step):  # so that rows in a file are read once
        part = floats(x[start : start + step])
        low, high = torch.minimum(low, part.amin(0)), torch.maximum(high, part.amax(0))
    return distributed.min_(low, sharded=sharded), distributed.max_(high, sharded=sharded)


def unit(low: Float[Tensor, " d"], high: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """What to divide rows by to be as far apart as if [low, high] were mapped to [-1, 1].

    That is half the extent of each dimension; the extent of a constant one is taken for 1.
    """
    span = high.to(torch.promote_types(high.dtype, torch.float32)) - low
    return torch.where(span > 0, span, 1.0) / 2


def in_classes(
    train: Features, val: Features
) -> tuple[Features, Features, Int[Tensor, " c"], tuple[str, ...]]:
    """Both splits with classes for targets, as `diagnose` takes them.

    Returns:
        The splits, how many samples of each class the training split has, and notes.

    Raises:
        ValueError: If they cannot be clustered.
    """
    if not train.target.is_floating_point():
        return train, val, _check_classes(train, val), ()
    _check_values(train, val)
    edges, are_classes = _edges(train, val)
    train = replace(train, target=torch.bucketize(_values(train), edges))
    val = replace(val, target=torch.bucketize(_values(val), edges))
    count = len(edges) + 1
    note = f"The regression target is cut into {count} equal-count bins."
    if are_classes:
        note = f"The target's {count} values are taken for classes."
    return train, val, _check_classes(train, val, whole=are_classes), (note,)


def check_gap(gap: str) -> None:
    """Raises if there is no such estimator."""
    if gap not in _ESTIMATORS:
        raise unknown("gap", gap, _ESTIMATORS)


def check_finite(split: Features, name: str, where: str) -> None:
    """Raises on every rank if a feature of modality `name` is NaN or infinite."""
    x = split.features[name]
    index = None if split.index is None else split.index.to(x.device)
    first = distributed.min_(first_not_finite(x, index), sharded=split.sharded)
    if int(first) != torch.iinfo(torch.int64).max:
        raise UserError(
            f"the features of '{name}' are NaN or infinite in row {int(first)} of the "
            f"{where} split. Training has diverged or the input holds such values: lower the "
            "learning rate, or clean the input."
        )


def _check_values(train: Features, val: Features) -> None:
    """Raises on every rank if a regression target is NaN or infinite, or one value throughout."""
    for split, where in ((train, "training"), (val, "validation")):
        bad = (~split.target.isfinite()).any().long()
        if int(distributed.max_(bad, sharded=split.sharded)):
            raise UserError(
                f"a target of the {where} split is NaN or infinite. Leave out samples without one."
            )
    low, high = extent(_values(train)[:, None], sharded=train.sharded)
    if bool(low == high):
        raise UserError(
            f"every target of the training split is {float(low):g}, so there is nothing to tell "
            "apart. Pass a split with at least two values."
        )


def _check_classes(train: Features, val: Features, *, whole: bool = True) -> Int[Tensor, " c"]:
    """Samples of each class in the training split, if both splits can be clustered.

    Args:
        train: The training split.
        val: The validation split.
        whole: Whether every class must be in both splits (not so for bins of a regression).

    Raises:
        ValueError: If not.
    """
    for split, where in ((train, "training"), (val, "validation")):
        least = split.target.min() if len(split.target) else split.target.new_tensor(0)
        if int(distributed.min_(least, sharded=split.sharded)) < 0:
            raise UserError(
                f"a label of the {where} split is {int(least)}, but classes are numbered from 0. "
                "Leave out samples without a label."
            )
    of_train, of_val = _counts(train.target, val.target, sharded=train.sharded)
    k = int((of_train > 0).sum())
    if k == 0:
        raise UserError("the training split has no sample with a label. Pass one that has some.")
    if k < 2:
        raise UserError(
            f"the training split has one class only ({int(of_train.argmax())}), so there is "
            "nothing to tell apart. Pass a split with at least two classes."
        )
    lacking = (of_train > 0) != (of_val > 0)
    if whole and bool(lacking.any()):
        first = int(lacking.nonzero()[0])
        where, other = ("validation", "training") if of_train[first] else ("training", "validation")
        raise UserError(
            f"class {first} is missing from the {where} split but not from the {other} split, so "
            "their purities do not compare. Draw the validation split stratified by class."
        )
    for counts, where in ((of_train, "training"), (of_val, "validation")):
        if int(counts.sum()) < k:
            raise UserError(
                f"the {where} split has {int(counts.sum())} samples for {k} clusters (one per "
                "class): fewer samples than clusters. Pass a larger split."
            )
    return of_train


def _check_modalities(train: Features, val: Features) -> None:
    if missing := set(train.features) ^ set(val.features):
        raise UserError(f"modalities {sorted(missing)} are in one split only. Pass both.")
    for split in (train, val):
        if split.target.ndim > 1:
            raise UserError(
                f"a diagnosis takes one class or one value for each sample; found targets of "
                f"shape {tuple(split.target.shape)}. Pass one column of them."
            )
    for name, x in train.features.items():
        if x.shape[1] != val.features[name].shape[1]:
            raise UserError(
                f"the features of '{name}' are {x.shape[1]} wide in the training split and "
                f"{val.features[name].shape[1]} in the validation split. Take both from one "
                "encoder."
            )


def _rows(split: Features, name: str) -> _Rows:
    x = split.features[name]
    target, index = split.target.to(x.device), _index(split).to(x.device)
    if name in split.present:
        here = split.present[name].to(x.device)
        x, target, index = x[here], target[here], index[here]
    return _Rows(x, target, index, split.sharded)


def _index(split: Features) -> Tensor:
    if split.index is not None:
        return split.index
    return torch.arange(len(split.target), device=split.target.device)


def _counts(train: Tensor, val: Tensor, *, sharded: bool) -> tuple[Tensor, Tensor]:
    """Samples of each class in both splits, over all ranks."""
    size = _largest(torch.cat([train, val]), sharded=sharded) + 1
    if size > MOST:
        raise UserError(
            f"a label is {size - 1}, but classes are numbered from 0. Of any other numbers "
            "target.unique(return_inverse=True)[1] makes such."
        )
    of_train, of_val = (torch.bincount(y, minlength=size) for y in (train, val))
    return distributed.sum_(of_train, sharded=sharded), distributed.sum_(of_val, sharded=sharded)


def _largest(x: Tensor, *, sharded: bool) -> int:
    """The largest of whole numbers over all ranks; -1 where there is none."""
    largest = x.max() if len(x) else torch.tensor(-1, device=x.device)
    return int(distributed.max_(largest, sharded=sharded))


def _values(split: Features) -> Float[Tensor, " n"]:
    """A regression target, precise enough to be told apart."""
    return split.target.to(torch.promote_types(split.target.dtype, torch.float32)).contiguous()


def _edges(train: Features, val: Features) -> tuple[Float[Tensor, " edges"], bool]:
    """Edges between bins of the training targets, and whether these are classes.

    Of few values each is a class: class numbers kept as floats, or the 0 and 1 of one logit.
    """
    values, others = (
        torch.cat(distributed.gather(_values(split), sharded=split.sharded))
        for split in (train, val)
    )
    distinct = torch.cat([values, others]).unique()
    if len(distinct) <= BINS:
        return distinct[:-1], True
    steps = torch.arange(1, BINS, dtype=values.dtype, device=values.device) / BINS
    edges: Tensor = values.quantile(steps).unique()
    return edges, False


def _draw(rows: _Rows, wanted: Int[Tensor, " c"], seed: int) -> _Rows:
    """As many rows of each class as wanted, the same ones whatever the ranks and row order."""
    everyone = torch.cat(distributed.gather(rows.index, sharded=rows.sharded)).sort().values
    stream = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(everyone), generator=stream, dtype=torch.float64, device="cpu")
    drawn = drawn.to(rows.x.device)
    keys = drawn[torch.searchsorted(everyone, rows.index)]  # by place in the canonical order
    all_keys = torch.cat(distributed.gather(keys, sharded=rows.sharded))
    all_y = torch.cat(distributed.gather(rows.y, sharded=rows.sharded))
    keep: Bool[Tensor, " n"] = torch.zeros_like(rows.y, dtype=torch.bool)
    for label, count in enumerate(wanted.tolist()):
        if count:
            last = all_keys[all_y == label].kthvalue(count).values
            keep |= (rows.y == label) & (keys <= last)
    return _Rows(rows.x[keep], rows.y[keep], rows.index[keep], rows.sharded)
