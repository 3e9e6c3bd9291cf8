"""Finds the samples of a training split again by their `Output.index`."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from evenly import distributed
from evenly.errors import UserError
from evenly.features import Features
from evenly.loaders import keeps_order
from evenly.output import lacking

Samples = dict[str, Tensor]
"""Each sample's `number`, in increasing order, its `position` in the split, and its `target`."""


def samples(found: Features, who: str) -> tuple[Samples, dict[str, Tensor]]:
    """All samples that a look saw, and its findings on each in the same order, on all ranks.

    Args:
        found: What the look found, with the numbers.
        who: The calling method, for error messages.

    Raises:
        ValueError: If two samples share a number, or there are no numbers.
    """
    if found.number is None or found.index is None:
        raise lacking("index", who)
    number, position, target = (
        torch.cat(distributed.gather(x, sharded=found.sharded))
        for x in (found.number.long(), found.index, found.target)
    )
    order = number.argsort(stable=True)
    number = number[order]
    twice = number[1:][number[1:] == number[:-1]]
    if len(twice):
        raise UserError(
            f"{who} follows single samples, but Output.index gives several of them one number "
            f"({len(twice)} too many, the first of them {int(twice[0])}). Give each sample of the "
            "training split a number of its own, such as its position in the data set."
        )
    values = {
        name: torch.cat(distributed.gather(value, sharded=found.sharded))[order.to(value.device)]
        for name, value in found.features.items()
    }
    return {"number": number, "position": position[order], "target": target[order]}, values


def rows(known: Samples, index: Int[Tensor, " n"], target: Tensor, who: str) -> Int[Tensor, " n"]:
    """Where the samples of a batch are among the known ones, on the device of their numbers.

    On a CPU this raises at once. It does not wait for a device, whose next kernel fails.

    Raises:
        ValueError: If there are unknown samples, or their classes differ from before.
    """
    index = index.long().to(target.device)
    for name in known:
        known[name] = known[name].to(index.device)  # after a checkpoint was loaded
    number = known["number"]
    found = torch.searchsorted(number, index).clamp_max(len(number) - 1)
    same = number[found] == index
    if not target.is_floating_point() and target.ndim == 1:
        same = same & (known["target"][found] == target)
    _hold(
        same.all(),
        f"Output.index numbers other samples than in {who}'s look at the training split, or "
        "numbers them otherwise. Give each sample a number of its own, the same in each epoch, "
        "such as its position in the data set, and have each epoch draw from the same samples.",
    )
    return found


def check_positions(known: Samples, count: int, who: str, loader: Iterable[Any]) -> None:
    """Raises if the samples are not those that a sampler of this size draws from.

    Args:
        known: What a look found.
        count: The number of samples that the sampler draws from.
        who: The calling method, for error messages.
        loader: The loader that the look used.
    """
    if not keeps_order(loader) and not torch.equal(known["number"], known["position"]):
        raise UserError(
            f"{who} chooses which samples are drawn, but the loader's collate function may reorder "
            "a batch, and Output.index does not say which row is which sample. Number samples by "
            "their position in the data set."
        )
    position = known["position"].sort().values
    if not torch.equal(position, torch.arange(count, device=position.device)):
        raise UserError(
            f"{who} chooses which samples are drawn, but the probe's training loader is not a "
            f"DataLoader and gave {len(position)} samples, numbered {int(position[0])} to "
            f"{int(position[-1])} by Output.index, where the sampler has 0 to {count - 1}. Give "
            "the probe the DataLoader, or number samples by their position in its data set."
        )


def _hold(condition: Tensor, text: str) -> None:
    if condition.device.type == "cpu":
        if not condition:
            raise UserError(text)
    else:
        torch._assert_async(condition, text)
