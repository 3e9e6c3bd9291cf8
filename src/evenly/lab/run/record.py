"""What a run keeps while it trains: metrics of each epoch, the best weights, a checkpoint."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenly import distributed
from evenly.errors import UserError
from evenly.files import write_csv
from evenly.lab.run.flops import Flops
from evenly.lab.run.hold import Hold
from evenly.lab.run.logs import RunLog
from evenly.lab.run.parts import Parts
from evenly.metrics import METRICS
from evenly.output import Output

Progress = Callable[[int, float], None]
"""Called after each epoch with its number, from 0, and the metric that selects."""
Row = dict[str, int | float]


class Record:
    """Keeps a run's results, and what it resumes from.

    metrics.csv and the checkpoints are written after the last epoch, and whenever
    `checkpoint_every` seconds have passed. A killed run repeats the epochs since then, with the
    same results.

    Attributes:
        epoch: The next epoch.
        rows: The metrics of each epoch so far.
        best_epoch: The best epoch by the selecting metric and split, the first of equals.
        seconds: Time in training and in the method, without measurements.
        flops: Operations of all training steps, on all processes together; see `step`.
        steps: Optimiser steps.
    """

    def __init__(
        self, parts: Parts, log: RunLog, hold: Hold, progress: Progress, about: Mapping[str, Any]
    ) -> None:
        """Starts empty.

        Args:
            parts: What trains.
            log: Log of the run.
            hold: Hold on its folder.
            progress: Called after each epoch.
            about: What goes into the best checkpoint besides the weights.
        """
        self.parts, self.about = parts, about
        self._log, self._hold, self._progress = log, hold, progress
        self._table, self._best, self._last = (
            log.folder / name for name in ("metrics.csv", "best.ckpt", "last.ckpt")
        )
        self._select = parts.cell.training.select or parts.data.task.main
        self.epoch, self.steps, self.flops, self.seconds = 0, 0, 0, 0.0
        self.rows: list[Row] = []
        self.best_epoch = -1
        self._weights: dict[str, Tensor] = {}  # the best ones, until written
        self._written, self._lapped = time.monotonic(), 0.0

    def resume(self) -> None:
        """Resumes from what the folder holds.

        Raises:
            ValueError: If the checkpoint is damaged.
        """
        if not self._last.is_file():
            return
        try:
            state = torch.load(self._last, map_location="cpu", weights_only=True)
            remembered = [(name, state["record"][name]) for name in _REMEMBERED]
        except Exception as error:
            raise UserError(
                f"{self._last} is damaged ({type(error).__name__}). Remove it to start the run "
                "again."
            ) from error
        self.parts.load_state_dict(state)
        for name, value in remembered:
            setattr(self, name, value)

    @property
    def is_over(self) -> bool:
        """Whether no epoch remains: all are done, or the last ones brought no improvement."""
        training = self.parts.cell.training
        waited = self.epoch - 1 - self.best_epoch  # 0 before the first
        is_spent = training.patience is not None and waited >= training.patience
        return self.epoch == training.epochs or is_spent

    def ends_early(self, measured: Row) -> bool:
        """Whether the patience ends with the current epoch, given its metrics."""
        patience = self.parts.cell.training.patience
        if patience is None or self._is_better(measured):
            return False
        return self.epoch - self.best_epoch >= patience

    def begin(self) -> None:
        """An epoch begins: starts the clock, which covers only training and the method."""
        self._taken = 0  # steps
        self._operations, self._first = 0, 0.0  # of the counted steps
        self._losses: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._counts: list[int] = []
        self._metrics: dict[str, tuple[Tensor, Tensor]] = {}  # sum and count of finite values
        self._lap()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Counts the operations of an epoch's first step, which represents all.

        If the method takes each batch several times, the steps on the first batch do. Counting
        slows them down, so they are assumed to last as long as the others.
        """
        if number >= self.parts.method.repeats:
            yield
            return
        if number == 0:
            self.seconds += self._lap()
        with Flops() as counter:
            yield
        self._operations += counter.total
        self._first += self._lap()

    def add(self, loss: Tensor, output: Output, target: Tensor) -> None:
        """Records a pass, without waiting for a GPU.

        Args:
            loss: Loss of the batch.
            output: Output of the model.
            target: Target in the form of the data.
        """
        self._losses.append(loss.detach())
        scores = self.parts.data.task.scores(output.logits.detach(), target)
        self._scores.append(scores.sum())
        self._counts.append(len(target))

    def stepped(self) -> None:
        """Records what the method did in a step."""
        self._taken += 1
        for name, value in self.parts.method.metrics.items():
            is_finite = value.isfinite()  # not for a step that overflowed
            kept = value.detach().where(is_finite, 0)
            total, count = self._metrics.get(name, (0, 0))
            self._metrics[name] = total + kept, count + is_finite

    def trained(self) -> None:
        """The steps of the epoch are done: stops the clock."""
        steps, took, counted = self._taken, self._lap(), self.parts.method.repeats
        self.steps += steps
        self.flops += int(distributed.sum_(torch.tensor(self._operations))) * steps // counted
        self.seconds += took * steps / (steps - counted) if steps > counted else self._first

    def end(self, measured: Row) -> None:
        """The epoch is measured: keeps it, and the weights if they are the best."""
        row = {"epoch": self.epoch, **self._training(), **measured}
        self.rows.append(row)
        if self._is_better(row):
            self.best_epoch = self.epoch
            weights = self.parts.judged()
            if self.parts.place.is_first:
                self._weights = {k: x.clone() for k, x in weights.items()}
        self.epoch += 1
        training = self.parts.cell.training
        due = time.monotonic() - self._written >= training.checkpoint_every
        if self.parts.place.any(due) or self.is_over:
            self._write()
        if self.parts.place.is_first:
            self._log.add(row, self.epoch - 1)
            self._log.add(self._means(), self.epoch - 1)
            self._progress(self.epoch - 1, row[f"{training.selects_on}_{self._select}"])

    def _is_better(self, row: Row) -> bool:
        """Whether an epoch is better than all before it."""
        return self.best_epoch < 0 or self._score(row) > self._score(self.rows[self.best_epoch])

    def _score(self, row: Row) -> float:
        """How good an epoch is; lowest if the metric is NaN."""
        split = self.parts.cell.training.selects_on
        value = METRICS[self._select].sign * row[f"{split}_{self._select}"]
        return -math.inf if math.isnan(value) else value

    def _training(self) -> Row:
        """Loss and main metric over the samples of the epoch's steps, on all processes."""
        count = torch.tensor(self._counts, dtype=torch.float32)
        loss = torch.stack(self._losses).float().cpu()
        scores = torch.stack(self._scores).cpu()
        sums = torch.stack([(loss * count).sum(), scores.sum().float(), count.sum()])
        total, score, samples = distributed.sum_(sums).tolist()
        row: Row = {"train_loss": total / samples}
        if self.parts.method.turn is None:  # otherwise it would be that of single modalities
            row[f"train_{self.parts.data.task.main}"] = score / samples
        return row

    def _means(self) -> Row:
        """What the method did, on average over the steps."""
        found = self._metrics.items()
        return {f"method/{name}": float(total / count) for name, (total, count) in found}

    def _write(self) -> None:
        """Writes checkpoints, best weights first, since a resumed run must find them."""
        state = self.parts.state_dict()  # each process has its share
        weights, self._weights = self._weights, {}
        self._written = time.monotonic()  # on each process, as any may say that it is time
        if not self.parts.place.is_first:
            return
        if weights:
            best = {"epoch": self.best_epoch, "state_dict": weights, **self.about}
            self._save(best, self._best)
        self._hold.check()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_csv(self._table, columns, self.rows)
        self._save({**state, "record": {k: getattr(self, k) for k in _REMEMBERED}}, self._last)

    def _save(self, state: Mapping[str, Any], path: Path) -> None:
        with self._hold.replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # with a path, it would not report a full disk

    def _lap(self) -> float:
        """Seconds since the last call, once a GPU has finished its work."""
        if self.parts.place.device.type == "cuda":
            torch.cuda.synchronize()
        before, self._lapped = self._lapped, time.perf_counter()
        return self._lapped - before


_REMEMBERED = ("epoch", "rows", "best_epoch", "seconds", "flops", "steps")
