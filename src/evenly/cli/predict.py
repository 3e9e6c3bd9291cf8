"""evenly predict: the predictions of a trained run, as CSV."""

import csv
import io
from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser, add_trust
from evenly.cli.sources import add_skipping
from evenly.suggest import unknown


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Writes the predictions of a trained run: one line per sample, with the probability of "
        "each class\nor label, or the predicted numbers. Samples are listed by their name in the "
        "data, or else by\ntheir row over all splits: from 'row 1' in a table, from 0 elsewhere. "
        "Predictions are computed\non the CPU in 32 bits, so they may differ slightly from the "
        "test of a run in bf16."
    )
    one.add_argument("run", help="the folder of a run, such as runs/digits/runs/joint-0")
    one.add_argument(
        "--data",
        required=True,
        help="data as for 'evenly compare --data'. In a table or .npz file, labels and modalities "
        "may be missing",
    )
    one.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="the split of an .npz file, a store or a built-in data set (default: test); of a "
        "table, all rows are predicted",
    )
    one.add_argument("--without", type=str | None, help="modalities to leave out: audio,text")
    add_skipping(one)
    add_trust(one, "the run")
    one.add_argument("--out", type=str | None, help="a .csv file (default: print to the screen)")
    return one


def run(options: Namespace) -> None:
    """Predicts, and prints or writes the lines."""
    from evenly.data.numbers import shown
    from evenly.files import write_text
    from evenly.lab.trained.load import load_run
    from evenly.lab.trained.predict import predictions

    trained = load_run(Path(options.run), trust=options.trust)
    without = options.without.split(",") if options.without else []
    for name in without:
        if name not in trained.modalities:
            raise unknown(f"modality of {options.run}", name, trained.modalities)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = trained.task.names
    is_number = trained.task.name == "number"
    columns = [] if is_number and len(names) == 1 else names
    writer.writerow(["sample", "label", "predicted", *columns])
    said = predictions(
        trained, options.data, options.split, without, skip_broken=options.skip_broken
    )
    for found in said:
        said_of_it = trained.task.predicted(found.answers)
        rounded = [shown(value) if is_number else f"{value:.6g}" for value in found.answers]
        writer.writerow([found.sample, found.label, said_of_it, *rounded[: len(columns)]])
    if options.out:
        write_text(Path(options.out), text.getvalue())
        print(f"predictions: {options.out}")
    else:
        print(text.getvalue(), end="")
