"""The head of the greedy-learning paper: cross-modal blocks, and a layer for each modality."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.nn.encoders import Staged, Stages, resumed
from evenly.nn.heads.base import Logits
from evenly.nn.heads.late import LateHead
from evenly.nn.mmtm import MMTM, blocks_of


class MMTMHead(LateHead):
    """Features rescaled by a cross-modal block, with a linear layer on each and averaged logits.

    A modality's logits come from its own features only, but all modalities set their scale: z_m =
    V_m (g_m(f_1 .. f_M) ⊙ f_m) + b_m (Wu et al., ICML 2022).

    If all encoders are `Staged` (like those of `evenly.nn`), there are blocks between their stages,
    too: the encoders run in lockstep, and meet at their last stops. An encoder with more stops than
    another passes the first ones alone. A modality's features then depend on the others' inputs.

    Attributes:
        heads: By modality, the layers.
        block: The block on the features.
        inner: The blocks between stages, in order.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_classes: int,
        *,
        ratio: int = 4,
        stages: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Makes blocks and layers.

        Args:
            widths: Width of the features by modality.
            num_classes: Number of classes.
            ratio: See `evenly.nn.MMTM`.
            stages: Channels at the stops of each encoder, by modality; none by default.
        """
        super().__init__(widths, num_classes)
        self.block = MMTM(widths, ratio)
        stops = {name: tuple((stages or {}).get(name, ())) for name in widths}
        shared = min(len(channels) for channels in stops.values())
        self.alone = {name: len(channels) - shared for name, channels in stops.items()}
        self.inner = nn.ModuleList(
            MMTM({name: channels[self.alone[name] + n] for name, channels in stops.items()}, ratio)
            for n in range(shared)
        )

    @property
    def meets(self) -> bool:  # type: ignore[override]
        """Whether there are blocks between the encoders."""
        return bool(self.inner)

    @classmethod
    def on(
        cls, encoders: Mapping[str, nn.Module], widths: Mapping[str, int], num_classes: int
    ) -> "MMTMHead":
        """The head for some encoders, with blocks between the stages of those that have them."""
        stages = {
            name: encoder.stage_widths
            for name, encoder in encoders.items()
            if isinstance(encoder, Staged)
        }
        return cls(widths, num_classes, stages=stages)

    def encoded(
        self,
        encoders: Mapping[str, Callable[[Any], Tensor]],
        inputs: Mapping[str, Any],
        here: Mapping[str, Bool[Tensor, " n"]],
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The features of each modality in the batch, encoded in lockstep."""
        if not self.inner:
            return super().encoded(encoders, inputs, here)
        runs: dict[str, Stages] = {}
        found: dict[str, Tensor] = {}
        for name in self.widths:
            if name in inputs:
                encoder: Any = encoders[name]
                runs[name] = encoder.staged(inputs[name])
                found[name] = next(runs[name])
                for _ in range(self.alone[name]):
                    found[name] = resumed(runs[name], torch.ones_like(found[name]))
        for block in blocks_of(self.inner):
            gates = block.gates(found, here)
            found = {name: resumed(run, gates[name]) for name, run in runs.items()}
        return found

    def forward(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]] | None = None,
    ) -> Logits:
        """Z = mean of z_m over the available modalities."""
        # All samples pass the block together, since it records its gates.
        return super().forward(self.block(features, here), here)
