"""k-means in torch: greedy k-means++ seeds and Lloyd's iterations, all restarts at once.

Sources: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++",
SODA 2007, in the greedy form, which draws a few candidates a step and keeps the best; Efraimidis
and Spirakis, "Weighted random sampling with a reservoir", 2006, for the race that draws them.

Letters: n rows, c rows of a chunk, d width, k clusters, r restarts, t candidates.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.chance import uniform
from evenly.errors import UserError

_TOLERANCE = 1e-4  # of the mean feature variance: a summed squared shift below it is an end
# Of the inertia: what an iteration must gain while the best restart is looked for. Against 0 it
# saves from 7 % (k = 31) to a third of the time, at the same inertia over 40 seeds of three sets.
_GAIN = 1e-5
_ITERATIONS = 300
_TIGHT = 0.05  # of the spread: fast products may not tell rows of clusters of less inertia apart
_CHUNK = 2**22  # elements of one chunk's rows, or of its distances if those are more
_CACHED = 8  # times smaller where a chunk's rows are copied: the copy then stays in the cache
_KEEP = 2**28  # bytes of centred rows that are kept; beyond, each pass centres them anew
_STATE = 2**27  # bytes that all restarts at once may always take
_LEAST = 20  # rows of a sample for each cluster
_DRAW = -1  # what tells the draw of a sample from other draws of a seed, whose steps are from 0


@dataclass(frozen=True)
class Clusters:
    """The best clustering of all restarts.

    Attributes:
        centers: The mean of each cluster's rows, up to the tolerance that ends the iterations; in
            float32 or the wider type of the rows.
        labels: The cluster of each of this rank's rows, which is its nearest centre.
        inertia: Squared distance of every rank's rows to their centres, summed.
    """

    centers: Float[Tensor, "k d"]
    labels: Int[Tensor, " n"]
    inertia: float


@torch.no_grad()
def kmeans(
    x: Shaped[Tensor, "n d"],
    k: int,
    *,
    seed: int = 0,
    restarts: int = 10,
    index: Int[Tensor, " n"] | None = None,
    sharded: bool = False,
    unit: Float[Tensor, " d"] | None = None,
    sample: int | None = None,
) -> Clusters:
    """Groups rows into `k` clusters of least squared distance to their means.

    Works on the device of `x` and in float32 whatever its type, which is any real one, on rows less
    their mean, so that a large offset costs no precision. Where the hardware has faster products
    they lead up to the clusters, and float32 products give the labels. A seed gives the same
    clusters for any order of the rows and any cut over ranks, up to rounding. No global random
    stream is read.

    With fewer distinct rows than `k` some clusters stay empty; any other that runs empty goes
    to the row farthest from its centre.

    Where there are more rows than `sample`, the restarts see that many of them, drawn at random,
    and the best one's centres then move in passes over all rows, until one lowers the inertia by
    1e-5 of it or less: five to twenty passes for tens of clusters, many more for a thousand. The
    rows may lie in a file larger than the memory, as `torch.from_file` and NumPy's memory maps
    read them. Beside them it takes up to 10 bytes of memory for each value of the sample, 40 for
    each row (labels included) and 0.15 GB.

    Args:
        x: The rows.
        k: Number of clusters, from 1.
        seed: Decides the first centres.
        restarts: Number of starts, from 1; the clustering of least inertia counts.
        index: Position of each row in a canonical order, each once over all ranks; by default
            the rows as they are, rank after rank.
        sharded: Whether the rows are this rank's share. Then every rank must call; what they
            exchange is sums and a few candidates for centres.
        unit: Of each dimension, above 0: rows are compared divided by it. 1 by default.
        sample: About how many rows, over all ranks, the restarts see: 20 a cluster at least,
            some hundreds a cluster to find clusters as pure as from all. By default all.

    Raises:
        TypeError: If `x` is no tensor or complex.
        ValueError: If `x` is no matrix or not finite, if `k`, `restarts`, `unit` or `sample` is
            too small, or if there are fewer rows than clusters, over all ranks.
    """
    check_rows(x, "kmeans")
    if x.ndim != 2:
        raise UserError(
            f"kmeans: x must be a matrix with a row per sample; found shape {tuple(x.shape)}. "
            "Flatten each sample, for instance by x.flatten(1)."
        )
    for name, value in (("k", k), ("restarts", restarts)):
        if value < 1:
            raise UserError(f"kmeans: {name} must be at least 1; found {value}.")
    check_sample(sample, k)
    if unit is not None and not bool((unit > 0).all()):
        raise UserError(
            f"kmeans: unit must be above 0 in each dimension; found {float(unit.min())}."
        )
    with torch.autocast(x.device.type, enabled=False):
        rows = _Rows(x, index, sharded, unit)
        if rows.total < k:
            raise UserError(
                f"kmeans: fewer samples than clusters: {rows.total} rows for k = {k}. "
                "Pass more rows or a smaller k."
            )
        if sample is not None and rows.total <= sample:
            sample = None
        rows.center(keep=sample is None)
        if sample is None:
            start, _ = _start(rows, k, seed, restarts)
            with _products(fast=False):
                ends, _ = _lloyd(rows, start, gain=0.0)
        else:
            start, fast = _start_from(rows, sample, k, seed, restarts)
            with _products(fast=fast):
                ends, _ = _lloyd(rows, start, gain=_GAIN)
        with _products(fast=False):
            centers = rows.uncentred(ends[0]).to(rows.dtype)
            labels = _assign(x, centers, unit)
        return Clusters(centers, labels, rows.inertia(centers, labels))


def check_sample(sample: int | None, k: int) -> None:
    """Raises if so few rows cannot stand for all when they go into `k` clusters."""
    if sample is not None and sample < _LEAST * k:
        raise UserError(
            f"'sample' is at least {_LEAST} rows a cluster, which is {_LEAST * k} for {k} "
            f"clusters; found {sample}."
        )


@torch.no_grad()
def assign(
    x: Shaped[Tensor, "n d"], centers: Float[Tensor, "k d"], unit: Float[Tensor, " d"] | None = None
) -> Int[Tensor, " n"]:
    """The nearest centre of each row, the first of several equally near; in float32.

    Args:
        x: The rows, for instance of another split than that of the clustering.
        centers: As found by `kmeans`.
        unit: The one that they were found with.

    Raises:
        TypeError: If `x` is no tensor or complex.
        ValueError: If a row is not finite.
    """
    check_rows(x, "assign")
    _check_finite(x, None, "assign")
    with torch.autocast(x.device.type, enabled=False), _products(fast=False):
        return _assign(x, centers, unit)


def _assign(x: Tensor, centers: Tensor, unit: Tensor | None) -> Tensor:
    offset = centers.mean(0)
    near = _compared(centers, offset, unit).float()[None]
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    step = chunk_rows(_CACHED * x.shape[1], len(centers))
    for part, label in zip(x.split(step), labels.split(step), strict=True):
        label.copy_(_nearest(_scores(near, _compared(part, offset, unit).float()))[0])
    return labels


def _compared(x: Tensor, origin: Tensor, unit: Tensor | None) -> Tensor:
    """Rows from an origin, in units; a new tensor, of float32 or wider."""
    x = floats(x) - origin
    return x if unit is None else x.div_(unit)


def _start(rows: "_Rows", k: int, seed: int, restarts: int) -> tuple[Tensor, bool]:
    """Centres (1 k d) of the restart that ends best, and whether fast products tell rows apart."""
    start, inertia = _best(rows, k, seed, restarts, fast=True)
    if inertia >= _TIGHT * rows.spread:
        return start, True
    return _best(rows, k, seed, restarts, fast=False)[0], False


def _start_from(
    rows: "_Rows", sample: int, k: int, seed: int, restarts: int
) -> tuple[Tensor, bool]:
    """The same, found among a sample of the rows."""
    some = rows.drawn(sample, seed)
    some.center()
    start, fast = _start(some, k, seed, restarts)
    return rows.centred(some.uncentred(start)), fast


def _best(rows: "_Rows", k: int, seed: int, restarts: int, *, fast: bool) -> tuple[Tensor, float]:
    """Centres (1 k d) and inertia of the restart that ends best."""
    with _products(fast=fast):
        groups = torch.arange(restarts, device=rows.x.device).split(_at_once(rows, k))
        ends = [_lloyd(rows, _seeds(rows, k, seed, group), gain=_GAIN) for group in groups]
    explained = torch.cat([explained for _, explained in ends])
    # Restarts with the same end differ by rounding, and the first of them counts.
    best = int((explained >= explained.max() - 1e-7 * rows.spread).nonzero()[0])
    centers = torch.cat([centers for centers, _ in ends])[best : best + 1]
    return centers.float(), rows.spread - float(explained[best])


class _Rows:
    """The rows to cluster, read in chunks less their mean; knows of the other ranks' rows.

    Attributes:
        total: Number of rows over all ranks.
        longest: Number of rows of the rank that has most.
        dtype: What the centres are returned in.
        wide: What sums run in.
        offset: The mean of all rows.
        norms: Squared distance of each row from the mean.
        spread: The sum of `norms` over all ranks.
    """

    def __init__(
        self, x: Tensor, index: Tensor | None, sharded: bool, unit: Tensor | None = None
    ) -> None:
        self.x = x
        self.unit = unit
        self.sharded = sharded and distributed.world_size() > 1
        lengths = [int(n) for n in self.gather(torch.tensor([len(x)], device=x.device))]
        self.before = sum(lengths[: distributed.rank()]) if self.sharded else 0
        self.index = None if index is None else index.to(x.device)
        self.total = sum(lengths)
        self.longest = max(lengths)
        self.dtype = torch.promote_types(floats(x[:0]).dtype, torch.float32)
        self.wide = torch.float32 if x.device.type == "mps" else torch.float64

    def center(self, *, keep: bool = True) -> None:
        """Finds the mean and the spread; may keep the centred rows, if they are few."""
        total = torch.zeros(self.x.shape[1], dtype=self.wide, device=self.x.device)
        for part in self.x.split(chunk_rows(self.x.shape[1], 1)):
            total += floats(part).sum(0, dtype=self.dtype)
        self.offset = self.sum_(total) / self.total
        if not bool(self.offset.isfinite().all()):  # NaN and infinity survive a sum
            _check_finite(self.x, self.index, "kmeans", self.sharded, self.before)
        self._offset = self.offset.to(self.dtype)
        self._kept: Tensor | None = None
        if keep and self.x.numel() * 4 <= _KEEP:
            kept = torch.empty(self.x.shape, dtype=torch.float32, device=self.x.device)
            for part, span in self.chunks(1):
                kept[span] = part
            self._kept = kept
        # Filled in place, here and below: small results kept between the freed parts of a loop
        # would leave holes that glibc cannot use again, as large as all the rows.
        self.norms = torch.empty(len(self.x), dtype=torch.float32, device=self.x.device)
        for part, span in self.chunks(1):
            torch.linalg.vector_norm(part, dim=1, out=self.norms[span])
        self.norms.square_()
        self.spread = float(self.sum_(self.norms.sum(dtype=self.wide)))
        if math.isinf(self.spread):
            raise UserError(
                "kmeans: rows are so far apart that their squared distances are infinite in "
                "float32. Scale them, or pass their extent as `unit`."
            )

    def chunks(self, columns: int) -> Iterator[tuple[Tensor, slice]]:
        """The centred rows in chunks that stay small when each row gets `columns` values."""
        step = chunk_rows(self.x.shape[1], columns)
        for start in range(0, max(len(self.x), 1), step):
            span = slice(start, start + step)
            yield self.take(span), span

    def take(self, at: Tensor | slice) -> Tensor:
        """The centred rows at some places."""
        return self.centred(self.x[at]) if self._kept is None else self._kept[at]

    def centred(self, x: Tensor) -> Tensor:
        """What is compared of rows or centres: their distance from the mean, in units."""
        return _compared(x, self._offset, self.unit).float()

    def uncentred(self, centers: Tensor) -> Tensor:
        """The centres that `centred` made these of."""
        return (centers if self.unit is None else centers * self.unit) + self.offset

    def places(self, span: slice) -> Tensor:
        """Canonical positions of the rows of a span."""
        return _places(self.x, self.index, span, self.before)

    def drawn(self, count: int, seed: int) -> "_Rows":
        """About `count` rows over all ranks: the same for any order and any cut over ranks."""
        keep = torch.empty(len(self.x), dtype=torch.bool, device=self.x.device)
        step = chunk_rows(_CACHED)
        for start in range(0, len(keep), step):
            span = slice(start, start + step)
            keep[span] = uniform(self.places(span), seed, _DRAW) < count / self.total
        at = keep.nonzero()[:, 0]
        index = at + self.before if self.index is None else self.index[at]
        return _Rows(self.x[at], index, self.sharded, self.unit)

    def first(self, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` rows of smallest key over all ranks, for each restart.

        Args:
            key: Of each restart and row (r n).
            count: How many.

        Returns:
            Their keys (r t), from the smallest, and the centred rows (r t d).
        """
        key, at = key.topk(min(count, key.shape[1]), largest=False)
        if not self.sharded:
            return key, self.take(at)
        # Every rank's keys, but of the rows only those that win, each from the rank that has it.
        none = math.inf if key.is_floating_point() else torch.iinfo(key.dtype).max
        padded = key.new_full((len(key), count), none)
        padded[:, : key.shape[1]] = key
        keys = distributed.stack(padded).transpose(0, 1).flatten(1)
        key, winner = keys.topk(count, largest=False)
        mine = winner // count == distributed.rank()
        shape = (*winner.shape, self.x.shape[1])
        rows = torch.zeros(shape, dtype=torch.float32, device=self.x.device)
        rows[mine] = self.take(at[mine.nonzero()[:, 0], winner[mine] % count])
        return key, self.sum_(rows)

    def inertia(self, centers: Tensor, labels: Tensor) -> float:
        """Squared distance of all rows to their centres, summed."""
        total = torch.zeros((), dtype=self.wide, device=self.x.device)
        step = chunk_rows(_CACHED * self.x.shape[1])
        for part, label in zip(self.x.split(step), labels.split(step), strict=True):
            own = centers.index_select(0, label)  # five times as fast as centers[label]
            distance = torch.linalg.vector_norm(_compared(part, own, self.unit), dim=1)
            total += distance.square_().sum()
        return float(self.sum_(total))

    def sum_(self, x: Tensor) -> Tensor:
        """Adds `x` over the ranks that share the rows, in place."""
        return distributed.sum_(x) if self.sharded else x

    def gather(self, x: Tensor) -> list[Tensor]:
        """`x` of every rank that shares the rows."""
        return distributed.gather(x) if self.sharded else [x]


def _seeds(rows: _Rows, k: int, seed: int, restarts: Tensor) -> Tensor:
    """First centres (r k d) by greedy k-means++.

    Each step draws a few rows with probability proportional to their squared distance from the
    centres so far, and keeps the one that lowers the sum of these distances most.
    """
    r, n, d = len(restarts), len(rows.x), rows.x.shape[1]
    device = rows.x.device
    each = torch.arange(r, device=device)
    base = _mix(rows.places(slice(0, n)).to(torch.int32))
    start = _mix(_mix(restarts.new_tensor([seed & 0x7FFFFFFF, seed >> 31]).to(torch.int32)))
    centers = torch.empty(r, k, d, dtype=torch.float32, device=device)
    closest = torch.full((r, n), math.inf, dtype=torch.float32, device=device)
    closer = torch.empty(r, _tries(k), n, dtype=torch.float32, device=device)
    for step in range(k):
        key = _mix(_mix(start[0] ^ _mix(start[1] + step)) ^ restarts.to(torch.int32))
        weight = closest if step else torch.ones_like(closest)
        _, candidates = rows.first(_race(base ^ key[:, None], weight), _tries(k) if step else 1)
        t = candidates.shape[1]
        potential = torch.zeros(r, t, dtype=rows.wide, device=device)
        for part, span in rows.chunks(r * t):
            distance = _scores(candidates, part).add_(rows.norms[span])
            distance = torch.minimum(distance, closest[:, None, span])
            potential += distance.sum(2)
            closer[:, :t, span] = distance
        best = rows.sum_(potential).argmin(1)
        closest = closer[each, best]
        centers[:, step] = candidates[each, best]
    return centers


def _race(ticket: Tensor, weight: Tensor) -> Tensor:
    """Arrival times of a race that row i wins with probability weight_i / sum of weights.

    The first few to arrive are a weighted draw without replacement. A row of weight zero
    arrives after all others, and never at NaN.
    """
    uniform = (_mix(ticket) & 0x7FFFFFFF).float().mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().div_(weight.clamp_min(1e-36))


def _mix(x: Tensor) -> Tensor:
    """Scrambles the bits of int32 numbers (MurmurHash3's last step)."""
    x = x ^ (x >> 16 & 0xFFFF)
    x *= -2048144789
    x ^= x >> 13 & 0x7FFFF
    x *= -1028477387
    x ^= x >> 16 & 0xFFFF
    return x


def _lloyd(rows: _Rows, centers: Tensor, *, gain: float) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from `centers` (r k d) until each restart has come to rest.

    Args:
        rows: The rows.
        centers: Where each restart begins.
        gain: An iteration that lowers the inertia by this share of it or less is the last, even
            if the centres still move. Rounding can lead in circles, which gain nothing.

    Returns:
        The centres (r k d) and the spread that they explain (r), which is the spread of the
        rows less the inertia; both in the wide type.
    """
    r, k = centers.shape[:2]
    device = rows.x.device
    rest = _TOLERANCE * rows.spread / (rows.total * rows.x.shape[1])
    active = torch.arange(r, device=device)
    labels = torch.full((r, len(rows.x)), -1, dtype=torch.int32, device=device)
    sums = torch.zeros(centers.shape, dtype=rows.wide, device=device)
    sizes = torch.zeros(r, k, dtype=rows.wide, device=device)
    ends, explained = sums.clone(), sizes[:, 0] - math.inf
    for _ in range(_ITERATIONS):
        for part, span in rows.chunks(len(active) * k):
            _move(part, labels[:, span], centers, sums, sizes)
        means = rows.sum_(sums.clone())
        size = rows.sum_(sizes.clone())
        means /= size.clamp_min(1)[:, :, None]
        before, now = explained[active], (means.square().sum(2) * size).sum(1)
        explained[active] = now
        for restart in (size == 0).any(1).nonzero()[:, 0]:
            _refill(rows, labels[restart], means[restart], size[restart] == 0)
        ends[active] = means
        shift = (means - centers).square().sum((1, 2))
        centers = means.float()
        moving = (shift > rest) & (now - before > gain * (rows.spread - now).clamp_min(0))
        if not moving.any():
            break
        if not moving.all():
            active, labels, centers = active[moving], labels[moving], centers[moving]
            sums, sizes = sums[moving], sizes[moving]
    return ends, explained


def _move(part: Tensor, labels: Tensor, centers: Tensor, sums: Tensor, sizes: Tensor) -> None:
    """Moves the rows of a chunk to their nearest centres; updates the last three in place.

    Only rows that change their cluster in some restart enter the product that updates the
    sums: after a few iterations that is one in ten.
    """
    k = centers.shape[1]
    nearest = _nearest(_scores(centers, part))
    moved = (nearest != labels).any(0)
    some = moved.nonzero()[:, 0]
    before, after = labels, nearest
    if len(some) < 0.8 * len(part):  # else copying the rows would cost more than it saves
        # Rows that stay fill up: oneDNN compiles anew for each shape, as long as a product takes.
        some = torch.cat([some, (~moved).nonzero()[: -len(some) % 256, 0]])
        part = part.index_select(0, some)
        before, after = labels.index_select(1, some), nearest.index_select(1, some)
    change = _one_hot(after, k) - _one_hot(before, k)
    sums += (change.flatten(0, 1) @ part).view_as(sums)
    sizes += change.sum(2)
    labels.copy_(nearest)


def _refill(rows: _Rows, labels: Tensor, means: Tensor, empty: Tensor) -> None:
    """Sets the means of empty clusters to the rows farthest from theirs, in place."""
    distance = torch.empty_like(rows.norms)
    for part, span in rows.chunks(1):
        own = means.float().index_select(0, labels[span])
        torch.linalg.vector_norm(part - own, dim=1, out=distance[span])
    distance.square_()
    # Rows on their centre up to rounding are left there, or equal rows would never settle.
    distance[distance <= 1e-12 * rows.norms] = 0
    # The bits of a float from 0 on are ordered as it is: farthest first, then by position.
    key = distance.view(torch.int32).long().neg_().add_(0x7FFFFFFF)
    key <<= 32
    key |= rows.places(slice(0, len(key)))
    key, farthest = rows.first(key[None], int(empty.sum()))
    off = key[0] >> 32 < 0x7FFFFFFF
    means[empty.nonzero()[off, 0]] = farthest[0, off].to(means.dtype)


def _scores(centers: Tensor, part: Tensor) -> Tensor:
    """Squared distance of each row to each centre (r k c), less the row's own square."""
    flat = centers.flatten(0, 1)
    scores = (-2 * flat) @ part.T
    scores += flat.square().sum(1, keepdim=True)
    return scores.view(*centers.shape[:2], len(part))


def _nearest(scores: Tensor) -> Tensor:
    """The place of the smallest score of each row (r c), the first of equals; eats `scores`."""
    k = scores.shape[1]
    # On CPU three times as fast as min(1), which keeps indices as it goes.
    rank = torch.arange(k, 0, -1, dtype=scores.dtype, device=scores.device)[:, None]
    return k - scores.eq_(scores.amin(1, keepdim=True)).mul_(rank).amax(1).to(torch.int32)


def _one_hot(labels: Tensor, k: int) -> Tensor:
    """One-hot columns (r k c) of labels (r c); all zero for a label outside 0 to k - 1."""
    clusters = torch.arange(k, dtype=labels.dtype, device=labels.device)[:, None]
    return (labels[:, None] == clusters).float()


def _tries(k: int) -> int:
    """Number of candidates that a step of k-means++ compares."""
    return 2 + int(math.log(k))


def chunk_rows(*columns: int) -> int:
    """Number of rows that are worked on at a time when each takes so many values."""
    return max(_CHUNK // max(*columns, 1), 1)


def _at_once(rows: _Rows, k: int) -> int:
    """Number of restarts that run at once: all, unless their state outweighs the rows."""
    width = rows.x.shape[1]
    restart = 4 * rows.longest * (_tries(k) + 8) + 40 * k * width
    return max(max(_STATE, rows.longest * width * 4 // 5) // restart, 1)


def _check_finite(
    x: Tensor, index: Tensor | None, name: str, sharded: bool = False, before: int = 0
) -> None:
    """Raises the same error on every rank if a row is not finite."""
    bad = first_not_finite(x, index, before)
    first = int(distributed.min_(bad) if sharded else bad)
    if first < torch.iinfo(torch.int64).max:
        raise UserError(
            f"{name}: row {first} of x holds NaN or infinity. Leave it out, or find out where "
            "it comes from: an encoder that diverged gives such rows."
        )


def floats(x: Tensor) -> Tensor:
    """Rows of any real type as floats to calculate with, exactly up to 2^53."""
    if x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return x
    is_long = x.dtype.itemsize > 2 and x.device.type != "mps"
    return x.to(torch.float64 if is_long else torch.float32)


def check_rows(x: object, caller: str) -> None:
    """Raises if something is no tensor of real numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{caller}: x is a {type(x).__name__}, but a tensor is needed. torch.as_tensor makes "
            "one of an array."
        )
    if x.is_complex():
        raise TypeError(
            f"{caller}: x holds complex numbers, which are not compared with one another. Pass "
            "real and imaginary parts as columns of their own: torch.cat([x.real, x.imag], 1)."
        )


def first_not_finite(x: Tensor, index: Tensor | None = None, before: int = 0) -> Tensor:
    """The first position of a row with NaN or infinity; the largest int64 if all are finite.

    Args:
        x: The rows (n d).
        index: Position of each; by default their number in `x`, counted from `before`.
        before: Rows of the ranks before this one.
    """
    bad = torch.full((1,), torch.iinfo(torch.int64).max, device=x.device)
    step = chunk_rows(x.shape[1], 1)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        part = floats(part)
        # NaN and infinity survive a sum: rows are looked at one by one only if it has them.
        if not part.sum(dtype=torch.promote_types(part.dtype, torch.float32)).isfinite():
            places = _places(x, index, slice(start, start + step), before)
            places = places[~part.isfinite().all(1)]
            if len(places):
                bad = torch.minimum(bad, places.min())
    return bad


def _places(x: Tensor, index: Tensor | None, span: slice, before: int) -> Tensor:
    if index is not None:
        return index[span]
    return torch.arange(before + span.start, before + min(span.stop, len(x)), device=x.device)


@contextmanager
def _products(*, fast: bool) -> Iterator[None]:
    """Lets float32 products run in less precision where that is faster, or not at all.

    On CUDA that is TF32. On CPU it lets oneDNN choose: bfloat16 with AMX, elsewhere float32 in
    its own kernels, which are twice as fast as MKL's on AMD.
    """
    places = [torch.backends.mkldnn, torch.backends.cuda]
    # Torch before 2.9 has no setting by backend; there products stay as the user set them.
    settings = [place.matmul for place in places if hasattr(place, "matmul")]
    settings = [matmul for matmul in settings if hasattr(matmul, "fp32_precision")]
    before = [matmul.fp32_precision for matmul in settings]
    try:
        for matmul, quick in zip(settings, ("bf16", "tf32"), strict=False):
            matmul.fp32_precision = quick if fast else "ieee"
        yield
    finally:
        for matmul, value in zip(settings, before, strict=True):
            matmul.fp32_precision = value
