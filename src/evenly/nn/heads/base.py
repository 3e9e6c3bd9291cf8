"""The base of every head: a module from features by modality to logits."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.nn.presence import by_presence

Logits = tuple[Float[Tensor, "n c"], dict[str, Float[Tensor, "n c"]]]
"""Fused logits, and those of each given modality."""

_FUSED = ""  # a key beside the modalities': a ModuleDict allows no empty name


class Head(nn.Module):
    """Turns features into fused logits, which are the prediction, and logits of each modality.

    Attributes:
        meets: Whether encoders see each other before their features are fused.
        sums: Whether the fused logits of a sample that has all modalities are the sum of the
            modalities' own.
        widths: Width of the features by modality, in the order of fusion.
        num_classes: Number of classes.
        missing: By modality, a learnt vector that replaces missing features; None unless requested,
            see `learn_missing`.
    """

    meets: bool = False
    sums: bool = False
    missing: nn.ParameterDict | None

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Stores the shapes.

        Args:
            widths: Width of the features by modality.
            num_classes: Number of classes.
        """
        super().__init__()
        self.widths = dict(widths)
        self.num_classes = num_classes
        self.missing = None

    def learn_missing(self) -> None:
        """Makes a learnt vector, zeros at first, replace the features of missing modalities."""
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(width)) for name, width in self.widths.items()}
        )

    def forward(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]] | None = None,
    ) -> Logits:
        """The logits of each sample, from the modalities that it has.

        Args:
            features: Features by modality; one left out is missing from the batch.
            here: By modality, which samples have it; modalities not named are complete. Entries of
                `features` for the other samples are ignored. Their logits of that modality are
                zeros, and so are all logits of a sample without any modality. A head with learnt
                vectors fuses those instead.
        """
        if self.missing is not None:
            return self._filled_in(features, here or {}, self.missing)
        if not here:
            return self.logits(features)
        widths = dict.fromkeys([_FUSED, *features], self.num_classes)
        unimodal = by_presence(self._in_one, features, here, widths)
        return unimodal.pop(_FUSED), unimodal

    def _filled_in(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]],
        missing: nn.ParameterDict,
    ) -> Logits:
        """The logits with learnt vectors wherever a sample or the batch lacks a modality."""
        some = self.any_of(features)
        whole = {
            name: missing[name].to(some.dtype).expand(some.shape[0], -1) for name in self.widths
        }
        there = {name: here[name].to(some.device).unsqueeze(1) for name in features if name in here}
        for name, value in features.items():
            whole[name] = torch.where(there[name], value, whole[name]) if name in there else value
        fused, unimodal = self.logits(whole)
        own = {name: unimodal[name] for name in unimodal if name in features}
        return fused, {
            name: z.where(there[name], z.new_zeros(())) if name in there else z
            for name, z in own.items()
        }

    @abstractmethod
    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """The logits of samples that have these modalities and no others."""

    @classmethod
    def on(
        cls, encoders: Mapping[str, nn.Module], widths: Mapping[str, int], num_classes: int
    ) -> "Head":
        """The head for some encoders; a head that reaches into encoders inspects them."""
        return cls(widths, num_classes)

    def encoded(
        self,
        encoders: Mapping[str, Callable[[Any], Tensor]],
        inputs: Mapping[str, Any],
        here: Mapping[str, Bool[Tensor, " n"]],
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The features of each modality in the batch.

        Args:
            encoders: Encoders by modality; each returns zeros for samples that lack it.
            inputs: Inputs by modality.
            here: By modality, which samples have it, for a head in which encoders meet earlier.
        """
        return {name: encoders[name](inputs[name]) for name in self.widths if name in inputs}

    def _in_one(
        self, features: Mapping[str, Float[Tensor, "n _"]]
    ) -> dict[str, Float[Tensor, "n c"]]:
        fused, unimodal = self.logits(features)
        return {_FUSED: fused, **unimodal}

    def one_width(self) -> int:
        """The common width of all features, for a layer shared by all modalities.

        Raises:
            ValueError: If the features are not equally wide.
        """
        first, *others = self.widths.values()
        if any(width != first for width in others):
            raise UserError(
                f"{type(self).__name__} shares a layer between modalities, so their features "
                f"need one width; found {self.widths}. Give the encoders the same "
                "`out_features`."
            )
        return first

    def unimodal_heads(self) -> nn.ModuleDict:
        """A linear layer for each modality."""
        return nn.ModuleDict(
            {name: nn.Linear(width, self.num_classes) for name, width in self.widths.items()}
        )

    def any_of(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n _"]:
        """The features of any available modality.

        Raises:
            ValueError: If there is none.
        """
        if not features:
            raise UserError(f"a batch holds none of the modalities {sorted(self.widths)}.")
        return next(iter(features.values()))

    def filled(
        self, features: Mapping[str, Float[Tensor, "n _"]]
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The features of all modalities in order, with zeros for missing ones."""
        some = self.any_of(features)
        return {
            name: features[name] if name in features else some.new_zeros(some.shape[0], width)
            for name, width in self.widths.items()
        }


def stacked(logits: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "m n c"]:
    """The logits of all modalities in one tensor."""
    return torch.stack(list(logits.values()))
