"""The protocol: four hooks that a training loop calls, and the facts that a method declares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from evenly.output import Output

if TYPE_CHECKING:
    from evenly.probe import Probe

Encoders = Mapping[str, nn.Module] | nn.ModuleDict
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Info:
    """What is known of a method, for people and for the tests that every method goes through.

    Attributes:
        title: What it is called in its paper.
        paper: Authors, title and place; empty for plain training.
        year: Of publication.
        url: Where the paper is.
        category: What it works on: data, forward pass, objective or optimisation.
        writes: What it changes during training.
        modalities: How it extends beyond two modalities.
        neutral: Settings under which it equals plain joint training bit for bit.
        epochs: Length of training in the paper, in epochs; 0 where it has no schedule.
        in_epochs: Settings counted in epochs; the lab scales their defaults with the length
            of training, the library never does.
        needs_unimodal: Whether it reads `Output.unimodal`.
        needs_probe: Whether its `before_epoch` looks at whole splits.
        scales_gradients: Whether it acts by the size of gradients, which Adam and its kin divide
            out again.
        sharded: Whether it works on parameters sharded by FSDP2.
        doubts: What could not be verified, or where it departs from the released code.
    """

    title: str
    paper: str = ""
    year: int = 0
    url: str = ""
    category: Literal["data", "forward", "objective", "optimisation"] = "objective"
    writes: Literal["nothing", "weights", "gradients", "loss"] = "nothing"
    modalities: str = "any number"
    neutral: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    in_epochs: tuple[str, ...] = ()
    needs_unimodal: bool = False
    needs_probe: bool = False
    scales_gradients: bool = False
    sharded: bool = True
    doubts: str = ""


class Method:
    """Plain joint training, and the base of every method.

    A method is called from a training loop; it never owns one:

    ```python
    for epoch in range(epochs):
        method.before_epoch(epoch, probe)
        for batch in train_loader:
            output, target = forward(model, batch)
            method.backward(method.loss(output, target))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
    ```

    Each hook writes one kind of thing: `before_epoch` weights, data order and own state; `loss`
    a scalar; `backward` and `before_step` the gradients. What a method remembers is named in
    `state` and goes through `state_dict`, so that a resumed run equals the uninterrupted one.

    Attributes:
        info: The facts that the method declares.
        state: Names of the attributes that `state_dict` saves.
        metrics: What the method did last, for a logger; tensors stay on their device.
    """

    info: ClassVar[Info] = Info(title="Joint training")
    state: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, encoders: Encoders | None = None, *, criterion: Criterion | None = None
    ) -> None:
        """Prepares the method.

        Args:
            encoders: By modality, the modules whose weights or gradients the method changes,
                found by identity. Plain joint training needs none.
            criterion: `criterion(logits, target)` gives the loss; cross-entropy by default.

        Raises:
            TypeError: If the encoders are not given by modality.
            ValueError: If two encoders share parameters, or one that the method should write
                to has none that are trained.
        """
        if not isinstance(encoders, Mapping | nn.ModuleDict | None):
            raise TypeError(
                f"encoders are given by modality, as a mapping or a ModuleDict; found "
                f"{type(encoders).__name__}. Pass for example {{'audio': model.audio}}."
            )
        self.encoders: dict[str, nn.Module] = dict(encoders.items()) if encoders else {}
        self.criterion: Criterion = criterion or nn.functional.cross_entropy
        self.metrics: dict[str, Tensor] = {}
        self._check_encoders()

    def before_epoch(self, epoch: int, probe: "Probe | None" = None) -> None:
        """Called before each epoch; may change weights, data order and own state.

        Args:
            epoch: The epoch that begins, from 0.
            probe: A look at the model on whole splits.
        """

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The scalar to minimise for one batch."""
        return self.criterion(output.logits, target)

    def backward(self, loss: Tensor) -> None:
        """Fills the gradients from what `loss` returned (scaled by the loop under AMP)."""
        loss.backward()

    def before_step(self) -> None:
        """Called when gradients are complete, averaged over ranks, unscaled and unclipped."""

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers: tensors and plain values, for `torch.save`."""
        return {name: _pack(getattr(self, name)) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            ValueError: If the state belongs to another method.
        """
        if set(state) != set(self.state):
            raise ValueError(
                f"{type(self).__name__} remembers {sorted(self.state)}, but the state to load "
                f"holds {sorted(state)}. It was saved by another method or version."
            )
        for name, value in state.items():
            current = getattr(self, name)
            if isinstance(current, torch.Generator):
                current.set_state(value.cpu())
            else:
                setattr(self, name, value)

    def _check_encoders(self) -> None:
        owner: dict[nn.Parameter, str] = {}
        for name, encoder in self.encoders.items():
            parameters = list(encoder.parameters())
            if self.info.writes != "nothing" and not any(p.requires_grad for p in parameters):
                raise ValueError(
                    f"encoder '{name}' has no trainable parameters, so {type(self).__name__} "
                    "can do nothing to it. Leave it out of `encoders`, or unfreeze it."
                )
            for parameter in parameters:
                other = owner.setdefault(parameter, name)
                if other != name:
                    raise ValueError(
                        f"encoders '{other}' and '{name}' share parameters, so what is done to "
                        "one is done to the other. Pass encoders that share none."
                    )
        if self.info.writes in ("weights", "gradients") and not self.encoders:
            raise ValueError(
                f"{type(self).__name__} needs the encoders by modality; found none. Pass for "
                'example {"audio": model.audio, "visual": model.visual}.'
            )


def overrides(method: Method, hook: str) -> bool:
    """Whether a method has a hook of its own in place of joint training's."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def _pack(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    # A snapshot: what the method adds to a table later is not in it.
    return dict(value) if isinstance(value, dict) else value
