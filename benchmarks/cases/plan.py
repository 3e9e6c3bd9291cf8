"""What a case is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cases.sources import Source

VERDICTS = ("learnt", "suppressed", "unused", "scarce", "over-trained")
BATCH = 64
Batch = tuple[list[Tensor], Tensor]
"""Inputs by modality, and classes."""

SUPPRESSED = {
    "frozen": "its encoder is not trained",
    "delayed": "its encoder is trained in the last thirtieth of the training only",
    "slow": "a schedule keeps its encoder's rate at a two-hundredth",
    "group": "its encoder's group has a two-hundredth of the others' rate",
    "detached": "the fusion reads its features without a gradient",
    "dropped": "its features are zeros in 99 of 100 samples while the others train",
    "eclipsed": "nothing: a stronger modality leaves it little to do",
}
UNUSED = {
    "cut": "its weights in the fusion are zeroed in the end",
    "faded": "its weights in the fusion decay in the second half of the training",
    "masked": "the fusion never reads it; it has a loss of its own",
    "closed": "its weights in the fusion are zeros throughout; it has a loss of its own",
}
HELD_BACK = tuple(how for how in SUPPRESSED if how != "eclipsed")
SLOW = 1 / 200
DROPPED = 99 / 100


@dataclass(frozen=True)
class Part:
    """One modality of a case.

    Attributes:
        truth: The verdict that it is built for.
        how: The means: `plain`, or a key of `SUPPRESSED` or `UNUSED`.
        encoder: `mlp`, `conv` or `gru`.
        hidden: Units of an MLP's hidden layer.
        width: Width of the features.
        own: Weight of its own loss, with its own head.
        source: The source of its inputs; None for real data.
        agree: How often it shows the class; 0 for real data shuffled across samples.
        copy: The part whose inputs it copies, by position.
        noise: Noise added to the inputs of a copy.
        input: The modality of a real set that it shows, or `noise`.
    """

    truth: str
    how: str = "plain"
    encoder: str = "mlp"
    hidden: int = 32
    width: int = 16
    own: float = 0.0
    source: Source | None = None
    agree: float = 0.0
    copy: int | None = None
    noise: float = 0.0
    input: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything about a case except its weights and samples.

    Attributes:
        parts: Parts by modality.
        classes: Number of classes.
        fusion: `concat`, `sum`, `gated` or `mlp`.
        optimizer: `sgd` or `adam`.
        rate: Its learning rate.
        epochs: Epochs of the joint training.
        sizes: Numbers of training and validation samples.
        shares: Shares of the classes, in training and in validation.
        flipped: Share of training labels that are redrawn.
        together: Whether the first two modalities tell the class only together.
        real: The data set, with its alterations; None for a synthetic case.
    """

    parts: Mapping[str, Part]
    classes: int
    fusion: str
    optimizer: str
    rate: float
    epochs: int
    sizes: tuple[int, int]
    shares: tuple[Tensor, Tensor] = field(default=(torch.ones(1), torch.ones(1)))
    flipped: float = 0.0
    together: bool = False
    real: str | None = None


def pick(rng: np.random.Generator, *options: Any) -> Any:
    """A random choice."""
    return options[rng.integers(len(options))]
