"""An exponential moving average of a run's weights, evaluated in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evenly import distributed
from evenly.method import Method
from evenly.methods.composed import parts as methods_of
from evenly.methods.relearn import Relearn
from evenly.probe import Probe
from evenly.reinit import soft_reinit_


class Average:
    """After each step ē ← d ē + (1 - d) θ, for all weights and BatchNorm's running statistics.

    d is the decay, or (1 + t) / (10 + t) in step t, from 1, if that is less: otherwise the initial
    weights would stay in it for long. Whole numbers, such as BatchNorm's count of batches, are the
    model's.

    Attributes:
        model: The model whose weights are averaged, in place while `applied`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins with the current weights.

        Args:
            model: The model on its device, already sharded if it should be.
            decay: d, between 0 and 1.
        """
        self.model, self._decay, self._steps = model, decay, 0
        found = {name: x for name, x in model.state_dict().items() if x.is_floating_point()}
        known: dict[Any, str] = {}
        # A tensor may have several names, such as that of tied weights; it is averaged once.
        self._named = {name: known.setdefault(_place(x) or name, name) for name, x in found.items()}
        self._trained = {name: found[name] for name in dict.fromkeys(self._named.values())}
        self._mean = {name: x.clone() for name, x in self._trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Adds the weights after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, x in self._trained.items():
            distributed.local(self._mean[name]).lerp_(distributed.local(x), 1 - decay)

    @torch.no_grad()
    def before_epoch(self, method: Method, epoch: int, probe: Probe) -> None:
        """Has a method begin an epoch, and changes the average as it changes the weights.

        Re-learning pulls back the average, too, by the same share towards the same initial weights.
        For anything else that changed, the average restarts from the new values.

        Args:
            method: The method that begins the epoch.
            epoch: Epoch, from 0.
            probe: Probe of the model.
        """
        before = {name: x.clone() for name, x in self._trained.items()}
        relearning = [one for one in methods_of(method) if isinstance(one, Relearn)]
        known = [epoch in one.history for one in relearning]
        with torch.enable_grad():
            method.before_epoch(epoch, probe)
        distributed.reshard(self.model)
        pulled: set[str] = set()
        with self.applied():
            for one, was_known in zip(relearning, known, strict=True):
                for name, of_encoder in ({} if was_known else one.history.get(epoch, {})).items():
                    assert one.initial is not None
                    soft_reinit_(one.encoders[name], one.initial[name], of_encoder["strength"])
                    mine = set(one.encoders[name].parameters())
                    pulled.update(n for n, p in self.model.named_parameters() if p in mine)
        for name, x in self._trained.items():
            is_same = torch.equal(distributed.local(x), distributed.local(before[name]))
            if name not in pulled and not is_same:
                self._mean[name].copy_(x)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the model's place within the block; changes made there stay."""
        self._exchange()
        try:
            yield
        finally:
            distributed.reshard(self.model)
            self._exchange()

    def weights(self) -> dict[str, Tensor]:
        """A state of the model, with averages, whole on the first process; all must call this."""
        means = {name: self._mean[first] for name, first in self._named.items()}
        found = {**self.model.state_dict(), **means}
        return {name: distributed.handed_in(x) for name, x in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; every process must call this."""
        mean = {name: distributed.handed_in(x) for name, x in self._mean.items()}
        return {"steps": self._steps, "mean": mean}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._steps = state["steps"]
        for name, x in self._mean.items():
            x.copy_(distributed.sharded_like(state["mean"][name].to(x.device), x))

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, x in self._trained.items():
            mine, theirs = distributed.local(self._mean[name]), distributed.local(x)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)


def _place(x: Tensor) -> tuple[Any, ...] | None:
    """What distinguishes a tensor from all others; None if it is empty."""
    x = distributed.local(x)
    return (x.data_ptr(), x.shape, x.stride()) if x.numel() else None
