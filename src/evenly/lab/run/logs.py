"""Where a run is logged while it trains: TensorBoard, Weights & Biases, MLflow, by Lightning.

What is logged is a copy of what the run's own files hold. It is no part of the run's settings, and
the figures do not depend on it.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from evenly.files import file_address, write_text
from evenly.hidden import hidden, hidden_address
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell
from evenly.suggest import unknown

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""By logger, what to install for it; it is imported under the logger's name."""


@dataclass(frozen=True)
class Logs:
    """How the runs of a command are logged.

    Attributes:
        names: Of the loggers.
        folder: That of the command, where Weights & Biases and MLflow write unless their own
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
            raise ValueError(
                f"--logger names none. Give {', '.join(PACKAGES)}, or leave it out, which is "
                "tensorboard."
            )
        for name in names:
            if name not in PACKAGES:
                raise unknown("logger", name, PACKAGES)
            if find_spec(name) is None:
                raise RuntimeError(f"--logger {name} needs a package: pip install {PACKAGES[name]}")
        return Logs(names, folder)

    @property
    def mlflow(self) -> str:
        """Where MLflow keeps its runs."""
        own = file_address(self.folder / "mlflow.db")
        return os.environ.get("MLFLOW_TRACKING_URI", own.render_as_string())

    def prepare(self) -> None:
        """Makes what runs share, which several of them would make at the same time."""
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
            raise RuntimeError(
                f"--logger mlflow: {hidden_address(self.mlflow)} does not answer ({said}). Check "
                "MLFLOW_TRACKING_URI."
            ) from error
        if known is None:
            with suppress(MlflowException):  # another worker was faster; or the first run says why
                client.create_experiment(_experiment())


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "evenly")


def _quieten() -> None:
    """Keeps off the screen what is said of things that go well."""
    for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass
class RunLog:
    """The log of one run; a run that is taken up again goes on with it.

    Attributes:
        logs: How it is logged.
        cell: What runs.
        folder: Of the run.
        settings: Of the run, which are logged, too.
        loggers: As Lightning's trainer takes them, once it has started.
    """

    logs: Logs
    cell: Cell
    folder: Path
    settings: Mapping[str, Any]
    loggers: "list[Logger]" = field(default_factory=list)

    def start(self) -> None:
        """Makes the loggers, and logs the settings."""
        _quieten()
        make = {"tensorboard": self._tensorboard, "wandb": self._wandb, "mlflow": self._mlflow}
        for name in self.logs.names:
            self.loggers.append(make[name]())
            self.loggers[-1].log_hyperparams(dict(self.settings))

    def add(self, metrics: Mapping[str, int | float], step: int) -> None:
        """Logs the metrics of an epoch."""
        plain = {_plain(name): value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(plain, step)

    def finish(self, result: Result) -> None:
        """Logs what the run ended with."""
        names = ("best_epoch", "steps", "seconds", "peak_memory_mb", "flops")
        final = {name: float(getattr(result, name)) for name in names}
        for split, metrics in result.metrics.items():
            final |= {f"selected/{split}_{name}": value for name, value in metrics.items()}
        self.add(final, result.epochs)

    def close(self, *, failed: bool = False) -> None:
        """Ends the log; a process of the run's own would take with it what is not written yet."""
        for name, logger in zip(self.logs.names, self.loggers, strict=False):
            if name == "wandb":
                import wandb

                logger.experiment.finish(exit_code=int(failed))  # type: ignore[attr-defined]
                wandb.teardown(int(failed))  # its own process may still be writing
            else:
                logger.finalize("failed" if failed else "success")

    def _tensorboard(self) -> "Logger":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(self.folder, name="", version="", default_hp_metric=False)

    def _wandb(self) -> "WandbLogger":
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        self.logs.folder.mkdir(parents=True, exist_ok=True)
        known = self._known("wandb") or token_hex(4)
        self._remember("wandb", known)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "evenly"),
            name=self.cell.folder,
            id=known,
            resume="allow",
            dir=self.logs.folder,
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step")
        return WandbLogger(experiment=run)

    def _mlflow(self) -> "MLFlowLogger":
        from lightning.pytorch.loggers import MLFlowLogger

        logger = MLFlowLogger(
            _experiment(), self.cell.folder, self.logs.mlflow, run_id=self._known("mlflow")
        )
        self._remember("mlflow", logger.run_id)
        return logger

    def _known(self, name: str) -> str | None:
        """Under which name a logger knows this run, if it was begun before."""
        path = self.folder / "loggers.json"
        return json.loads(path.read_text("utf-8")).get(name) if path.is_file() else None

    def _remember(self, name: str, known: str | None) -> None:
        path = self.folder / "loggers.json"
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        write_text(path, json.dumps({**before, name: known}) + "\n")


def _plain(name: str) -> str:
    """The name of a metric as MLflow takes it; users call classes and modalities what they like."""
    plain = re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)
    return plain if os.path.normpath(plain) == plain else re.sub(r"[/.]", "_", plain)
