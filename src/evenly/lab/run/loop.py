"""One run: train a method on a seed, select by validation, read the test split once.

(`--protocol paper` selects on the test split.)

Built on Lightning, through the same public names that any user has. The folder of a run holds
all of it; a killed run, started again, ends with the same weights bit for bit.
"""

import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from evenly import chance
from evenly.data import Batch, Data, Padded, Split, SplitName, collate
from evenly.diagnosis.gap import diagnose
from evenly.diagnosis.linear_probe import linear_probe
from evenly.files import naming, remove_leftovers, replacing, write_csv, write_text
from evenly.integrations.lightning import Balance
from evenly.lab.run.augment import Augment
from evenly.lab.run.build import (
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    load_data,
)
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.flops import Flops
from evenly.lab.run.inspection import Subject, inspect, write_features
from evenly.lab.run.logs import Logs, RunLog
from evenly.lab.run.result import Result, checksums
from evenly.lab.run.settings import Cell, Precision, check_same, read_settings, write_settings
from evenly.lab.run.stored import about
from evenly.method import Method
from evenly.methods.composed import parts
from evenly.methods.relearn import Relearn
from evenly.nn import LateFusion
from evenly.output import Output
from evenly.probe import Features, Probe
from evenly.resampling import Repeated, Resampler

Progress = Callable[[int, float], None]
"""Called after each epoch with its number, from 0, and the accuracy that selects."""


def forward(model: nn.Module, batch: Batch) -> tuple[Output, Tensor]:
    """One forward pass, as methods and probe take it."""
    output: Output = model(batch["inputs"], batch["present"])
    return replace(output, index=batch["index"]), batch["target"]


def run_cell(
    cell: Cell,
    folder: Path,
    progress: Progress = lambda epoch, accuracy: None,
    data: Data | None = None,
    tests: bool = True,
    logs: Logs = Logs(),  # noqa: B008, it is frozen
) -> Result:
    """Trains one cell in its folder, or takes up where an earlier call stopped.

    Args:
        cell: What to run.
        folder: Of this run alone; it receives config.yaml, metrics.csv, last.ckpt, best.ckpt,
            predictions.npz, of seed 0 features.npz, TensorBoard's log and, last of all,
            result.json; until then process.txt says which process is at it.
        progress: Told of each epoch.
        data: What the cell names, if it is loaded already.
        tests: Whether the test split is read in the end; a trial of a search has none, and ends
            with the metrics of the validation split.
        logs: How it is logged.

    Raises:
        ValueError: If the folder holds a run with other settings.
        OSError: If there is no room to write in, with the file that was to be written.
        TakenOver: If another process has begun the same run since.
        KeyboardInterrupt: If it was stopped.
    """
    folder = folder.absolute()  # Lightning takes `~` and `file:` at the start of a path for more
    settings = cell.as_dict()
    check_same(folder, read_settings(folder / "config.yaml", "method"), settings)
    if (done := Result.read(folder)) is not None:
        return done
    _quieten()
    torch.set_num_threads(cell.training.threads)
    log = RunLog(logs, cell, folder, settings)
    hold = Hold(folder)
    with naming(folder):  # the loggers' files, too
        try:
            result = _trained(log, hold, progress, data, tests)
            log.finish(result)
        except BaseException:
            log.close(failed=True)
            raise
        log.close()
    hold.check()
    result.write(folder)
    hold.end()
    return result


class TakenOver(RuntimeError):
    """Another process does this run: this one seemed to be gone."""


class Hold:
    """Of the processes that work in a run's folder, whether this is the last that began.

    One that was frozen, and thought to be gone, must write nothing when it wakes: the run that
    went on without it would end with its older weights.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mark = folder / "process.txt", token_hex(8)

    def begin(self) -> None:
        """Takes the folder over."""
        write_text(self._path, self._mark)
        remove_leftovers(self._path.parent)

    def check(self) -> None:
        """Raises if another process has taken it over."""
        if not self._path.exists() or self._path.read_text(encoding="utf-8") != self._mark:
            raise TakenOver(f"{self._path.parent}: another process has taken this run over.")

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """As `files.replacing`, if the folder is still this process's."""
        with replacing(path) as temporary:
            yield temporary
            self.check()

    def end(self) -> None:
        """Leaves the folder, whose run is finished."""
        self._path.unlink(missing_ok=True)


def _trained(log: RunLog, hold: Hold, progress: Progress, data: Data | None, tests: bool) -> Result:
    """What a run ends with, but for result.json."""
    cell, folder = log.cell, log.folder
    data = load_data(cell.training) if data is None else data
    data = data if tests else data.without("test")
    model = build_model(data, cell)
    optimizer = build_optimizer(model, cell.training)
    sampler = build_sampler(data, cell)
    method = build_method(cell, model, optimizer, sampler)
    hold.begin()  # nothing is left where building fails
    write_settings(folder / "config.yaml", log.settings)
    log.start()
    data = _placed(data)
    augment = Augment(cell.training.augment, data.modalities, cell.seed)
    task = Task(model, method, optimizer, len(data.class_names), cell, augment)
    train = data.split("train")
    record = Record(log, hold, method, progress, about(data, model))
    trainer = L.Trainer(
        max_epochs=cell.training.epochs,
        devices=1,
        plugins=_alone(),
        precision=lightning_precision(cell.training.precision),
        callbacks=[record, Balance(method, forward)],
        logger=log.loggers,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    last = folder / "last.ckpt"
    _check_readable(last)
    try:
        trainer.fit(
            task,
            _shuffled(train, cell, sampler, method.repeats),
            [_in_order(data.split(name), cell) for name in task.judged],
            ckpt_path=last if last.is_file() else None,
            weights_only=True,
        )
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # what Lightning makes of Ctrl-C
            raise stopped.__context__ from None
        raise
    # Selection is over: by the fair protocol the test split is read from here on, once, with the
    # chosen weights.
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    model.load_state_dict(best["state_dict"])
    task.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU after fit
    splits: tuple[SplitName, ...] = ("val", "test") if tests else ("val",)
    loaders = {name: _in_order(data.split(name), cell) for name in splits}
    final = {name: _evaluate(trainer, task, loader) for name, loader in loaders.items()}
    metrics: dict[str, dict[str, float]]
    metrics = {name: evaluation.metrics() for name, evaluation in final.items()}
    if tests:
        metrics["test"] |= final["test"].details(data.class_names)
        inspected, features = _inspected(trainer, task, data, loaders["test"])
        metrics["test"] |= inspected
        predictions = final["test"].predictions()
        with hold.replacing(folder / "predictions.npz") as path:
            arrays = {name: x.numpy() for name, x in predictions.items()}
            np.savez_compressed(path, allow_pickle=False, **arrays)
        if cell.seed == 0:  # one run of each method, so that folders stay small
            rows = cast(Split, loaders["test"].dataset).rows.tolist()
            names = [data.names[row] for row in rows] if data.names else None
            guess = predictions["probabilities"].argmax(1)
            write_features(folder / "features.npz", features, guess, names)
    return Result(
        method=cell.method,
        seed=cell.seed,
        best_epoch=best["epoch"],
        epochs=cell.training.epochs,
        steps=trainer.global_step,
        seconds=round(record.seconds, 3),
        peak_memory_mb=round(_peak_memory_mb(), 1),
        flops=record.flops,
        precision=str(trainer.precision),
        metrics=metrics,
        files=checksums(folder),
    )


class Task(L.LightningModule):
    """The training step that every method shares."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: Optimizer,
        num_classes: int,
        cell: Cell,
        augment: Augment,
    ) -> None:
        super().__init__()
        self.augment = augment
        self._batch: tuple[int, int] | None = None  # epoch and number, within a training step
        self.model, self.method, self.optimizer = model, method, optimizer
        self.num_classes, self.cell = num_classes, cell
        # The first is what a method may see; the last is what the epoch is selected on.
        self.judged = tuple(dict.fromkeys(("val", cell.training.selects_on)))
        self.train_sums = torch.zeros(3)  # loss, correct, samples: on the device until asked
        self.evaluations: dict[SplitName, Evaluation] = {}

    def forward(
        self, inputs: dict[str, Tensor | Padded], present: dict[str, Tensor] | None = None
    ) -> Output:
        """The model's, on augmented inputs in training mode: that of a method's teachers, too."""
        if self.training and self.augment.changes:
            # Teachers train with the global stream seeded by the probe.
            key = self._batch or tuple(torch.randint(2**31, (2,)).tolist())
            inputs = self.augment(inputs, *key)
        output: Output = self.model(inputs, present)
        return output

    def transfer_batch_to_device(self, batch: Any, device: torch.device, number: int) -> Any:
        """All but what says which samples have which modality, which the model looks at first."""
        moved = super().transfer_batch_to_device({**batch, "present": {}}, device, number)
        return {**moved, "present": batch["present"]}

    def configure_optimizers(self) -> Any:
        """The optimiser as it was built, which the method may know, and its schedule."""
        if not (step := self.cell.training.lr_step):
            return self.optimizer
        return [self.optimizer], [torch.optim.lr_scheduler.StepLR(self.optimizer, step)]

    def on_train_epoch_start(self) -> None:
        """Starts the global stream anew, so that a resumed epoch draws what it would have."""
        torch.manual_seed(chance.mixed(self.cell.seed, self.current_epoch))
        self.train_sums = torch.zeros(3, device=self.device)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The method's loss."""
        if (turn := self.method.turn) is not None:
            batch = {**batch, "inputs": {turn: batch["inputs"][turn]}}
        self._batch = self.current_epoch, number // self.method.repeats
        output, target = forward(self, batch)
        self._batch = None
        loss = self.method.loss(output, target)
        with torch.no_grad():
            correct = (output.logits.argmax(1) == target).sum()
            count = loss.new_full((), len(target), dtype=torch.float32)  # without waiting for a GPU
            self.train_sums += torch.stack([loss.detach().float() * count, correct, count])
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation."""
        self.evaluations = {name: Evaluation(self.num_classes) for name in self.judged}

    def validation_step(self, batch: Batch, _: int, dataloader_idx: int = 0) -> None:
        """Takes one batch of a split that is judged."""
        self.evaluations[self.judged[dataloader_idx]].add(*forward(self.model, batch))


class Record(Callback):
    """Writes metrics.csv and both checkpoints after each epoch, keeps time, reports progress.

    Lightning's own checkpoint callback is not used: it moves files across file systems, where a
    rename is not atomic, and it forgets its best score when the folder was renamed.
    """

    def __init__(
        self,
        log: RunLog,
        hold: Hold,
        method: Method,
        progress: Progress,
        about: dict[str, Any],
    ) -> None:
        self.folder, self.cell, self.hold = log.folder, log.cell, hold
        self.run_log = log  # `log` is Lightning's
        self.method, self.progress = method, progress
        self.about = about  # what goes into the best checkpoint beside the weights
        self.rows: list[dict[str, int | float]] = []
        self.best_accuracy, self.best_epoch = -1.0, -1
        self.seconds, self.flops = 0.0, 0
        self._started = self._counted = 0.0
        self._counter: Flops | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it up again."""
        for name in _REMEMBERED:
            setattr(self, name, state[name])

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Starts the clock: it counts training and the method, not the lab's measurements."""
        self._lap()

    def on_train_batch_start(
        self, trainer: L.Trainer, task: L.LightningModule, batch: Any, number: int
    ) -> None:
        """Counts the operations of an epoch's first step, which stands for them all."""
        if number == 0:
            self.seconds += self._lap()
            self._counter = Flops()
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        """Ends the count, which slows the step down: it is taken to last as long as the others."""
        if self._counter is not None:
            self.flops += self._counter.total * int(trainer.num_training_batches)
            self._end_count()
            self._counted = self._lap()

    def on_exception(
        self, trainer: L.Trainer, task: L.LightningModule, exception: BaseException
    ) -> None:
        """Ends a count that was under way."""
        if self._counter is not None:
            self._end_count()

    def _end_count(self) -> None:
        assert self._counter is not None
        self._counter.__exit__(None, None, None)
        self._counter = None

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Stops the clock."""
        others = int(trainer.num_training_batches) - 1
        took = self._lap()
        self.seconds += took * (others + 1) / others if others else self._counted

    def _lap(self) -> float:
        """Seconds since the last call, when a GPU has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self._started = self._started, time.perf_counter()
        return self._started - before

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Writes down the epoch, then keeps the weights."""
        assert isinstance(task, Task)
        row = self._row(trainer, task)
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self.hold.check()
        write_csv(self.folder / "metrics.csv", columns, self.rows)
        self.run_log.add(row, trainer.current_epoch)
        accuracy = row[f"{self.cell.training.selects_on}_accuracy"]
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, trainer.current_epoch
            state = task.model.state_dict()
            best = {"epoch": self.best_epoch, "state_dict": state, **self.about}
            with self.hold.replacing(self.folder / "best.ckpt") as path, path.open("wb") as file:
                torch.save(best, file)  # by its path, it would not say that the disk is full
        with self.hold.replacing(self.folder / "last.ckpt") as path:
            trainer.save_checkpoint(path)
        self.progress(trainer.current_epoch, accuracy)

    def _row(self, trainer: L.Trainer, task: Task) -> dict[str, int | float]:
        epoch = trainer.current_epoch
        loss, correct, count = task.train_sums.tolist()
        row = {"epoch": epoch, "train_loss": loss / count}
        if self.method.turn is None:  # else it would be the accuracy of single modalities
            row["train_accuracy"] = correct / count
        for split, evaluation in task.evaluations.items():
            row |= {f"{split}_{name}": value for name, value in evaluation.metrics().items()}
        every = self.cell.training.measure_every
        if every and (epoch % every == 0 or epoch == self.cell.training.epochs - 1):
            row |= self._diagnosis(trainer, task)
        for method in parts(self.method):
            if isinstance(method, Relearn):
                for name, found in method.history.get(epoch, {}).items():
                    row[f"relearn_strength/{name}"] = found["strength"]
        return row

    def _diagnosis(self, trainer: L.Trainer, task: Task) -> dict[str, int | float]:
        def on_device(model: nn.Module, batch: Batch) -> tuple[Output, Tensor]:
            with _autocast(trainer):
                return forward(model, trainer.strategy.batch_to_device(batch))

        train: Any = trainer.train_dataloader
        judged: Any = trainer.val_dataloaders
        found = {
            split: diagnose(probe.features("train"), probe.features("val"))
            for split, loader in zip(task.judged, judged, strict=True)
            for probe in (Probe(task.model, on_device, train, loader),)
        }
        columns = {"purity_train": found["val"].train, "gap": found["val"].gap}
        columns |= {f"purity_{split}": diagnosis.val for split, diagnosis in found.items()}
        return {
            f"{key}/{name}": value
            for key, values in columns.items()
            for name, value in values.items()
        }


_REMEMBERED = ("rows", "best_accuracy", "best_epoch", "seconds", "flops")


def lightning_precision(precision: Precision) -> Any:
    """Lightning's name for a precision on this machine."""
    fast = has_fast_bf16() if precision == "auto" else precision == "bf16"
    return "bf16-mixed" if fast else "32-true"


def _alone() -> LightningEnvironment:
    """A run is one process, whatever a cluster's variables say of the one that started it.

    Taken for one rank of several, it would log nothing, and Lightning would queue its job anew.
    """
    environment = LightningEnvironment()
    environment.set_global_rank(0)
    return environment


def has_fast_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices faster than others: GPU, AMX or AVX-512."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _placed(data: Data) -> Data:
    """The data on the GPU, if there is one and they take no more than half of what is free."""
    if not torch.cuda.is_available():
        return data
    device = torch.device("cuda", 0)
    free, _ = torch.cuda.mem_get_info(device)
    return data.to(device) if data.nbytes <= free / 2 else data


def _check_readable(checkpoint: Path) -> None:
    """Raises if there is a checkpoint that cannot be read."""
    if not checkpoint.is_file():
        return
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{checkpoint} is damaged ({type(error).__name__}). Remove it, and the run starts anew."
        ) from error


def _shuffled(split: Split, cell: Cell, sampler: Resampler, repeats: int) -> DataLoader[Batch]:
    size = cell.training.batch_size
    # BatchNorm can make nothing of a last batch of one.
    lonely = len(split) % size == 1 and len(split) > 1
    batches = Repeated(sampler, size, lonely, repeats)
    return DataLoader(split, batch_sampler=batches, collate_fn=collate)


def _in_order(split: Split, cell: Cell) -> DataLoader[Batch]:
    return DataLoader(split, cell.training.batch_size, collate_fn=collate)


def _autocast(trainer: L.Trainer) -> AbstractContextManager[None]:
    return trainer.precision_plugin.forward_context()


def _inspected(
    trainer: L.Trainer, task: Task, data: Data, test: DataLoader[Batch]
) -> tuple[dict[str, float], Features]:
    """What the selected model has learnt of each modality, and its features of the test split."""
    cell, model = task.cell, task.model
    assert isinstance(model, LateFusion)
    model.eval()

    def run(model: nn.Module, batch: Batch) -> tuple[Output, Tensor]:
        with _autocast(trainer):
            return forward(model, trainer.strategy.batch_to_device(batch))

    train = _in_order(data.split("train"), cell)
    kept = {name: data.modalities[name] for name in model.encoders}
    commonest = int(data.split("train").target.mode().values)
    found = inspect(Subject(lambda batch: run(model, batch)[0], test, kept, commonest))
    probe = Probe(model, run, train, test)  # selection is over: its second split may be the test's
    features = probe.features("val")
    probed = linear_probe(probe.features("train"), features)
    found |= {f"probe/{name}": accuracy for name, accuracy in probed.items()}
    return found, features


@torch.no_grad()
def _evaluate(trainer: L.Trainer, task: Task, loader: DataLoader[Batch]) -> Evaluation:
    evaluation = Evaluation(task.num_classes)
    task.model.eval()
    with _autocast(trainer):
        for batch in loader:
            evaluation.add(*forward(task.model, trainer.strategy.batch_to_device(batch)))
    return evaluation


def _peak_memory_mb() -> float:
    """Peak memory: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _quieten() -> None:
    """Keeps off the screen what does not concern a user of the command, or has a note already."""
    for name in ("lightning.pytorch", "evenly.integrations"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for hint in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*but this training ended after",
        ".*acts by the size of gradients",
    ):
        warnings.filterwarnings("ignore", hint)
