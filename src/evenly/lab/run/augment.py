"""Augmentation of training batches on their device; the same for every method.

The draws for a training step depend only on the seed of the run, the epoch and the number of the
batch, not on the method or on interruptions. Teachers and trials that some methods train for
themselves are augmented in the same way. Diagnoses and evaluations see the original data.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from evenly import chance, distributed
from evenly.data import Modality, Padded
from evenly.errors import UserError
from evenly.lab.run.stored import values_of
from evenly.suggest import unknown

Change = Callable[[Tensor], Tensor]


def picture(modality: Modality) -> Change:
    """A random crop of the picture, scaled back, and mirrored half of the time.

    The crop has 25 to 100 % of the area and an aspect ratio from 3:4 to 4:3; all frames of a video
    are cropped and mirrored in the same way.
    """
    import kornia.augmentation as K

    if modality.kind not in ("image", "video"):
        raise _misfit("picture", "images and videos", modality)
    height, width = modality.shape[-2:]
    steps = K.VideoSequential(
        K.RandomResizedCrop((height, width), scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(p=0.5),
        data_format="BTCHW",
        same_on_frame=True,
    )

    def change(x: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        frames = x.float() if modality.kind == "video" else x.float().unsqueeze(1)
        found: Tensor = steps(frames)
        return found if modality.kind == "video" else found.squeeze(1)

    return change


def spectrum(modality: Modality) -> Change:
    """SpecAugment (Park et al., Interspeech 2019): masks a range of bands and a range of frames.

    Each has a random position and a random length up to a fifth of the axis; it is filled with the
    mean of the training split. There is no time warping.
    """
    if modality.kind != "image":
        raise _misfit("spectrum", "spectrograms", modality)
    mean = modality.mean.reshape(-1, 1, 1)

    def change(x: Shaped[Tensor, "n c b t"]) -> Float[Tensor, "n c b t"]:
        values = x.float()
        blank = _stretch(values, -2)[:, None, :, None] | _stretch(values, -1)[:, None, None, :]
        return torch.where(blank, mean.to(values), values)

    return change


def _stretch(x: Tensor, axis: int) -> Tensor:
    """For each sample, which positions of an axis are in a random range."""
    size = x.shape[axis]
    length = torch.rand(len(x), 1, device=x.device) * size / 5
    start = torch.rand(len(x), 1, device=x.device) * (size - length)
    place = torch.arange(size, device=x.device) + 0.5
    return (place >= start) & (place < start + length)


def _misfit(name: str, what: str, modality: Modality) -> UserError:
    return UserError(
        f"--augment {name} needs {what}, but '{modality.name}' is {modality.kind} "
        f"{modality.shape}. Leave it out for this modality."
    )


CHANGES: dict[str, Callable[[Modality], Change]] = {"picture": picture, "spectrum": spectrum}
"""Changes by the name that `--augment` uses."""


def check_changes(asked: Mapping[str, str], modalities: Collection[str]) -> None:
    """Raises if there is no such modality or change.

    Args:
        asked: By modality, the name of the change.
        modalities: Of the data.
    """
    for name, change in asked.items():
        if name not in modalities:
            raise unknown("modality of --augment", name, modalities)
        if change not in CHANGES:
            raise unknown("augmentation", change, CHANGES)


class Augment:
    """Changes the inputs of training batches."""

    def __init__(
        self, asked: Mapping[str, str], modalities: Mapping[str, Modality], seed: int
    ) -> None:
        """Prepares the changes.

        Args:
            asked: By modality, the name of the change.
            modalities: Of the data.
            seed: Seed of the run.

        Raises:
            ValueError: If there is no such modality or change, or they do not fit.
        """
        self.seed = seed
        check_changes(asked, modalities)
        self.changes = {name: CHANGES[change](modalities[name]) for name, change in asked.items()}

    def __call__(self, inputs: Mapping[str, Any], epoch: int, batch: int) -> dict[str, Any]:
        """The inputs of one batch, changed.

        Args:
            inputs: Inputs by modality.
            epoch: Epoch, from 0.
            batch: Its number in the epoch, from 0.
        """
        found: dict[str, Tensor | Padded] = dict(inputs)
        seed = chance.mixed(self.seed, epoch)
        if rank := distributed.rank():  # each has other samples
            seed = chance.mixed(seed, rank)
        for place, (name, change) in enumerate(self.changes.items()):
            if name not in inputs:
                continue
            x = inputs[name]
            device = values_of(x).device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(chance.mixed(seed, batch) + place)
                found[name] = _changed(change, x)
        return found


def _changed(change: Change, x: Tensor | Padded) -> Tensor | Padded:
    """The changed inputs; padding of several pictures stays zero when cropped and mirrored."""
    if isinstance(x, Tensor):
        return change(x)
    return Padded(change(x.values), x.length) if x.values.shape[1] else x
