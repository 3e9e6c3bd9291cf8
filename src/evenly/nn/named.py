"""Encoders by the names that the command uses."""

from collections.abc import Callable

from torch import nn

from evenly.nn.auto import Auto
from evenly.nn.encoders import MLP, FrameMean, ResNet, TabularResNet, TemporalConv
from evenly.nn.pretrained import AST, BERT, ResNet18, Transformer, ViT, Wav2Vec

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "tabular": TabularResNet,
    "temporal_conv": TemporalConv,
    "resnet": ResNet,
    "frame_mean": FrameMean,
    "resnet18": ResNet18,
    "transformer": Transformer,
    "ast": AST,
    "vit": ViT,
    "bert": BERT,
    "wav2vec": Wav2Vec,
    "auto": Auto,
}
"""Each is called with the modality; its other parameters are settings."""
