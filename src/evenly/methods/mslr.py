"""Modality-specific learning rates (MSLR).

Yao, Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion",
Findings of ACL 2022, https://aclanthology.org/2022.findings-acl.143.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.optimizers import all_of, check_trains, needs_closure, unwrapped
from evenly.output import Output
from evenly.probe import Probe

Group = dict[str, Any]


def smoothed(rate: float) -> float:
    """Half way, in orders of magnitude, between a rate of its own and the common one: √r."""
    return math.sqrt(rate)


def growth(accuracy: Sequence[float], window: int) -> float:
    """Accuracy now over its mean in the last epochs before; 1 until there are as many.

    Args:
        accuracy: Of one modality on the validation split, one for each epoch, above 0.
        window: k, how many epochs the mean is over.
    """
    before = accuracy[-window - 1 : -1]
    return accuracy[-1] * window / sum(before) if len(before) == window else 1.0


def split(
    groups: Sequence[Group], owner: Mapping[Tensor, str], factor: Mapping[str, float]
) -> list[tuple[Group, Group]]:
    """Each group in parts: what belongs to no modality, then each modality at a rate of its own.

    Args:
        groups: An optimiser's parameter groups, which stay as they are.
        owner: The modality of each parameter that belongs to one.
        factor: By modality, its rate over the group's.

    Returns:
        Each part with the group that it is of.
    """
    found = []
    for group in groups:
        for name in (None, *factor):
            mine = [owner.get(p) == name for p in group["params"]]
            if any(mine):
                part = {**group, "lr": group["lr"] * (1.0 if name is None else factor[name])}
                for key in ("params", "param_names"):
                    if key in group:
                        part[key] = [
                            x for x, is_mine in zip(group[key], mine, strict=True) if is_mine
                        ]
                found.append((part, group))
    return found


class MSLR(Method):
    """Trains each encoder with a learning rate of its own: r_m times that of the optimiser.

    With `keep` r_m stays as it is given, with `smooth` it is √r_m, half way between the
    modality's own rate and the common one. With `dynamic` it is what is given times the modality's
    own accuracy on the validation split over its mean in the `window` epochs before, anew for each
    epoch; it is what is given until there are as many.

    In each step of the optimiser, an encoder's parameters have r_m times the rate of the group that
    they are in, with all its other options: within the step they are groups of their own, after it
    the groups are as they were. So any scheduler, made before or after the method, moves the common
    rate, and the encoders' follow; and a state of the optimiser is what it is without the method.
    Of several such methods for one optimiser, the last one made acts.

    Attributes:
        rates: By modality, r_m as it is given, or √ of it.
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
        keeps_loss=True,
        neutral={"strategy": "keep", "rates": None},
        variants=({}, {"strategy": "keep"}),  # without rates of one's own, smooth is the same
        needs=("unimodal",),
        needs_probe=True,
        head="late",
        cost="none; before each epoch a look at the validation split (`dynamic` only)",
        missing=True,
        doubts="No code of the authors' is known. The paper takes the rates from a search over "
        "unimodal models; here they are given, and without `rates` all are 1, so that `keep` and "
        "`smooth` equal joint training. What `smooth` does is unverified. `dynamic` and its window "
        "of 5 are as both known re-implementations have them, by AGM's authors and by AMST's. The "
        "paper adds the modalities' logits; the head takes their mean. "
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
        """Has the optimiser's steps use rates by modality.

        Args:
            encoders: By modality, the modules whose learning rates are set.
            optimizer: The one that trains them.
            strategy: How the rates go on, see above.
            rates: By modality, its learning rate over the optimiser's, above 0; 1 for those that
                are left out. The paper takes those with which unimodal models are best.
            window: k, epochs in the mean of `dynamic`, which acts in none of the first k + 1.
            criterion: See `Method`.

        Raises:
            TypeError: If the optimizer is none.
            ValueError: If a setting is out of range, or the optimiser trains no parameter of an
                encoder or has but one rate for all.
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
        self.strategy, self.window = strategy, window
        if strategy == "smooth":
            rates = {name: smoothed(rate) for name, rate in rates.items()}
        self.rates = rates
        self.factor = dict(rates)
        self.history: dict[int, dict[str, float]] = {}
        self._owner: dict[Tensor, str] = {
            p: name for name, encoder in self.encoders.items() for p in encoder.parameters()
        }
        self._check_optimizer(unwrapped(optimizer))
        for one in all_of(optimizer):
            if one not in _LAST:
                one.register_step_pre_hook(_split)
                one.register_step_post_hook(_join)
                one.register_state_dict_pre_hook(_join)  # of a step that broke off
                one.register_load_state_dict_pre_hook(_join)
            _LAST[one] = ref(self)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Adapts the rates to the accuracies (`dynamic`)."""
        probe = self._probe(probe)  # whatever the strategy, so that one loop serves all three
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
        self._unimodal(output)  # refused in the first step rather than after the first epoch
        return super().loss(output, target)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        check_trains(optimizer, self.encoders, "MSLR")
        why = "has a step that needs a closure" if needs_closure(optimizer) else None
        if any(group.get("lr") is None for group in optimizer.param_groups):
            why = "sets its learning rate itself"
        if why:
            raise ValueError(
                "MSLR multiplies the learning rates of encoders, but this "
                f"{type(optimizer).__name__} {why}. Use another optimiser, such as "
                "torch.optim.AdamW."
            )

    def _parts(self, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
        return split(groups, self._owner, self.factor)

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


_OWN = ("params", "param_names", "lr")  # what a part of a group does not share with it
_LAST: WeakKeyDictionary[Optimizer, "ref[MSLR]"] = WeakKeyDictionary()
_SPLIT: WeakKeyDictionary[Optimizer, tuple[list[Group], list[tuple[Group, Group]]]] = (
    WeakKeyDictionary()
)


def _split(optimizer: Optimizer, *_: Any) -> None:
    """Before a step: has the optimiser see groups by modality, while the method lives."""
    _join(optimizer)  # a step that failed has left them so
    last = _LAST.get(optimizer)
    method = None if last is None else last()
    if method is not None:
        parts = method._parts(optimizer.param_groups)
        _SPLIT[optimizer] = optimizer.param_groups, parts
        optimizer.param_groups = [part for part, _ in parts]


def _join(optimizer: Optimizer, *_: Any) -> None:
    """After a step: gives the optimiser its groups back."""
    groups, parts = _SPLIT.pop(optimizer, (None, []))
    if groups is None:
        return
    for part, group in parts:  # some optimisers keep state in groups
        group |= {key: x for key, x in part.items() if key not in _OWN}
    optimizer.param_groups = groups
