"""Modality-specific learning rates (MSLR).

Yao, Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion",
Findings of ACL 2022, https://aclanthology.org/2022.findings-acl.143.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info
from evenly.output import Output
from evenly.pacing import Paced
from evenly.probe import Probe
from evenly.ranges import check_choice, check_range
from evenly.targets import ANY, Kind


def smoothed(rate: float) -> float:
    """Halfway, in orders of magnitude, between an individual rate and the common one: √r."""
    return math.sqrt(rate)


def growth(accuracy: Sequence[float], window: int) -> float:
    """Current accuracy over its mean in the `window` epochs before; 1 until there are as many.

    Args:
        accuracy: Accuracy of one modality on the validation split in each epoch, above 0.
        window: k, the number of epochs in the mean.
    """
    before = accuracy[-window - 1 : -1]
    return accuracy[-1] * window / sum(before) if len(before) == window else 1.0


class MSLR(Paced):
    """Trains each encoder at its own learning rate: r_m times that of the optimiser.

    With `keep`, r_m stays as given. With `smooth`, the factor is √r_m, halfway between the
    modality's own rate and the common one. With `dynamic`, each epoch multiplies the given r_m by
    the modality's own accuracy on the validation split over its mean in the `window` epochs before;
    until there are as many, r_m stays as given. So `dynamic` takes class numbers, while the others
    take any target.

    Attributes:
        rates: By modality, r_m as given, or √r_m.
        history: Accuracies, by the epoch before which they were measured and by modality.
    """

    info = Info(
        title="Modality-specific learning rates (MSLR)",
        paper="Yao, Mihalcea. Modality-specific Learning Rates for Effective Multimodal Additive "
        "Late-fusion. Findings of ACL 2022",
        year=2022,
        url="https://aclanthology.org/2022.findings-acl.143",
        category="optimisation",
        writes="learning rates",
        keeps_loss=True,
        neutral={"strategy": "keep", "rates": None},
        variants=({}, {"strategy": "keep"}),  # without given rates, smooth is the same
        needs=("unimodal",),
        needs_probe=True,
        head="late",
        cost="none; before each epoch a pass over the validation split (`dynamic` only)",
        missing=True,
        doubts="No code by the authors is known. The paper finds the rates by a search over "
        "unimodal models; here you give them, and without `rates` all are 1, so that "
        "`keep` and `smooth` equal joint training. What `smooth` does is unverified. "
        "`dynamic` and its window of 5 follow both known re-implementations, by the "
        "authors of AGM and of AMST. The paper adds the modalities' logits; the head "
        "takes their mean. A modality's layer in the head keeps the common rate.",
    )
    state: ClassVar[tuple[str, ...]] = ("factor", "history")

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        strategy: Literal["keep", "smooth", "dynamic"] = "dynamic",
        rates: dict[str, float] | None = None,
        window: int = 5,
        criterion: Criterion | None = None,
    ) -> None:
        """Makes the optimiser's steps use learning rates by modality.

        Args:
            encoders: The modules whose learning rates are set, by modality.
            optimizer: The optimiser that trains them.
            strategy: How the rates develop; see above.
            rates: By modality, its learning rate over the optimiser's, above 0; 1 for those left
                out. The paper takes the best rates of unimodal models.
            window: k, the number of epochs in the mean of `dynamic`, which does nothing in the
                first k + 1.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If a setting is out of range or the optimiser does not suit `Paced`.
        """
        super().__init__(encoders, criterion=criterion)
        check_choice(self, ("keep", "smooth", "dynamic"), strategy=strategy)
        check_range(self, "at least 1", window=window)
        rates = {**self.factor, **(rates or {})}
        if strange := set(rates) - set(self.encoders):
            raise UserError(
                f"MSLR: 'rates' names {sorted(strange)}, but the encoders are "
                f"{sorted(self.encoders)}. Use the same names in both."
            )
        for name, rate in rates.items():
            if not 0 < rate < math.inf:
                raise UserError(
                    f"MSLR: the rate of '{name}' must be finite and above 0; found {rate}. "
                    "Freeze an encoder that should not train."
                )
        self.info = replace(self.info, targets=self.accepts(strategy=strategy))
        self.strategy, self.window = strategy, window
        if strategy == "smooth":
            rates = {name: smoothed(rate) for name, rate in rates.items()}
        self.rates = rates
        self.factor = dict(rates)
        self.history: dict[int, dict[str, float]] = {}
        self._pace(optimizer)

    @classmethod
    def accepts(cls, **settings: Any) -> tuple[Kind, ...]:
        """Class numbers for `dynamic`, which counts right answers; any target for the others."""
        return cls.info.targets if settings.get("strategy", "dynamic") == "dynamic" else ANY

    def is_due(self, epoch: int) -> bool:
        """Whether an encoder may have a rate of its own in this epoch (from 0)."""
        given = any(rate != 1 for rate in self.rates.values())
        return given or (self.strategy == "dynamic" and epoch > self.window)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Adapts the rates to the accuracies (`dynamic`)."""
        probe = self._probe(probe)  # for any strategy, so that one loop serves all three
        if self.strategy == "dynamic" and epoch > 0 and epoch not in self.history:
            self.history = {**self.history, epoch: self._accuracies(probe)}
            self.factor = {
                name: rate * growth([found[name] for found in self.history.values()], self.window)
                for name, rate in self.rates.items()
            }
        self.metrics = {f"rate/{name}": torch.tensor(r) for name, r in self.factor.items()}
        for name, accuracy in self.history.get(epoch, {}).items():
            self.metrics[f"accuracy/{name}"] = torch.tensor(accuracy)

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss."""
        self._unimodal(output)  # fails in the first step rather than after the first epoch
        return super().loss(output, target)

    def _accuracies(self, probe: Probe) -> dict[str, float]:
        """The accuracy of each modality's own logits on the validation split."""
        _, right, rows = self._right(probe)
        # No correct sample counts as half of one, since a rate of zero would never grow again.
        return {name: max(x, 0.5) / rows for name, x in right.items()}
