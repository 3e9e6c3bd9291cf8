"""New data in a run's form: converted by what the run knows about its own data, or refused."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from evenly.data import Padded
from evenly.data.dataset import dtype_name
from evenly.errors import UserError
from evenly.lab.run.stored import Stored, is_picture, is_whole, there, values_of

if TYPE_CHECKING:
    from evenly.data.raw.readers import Tabular

_FEW = 10
"""One in this many values may be farther outside the run's range than its width."""
_NARROW = 100
"""Ratio to the run's spread of values from which new values are questioned."""


@dataclass
class Intake:
    """Converts a modality of new data, batch by batch, and checks the distribution of values.

    Attributes:
        run: The run that takes it.
        name: Name of the modality.
        known: How the run's data stored it.
        longest: Maximum steps that its encoder takes; None for any.
        alike: Whether new data are read from files like the run's, so that values have the same
            scale, and unknown tokens of a text their own number.
    """

    run: Path
    name: str
    known: Stored
    longest: int | None
    alike: bool
    _dtype: str = field(default="", init=False)
    _retyped: bool = field(default=False, init=False)
    _samples: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)
    _far: int = field(default=0, init=False)
    _least: float = field(default=inf, init=False)
    _most: float = field(default=-inf, init=False)

    def __call__(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> Tensor | Padded:
        """A batch in the run's form.

        Args:
            x: The modality.
            here: Which samples have it; all, if None. The others' values are ignored.

        Raises:
            ValueError: If it is something else, with what it is and what would work.
        """
        x = x if here is None else _blanked(x, here)
        self._check_shape(x)
        if self.known.kind == "text":
            self._check_tokens(values_of(x))
            return self._in_form(x, here, values_of(x))
        if is_picture(self.known.kind):
            self._check_picture(values_of(x))
        self._look(x, here)
        return self._in_form(x, here, self._typed(values_of(x)))

    def doubt(self) -> str:
        """A note on all batches together; empty if they look like the run's data.

        Raises:
            ValueError: If most values have another scale than pictures, bytes or sound.
        """
        low, high = self.known.low, self.known.high
        scaled = is_picture(self.known.kind) or self._retyped
        told = scaled or self._samples >= _FEW  # two samples may be alike by chance
        narrow = told and 0 < self._most - self._least < (high - low) / _NARROW
        if _FEW * self._far <= self._count and not narrow:
            return ""
        held = (
            f"'{self.name}' holds {self._dtype} values from {self._least:g} to {self._most:g}, but "
            f"{self.run} was trained on {self.known.dtype}, {low:g} to {high:g}."
        )
        if scaled and 2 * self._far > self._count:
            raise UserError(f"{held} Scale them the same way.")
        return f"{held} If they are scaled otherwise, the predictions mean nothing."

    def _look(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> None:
        """Compares a batch with the run's range, which comes from only some samples."""
        low, high = self.known.low, self.known.high
        values = there(x, here)
        whole = is_picture(self.known.kind) and is_whole(self.known.type)  # the type alone tells
        if self.alike or whole or low == high or not values.numel():
            return
        self._dtype = dtype_name(values)
        self._retyped = _is_narrow(values.dtype) != _is_narrow(self.known.type)
        self._samples += len(values_of(x)) if here is None else int(here.sum())
        self._count += values.numel()
        self._far += int(((values < 2 * low - high) | (values > 2 * high - low)).sum())
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    def _check_shape(self, x: Tensor | Padded) -> None:
        known, found = tuple(self.known.shape), tuple(values_of(x).shape[1:])
        same = found == known
        if self.known.kind == "text":  # of any length
            same = len(found) == 1
        elif self.known.kind == "sequence" or self.known.ragged:
            same = len(found) == len(known) and found[1:] == known[1:]
        if not same:
            raise UserError(
                f"'{self.name}' has the shape {found}, but {self.run} was trained on {known}. "
                "Prepare the data the same way."
            )
        if self.longest is None:
            return
        steps = int(x.length.max()) if isinstance(x, Padded) else found[0]
        if steps > self.longest:
            raise UserError(
                f"'{self.name}' has a sample of {steps} steps, but its encoder in {self.run} "
                f"takes at most {self.longest}. Cut it there."
            )

    def _check_tokens(self, values: Tensor) -> None:
        count = self.known.shape[1]
        if not is_whole(values.dtype) or (values.numel() and int(values.min()) < 0):
            raise UserError(
                f"'{self.name}' holds {dtype_name(values)} values, which are not token numbers, "
                f"but {self.run} was trained on texts. Give whole numbers from 0."
            )
        most = int(values.max()) if values.numel() else 0
        if not self.alike and most >= count:
            raise UserError(
                f"'{self.name}' holds the token {most}, but {self.run} was trained on tokens 0 "
                f"to {count - 1}. Number tokens the same way."
            )

    def _check_picture(self, values: Tensor) -> None:
        found, known = values.dtype, self.known.type
        if found != known and not (found.is_floating_point and known.is_floating_point):
            raise UserError(
                f"'{self.name}' holds pictures of {dtype_name(values)} values, but {self.run} "
                f"was trained on {self.known.dtype}, {self.known.low:g} to {self.known.high:g}. "
                "Use that type and scale."
            )

    def _typed(self, values: Tensor) -> Tensor:
        """Numbers in the run's type, if they fit it."""
        wanted = self.known.type
        if values.dtype == wanted:
            return values
        typed = values.to(wanted)
        if wanted.is_floating_point:
            kept = bool(typed.isfinite().all())
        else:
            kept = bool((typed.to(values.dtype) == values).all())
            if not kept and values.is_floating_point():
                return values.float()  # a fraction is still a number
        if not kept:
            worst = float(values.abs().max())
            raise UserError(
                f"'{self.name}' holds {worst:g}, which does not fit the type that {self.run} "
                f"was trained on, {self.known.dtype}. Give values in its range."
            )
        return typed

    def _in_form(
        self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None, values: Tensor
    ) -> Tensor | Padded:
        """The batch padded or not, like the run's data."""
        if not isinstance(x, Padded):
            if not self.known.ragged:
                return values
            steps = torch.arange(1, values.shape[1] + 1, device=values.device)
            used = torch.ones_like(values[:, :, None].flatten(2)[..., 0], dtype=torch.bool)
            used = values != 0 if self.known.kind == "text" else used
            return Padded(values, (used * steps).amax(1).long())
        longest = int(x.length.max())
        values = values[:, :longest]
        lengths = x.length if here is None else x.length[here.to(x.length.device)]
        if not self.known.ragged and bool((lengths == longest).all()):
            return values
        return Padded(values, x.length)


def odd_columns(
    run: Path, name: str, known: Stored, reader: "Tabular", cells: Iterable[Sequence[Any] | None]
) -> list[str]:
    """Notes on odd columns of a `tabular` modality.

    Numbers are checked as in `Intake`, in the run's standard deviations; a category column is odd
    if the run knows less than half of the values.

    Args:
        run: The run that takes them.
        name: Name of the modality.
        known: How the run's data stored it.
        reader: The run's reader.
        cells: What the reader takes for each sample; None if it lacks the modality.
    """
    columns = list(zip(*(row for row in cells if row is not None), strict=True))
    if not columns:
        return []
    given = [[x for x in column if x is not None] for column in columns]
    count = len(reader.numbers)
    return [
        *_odd_numbers(run, name, known, reader, given[:count]),
        *_odd_categories(run, name, reader, given[count:]),
    ]


def _odd_numbers(
    run: Path, name: str, known: Stored, reader: "Tabular", given: Iterable[Sequence[float]]
) -> Iterator[str]:
    if known.low == known.high:
        return
    least, most = 2 * known.low - known.high, 2 * known.high - known.low
    kinds = zip(reader.numbers, reader.means, reader.deviations, given, strict=True)
    for column, mean, std, values in kinds:
        far = sum(not least <= (x - mean) / std <= most for x in values)
        narrow = len(values) >= _FEW and 0 < float(np.ptp(values)) < std / _NARROW
        if _FEW * far > len(values) or narrow:
            yield (
                f"'{column}' of '{name}' holds numbers from {min(values):g} to {max(values):g}, "
                f"but {run} was trained on a mean of {mean:g} and a deviation of {std:g}. If they "
                "are scaled otherwise, the predictions mean nothing."
            )


def _odd_categories(
    run: Path, name: str, reader: "Tabular", given: Iterable[Sequence[str]]
) -> Iterator[str]:
    for column, known, values in zip(reader.categories, reader.values, given, strict=True):
        strange = [value for value in values if not reader.knows(column, value)]
        if 2 * len(strange) > len(values):
            learnt = ", ".join(list(filter(None, known))[:5]) + (" ..." if len(known) > 5 else "")
            yield (
                f"{len(strange)} of {len(values)} values of '{column}' of '{name}', such as "
                f"'{strange[0]:.60}', are unknown to {run}, which learnt {learnt}. Spell them "
                "the same way, or they have no effect."
            )


def _blanked(x: Tensor | Padded, here: Bool[Tensor, " n"]) -> Tensor | Padded:
    """The batch with zeros for samples that lack the modality."""
    values = values_of(x)
    lacking = ~here.to(values.device)
    values = values.masked_fill(lacking.reshape(-1, *[1] * (values.ndim - 1)), 0)
    return Padded(values, x.length.masked_fill(lacking, 0)) if isinstance(x, Padded) else values


def _is_narrow(dtype: torch.dtype) -> bool:
    """Whether values are probably bytes or sound samples, whose type determines their scale."""
    return not dtype.is_floating_point and dtype.itemsize < 4
