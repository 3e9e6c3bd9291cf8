"""A method in a Lightning `Trainer`: one callback, and a `training_step` that returns its loss."""

import copy
import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
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
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from evenly.errors import UserError
from evenly.integrations import course
from evenly.method import Method, overrides
from evenly.output import Output
from evenly.probe import Forward, Probe

_log = logging.getLogger(__name__)


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

    `before_epoch` runs once for every epoch, before its first batch and so before the weights that
    a `ModelCheckpoint(monitor=...)` judges. It uses the training loader and the first validation
    loader, in the Trainer's precision and on its device. `before_step` sees gradients that are
    accumulated, averaged over ranks, unscaled and not yet clipped. The checkpoint saves what the
    method remembers, and `fit(..., ckpt_path=...)` restores it. The method's metrics are logged as
    `method/NAME`, averaged over the epoch's batches.

    A resumed run gets the same batches as the uninterrupted one if their order is a function of the
    epoch, as with `evenly.Resampler` and `DistributedSampler`. Mid-epoch, Lightning itself would
    restart the data; Balance draws the batches already used and drops them (ignore Lightning's
    warning that the loader is not resumable). A loader with a `state_dict` continues from that. An
    order drawn from a random stream (`shuffle=True`) is in no checkpoint: the epoch's data restart,
    and Balance warns.

    Before the first epoch begins, the method's loss is its plain criterion: in Lightning's sanity
    check, in `validate` and `test` before `fit`, and in the trials of Lightning's Tuner and
    `LearningRateFinder`, from which the method learns nothing.

    On several ranks every rank saves and loads, since the state of sharded encoders (FSDP2) is
    gathered and sharded again.

    Raises (before the first optimiser step):
        ValueError: If the method cannot work with this Trainer or module; the text says why.
    """

    def __init__(self, method: Method, forward: Forward, *, memory: int | None = None) -> None:
        """Stores the method; nothing runs yet.

        Args:
            method: The method, made with the encoders of the trained module.
            forward: `forward(module, batch)` returns an `Output` and the target. The batch is
                already on the module's device.
            memory: Bytes of features in memory, see `Probe`.
        """
        self.method = method
        self.forward = forward
        self.memory = memory
        self._epoch = -1  # the last epoch that before_epoch has seen
        self._resumed = False  # whether training continues from a loaded checkpoint
        self._acted = False  # whether the method had anything to do in an epoch so far
        self._loss_asked = False  # since the last step
        self._loss_ever_asked = False
        self._sums: dict[str, tuple[Tensor | float, Tensor | int]] = {}  # by metric, with batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot work, and takes over the backward pass if the method has one."""
        self._guard_loss(trainer)
        if stage != "fit":
            return
        self._epoch = -1
        self._resumed = self._acted = False
        self._loss_asked = self._loss_ever_asked = False
        self._sums = {}
        self._check_module(pl_module)
        self._check_strategy(trainer)
        self._check_sampler(trainer)
        if overrides(self.method, "backward"):
            self._guard_backward(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what only optimisers and loaders reveal; resumes."""
        if trainer.current_epoch == 0 and not self._resumed:
            course.check_new(self.method)
        self._check_scaling(trainer)
        self._check_repeats(trainer)
        self._check_shares(trainer)
        if self.method.info.needs_probe and _val_loader(trainer) is None:
            raise UserError(
                f"{self._name} looks at the validation split, but the Trainer has no validation "
                "loader. Pass `val_dataloaders` to `fit` and define `validation_step`."
            )
        epochs = _epochs(trainer)
        if epochs is not None and not self._acted and trainer.is_global_zero:
            sentence = course.too_short(self.method, epochs)
            if sentence is not None:
                _log.warning(sentence)
        if self._resumed:
            self._resume(trainer, pl_module)
        elif getattr(self.method, "sampler", None) is not None:
            # Lightning has an iterator by now, whose workers may hold batches in an older order.
            self._begin_epoch(trainer, pl_module)
            batches: Any = trainer.fit_loop._data_fetcher
            iter(batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs `before_epoch`."""
        self._begin_epoch(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Runs `before_step`."""
        asked, self._loss_asked = self._loss_asked, False
        self._loss_ever_asked |= asked
        if all(parameter.grad is None for parameter in pl_module.parameters()):
            # `training_step` returned no loss, so this step changes nothing but whose turn it is.
            if asked and self.method.turn is not None:
                self.method.before_step()
            else:
                self.method.watch.before_step(self.method)
        elif asked or not overrides(self.method, "loss"):
            self.method.before_step()
        elif not self._loss_ever_asked:
            raise UserError(
                f"{self._name} never saw a batch, because `training_step` of "
                f"{type(pl_module).__name__} did not call its `loss`. Return "
                "`method.loss(output, target)` from it."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up what the method did; logging it here would cost as much as a small step."""
        for name, value in self.method.metrics.items():
            total, batches = self._sums.get(name, (0.0, 0))
            is_finite = value.isfinite()  # not for a step that overflowed (AMP)
            self._sums[name] = total + value.detach().where(is_finite, 0), batches + is_finite

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what the method did, on average."""
        for name, (total, batches) in self._sums.items():
            pl_module.log(f"method/{name}", total / batches)
        self._sums = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns if the method never had anything to do."""
        if not self._acted and not trainer.fast_dev_run and trainer.is_global_zero:  # type: ignore[attr-defined]
            warnings.warn(course.never_acted(self.method, trainer.current_epoch), stacklevel=2)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restores the passes of module and method, since Lightning skips `teardown`."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the passes of module and method."""
        self._release(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, and how far it got."""
        return {"epoch": self._epoch, "acted": self._acted, "method": self.method.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._epoch, self._acted = state_dict["epoch"], state_dict["acted"]
        self._resumed = self._epoch >= 0  # Lightning's Tuner restores a state before any epoch
        self.method.load_state_dict(state_dict["method"])

    @property
    def _name(self) -> str:
        return type(self.method).__name__

    def _begin_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run resumed mid-epoch has the weights from after before_epoch.
        if trainer.current_epoch != self._epoch:
            self._epoch = trainer.current_epoch
            self._acted |= self.method.is_due(self._epoch)
            course.begin(self.method)
            self.method.before_epoch(self._epoch, self._probe(trainer, pl_module))

    def _resume(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues with the batch after the checkpoint's.

        By now, Lightning has an iterator from the loader, which may already hold batches: too early
        for an order that depends on the epoch or the method. If it resumes mid-epoch, it skips
        `on_train_epoch_start`.
        """
        self._resumed = False
        loop = trainer.fit_loop
        progress: Any = loop.epoch_progress
        # With max_steps, Lightning counts an epoch twice if the checkpoint is at its end.
        if progress.current.processed > progress.current.completed:
            progress.current.processed -= 1
            progress.total.processed -= 1
        within = trainer.current_epoch == self._epoch
        if within and loop.epoch_loop._num_ready_batches_reached():
            return  # this epoch is over; the next one begins as usual
        self._begin_epoch(trainer, pl_module)
        loader = _train_loader(trainer)
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            return  # Lightning has restored its position
        order = _order(loader)
        if hasattr(order, "set_epoch"):
            order.set_epoch(trainer.current_epoch)
        batches: Any = loop._data_fetcher
        iter(batches)
        if not within:
            return
        if source := _random_source(loader):
            warnings.warn(
                f"this run goes on in the middle of epoch {self._epoch}, but the order of its "
                f"batches came from a random stream ({source}) that is in no checkpoint: the "
                "epoch's data begin again, so some samples come again and others not at all. Save "
                "checkpoints at the end of an epoch, or take evenly.Resampler as the sampler.",
                stacklevel=2,
            )
            return
        for _ in range(loop.epoch_loop.batch_progress.current.ready):
            next(batches, None)
        batches.fetched = 0  # Lightning itself adds those already used

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> Probe | None:
        """A probe on this epoch's loaders, since the Trainer may reload them."""
        val = _val_loader(trainer)
        if val is None:
            return None

        def forward(model: nn.Module, batch: Any) -> tuple[Output, Tensor]:
            # Validating, so that a module's training-only augmentation is off; a teacher trains
            # like the model.
            trainer.validating = not model.training
            try:
                batch = _to_device(trainer, batch)
                with trainer.precision_plugin.val_step_context():
                    return self.forward(model, batch)
            finally:
                trainer.training = True

        train = _apart(_train_loader(trainer), trainer.num_training_batches)
        return Probe(pl_module, forward, train, val, memory=self.memory)

    def _is_idle(self, trainer: Trainer) -> bool:
        """Whether this is not part of the training: before it, or a trial of the Tuner."""
        return self._epoch < 0 or trainer.sanity_checking or self not in trainer.callbacks  # type: ignore[attr-defined]

    def _guard_loss(self, trainer: Trainer) -> None:
        """Makes the method's loss plain outside the training."""
        original = self.method.loss

        def loss(output: Output, target: Tensor) -> Tensor:
            if self._is_idle(trainer):
                return self.method.criterion(output.logits, target)
            self._loss_asked |= torch.is_grad_enabled()
            return original(output, target)

        self.method.loss = loss  # type: ignore[method-assign]

    def _guard_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the module's backward pass with the method's during training."""
        original = pl_module.backward

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if self._is_idle(trainer):
                original(loss, *args, **kwargs)
            else:
                self.method.backward(loss)

        pl_module.backward = backward  # type: ignore[method-assign]

    def _release(self, pl_module: LightningModule) -> None:
        vars(pl_module).pop("backward", None)
        vars(self.method).pop("loss", None)

    def _check_module(self, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise UserError(
                f"{type(pl_module).__name__} optimises by hand (automatic_optimization is False), "
                "so Balance cannot know when its gradients are complete. Call the method's hooks "
                "in `training_step` yourself, or use automatic optimisation."
            )
        if overrides(self.method, "backward") and is_overridden("backward", pl_module):
            raise UserError(
                f"{type(pl_module).__name__} has a `backward` of its own and so has {self._name}; "
                "only one of them can fill the gradients. Remove the module's."
            )

    def _check_strategy(self, trainer: Trainer) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy) and not self.method.info.sharded:
            raise UserError(
                f"{self._name} does not work on parameters that are sharded over ranks, as "
                "ModelParallelStrategy (FSDP2) makes them. Use strategy='ddp'."
            )
        if (
            self.method.info.partial
            and isinstance(trainer.strategy, DDPStrategy)
            and not trainer.strategy._ddp_kwargs.get("find_unused_parameters")
        ):
            raise UserError(
                f"a step of {self._name} leaves some parameters without a gradient, for which "
                "DDP would wait. Use strategy='ddp_find_unused_parameters_true'."
            )
        if self.method.info.writes not in ("weights", "gradients"):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise UserError(
                f"{self._name} writes {self.method.info.writes}, but DeepSpeed keeps copies of "
                "its own, which would undo that. Use strategy='ddp' or ModelParallelStrategy "
                "(FSDP2)."
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                f"{self._name} writes {self.method.info.writes} of whole parameters, but "
                "FSDPStrategy flattens them. Use ModelParallelStrategy (FSDP2) or strategy='ddp'."
            )

    def _check_sampler(self, trainer: Trainer) -> None:
        """Raises if the Trainer would replace the method's sampler with its own."""
        own = hasattr(self.method, "sampler") or self.method.repeats > 1
        if (
            own
            and isinstance(trainer.strategy, ParallelStrategy)
            and trainer._accelerator_connector.use_distributed_sampler
        ):
            raise UserError(
                f"{self._name} decides on the order of the samples, but the Trainer puts its own "
                "sampler in the place of yours on several ranks. Pass use_distributed_sampler="
                "False; evenly.Resampler shares the samples among the ranks itself."
            )

    def _check_repeats(self, trainer: Trainer) -> None:
        if self.method.repeats > 1 and trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"{self._name} takes a step for each modality on each batch, so gradients of "
                "several batches cannot be accumulated. Set accumulate_grad_batches=1, and a "
                "larger batch."
            )
        batches = getattr(_train_loader(trainer), "batch_sampler", None)
        if self.method.repeats > 1 and getattr(batches, "repeats", 1) != self.method.repeats:
            raise UserError(
                f"{self._name} takes each batch {self.method.repeats} times, once for each "
                "modality. Build the training loader with batch_sampler=evenly.Repeated(sampler, "
                "batch_size, repeats=method.repeats)."
            )

    def _check_shares(self, trainer: Trainer) -> None:
        """Raises for a sampler made before the processes joined, which knows only one of them."""
        batches = getattr(_train_loader(trainer), "batch_sampler", None)
        sampler = getattr(batches, "sampler", None)
        if not isinstance(trainer.strategy, ParallelStrategy) or not isinstance(
            sampler, DistributedSampler
        ):
            return
        world = trainer.strategy.distributed_sampler_kwargs["num_replicas"]
        if sampler.num_replicas != world:
            raise UserError(
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
                raise UserError(
                    f"{self._name} needs unscaled gradients, but in 16-mixed precision the fused "
                    f"{type(optimizer).__name__} unscales them only inside its step. Use "
                    "fused=False, or precision='bf16-mixed'."
                )


def _to_device(trainer: Trainer, batch: Any) -> Any:
    """Prepares a batch as the Trainer does before a step: the module's hooks and the transfer."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _train_loader(trainer: Trainer) -> Iterable[Any]:
    loader: Any = trainer.train_dataloader
    if isinstance(loader, Mapping | list | tuple):
        raise UserError(
            f"the probe needs one training loader, but the Trainer has a {type(loader).__name__} "
            f"of {len(loader)}. Pass one loader that gives whole batches."
        )
    return cast(Iterable[Any], loader)


def _apart(loader: Iterable[Any], batches: int | float) -> Iterable[Any]:
    """The training loader for a look that leaves no trace on Lightning's iterator.

    A loader with persistent workers has only one iterator, which restarts for every caller. If
    Lightning takes only the first batches of a fixed order, as with `overfit_batches`, training
    uses nothing else.
    """
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy.copy(loader)
    vars(apart).update(persistent_workers=False, _iterator=None)
    if isinstance(loader.sampler, SequentialSampler) and type(loader.batch_sampler) is BatchSampler:
        size = loader.batch_sampler.batch_size
        rows = range(len(loader.sampler))[: int(min(batches, len(loader)) * size)]
        vars(apart).update(
            sampler=rows, batch_sampler=BatchSampler(rows, size, loader.batch_sampler.drop_last)
        )
    return apart


def _val_loader(trainer: Trainer) -> Iterable[Any] | None:
    """The first validation loader, which the Trainer may not have created yet."""
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    loaders = trainer.val_dataloaders
    if isinstance(loaders, list | tuple):
        return loaders[0] if loaders else None
    return loaders


def _epochs(trainer: Trainer) -> int | None:
    """The maximum number of epochs of a training; None if unknown."""
    limits = []
    if trainer.max_epochs not in (None, -1):
        limits.append(trainer.max_epochs)
    if trainer.max_steps != -1 and math.isfinite(trainer.num_training_batches):
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits.append(math.ceil(trainer.max_steps / steps))
    return min(limits, default=None)


def _order(loader: Any) -> Any:
    """What decides the order of a loader's samples."""
    batches = getattr(loader, "batch_sampler", None)
    return (
        getattr(loader, "sampler", None)
        if batches is None
        else getattr(batches, "sampler", batches)
    )


def _random_source(loader: Any) -> str | None:
    """The name of the random source of a loader's order; None if the order repeats."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None  # assumed to repeat what it gave
    order = _order(loader)
    repeats = hasattr(order, "set_epoch") or isinstance(order, SequentialSampler | Sequence)
    return None if repeats else type(order).__name__
