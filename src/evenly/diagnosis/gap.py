"""How well each encoder is trained: the purity of its clusters on both splits.

Wei, Li, Feng, Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.chance import mixed, uniform
from evenly.diagnosis.kmeans import Clusters, TooFewRows, assign, check_sample, kmeans
from evenly.diagnosis.purity import (
    MOST,
    LabelSets,
    are_labels,
    check_labels,
    counted,
    fit,
    of_table,
    shuffled,
)
from evenly.diagnosis.rows import chunk_rows, first_not_finite, floats
from evenly.errors import UserError
from evenly.features import Features
from evenly.suggest import unknown

Gap = Literal["paper", "matched", "shared", "stable"]

DRAWS = 5
"""Draws of the training split for the `matched` gap."""

HALVINGS = 10, 120
"""Minimum and maximum halvings of the training split for the `stable` gap."""

STEADY = 0.0035
"""Error due to the starts of k-means at which the halvings of a `stable` gap end."""

SURE = 3.0
"""Standard errors up to which the strength of a `stable` gap is 0."""

SHUFFLES = 5
"""Shuffles of the labels for the chance level."""

BINS = 10
"""Equal-count bins of a regression target."""


@dataclass(frozen=True)
class Diagnosis:
    """The learning state of each encoder. Its text is a readable table.

    Attributes:
        train: By modality, purity on the training split, in [0, 1].
        val: By modality, purity on the validation split, in [0, 1].
        gap: By modality, |train - val|, or train - val for `stable`: large if an encoder is
            over-trained, small if it is under-fitted or has little to learn.
        standard_error: Standard error of the gap by modality; `diagnose` says what it covers.
        train_chance: By modality, the purity of shuffled labels in the training split's clusters.
        val_chance: The same for the validation split.
        estimator: The estimator of the gap.
        notes: What a reader must know about the numbers.
    """

    train: Mapping[str, float]
    val: Mapping[str, float]
    gap: Mapping[str, float]
    standard_error: Mapping[str, float]
    train_chance: Mapping[str, float]
    val_chance: Mapping[str, float]
    estimator: Gap = "paper"
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> dict[str, float]:
        """By modality, the gap that decides the strength: for `stable`, the part beyond its error.

        That is gap · max(0, 1 - (3 · standard error / gap)²), and 0 if the gap is below 0. Other
        estimators use the gap as it is.
        """
        if self.estimator != "stable":
            return dict(self.gap)
        return {
            name: max(gap - (SURE * self.standard_error[name]) ** 2 / gap, 0.0) if gap > 0 else 0.0
            for name, gap in self.gap.items()
        }

    def strength(self, scale: float = 3.0) -> dict[str, float]:
        """By modality, how far to pull the encoder back: tanh(scale · used), in [0, 1)."""
        return {name: math.tanh(scale * gap) for name, gap in self.used.items()}

    def __str__(self) -> str:
        width = max(len("modality"), *(len(name) for name in self.gap))
        stable = self.estimator == "stable"
        lines = [
            f"{'modality':<{width}}  purity train (chance)  purity val (chance)     gap  ± s.e."
            f"{'    used' if stable else ''}  strength (λ=3)"
        ]
        for name, strength in self.strength().items():
            used = f"  {self.used[name]:6.3f}" if stable else ""
            lines.append(
                f"{name:<{width}}  {self.train[name]:12.3f}  ({self.train_chance[name]:.3f})"
                f"  {self.val[name]:10.3f}  ({self.val_chance[name]:.3f})  {self.gap[name]:6.3f}"
                f"  {self.standard_error[name]:6.3f}{used}  {strength:14.3f}"
            )
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class _Rows:
    """One modality on one split.

    Attributes:
        x: Its features.
        y: Class of each row, or the number of its set of labels.
        group: The group by which rows are drawn and weighted: the class, or the rarest label.
        index: Position of each row in the split.
        sharded: Whether they are only this rank's share.
        clusters: The clusters of these features by number of clusters, once found. Several numbers
            a sample share them.
    """

    x: Shaped[Tensor, "n d"]
    y: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    sharded: bool
    clusters: dict[int, Clusters] = field(default_factory=dict)

    def where(self, keep: Bool[Tensor, " n"]) -> "_Rows":
        """Some of the rows."""
        return _Rows(self.x[keep], self.y[keep], self.group[keep], self.index[keep], self.sharded)


@dataclass(frozen=True)
class _Clustering:
    """How every clustering of a diagnosis is computed and used.

    Attributes:
        k: Number of clusters.
        seed: Seed of the starts.
        restarts: Number of restarts.
        sample: Number of rows that they see.
        sets: The sets of labels that the classes of rows stand for, if they do.
        group: The rarest label of each set.
    """

    k: int
    seed: int
    restarts: int
    sample: int | None = None
    sets: LabelSets | None = None
    group: Int[Tensor, " m"] | None = None

    def rows(self, split: Features, name: str, clusters: dict[int, Clusters]) -> _Rows:
        """The rows of a modality, for the samples that have it, and their clusters so far."""
        x = split.features[name]
        y, index = split.target.to(x.device), _index(split).to(x.device)
        rows = _Rows(x, y, self.group_of(y), index, split.sharded)
        if name in split.present:
            rows = rows.where(split.present[name].to(x.device))
        return replace(rows, clusters=clusters)

    def group_of(self, y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The groups by which rows of these classes are drawn and weighted."""
        return y if self.group is None else self.group.to(y.device)[y]

    def table(self, rows: _Rows) -> Int[Tensor, "k c"]:
        """Clusters and classes of a split scaled and clustered by itself."""
        clusters = self.clustered(rows, *extent(rows.x, sharded=rows.sharded))
        return _table(clusters.labels, rows, self.k)

    def clustered(self, rows: _Rows, low: Tensor, high: Tensor) -> Clusters:
        """Clusters of the rows after mapping their extent, [low, high], to [-1, 1]."""
        if self.k not in rows.clusters:
            rows.clusters[self.k] = kmeans(
                rows.x,
                self.k,
                seed=self.seed,
                restarts=self.restarts,
                index=rows.index,
                sharded=rows.sharded,
                unit=unit(low, high),
                sample=self.sample,
            )
        return rows.clusters[self.k]


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
    """Measures how well each encoder is trained; changes nothing.

    k-means clusters the representations, with as many clusters as classes, and the purity of the
    clusters is compared between the splits (the paper's purity P = (1/N) Σ_cluster max_class
    |cluster ∩ class|, gap g = |P(train) - P(val)|).

    There are four estimators of the gap:

    - `paper`: each split scaled to [-1, 1] and clustered by itself, as published. k-means
      recovers classes worse from fewer points, so part of this gap is the splits' sizes.
    - `matched`: the training split subsampled to the validation split's size and class counts, five
      times; gives the mean and its standard error. Removes most of the size effect.
    - `shared`: scaling and clusters fitted on the training split, and validation rows assigned to
      them. Near 0 if nothing is over-fitted; half the cost.
    - `stable`: the training split halved 10 to 120 times, until the starts of k-means change the
      gap by no more than .0035. Each half is scaled and clustered, and each cluster stands for its
      commonest class. The purities are the shares of rows in a cluster of their class, for the
      other half and for the validation split, weighted by the training split's class shares. If
      nothing is over-fitted, both are new to the clusters, and the gap is 0 on average for any
      sizes and shares. The strength counts only the part beyond three errors.

    With several labels per sample, there are as many clusters as labels (at least two, and no more
    than samples), and the purity is evenly's own (`purity`): a cluster stands for a set of labels,
    and each sample counts by how much its labels overlap with that set. If each sample has exactly
    one label, or there is one label that a sample has or not, everything equals the case of
    classes. The draws of `matched` and the shares of `stable` then go by the rarest label of a
    sample.

    With several numbers per sample, each is diagnosed by itself, as if it were the only one. The
    purities, the levels of chance and the standard error are means over the numbers. This error is
    an upper bound, which is exact if all numbers err alike. `matched` and `stable` take as many
    times longer as there are numbers.

    Each gap comes with the purity of shuffled labels in the same clusters, and a standard error.
    This covers the draw of samples for fixed clusters; with `matched` also how the draws change the
    clusters; with `stable` that and the starts of k-means. With `paper` and `shared` it is a lower
    bound, since neither other starts nor the clusters of another draw are in it: with `paper`, for
    half-separated classes, the true error is up to three times as large. A gap larger than such an
    error may still be chance.

    Args:
        train: Representations and labels of the training split. A target of floats is divided into
            ten bins of equal counts, as far as values do not recur; if it has ten values or fewer,
            each counts as a class, even if one split lacks it. A target (n, c) of only 1 and 0
            holds several labels; labels that all samples of a split have, or none, are left out. A
            target (n, c) of other floats holds several numbers; those that are constant in a split
            are left out.
        val: The same for the validation split. Never the test split.
        gap: The estimator.
        seed: Seed of the clusterings; the global random stream is not used.
        restarts: Restarts of each k-means, of which the one with the least inertia counts; with
            `stable`, which has many clusterings, a fifth of it, at least one. The released code's
            result depends on scikit-learn's version here: 10 restarts before 1.4, one since.
        sample: For splits with more rows, how many of them the restarts see (at least 20 per
            class), as in `kmeans`. Time, and memory beside the features, then stay small, and
            purities change by at most 0.01 if classes overlap. Features may have any real type and
            be memory maps. If some samples lack a modality, and with `matched` and `stable`, the
            clustered rows are copied.

    Raises:
        ValueError: If features are not finite, a class is missing from a split, there is only one
            class or value, or a split, the samples with a modality or the sample of rows are fewer
            than the clusters.
    """
    check_gap(gap)
    _check_modalities(train, val)
    columns = in_classes(train, val)
    check_sample(sample, max(column.k for column in columns))
    found: dict[str, _Score] = {}
    for name in train.features:
        check_finite(train, name, "training")
        check_finite(val, name, "validation")
        of_train: dict[int, Clusters] = {}
        of_val: dict[int, Clusters] = {}
        scores = []
        for column in columns:
            clustering = _Clustering(column.k, seed, restarts, sample, column.sets, column.group)
            rows = (
                clustering.rows(column.train, name, of_train),
                clustering.rows(column.val, name, of_val),
            )
            try:
                scores.append(_ESTIMATORS[gap](clustering, *rows))
            except TooFewRows as error:
                raise too_few(name, error.rows, clustering.k) from error
        found[name] = _Score.mean(scores)
    differences = {name: score.train - score.val for name, score in found.items()}
    diagnosis = Diagnosis(
        train={name: score.train for name, score in found.items()},
        val={name: score.val for name, score in found.items()},
        gap={name: x if gap == "stable" else abs(x) for name, x in differences.items()},
        standard_error={name: score.error for name, score in found.items()},
        train_chance={name: score.train_chance for name, score in found.items()},
        val_chance={name: score.val_chance for name, score in found.items()},
        estimator=gap,
    )
    of_targets = (note for column in columns for note in column.notes)
    return replace(diagnosis, notes=(*of_targets, *doubts(diagnosis)))


@dataclass(frozen=True)
class _Score:
    """One modality of a diagnosis."""

    train: float
    val: float
    train_chance: float
    val_chance: float
    error: float

    @staticmethod
    def mean(scores: Sequence["_Score"]) -> "_Score":
        """The score of several numbers; its error is an upper bound, whatever they share."""
        return _Score(
            fmean(score.train for score in scores),
            fmean(score.val for score in scores),
            fmean(score.train_chance for score in scores),
            fmean(score.val_chance for score in scores),
            fmean(score.error for score in scores),
        )


def doubts(found: Diagnosis) -> tuple[str, ...]:
    """Notes on gaps that count in full but may not be real."""
    if found.estimator == "stable":
        return ()
    error = "its error" if found.estimator == "matched" else "its error, a lower bound"
    notes: dict[str, list[str]] = {f"is no larger than {error}": [], "is that of chance": []}
    small, by_chance = notes.values()
    for name, gap in found.gap.items():
        spread = found.standard_error[name]
        shuffled_too = found.train_chance[name] - found.val_chance[name]
        if 0 < gap <= spread:
            small.append(name)
        elif gap > 0 and abs(found.train[name] - found.val[name] - shuffled_too) <= spread:
            by_chance.append(name)
    return tuple(
        f"The gap of {_named(names)} {what}: take gap='stable', or more validation samples."
        for what, names in notes.items()
        if names
    )


def _named(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _paper(clustering: _Clustering, train: _Rows, val: _Rows) -> _Score:
    return _of_tables(clustering, [clustering.table(train)], clustering.table(val))


def _matched(clustering: _Clustering, train: _Rows, val: _Rows) -> _Score:
    of_train, of_val = _counts(train.group, val.group, sharded=train.sharded)
    wanted = torch.minimum(of_train, of_val)
    if int(wanted.sum()) < clustering.k:
        raise TooFewRows(int(wanted.sum()), clustering.k)
    draws = [clustering.table(_draw(train, wanted, clustering.seed + n)) for n in range(DRAWS)]
    score = _of_tables(clustering, draws, clustering.table(_draw(val, wanted, clustering.seed)))
    # One draw of the training split varies like the validation split, which is as large: by the
    # draw of rows and by k-means. The draws share part of their rows.
    purities = [of_table(x, clustering.sets) for x in draws]
    of_draws = torch.tensor(purities, dtype=torch.float64, device="cpu")
    spread = float(of_draws.var())
    kept = int(wanted.sum()) / int(of_train.sum())
    return replace(
        score, error=max(score.error, math.sqrt(spread * (1 + kept + (1 - kept) / DRAWS)))
    )


def _shared(clustering: _Clustering, train: _Rows, val: _Rows) -> _Score:
    low, high = extent(train.x, sharded=train.sharded)
    clusters = clustering.clustered(train, low, high)
    of_val = assign(val.x, clusters.centers, unit(low, high))
    tables = _table(clusters.labels, train, clustering.k), _table(of_val, val, clustering.k)
    return _of_tables(clustering, [tables[0]], tables[1])


def _table(labels: Tensor, rows: _Rows, k: int) -> Int[Tensor, "k c"]:
    classes = _largest(rows.y, sharded=rows.sharded) + 1
    return counted(labels, rows.y, k, classes, sharded=rows.sharded)


def _of_tables(clustering: _Clustering, train: list[Tensor], val: Tensor) -> _Score:
    """Purities, chance levels and errors, from clusters and classes."""
    sets = clustering.sets
    purities = [of_table(table, sets) for table in train]
    score, of_val = sum(purities) / len(train), of_table(val, sets)
    return _Score(
        score,
        of_val,
        _chance(clustering, train[0]),
        _chance(clustering, val),
        math.sqrt(_variance(score, train[0], sets) + _variance(of_val, val, sets)),
    )


def _chance(clustering: _Clustering, table: Tensor) -> float:
    drawn = shuffled(table, clustering.seed, SHUFFLES)
    return sum(of_table(other, clustering.sets) for other in drawn) / SHUFFLES


def _variance(purity: float, table: Tensor, sets: LabelSets | None) -> float:
    """The variance of a purity over draws of the rows, for fixed clusters.

    Two extra rows, one right and one wrong, keep it above 0 if all are right.
    """
    count = int(table.sum())
    share = (purity * count + 1) / (count + 2)
    if sets is None:
        return share * (1 - share) / count
    right = sets.fit(table)
    half = float((table.cpu() * right * (1 - right)).sum()) / (count + 2)  # for half-right rows
    return max(share * (1 - share) - half, 0.0) / count


def _stable(clustering: _Clustering, train: _Rows, val: _Rows) -> _Score:
    of_train, of_val = (x.cpu() for x in _counts(train.group, val.group, sharded=train.sharded))
    size = int(of_train.sum())
    both = torch.where(of_val > 0, of_train, 0).double()
    if size < 2 or not bool(both.any()):
        raise UserError(
            "gap='stable' takes two training samples, and a validation sample of one of their "
            f"classes; of a modality there are {size} and {int(of_val.sum())} samples. Leave that "
            "modality out, or pass larger splits."
        )
    share = both / both.sum()
    answers = _Answers(train, share), _Answers(val, share)
    of_class = _counts(train.y, val.y, sharded=train.sharded)[0].cpu()
    group = clustering.group_of(torch.arange(len(of_class), device="cpu"))
    likely = share[group] * of_class / of_train[group].clamp_min(1)
    parts = 2 if clustering.sample is None else max(2, math.ceil(size / clustering.sample))
    k, restarts = min(clustering.k, size // parts), max(clustering.restarts // 5, 1)
    gaps = []
    for n in range(2 * HALVINGS[1]):
        own = replace(clustering, k=k, seed=mixed(clustering.seed, n), restarts=restarts)
        if n % 2 == 0:  # each halving has two clusterings, of parts that share no row
            part = _parts(train, parts, own.seed)
        old = part == n % 2
        some = train.where(old)
        low, high = extent(some.x, sharded=some.sharded)
        clusters = own.clustered(some, low, high)
        table = counted(clusters.labels, some.y, k, len(likely), sharded=some.sharded).cpu()
        # Validation rows of a class count as often as its training rows are new to a clustering: if
        # a clustering has seen few rows of a small class, it has to answer for many, in both
        # splits.
        asked = (of_train.index_add(0, group, table.sum(0), alpha=-1)).to(val.y.device)
        right = fit(table, own.sets)
        lucky = fit(shuffled(table, own.seed, 1)[0], own.sets) @ likely
        rates = []
        for split, times in zip(answers, (~old, asked[val.group]), strict=True):
            labels = assign(split.rows.x, clusters.centers, unit(low, high))
            rates.append(split.add(labels, right, lucky, times))
        gaps.append(rates[0] - rates[1])
        if n + 1 >= 2 * HALVINGS[0] and n % 2:
            # The mean of a halving's two clusterings varies by everything that other starts change.
            of_halvings = torch.tensor(gaps, dtype=torch.float64, device="cpu").view(-1, 2).mean(1)
            starts = float(of_halvings.var()) / len(of_halvings)
            if starts <= STEADY**2:
                break
    spreads = [split.spread() for split in answers]
    # The assumed variance of a class with few samples; above 0 even if all answers agree.
    prior = max(float((squares.sum() + 1) / (free.sum() + 1)) for squares, free in spreads)
    draws = sum(
        float(share.square() @ ((squares + 2 * prior) / ((free + 2) * (free + 1))))
        for squares, free in spreads
    )
    return _Score(
        answers[0].purity(),
        answers[1].purity(),
        answers[0].chance(),
        answers[1].chance(),
        math.sqrt(draws + starts),
    )


class _Answers:
    """How often each row of a split falls in a cluster that stands for its class or labels."""

    def __init__(self, rows: _Rows, share: Float[Tensor, " c"]) -> None:
        """Starts empty; `share` is the weight of each class."""
        self.rows, self._share = rows, share
        self._wide = torch.float32 if rows.x.device.type == "mps" else torch.float64
        self._asked, self._right, self._guessed = torch.zeros(
            3, len(rows.y), dtype=self._wide, device=rows.x.device
        )

    def add(self, labels: Tensor, fitting: Tensor, lucky: Tensor, times: Tensor) -> float:
        """Adds a clustering; returns the share of rows that it gets right.

        Args:
            labels: Cluster of each row.
            fitting: (k, m) How well what each cluster stands for fits each class.
            lucky: (k,) How well it would fit a random row if the clustered rows' labels were
                shuffled.
            times: How often the answer for each row counts.
        """
        fitting, lucky = (x.to(labels.device, self._wide) for x in (fitting, lucky))
        right = times * fitting[labels, self.rows.y]
        self._asked += times
        self._right += right
        self._guessed += times * lucky[labels]
        return self._mean(right, times.to(right.dtype))

    def purity(self) -> float:
        """The share of rows in a cluster of their class, over all clusterings."""
        return self._mean(self._right, self._asked)

    def chance(self) -> float:
        """The same for shuffled labels."""
        return self._mean(self._guessed, self._asked)

    def spread(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """By group, the sum of squared differences of its rows' shares, and degrees of freedom."""
        rate = self._right / self._asked.clamp_min(1)
        count, total, squares = (self._sum(x) for x in (torch.ones_like(rate), rate, rate.square()))
        squares = (squares - total.square() / count.clamp_min(1)).clamp_min(0)
        counts = self._share > 0
        return squares * counts, (count - 1).clamp_min(0) * counts

    def _mean(self, x: Tensor, times: Tensor) -> float:
        """The mean over groups, by their weights."""
        return float(self._share @ (self._sum(x) / self._sum(times).clamp_min(1)))

    def _sum(self, x: Tensor) -> Float[Tensor, " c"]:
        total = x.new_zeros(len(self._share), dtype=self._wide)
        total.index_add_(0, self.rows.group, x.to(self._wide))
        return distributed.sum_(total, sharded=self.rows.sharded).cpu().double()


def _parts(rows: _Rows, parts: int, seed: int) -> Int[Tensor, " n"]:
    """The part of each row, from 0: equal groups in each part, for any ranks and row order."""
    # Not by sets: if each row had one of its own, every seed would give the same parts.
    everyone = distributed.gather(rows.index, sharded=rows.sharded)
    index = torch.cat(everyone)
    group = torch.cat(distributed.gather(rows.group, sharded=rows.sharded))
    order = index.argsort()
    for key in (uniform(index, seed), group):
        order = order[key[order].argsort(stable=True)]
    part = torch.empty_like(group)
    part[order] = torch.arange(len(group), device=group.device) % parts
    before = sum(len(x) for x in everyone[: distributed.rank()]) if rows.sharded else 0
    return part[before : before + len(rows.y)]


_ESTIMATORS = {"paper": _paper, "matched": _matched, "shared": _shared, "stable": _stable}


def extent(
    x: Shaped[Tensor, "n d"], *, sharded: bool = False
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Smallest and largest value of each dimension, over all ranks."""
    low = floats(x[:0]).new_full(
        x.shape[1:], math.inf
    )  # this stays if there are more ranks than rows
    high = -low
    step = chunk_rows(x.shape[1])
    for start in range(0, len(x), step):  # in steps, so that rows in a file are read once
        part = floats(x[start : start + step])
        low, high = torch.minimum(low, part.amin(0)), torch.maximum(high, part.amax(0))
    return distributed.min_(low, sharded=sharded), distributed.max_(high, sharded=sharded)


def unit(low: Float[Tensor, " d"], high: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The divisor of rows that gives the same distances as mapping [low, high] to [-1, 1].

    That is half the extent of each dimension; that of a constant dimension counts as 1.
    """
    span = high.to(torch.promote_types(high.dtype, torch.float32)) - low
    return torch.where(span > 0, span, 1.0) / 2


@dataclass(frozen=True)
class Numbered:
    """Both splits with a number for each target, as they are clustered.

    Attributes:
        train: The training split; a target is the number of its class or set of labels.
        val: The validation split.
        k: Number of clusters.
        notes: How the targets were treated.
        sets: The sets of labels, if a sample has several.
        group: The rarest label of each set.
    """

    train: Features
    val: Features
    k: int
    notes: tuple[str, ...] = ()
    sets: LabelSets | None = None
    group: Int[Tensor, " m"] | None = None


def in_classes(train: Features, val: Features) -> tuple[Numbered, ...]:
    """Both splits with class numbers as targets, as `diagnose` uses them.

    Returns:
        One for each of several numbers to regress on that vary in both splits; else a single one.

    Raises:
        ValueError: If they cannot be clustered.
    """
    if train.target.ndim == 1:
        return (_of_single(train, val),)
    are = [are_labels(split.target, sharded=split.sharded) for split in (train, val)]
    several = train.target.shape[1] > 1
    if all(are) or (several and (any(are) or not train.target.is_floating_point())):
        return (_of_labels(train, val),)
    return _of_numbers(train, val) if several else (_of_single(*_column(0, train, val)),)


def _column(number: int, *splits: Features) -> tuple[Features, ...]:
    """Splits with one column of their targets."""
    return tuple(replace(split, target=split.target[:, number]) for split in splits)


def _of_numbers(train: Features, val: Features) -> tuple[Numbered, ...]:
    """Both splits for each of several numbers to regress on."""
    _check_targets_finite(train, val)
    varies = torch.ones(train.target.shape[1], dtype=torch.bool, device="cpu")
    for split in (train, val):
        low, high = extent(_values(split), sharded=split.sharded)
        varies &= (low != high).cpu()
    if not varies.any():
        raise UserError(
            "no number varies in both splits, so nothing can be compared. Draw the validation "
            "split again, or pass a larger one."
        )
    notes: dict[str, list[str]] = {}
    found = []
    for number in varies.nonzero()[:, 0].tolist():
        one = _of_single(*_column(number, train, val))
        for note in one.notes:
            notes.setdefault(note, []).append(str(number))
        found.append(replace(one, notes=()))
    said = [
        f"Column{'s' if which[1:] else ''} {', '.join(which)}: {note[0].lower()}{note[1:]}"
        for note, which in notes.items()
    ]
    said.append("Purities, gaps and errors are means over the columns.")
    if lacking := ", ".join(map(str, (~varies).nonzero()[:, 0].tolist())):
        said.append(f"Numbers that are constant in a split are left out: {lacking}.")
    return replace(found[0], notes=tuple(said)), *found[1:]


def _of_single(train: Features, val: Features) -> Numbered:
    """Both splits for one class or one number to regress on a sample."""
    if not train.target.is_floating_point():
        return Numbered(train, val, _check_classes(train, val))
    _check_targets_finite(train, val)
    _check_values(train, val)
    edges, are_classes = _edges(train, val)
    train = replace(train, target=torch.bucketize(_values(train), edges))
    val = replace(val, target=torch.bucketize(_values(val), edges))
    k = _check_classes(train, val, whole=False)
    counts = torch.stack(_counts(train.target, val.target, sharded=train.sharded))
    if are_classes:
        note = f"The target's {counts.shape[1]} values count as classes"
        if lacking := int((counts == 0).any(0).sum()):
            note += f"; in one split only: {lacking}"
    else:
        of_train = counts[0][counts[0] > 0]
        least, most = int(of_train.min()), int(of_train.max())
        bins = f"{k} equal-count bins"
        if most - least > 2:  # one as counts are whole, one by rounding
            bins = f"{k} bins of {least} to {most} training samples, since values recur"
        note = f"The regression target is cut into {bins}"
    return Numbered(train, val, k, (f"{note}.",))


def _of_labels(train: Features, val: Features) -> Numbered:
    """Both splits with the numbers of their sets of labels as targets."""
    told = torch.ones(train.target.shape[1], dtype=torch.bool, device=train.target.device)
    sizes = []
    for split, where in ((train, "training"), (val, "validation")):
        check_labels(f"the target of the {where} split", split.target, sharded=split.sharded)
        count = (split.target > 0).sum(0)
        size = distributed.sum_(count.new_tensor(len(split.target)), sharded=split.sharded)
        count = distributed.sum_(count, sharded=split.sharded)
        told &= ((count > 0) & (count < size)).to(told.device)
        sizes.append(int(size))
    if not told.any():
        raise UserError(
            "no label is present in some samples and absent from others in both splits, so "
            "nothing can be compared. Draw the validation split again, or pass a larger one."
        )
    k = max(min(int(told.sum()), *sizes), 2)
    lacking = ", ".join(map(str, (~told).nonzero()[:, 0].tolist()))
    note = f"Labels that all samples of a split have, or none, are left out: {lacking}."
    labels = torch.cat([train.target, val.target.to(told.device)])[:, told]
    sets, number = LabelSets.of(labels, sharded=train.sharded)
    train = replace(train, target=number[: len(train.target)])
    val = replace(val, target=number[len(train.target) :])
    count = train.target.bincount(minlength=len(sets.has))
    group = sets.rarest(distributed.sum_(count, sharded=train.sharded))
    return Numbered(train, val, k, (note,) if lacking else (), sets, group)


def rows_needed(gap: Gap, k: int) -> tuple[int, int]:
    """The fewest training and validation samples with a modality for `k` clusters.

    `shared` clusters the training split alone, and `stable` takes no more clusters than rows.
    """
    return {"shared": (k, 1), "stable": (2, 1)}.get(gap, (k, k))


def check_rows(columns: Sequence[Numbered], gap: Gap) -> None:
    """Raises if too few samples of a split have a modality."""
    numbered = max(columns, key=lambda column: column.k)
    needed = rows_needed(gap, numbered.k)
    for split, need in zip((numbered.train, numbered.val), needed, strict=True):
        have = [
            int(split.present[name].sum()) if name in split.present else len(split.target)
            for name in split.features
        ]
        counts = distributed.sum_(split.target.new_tensor(have), sharded=split.sharded)
        for name, count in zip(split.features, counts.tolist(), strict=True):
            if count < need == numbered.k:
                raise too_few(name, count, need)
            if count < need:
                raise UserError(
                    f"'{name}' has too few samples for gap='{gap}', which takes at least "
                    f"{needed[0]} of the training split and {needed[1]} of the validation split. "
                    "Pass larger splits, or leave that modality out."
                )


def too_few(name: str, count: int, k: int) -> UserError:
    """The refusal of a modality that too few samples have."""
    return UserError(
        f"'{name}' has {count} samples for {k} clusters (one per class): fewer samples than "
        "clusters. Pass larger splits, leave that modality out, or take gap='stable'."
    )


def check_gap(gap: str) -> None:
    """Raises if there is no such estimator."""
    if gap not in _ESTIMATORS:
        raise unknown("gap", gap, _ESTIMATORS)


def check_finite(
    split: Features, name: str, where: str, why: str = "Training has diverged"
) -> None:
    """Raises on every rank if a feature of modality `name` is NaN or infinite."""
    x = split.features[name]
    index = None if split.index is None else split.index.to(x.device)
    first = distributed.min_(first_not_finite(x, index), sharded=split.sharded)
    if int(first) != torch.iinfo(torch.int64).max:
        raise UserError(
            f"the features of '{name}' are NaN or infinite in row {int(first)} of the "
            f"{where} split. {why} or the input holds such values: lower the learning rate, or "
            "clean the input."
        )


def _check_targets_finite(train: Features, val: Features) -> None:
    """Raises on every rank if a regression target is NaN or infinite."""
    for split, where in ((train, "training"), (val, "validation")):
        bad = (~split.target.isfinite()).any().long()
        if int(distributed.max_(bad, sharded=split.sharded)):
            raise UserError(
                f"a target of the {where} split is NaN or infinite. Leave out samples without one."
            )


def _check_values(train: Features, val: Features) -> None:
    """Raises on every rank if a regression target is constant."""
    for split, where in ((train, "training"), (val, "validation")):
        low, high = extent(_values(split)[:, None], sharded=split.sharded)
        if bool(low == high):
            raise UserError(
                f"every target of the {where} split is {float(low):g}, so nothing can be "
                "compared. Pass a split with at least two values."
            )


def _check_classes(train: Features, val: Features, *, whole: bool = True) -> int:
    """How many classes the training split has, if both splits can be clustered.

    Args:
        train: The training split.
        val: The validation split.
        whole: Whether every class must be in both splits (not for numbers to regress on).

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
            f"the training split has only class {int(of_train.argmax())}, so nothing can be "
            "compared. Pass a split with at least two classes."
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
    return k


def _check_modalities(train: Features, val: Features) -> None:
    if missing := set(train.features) ^ set(val.features):
        raise UserError(f"modalities {sorted(missing)} are in one split only. Pass both.")
    for split in (train, val):
        if split.target.ndim > 2 or split.target.shape[1:] != train.target.shape[1:]:
            raise UserError(
                "a diagnosis takes one class or one value for each sample, or a column for each of "
                f"several labels or numbers; found targets of shape {tuple(split.target.shape)} in "
                f"one split and {tuple(train.target.shape)} in the training split. Pass the same "
                "columns of both."
            )
    for name, x in train.features.items():
        if x.shape[1] != val.features[name].shape[1]:
            raise UserError(
                f"the features of '{name}' are {x.shape[1]} wide in the training split but "
                f"{val.features[name].shape[1]} in the validation split. Take both from one "
                "encoder."
            )


def _index(split: Features) -> Tensor:
    if split.index is not None:
        return split.index
    return torch.arange(len(split.target), device=split.target.device)


def _counts(train: Tensor, val: Tensor, *, sharded: bool) -> tuple[Tensor, Tensor]:
    """Samples of each class in both splits, over all ranks."""
    size = _largest(torch.cat([train, val]), sharded=sharded) + 1
    if size > MOST:
        raise UserError(
            f"a label is {size - 1}, but classes are numbered from 0. Number other values with "
            "target.unique(return_inverse=True)[1]."
        )
    of_train, of_val = (torch.bincount(y, minlength=size) for y in (train, val))
    return distributed.sum_(of_train, sharded=sharded), distributed.sum_(of_val, sharded=sharded)


def _largest(x: Tensor, *, sharded: bool) -> int:
    """The largest of whole numbers over all ranks; -1 where there is none."""
    largest = x.max() if len(x) else torch.tensor(-1, device=x.device)
    return int(distributed.max_(largest, sharded=sharded))


def _values(split: Features) -> Float[Tensor, "n *c"]:
    """A regression target, precise enough to tell values apart."""
    return split.target.to(torch.promote_types(split.target.dtype, torch.float32)).contiguous()


def _edges(train: Features, val: Features) -> tuple[Float[Tensor, " edges"], bool]:
    """Edges between bins of the training targets, and whether these are classes.

    If there are few values, each is a class: class numbers stored as floats, or the 0 and 1 of one
    logit.
    """
    values, others = (
        torch.cat(distributed.gather(_values(split), sharded=split.sharded))
        for split in (train, val)
    )
    distinct = torch.cat([values, others]).unique()
    if len(distinct) <= BINS:
        return distinct[:-1], True
    steps = torch.arange(1, BINS, dtype=values.dtype, device=values.device) / BINS
    below = values[values < values.max()].max()  # the largest value has a bin, however common
    edges: Tensor = values.quantile(steps).minimum(below).unique()
    return edges, False


def _draw(rows: _Rows, wanted: Int[Tensor, " c"], seed: int) -> _Rows:
    """As many rows of each group as wanted, the same for any ranks and row order."""
    everyone = torch.cat(distributed.gather(rows.index, sharded=rows.sharded)).sort().values
    stream = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(everyone), generator=stream, dtype=torch.float64, device="cpu")
    drawn = drawn.to(rows.x.device)
    keys = drawn[torch.searchsorted(everyone, rows.index)]  # by place in the canonical order
    all_keys = torch.cat(distributed.gather(keys, sharded=rows.sharded))
    all_groups = torch.cat(distributed.gather(rows.group, sharded=rows.sharded))
    keep: Bool[Tensor, " n"] = torch.zeros_like(rows.group, dtype=torch.bool)
    for group, count in enumerate(wanted.tolist()):
        if count:
            last = all_keys[all_groups == group].kthvalue(count).values
            keep |= (rows.group == group) & (keys <= last)
    return rows.where(keep)
