"""Models of timm and torchvision as encoders."""

from jaxtyping import Float
from torch import Tensor, nn

from evenly.data.dataset import Modality
from evenly.errors import UserError
from evenly.nn.encoders import Standardise

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""Names of the classifier in torchvision's models."""


def without_classifier(encoder: nn.Module, modality: Modality) -> nn.Module:
    """A model of timm or torchvision that returns features of standardised inputs; any other as is.

    Their models take floats and return class scores. This removes the last layer, which makes the
    scores: with timm by `reset_classifier`, with torchvision the last linear layer of `fc`,
    `classifier`, `head` or `heads`. Inputs are standardised by the training split, and videos get
    their channels before time, as torchvision's models take them.

    Raises:
        ValueError: If a model has no such layer.
    """
    package = type(encoder).__module__.partition(".")[0]
    if package == "timm":
        encoder.reset_classifier(0)  # type: ignore[operator]
    elif package == "torchvision":
        _cut(encoder)
    else:
        return encoder
    layers: list[nn.Module] = [Standardise(modality), encoder]
    if modality.kind == "video":
        layers.insert(1, _ChannelsFirst())
    return nn.Sequential(*layers)


class _ChannelsFirst(nn.Module):
    def forward(self, x: Float[Tensor, "n t c h w"]) -> Float[Tensor, "n c t h w"]:
        return x.transpose(1, 2)


def _cut(encoder: nn.Module) -> None:
    """Replaces the last linear layer of the classifier with an identity."""
    layers = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] in CLASSIFIERS
    ]
    if not layers:
        raise UserError(
            f"{type(encoder).__name__} has no linear layer in {', '.join(CLASSIFIERS)} to "
            "take off. Wrap it in a module of your own that returns features."
        )
    encoder.set_submodule(layers[-1], nn.Identity())
