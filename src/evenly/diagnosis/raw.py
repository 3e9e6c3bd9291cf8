"""An encoder's input as a vector for each sample that a linear classifier can read."""

from collections.abc import Callable, Mapping, Sequence
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
    taken: dict[str, tuple[Tensor, Tensor | None]] = {}
    widths: dict[str, int] = {}
    lost: set[str] = set()

    def note(name: str, _: nn.Module, given: Any, named: dict[str, Any]) -> None:
        leaves = [x for x in tree_leaves((given, named)) if isinstance(x, Tensor)]
        found = next((x for x in leaves if x.ndim > 1), None)
        if found is not None:
            taken.setdefault(name, (found, real_steps(found, leaves)))

    def of(output: Output, target: Tensor) -> dict[str, Tensor]:
        present = output.present or {}
        found = {"": torch.zeros(len(target), 1)}
        for name in encoders:
            here = present.get(name, target.new_ones(len(target), dtype=torch.bool))
            x, is_real = taken.get(name, (None, None))
            row = _whole(x, is_real, here)
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


def _whole(
    x: Tensor | None, is_real: Bool[Tensor, "m t"] | None, here: Bool[Tensor, " n"]
) -> Float[Tensor, "n d"] | None:
    """The summary of a batch's input; None if it has no row for each sample.

    Args:
        x: The input, for all samples or for those that have the modality.
        is_real: Which steps of sequences are no padding; None for all.
        here: Which samples have it.
    """
    if x is None or len(x) not in (len(here), int(here.sum())):
        return None
    row = summary(x, is_real)
    if len(row) == len(here):
        return row
    whole = row.new_zeros(len(here), row.shape[1])
    whole[here.to(row.device)] = row
    return whole


def real_steps(x: Tensor, leaves: Sequence[Tensor]) -> Bool[Tensor, "n t"] | None:
    """Which steps of sequences are no padding; None if nothing says so.

    An encoder's input says so by whole numbers, which are lengths, or by a mask. They count as such
    if all steps beyond are equal, as padding is and other steps are not.

    Args:
        x: Sequences, time second; other inputs have no padding.
        leaves: All tensors of the input.
    """
    if not (x.ndim in (3, 5) or is_tokens(x)):
        return None
    for other in leaves:
        if other is x or other.is_floating_point():
            continue
        other = other.to(x.device)
        if other.shape == x.shape[:1] and bool((other <= x.shape[1]).all()):
            is_real = torch.arange(x.shape[1], device=x.device) < other[:, None]
        elif other.shape == x.shape[:2] and bool(((other == 0) | (other == 1)).all()):
            is_real = other > 0
        else:
            continue
        beyond = x[~is_real]
        if bool(is_real.any()) and bool((beyond == beyond[:1]).all()):
            return is_real
    return None


def is_tokens(x: Tensor) -> bool:
    """Whether an input is token numbers."""
    return not x.is_floating_point() and x.ndim == 2


def summary(x: Tensor, is_real: Bool[Tensor, "n t"] | None = None) -> Float[Tensor, "n d"]:
    """A vector for each sample, equally wide for every batch.

    Token numbers are counted, by their remainder. Sequences give mean and standard deviation over
    time. Pictures are averaged down to 16 x 16, those of a video over time first.

    Args:
        x: The input of a batch.
        is_real: Which steps of sequences are no padding; None for all.
    """
    if is_tokens(x):
        counts = torch.zeros(len(x), WIDEST, device=x.device)
        once = torch.ones(x.shape, device=x.device) if is_real is None else is_real.float()
        return counts.scatter_add_(1, x.long() % WIDEST, once)
    x = x.float()
    pooled: Callable[[Tensor], Tensor] = partial(adaptive_avg_pool2d, output_size=SIDE)
    if x.ndim >= 5:
        # Time comes before the channels, as in evenly's videos, or after them.
        comes_last = is_real is None and x.shape[1] <= 4 and x.shape[2] not in (1, 3)
        x = x.mean(2) if comes_last else over_time(x, is_real)
    if x.ndim == 4:
        x = pooled(x).flatten(1) if min(x.shape[2:]) > SIDE else x.flatten(1)
    elif x.ndim == 3:
        mean = over_time(x, is_real)
        spread = over_time((x - mean[:, None]).square(), is_real).sqrt()
        x = torch.cat([mean, spread], 1)
    return x if x.shape[1] <= WIDEST else adaptive_avg_pool1d(x, WIDEST)


def over_time(
    x: Float[Tensor, "n t *s"], is_real: Bool[Tensor, "n t"] | None
) -> Float[Tensor, "n *s"]:
    """The mean over time, without padding."""
    if is_real is None:
        return x.mean(1)
    part = is_real.float() / is_real.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("nt...,nt->n...", x, part)
