"""Which samples of a batch have which modalities, for a method that compares or averages them.

A loss is a mean over samples, each with the modalities it has, as if all samples with the same
modalities formed a batch without the others. So a sample counts the same whatever its neighbours
have, and passes and ranks add up.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from evenly.output import Output


class Part(NamedTuple):
    """The samples of a batch that have the same subset of some modalities.

    Attributes:
        rows: Their rows in the batch.
        names: The modalities that they have.
        share: Their share of the batch's samples.
    """

    rows: Int[Tensor, " k"] | slice
    names: list[str]
    share: float

    def of(self, x: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "k ..."]:
        """Their rows; for all, `x` itself, since gradients add up differently through a slice."""
        return x if isinstance(self.rows, slice) else x[self.rows]


def parts(output: Output, names: Collection[str]) -> list[Part]:
    """The samples of a batch, grouped by which modalities they have; one part if all have all.

    This waits for masks on a device, since they determine the sizes of the parts.

    Args:
        output: Output of one pass.
        names: Modalities in the batch.
    """
    masks = [mask for name, mask in (output.present or {}).items() if name in names]
    if not masks:
        return [Part(slice(None), list(names), 1.0)]
    every = torch.ones_like(masks[0])
    here = torch.stack([(output.present or {}).get(name, every) for name in names], 1).cpu()
    patterns, of = here.unique(dim=0, return_inverse=True)
    found = []
    for number, pattern in enumerate(patterns.tolist()):
        rows = (of == number).nonzero().flatten()
        own = [name for name, is_there in zip(names, pattern, strict=True) if is_there]
        found.append(Part(rows.to(output.logits.device), own, len(rows) / len(of)))
    return found


def having(output: Output, *names: str) -> Bool[Tensor, " n"] | None:
    """Which samples have all of these modalities; None if no mask says that some do not."""
    masks = [mask for name, mask in (output.present or {}).items() if name in names]
    return torch.stack(masks).all(0).to(output.logits.device) if masks else None


def those(x: Shaped[Tensor, "n ..."], here: Bool[Tensor, " n"] | None) -> Shaped[Tensor, "k ..."]:
    """The rows of marked samples; all rows without a mask."""
    return x if here is None else x[here.to(x.device)]


def only(x: Shaped[Tensor, "n _"], here: Bool[Tensor, " n"] | None) -> Shaped[Tensor, "n _"]:
    """The rows of marked samples, with zeros, which teach nothing, for the others."""
    if here is None:
        return x
    return x.where(here.to(x.device).unsqueeze(1), x.new_zeros(()))
