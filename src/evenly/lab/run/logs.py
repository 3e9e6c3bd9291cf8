"""Where a run is logged while it trains: TensorBoard, Weights & Biases, MLflow.

Logs copy what is in the run's own files. They are not part of the run's settings, and results do
not depend on them.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, runtime_checkable

from evenly.errors import UserError, UserRuntimeError
from evenly.files import file_address, write_text
from evenly.hidden import hidden, hidden_address
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell
from evenly.stop import unstopped
from evenly.suggest import unknown

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""The package to install for each logger, whose import name is the logger's."""


@dataclass(frozen=True)
class Logs:
    """How the runs of a command are logged.

    Attributes:
        names: Names of the loggers.
        folder: The command's folder, where Weights & Biases and MLflow write unless their own
            variables say otherwise. TensorBoard writes into the folder of the run.
    """

    names: tuple[str, ...] = ("tensorboard",)
    folder: Path = Path()

    @staticmethod
    def of(text: str, folder: Path) -> "Logs":
        """The loggers named in a text, separated by commas.

        Raises:
            ValueError: If there is no such logger.
            RuntimeError: If its package is missing.
        """
        names = tuple(dict.fromkeys(text.split(",")))
        if not text:
            raise UserError(
                f"--logger is empty. Give {', '.join(PACKAGES)}, or leave it out for tensorboard."
            )
        for name in names:
            if name not in PACKAGES:
                raise unknown("logger", name, PACKAGES)
            if find_spec(name) is None:
                raise UserRuntimeError(
                    f"--logger {name} needs a package. Install it with pip install "
                    f"{PACKAGES[name]}."
                )
        return Logs(names, folder)

    @property
    def mlflow(self) -> str:
        """Where MLflow keeps its runs."""
        own = file_address(self.folder / "mlflow.db")
        return os.environ.get("MLFLOW_TRACKING_URI", own.render_as_string())

    def prepare(self) -> None:
        """Creates what runs share, before several of them do so at the same time."""
        if "mlflow" not in self.names:
            return
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        _quieten()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(self.mlflow)
            known = client.get_experiment_by_name(_experiment())
        except MlflowException as error:
            said = hidden(str(error).strip().partition("\n")[0])
            raise UserRuntimeError(
                f"--logger mlflow: {hidden_address(self.mlflow)} does not answer ({said}). Check "
                "MLFLOW_TRACKING_URI."
            ) from error
        if known is None:
            with suppress(MlflowException):  # another was faster; or the first run says why
                client.create_experiment(_experiment())


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "evenly")


def _quieten() -> None:
    """Suppresses messages about things that go well."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@runtime_checkable
class Logger(Protocol):
    """Where a run is logged."""

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics of an epoch."""

    def close(self, *, failed: bool) -> None:
        """Ends the log."""


@dataclass
class RunLog:
    """The log of one run; a resumed run continues it.

    Attributes:
        logs: How it is logged.
        cell: What runs.
        folder: Folder of the run.
        settings: Settings of the run, which are logged, too.
    """

    logs: Logs
    cell: Cell
    folder: Path
    settings: Mapping[str, Any]
    _loggers: list[Logger] = field(default_factory=list)

    def start(self) -> None:
        """Starts the loggers, and logs the settings."""
        _quieten()
        make: dict[str, Callable[[RunLog], Logger]]
        make = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
        for name in self.logs.names:
            self._loggers.append(make[name](self))

    def add(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Logs the metrics of an epoch."""
        plain = {_plain(name): float(value) for name, value in metrics.items()}
        for logger in self._loggers if plain else ():
            logger.add(plain, step)

    def finish(self, result: Result) -> None:
        """Logs the run's result."""
        names = ("best_epoch", "steps", "seconds", "peak_memory_mb", "flops")
        known = {name: getattr(result, name) for name in names}
        final = {name: float(value) for name, value in known.items() if value is not None}
        for split, metrics in result.metrics.items():
            final |= {f"selected/{split}_{name}": value for name, value in metrics.items()}
        self.add(final, result.epochs)

    def close(self, *, failed: bool = False) -> None:
        """Ends the log; otherwise the run's process would lose what is not yet written."""
        for logger in self._loggers:
            logger.close(failed=failed)

    def known(self, name: str) -> str | None:
        """The name by which a logger knows this run, if it was started before."""
        path = self.folder / "loggers.json"
        return json.loads(path.read_text("utf-8")).get(name) if path.is_file() else None

    def remember(self, name: str, known: str) -> None:
        """Records that name."""
        path = self.folder / "loggers.json"
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        write_text(path, json.dumps({**before, name: known}) + "\n")


class TensorBoard:
    """Event files in the folder of the run."""

    def __init__(self, log: RunLog) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(log.folder)
        plain = {
            name: value if isinstance(value, bool | str | int | float) else str(value)
            for name, value in log.settings.items()
        }
        for summary in hparams(plain, {}):
            self._writer._get_file_writer().add_summary(summary)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics of an epoch."""
        with unstopped():  # or its queue could stay locked, and `close` would wait forever
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """Weights & Biases, in the command's folder until someone uploads it."""

    def __init__(self, log: RunLog) -> None:
        import wandb

        log.logs.folder.mkdir(parents=True, exist_ok=True)
        known = log.known("wandb") or token_hex(4)
        log.remember("wandb", known)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "evenly"),
            name=log.cell.folder,
            id=known,
            resume="allow",
            dir=log.logs.folder,
            mode=None if "WANDB_MODE" in os.environ else "offline",
            config=dict(log.settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Not its own step, which only grows: a resumed run logs some epochs again.
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics of an epoch."""
        self._run.log({**metrics, "epoch": step})

    def close(self, *, failed: bool) -> None:
        """Ends it and its writing process."""
        import wandb

        self._run.finish(exit_code=int(failed))
        wandb.teardown(int(failed))  # its own process may still be writing


class MLflow:
    """A run of an experiment, in the folder's database or where MLflow's variables say."""

    def __init__(self, log: RunLog) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunStatus

        self._client = MlflowClient(log.logs.mlflow)
        self._run: str | None = log.known("mlflow")
        if self._run is None:
            experiment = self._client.get_experiment_by_name(_experiment())
            number = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(_experiment())
            )
            self._run = self._client.create_run(number, run_name=log.cell.folder).info.run_id
            log.remember("mlflow", self._run)
            params = [Param(name, str(value)) for name, value in log.settings.items()]
            self._client.log_batch(self._run, params=params)
        else:
            self._client.update_run(self._run, RunStatus.to_string(RunStatus.RUNNING))

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics of an epoch."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        found = [Metric(name, value, now, step) for name, value in metrics.items()]
        for some in range(0, len(found), _AT_ONCE):
            self._client.log_batch(self._run, metrics=found[some : some + _AT_ONCE])

    def close(self, *, failed: bool) -> None:
        """Ends it."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


_AT_ONCE = 1000
"""Metrics that MLflow accepts in one request."""


def _plain(name: str) -> str:
    """A metric name that MLflow accepts; users give classes and modalities any names."""
    plain = re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)
    return plain if os.path.normpath(plain) == plain else re.sub(r"[/.]", "_", plain)
