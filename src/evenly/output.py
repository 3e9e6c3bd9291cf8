"""What a method sees of one forward pass."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evenly.errors import UserError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Output:
    """One forward pass of a multimodal model, as every method sees it.

    Letters: n samples, c classes; features may differ in width from modality to modality.

    Attributes:
        logits: The fused prediction.
        features: By modality, the vectors that enter the fusion. A modality missing from the batch
            is missing here.
        unimodal: By modality, the logits of that modality alone, if a method needs them;
            `split_linear` computes them for a linear head on concatenated features.
        index: A unique whole number for each sample, the same in each epoch, if a method needs it:
            for example, its position in the data set. A method's random masks for samples depend on
            it.
        fuse: `fuse(features)` returns the fused logits of other features of the same shapes, for a
            method that masks, swaps or detaches them. A modality left out counts as missing;
            features may repeat the batch several times, one copy after another.
        present: By modality, which samples of the batch have it, if some lack it: their features
            and unimodal logits are zeros. Modalities not named are complete.
        ablate: `ablate(keep)` returns the fused logits of another pass over the same batch, with
            zeros as the inputs of all modalities but `keep`, for a method that must see the
            encoders without them. The pass runs in evaluation mode; gradients flow.
    """

    logits: Float[Tensor, "n c"]
    features: Mapping[str, Float[Tensor, "n _"]]
    unimodal: Mapping[str, Float[Tensor, "n c"]] | None = None
    index: Int[Tensor, " n"] | None = None
    fuse: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    ablate: Callable[[Collection[str]], Tensor] | None = None
    present: Mapping[str, Bool[Tensor, " n"]] | None = None

    def __post_init__(self) -> None:
        """Checks that the samples have numbers.

        Raises:
            TypeError: If the index does not hold whole numbers.
            ValueError: If it has another shape.
        """
        index: Any = self.index
        if index is None:
            return
        if not isinstance(index, Tensor) or index.dtype not in _WHOLE:
            found = str(index.dtype) if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(
                "Output.index is a tensor of whole numbers, one for each sample; found "
                f"{found.removeprefix('torch.')}. Pass them as int64."
            )
        if index.shape != self.logits.shape[:1]:
            raise UserError(
                f"Output.index has shape {tuple(index.shape)} for logits of shape "
                f"{tuple(self.logits.shape)}. Pass one number for each sample."
            )


def split_linear(
    head: nn.Linear, features: Mapping[str, Float[Tensor, "n _"]]
) -> dict[str, Float[Tensor, "n c"]]:
    """The share of each modality in the logits of a linear head on concatenated features.

    With the head's weight split into W = [W_1 .. W_M], modality m gets z_m = W_m f_m + b / M, so
    the shares add up to the fused logits (OGM-GE, Peng et al., CVPR 2022).

    Args:
        head: The linear layer that takes the concatenated features.
        features: By modality, in the order in which they are concatenated.

    Raises:
        ValueError: If the widths of the features do not add up to the head's input.
    """
    widths = {name: value.shape[1] for name, value in features.items()}
    if sum(widths.values()) != head.in_features:
        raise UserError(
            f"split_linear: the head takes {head.in_features} inputs, but the features have "
            f"{sum(widths.values())} ({widths}). Pass the features as they are concatenated."
        )
    bias = None if head.bias is None else head.bias / len(features)
    blocks = head.weight.split(list(widths.values()), dim=1)
    return {
        name: nn.functional.linear(value, block, bias)
        for (name, value), block in zip(features.items(), blocks, strict=True)
    }


def lacking(part: str, who: str) -> UserError:
    """The error that a method needs a part of the output that the model did not fill."""
    return UserError(f"{who} needs `Output.{part}`; found None. {_PARTS[part]}")


_PARTS = {
    "unimodal": "It compares modalities by their own logits. For a linear head on concatenated "
    "features, pass `split_linear(head, features)`; the heads of `evenly.nn` give them too.",
    "index": "It follows single samples. Pass a number for each that no other has, such as its "
    "position in its data set.",
    "fuse": "It fuses features that it has changed. Pass a function of features by modality that "
    "gives the fused logits; the models of `evenly.nn` do.",
    "ablate": "It looks at the model without some of its inputs. Pass a function of the modalities "
    "to keep that gives the logits with the other inputs zeroed; the models of `evenly.nn` do.",
}
