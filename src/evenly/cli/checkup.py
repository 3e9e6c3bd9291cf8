"""evenly checkup: what is wrong with each modality, and what to try."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from evenly.cli.parser import Parser, dashed
from evenly.cli.sources import prepared
from evenly.cli.training import add_training, folder_name, out_folder, training_of
from evenly.errors import UserError
from evenly.lab.run.settings import Training, check_counts, check_folder

if TYPE_CHECKING:
    from evenly.diagnosis.findings import Checkup

WITHOUT = (
    *("patience", "accumulate", "schedule", "lr_step", "warmup", "clip", "ema", "loss"),
    *("select", "metrics", "protocol", "missing_test", "diagnose_every"),
    *("devices", "nodes", "strategy", "checkpoint_every", "logger"),
)
"""Settings of a training without effect here: the short trainings are plain steps in one process,
of classes or labels, and keep nothing; nobody selects an epoch, and nobody reads the test split."""
OF_RUNS = ("runs", "data", "budget", "interactions", "out", "figure", "config", "trust")
"""The options that apply to runs; the others apply only to data."""


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Examines each modality of a trained model: how much there is to learn, how much the\n"
        "model has learnt, how much it uses, and whether it has memorised. Prints a verdict\n"
        "(learnt, suppressed, unused, scarce, over-trained or unclear) and what to try.\n"
        "Trains for a few epochs, and changes nothing in the run.\n\n"
        "  evenly checkup runs/digits/runs/joint-0   a trained run, or several seeds of it\n"
        "  evenly checkup --data my.npz              data; the model is trained for you"
    )
    one.add_argument(
        "runs",
        nargs="*",
        help="folders of runs, such as runs/digits/runs/joint-0. With runs, use --data only if "
        "their data have moved, to give the new path",
    )
    one.add_argument("--seed", type=int, default=0, help="seed of the model trained on --data")
    one.add_argument(
        "--budget",
        type=int | None,
        help="epochs of each short training (default: a third of the run's own, or 10 if that is "
        "more, but no more than the run; with --data, as many as --epochs)",
    )
    one.add_argument(
        "--interactions",
        action="store_true",
        help="for each pair of modalities, measure what both tell about the class, what only one "
        "tells, and what only both together tell",
    )
    one.add_argument(
        "--out",
        type=str | None,
        help="folder of checkup.html and checkup.json (default: the folder of the first run, or "
        "runs/DATA/checkup)",
    )
    one.add_argument("--figure", type=str | None, help="also draw a figure here: .svg or .png")
    add_training(one, without=WITHOUT, naming="a run or the file of --config")
    return one


def run(options: Namespace) -> None:
    """Checks up, writes the page and prints the text."""
    from evenly.files import write_text
    from evenly.report.checkup import write_checkup
    from evenly.report.checkup_picture import write_checkup_picture

    check_counts(budget=options.budget)
    _check_places(options)
    found, out, title, about = _of_runs(options) if options.runs else _of_data(options)
    write_text(out / "checkup.json", json.dumps(found.as_dict(), indent=1))
    page = write_checkup(found.as_dict(), out / "checkup.html", title=title, about=about)
    print(found)
    print(f"\npage: {page}")
    if options.figure:
        print(f"figure: {write_checkup_picture(found.as_dict(), Path(options.figure))}")


def _check_places(options: Namespace) -> None:
    """Raises, before anything is trained, if results could not be written."""
    from evenly.report.drawing import check_drawing

    if options.figure:
        check_drawing(Path(options.figure))
    if options.runs and (given := _changed(options)):
        raise UserError(
            f"a run keeps its own settings, so {', '.join(given)} would have no effect. Leave out "
            "options that only apply to --data."
        )


def _changed(options: Namespace) -> list[str]:
    """The options given together with runs that apply only to data."""
    usual = arguments().get_defaults()
    return [
        dashed(name)
        for name, value in usual.items()
        if name not in OF_RUNS and options[name] != value
    ]


def _made(out: Path) -> Path:
    """A folder for the results, made before anything is trained."""
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _further() -> str:
    """What a checkup costs beside the trainings that it always takes."""
    from evenly.diagnosis.gap import HALVINGS

    least, most = (2 * halvings for halvings in HALVINGS)
    return (
        "; alone once more if some encoders train slower or are frozen. Then the features of each "
        f"modality are clustered {least} to {most} times."
    )


def _of_runs(options: Namespace) -> "tuple[Checkup, Path, str, list[tuple[str, str]]]":
    """The checkup of runs, its folder, its title and its subject."""
    from evenly.diagnosis.findings import Checkup
    from evenly.lab.run.prepare import say
    from evenly.lab.trained.checkup import of_run, runs_opened, short, trained_for

    folders = [Path(text) for text in options.runs]
    moved = options.data if options.data != Training.data else None
    opened = runs_opened(folders, moved, trust=options.trust)
    cell = opened[0][1]
    out = _made(out_folder(options, folders[0]))
    epochs = options.budget or short(min(trained_for(*one[:2]) for one in opened))
    each = f" for each of {len(opened)} runs" if len(opened) > 1 else ""
    say([f"training each modality alone for {epochs} epochs{each}{_further()}"])
    found = Checkup.pooled(
        [
            of_run(one, weights, epochs, interactions=options.interactions)
            for _, one, weights in opened
        ]
    )
    about = [
        ("runs", ", ".join(str(folder) for folder in folders)),
        ("data", cell.training.data),
        ("method", cell.method),
        ("short trainings", f"{epochs} epochs"),
    ]
    return found, out, f"{cell.method} on {cell.training.data}", about


def _of_data(options: Namespace) -> "tuple[Checkup, Path, str, list[tuple[str, str]]]":
    """The same for data, on which a model is trained."""
    from evenly.lab.run.prepare import say
    from evenly.lab.run.settings import Cell
    from evenly.lab.trained.checkup import of_data

    training = training_of(options)
    out = out_folder(options, Path("runs") / folder_name(options, training) / "checkup")
    training = prepared(training, out, options, lambda _: ["joint"])
    _made(out)
    epochs = options.budget or training.epochs
    say([f"training jointly and each modality alone, for {epochs} epochs each{_further()}"])
    cell = Cell(training, "joint", options.seed)
    found = of_data(cell, epochs, interactions=options.interactions)
    about = [("data", training.data), ("trainings", f"{epochs} epochs each, seed {options.seed}")]
    return found, out, training.data, about
