"""Watches the hooks of a method, so that a loop that forgets one fails instead of training wrongly.

The hooks of every `Method` are wrapped when its class is created. The wrappers record which hooks a
loop has called, and one hook on all of torch's optimisers detects steps. Each step costs a few
attribute look-ups, and one for each parameter of the encoders if the method has a `before_step`. It
waits for a device only once, for the first targets of each form.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from evenly import distributed, targets
from evenly.errors import UserError, UserRuntimeError
from evenly.modulation import nodes
from evenly.optimizers import divides_size
from evenly.output import Output

if TYPE_CHECKING:
    from evenly.method import Info, Method
    from evenly.probe import Probe

_ALIVE: "WeakSet[Method]" = WeakSet()


class Watch:
    """What one method's loop has done so far.

    Attributes:
        inside: Whether a hook is running, which may call another (a base's, by `super()`).
    """

    def __init__(self, info: "Info", *, begins: bool, steps: bool) -> None:
        self.inside = False
        self._begins, self._steps = begins, steps  # hooks that a loop must not forget
        # If a method writes neither weights nor gradients, encoders are only names.
        self._places = info.writes in ("weights", "gradients")
        self._begun = False  # before_epoch was called, or a state was loaded
        self._losses = 0  # computed with gradients, before that
        self._pending = False  # a backward pass, without before_step since
        # The encoders' parameters, by their places, whose gradients before_step left to a step that
        # has not come; None if it was not called, or the step came.
        self._left: list[int] | None = None
        self._reached: int | None = None  # the last epoch that began
        self._told: set[str] = set()  # modalities whose features do come from the encoder
        self._model: frozenset[int] | None = None  # ids of the parameters of the probe's model
        self._optimizer_seen = not info.scales_gradients  # else there is nothing to report
        self._forms: set[tuple[Any, ...]] = set()  # of targets that the method accepts

    def before_epoch(self, method: "Method", epoch: int, probe: "Probe | None" = None) -> None:
        """An epoch begins."""
        if self._reached is not None and epoch < self._reached and method.state:
            raise UserRuntimeError(
                f"this {_name(method)} remembers {' and '.join(method.state)} of a training that "
                f"has reached epoch {self._reached}. Make a new one for a new training, or go back "
                "with method.load_state_dict."
            )
        self._reached = epoch
        self._begun = True
        self._pending, self._left = False, None
        if probe is not None and self._model is None:
            _check_model(method, probe.model)
            self._model = frozenset(map(id, probe.model.parameters()))

    def loss(self, method: "Method", output: Output, target: Tensor) -> None:
        """The loss of a batch is computed."""
        self.check_target(method, output, target)
        if not torch.is_grad_enabled():
            return
        if self._places and len(self._told) < len(method.encoders):
            for name in [name for name in method.encoders if name not in self._told]:
                if _comes_from(method, name, output.features, self._model or frozenset()):
                    self._told.add(name)
        self._losses += not self._begun
        if self._begins and self._losses > 1:
            raise UserRuntimeError(
                f"{_name(method)}.loss was called for a second batch, but before_epoch never was. "
                "Call method.before_epoch(epoch, probe) before the first batch of each epoch."
            )

    def backward(self, method: "Method", loss: Tensor) -> None:
        """Gradients are computed; without this, a loss was only looked at."""
        left, self._left = self._left, None
        if left and not _is_any_dropped(method, left):
            raise UserRuntimeError(
                f"a backward pass came after {_name(method)}.before_step without a step between, "
                "so the method would change the same gradients again. Call method.before_step() "
                "once for each step: with accumulated gradients after the last pass alone (if "
                "accelerator.sync_gradients, with Accelerate); or drop the gradients by "
                "optimizer.zero_grad()."
            )
        self._pending = True
        _ALIVE.add(method)  # it may be a copy
        for other in _ALIVE:  # one whose training broke off must not see the steps that follow
            if other is not method and other.watch._pending and _share(other, method):
                other.watch._pending = False

    def lost(self, method: "Method", loss: Tensor) -> None:
        """A loss is returned; the loop may call its backward pass itself."""
        if loss.requires_grad:
            loss.register_hook(lambda _: self.backward(method, loss=_))

    def before_step(self, method: "Method") -> None:
        """Gradients are complete."""
        self._pending = False

    def left(self, method: "Method") -> None:
        """Gradients are as the method left them, for the step that follows."""
        if self._steps:
            self._left = [n for n, p in enumerate(_parameters(method)) if p.grad is not None]

    def load_state_dict(self, method: "Method", state: Mapping[str, Any]) -> None:
        """A state is loaded, from a run that may be mid-epoch."""
        self._begun = True
        self._pending, self._left = False, None
        self._reached = None

    def stepped(self, method: "Method", optimizer: Optimizer) -> None:
        """An optimiser has taken a step."""
        self._left = None  # whatever it holds: to look would cost time in each step
        if self._pending and self._steps and _holds(optimizer, method):
            self._pending = False
            raise UserRuntimeError(
                f"{type(optimizer).__name__}.step came without {_name(method)}.before_step, so "
                "the method did nothing to the gradients. Call method.before_step() once "
                "before each step, after the backward passes (and after scaler.unscale_); delete a "
                "method that is no longer used (del method)."
            )
        in_use = self._begun or self._losses
        if not self._optimizer_seen and in_use and _holds(optimizer, method):
            self._optimizer_seen = True
            if divides_size(optimizer):
                warnings.warn(
                    f"{_name(method)} acts by the size of gradients, which "
                    f"{type(optimizer).__name__} divides out again, so little of it is left. Use "
                    "SGD to train as its paper does.",
                    stacklevel=2,
                )

    def check_target(self, method: "Method", output: Output, target: Tensor) -> None:
        """Raises a ValueError if the method does not accept such a target."""
        takes = method.info.targets
        if takes == targets.ANY:
            return
        form = (target.dtype, target.shape[1:], output.logits.shape[1:])
        # On a CPU, checking values waits for nothing, so every row is checked.
        if form in self._forms and target.device.type != "cpu":
            return
        found = targets.kinds(output.logits, target, method.criterion)
        if not set(found) & set(takes):
            raise UserError(targets.refusal(_name(method), takes, found, output.logits, target))
        self._forms.add(form)


def watched(kind: type["Method"]) -> None:
    """Wraps the hooks that a class of methods defines."""
    for name in ("before_epoch", "loss", "backward", "before_step", "load_state_dict"):
        if name in vars(kind):
            hook = vars(kind)[name]
            setattr(kind, name, _noted(name, _of_plain(hook) if name == "loss" else hook))


def watch(method: "Method", *, begins: bool, steps: bool) -> Watch:
    """A watch for a new method, which may have its own `before_epoch` and `before_step`."""
    _ALIVE.add(method)
    return Watch(method.info, begins=begins, steps=steps)


def _of_plain(hook: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(hook)
    def loss(self: "Method", output: Output, target: Tensor) -> Tensor:
        return hook(self, output, targets.plain(target))

    return loss


def _noted(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(hook)
    def noted(self: "Method", *args: Any, **kwargs: Any) -> Any:
        seen = self.watch
        if seen.inside:
            return hook(self, *args, **kwargs)
        getattr(seen, name)(self, *args, **kwargs)
        seen.inside = True
        try:
            found = hook(self, *args, **kwargs)
        finally:
            seen.inside = False
        if name == "loss":
            seen.lost(self, found)
        if name == "before_step":
            seen.left(self)
        return found

    return noted


def _check_model(method: "Method", model: nn.Module) -> None:
    known = set(model.parameters())
    for name, encoder in method.encoders.items():
        mine = set(encoder.parameters())
        if mine and not mine & known:
            raise UserError(
                f"the encoder '{name}' of {_name(method)} is no part of the probe's model: none "
                "of its parameters is among the model's. Make the method of the encoders of the "
                "model that is trained, not of a copy of them; if they are modules of their own, "
                "give the probe one module that holds them all, such as an nn.ModuleDict."
            )


def _comes_from(
    method: "Method", name: str, features: Mapping[str, Tensor], model: frozenset[int]
) -> bool:
    """Raises if the features come from another encoder; returns whether one could tell.

    Args:
        method: The method whose encoder they should come from.
        name: The modality.
        features: Features of a batch.
        model: Ids of the parameters of the encoders' model, if known.
    """
    mine = set(method.encoders[name].parameters())
    if not any(p.requires_grad for p in mine):  # frozen for the first epochs
        return False
    # The graph of a sharded encoder ends at the parameters that FSDP gathers for it.
    if name not in features or any(distributed.is_sharded(p) for p in mine):
        return True
    leaves = _leaves(features[name])
    if not leaves or leaves & mine:
        return True
    if not leaves & set(_parameters(method)) and all(id(leaf) in model for leaf in leaves):
        return False  # later layers have a graph, but the encoder itself ran under no_grad
    raise UserError(
        f"the features of '{name}' do not come from the encoder '{name}' of {_name(method)}: none "
        "of its parameters has a part in them. Make the method of the encoders of the model that "
        "is trained, not of a copy of them, under the names of their modalities. An encoder that "
        "runs under torch.no_grad at first is recognised where before_epoch is given the probe."
    )


def _leaves(x: Tensor) -> set[nn.Parameter]:
    """The parameters that a value was computed from; none if its graph hides some of them."""
    found: set[nn.Parameter] = set()
    for node in nodes([x]):
        if node.name() == "CheckpointFunctionBackward":  # reentrant: runs the encoder later
            return set()
        if isinstance(leaf := getattr(node, "variable", None), nn.Parameter):
            found.add(leaf)
    return found


def _share(one: "Method", other: "Method") -> bool:
    mine = set(_parameters(one))
    return any(p in mine for p in _parameters(other))


def _holds(optimizer: Optimizer, method: "Method") -> bool:
    mine = set(_parameters(method))
    return any(p in mine for group in optimizer.param_groups for p in group["params"])


def _parameters(method: "Method") -> Iterator[nn.Parameter]:
    for encoder in method.encoders.values():
        yield from encoder.parameters()


def _is_any_dropped(method: "Method", places: Collection[int]) -> bool:
    """Whether any of the gradients was dropped, as `zero_grad` drops those of its optimiser.

    An optimiser may hold only some of the parameters, so the others keep theirs.
    """
    grads = [p.grad for p in _parameters(method)]
    return any(_is_dropped(grads[n]) for n in places)


def _is_dropped(grad: Tensor | None) -> bool:
    if grad is None:
        return True
    if grad.is_sparse:
        return not bool(grad._values().any())
    values = distributed.local(grad)
    return bool(values.numel()) and not bool(values.any())  # of some, a rank holds nothing


def _name(method: "Method") -> str:
    return type(method).__name__


def _on_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for method in tuple(_ALIVE):
        method.watch.stepped(method, optimizer)


register_optimizer_step_post_hook(_on_step)
