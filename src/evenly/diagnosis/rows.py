"""The rows of a clustering, read in chunks, whichever rank holds them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evenly import distributed
from evenly.chance import uniform
from evenly.errors import UserError

_CHUNK = 2**22  # elements of a chunk's rows, or of its distances if those are more
CACHED = 8  # times smaller if a chunk's rows are copied: the copy then stays in the cache
_KEEP = 2**28  # bytes of centred rows to keep; beyond, each pass centres them again
_DRAW = -1  # the step of a sample's draw, apart from a seed's other draws, whose steps start at 0


def compared(x: Tensor, origin: Tensor, unit: Tensor | None) -> Tensor:
    """Rows relative to an origin, in units; a new tensor, in float32 or wider."""
    x = floats(x) - origin
    return x if unit is None else x.div_(unit)


class Rows:
    """The rows to cluster, read in chunks minus their mean; knows about other ranks' rows.

    Attributes:
        total: Number of rows over all ranks.
        longest: Number of rows of the rank that has most.
        dtype: Type of the returned centres.
        wide: Type of the sums.
        offset: The origin of the rows: the mean of all rows, or zero if that is as good.
        norms: Squared distance of each row from there.
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
        """Finds the origin of the rows and their spread; may keep centred rows, if they are few."""
        total = torch.zeros(self.x.shape[1], dtype=self.wide, device=self.x.device)
        for part in self.x.split(chunk_rows(self.x.shape[1], 1)):
            total += floats(part).sum(0, dtype=self.dtype)
        self.offset = self.sum_(total) / self.total
        if not bool(self.offset.isfinite().all()):  # NaN and infinity survive a sum
            check_finite(self.x, self.index, "kmeans", self.sharded, self.before)
        self.norms = torch.empty(len(self.x), dtype=torch.float32, device=self.x.device)
        if self._is_seen_from_zero():
            return
        self._offset = self.offset.to(self.dtype)
        self._kept: Tensor | None = None
        # Filled in place: small results kept between the freed parts of a loop would leave holes as
        # large as all the rows, which glibc cannot reuse.
        kept = None
        if keep and self.x.numel() * 4 <= _KEEP:
            kept = torch.empty(self.x.shape, dtype=torch.float32, device=self.x.device)
        for part, span in self.chunks(CACHED * self.x.shape[1]):
            if kept is not None:
                kept[span] = part
            torch.linalg.vector_norm(part, dim=1, out=self.norms[span])
        self._kept = kept
        self._spread()
        if math.isinf(self.spread):
            raise UserError(
                "kmeans: rows are so far apart that their squared distances are infinite in "
                "float32. Scale them, or pass their extent as `unit`."
            )

    def _is_seen_from_zero(self) -> bool:
        """Uses zero as the origin if that costs no precision, since rows then need no copy."""
        if self.x.dtype != torch.float32 or self.unit is not None:
            return False
        torch.linalg.vector_norm(self.x, dim=1, out=self.norms)
        self._spread()
        if not float(self.offset.square().sum()) * self.total <= self.spread / 2 < math.inf:
            return False
        self.offset = torch.zeros_like(self.offset)
        self._offset, self._kept = self.offset.to(self.dtype), self.x
        return True

    def _spread(self) -> None:
        self.norms.square_()
        self.spread = float(self.sum_(self.norms.sum(dtype=self.wide)))

    def chunks(self, columns: int) -> Iterator[tuple[Tensor, slice]]:
        """The centred rows in chunks that stay small when each row gets `columns` values."""
        step = chunk_rows(self.x.shape[1], columns)
        for start in range(0, max(len(self.x), 1), step):
            span = slice(start, start + step)
            yield self.take(span), span

    def take(self, at: Tensor | slice) -> Tensor:
        """The centred rows at some indices."""
        return self.centred(self.x[at]) if self._kept is None else self._kept[at]

    def centred(self, x: Tensor) -> Tensor:
        """Rows or centres in the form to compare: relative to the mean, in units."""
        return compared(x, self._offset, self.unit).float()

    def uncentred(self, centers: Tensor) -> Tensor:
        """The original centres, from which `centred` made these."""
        return (centers if self.unit is None else centers * self.unit) + self.offset

    def places(self, span: slice) -> Tensor:
        """Canonical positions of the rows of a span."""
        return _places(self.x, self.index, span, self.before)

    def drawn(self, count: int, seed: int) -> "Rows":
        """About `count` rows over all ranks: the same for any order and any division over ranks."""
        keep = torch.empty(len(self.x), dtype=torch.bool, device=self.x.device)
        step = chunk_rows(CACHED)
        for start in range(0, len(keep), step):
            span = slice(start, start + step)
            keep[span] = uniform(self.places(span), seed, _DRAW) < count / self.total
        at = keep.nonzero()[:, 0]
        index = at + self.before if self.index is None else self.index[at]
        return Rows(self.x[at], index, self.sharded, self.unit)

    def first(self, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` rows with the smallest keys over all ranks, for each restart.

        Args:
            key: Key for each restart and row (r n).
            count: Number of rows.

        Returns:
            Their keys (r t), from the smallest, and the centred rows (r t d).
        """
        key, at = key.topk(min(count, key.shape[1]), largest=False)
        if not self.sharded:
            return key, self.take(at)
        # Every rank's keys, but only the winning rows, each from the rank that has it.
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
        step = chunk_rows(CACHED * self.x.shape[1])
        for part, label in zip(self.x.split(step), labels.split(step), strict=True):
            own = centers.index_select(0, label)  # five times as fast as centers[label]
            distance = torch.linalg.vector_norm(compared(part, own, self.unit), dim=1)
            total += distance.square_().sum()
        return float(self.sum_(total))

    def sum_(self, x: Tensor) -> Tensor:
        """Adds `x` over the ranks that share the rows, in place."""
        return distributed.sum_(x) if self.sharded else x

    def min_(self, x: Tensor) -> Tensor:
        """The smallest of each value of `x` over the ranks that share the rows, in place."""
        return distributed.min_(x) if self.sharded else x

    def gather(self, x: Tensor) -> list[Tensor]:
        """`x` of every rank that shares the rows."""
        return distributed.gather(x) if self.sharded else [x]


def chunk_rows(*columns: int) -> int:
    """Number of rows to process at a time if each takes this many values."""
    return max(_CHUNK // max(*columns, 1), 1)


def check_finite(
    x: Tensor, index: Tensor | None, name: str, sharded: bool = False, before: int = 0
) -> None:
    """Raises the same error on every rank if a row is not finite."""
    bad = first_not_finite(x, index, before)
    first = int(distributed.min_(bad) if sharded else bad)
    if first < torch.iinfo(torch.int64).max:
        raise UserError(
            f"{name}: row {first} of x holds NaN or infinity. Leave it out, or find its source, "
            "such as an encoder that diverged."
        )


def floats(x: Tensor) -> Tensor:
    """Rows of any real type as floats to calculate with, exactly up to 2^53."""
    if x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return x
    is_long = x.dtype.itemsize > 2 and x.device.type != "mps"
    return x.to(torch.float64 if is_long else torch.float32)


def check_rows(x: object, caller: str) -> None:
    """Raises if something is not a tensor of real numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{caller}: x must be a tensor; found {type(x).__name__}. Use torch.as_tensor for "
            "an array."
        )
    if x.is_complex():
        raise TypeError(
            f"{caller}: x holds complex numbers. Pass real and imaginary parts as separate "
            "columns: torch.cat([x.real, x.imag], 1)."
        )


def first_not_finite(x: Tensor, index: Tensor | None = None, before: int = 0) -> Tensor:
    """The first position of a row with NaN or infinity; the largest int64 if all are finite.

    Args:
        x: The rows (n d).
        index: Position of each row; by default, row numbers from `before` on.
        before: Number of rows on the ranks before this one.
    """
    bad = torch.full((1,), torch.iinfo(torch.int64).max, device=x.device)
    step = chunk_rows(x.shape[1], 1)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        part = floats(part)
        # NaN and infinity survive a sum, so rows are checked one by one only if it has them.
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
