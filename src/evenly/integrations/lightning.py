"""A method in a Lightning `Trainer`: one callback, and a `training_step` that asks for the loss."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from evenly.method import Method, overrides
from evenly.output import Output
from evenly.probe import Forward, Probe


class Balance(Callback):
    """Calls a method's hooks at the right moments of Lightning's loop.

    ```python
    method = evenly.Relearn({"audio": module.audio, "visual": module.visual})
    trainer = lightning.Trainer(callbacks=[evenly.Balance(method, forward)])
    ```

    and in the module, whose optimisation must be automatic (Lightning's default):

    ```python
    def training_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        return method.loss(output, target)
    ```

    `before_epoch` runs once for every epoch, before its first batch and so before the weights
    that a `ModelCheckpoint(monitor=...)` judges; it looks at the training loader and at the
    first validation loader, under the Trainer's precision and on its device. `before_step` sees
    gradients that are accumulated, averaged over ranks, unscaled and not yet clipped. What the
    method remembers is saved in the checkpoint and comes back with `fit(..., ckpt_path=...)`.
    A run resumed in the middle of an epoch goes on as Lightning lets it: batches that a loader
    shuffles by the global random stream come in another order than they would have.
    The method's metrics are logged as `method/NAME`, averaged over the epoch's batches.

    On several ranks every rank saves and loads, as the state of sharded encoders (FSDP2) is
    brought together and cut again.

    Raises (before the first optimiser step):
        ValueError: If the method cannot work with this Trainer or module; the text says why.
    """

    def __init__(self, method: Method, forward: Forward, *, memory: int | None = None) -> None:
        """Keeps the method; nothing runs yet.

        Args:
            method: The method, made with the encoders of the module that is trained.
            forward: `forward(module, batch)` gives an `Output` and the target. The batch is on
                the module's device already.
            memory: Bytes of features in memory, see `Probe`.
        """
        self.method = method
        self.forward = forward
        self.memory = memory
        self._epoch = -1  # the last epoch that before_epoch has seen
        self._loss_asked = False
        self._sums: dict[str, tuple[Tensor | float, Tensor | int]] = {}  # by metric, with batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot work, and takes over the backward pass where the method has one."""
        if stage != "fit":
            return
        self._epoch = -1
        self._loss_asked = False
        self._sums = {}
        self._check_module(pl_module)
        self._check_strategy(trainer)
        self._check_sampler(trainer)
        if overrides(self.method, "backward"):
            pl_module.backward = self.method.backward  # type: ignore[method-assign]
        if overrides(self.method, "loss"):
            self._watch_loss()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what is only known once optimisers and loaders are there."""
        self._check_scaling(trainer)
        self._check_repeats(trainer)
        self._check_shares(trainer)
        if self.method.info.needs_probe and _val_loader(trainer) is None:
            raise ValueError(
                f"{self._name} looks at the validation split, but the Trainer has no validation "
                "loader. Pass `val_dataloaders` to `fit` and define `validation_step`."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs `before_epoch`."""
        self._begin_epoch(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Runs `before_epoch` where Lightning left the start of the epoch out.

        It does so on resuming from a checkpoint that was written after the last batch of an
        epoch and before the epoch's end, as by a `ModelCheckpoint` with a monitor.
        """
        self._begin_epoch(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Runs `before_step`."""
        if overrides(self.method, "loss") and not self._loss_asked:
            raise ValueError(
                f"{self._name} never saw a batch, because `training_step` of "
                f"{type(pl_module).__name__} did not call its `loss`. Return "
                "`method.loss(output, target)` from it."
            )
        self.method.before_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up what the method did; to log it here would cost as much as a small step."""
        for name, value in self.method.metrics.items():
            total, batches = self._sums.get(name, (0.0, 0))
            is_finite = value.isfinite()  # not of a step that overflowed (AMP)
            self._sums[name] = total + value.detach().where(is_finite, 0), batches + is_finite

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what the method did, on average."""
        for name, (total, batches) in self._sums.items():
            pl_module.log(f"method/{name}", total / batches)
        self._sums = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the module its own backward pass back."""
        if stage == "fit":
            vars(pl_module).pop("backward", None)
            vars(self.method).pop("loss", None)

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, and how far it got."""
        return {"epoch": self._epoch, "method": self.method.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._epoch = state_dict["epoch"]
        self.method.load_state_dict(state_dict["method"])

    @property
    def _name(self) -> str:
        return type(self.method).__name__

    def _begin_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run resumed in the middle of an epoch holds the weights that before_epoch left.
        if trainer.current_epoch != self._epoch:
            self._epoch = trainer.current_epoch
            self.method.before_epoch(self._epoch, self._probe(trainer, pl_module))

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> Probe | None:
        """A probe on the loaders as they are in this epoch, as the Trainer may reload them."""
        val = _val_loader(trainer)
        if val is None:
            return None

        def forward(model: nn.Module, batch: Any) -> tuple[Output, Tensor]:
            # Validating, so that augmentation which a module applies in training only is off;
            # a teacher is trained as the model is.
            trainer.validating = not model.training
            try:
                batch = _to_device(trainer, batch)
                with trainer.precision_plugin.val_step_context():
                    return self.forward(model, batch)
            finally:
                trainer.training = True

        return Probe(pl_module, forward, _train_loader(trainer), val, memory=self.memory)

    def _watch_loss(self) -> None:
        """Notes the first call of the method's loss, then steps aside."""
        original = self.method.loss

        def loss(output: Output, target: Tensor) -> Tensor:
            self._loss_asked = True
            vars(self.method).pop("loss", None)
            return original(output, target)

        self.method.loss = loss  # type: ignore[method-assign]

    def _check_module(self, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises by hand (automatic_optimization is False), "
                "so Balance cannot know when its gradients are complete. Call the method's hooks "
                "in `training_step` yourself, or use automatic optimisation."
            )
        if overrides(self.method, "backward") and is_overridden("backward", pl_module):
            raise ValueError(
                f"{type(pl_module).__name__} has a `backward` of its own and so has {self._name}; "
                "only one of them can fill the gradients. Remove the module's."
            )

    def _check_strategy(self, trainer: Trainer) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy) and not self.method.info.sharded:
            raise ValueError(
                f"{self._name} does not work on parameters that are sharded over ranks, as "
                "ModelParallelStrategy (FSDP2) makes them. Use strategy='ddp'."
            )
        if (
            self.method.info.partial
            and isinstance(trainer.strategy, DDPStrategy)
            and not trainer.strategy._ddp_kwargs.get("find_unused_parameters")
        ):
            raise ValueError(
                f"a step of {self._name} leaves some parameters without a gradient, for which "
                "DDP would wait. Use strategy='ddp_find_unused_parameters_true'."
            )
        if self.method.info.writes not in ("weights", "gradients"):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ValueError(
                f"{self._name} writes {self.method.info.writes}, but DeepSpeed keeps copies of "
                "its own, which would undo that. Use strategy='ddp' or ModelParallelStrategy "
                "(FSDP2)."
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                f"{self._name} writes {self.method.info.writes} of whole parameters, but "
                "FSDPStrategy flattens them. Use ModelParallelStrategy (FSDP2) or strategy='ddp'."
            )

    def _check_sampler(self, trainer: Trainer) -> None:
        """The Trainer would put a sampler of its own in the place of the method's."""
        own = hasattr(self.method, "sampler") or self.method.repeats > 1
        if (
            own
            and isinstance(trainer.strategy, ParallelStrategy)
            and trainer._accelerator_connector.use_distributed_sampler
        ):
            raise ValueError(
                f"{self._name} decides on the order of the samples, but the Trainer puts its own "
                "sampler in the place of yours on several ranks. Pass use_distributed_sampler="
                "False; evenly.Resampler shares the samples among the ranks itself."
            )

    def _check_repeats(self, trainer: Trainer) -> None:
        if self.method.repeats > 1 and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"{self._name} takes a step for each modality on each batch, so gradients of "
                "several batches cannot be accumulated. Set accumulate_grad_batches=1, and a "
                "larger batch."
            )
        batches = getattr(_train_loader(trainer), "batch_sampler", None)
        if self.method.repeats > 1 and getattr(batches, "repeats", 1) != self.method.repeats:
            raise ValueError(
                f"{self._name} takes each batch {self.method.repeats} times, once for each "
                "modality. Build the training loader with batch_sampler=evenly.Repeated(sampler, "
                "batch_size, repeats=method.repeats)."
            )

    def _check_shares(self, trainer: Trainer) -> None:
        """A sampler that was made before the processes were joined knows only one of them."""
        batches = getattr(_train_loader(trainer), "batch_sampler", None)
        sampler = getattr(batches, "sampler", None)
        if not isinstance(trainer.strategy, ParallelStrategy) or not isinstance(
            sampler, DistributedSampler
        ):
            return
        world = trainer.strategy.distributed_sampler_kwargs["num_replicas"]
        if sampler.num_replicas != world:
            raise ValueError(
                f"the {type(sampler).__name__} of the training loader shares the samples among "
                f"{sampler.num_replicas} rank(s), but {world} train. Call "
                "torch.distributed.init_process_group() before you make it, or pass it "
                "num_replicas=... and rank=... ."
            )

    def _check_scaling(self, trainer: Trainer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            return
        for optimizer in trainer.optimizers:
            # Such an optimiser (a fused one) unscales inside its step, after before_step.
            if overrides(self.method, "before_step") and getattr(
                optimizer, "_step_supports_amp_scaling", False
            ):
                raise ValueError(
                    f"{self._name} needs unscaled gradients, but in 16-mixed precision the fused "
                    f"{type(optimizer).__name__} unscales them only inside its step. Use "
                    "fused=False, or precision='bf16-mixed'."
                )


def _to_device(trainer: Trainer, batch: Any) -> Any:
    """What the Trainer does to each batch before a step: the module's hooks and the transfer."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _train_loader(trainer: Trainer) -> Iterable[Any]:
    loader: Any = trainer.train_dataloader
    if isinstance(loader, Mapping | list | tuple):
        raise ValueError(
            f"the probe needs one training loader, but the Trainer has a {type(loader).__name__} "
            f"of {len(loader)}. Pass one loader that gives whole batches."
        )
    return cast(Iterable[Any], loader)


def _val_loader(trainer: Trainer) -> Iterable[Any] | None:
    """The first validation loader; the Trainer may not have asked for it yet."""
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    loaders = trainer.val_dataloaders
    if isinstance(loaders, list | tuple):
        return loaders[0] if loaders else None
    return loaders
