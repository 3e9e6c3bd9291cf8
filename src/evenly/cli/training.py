"""The options of commands that train, and the settings they make."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from evenly.cli.parser import Parser, add_trust
from evenly.cli.sources import add_reading, check_source
from evenly.lab.run.settings import Training, check_counts

if TYPE_CHECKING:
    from evenly.lab.many.engine import Pool

_FOLDER = Path(__file__).parents[1] / "lab" / "recipes"
RECIPES = {path.stem: path for path in _FOLDER.glob("*.yaml")}
"""Files of published settings, by name."""
GROUPS = {
    "data": (
        *("data", "task", "recipe", "source", "folder", "modalities", "label", "splits"),
        *("readers", "skip_broken", "stream", "noise", "missing", "missing_test"),
        "limit_samples",
    ),
    "model": ("encoders", "width", "fusion", "missing_token"),
    "training": (
        *("epochs", "patience", "batch_size", "accumulate", "optimizer", "lr", "schedule"),
        *("lr_step", "warmup", "lr_scale", "clip", "ema", "weight_decay", "class_weights"),
        *("label_smoothing", "focal", "loss", "augment", "precision", "threads"),
    ),
    "evaluation": ("select", "metrics", "protocol", "diagnose_every"),
    "output": ("out", "figure", "logger", "checkpoint_every", "resume"),
    "cluster": ("jobs", "runs_per_device", "cluster", "storage", "devices", "nodes", "strategy"),
}
"""The options that commands with a training share, by heading of the help text."""
SETTINGS = get_type_hints(Training)
"""The type of each setting of a training, by its name."""


def add_training(
    one: Parser, *, without: Collection[str] = (), naming: str = "the file of --config"
) -> None:
    """Adds the settings of a training, and of its data and logs.

    Args:
        one: The command's parser.
        without: Settings that would have no effect in this command; they keep their defaults.
        naming: What may name code by import path, see `add_trust`.
    """
    one.sections = GROUPS
    one.add_class_arguments(Training, as_group=False, skip=set(without) & SETTINGS.keys())
    one.hints |= {name: hint for name, hint in SETTINGS.items() if name not in without}
    one.add_argument(
        "--config",
        action="config",
        help="a YAML file of settings, such as --print-config prints. Options override it",
    )
    (printing,) = (action for action in one._actions if action.dest == "print_config")
    printing.help = "print all settings as YAML, and exit"
    add_trust(one, naming)
    if "logger" not in without:
        one.add_argument(
            "--logger",
            default="tensorboard",
            help="where to log: tensorboard, wandb or mlflow, or several joined by commas. Weights "
            "& Biases stays offline in the output folder unless WANDB_MODE=online ('wandb sync' "
            "uploads it). MLflow writes mlflow.db there unless MLFLOW_TRACKING_URI is set",
        )
    one.add_argument(
        "--recipe",
        type=str | None,
        help="settings for a data set, published ones where there are any; use it with --folder, "
        "or with --data and a store that was prepared as the recipe says. Options override it. "
        f"One of {', '.join(sorted(RECIPES))}",
    )
    one.add_argument(
        "--source",
        type=str | None,
        help="a data set to prepare, by name, with its files in --folder. The store is kept with "
        "the results. If --data is a store, the data set that it must hold",
    )
    add_reading(one)


def add_pool(one: ArgumentParser) -> None:
    """Adds the options for where runs are done, and how many at a time."""
    one.add_argument(
        "--jobs",
        type=int | None,
        help="runs at a time; the results do not depend on it (default: one per GPU; without GPUs "
        "as many as the cores allow; on a cluster as many as it has room for)",
    )
    one.add_argument(
        "--cluster",
        default="",
        help="address of a Dask cluster whose workers do the runs, such as tcp://HOST:8786. The "
        "workers must see --out and the data under the same paths",
    )
    one.add_argument(
        "--runs_per_device",
        type=int,
        default=1,
        help="runs at a time on each GPU, for small models",
    )


def training_of(options: Namespace) -> Training:
    """The settings given to a command."""
    training = Training(**{name: options[name] for name in SETTINGS if name in options})
    check_source(training, options)
    return training


def out_folder(options: Namespace, usual: Path) -> Path:
    """Where a command writes."""
    return Path(options.out) if options.out else usual


def pool_of(options: Namespace) -> "Callable[[Training], Pool]":
    """Makes the pool for the runs of a training."""
    from evenly.lab.many.pools import pool

    check_counts(jobs=options.jobs, runs_per_device=options.runs_per_device)
    return partial(
        pool,
        jobs=options.jobs,
        cluster=options.cluster,
        runs_per_device=options.runs_per_device,
    )


def seeds_of(options: Namespace, training: Training, usual: int) -> int:
    """The requested number of seeds; published tables have one."""
    if options.seeds is not None:
        return int(options.seeds)
    return 1 if training.protocol == "paper" else usual


def methods_in(text: str) -> Callable[[Iterable[str]], list[str]]:
    """The methods that a text requests, given the data's modalities."""

    def methods(modalities: Iterable[str]) -> list[str]:
        from evenly.lab.run.build import expanded
        from evenly.spec import split

        return expanded(split(text), modalities)

    return methods


def folder_name(options: Namespace, training: Training) -> str:
    """A folder name: the recipe's, or the data set's, or that of its file or folder.

    A trial on few samples has its own folder.
    """
    from evenly.data.catalogue import stem_of

    data = options.recipe or (options.source if options.folder else training.data)
    name = Path(data).stem if data.lower().endswith(".npz") else stem_of(Path(data))
    name = name.partition("(")[0]
    return name if training.limit_samples is None else f"{name}-{training.limit_samples}"
