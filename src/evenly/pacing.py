"""What methods that set learning rates share: rates by encoder, only within each step."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

from torch import Tensor
from torch.optim import Optimizer

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Method
from evenly.optimizers import all_of, check_trains, needs_closure, unwrapped

Group = dict[str, Any]


def split(
    groups: Sequence[Group], owner: Mapping[Tensor, str], factor: Mapping[str, float]
) -> list[tuple[Group, Group]]:
    """Each group in parts: what belongs to no modality, then each modality at its own rate.

    Args:
        groups: An optimiser's parameter groups, which stay unchanged.
        owner: The modality of each parameter that belongs to one.
        factor: By modality, its rate over the group's.

    Returns:
        Each part with its group.
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


class Paced(Method):
    """A method that trains each encoder at r_m times the learning rate of the optimiser.

    In each optimiser step, an encoder's parameters get r_m times the rate of their group, with all
    its other options. Within the step they form their own groups; afterwards the groups are
    restored. So any scheduler, created before or after the method, moves the common rate, and the
    encoders' rates follow; the optimiser's state is the same as without the method. If an optimiser
    has several such methods, the latest acts. The optimiser must train parameters of every encoder,
    with rates given by its groups.

    Attributes:
        factor: The current r_m, by modality.
    """

    state: ClassVar[tuple[str, ...]] = ("factor",)

    def __init__(self, encoders: Encoders, *, criterion: Criterion | None) -> None:
        """Begins with the common rate for all; call `_pace` next."""
        super().__init__(encoders, criterion=criterion)
        self.factor = dict.fromkeys(self.encoders, 1.0)
        self._owner: dict[Tensor, str] = {
            p: name for name, encoder in self.encoders.items() for p in encoder.parameters()
        }

    def _pace(self, optimizer: Optimizer) -> None:
        """Makes the optimiser's steps use rates by modality, once the method's settings are known.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If it leaves out trainable parameters of an encoder, or sets its rates
                itself.
        """
        self._check_optimizer(unwrapped(optimizer))
        for one in all_of(optimizer):
            if one not in _LAST:
                one.register_step_pre_hook(_split)
                one.register_step_post_hook(_join)
                one.register_state_dict_pre_hook(_join)  # after a step that broke off
                one.register_load_state_dict_pre_hook(_join)
            _LAST[one] = ref(self)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        name = type(self).__name__
        check_trains(optimizer, self.encoders, name)
        why = "has a step that needs a closure" if needs_closure(optimizer) else None
        if any(group.get("lr") is None for group in optimizer.param_groups):
            why = "sets its learning rate itself"
        if why:
            raise UserError(
                f"{name} multiplies the learning rates of encoders, but this "
                f"{type(optimizer).__name__} {why}. Use another optimiser, such as "
                "torch.optim.AdamW."
            )

    def _parts(self, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
        return split(groups, self._owner, self.factor)


_OWN = ("params", "param_names", "lr")  # what part of a group does not share with the group
_LAST: WeakKeyDictionary[Optimizer, "ref[Paced]"] = WeakKeyDictionary()
_SPLIT: WeakKeyDictionary[Optimizer, tuple[list[Group], list[tuple[Group, Group]]]] = (
    WeakKeyDictionary()
)


def _split(optimizer: Optimizer, *_: Any) -> None:
    """Before a step: splits the optimiser's groups by modality, while the method exists."""
    _join(optimizer)  # a failed step may have left them split
    last = _LAST.get(optimizer)
    method = None if last is None else last()
    if method is not None:
        parts = method._parts(optimizer.param_groups)
        _SPLIT[optimizer] = optimizer.param_groups, parts
        optimizer.param_groups = [part for part, _ in parts]


def _join(optimizer: Optimizer, *_: Any) -> None:
    """After a step: restores the optimiser's groups."""
    groups, parts = _SPLIT.pop(optimizer, (None, []))
    if groups is None:
        return
    for part, group in parts:  # some optimisers keep state in groups
        group |= {key: x for key, x in part.items() if key not in _OWN}
    optimizer.param_groups = groups
