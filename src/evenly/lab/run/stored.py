"""How a run's data store each modality: what a trained run must know to accept new data."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from evenly.data import Data, Modality, Padded
from evenly.data.dataset import Kind, dtype_name
from evenly.nn import LateFusion
from evenly.nn.late_fusion import feature_width
from evenly.nn.pretrained import configurations

SAMPLES = 256
"""Training samples that determine a modality's range."""
_TOGETHER = 32


def about(data: Data, model: LateFusion) -> dict[str, Any]:
    """What `load_run` must know besides the weights, for a checkpoint."""
    return {
        "modalities": {name: asdict(known) for name, known in stored(data).items()},
        "configurations": configurations(model.encoders),
        "widths": {name: feature_width(name, x) for name, x in model.encoders.items()},
        "task": data.task.stated(),
        "read": dict(data.read),
        "label_columns": list(data.label_columns),
    }


@dataclass(frozen=True)
class Stored:
    """How a run's data store a modality: only words and numbers, for a checkpoint.

    Attributes:
        kind: As in `Modality`.
        shape: As in `Modality`.
        width: Width of mean and standard deviation.
        dtype: Type of its values, torch's name without the prefix.
        ragged: Whether samples have unequal lengths.
        low: The smallest value in some training samples; for whole-number pictures, of the type.
        high: The largest value likewise.
    """

    kind: Kind
    shape: list[int]
    width: int
    dtype: str
    ragged: bool
    low: float
    high: float

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"'{self.dtype}' is not a numeric type")

    @property
    def type(self) -> torch.dtype:
        """Type of its values."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def modality(self, name: str, read: str = "") -> Modality:
        """What an encoder must know; mean and deviation are among its weights.

        Args:
            name: Name of the modality.
            read: How its files were read, if it came from files.
        """
        mean, std = torch.zeros(self.width), torch.ones(self.width)
        return Modality(name, self.kind, tuple(self.shape), mean, std, read)


def stored(data: Data) -> dict[str, Stored]:
    """How data store each modality."""
    part = data.noisy({}).split("train")
    first = part.__getitems__([0])["inputs"]
    ranges = {
        name: (float(torch.iinfo(x.dtype).min), float(torch.iinfo(x.dtype).max))
        for name, x in ((name, values_of(x)) for name, x in first.items())
        if is_picture(data.modalities[name].kind) and is_whole(x.dtype)
    }
    read = {name for name in first if name not in ranges}
    places = torch.linspace(0, len(part) - 1, min(SAMPLES, len(part)), dtype=torch.float64)
    places = places.round().long()
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
            dtype_name(values_of(first[name])),
            isinstance(first[name], Padded),
            *ranges.get(name, (0.0, 0.0)),
        )
        for name, modality in data.modalities.items()
    }


def values_of(x: Tensor | Padded) -> Tensor:
    """The values of a modality, padded or not."""
    return x.values if isinstance(x, Padded) else x


def there(x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> Tensor:
    """The values of samples that have the modality, without padding."""
    values = values_of(x)
    if isinstance(x, Padded):
        steps = torch.arange(values.shape[1], device=values.device)
        return values[steps < x.length[:, None]]
    return values if here is None else values[here.to(values.device)]


def _range(x: Tensor | Padded, here: Bool[Tensor, " n"] | None) -> tuple[float, float] | None:
    """The smallest and the largest value; None if there is none."""
    values = there(x, here)
    return (float(values.min()), float(values.max())) if values.numel() else None


def is_picture(kind: Kind) -> bool:
    """Whether a kind of modality holds pixels."""
    return kind in ("image", "video")


def is_whole(dtype: torch.dtype) -> bool:
    """Whether a type holds whole numbers."""
    return not dtype.is_floating_point and dtype != torch.bool
