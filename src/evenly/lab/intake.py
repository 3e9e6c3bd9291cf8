"""New data as a run takes them: converted by what the run knows of its own data, or refused."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from evenly.data import Data, Modality, Padded
from evenly.data.dataset import Kind

SAMPLES = 256
"""Of the training split, in which the range of a modality is looked for."""
_TOGETHER = 32


@dataclass(frozen=True)
class Stored:
    """How a run's data hold a modality: words and numbers alone, for a checkpoint.

    Attributes:
        kind: As in `Modality`.
        shape: As in `Modality`.
        width: Of mean and standard deviation.
        dtype: Of its values, torch's name without the prefix.
        ragged: Whether samples are of unequal lengths.
        low: The least value of some training samples; of pictures of whole numbers, of the type.
        high: The largest.
    """

    kind: Kind
    shape: list[int]
    width: int
    dtype: str
    ragged: bool
    low: float
    high: float

    @property
    def type(self) -> torch.dtype:
        """Of its values."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def modality(self, name: str) -> Modality:
        """What an encoder must know; mean and deviation are among its weights."""
        mean, std = torch.zeros(self.width), torch.ones(self.width)
        return Modality(name, self.kind, tuple(self.shape), mean, std)


def stored(data: Data) -> dict[str, Stored]:
    """By modality, how data hold it."""
    part = data.noisy({}).split("train")
    first = part.__getitems__([0])["inputs"]
    ranges = {
        name: (float(torch.iinfo(x.dtype).min), float(torch.iinfo(x.dtype).max))
        for name, x in first.items()
        if isinstance(x, Tensor) and _is_picture(data.modalities[name].kind) and _is_whole(x.dtype)
    }
    read = {name for name in first if name not in ranges}
    places = torch.linspace(0, len(part) - 1, min(SAMPLES, len(part))).round().long()
    for some in places.split(_TOGETHER) if read else ():
        batch = part.__getitems__(some.tolist())
        for name in read:
            found = _range(batch["inputs"][name], batch["present"].get(name))
            if found is not None:
                before = ranges.get(name, found)
                ranges[name] = min(before[0], found[0]), max(before[1], found[1])
    return {
        name: Stored(
            modality.kind,
            list(modality.shape),
            len(modality.mean),
            str(_values(first[name]).dtype).removeprefix("torch."),
            isinstance(first[name], Padded),
            *ranges.get(name, (0.0, 0.0)),
        )
        for name, modality in data.modalities.items()
    }


@dataclass(frozen=True)
class Intake:
    """Takes a modality of new data in.

    Attributes:
        run: That takes it.
        name: Of the modality.
        known: How the run's data held it.
        longest: Steps that its encoder takes at most; None for any.
        alike: Whether new data are read from files as the run's were, so that values are of one
            scale, and what is unknown of a text has a number of its own.
    """

    run: Path
    name: str
    known: Stored
    longest: int | None
    alike: bool

    def __call__(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> Tensor | Padded:
        """A batch as the run takes it.

        Args:
            x: The modality.
            here: Which samples have it; all, if None.

        Raises:
            ValueError: If it is something else, with what it is and what would do.
        """
        self._check_shape(x)
        if self.known.kind == "text":
            self._check_tokens(_values(x))
            return self._in_form(x, here, _values(x))
        if _is_picture(self.known.kind):
            self._check_picture(x, here)
        elif not self.alike and _is_narrow(_values(x).dtype) != _is_narrow(self.known.type):
            self._check_scale(x, here)
        return self._in_form(x, here, self._typed(_values(x)))

    def doubt(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> str:
        """What a user should hear of numbers that may be anything; empty if they look alike."""
        low, high = self.known.low, self.known.high
        values = _there(x, here)
        free = self.known.kind in ("vector", "sequence") and not self.alike
        if not free or low == high or not values.numel():
            return ""
        outside = (values < 2 * low - high) | (values > 2 * high - low)
        if 2 * int(outside.sum()) <= outside.numel():
            return ""
        return (
            f"most values of '{self.name}' lie far from those that {self.run} was trained on, "
            f"{low:g} to {high:g}. If they are not scaled as those were, its answers mean nothing."
        )

    def _check_shape(self, x: Tensor | Padded) -> None:
        known, found = tuple(self.known.shape), tuple(_values(x).shape[1:])
        same = found == known
        if self.known.kind == "text":  # of any length
            same = len(found) == 1
        elif self.known.kind == "sequence":
            same = len(found) == 2 and found[1:] == known[1:]
        if not same:
            raise ValueError(
                f"'{self.name}' has the shape {found}, but {self.run} was trained on {known}. "
                "Prepare the data as those it was trained on."
            )
        if self.longest is None:
            return
        steps = int(x.length.max()) if isinstance(x, Padded) else found[0]
        if steps > self.longest:
            raise ValueError(
                f"'{self.name}' has a sample of {steps} steps, but its encoder in {self.run} takes "
                f"{self.longest} at most. Cut it off there."
            )

    def _check_tokens(self, values: Tensor) -> None:
        count = self.known.shape[1]
        if not _is_whole(values.dtype) or (values.numel() and int(values.min()) < 0):
            raise ValueError(
                f"'{self.name}' holds {_named(values.dtype)} values that are no numbers of tokens, "
                f"but {self.run} was trained on texts. Give whole numbers from 0."
            )
        most = int(values.max()) if values.numel() else 0
        if not self.alike and most >= count:
            raise ValueError(
                f"'{self.name}' holds the token {most}, but {self.run} was trained on tokens 0 to "
                f"{count - 1}. Number tokens as those that it was trained on."
            )

    def _check_picture(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> None:
        found, known = _values(x).dtype, self.known.type
        if found != known and not (found.is_floating_point and known.is_floating_point):
            raise ValueError(
                f"'{self.name}' holds pictures of {_named(found)} values, but {self.run} was "
                f"trained on {self.known.dtype}, {self.known.low:g} to {self.known.high:g}. Give "
                "that type, and that scale."
            )
        if found.is_floating_point and not self.alike:
            self._check_scale(x, here)

    def _check_scale(self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> None:
        """Raises if values leave the run's range far behind, or fill a hundredth of it."""
        low, high = self.known.low, self.known.high
        found, width = _range(x, here), high - low
        if found is None or not width:
            return
        least, most = found
        outside = least < low - width / 2 or most > high + width / 2
        if outside or 0 < most - least < width / 100:
            raise ValueError(
                f"'{self.name}' holds {_named(_values(x).dtype)} values from {least:g} to "
                f"{most:g}, but {self.run} was trained on {self.known.dtype}, {low:g} to {high:g}. "
                "Scale them as those were."
            )

    def _typed(self, values: Tensor) -> Tensor:
        """Numbers in the type of the run's, where they are numbers of that type."""
        wanted = self.known.type
        if values.dtype == wanted:
            return values
        typed = values.to(wanted)
        if wanted.is_floating_point:
            kept = bool(typed.isfinite().all())
        else:
            kept = bool((typed.to(values.dtype) == values).all())
            if not kept and values.is_floating_point():
                return values.float()  # a number between whole ones is still a number
        if not kept:
            worst = float(values.abs().max())
            raise ValueError(
                f"'{self.name}' holds {worst:g}, which is no number of the type that {self.run} "
                f"was trained on, {self.known.dtype}."
            )
        return typed

    def _in_form(
        self, x: Tensor | Padded, here: Bool[Tensor, " n"] | None, values: Tensor
    ) -> Tensor | Padded:
        """Padded or not, as the run's data are."""
        if not isinstance(x, Padded):
            if not self.known.ragged:
                return values
            steps = torch.arange(1, values.shape[1] + 1, device=values.device)
            used = values != 0 if self.known.kind == "text" else torch.ones_like(values[..., 0])
            return Padded(values, (used * steps).amax(1).long())
        longest = int(x.length.max())
        values = values[:, :longest]
        lengths = x.length if here is None else x.length[here.to(x.length.device)]
        if not self.known.ragged and bool((lengths == longest).all()):
            return values
        return Padded(values, x.length)


def _values(x: Tensor | Padded) -> Tensor:
    return x.values if isinstance(x, Padded) else x


def _there(x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> Tensor:
    """The values of samples that have the modality, without padding."""
    values = _values(x)
    if isinstance(x, Padded):
        steps = torch.arange(values.shape[1], device=values.device)
        return values[steps < x.length[:, None]]
    return values if here is None else values[here.to(values.device)]


def _range(x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> tuple[float, float] | None:
    """The least and the largest value; None if there is none."""
    values = _there(x, here)
    return (float(values.min()), float(values.max())) if values.numel() else None


def _is_picture(kind: Kind) -> bool:
    return kind in ("image", "video")


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and dtype != torch.bool


def _is_narrow(dtype: torch.dtype) -> bool:
    """Whether values are mostly bytes or samples of sound, whose scale is that of their type."""
    return not dtype.is_floating_point and dtype.itemsize < 4


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
