"""How the learning rate changes during a run."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evenly.lab.run.settings import Training


class Schedule:
    """The learning rate of each step: warm-up, then `step`, `cosine` or `plateau`.

    Except for plateaus, it depends only on the epoch and the step, so that a resumed run continues
    unchanged. Each group of the optimiser starts from its own first rate, kept as `initial_lr`.
    """

    def __init__(self, optimizer: Optimizer, training: Training) -> None:
        """Starts at the groups' current rates.

        Args:
            optimizer: The optimiser whose rates it sets.
            training: Settings with epochs, schedule, lr_step and warmup.
        """
        self._optimizer, self._training = optimizer, training
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self._plateau = (
            ReduceLROnPlateau(optimizer, patience=training.lr_step - 1)
            if training.schedule == "plateau"
            else None
        )

    @staticmethod
    def of(optimizer: Optimizer, training: Training) -> "Schedule | None":
        """The schedule of a training; None if the rate is constant."""
        if training.schedule == "step" and not (training.lr_step or training.warmup):
            return None
        return Schedule(optimizer, training)

    def step(self, epoch: int, number: int, steps: int) -> None:
        """Sets the rate of a step, if it differs from the previous step's.

        Args:
            epoch: Epoch, from 0.
            number: Number of the step in the epoch, from 0.
            steps: Number of steps in the epoch.
        """
        training, later = self._training, epoch - self._training.warmup
        if later < 0:
            self._set((epoch + (number + 1) / steps) / training.warmup)
        elif training.schedule == "cosine":
            done = (later + number / steps) / (training.epochs - training.warmup)
            self._set((1 + math.cos(math.pi * done)) / 2)

    def end(self, epoch: int, val_loss: float) -> None:
        """An epoch ends: sets the rate of the next one, if its steps share a rate.

        Args:
            epoch: Epoch, from 0.
            val_loss: Validation loss, which detects plateaus.
        """
        training, later = self._training, epoch + 1 - self._training.warmup
        if self._plateau is not None and later > 0:
            self._plateau.step(val_loss)
        elif training.schedule == "step" and later >= 0:
            for group in self._optimizer.param_groups:
                group["lr"] = group["initial_lr"]
                for _ in range(later // training.lr_step if training.lr_step else 0):
                    group["lr"] *= 0.1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the optimiser's own state has the rates."""
        return {} if self._plateau is None else self._plateau.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if self._plateau is not None:
            self._plateau.load_state_dict(dict(state))

    def _set(self, factor: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
