"""Encoders by the kind of their input, and the model that fuses them."""

from evenly.nn.encoders import MLP, ResNet, Standardise, TemporalConv, encoder_for
from evenly.nn.late_fusion import LateFusion

__all__ = ["MLP", "LateFusion", "ResNet", "Standardise", "TemporalConv", "encoder_for"]
