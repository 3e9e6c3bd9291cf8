"""A method in a Transformers `Trainer`: one subclass that takes a method and a forward pass."""

import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback

from evenly.errors import UserError, UserFileNotFoundError
from evenly.files import replacing
from evenly.integrations import course
from evenly.method import Method, overrides
from evenly.output import Output
from evenly.probe import Forward, Probe
from evenly.resampling import Resampler

_log = logging.getLogger(__name__)

STATE = "evenly.pt"
"""The file in a checkpoint's folder with what the method remembers."""


class BalancedTrainer(Trainer):  # type: ignore[misc]
    """The Transformers `Trainer` with a method's hooks at the right moments.

    ```python
    trainer = BalancedTrainer(
        method=evenly.Relearn({"audio": model.audio, "visual": model.visual}),
        forward=forward,
        model=model, args=args, train_dataset=train, eval_dataset=val, data_collator=collate,
    )
    ```

    Everything but `method` and `forward` is the Trainer's and works as before. `before_epoch` runs
    once for every epoch and uses the training and the (first) evaluation set, in the Trainer's
    precision. `before_step` sees gradients that are accumulated, averaged over ranks and not yet
    clipped. Each checkpoint's folder holds what the method remembers, and
    `train(resume_from_checkpoint=...)` restores it. If a method sets the order of samples, its
    sampler is used for the training set. Evaluation reports the method's plain criterion as the
    loss and passes the fused logits and the target to `compute_metrics`; `predict` takes data
    without labels, too. The method's metrics are logged as `method/NAME`, with the training loss.

    With `model_init`, and so with `hyperparameter_search`, each training has a new model: pass the
    method as a function of the model, `method=lambda model: evenly.Relearn({"audio": model.audio,
    "visual": model.visual})`.

    The Trainer drops columns that `model.forward` does not name; if your `forward` reads others,
    set `remove_unused_columns=False` in the `TrainingArguments`.
    """

    def __init__(
        self,
        *args: Any,
        method: Method | Callable[[Any], Method],
        forward: Forward,
        **kwargs: Any,
    ) -> None:
        """Prepares training.

        Args:
            *args: The Trainer's.
            method: The method, made with the encoders of the trained model; or a function that
                makes it from the model for each training.
            forward: `forward(model, inputs)` returns an `Output` and the target. The inputs, from
                the collator, are already on the model's device. In `predict` on data without
                labels, the labels are None, and so is the target.
            **kwargs: The Trainer's.

        Raises:
            ValueError: If the method cannot work with these arguments; the text says why.
        """
        self._make = None if isinstance(method, Method) else method
        self.forward = forward
        self._epoch = -1  # the last epoch that before_epoch has seen
        self._acted = False  # whether the method had anything to do in an epoch so far
        super().__init__(*args, **kwargs)
        if isinstance(method, Method):
            if self.model_init is not None:
                raise UserError(
                    f"`model_init` makes a new model for each training, but this "
                    f"{type(method).__name__} has the encoders of another one. Pass the method "
                    "as a function of the model, for example method=lambda model: "
                    'evenly.Relearn({"audio": model.audio, "visual": model.visual}).'
                )
            self.method = method
        elif self.model_init is None:
            self.method = method(self.model)
        # The loss is a mean over the batch, so the Trainer must divide it when accumulating.
        self.model_accepts_loss_kwargs = False
        self._check()
        self.add_callback(_Epochs(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the accelerator, whose backward pass becomes the method's if it has one."""
        super().create_accelerator_and_postprocess()
        plain = self.accelerator.backward

        def backward(loss: Tensor, **kwargs: Any) -> None:
            if overrides(self.method, "backward"):  # the plain one's extras are refused
                self.method.backward(loss / self.accelerator.gradient_accumulation_steps)
            else:
                plain(loss, **kwargs)

        self.accelerator.backward = backward

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes a model, and the method for it."""
        model: nn.Module = super().call_model_init(trial)
        if self._make is not None:
            self.method = self._make(model)
        return model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, see `Trainer.train`."""
        if self.method.info.needs_probe and self.eval_dataset is None:
            raise UserError(
                f"{self._name} looks at the validation split, but the Trainer has none. Pass "
                "`eval_dataset`."
            )
        resumes = args[0] if args else kwargs.get("resume_from_checkpoint")
        self._epoch, self._acted = -1, False
        if not resumes and self.model_init is None:
            self._renew()
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The method's loss for one batch."""
        # The loss is also computed under autocast, so that bf16 logits are widened as in a raw
        # loop.
        with self.accelerator.autocast():
            output, target = self.forward(model, inputs)
            loss = self.method.loss(output, target)
        return (loss, output) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass, and `before_step` if an optimiser step is due."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.method.before_step()
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The plain criterion, the fused logits and the target of one batch, if it has one."""
        with torch.no_grad():
            output, target = self._look_unlabelled(model, inputs)
            if target is None:
                return None, None if prediction_loss_only else output.logits, None
            loss = self.method.criterion(output.logits.float(), target).detach()
        return (loss, None, None) if prediction_loss_only else (loss, output.logits, target)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, including what the method did beside the training loss."""
        if "loss" in logs:
            logs |= {f"method/{name}": float(v) for name, v in self.method.metrics.items()}
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        method = self.method.state_dict()  # on every rank: FSDP2
        state = {"epoch": self._epoch, "acted": self._acted, "method": method}
        if self.args.should_save:
            with replacing(Path(output_dir, STATE)) as path:
                torch.save(state, path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, STATE)
        if not path.is_file():
            raise UserFileNotFoundError(
                f"the checkpoint {checkpoint} has no '{STATE}', which holds the state of "
                f"{self._name}: it was saved by another Trainer, or with save_only_model=True. "
                "Resume from another checkpoint, or start again."
            )
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self._epoch, self._acted = state["epoch"], state["acted"]
        self.method.load_state_dict(state["method"])

    def _prepare_input(self, data: Any) -> Any:
        # The Trainer's own version cannot rebuild a NamedTuple, such as a padded sequence.
        return send_to_device(data, self.args.device)

    @property
    def _name(self) -> str:
        return type(self.method).__name__

    def _get_train_sampler(self, *args: Any) -> Sampler[Any] | None:
        own: Sampler[Any] | None = getattr(self.method, "sampler", None)
        return super()._get_train_sampler(*args) if own is None else own

    def _begin_training(self, state: Any) -> None:
        if self._epoch > 0 and state.global_step == 0:
            if self._make is None and self.method.state:
                raise UserError(
                    f"a batch of epoch {self._epoch} did not fit in the memory, and "
                    f"auto_find_batch_size restarts, but {self._name} remembers the epochs "
                    "before. Start again with a smaller per_device_train_batch_size."
                )
            self._renew()
            self._epoch, self._acted = -1, False
        sentence = course.too_short(self.method, state.num_train_epochs)
        if sentence is not None and not self._acted and self.is_world_process_zero():
            _log.warning(sentence)

    def _begin_epoch(self, epoch: int, train_loader: DataLoader[Any]) -> None:
        own = getattr(self.method, "sampler", None)
        if own is not None:  # on several ranks, the Trainer does not reach it through its wrappers
            own.set_epoch(epoch)
        # A run resumed mid-epoch has the weights from after before_epoch.
        if epoch != self._epoch:
            self._epoch = epoch
            self._acted |= self.method.is_due(epoch)
            course.begin(self.method)
            self.method.before_epoch(epoch, self._probe(train_loader))

    def _end_training(self) -> None:
        if not self._acted and self.is_world_process_zero():
            warnings.warn(course.never_acted(self.method, self._epoch + 1), stacklevel=2)

    def _renew(self) -> None:
        """Makes a method for another training, since one with a memory cannot be reused."""
        if self._make is not None and course.has_begun(self.method):
            self.method = self._make(self.model)
        course.check_new(self.method)

    def _probe(self, train_loader: DataLoader[Any]) -> Probe | None:
        if self.eval_dataset is None:
            return None
        several = isinstance(self.eval_dataset, dict)
        eval_loader = self.get_eval_dataloader(next(iter(self.eval_dataset)) if several else None)
        return Probe(
            self.model,
            self._look,
            _whole(train_loader, self.args.train_batch_size),
            _whole(eval_loader, self.args.eval_batch_size),
        )

    def _look(self, model: nn.Module, inputs: Any) -> tuple[Output, Any]:
        with self.accelerator.autocast():
            return self.forward(model, self._prepare_inputs(inputs))

    def _look_unlabelled(self, model: nn.Module, inputs: Any) -> tuple[Output, Tensor | None]:
        """A pass over inputs that may lack labels, which `forward` then sees as None."""
        none: list[str] = []
        while True:
            try:
                return self._look(model, inputs)
            except KeyError as error:
                name = error.args[0]
                if name not in (*self.label_names, "labels") or name in inputs:
                    raise
                inputs[name] = None
                none.append(name)
            except (AttributeError, TypeError) as error:
                if not none:
                    raise
                raise UserError(
                    f"the data have no '{none[0]}', and `forward` cannot do without "
                    f"({type(error).__name__}: {error}). It finds None there in `predict`: have it "
                    "leave that alone and return it as the target."
                ) from error

    def _check(self) -> None:
        gradients = overrides(self.method, "backward") or overrides(self.method, "before_step")
        writes = self.method.info.writes
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise UserError(
                f"the loss comes from {self._name}, so `compute_loss_func` and "
                "`label_smoothing_factor` would be passed over. Give the method a `criterion`, "
                "for example torch.nn.CrossEntropyLoss(label_smoothing=0.1)."
            )
        if self.args.n_gpu > 1:
            raise UserError(
                f"the Trainer sees {self.args.n_gpu} GPUs in one process and would copy the model "
                "to each (DataParallel), out of the method's reach. Start it with torchrun, or "
                "show it one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if gradients and self.accelerator.scaler is not None:
            raise UserError(
                f"{self._name} needs unscaled gradients, but in fp16 the Trainer unscales them "
                "only while it clips them. Use bf16=True, or full precision."
            )
        if self.is_deepspeed_enabled and writes in ("weights", "gradients"):
            raise UserError(
                f"{self._name} writes {writes}, but DeepSpeed keeps copies of its own, which "
                "would undo that. Use DDP (torchrun) or FSDP2."
            )
        if self.is_fsdp_enabled and not self.method.info.sharded:
            raise UserError(
                f"{self._name} does not work on parameters that are sharded over ranks, as "
                "FSDP makes them. Use DDP (torchrun)."
            )
        if (
            self.is_fsdp_enabled
            and writes in ("weights", "gradients")
            and not self.accelerator.is_fsdp2
        ):
            raise UserError(
                f"{self._name} writes {writes} of whole parameters, but FSDP1 flattens them. "
                "Set fsdp_version to 2 in `fsdp_config`, or use DDP (torchrun)."
            )
        if (
            self.method.info.partial
            and self.accelerator.num_processes > 1
            and not self.args.ddp_find_unused_parameters
        ):
            raise UserError(
                f"a step of {self._name} leaves some parameters without a gradient, for which "
                "DDP would wait. Set ddp_find_unused_parameters=True."
            )
        own = getattr(self.method, "sampler", None)
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if own is not None and (strategy != "random" or getattr(self.args, "group_by_length", 0)):
            raise UserError(
                f"{self._name} decides on the order of the samples, and so does "
                f"train_sampling_strategy='{strategy}' (or group_by_length). Leave it out."
            )
        if own is not None and self.accelerator.num_processes > 1 and own.num_replicas > 1:
            raise UserError(
                f"the sampler of {self._name} shares the samples among {own.num_replicas} ranks, "
                "as this Trainer does once more. Make it with evenly.Resampler(dataset, "
                "num_replicas=1, rank=0)."
            )
        if self.method.repeats > 1:
            raise UserError(
                f"{self._name} takes each batch {self.method.repeats} times, which this Trainer "
                "does not do. Use a loop of your own, or Lightning, with evenly.Repeated."
            )


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Signals the beginning of a training and of each epoch, unlike the Trainer's own methods.

    It counts by itself: the state's epoch is a fraction with an unknown epoch length, and lags if a
    callback ends an epoch early.
    """

    def __init__(self, trainer: BalancedTrainer) -> None:
        self._trainer = trainer
        self._coming = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._coming = int(state.epoch or 0)  # 1.5 on resuming halfway through the second epoch
        self._trainer._begin_training(state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._begin_epoch(self._coming, kwargs["train_dataloader"])
        self._coming += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._end_training()


def _whole(loader: DataLoader[Any], batch_size: int) -> Iterable[Any]:
    """The samples of a loader that accelerate has wrapped, in a plain one that ranks can share."""
    batches: Any = None if isinstance(loader.dataset, IterableDataset) else loader.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    shares = isinstance(sampler, DistributedSampler) and not isinstance(sampler, Resampler)
    if shares or type(sampler).__module__.startswith("transformers."):
        sampler = None  # all samples come, in any order
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
