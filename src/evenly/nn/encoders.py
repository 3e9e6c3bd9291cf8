"""Small encoders, quick on a CPU: one for each kind of modality.

Each takes its modality as stored, standardises it with the statistics of the training split, and
returns one vector of `out_features` per sample.
"""

from abc import abstractmethod
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from evenly.data.dataset import Modality, Padded
from evenly.data.tabular import layout_of
from evenly.errors import UserError
from evenly.nn.tokens import Tokens


def encoder_for(modality: Modality, width: int = 64) -> nn.Module:
    """The default encoder of a modality.

    Args:
        modality: Its kind decides: vector → `MLP`, sequence → `TemporalConv`, image → `ResNet`,
            video → `FrameMean`, text → `TemporalConv` on learnt embeddings; vectors that are
            columns of a table → `TabularResNet`.
        width: Width of the returned vectors; 4 or more.
    """
    if width < 4:
        raise UserError(f"encoder_for: the width must be at least 4; found {width}.")
    kinds: dict[str, Callable[[Modality, int], nn.Module]]
    kinds = {
        "vector": MLP,
        "sequence": TemporalConv,
        "image": ResNet,
        "video": FrameMean,
        "text": TemporalConv,
    }
    if layout_of(modality.read):
        return TabularResNet(modality, width)
    return kinds[modality.kind](modality, width)


Stages = Generator[Float[Tensor, "n _"], Float[Tensor, "n _"], Float[Tensor, "n w"]]


class Staged(nn.Module):
    """An encoder that can stop between its stages, for cross-modal blocks.

    Attributes:
        out_features: Width of its features.
        stage_widths: Number of channels at each stop, in order.
    """

    out_features: int
    stage_widths: tuple[int, ...]

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"out_features={self.out_features}"

    @abstractmethod
    def staged(self, x: Any) -> Stages:
        """Encodes like `forward`, stop by stop.

        At each stop, it yields the mean of each channel over its valid positions, receives a factor
        for each channel, and continues; at the end it returns the features.
        """


def resumed(run: Stages, factor: Float[Tensor, "n _"]) -> Float[Tensor, "n _"]:
    """What an encoder yields at its next stop, or returns at the end."""
    try:
        return run.send(factor)
    except StopIteration as stop:
        features: Tensor = stop.value
        return features


def with_a_step(x: Padded) -> Padded:
    """The batch, with one step of padding if no sample has any step."""
    if x.values.shape[1]:
        return x
    return Padded(x.values.new_zeros(len(x.values), 1, *x.values.shape[2:]), x.length)


class Standardise(nn.Module):
    """Turns stored values of any type into floats of mean 0 and deviation 1; a constant gives 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.register_buffer("mean", modality.mean.reshape(modality.spread.shape).clone())
        std = modality.spread
        self.register_buffer("std", std.where(std > 0, 1.0))  # a constant is only centred

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Standardises by feature or channel."""
        return (x.to(self.mean.dtype) - self.mean) / self.std


class MLP(Staged):
    """Two hidden layers with ReLU, for vectors; a stop between them."""

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.out_features = width
        self.stage_widths = (width,)
        self.layers = nn.Sequential(
            Standardise(modality),
            nn.Linear(modality.shape[0], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )

    def forward(self, x: Shaped[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        """Encodes vectors."""
        features: Tensor = self.layers(x)
        return features

    def staged(self, x: Shaped[Tensor, "n d"]) -> Stages:
        """Encodes vectors, with a stop after the first hidden layer."""
        hidden = self.layers[:3](x)
        factor = yield hidden
        features: Tensor = self.layers[3:](hidden * factor)
        return features


class TabularResNet(Staged):
    """Embeddings of categories, and a residual network, for columns of a table.

    The ResNet of Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for
    Tabular Data", NeurIPS 2021, https://arxiv.org/abs/2106.11959, with two blocks and a stop
    between them; without dropout, and with LayerNorm instead of BatchNorm, so that a sample's
    features do not depend on the others. The embedding of unknown values is 0 at first, and stays
    so if the training split has none.
    """

    def __init__(self, modality: Modality, width: int) -> None:
        """Makes the layers.

        Raises:
            ValueError: If the modality is not columns of a table.
        """
        super().__init__()
        layout = layout_of(modality.read)
        if layout is None:
            raise UserError(
                f"encoder tabular takes columns of a table, but '{modality.name}' is "
                f"{modality.kind} {modality.shape}. Prepare it with tabular(numbers=[...])."
            )
        self.out_features = width
        self.stage_widths = (width,)
        self.sizes = [layout.numbers, *layout.places]
        widths = [min(width, round(1.6 * places**0.56)) for places in layout.places]
        self.embed = nn.ModuleList(map(_Places, layout.places, widths))
        self.enter = nn.Linear(layout.numbers + sum(widths), width)
        self.blocks = nn.ModuleList(_TabularBlock(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Shaped[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        """Encodes rows of a table."""
        first, last = self.blocks
        return self._left(last(first(self._entered(x))))

    def staged(self, x: Shaped[Tensor, "n d"]) -> Stages:
        """Encodes rows of a table, with a stop after the first block."""
        first, last = self.blocks
        hidden = first(self._entered(x))
        factor = yield hidden
        return self._left(last(hidden * factor))

    def _entered(self, x: Shaped[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        numbers, *places = x.to(self.enter.weight.dtype).split(self.sizes, 1)
        embedded = [embed(each) for embed, each in zip(self.embed, places, strict=True)]
        found: Tensor = self.enter(torch.cat([numbers, *embedded], 1))
        return found

    def _left(self, hidden: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        return torch.relu(self.norm(hidden))


class _Places(nn.Embedding):
    """The embedding of the place that is 1; for several fractions, as after mixing, their sum."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__(places, width)
        with torch.no_grad():
            self.weight[0].zero_()

    def forward(self, x: Float[Tensor, "n p"]) -> Float[Tensor, "n w"]:
        return x @ self.weight


class _TabularBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        changed: Tensor = x + self.body(x)
        return changed


class TemporalConv(Staged):
    """Residual convolutions over time with growing dilation, averaged over the valid steps.

    Each step sees 29 steps, itself in the middle. Padding is zeroed before every convolution and
    normalisation works by step, so neither what follows a sequence's end nor how far the batch is
    padded changes the result. There are stops between its three blocks. The steps of a text are
    embeddings of its tokens; a token beyond those of the run's data counts as token 1. A token that
    occurs only in other splits than the training split keeps its random embedding.
    """

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.out_features = width
        self.stage_widths = (width, width)
        self.embed: nn.Module
        if modality.kind == "text":
            self.embed = _Embedding(modality.shape[1], width)
        else:
            self.standardise = Standardise(modality)
            self.embed = nn.Linear(modality.shape[1], width)
        self.blocks = nn.ModuleList(_TemporalBlock(width, dilation) for dilation in (1, 2, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Shaped[Tensor, "n t ..."] | Padded) -> Float[Tensor, "n w"]:
        """Encodes sequences, of equal or unequal lengths."""
        steps, valid = self._embedded(x)
        for block in self.blocks:
            steps = block(steps, valid)
        return _mean(self.norm(steps), valid)

    def staged(self, x: Shaped[Tensor, "n t ..."] | Padded) -> Stages:
        """Encodes sequences, with stops after the first and second block."""
        steps, valid = self._embedded(x)
        first, second, last = self.blocks
        for block in (first, second):
            steps = block(steps, valid)
            factor = yield _mean(steps, valid)
            steps = steps * factor.unsqueeze(1)
        return _mean(self.norm(last(steps, valid)), valid)

    def _embedded(
        self, x: Shaped[Tensor, "n t ..."] | Padded
    ) -> tuple[Float[Tensor, "n t w"], Bool[Tensor, "n t 1"]]:
        values, length = with_a_step(x) if isinstance(x, Padded) else (x, None)
        known = values if isinstance(self.embed, _Embedding) else self.standardise(values)
        steps: Tensor = self.embed(known)
        return steps, _valid(values, length)


class _Embedding(nn.Embedding):
    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t w"]:
        known = tokens < self.num_embeddings
        return super().forward(torch.where(known, tokens, 1).long())


class _TemporalBlock(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding="same", dilation=dilation)

    def forward(
        self, x: Float[Tensor, "n t w"], valid: Bool[Tensor, "n t 1"]
    ) -> Float[Tensor, "n t w"]:
        change = self.norm(x).masked_fill(~valid, 0)
        change = self.conv(change.transpose(1, 2)).transpose(1, 2)
        return x + torch.relu(change)


def _valid(values: Shaped[Tensor, "n t ..."], length: Tensor | None) -> Bool[Tensor, "n t 1"]:
    steps = torch.arange(values.shape[1], device=values.device)
    if length is None:
        return (steps >= 0).expand(values.shape[0], -1).unsqueeze(-1)
    return (steps < length[:, None]).unsqueeze(-1)


def _mean(steps: Float[Tensor, "n t w"], valid: Bool[Tensor, "n t 1"]) -> Float[Tensor, "n w"]:
    """The mean over the valid steps; without steps, 0 rather than NaN."""
    return steps.masked_fill(~valid, 0).sum(1) / valid.sum(1).clamp_min(1)


class ResNet(Staged):
    """A residual network of three basic blocks, for images and spectrograms.

    Blocks and BatchNorm as in He et al., CVPR 2016. Images whose shorter side has 32 pixels or more
    are first reduced fourfold (a strided convolution and pooling), smaller ones not at all; each of
    the last two blocks halves the rest. There are stops between the blocks.
    """

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.out_features = width
        channels, height, across = modality.shape
        first, second = width // 4, width // 2
        self.stage_widths = (first, second)
        size, stride = (7, 2) if min(height, across) >= 32 else (3, 1)
        stem = nn.Conv2d(channels, first, size, stride, padding=size // 2, bias=False)
        pool = nn.MaxPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        self.layers = nn.Sequential(
            Standardise(modality),
            stem,
            nn.BatchNorm2d(first),
            nn.ReLU(),
            pool,
            _BasicBlock(first, first, stride=1),
            _BasicBlock(first, second, stride=2),
            _BasicBlock(second, width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, x: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Encodes images."""
        features: Tensor = self.layers(x)
        return features

    def staged(self, x: Shaped[Tensor, "n c h w"]) -> Stages:
        """Encodes images, with stops after the first and second block."""
        image = self.layers[:6](x)
        for rest in (self.layers[6:7], self.layers[7:]):
            factor = yield image.mean((2, 3))
            image = rest(image * factor[..., None, None])
        features: Tensor = image
        return features


class Frames:
    """The frames of a batch one after another, and a way to reassemble results per sample.

    Padding is left out, so that no BatchNorm counts it. Only a program traced in evaluation mode
    includes it, since its sizes must not depend on lengths.

    Attributes:
        pictures: (k, c, h, w), sample by sample.
    """

    def __init__(self, x: Shaped[Tensor, "n t c h w"] | Padded, *, training: bool) -> None:
        self._there: Bool[Tensor, "n t 1"] | None = None
        self._seats: Int[Tensor, " k"] | None = None
        if isinstance(x, Padded):
            x, length = with_a_step(x)
            self._there = _valid(x, length)
            if training or not torch.compiler.is_compiling():
                self._seats = self._there.flatten().nonzero().flatten()
        self._shape = x.shape[:2]
        self.pictures: Shaped[Tensor, "k c h w"] = self._seated(x.flatten(0, 1))

    def mean(self, found: Float[Tensor, "k d"]) -> Float[Tensor, "n d"]:
        """The mean over the frames of each sample; 0 for none."""
        steps = self._placed(found)
        return steps.mean(1) if self._there is None else _mean(steps, self._there)

    def shared(self, of_sample: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
        """A sample's values, repeated for each of its frames."""
        return self._seated(of_sample.repeat_interleave(self._shape[1], 0))

    def tokens(self, found: Float[Tensor, "k p w"]) -> Tokens:
        """The tokens of each sample, frame after frame."""
        steps = self._placed(found)
        there = steps.new_ones(self._shape, dtype=torch.bool)
        if self._there is not None:
            there = self._there[..., 0]
        return Tokens(steps.flatten(1, 2), there.repeat_interleave(found.shape[1], 1))

    def _seated(self, whole: Shaped[Tensor, "nt ..."]) -> Shaped[Tensor, "k ..."]:
        return whole if self._seats is None else whole[self._seats]

    def _placed(self, found: Float[Tensor, "k ..."]) -> Float[Tensor, "n t ..."]:
        n, t = self._shape
        if self._seats is not None:
            blank = found.new_zeros(n * t, *found.shape[1:])
            found = blank.index_put((self._seats,), found)
        return found.reshape(n, t, *found.shape[1:])


class FrameMean(Staged):
    """A `ResNet` on each frame of a video, and the mean of their features.

    Samples may have different numbers of frames, such as several pictures in a cell of a table.
    """

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.frame = ResNet(replace(modality, kind="image", shape=modality.shape[1:]), width)
        self.out_features = width
        self.stage_widths = self.frame.stage_widths

    def forward(self, x: Shaped[Tensor, "n t c h w"] | Padded) -> Float[Tensor, "n d"]:
        """Encodes videos."""
        frames = Frames(x, training=self.training)
        return frames.mean(self.frame(frames.pictures))

    def staged(self, x: Shaped[Tensor, "n t c h w"] | Padded) -> Stages:
        """Encodes videos; at the stops, frames are averaged and share factors."""
        frames = Frames(x, training=self.training)
        run = self.frame.staged(frames.pictures)
        found = next(run)
        for _ in self.stage_widths:
            factor = yield frames.mean(found)
            found = resumed(run, frames.shared(factor))
        return frames.mean(found)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o v u"]:
        return torch.relu(self.body(x) + self.shortcut(x))
