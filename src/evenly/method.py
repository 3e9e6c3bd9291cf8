"""The protocol: four hooks that a training loop calls, and the facts that a method declares."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from evenly import distributed
from evenly.errors import UserError
from evenly.output import Output, lacking
from evenly.targets import ANY, Kind
from evenly.watch import watch, watched

if TYPE_CHECKING:
    from evenly.probe import Probe

Encoders = Mapping[str, nn.Module] | nn.ModuleDict
Criterion = Callable[[Tensor, Tensor], Tensor]

_PARTS = ("encoders", "criterion", "optimizer", "head", "sampler")
"""What a method takes from the training; the rest are settings."""
_PLAIN = (bool, int, float, str, tuple, list, type(None))
"""The types of settings that `repr` shows."""
_FUSED = ""  # a key beside the modalities': a ModuleDict allows no empty name


@dataclass(frozen=True)
class Info:
    """Facts about a method, for people and for the tests that every method must pass.

    Attributes:
        title: Its name in the paper.
        paper: Authors, title and place; empty for plain training.
        year: Year of publication.
        url: Address of the paper.
        category: What it works on: data, forward pass, objective or optimisation.
        writes: What it changes during training.
        pretrains: Whether it trains the encoders before the first epoch and keeps what they learn.
        modalities: How it extends beyond two modalities.
        neutral: Settings under which it equals plain joint training bit for bit; or, as text,
            why there are none.
        variants: Settings that make the methods of its paper; a comparison of all methods runs
            each.
        epochs: Length in epochs of the training that its schedule is made for: the paper's if
            known; 0 without a schedule.
        in_epochs: Settings counted in epochs. The lab scales their defaults with the length of
            training; the library never does.
        targets: Which targets it accepts; its first loss refuses all others.
        needs: Which optional parts of the `Output` it reads.
        unimodal: What it does with unimodal logits, if it needs them: "reads" them as training
            makes them; "trains" the layers behind them by its own loss; "leaves" these layers as
            they are; "detaches" them, so that they learn, but encoders learn nothing from them; or
            "tries" them, training encoders through them in a trial that is then undone.
        separate: Whether it changes single modalities' features, or trains encoders alone through
            the fusion, which it can do only if encoders do not see each other: no fusion such as
            'mbt' will do. A method with a head of its own need not say.
        sums: Whether it takes the prediction apart by modality, which it can do only if the fused
            logits are the sum of the unimodal ones.
        needs_probe: Whether its `before_epoch` passes over whole splits.
        head: The head it is made for, by its name in `evenly.nn.HEADS`: the lab builds its models
            with it. In your own model, any head will do that fills the `Output` in the same way.
        cost: In words, all that a training step costs beyond joint training's.
        budget: At most how many times as long a step takes as joint training's, for two modalities.
        keeps_loss: Whether its own `loss`, if any, equals joint training's and only observes the
            batch.
        multiplies: Whether it only multiplies an encoder's gradients by a number, so that another
            method may have written them.
        fused: Whether its loss reaches the fused logits; otherwise it trains no vector that a head
            fuses instead of missing features.
        scales_gradients: Whether it acts through the size of gradients, which Adam and its kin
            cancel.
        alone: Whether it trains only the modality named by its setting `modality`; the lab then
            builds a model of that modality alone.
        partial: Whether a step leaves some parameters without a gradient, for which
            DistributedDataParallel must be told find_unused_parameters=True.
        within_batch: Whether its loss compares samples within a batch; on several ranks, within
            each rank's share.
        by_pass: Whether it decides for each backward pass from that pass's samples, over all ranks.
            With gradient accumulation, each pass is then a batch of its own.
        missing: Whether a batch may lack a modality, or samples of it.
        sharded: Whether it works on parameters sharded by FSDP2.
        doubts: What could not be verified, or where it differs from the released code.
    """

    title: str
    paper: str = ""
    year: int = 0
    url: str = ""
    category: Literal["data", "forward", "objective", "optimisation"] = "objective"
    writes: Literal["nothing", "weights", "gradients", "learning rates", "loss"] = "nothing"
    pretrains: bool = False
    modalities: str = "any number"
    neutral: Mapping[str, Any] | str = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ({},)
    epochs: int = 0
    in_epochs: tuple[str, ...] = ()
    targets: tuple[Kind, ...] = ("classes",)
    needs: tuple[Literal["unimodal", "index", "fuse", "ablate"], ...] = ()
    unimodal: Literal["reads", "trains", "leaves", "detaches", "tries"] = "reads"
    separate: bool = False
    sums: bool = False
    needs_probe: bool = False
    head: str = "concat"
    cost: str = "none"
    budget: float = 1.0
    keeps_loss: bool = False
    multiplies: bool = False
    fused: bool = True
    scales_gradients: bool = False
    alone: bool = False
    partial: bool = False
    within_batch: bool = False
    by_pass: bool = False
    missing: bool = False
    sharded: bool = True
    doubts: str = ""


class Method:
    """Plain joint training, and the base of every method.

    A training loop calls the method; the method never owns a loop:

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
    a scalar; `backward` and `before_step` the gradients. `state` names what a method remembers and
    `state_dict` saves it, so that a resumed run equals the uninterrupted one.

    A loop that leaves out a hook, or a target that the method does not accept, raises an error in
    the first steps; see `evenly.watch`.

    Attributes:
        info: The facts that the method declares; an object's may depend on its settings.
        state: Names of the attributes that `state_dict` saves, beside the metrics.
        metrics: What the method did last, for a logger; tensors stay on their device.
        repeats: How often the loop runs each batch, with an optimiser step each time; see
            `Repeated`.
        turn: The one modality that the next pass trains; the forward pass may leave out the others.
            None if it takes all of them.
    """

    info: Info = Info(title="Joint training", targets=ANY, missing=True)
    state: ClassVar[tuple[str, ...]] = ()
    repeats: int = 1
    turn: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Puts a watch on the hooks of each method."""
        super().__init_subclass__(**kwargs)
        watched(cls)

    def __init__(
        self, encoders: Encoders | None = None, *, criterion: Criterion | None = None
    ) -> None:
        """Prepares the method.

        Args:
            encoders: The modules whose weights or gradients the method changes, by modality; it
                finds them by identity. Plain joint training needs none.
            criterion: `criterion(logits, target)` returns the loss; cross-entropy by default.

        Raises:
            TypeError: If the encoders are not given by modality.
            ValueError: If two encoders share parameters, or an encoder that the method should
                change has no trainable ones.
        """
        if not isinstance(encoders, Mapping | nn.ModuleDict | None):
            raise TypeError(
                f"encoders are given by modality, as a mapping or a ModuleDict; found "
                f"{type(encoders).__name__}. Pass for example {{'audio': model.audio}}."
            )
        self.encoders: dict[str, nn.Module] = dict(encoders.items()) if encoders else {}
        self.criterion: Criterion = criterion or nn.functional.cross_entropy
        self.metrics: dict[str, Tensor] = {}
        self.watch = watch(
            self, begins=overrides(self, "before_epoch"), steps=overrides(self, "before_step")
        )
        self._check_encoders()

    def __repr__(self) -> str:
        """The class with its encoders and settings."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in _PARTS]
        known = {name: getattr(self, name) for name in names if hasattr(self, name)}
        plain = {name: value for name, value in known.items() if _is_plain(value)}
        settings = [f"{name}={value!r}" for name, value in plain.items()]
        return f"{type(self).__name__}({', '.join([f'encoders={[*self.encoders]}', *settings])})"

    @classmethod
    def accepts(cls, **settings: Any) -> tuple[Kind, ...]:
        """The targets that the method accepts with these settings; by default `info.targets`."""
        return cls.info.targets

    def is_due(self, epoch: int) -> bool:
        """Whether the method's schedule has it do anything before or in this epoch (from 0).

        A loss that is the same in every epoch does not count.
        """
        return True

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
        """What the method remembers: tensors and plain values, for `torch.save`.

        It gathers copies of sharded parameters, so that one rank can save it and any number can
        load it. Under FSDP2 every rank must call it, as with the model's state.
        """
        return {name: _pack(getattr(self, name)) for name in ("metrics", *self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: If the state belongs to another method.
        """
        known = {"metrics", *self.state}
        if set(state) != known:
            raise UserError(
                f"{type(self).__name__} remembers {sorted(known)}, but the state to load "
                f"holds {sorted(state)}. It was saved by another method or version."
            )
        for name, value in state.items():
            current = getattr(self, name)
            if isinstance(current, torch.Generator):
                current.set_state(value.cpu())
            else:
                setattr(self, name, _copied(value))

    def _need(self, output: Output, part: str) -> Any:
        """A part of the output that a model need not fill, but this method reads."""
        value = getattr(output, part)
        if value is None:
            raise lacking(part, type(self).__name__)
        return value

    def _probe(self, probe: "Probe | None") -> "Probe":
        """The probe, which a loop need not pass, but this method needs."""
        if probe is None:
            raise UserError(
                f"{type(self).__name__} looks at the training and validation split between "
                "epochs; found no probe. Pass before_epoch(epoch, evenly.Probe(model, forward, "
                "train_loader, val_loader))."
            )
        distributed.reshard(probe.model)  # FSDP2's root is whole after the loop's own validation
        return probe

    def _check_sampler(self, probe: "Probe", sampler: Any) -> None:
        """Raises if the training loader does not draw from the sampler that the method writes."""
        loader = probe.loaders["train"]
        if not isinstance(loader, DataLoader):  # its order is the user's business
            return
        batches = loader.batch_sampler
        if sampler not in (loader.sampler, getattr(batches, "sampler", None)):
            raise UserError(
                f"{type(self).__name__} writes the order of the samples, but the training loader "
                "does not draw from its sampler. Build the loader with DataLoader(dataset, "
                "batch_size, sampler=sampler) and the method with the same sampler."
            )

    def _unimodal(self, output: Output) -> dict[str, Tensor]:
        """Logits of each modality in the batch that has an encoder, in the encoders' order."""
        unimodal = self._need(output, "unimodal")
        return self._mine(unimodal, "Output.unimodal", present=output.features)

    def _unimodal_loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m) over the modalities in the batch."""
        self.watch.check_target(self, output, target)
        unimodal = self._unimodal(output)
        return torch.stack([self.criterion(z, target) for z in unimodal.values()]).sum()

    def _right(self, probe: "Probe") -> tuple[float, dict[str, float], int]:
        """How many validation samples the prediction and each modality alone get right.

        Returns:
            The count of the prediction, that of each encoder's modality by its own logits (wrong if
            the modality is missing), and the number of samples, over all ranks.
        """

        def of(output: Output, target: Tensor) -> dict[str, Tensor]:
            self.watch.check_target(self, output, target)
            unimodal, present = self._unimodal(output), output.present or {}
            right = {_FUSED: output.logits.argmax(1) == target}
            for name in self.encoders:
                right[name] = torch.zeros_like(right[_FUSED])
                if name in unimodal:
                    right[name] = unimodal[name].argmax(1) == target
                if name in present:
                    right[name] = right[name] & present[name]
            return {name: x.unsqueeze(1) for name, x in right.items()}

        found = probe.features("val", of)
        counts = [x.sum().double() for x in found.features.values()]
        total = torch.stack([*counts, torch.tensor(float(len(found.target))).to(counts[0])])
        *right, rows = distributed.sum_(total, sharded=found.sharded).tolist()
        by_name = dict(zip(found.features, right, strict=True))
        return by_name.pop(_FUSED), by_name, int(rows)

    def _features(self, output: Output) -> dict[str, Tensor]:
        """Features of each modality in the batch that has an encoder, in the encoders' order."""
        return self._mine(output.features, "Output.features", present=output.features)

    def _mine(
        self, found: Mapping[str, Tensor], where: str, present: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The entries of this method's encoders, and no others."""
        lacking = set(self.encoders) - set(found)
        if self.info.missing and set(self.encoders) & set(present):
            lacking &= set(present)
        if lacking:
            raise UserError(
                f"{type(self).__name__} has encoders {sorted(self.encoders)}, but `{where}` lacks "
                f"{sorted(lacking)}. Use the same names in both, and pass every modality."
            )
        return {name: found[name] for name in self.encoders if name in found}

    def _per_modality(self, **found: Iterable[Tensor]) -> dict[str, Tensor]:
        """Metrics named 'what/modality', from a number for each encoder."""
        return {
            f"{what}/{name}": value
            for what, values in found.items()
            for name, value in zip(self.encoders, values, strict=True)
        }

    def _check_encoders(self) -> None:
        owner: dict[nn.Parameter, str] = {}
        for name, encoder in self.encoders.items():
            parameters = list(encoder.parameters())
            if self.info.writes != "nothing" and not any(p.requires_grad for p in parameters):
                raise UserError(
                    f"encoder '{name}' has no trainable parameters, so {type(self).__name__} "
                    "can do nothing to it. Leave it out of `encoders`, or unfreeze it."
                )
            for parameter in parameters:
                other = owner.setdefault(parameter, name)
                if other != name:
                    raise UserError(
                        f"encoders '{other}' and '{name}' share parameters, so what is done to "
                        "one is done to the other. Pass encoders that share none."
                    )
        if self.info.writes in ("weights", "gradients") and not self.encoders:
            raise UserError(
                f"{type(self).__name__} needs the encoders by modality; found none. Pass for "
                'example {"audio": model.audio, "visual": model.visual}.'
            )


watched(Method)


def overrides(method: Method, hook: str) -> bool:
    """Whether a method overrides a hook of joint training."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def _is_plain(value: Any) -> bool:
    """Whether a setting is short enough to show."""
    if isinstance(value, dict):
        return all(isinstance(entry, _PLAIN) for entry in value.values())
    return isinstance(value, _PLAIN)


def _copied(value: Any) -> Any:
    """The same in containers of its own, so that what a method adds is not in the state."""
    if isinstance(value, Mapping):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _pack(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, dict):  # a snapshot: later additions to the table are not in it
        return {key: _pack(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_pack(entry) for entry in value]
    if isinstance(value, Tensor) and distributed.is_sharded(value):
        return distributed.whole(value).cpu()  # one by one: a device may lack the room for all
    return value
