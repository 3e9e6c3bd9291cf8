"""Optimisers as libraries hand them out, for the tests."""

from typing import Any

from torch.optim import Optimizer


class SAM(Optimizer):
    """As most repositories have it."""

    def __init__(self, params, base_optimizer, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


def wrappings() -> dict[str, Any]:
    from accelerate import Accelerator
    from lightning.fabric.wrappers import _FabricOptimizer
    from lightning.pytorch.core.optimizer import LightningOptimizer

    return {
        "accelerate": Accelerator(cpu=True).prepare,
        "lightning": LightningOptimizer,
        "fabric": lambda optimizer: _FabricOptimizer(optimizer, strategy=None),
        "twice": lambda optimizer: LightningOptimizer(Accelerator(cpu=True).prepare(optimizer)),
    }
