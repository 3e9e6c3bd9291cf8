"""Optimisers as libraries wrap them: unwrapping, making a similar one, and whether sizes matter."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly.errors import UserError

_STEPS = 10  # to try: some optimisers behave differently in the first
_GROWTH = 10**0.5  # of a step, for a gradient ten times as large: halfway, in orders of magnitude
_NOTES = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}
"""What torch's schedules note in a group."""


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimiser inside wrappers that only pass calls on, such as accelerate's or Lightning's.

    One that builds on another, such as SAM or Lookahead, counts as an optimiser itself.

    Raises:
        TypeError: If it is not an optimiser.
    """
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise TypeError(
            f"'optimizer' is a torch.optim.Optimizer; found {type(optimizer).__name__}. Pass the "
            "one that trains the model."
        )
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and inner is not optimizer and inner.state is optimizer.state:
        return unwrapped(inner)
    return cast(Optimizer, optimizer)


def rebuilt(optimizer: Any, groups: Iterable[Mapping[str, Any]]) -> Optimizer:
    """A new optimiser of the same kind and settings, without state.

    Args:
        optimizer: The model for it, which stays unchanged.
        groups: Parameter groups like its own, with other parameters or settings.

    Raises:
        TypeError: If it is not an optimiser.
        ValueError: If no other of its kind can be made, or it cannot step without a closure.
    """
    real = unwrapped(optimizer)
    kind: Any = type(real)
    for inner in _held(real):
        raise UserError(
            f"cannot make a second {kind.__name__} like yours, as it works with another "
            f"optimiser, {type(inner).__name__}. Pass that, or one like it of the same parameters."
        )
    try:
        new = kind([_fresh(real, group) for group in groups], **_settings(real))
        if needs_closure(new):
            raise TypeError("its step needs one")
    except Exception as error:
        raise UserError(
            f"cannot make a second {kind.__name__} like yours that steps without a closure "
            f"({type(error).__name__}: {error}). Pass another optimiser of the same parameters, "
            "such as torch.optim.SGD."
        ) from error
    _set_mode(new, "train")
    return cast(Optimizer, new)


def rate_of(group: Mapping[str, Any]) -> Any:
    """A group's learning rate before a schedule changes it, as far as the group tells.

    `OneCycleLR` notes its highest rate in the group, most others the rate that they start from.
    `ReduceLROnPlateau`, or a loop that writes rates itself, notes nothing: that is the current one.
    """
    if "initial_lr" not in group:
        return group["lr"]
    # A warm-up may be near 0 now.
    return group["max_lr"] if "max_lr" in group else max(group["initial_lr"], group["lr"])


def unscheduled(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group at its learning rate before a schedule; see `rate_of`.

    At its highest rate, `OneCycleLR` has its lowest momentum.
    """
    found = {**group, "lr": rate_of(group)}
    if "max_lr" in group and "base_momentum" in group:
        momentum = group["base_momentum"]
        if "betas" in group:
            found["betas"] = (momentum, *group["betas"][1:])
        else:
            found["momentum"] = momentum
    return found


def lowered_from(optimizer: Optimizer) -> float | None:
    """The default learning rate of an optimiser, if all its groups train at one lower rate now.

    Then something may have lowered the rate without a note. None if the groups' rates differ, since
    they were then given group by group, and the default may be nobody's choice.
    """
    made, groups = optimizer.defaults.get("lr"), optimizer.param_groups
    if made is None or any("max_lr" in group for group in groups):
        return None
    first, *others = {float(rate_of(group)) for group in groups}
    return float(made) if not others and first < 0.999 * float(made) else None


def finish(optimizer: Optimizer) -> None:
    """Makes a schedule-free optimiser, which trains with other weights, write its result."""
    _set_mode(optimizer, "eval")


def all_of(optimizer: Any) -> list[Optimizer]:
    """The real optimiser, and those that it builds on."""
    real = unwrapped(optimizer)
    return [real, *_held(real)]


def forget(optimizer: Any, parameters: Iterable[Tensor]) -> None:
    """Clears what an optimiser, and any that it builds on, remembers about parameters."""
    parameters = list(parameters)
    for one in all_of(optimizer):
        for parameter in parameters:
            one.state.pop(parameter, None)


def check_trains(optimizer: Optimizer, encoders: Mapping[str, nn.Module], who: str) -> None:
    """Raises if an optimiser leaves out trainable parameters of an encoder.

    It then belongs to another model, or is one of several that train this one.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    for name, encoder in encoders.items():
        trainable = [p for p in encoder.parameters() if p.requires_grad]
        left_out = sum(p not in trained for p in trainable)
        if left_out:
            raise UserError(
                f"{who}: the optimiser leaves out {left_out} of the {len(trainable)} trainable "
                f"parameters of encoder '{name}'. Pass the one that trains the model, or one of "
                "all its parameters if several do; freeze what none trains "
                "(parameter.requires_grad_(False))."
            )


def divides_size(optimizer: Any) -> bool:
    """Whether the size of gradients does not affect the steps, as with Adam and its kin.

    This tries a new optimiser of the kind on small parameters, with a gradient and with ten times
    that gradient. If that is impossible, the answer is no.
    """
    real = unwrapped(optimizer)
    held = list(_held(real))
    if held:
        return any(divides_size(inner) for inner in held)
    devices = {p.device for group in real.param_groups for p in group["params"]}
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            once, tenfold = _steps(real, 1.0), _steps(real, 10.0)
    except Exception:  # whatever a third-party optimiser raises on unexpected parameters
        return False
    return any(a > 0 and b < _GROWTH * a for a, b in zip(once, tenfold, strict=True))


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether a step needs a function that recomputes the loss."""
    try:
        # The class's own, since schedulers replace that of an object.
        inspect.signature(type(optimizer).step).bind(optimizer)
    except TypeError:
        return True
    return False


def check_rebuilt(optimizer: Any) -> None:
    """Raises what `rebuilt` would, on small parameters, before work is wasted."""
    rebuilt(optimizer, _small(unwrapped(optimizer)))


def _steps(real: Optimizer, size: float) -> list[float]:
    """How far a step goes with a gradient of some size, for each group's settings."""
    groups = _small(real)
    toys = [group["params"][0] for group in groups]
    new = rebuilt(real, groups)
    for _ in range(_STEPS):
        before = [toy.detach().clone() for toy in toys]
        for toy in toys:
            toy.grad = size * toy.new_tensor([[0.3, -0.2], [0.1, 0.4]])
        new.step()
    return [float((toy.detach() - x).norm()) for toy, x in zip(toys, before, strict=True)]


def _small(real: Optimizer) -> list[dict[str, Any]]:
    """Groups like an optimiser's, with one small parameter each."""
    # A schedule may be at 0 now, and decay does not come from the gradient.
    plain = {"lr": 1.0, "weight_decay": 0.0}
    return [
        {name: x if x is None else plain.get(name, x) for name, x in group.items()}
        | {"params": [_toy(group["params"])]}
        for group in real.param_groups
    ]


def _toy(parameters: list[Tensor]) -> nn.Parameter:
    """Values other than 0, since some optimisers step in proportion to the weights."""
    device = parameters[0].device if parameters else None
    return nn.Parameter(torch.full((2, 2), 0.01, device=device))


def _settings(real: Optimizer) -> dict[str, Any]:
    """The constructor's arguments, besides the groups."""
    known = {name.removeprefix("_"): value for name, value in vars(real).items()}
    known |= vars(real) | real.defaults
    found = {name: known[name] for name in _arguments(real) if name in known}
    for name, value in found.items():
        if isinstance(value, nn.Module):
            raise ValueError(f"its '{name}' is a module, which must not have two")
    return {name: x if callable(x) else copy.deepcopy(x) for name, x in found.items()}


def _arguments(real: Optimizer) -> set[str]:
    """What its constructor accepts by name; a class with **settings passes them to its base's."""
    names: set[str] = set()
    for cls in type(real).__mro__:
        if cls is Optimizer:
            return names | set(real.defaults)
        if "__init__" in vars(cls):
            found, is_open = _of_constructor(cls)
            names |= found
            if not is_open:
                break
    return names


def _of_constructor(cls: type) -> tuple[set[str], bool]:
    """The names that a constructor accepts after the first, and whether it accepts others."""
    _, *taken = inspect.signature(cls).parameters.values()
    names = {p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind == p.VAR_KEYWORD for p in taken)


def _fresh(real: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """A group with its settings only.

    Some optimisers keep state in groups, too: whatever the constructor does not accept returns to
    its default.
    """
    settings = _arguments(real).union(
        *(_of_constructor(cls)[0] for cls in type(real).__mro__ if issubclass(cls, Optimizer))
    )
    state = {name: x for name, x in real.defaults.items() if name not in settings}
    copied = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in group.items()
        if name not in _NOTES - settings
    }
    return copied | copy.deepcopy(state) | {"params": list(group["params"])}


def _held(real: Optimizer) -> Iterator[Optimizer]:
    """Other optimisers that one builds on."""
    for value in vars(real).values():
        several = value.values() if isinstance(value, dict) else value
        for one in several if isinstance(value, dict | list | tuple) else [value]:
            if isinstance(one, Optimizer) and one is not real:
                yield one
                yield from _held(one)


def _set_mode(optimizer: Any, name: str) -> None:
    """Calls `train` or `eval` of an optimiser that has these, as schedule-free ones do."""
    mode = getattr(optimizer, name, None)
    if callable(mode):
        mode()
