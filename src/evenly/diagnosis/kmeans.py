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

from evenly.diagnosis.rows import CACHED, Rows, check_finite, check_rows, chunk_rows, compared
from evenly.errors import UserError

_TOLERANCE = 1e-4  # of the mean feature variance: a summed squared shift below it is an end
# Of the inertia: what an iteration must gain while the best restart is looked for. Against 0 it
# saves from 7 % (k = 31) to a third of the time, at the same inertia over 40 seeds of three sets.
_GAIN = 1e-5
_ITERATIONS = 300
_TIGHT = 0.05  # of the spread: fast products may not tell rows of clusters of less inertia apart
_STATE = 2**27  # bytes that all restarts at once may always take
_LEAST = 20  # rows of a sample for each cluster


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
        rows = Rows(x, index, sharded, unit)
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
    check_finite(x, None, "assign")
    with torch.autocast(x.device.type, enabled=False), _products(fast=False):
        return _assign(x, centers, unit)


def _assign(x: Tensor, centers: Tensor, unit: Tensor | None) -> Tensor:
    offset = centers.mean(0)
    near = compared(centers, offset, unit).float()[None]
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    step = chunk_rows(CACHED * x.shape[1], len(centers))
    for part, label in zip(x.split(step), labels.split(step), strict=True):
        label.copy_(_nearest(_scores(near, compared(part, offset, unit).float()))[0])
    return labels


def _start(rows: "Rows", k: int, seed: int, restarts: int) -> tuple[Tensor, bool]:
    """Centres (1 k d) of the restart that ends best, and whether fast products tell rows apart."""
    start, inertia = _best(rows, k, seed, restarts, fast=True)
    if inertia >= _TIGHT * rows.spread:
        return start, True
    return _best(rows, k, seed, restarts, fast=False)[0], False


def _start_from(rows: "Rows", sample: int, k: int, seed: int, restarts: int) -> tuple[Tensor, bool]:
    """The same, found among a sample of the rows."""
    some = rows.drawn(sample, seed)
    some.center()
    start, fast = _start(some, k, seed, restarts)
    return rows.centred(some.uncentred(start)), fast


def _best(rows: "Rows", k: int, seed: int, restarts: int, *, fast: bool) -> tuple[Tensor, float]:
    """Centres (1 k d) and inertia of the restart that ends best."""
    with _products(fast=fast):
        groups = torch.arange(restarts, device=rows.x.device).split(_at_once(rows, k))
        ends = [_lloyd(rows, _seeds(rows, k, seed, group), gain=_GAIN) for group in groups]
    explained = torch.cat([explained for _, explained in ends])
    # Restarts with the same end differ by rounding, and the first of them counts.
    best = int((explained >= explained.max() - 1e-7 * rows.spread).nonzero()[0])
    centers = torch.cat([centers for centers, _ in ends])[best : best + 1]
    return centers.float(), rows.spread - float(explained[best])


def _seeds(rows: Rows, k: int, seed: int, restarts: Tensor) -> Tensor:
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


def _lloyd(rows: Rows, centers: Tensor, *, gain: float) -> tuple[Tensor, Tensor]:
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


def _refill(rows: Rows, labels: Tensor, means: Tensor, empty: Tensor) -> None:
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


def _at_once(rows: Rows, k: int) -> int:
    """Number of restarts that run at once: all, unless their state outweighs the rows."""
    width = rows.x.shape[1]
    restart = 4 * rows.longest * (_tries(k) + 8) + 40 * k * width
    return max(max(_STATE, rows.longest * width * 4 // 5) // restart, 1)


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
