"""Handles samples that lack a modality: results of the others go where they belong."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evenly.data.dataset import Padded
from evenly.nn.tokens import Tokens

T = TypeVar("T", bound=Tensor | Padded | Tokens)

Part = tuple[Int[Tensor, " _"], Shaped[Tensor, "_ ..."]]
"""Some rows of a batch, and their results."""


def taken(x: T, rows: Int[Tensor, " k"]) -> T:
    """These rows of a modality in a batch, on its device."""
    if isinstance(x, Tensor):
        return cast(T, x[rows.to(x.device)])
    return cast(T, type(x)(*(taken(part, rows) for part in x)))


def scattered(
    parts: Sequence[Part], n: int, shape: Sequence[int], device: torch.device
) -> Shaped[Tensor, "{n} ..."]:
    """The parts in their rows of a batch of `n`, with zeros elsewhere: (n, *shape)."""
    if not parts:
        return torch.zeros(n, *shape, device=device)
    rows, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return values.new_zeros(n, *shape).index_put((rows.to(device),), values)


def by_presence(
    meet: Callable[[dict[str, T]], Mapping[str, Float[Tensor, "k _"]]],
    values: Mapping[str, T],
    here: Mapping[str, Bool[Tensor, " n"]],
    widths: Mapping[str, int],
) -> dict[str, Float[Tensor, "n _"]]:
    """Lets the modalities of each sample meet, as if all samples had the same ones.

    Args:
        meet: Called once for each set of modalities that samples have, with those samples' values,
            so no sample sees which modalities its neighbours have.
        values: What meets, by modality.
        here: By modality, which samples have it; modalities not named are complete.
        widths: Width of each result that `meet` may return. Results are zeros for samples for which
            `meet` does not return them, or that have no modality at all.
    """
    masks = {name: here[name] for name in values if name in here}
    if not masks:
        return dict(meet(dict(values)))
    some = next(iter(values.values()))
    device = (some if isinstance(some, Tensor) else some[0]).device
    # On the CPU, so that masks there need not wait for the device.
    seen = torch.stack([mask.cpu() for mask in masks.values()], 1)
    patterns, of = seen.unique(dim=0, return_inverse=True)
    parts: dict[str, list[Part]] = {name: [] for name in widths}
    for number, pattern in enumerate(patterns.tolist()):
        lacking = {name for name, there in zip(masks, pattern, strict=True) if not there}
        rows = (of == number).nonzero().flatten()
        own = {name: taken(x, rows) for name, x in values.items() if name not in lacking}
        for name, found in (meet(own) if own else {}).items():
            parts[name].append((rows, found))
    return {
        name: scattered(parts[name], len(seen), [width], device) for name, width in widths.items()
    }
