"""An encoder's input as a vector for each sample that a linear classifier can read."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d
from torch.utils._pytree import tree_leaves

from evenly.features import Features
from evenly.output import Output
from evenly.probe import Probe, Split

WIDEST = 2048
SIDE = 16
"""Maximum side of pictures, in pixels."""


def raw(probe: Probe, encoders: Mapping[str, nn.Module], split: Split) -> Features | None:
    """A summary of each encoder's input for each sample, by modality.

    Modalities whose encoder's input has no row for each sample are left out.
    """
    taken: dict[str, Tensor] = {}
    widths: dict[str, int] = {}
    lost: set[str] = set()

    def note(name: str, _: nn.Module, given: Any, named: dict[str, Any]) -> None:
        found = [x for x in tree_leaves((given, named)) if isinstance(x, Tensor) and x.ndim > 1]
        if found:
            taken.setdefault(name, found[0])

    def of(output: Output, target: Tensor) -> dict[str, Tensor]:
        present = output.present or {}
        found = {"": torch.zeros(len(target), 1)}
        for name in encoders:
            here = present.get(name, target.new_ones(len(target), dtype=torch.bool))
            row = _whole(taken.get(name), here)
            if row is None or row.shape[1] != widths.setdefault(name, row.shape[1]):
                lost.add(name)
                row = None
            found[name] = torch.zeros(len(target), widths.get(name, 1)) if row is None else row
        taken.clear()
        return found

    hooks = [
        encoder.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, encoder in encoders.items()
    ]
    try:
        found = probe.features(split, of)
    finally:
        for hook in hooks:
            hook.remove()
    kept = {name: x for name, x in found.features.items() if name and name not in lost}
    if not kept:
        return None
    present = {name: here for name, here in found.present.items() if name in kept}
    return Features(kept, found.target, found.index, present=present)


def _whole(x: Tensor | None, here: Bool[Tensor, " n"]) -> Float[Tensor, "n d"] | None:
    """The summary of a batch's input; None if it has no row for each sample.

    Args:
        x: The input, for all samples or for those that have the modality.
        here: Which samples have it.
    """
    if x is None or len(x) not in (len(here), int(here.sum())):
        return None
    row = summary(x)
    if len(row) == len(here):
        return row
    whole = row.new_zeros(len(here), row.shape[1])
    whole[here.to(row.device)] = row
    return whole


def summary(x: Tensor) -> Float[Tensor, "n d"]:
    """A vector for each sample, equally wide for every batch.

    Token numbers are counted, by their remainder. Sequences give mean and standard deviation over
    time. Pictures are averaged down to 16 x 16, those of a video over time first.
    """
    if not x.is_floating_point() and x.ndim == 2:
        counts = torch.zeros(len(x), WIDEST, device=x.device)
        return counts.scatter_add_(1, x.long() % WIDEST, torch.ones(x.shape, device=x.device))
    x = x.float()
    pooled: Callable[[Tensor], Tensor] = partial(adaptive_avg_pool2d, output_size=SIDE)
    if x.ndim >= 5:
        # Time comes before the channels, as in evenly's videos, or after them.
        x = x.mean(2 if x.shape[1] <= 4 and x.shape[2] not in (1, 3) else 1)
    if x.ndim == 4:
        x = pooled(x).flatten(1) if min(x.shape[2:]) > SIDE else x.flatten(1)
    elif x.ndim == 3:
        x = torch.cat([x.mean(1), x.std(1, correction=0)], 1)
    return x if x.shape[1] <= WIDEST else adaptive_avg_pool1d(x, WIDEST)
