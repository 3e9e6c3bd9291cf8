"""The features of a split, and the table that collects them during a look at a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.collected import Collected
from evenly.errors import UserError
from evenly.output import Output


@dataclass(frozen=True)
class Features:
    """Representations of one split, with the labels.

    Attributes:
        features: By modality, one row per sample, of any real type.
        target: Class of each sample (integers of any type, kept as int64), or a value to regress on
            (floats). With more dimensions, several per sample, which a diagnosis does not accept.
        index: Position of each sample in its split; row numbers by default. This canonical order
            makes a clustering independent of the order of rows and the number of ranks.
        sharded: Whether these rows are only one rank's share.
        present: By modality, which samples have it; modalities not named are complete. Samples
            without a modality do not count in its diagnosis.
        number: The model's `Output.index` of each sample, if it has one; any unique numbers.
    """

    features: Mapping[str, Shaped[Tensor, "n _"]]
    target: Shaped[Tensor, "n *_"]
    index: Shaped[Tensor, " n"] | None = None
    sharded: bool = False
    present: Mapping[str, Bool[Tensor, " n"]] = field(default_factory=dict)
    number: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        """Checks that rows, labels and positions belong together.

        Raises:
            TypeError: If something is not a tensor, or has the wrong type of numbers.
            ValueError: If the shapes do not fit.
        """
        if not self.features:
            raise UserError("Features: there is no modality. Pass features by its name.")
        parts = {f"features of '{name}'": x for name, x in self.features.items()}
        parts["target"] = self.target
        if self.index is not None:
            parts["index"] = self.index
        parts |= {f"present of '{name}'": here for name, here in self.present.items()}
        for name, x in reversed(parts.items()):  # the target before what must match it
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"Features: {name}: an object of type {type(x).__name__}, but a tensor is "
                    "needed. torch.as_tensor makes one of an array."
                )
            wanted = 2 if name.startswith("features") else 1
            if x.ndim < wanted or (x.ndim > wanted and name != "target"):
                raise UserError(
                    f"Features: {name}: shape {tuple(x.shape)}; found too "
                    f"{'few' if x.ndim < wanted else 'many'} dimensions. Pass one row per sample "
                    "for features, one number per sample for all else."
                )
            if wanted == 2 and x.shape[1] == 0:
                raise UserError(f"Features: {name}: no columns. Pass one or more.")
            if len(x) != len(self.target):
                raise UserError(
                    f"Features: {name}: {len(x)} rows for {len(self.target)} targets. "
                    "Pass the same samples in the same order."
                )
            if x.is_complex():
                raise TypeError(
                    f"Features: {name}: complex numbers ({x.dtype}). Pass real and imaginary parts "
                    "as columns of their own: torch.cat([x.real, x.imag], 1)."
                )
        if self.index is not None and (
            self.index.is_floating_point() or self.index.dtype == torch.bool
        ):
            kind = "bools" if self.index.dtype == torch.bool else "floats"
            raise TypeError(
                f"Features: the index holds {kind}, but positions are whole numbers. Pass them as "
                "int64."
            )
        self._take("target", self.target if self.target.is_floating_point() else self.target.long())
        self._take("index", None if self.index is None else self.index.long())
        self._take("present", {name: here.bool() for name, here in self.present.items()})

    def where(self, here: Bool[Tensor, " n"]) -> "Features":
        """The features of some samples, which keep their positions."""

        def some(x: Tensor) -> Tensor:
            return x[here.to(x.device)]

        index = self.index
        if index is None:
            index = torch.arange(len(here), device=self.target.device)
        return Features(
            {name: some(x) for name, x in self.features.items()},
            some(self.target),
            some(index),
            self.sharded,
            {name: some(x) for name, x in self.present.items()},
            None if self.number is None else some(self.number),
        )

    def whole(self) -> "Features":
        """The features of all ranks, in canonical order; every rank must call this."""
        if not self.sharded:
            return self
        assert self.index is not None
        order = torch.cat(distributed.gather(self.index)).argsort()

        def all_of(x: Tensor) -> Tensor:
            return torch.cat(distributed.gather(x))[order]

        return Features(
            {name: all_of(x) for name, x in self.features.items()},
            all_of(self.target),
            present={name: all_of(here) for name, here in self.present.items()},
        )

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass's own way


def _real(name: str, value: Tensor) -> Tensor:
    if value.is_complex():
        raise TypeError(
            f"Probe.features: those of '{name}' are complex numbers. Give `Output` real ones: "
            "torch.view_as_real(x).flatten(1)."
        )
    return value.float()


class Table:
    """Collects what a look finds, batch by batch."""

    def __init__(
        self, rows: Tensor | None, memory: int | None = None, keeps_order: bool = True
    ) -> None:
        """Starts empty.

        Args:
            rows: Rows of the data set, in the order in which they come; None if unknown.
            memory: Bytes that the features of a modality may take in memory.
            keeps_order: Whether rows keep this order within a batch, too.
        """
        self.rows, self.memory, self.keeps_order = rows, memory, keeps_order
        self.count = 0
        self._expected = None if rows is None else len(rows)
        self._values: dict[str, Collected] = {}
        self._present: dict[str, Collected] = {}
        self._target, self._position = Collected(self._expected), Collected(self._expected)
        self._number = Collected(self._expected)
        self._numbered = 0

    def add(self, output: Output, target: Tensor, values: Mapping[str, Tensor]) -> None:
        """Adds a batch."""
        for name, value in values.items():
            self._collected(self._values, name, self.memory).add(_real(name, value))
        for name, here in (output.present or {}).items():
            self._collected(self._present, name).add(here)
        self._target.add(target)
        self._position.add(self._positions(output, len(target)).to(target.device))
        if output.index is not None:
            self._number.add(output.index.to(target.device))
            self._numbered += len(output.index)
        self.count += len(target)

    def features(self) -> Features:
        """All features, each row once over all ranks; this empties the table."""
        index, number = self._position.take(), None
        if self._numbered == self.count:
            number = self._number.take()
        target = self._target.take()
        if self.rows is None and number is not None:
            _check_repeats(number, target)
        keep = torch.ones_like(index, dtype=torch.bool)
        if self.rows is None or distributed.world_size() > 1:
            keep = _first_seen(index)
        return Features(
            {name: values.take(keep) for name, values in self._values.items()},
            target[keep],
            index[keep],
            sharded=distributed.world_size() > 1,
            present={
                name: here.take(keep)
                for name, here in self._present.items()
                if name in self._values
            },
            number=None if number is None else number[keep],
        )

    def close(self) -> None:
        """Releases the rows."""
        for values in self._values.values():
            values.close()

    def _collected(
        self, table: dict[str, Collected], name: str, memory: int | None = None
    ) -> Collected:
        return table.setdefault(name, Collected(self._expected, memory))

    def _positions(self, output: Output, size: int) -> Tensor:
        number = output.index
        if self.rows is None:
            if number is not None:
                return number
            if distributed.world_size() > 1:
                raise UserError(
                    "on several ranks a loader with a sampler of its own needs `Output.index`, a "
                    "number for each sample: without it nothing tells which rows two ranks both "
                    "have. Fill it in `forward`."
                )
            return torch.arange(self.count, self.count + size)
        rows = self.rows[self.count : self.count + size]
        if number is not None and not self.keeps_order:
            # A collate function may sort a batch by length, so positions in the data set decide.
            number = number.to(rows)
            if torch.equal(number.sort().values, rows.sort().values):
                return number
        return rows


def _check_repeats(number: Tensor, target: Tensor) -> None:
    """Raises if samples of two classes share a number, so they cannot be the same sample."""
    if target.is_floating_point() or target.ndim != 1:
        return
    numbers, targets = (torch.cat(distributed.gather(x)) for x in (number, target))
    order = numbers.argsort(stable=True)
    numbers, targets = numbers[order], targets[order]
    differ = (numbers[1:] == numbers[:-1]) & (targets[1:] != targets[:-1])
    if differ.any():
        raise UserError(
            f"Output.index gives samples of different classes the number "
            f"{int(numbers[1:][differ][0])}. Give each sample a number of its own, the same in "
            "each epoch, such as its position in the data set."
        )


def _first_seen(index: Tensor) -> Tensor:
    """Marks the rows to keep: each position once over all ranks."""
    everyone = distributed.gather(index)
    before = sum(len(part) for part in everyone[: distributed.rank()])
    values = torch.cat(everyone)
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    keep = torch.empty_like(first)
    keep[order] = first
    return keep[before : before + len(index)]
