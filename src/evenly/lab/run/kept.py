"""Features of frozen encoders: computed once for runs that share data, weights and settings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from evenly.data import Batch, Data, Modality, Padded, Split
from evenly.data.dataset import SPLITS
from evenly.files import locked, replacing
from evenly.lab.run.inspection import LEVELS, noise
from evenly.lab.run.place import Place
from evenly.lab.run.settings import Training
from evenly.lab.run.versions import version_of
from evenly.nn import LateFusion
from evenly.nn.auto import Auto

BATCH = 64
"""Samples encoded together, in the order of their split: sums over other batches may differ in
their last bits."""

Noised = dict[str, dict[float, Tensor]]
"""Inspected features of the test split, by modality and level of noise."""


def keeps(model: LateFusion, data: Data, training: Training) -> list[str]:
    """The modalities whose features are the same in every epoch, so they are computed once.

    Their encoder is frozen, their inputs are not augmented, and the head needs only features.
    Sounds of unequal lengths are left out, since each has its own blank.
    """
    if model.head.meets:
        return []
    return [
        name
        for name, encoder in model.encoders.items()
        if isinstance(encoder, Auto)
        and not any(p.requires_grad for p in encoder.model.parameters())
        and name not in training.augment
        and not (data.modalities[name].kind == "sequence" and data.is_ragged(name))
    ]


def with_features(
    model: LateFusion, data: Data, training: Training, place: Place, folder: Path
) -> tuple[Data, Noised]:
    """The data with features instead of the inputs that `keeps` names; their encoders accept these.

    Args:
        model: The model on its device.
        data: Data of the run.
        training: Its settings.
        place: Where it trains.
        folder: Folder of the files with features.

    Returns:
        The data, and the features of noisy inputs of the test split, except texts.
    """
    noised: Noised = {}
    for name in keeps(model, data, training):
        encoder, modality = cast(Auto, model.encoders[name]), data.modalities[name]
        maker = _Maker(encoder, modality, place, folder, _about(encoder, training, place))
        parts = {split: data.split(split).of(name) for split in SPLITS if data.has(split)}
        found = {split: maker.features(part) for split, part in parts.items()}
        if "test" in parts and modality.kind != "text":
            noised[name] = {level: maker.features(parts["test"], level) for level in LEVELS}
        _hand_over(encoder, name, parts["train"], place)
        data = data.encoded(name, found)
    return data, noised


def batch_with_features(
    model: LateFusion, data: Data, training: Training, place: Place, batch: Batch
) -> Batch:
    """A training batch as `with_features` would give it; the encoders accept features from then on.

    Nothing is written, and no other sample is encoded.
    """
    inputs = dict(batch["inputs"])
    for name in keeps(model, data, training):
        encoder = cast(Auto, model.encoders[name])
        with _encoding(encoder, place):
            inputs[name] = encoder.pooled(_input(batch, name, place))
        _hand_over(encoder, name, data.split("train"), place)
    return cast(Batch, {**batch, "inputs": inputs})


def _hand_over(encoder: Auto, name: str, part: Split, place: Place) -> None:
    """Makes an encoder accept features from now on."""
    with _encoding(encoder, place):
        encoder.take_features(_input(part.of(name)[0], name, place))


def _input(batch: Batch, name: str, place: Place) -> Tensor | Padded:
    x, device = batch["inputs"][name], place.device
    return Padded(*(t.to(device) for t in x)) if isinstance(x, Padded) else x.to(device)


@contextmanager
def _encoding(encoder: Auto, place: Place) -> Iterator[None]:
    before = encoder.training
    encoder.eval()
    with torch.no_grad(), place.autocast():
        yield
    encoder.train(before)


class _Maker:
    """Computes the features of a modality, or reads existing ones."""

    def __init__(
        self, encoder: Auto, modality: Modality, place: Place, folder: Path, about: bytes
    ) -> None:
        self.encoder, self.modality, self.place = encoder, modality, place
        self.folder, self.about = folder, about

    def features(self, part: Split, level: float = 0.0) -> Float[Tensor, "n d"]:
        """The features of a split, on the CPU, with a level of noise on the inputs."""
        key = blake2b(self.about + f"{level:g}".encode(), digest_size=16)
        if level:  # noise depends on these, and on a sample's position, which is their order here
            key.update(self.modality.name.encode())
            key.update(_bytes(self.modality.spread))
        for batch in _batches(part):
            for x in _tensors(batch["inputs"][self.modality.name]):
                key.update(str((x.dtype, tuple(x.shape))).encode())
                key.update(_bytes(x))
        path = self.folder / f"{key.hexdigest()}.pt"
        with self.place.awaited():
            if self.place.is_first:
                self.folder.mkdir(parents=True, exist_ok=True)
                with _alone(self.folder):  # other runs that need them wait
                    if _read(path, len(part)) is None:
                        with replacing(path) as new:
                            torch.save(self._made(part, level), new)
        found = _read(path, len(part))
        return self._made(part, level) if found is None else found

    def _made(self, part: Split, level: float) -> Float[Tensor, "n d"]:
        change = noise(self.modality, level) if level else lambda batch: batch
        name, place = self.modality.name, self.place
        with _encoding(self.encoder, place):
            made = [
                self.encoder.pooled(_input(change(batch), name, place)).cpu()
                for batch in _batches(part)
            ]
        return torch.cat(made)


def _about(encoder: Auto, training: Training, place: Place) -> bytes:
    """What features depend on besides the inputs: weights, settings, and how sums are computed."""
    known: dict[str, Any] = {
        "configuration": encoder.configuration(),
        "pool": encoder.pool,
        "precision": place.precision,
        "device": place.device.type,
        "threads": training.threads,
        "versions": [version_of(name) for name in ("evenly", "torch", "transformers")],
    }
    key = blake2b(json.dumps(known, sort_keys=True).encode())
    weights = {k: x for k, x in encoder.state_dict().items() if not k.startswith("behind.")}
    for name, x in weights.items():
        key.update(name.encode())
        key.update(_bytes(x))
    return key.digest()


def _bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _tensors(x: Tensor | Padded) -> tuple[Tensor, ...]:
    return tuple(x) if isinstance(x, Padded) else (x,)


def _batches(part: Split) -> Iterator[Batch]:
    for rows in torch.arange(len(part)).split(BATCH):
        yield part.__getitems__(rows.tolist())


def _read(path: Path, count: int) -> Tensor | None:
    """Features from a file; None if there is no intact one."""
    if not path.is_file():
        return None
    with suppress(Exception):  # whatever a damaged file causes: they are computed again
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) == count:
            return found
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes features in a folder."""
    with (folder / "lock").open("w") as file:
        locked(file, wait=True)
        yield
