"""A case: its name, its truth, and its training."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import evenly
from cases.joint import Joint, forward, optimizer_of, train
from cases.plan import BATCH, Batch, Plan
from cases.real import altered, real
from cases.sources import bayes
from cases.synthetic import drawn, synthetic

FIRST = {"dev": 0, "held": 1_000_000}
"""The first seed of each set; sets do not overlap."""
SYNTHETIC, REAL = 300, 60
"""Candidates in each set; the oracle rejects some."""


class Built(NamedTuple):
    """The arguments of `evenly.checkup`, and the number of epochs."""

    model: nn.Module
    forward: Callable[..., tuple[evenly.Output, Tensor]]
    train: DataLoader
    val: DataLoader
    encoders: dict[str, nn.Module]
    initial: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    epochs: int


@dataclass(frozen=True)
class Case:
    """A training with known truth, reproducible bit for bit from its seed."""

    name: str
    seed: int
    plan: Plan

    @property
    def truth(self) -> dict[str, str]:
        """The intended verdict of each modality."""
        return {name: part.truth for name, part in self.plan.parts.items()}

    def rows(self, split: str) -> Batch:
        """Inputs by modality, and classes, of `train`, `val`, or unseen `fresh` samples."""
        if self.plan.real is not None:
            return altered(self.plan, self.seed)[split]
        return drawn(self.plan, self.seed, split)

    def bayes(self) -> dict[str, float]:
        """The accuracy of each modality's best reader, if known; for copies, before noise."""
        shares = self.plan.shares[0]
        stream = torch.Generator().manual_seed(self.seed + 9)
        return {
            name: bayes(part.source, part.agree, shares, stream)
            for name, part in self.plan.parts.items()
            if part.source is not None
        }

    def build(self) -> Built:
        """Trains the joint model."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return self._build()

    def _build(self) -> Built:
        plan = self.plan
        known, val = self.rows("train"), self.rows("val")
        model = Joint(plan, [tuple(x.shape[1:]) for x in known[0]])
        initial = copy.deepcopy(model.state_dict())
        optimizer = optimizer_of(model, plan)
        train(model, plan, optimizer, *known)
        return Built(
            model,
            forward,
            DataLoader(TensorDataset(*known[0], known[1]), BATCH, shuffle=True),
            DataLoader(TensorDataset(*val[0], val[1]), len(val[1])),
            dict(model.encoders.items()),
            initial,
            optimizer,
            plan.epochs,
        )


def cases(which: str) -> list[Case]:
    """All candidates of `dev` or `held`, real ones after every fifth synthetic one."""
    first, found = FIRST[which], []
    for i in range(SYNTHETIC):
        found.append(Case(f"synthetic-{first + i}", first + i, synthetic(first + i)))
        if i % (SYNTHETIC // REAL) == 0:
            seed = first + i // (SYNTHETIC // REAL)
            plan = real(seed)
            found.append(Case(f"{plan.real}-{seed}", seed, plan))
    return found
