"""Encoders by the kind of their input, heads, and the model that fuses them."""

from evenly.nn.encoders import (
    MLP,
    FrameMean,
    ResNet,
    Staged,
    Standardise,
    TemporalConv,
    encoder_for,
)
from evenly.nn.heads import FUSIONS, HEADS, Head
from evenly.nn.late_fusion import LateFusion
from evenly.nn.mmtm import MMTM
from evenly.nn.named import ENCODERS

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "HEADS",
    "MLP",
    "MMTM",
    "FrameMean",
    "Head",
    "LateFusion",
    "ResNet",
    "Staged",
    "Standardise",
    "TemporalConv",
    "encoder_for",
]
