"""The options of commands that train, and what they come to."""

from collections.abc import Callable, Iterable
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
"""By name, files of published settings."""


def add_training(one: Parser) -> None:
    """The settings of a training, and where they, their data and their logs are."""
    one.add_class_arguments(Training, as_group=False)
    one.hints |= get_type_hints(Training)
    one.add_argument(
        "--config",
        action="config",
        help="a YAML file of these settings, which other options change, such as what "
        "--print_config prints",
    )
    add_trust(one, "the file of --config")
    one.add_argument(
        "--logger",
        default="tensorboard",
        help="tensorboard, wandb, mlflow, or several with commas: settings, metrics of each epoch "
        "and what a run ends with. Weights & Biases stays offline, in the folder's wandb "
        "('wandb sync' sends it), unless WANDB_MODE=online; MLflow writes the folder's mlflow.db, "
        "unless MLFLOW_TRACKING_URI is another place",
    )
    one.add_argument(
        "--recipe",
        type=str | None,
        help="published settings of a data set, which other options change: "
        f"{', '.join(sorted(RECIPES))}; with --folder, or with --data and a store",
    )
    one.add_argument(
        "--source",
        type=str | None,
        help="a data set by name, as 'evenly prepare' takes it; it and a table as --data are "
        "prepared into a store beside the results",
    )
    add_reading(one)


def add_pool(one: ArgumentParser) -> None:
    """Where the runs are done, and how many at a time."""
    one.add_argument(
        "--jobs",
        type=int | None,
        help="runs at the same time; figures do not depend on it (default: on this machine one for "
        "each GPU, or else for each core and thread; as many as a cluster has room for)",
    )
    one.add_argument(
        "--cluster",
        default="",
        help="address of a Dask cluster, such as tcp://HOST:8786, whose workers do the runs; they "
        "see --out and the data under the same paths",
    )
    one.add_argument(
        "--runs_per_device",
        type=int,
        default=1,
        help="runs at the same time on each GPU, where they are small",
    )


def training_of(options: Namespace) -> Training:
    """The settings that a command is given."""
    names = Training.__dataclass_fields__
    training = Training(**{name: getattr(options, name) for name in names})
    check_source(training, options)
    return training


def out_folder(options: Namespace, usual: Path) -> Path:
    """Where a command writes."""
    return Path(options.out) if options.out else usual


def pool_of(options: Namespace) -> "Callable[[Training], Pool]":
    """Makes what the runs of a training are done in."""
    from evenly.lab.many.pools import pool

    check_counts(jobs=options.jobs, runs_per_device=options.runs_per_device)
    return partial(
        pool,
        jobs=options.jobs,
        cluster=options.cluster,
        runs_per_device=options.runs_per_device,
    )


def seeds_of(options: Namespace, training: Training, usual: int) -> int:
    """Those asked for; published tables have one."""
    if options.seeds is not None:
        return int(options.seeds)
    return 1 if training.protocol == "paper" else usual


def methods_in(text: str) -> Callable[[Iterable[str]], list[str]]:
    """The methods that a text asks for, of data with some modalities."""

    def methods(modalities: Iterable[str]) -> list[str]:
        from evenly.lab.run.build import expanded
        from evenly.spec import split

        return expanded(split(text), modalities)

    return methods


def folder_name(options: Namespace, training: Training) -> str:
    """A folder name: the recipe's, or the data set's, or that of its file or folder.

    A trial on few samples has a folder of its own.
    """
    from evenly.data.catalogue import stem_of

    data = options.recipe or (options.source if options.folder else training.data)
    name = Path(data).stem if data.lower().endswith(".npz") else stem_of(Path(data))
    name = name.partition("(")[0]
    return name if training.limit_samples is None else f"{name}-{training.limit_samples}"
