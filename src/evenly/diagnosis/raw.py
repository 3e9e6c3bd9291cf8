"""What goes into an encoder, as a vector for each sample that a linear classifier can read."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d
from torch.utils._pytree import tree_leaves

from evenly.features import Features
from evenly.output import Output
from evenly.probe import Probe, Split

WIDEST = 2048
SIDE = 16
"""Of pictures, in pixels, at most."""


def raw(probe: Probe, encoders: Mapping[str, nn.Module], split: Split) -> Features | None:
    """By modality, a summary of what goes into its encoder for each sample.

    Modalities whose encoder takes nothing with a row for each sample are left out.
    """
    taken: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, given: Any, named: dict[str, Any]) -> None:
        found = [x for x in tree_leaves((given, named)) if isinstance(x, Tensor) and x.ndim > 1]
        if found:
            taken.setdefault(name, found[0])

    def of(output: Output, target: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, x in taken.items():
            rows: Any = slice(None)
            if name in (output.present or {}):
                rows = (output.present or {})[name].to(x.device).nonzero()[:, 0]
            size = len(target) if isinstance(rows, slice) else len(rows)
            if len(x) not in (size, len(target)):
                continue
            row = summary(x)
            whole = row.new_zeros(len(target), row.shape[1])
            whole[rows if len(x) == size else slice(None)] = row
            found[name] = whole
        taken.clear()
        return found or {"": torch.zeros(len(target), 1)}

    hooks = [
        encoder.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, encoder in encoders.items()
    ]
    try:
        found = probe.features(split, of)
    finally:
        for hook in hooks:
            hook.remove()
    return None if "" in found.features else found


def summary(x: Tensor) -> Float[Tensor, "n d"]:
    """A vector for each sample, as wide for every batch.

    Numbers of words are counted, by their remainder; of a sequence there are mean and standard
    deviation over time; pictures are averaged down to 16 x 16, those of a video over time first.
    """
    if not x.is_floating_point() and x.ndim == 2:
        counts = torch.zeros(len(x), WIDEST, device=x.device)
        return counts.scatter_add_(1, x.long() % WIDEST, torch.ones(x.shape, device=x.device))
    x = x.float()
    pooled: Callable[[Tensor], Tensor] = partial(adaptive_avg_pool2d, output_size=SIDE)
    if x.ndim >= 5:
        x = x.mean(2 if x.shape[1] <= 4 else 1)  # channels or time come first
    if x.ndim == 4:
        x = pooled(x).flatten(1) if min(x.shape[2:]) > SIDE else x.flatten(1)
    elif x.ndim == 3:
        x = torch.cat([x.mean(1), x.std(1, correction=0)], 1)
    return x if x.shape[1] <= WIDEST else adaptive_avg_pool1d(x, WIDEST)
