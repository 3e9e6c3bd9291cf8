"""k-means in torch: greedy k-means++ seeds and Lloyd's iterations, all restarts at once.

The restarts see a draft of the rows and end early if they are unlikely to become the best. The best
is then mended: where it pays, centres jump from groups that have two centres into clusters that
hold two groups.

Sources: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++",
SODA 2007, in the greedy form, which draws a few candidates a step and keeps the best; Efraimidis
and Spirakis, "Weighted random sampling with a reservoir", 2006, for the race that draws them;
Fritzke, "The breathing k-means algorithm", 2020, for centres that jump.

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

_TOLERANCE = 1e-4  # of the mean feature variance: a smaller summed squared shift is the end
# Shares of the inertia that an iteration must gain: during the search for the best start, and until
# that has converged. Compared with 1e-5 throughout, rough ones end at most 0.06 % higher (6 seeds
# of ten sets).
_ROUGH, _GAIN = 1e-3, 1e-5
_ITERATIONS = 300
_TIGHT = 0.05  # of the spread: with less inertia, fast products may not tell rows apart
_PATIENCE = 3  # times its last gain: how far behind the best a restart may be and still go on
_DRAFT = 2**19  # values of the rows that the restarts see, or of their distances if those are more
_EACH = 128  # minimum rows of these for each cluster
_ENOUGH = 3  # restarts with the same end, after which the search for a better one stops
_TRIALS = 8  # rounds of jumps; the first that does not pay is the last
# Share of a jump's cost that it must gain to be tried, since the other centres help it. Of 54
# single jumps that paid (5 seeds of eight sets), the least gained 0.25. If each class has its
# centre, the best gained 0.06 to 0.21.
_HOPE = 0.25
_TRIED = 8  # sets of jumps side by side
_FEW = 2**18  # values of rows too few to be worth choosing from
_CUTS = 3  # of each cluster in two; fewer and fewer rows change their half
_STATE = 2**27  # bytes that simultaneous restarts may always take
_LEAST = 20  # minimum rows of a sample for each cluster


class TooFewRows(UserError):
    """Fewer rows than clusters."""

    def __init__(self, rows: int, k: int) -> None:
        """Says how many rows there are for how many clusters."""
        super().__init__(
            f"kmeans: fewer samples than clusters: {rows} rows for k = {k}. Pass more rows or a "
            "smaller k."
        )
        self.rows = rows


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

    It works on the device of `x`, in float32 for any real type, on rows minus their mean, so a
    large offset costs no precision. If the hardware has faster products, they are used to find the
    clusters, and float32 products give the labels. A seed gives the same clusters for any order of
    the rows and any division over ranks, up to rounding. It reads no global random stream.

    With fewer distinct rows than `k`, some clusters stay empty; any other cluster that becomes
    empty moves to the row farthest from its centre.

    If there are more rows than `sample`, the restarts see that many, drawn at random. The centres
    of the best then move in passes over all rows, until a pass lowers the inertia by at most 1e-5
    of it: five to twenty passes for tens of clusters, many more for a thousand. The rows may be in
    a file larger than memory, read by `torch.from_file` or NumPy's memory maps. Beside them, it
    takes up to 10 bytes of memory for each value of the sample, 40 for each row (including labels)
    and 0.15 GB.

    Args:
        x: The rows.
        k: Number of clusters, from 1.
        seed: Decides the first centres.
        restarts: Number of starts, from 1; the one with the least inertia counts. If there are many
            more rows than needed to tell starts apart, they see a random part of them.
        index: Position of each row in a canonical order, each once over all ranks; by default the
            order of the rows, rank after rank.
        sharded: Whether the rows are only this rank's share. Then every rank must call this; they
            exchange only sums and a few candidate centres.
        unit: Unit of each dimension, above 0: rows are divided by it before comparison. 1 by
            default.
        sample: Approximate number of rows, over all ranks, that the restarts see: at least 20 per
            cluster, a few hundred per cluster for clusters as pure as from all rows. All by
            default.

    Raises:
        TypeError: If `x` is not a tensor, or complex.
        ValueError: If `x` is not a matrix or not finite, if `k`, `restarts`, `unit` or `sample` is
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
            raise TooFewRows(rows.total, k)
        if sample is not None and rows.total <= sample:
            sample = None
        rows.center(keep=sample is None)
        if sample is None:
            start, _ = _start(rows, k, seed, restarts)
            with _products(fast=False):
                ends, _ = _lloyd(rows, start, gain=0.0)
        else:
            some = rows.drawn(sample, seed)
            some.center()
            start, fast = _start(some, k, seed, restarts)
            with _products(fast=fast):
                ends, _ = _lloyd(rows, rows.centred(some.uncentred(start)), gain=_GAIN)
        with _products(fast=False):
            centers = rows.uncentred(ends[0]).to(rows.dtype)
            labels = _assign(x, centers, unit)
        return Clusters(centers, labels, rows.inertia(centers, labels))


def check_sample(sample: int | None, k: int) -> None:
    """Raises if so few rows cannot represent all in `k` clusters."""
    if sample is not None and sample < _LEAST * k:
        raise UserError(
            f"'sample' must be at least {_LEAST} rows per cluster, which is {_LEAST * k} for "
            f"{k} clusters; found {sample}."
        )


@torch.no_grad()
def assign(
    x: Shaped[Tensor, "n d"], centers: Float[Tensor, "k d"], unit: Float[Tensor, " d"] | None = None
) -> Int[Tensor, " n"]:
    """The nearest centre of each row, the first of several equally near; in float32.

    Args:
        x: The rows, for instance from another split than the clustered one.
        centers: The centres, from `kmeans`.
        unit: The unit used to find them.

    Raises:
        TypeError: If `x` is not a tensor, or complex.
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


def _start(rows: Rows, k: int, seed: int, restarts: int) -> tuple[Tensor, bool]:
    """Centres (1 k d) close to the result, and whether fast products tell rows apart.

    The restarts see a draft of the rows; the best of them continues on all.
    """
    draft = rows
    size = _draft_size(rows.x.shape[1], k, restarts)
    if rows.total > 1.5 * size:
        draft = rows.drawn(size, seed)
        draft.center()
    start, inertia, agreed = _draft(draft, k, seed, restarts, fast=True)
    fast = inertia >= _TIGHT * draft.spread
    if not fast:
        start, _, agreed = _draft(draft, k, seed, restarts, fast=False)
    if draft is not rows:
        start = rows.centred(draft.uncentred(start))
        if not agreed:
            with _products(fast=fast):
                start, explained = _lloyd(rows, start, gain=_GAIN)
                start, _ = _mended(rows, start, explained, seed)
    return start.float(), fast


def _draft(
    rows: Rows, k: int, seed: int, restarts: int, *, fast: bool
) -> tuple[Tensor, float, bool]:
    """Centres (1 k d) and inertia of the best restart, mended unless most agree."""
    with _products(fast=fast):
        groups = torch.arange(restarts, device=rows.x.device).split(_at_once(rows, k))
        ends = [_lloyd(rows, _seeds(rows, k, seed, group), gain=_ROUGH) for group in groups]
        explained = torch.cat([explained for _, explained in ends])
        # Restarts with the same end differ by rounding; the first of them counts.
        best = int((explained >= explained.max() - 1e-7 * rows.spread).nonzero()[0])
        centers = torch.cat([centers for centers, _ in ends])[best : best + 1]
        most = explained[best]
        agreed = _agreed(torch.cat([centers for centers, _ in ends]), centers[0])
        if not agreed:
            centers, most = _mended(rows, centers, most, seed)
    return centers.float(), rows.spread - float(most), agreed


def _draft_size(width: int, k: int, restarts: int) -> int:
    """Number of rows that the restarts see, if there are many more."""
    return max(_DRAFT // max(width, restarts * k), _EACH * k)


def _agreed(ends: Tensor, best: Tensor) -> bool:
    """Whether several restarts ended (r k d) near the centres of the best (k d)."""
    gap = torch.cdist(best, best).fill_diagonal_(math.inf).amin(1)
    same = (torch.cdist(best, ends).amin(2) < gap / 2).all(1)  # one to one: gaps do not overlap
    return int(same.sum()) >= _ENOUGH


def _mended(rows: Rows, centers: Tensor, explained: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Lets centres jump out of groups that have two, into clusters that hold two groups.

    Lloyd's iterations cannot: no centre crosses the void in between. This follows breathing k-means
    (Fritzke, 2020), but measures a jump's gain beforehand, by splitting each cluster.

    Args:
        rows: The rows.
        centers: Where Lloyd's iterations ended (1 k d).
        explained: The spread that they explain.
        seed: Decides how clusters are split.

    Returns:
        Both, after the jumps that paid.
    """
    centers = centers.float()
    for trial in range(_TRIALS):
        halves, trials = _jumps(rows, centers[0], seed, trial)
        if not trials:
            break
        after = centers.repeat(len(trials), 1, 1)
        for variant, jumps in zip(after, trials, strict=True):
            away, split = torch.tensor(jumps, device=variant.device).T
            variant[split], variant[away] = halves[0, split], halves[1, split]
        ends, found = _lloyd(rows, after, gain=_ROUGH, best=explained)
        best = int(found.argmax())
        if found[best] - explained <= _GAIN * (rows.spread - found[best]):
            break
        centers, explained = ends[best : best + 1].float(), found[best]
    return centers, explained


def _jumps(
    rows: Rows, centers: Tensor, seed: int, trial: int
) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """Halves (2 k d) of each cluster, and sets of jumps to try: which centre, to which cluster."""
    parts = _parted(rows, centers)
    halves, sizes = _halves(rows, parts, _toward(rows, parts, seed, trial))
    k, means = len(centers), parts.means
    gain = (sizes * (halves - means).square().sum(2)).sum(0)
    size = parts.sizes.clamp_min(1)
    # Less than the rows' distances to the next centre, which also moves if they join its cluster.
    merged = torch.cdist(means, means).square_() * (size * size[:, None] / (size + size[:, None]))
    merged[size < size[:, None]] = math.inf  # the smaller joins
    nearest = merged.fill_diagonal_(math.inf).min(1)
    cost = torch.minimum(parts.leaving, nearest.values)
    net = (gain[:, None] - cost).masked_fill_(gain[:, None] < _HOPE * cost, -math.inf)
    net = net.fill_diagonal_(-math.inf).flatten()
    at = net.argsort(descending=True, stable=True)[: 4 * k]
    at = at[net[at].isfinite()]
    pairs = [(pair % k, pair // k) for pair in at.tolist()]
    heirs = nearest.indices.tolist()
    busy: set[int] = set()  # each cluster takes part once, or its gain or cost would change
    jumps = []
    for (away, split), pays in zip(pairs, (net[at] > 0).tolist(), strict=True):
        if pays and busy.isdisjoint({split, away, heirs[away]}):
            jumps.append((away, split))
            busy |= {split, away, heirs[away]}
    counts = sorted({len(jumps) // part for part in (1, 2, 4)} - {0, 1})
    trials = [jumps[:count] for count in counts]
    trials += [[pair] for pair in pairs[: _TRIED - len(trials)]]
    return halves.float(), trials[: _at_once(rows, k)]


@dataclass(frozen=True)
class _Parts:
    """The rows by their nearest centre, with facts about each row and cluster.

    Attributes:
        labels: Each row's cluster.
        distance: Each row's squared distance from the centre.
        means: Means of the clusters' rows.
        sizes: Numbers of the clusters' rows.
        leaving: How much inertia would rise if the rows of a cluster went to their next centre.
    """

    labels: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]
    means: Float[Tensor, "k d"]
    sizes: Float[Tensor, " k"]
    leaving: Float[Tensor, " k"]


def _parted(rows: Rows, centers: Tensor) -> _Parts:
    """The rows divided by their nearest centre (k d)."""
    k, n = len(centers), len(rows.x)
    device = rows.x.device
    labels = torch.empty(n, dtype=torch.int64, device=device)
    distance = torch.empty(n, dtype=torch.float32, device=device)
    means = torch.zeros(centers.shape, dtype=rows.wide, device=device)
    sizes, leaving = torch.zeros(2, k, dtype=rows.wide, device=device)
    for part, span in rows.chunks(k):
        scores = _scores(centers[None], part)
        first = scores.amin(1)[0]
        label = _nearest(scores.clone())
        member = _one_hot(label, k)[0]
        labels[span] = label[0]
        distance[span] = first + rows.norms[span]
        second = scores[0].masked_fill_(member.bool(), math.inf).amin(0)
        means += member @ part
        sizes += member.sum(1)
        leaving += member @ (second - first)
    rows.sum_(means)
    rows.sum_(sizes)
    means /= sizes.clamp_min(1)[:, None]
    return _Parts(labels, distance, means, sizes, rows.sum_(leaving))


def _toward(rows: Rows, parts: _Parts, seed: int, trial: int) -> Tensor:
    """A row of each cluster (k d), drawn as by k-means++; the mean of several if they tie."""
    k, d = parts.means.shape
    device = rows.x.device
    key = _mix(torch.tensor([seed & 0x7FFFFFFF, trial], dtype=torch.int32, device=device))
    ticket = _mix(rows.places(slice(0, len(rows.x))).to(torch.int32)) ^ _mix(key[0] ^ key[1])
    times = _race(ticket, parts.distance)
    first = torch.full((k,), math.inf, dtype=torch.float32, device=device)
    rows.min_(first.scatter_reduce_(0, parts.labels, times, "amin"))
    at = (times == first[parts.labels]).nonzero()[:, 0]
    drawn = torch.zeros(k, d + 1, dtype=torch.float32, device=device)
    drawn.index_add_(0, parts.labels[at], torch.nn.functional.pad(rows.take(at), (0, 1), value=1))
    rows.sum_(drawn)
    return drawn[:, :d] / drawn[:, d:].clamp_min(1)


def _halves(rows: Rows, parts: _Parts, toward: Tensor) -> tuple[Tensor, Tensor]:
    """Means (2 k d) and sizes (2 k) of the halves of each cluster, by Lloyd's iterations within.

    The first cut goes through the mean, perpendicular to the direction of the drawn row.
    """
    k, means = len(toward), parts.means
    normal, middle = toward - means, means
    for _ in range(_CUTS):
        level = (normal * middle).sum(1).float()
        beyond, size = torch.zeros_like(means), torch.zeros_like(parts.sizes)
        for part, span in rows.chunks(k):
            label = parts.labels[span]
            along = (normal.float() @ part.T).gather(0, label[None])[0]
            member = _one_hot(label.where(along > level[label], -1)[None], k)[0]
            beyond += member @ part
            size += member.sum(1)
        rows.sum_(beyond)
        rows.sum_(size)
        sizes = torch.stack([parts.sizes - size, size])
        sums = torch.stack([means * parts.sizes[:, None] - beyond, beyond])
        halves = sums / sizes.clamp_min(1)[:, :, None]
        normal, middle = halves[1] - halves[0], halves.mean(0)
    return halves, sizes


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
    steps = torch.arange(k, dtype=torch.int32, device=device)
    # Of all steps at once: a call costs more than what it does to few numbers.
    keys = _mix(_mix(start[0] ^ _mix(start[1] + steps))[:, None] ^ restarts.to(torch.int32))
    centers = torch.empty(r, k, d, dtype=torch.float32, device=device)
    closest = torch.full((r, n), math.inf, dtype=torch.float32, device=device)
    closer = torch.empty(r, _tries(k), n, dtype=torch.float32, device=device)
    for step in range(k):
        weight = closest if step else torch.ones_like(closest)
        race = _race(base ^ keys[step, :, None], weight)
        _, candidates = rows.first(race, _tries(k) if step else 1)
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

    The first few arrivals are a weighted draw without replacement. A row of weight zero arrives
    after all others, but never at NaN.
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


def _lloyd(
    rows: Rows, centers: Tensor, *, gain: float, best: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from `centers` (r k d) until each restart has converged.

    Args:
        rows: The rows.
        centers: Where each restart begins.
        gain: An iteration that lowers the inertia by at most this share of it is the last, even if
            the centres still move. Rounding can lead in circles, which gain nothing.
        best: The best spread explained elsewhere: a restart unlikely to reach it ends early, and so
            does one unlikely to reach the best of the others.

    Returns:
        The centres (r k d) and the spread that they explain (r): the spread of the rows minus the
        inertia; both in the wide type.
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
        gained = now - before
        moving = (shift > rest) & (gained > gain * (rows.spread - now).clamp_min(0))
        lead = explained.max() if best is None else torch.maximum(explained.max(), best)
        moving &= now + _PATIENCE * gained >= lead
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
    before, after = labels, nearest
    moved = (nearest != labels).any(0) if part.numel() > _FEW else labels.new_ones(0)
    some = moved.nonzero()[:, 0]
    if len(some) < 0.8 * len(moved):  # otherwise copying the rows would cost more than it saves
        # Unmoved rows pad the shape: oneDNN compiles for each new one, which takes as long as a
        # product.
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
    # Rows on their centre, up to rounding, stay there, or equal rows would never settle.
    distance[distance <= 1e-12 * rows.norms] = 0
    # The bits of non-negative floats sort like the floats: farthest first, then by position.
    key = distance.view(torch.int32).long().neg_().add_(0x7FFFFFFF)
    key <<= 32
    key |= rows.places(slice(0, len(key)))
    key, farthest = rows.first(key[None], int(empty.sum()))
    off = key[0] >> 32 < 0x7FFFFFFF
    means[empty.nonzero()[off, 0]] = farthest[0, off].to(means.dtype)


def _scores(centers: Tensor, part: Tensor) -> Tensor:
    """Squared distance of each row to each centre (r k c), minus the row's own square."""
    flat = centers.flatten(0, 1)
    scores = (-2 * flat) @ part.T
    scores += flat.square().sum(1, keepdim=True)
    return scores.view(*centers.shape[:2], len(part))


def _nearest(scores: Tensor) -> Tensor:
    """The index of each row's smallest score (r c), the first of equals; overwrites `scores`."""
    k = scores.shape[1]
    # On CPU, three times as fast as min(1), which tracks indices.
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
    """Lets float32 products run at lower precision where that is faster, or never.

    On CUDA that is TF32. On CPU it lets oneDNN choose: bfloat16 with AMX, otherwise float32 in its
    own kernels, which are twice as fast as MKL's on AMD.
    """
    places = [torch.backends.mkldnn, torch.backends.cuda]
    # Torch before 2.9 has no setting by backend, so products stay as the user set them.
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
