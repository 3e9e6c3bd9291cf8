"""The head whose classifiers grow: layers that can be switched on for a weak modality."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.nn.heads.base import Head, Logits, stacked

Parts = tuple[Float[Tensor, "n c"], Float[Tensor, "n c"] | None]
"""A modality's logits without its newest added layer, and that layer's own, if there is one."""


class ConfigurableHead(Head):
    """One layer for each modality, more in reserve, and one output layer for all.

    A modality's logits are the sum over its active layers; the prediction is the mean over
    modalities (AUG, Jiang, Huang, Yang, NeurIPS 2025). All layers are created at the start, so that
    the optimiser also has those switched on later; until then they have no gradient. Layers are
    half as wide as the widest features; in the paper, 256 for 512.

    Attributes:
        depth: Number of layers that can be added to each modality: as many as the checks in the
            paper's training.
        first: By modality, the layer that is always on.
        extra: By modality, the layers in reserve.
        linear: The output layer, shared by all.
        added: Number of added layers that are on, in the order of the modalities: a buffer, so that
            a checkpoint of the model has it.
    """

    depth = 10
    added: Int[Tensor, " m"]

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers."""
        super().__init__(widths, num_classes)
        hidden = max(1, max(widths.values()) // 2)
        self.first = nn.ModuleDict(
            {name: nn.Linear(width, hidden) for name, width in widths.items()}
        )
        self.linear = nn.Linear(hidden, num_classes)
        self.extra = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.Linear(width, hidden) for _ in range(self.depth))
                for name, width in widths.items()
            }
        )
        self.register_buffer("added", torch.zeros(len(widths), dtype=torch.int64))
        # The same numbers on the CPU, since reading the buffer in each pass would wait for the
        # device.
        self._active = dict.fromkeys(widths, 0)
        self.register_load_state_dict_post_hook(_note_added)

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = mean of z_m over the available modalities."""
        unimodal = {
            name: before if last is None else before + last
            for name, (before, last) in self.parts(features).items()
        }
        return stacked(unimodal).mean(0), unimodal

    def parts(self, features: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Parts]:
        """By modality, the logits of all earlier layers and those of the newest added one."""
        return {name: self._parts(name, value) for name, value in features.items()}

    def active(self, name: str) -> int:
        """The number of layers added to a modality."""
        return self._active[name]

    def add(self, name: str) -> None:
        """Switches on one more layer of a modality.

        Raises:
            ValueError: If there is none left.
        """
        if self._active[name] == self.depth:
            raise UserError(f"all {self.depth} layers of '{name}' are switched on already.")
        self._active[name] += 1
        self.added[list(self.widths).index(name)] += 1

    def _parts(self, name: str, value: Float[Tensor, "n _"]) -> Parts:
        value = value.to(self.linear.weight.dtype)  # a method widens what it passes
        before = self.linear(self.first[name](value).relu())
        last = None
        reserve = cast(nn.ModuleList, self.extra[name])
        for layer in reserve[: self._active[name]]:
            before = before if last is None else before + last
            last = self.linear(layer(value).relu())
        return before, last


def _note_added(head: nn.Module, _: Any) -> None:
    assert isinstance(head, ConfigurableHead)
    head._active = dict(zip(head.widths, head.added.tolist(), strict=True))
