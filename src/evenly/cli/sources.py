"""Raw files that a command reads, and the store that it makes from them."""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from evenly.errors import UserError
from evenly.hidden import hidden_argument
from evenly.lab.run.settings import Training, check_counts
from evenly.spec import Spec, parse
from evenly.suggest import unknown

if TYPE_CHECKING:
    from evenly.data.raw import Source
    from evenly.data.raw.sets import Official
    from evenly.data.store import Description
    from evenly.data.tasks import Asked


def add_reading(one: ArgumentParser) -> None:
    """Adds the options for reading raw files."""
    one.add_argument("--folder", type=str | None, help="the folder of the data set's files")
    one.add_argument(
        "--modalities",
        type=str | None,
        help="columns of a table to use as modalities: audio,text (default: all)",
    )
    one.add_argument(
        "--label", type=str | None, help="the column of a table with the labels (default: label)"
    )
    one.add_argument(
        "--splits",
        type=dict[str, str],
        default={},
        help="which splits of a table to use, if the detected ones are wrong: "
        '\'{"train": "train", "test": "validation"}\'. Join several by +; the others are left out',
    )
    one.add_argument(
        "--readers",
        type=dict[str, str],
        default={},
        help="how to read a column of a table, if the detected way is wrong: "
        "'{\"audio\": \"spectrogram(front=mel,seconds=5)\"}'. See 'evenly prepare --help'",
    )
    add_skipping(one)
    one.add_argument(
        "--stream",
        action="store_true",
        help="decode .tar shards in every epoch instead of storing what they hold. Use it if "
        "a store would not fit on your disk; results are the same",
    )


def add_skipping(one: ArgumentParser) -> None:
    """Adds the option for broken files."""
    one.add_argument(
        "--skip-broken", action="store_true", help="leave out samples with broken files"
    )


def source_of(text: str, options: Namespace, task: "Asked" = "auto") -> "Source":
    """Which raw files to read, and how: from a table, or a data set in the user's folder."""
    from evenly.data.catalogue import is_raw
    from evenly.data.raw import table
    from evenly.data.raw.sets import SETS

    if text.partition("(")[0] not in SETS and is_raw(text):
        if options.folder:
            raise UserError("--folder needs a data set by name; a table names its own files.")
        modalities = options.modalities.split(",") if options.modalities else None
        return table(
            Path(text),
            modalities,
            options.readers,
            label=options.label,
            splits=options.splits,
            task=task,
        )
    check_reading(text, options)
    source = official_source(text, options.folder, task)
    if task not in ("auto", source.task.name):
        raise UserError(f"{source.name} has the task {source.task.name}. Leave --task {task} out.")
    return source


def check_reading(text: str, options: Namespace) -> None:
    """Raises if options for reading a table are given without one."""
    for option in ("modalities", "label", "splits", "readers"):
        if options[option]:
            raise UserError(
                f"--{option} needs a table or a folder of files; found '{text}'. Leave it out for "
                "an .npz file. Prepare a store again with it. A data set by name has settings "
                "instead: 'evenly datasets NAME' lists them."
            )


def official_source(text: str, folder: str | None, task: "Asked" = "auto") -> "Source":
    """A data set in the user's folder, for a task if it has several."""
    known, spec = _official(text, task)
    if folder is None:
        raise UserError(
            f"{spec.name} needs --folder, the folder of its files. 'evenly datasets {spec.name}' "
            "tells you where to get them."
        )
    return known.open(Path(folder), spec)


def _official(text: str, task: "Asked") -> "tuple[Official, Spec]":
    """What is known of an official data set, and the settings asked of it."""
    from evenly.data.raw.sets import SETS

    spec = parse(text)
    if spec.name not in SETS:
        raise unknown("official data set", spec.name, SETS, "or the path of a table or folder")
    known = SETS[spec.name]
    if task != "auto" and "task" in known.settings:
        spec = replace(spec, settings={"task": task, **spec.settings})
    return known, spec


def _check_store(training: Training, options: Namespace) -> None:
    """Raises if a store holds another official data set than --source or a recipe names."""
    from evenly.data.store import describe, is_store

    folder = Path(training.data)
    if options.source is None or not is_store(folder):
        return
    official = describe(folder).official
    if not official:  # of a table, or of a function
        return
    known, spec = _official(options.source, training.task)
    held, asked = parse(official), known.whole(spec)
    if held == asked:
        return
    differ = [x for x in asked.settings if held.settings.get(x) != asked.settings[x]]
    shown = [
        Spec(one.name, {x: one.settings[x] for x in differ if held.name == asked.name}).text
        for one in (held, asked)
    ]
    raise UserError(
        f"{folder} holds {shown[0]}, but {shown[1]} is asked for, by --source or a recipe. Prepare "
        "that with 'evenly prepare', or train on what the store holds with "
        f"{shlex.join(['--source', held.text])}."
    )


def make_store(
    source: "Source", out: Path, workers: int | None, options: Namespace
) -> "Description":
    """Prepares a store, and prints how it is read.

    Args:
        source: What to read.
        out: The store's folder.
        workers: Processes that decode; by default as many as there are cores.
        options: What to do about broken files, and whether to stream shards.
    """
    from evenly.child import cores
    from evenly.data.raw import prepare, spelled
    from evenly.data.raw.readers import KEPT

    asked = {name: spelled(reader, also=KEPT) for name, reader in source.readers.items()}
    brief = {name: text if len(text) < 90 else f"{text[:86]}...)" for name, text in asked.items()}
    read = "; ".join(f"{name} as {text}" for name, text in brief.items())
    print(f"note: read: {read}.", file=sys.stderr)
    made_by = shlex.join(["evenly", *map(hidden_argument, sys.argv[1:])])
    return prepare(
        source,
        out,
        workers=workers or cores(),
        skip_broken=options.skip_broken,
        stream=options.stream,
        made_by=made_by,
    )


def check_source(training: Training, options: Namespace) -> None:
    """Raises if data, source and folder do not fit together."""
    from evenly.data.catalogue import TABLES

    if options.source is not None and options.source.lower().endswith(TABLES):
        raise UserError(
            f"--source takes the name of a data set; found {options.source}. Give a table "
            "as --data."
        )
    if options.folder is not None and options.source is None:
        raise UserError("--folder needs --source, or a --recipe that names one.")
    if options.folder is not None and training.data != Training.data:
        raise UserError(
            f"--folder selects {options.source}, but --data selects {training.data}. Give only one "
            "of them."
        )


def prepared(
    training: Training,
    out: Path,
    options: Namespace,
    methods: Callable[[Iterable[str]], list[str]],
) -> Training:
    """The training, on the data prepared beside its results from a table, a folder or a function.

    Args:
        training: The requested training.
        out: The folder of the results.
        options: How raw files are read.
        methods: The methods to train, given modalities; their names are checked before anything is
            decoded.
    """
    from evenly.data.catalogue import is_raw
    from evenly.data.datasets import source_of as datasets_source
    from evenly.data.own import given_by, is_arrays, is_function

    given: Any = None
    if options.folder is None and is_function(training.data):
        given = given_by(training.data)
        if is_arrays(given):
            return _written(training, given, out, options)
    if given is not None:
        source = datasets_source(
            given,
            modalities=options.modalities.split(",") if options.modalities else None,
            readers=options.readers,
            label=options.label,
            splits=options.splits,
            task=training.task,
        )
    elif options.folder is not None:
        source = source_of(options.source, options, training.task)
    elif is_raw(training.data):
        source = source_of(training.data, options, training.task)
    elif options.source is not None and training.data == Training.data:
        raise UserError(
            f"{options.source} needs its files: give their folder with --folder, or a store made "
            "by 'evenly prepare' with --data."
        )
    else:
        _check_read(training.data, options)
        _check_store(training, options)
        return training
    _check_asked(training, source, options, methods)
    _check_alone(options)
    if training.limit_samples is not None:
        source = source.limited(training.limit_samples)
    make_store(source, out / "store", None, options)
    return replace(training, data=str(out / "store"))


def _written(
    training: Training,
    given: Mapping[str, Any],
    out: Path,
    options: Namespace,
) -> Training:
    """The training, reading a file of the arrays that a function returned."""
    from evenly.data.own import written

    _check_read(training.data, options)
    _check_alone(options)
    name = parse(training.data).name.rpartition(".")[2]
    return replace(training, data=str(written(training.data, given, out / f"{name}.npz")))


def _check_read(data: str, options: Namespace) -> None:
    """Raises if options for reading raw files are given with data that have none."""
    check_reading(data, options)
    if options.stream:
        raise UserError(
            f"--stream goes with .tar shards; found {data}. Leave it out: a store that was "
            "prepared with it is streamed without being told so."
        )


def _check_alone(options: Namespace) -> None:
    """Raises if several commands would each prepare data that all of them read."""
    if getattr(options, "storage", None):
        raise UserError(
            "commands that share a --storage must share one store. Make it first with 'evenly "
            "prepare', and pass it as --data."
        )


def _check_asked(
    training: Training,
    source: "Source",
    options: Namespace,
    methods: Callable[[Iterable[str]], list[str]],
) -> None:
    """Raises if a method, an encoder or the like is unknown, or a number is invalid."""
    from evenly.lab.run.build import check_names, check_together
    from evenly.lab.run.settings import Cell

    check_counts(**{name: getattr(options, name, None) for name in ("seeds", "jobs", "trials")})
    for method in methods(source.readers):
        check_names(Cell(training, method, 0), source.name, source.readers)
        check_together(method)
