"""Training and evaluation modes of a model's modules, as they were before a look."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Within the block modes may change; afterwards each module has its own again.

    A layer whose `train` does more than set the flag, such as one that merges an adapter into its
    weight for evaluation, is switched back by that `train`.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in before:  # parents come first, and switch their children
            if _switches(module) and module.training != mode:
                module.train(mode)
        for module, mode in before:
            module.training = mode


def _switches(module: nn.Module) -> bool:
    """Whether its `train` is its own."""
    return "train" in vars(module) or type(module).train is not nn.Module.train
