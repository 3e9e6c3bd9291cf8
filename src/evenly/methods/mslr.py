"""Modality-specific learning rates (MSLR).

Yao, Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion",
Findings of ACL 2022, https://aclanthology.org/2022.findings-acl.143.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.probe import Probe


def smoothed(rate: float) -> float:
    """Half way, in orders of magnitude, between a rate of its own and the common one: √r."""
    return math.sqrt(rate)


def growth(accuracy: Sequence[float], window: int) -> float:
    """What a rate is multiplied by: accuracy now over its mean in the last epochs, now included.

    Args:
        accuracy: Of one modality on the validation split, one for each epoch, above 0.
        window: k, how many epochs the mean is over; as many as there are at first.
    """
    last = accuracy[-window:]
    return last[-1] * len(last) / sum(last)


class MSLR(Method):
    """Trains each encoder with a learning rate of its own: r_m times that of the optimiser.

    With `keep` r_m stays as it is given, with `smooth` it is √r_m, half way between the
    modality's own rate and the common one. With `dynamic` it is what is given at first, and
    before each later epoch is multiplied by the modality's own accuracy on the validation split
    over its mean in the last epochs.

    The constructor moves the parameters of each encoder into groups of their own at the end of
    the optimiser's, with all other options as they were; the optimiser's state, which belongs to
    parameters, is not touched. In each step an encoder's group gets r_m times the rate of the
    group that its parameters came from, so any scheduler works that is made after the method,
    also one that writes rates anew (`LambdaLR`, `OneCycleLR`): it moves the common rate, and the
    encoders' follow. Make the method after the optimiser, before schedulers and before loading
    the optimiser's state, and make but one for an optimiser.

    Attributes:
        factor: By modality, r_m as it is now.
        history: By the epoch before which it was measured, and modality: accuracy.
    """

    info = Info(
        title="Modality-specific learning rates (MSLR)",
        paper="Yao, Mihalcea. Modality-specific Learning Rates for Effective Multimodal Additive "
        "Late-fusion. Findings of ACL 2022",
        year=2022,
        url="https://aclanthology.org/2022.findings-acl.143",
        category="optimisation",
        writes="learning rates",
        neutral={"strategy": "keep", "rates": None},
        variants=({}, {"strategy": "keep"}),  # without rates of one's own, smooth is the same
        needs=("unimodal",),
        needs_probe=True,
        head="late",
        cost="none; before each epoch a look at the validation split (`dynamic` only)",
        missing=True,
        doubts="No code of the authors' is known. The paper takes the rates from a search over "
        "unimodal models; here they are given, and without `rates` all are 1, so that `keep` and "
        "`smooth` equal joint training. What `smooth` does is unverified, as are how often "
        "`dynamic` acts (here before each epoch but the first) and its window of 5, which is a "
        "re-implementation's. The paper adds the modalities' logits; the head takes their mean. "
        "A modality's layer in the head keeps the common rate.",
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
        """Moves the encoders' parameters into groups of their own.

        Args:
            encoders: By modality, the modules whose learning rates are set.
            optimizer: The one that trains them.
            strategy: How the rates go on, see above.
            rates: By modality, its learning rate over the optimiser's, above 0; 1 for those that
                are left out. The paper takes those with which unimodal models are best.
            window: k, epochs in the mean of `dynamic`.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range, or the optimiser trains no parameter of an
                encoder.
        """
        super().__init__(encoders, criterion=criterion)
        if strategy not in ("keep", "smooth", "dynamic"):
            raise ValueError(
                f"MSLR: 'strategy' is 'keep', 'smooth' or 'dynamic'; found '{strategy}'."
            )
        if window < 1:
            raise ValueError(f"MSLR: 'window' is at least 1; found {window}.")
        rates = {**dict.fromkeys(self.encoders, 1.0), **(rates or {})}
        if strange := set(rates) - set(self.encoders):
            raise ValueError(
                f"MSLR: 'rates' names {sorted(strange)}, but the encoders are "
                f"{sorted(self.encoders)}. Use the same names in both."
            )
        for name, rate in rates.items():
            if not 0 < rate < math.inf:
                raise ValueError(
                    f"MSLR: the rate of '{name}' is finite and above 0; found {rate}. Freeze an "
                    "encoder that is not to be trained."
                )
        self.optimizer, self.strategy, self.window = optimizer, strategy, window
        if strategy == "smooth":
            rates = {name: smoothed(rate) for name, rate in rates.items()}
        self.factor = rates
        self.history: dict[int, dict[str, float]] = {}
        self._groups = split_groups(optimizer, self.encoders)
        self._write()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Adapts the rates to the accuracies (`dynamic`)."""
        probe = self._probe(probe)  # whatever the strategy, so that one loop serves all three
        if self.strategy == "dynamic" and epoch > 0 and epoch not in self.history:
            self.history = {**self.history, epoch: self._accuracies(probe)}
            self.factor = {
                name: factor * growth([found[name] for found in self.history.values()], self.window)
                for name, factor in self.factor.items()
            }
        self._write()
        self.metrics = {f"rate/{name}": torch.tensor(r) for name, r in self.factor.items()}
        for name, accuracy in self.history.get(epoch, {}).items():
            self.metrics[f"accuracy/{name}"] = torch.tensor(accuracy)

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss."""
        self._unimodal(output)  # refused in the first step rather than after the first epoch
        return super().loss(output, target)

    def before_step(self) -> None:
        """Sets the rates, as a scheduler may have written others."""
        self._write()

    def _write(self) -> None:
        groups = self.optimizer.param_groups  # anew each time: loading a state replaces them
        for name, number, origin in self._groups:
            groups[number]["lr"] = groups[origin]["lr"] * self.factor[name]

    def _accuracies(self, probe: Probe) -> dict[str, float]:
        """Of each modality by its own logits on the validation split, over all ranks."""

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            self.watch.check_target(self, output, target)
            return {
                name: (logits.argmax(1) == target).unsqueeze(1)
                for name, logits in self._unimodal(output).items()
            }

        found = probe.features("val", of)
        counts = [x.sum().double() for x in found.features.values()]
        total = torch.stack([*counts, torch.tensor(float(len(found.target))).to(counts[0])])
        *right, rows = distributed.sum_(total, sharded=found.sharded).tolist()
        # None right counts as half a sample, as a rate of zero would never grow again.
        return {name: max(x, 0.5) / rows for name, x in zip(found.features, right, strict=True)}


def split_groups(
    optimizer: Optimizer, encoders: Mapping[str, torch.nn.Module]
) -> list[tuple[str, int, int]]:
    """Moves each encoder's parameters into groups of their own at the end of the optimiser's.

    Returns:
        For each new group the modality, its number, and that of the group it was taken from.
    """
    found = []
    for origin, group in enumerate(list(optimizer.param_groups)):
        for name, encoder in encoders.items():
            if taken := _take_out(group, set(encoder.parameters())):
                optimizer.add_param_group(taken)
                found.append((name, len(optimizer.param_groups) - 1, origin))
    for name in encoders:
        if name not in {modality for modality, *_ in found}:
            raise ValueError(
                f"MSLR: the optimiser trains no parameter of encoder '{name}'. Pass the one that "
                "trains the model."
            )
    return found


def _take_out(group: dict[str, Any], parameters: set[Tensor]) -> dict[str, Any] | None:
    """Takes parameters out of a group: another with the same options, None if it holds none."""
    mine = [parameter in parameters for parameter in group["params"]]
    if not any(mine):
        return None
    taken = dict(group)
    for key in ("params", "param_names"):
        if key in group:
            taken[key] = [x for x, is_mine in zip(group[key], mine, strict=True) if is_mine]
            group[key] = [x for x, is_mine in zip(group[key], mine, strict=True) if not is_mine]
    return taken
