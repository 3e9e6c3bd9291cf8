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
from evenly.nn.heads import HEADS, Head
from evenly.nn.late_fusion import LateFusion
from evenly.nn.mmtm import MMTM

__all__ = [
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
