"""Encoders by the kind of their input, heads, and the model that fuses them."""

from evenly.nn.encoders import MLP, ResNet, Standardise, TemporalConv, encoder_for
from evenly.nn.heads import HEADS, Head
from evenly.nn.late_fusion import LateFusion

__all__ = [
    "HEADS",
    "MLP",
    "Head",
    "LateFusion",
    "ResNet",
    "Standardise",
    "TemporalConv",
    "encoder_for",
]
