"""evenly diagnose: purity, gap and strength of the features of any model."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.errors import UserError


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Measures purity, gap and strength of the features of any model; trains nothing.\n\n"
        "The .npz file holds 'labels' (N), 'split' (N; train and val, or 0 and 1), optionally\n"
        "'class_names', and for each modality an array (N, width): the encoder's pooled output."
    )
    one.add_argument("file", help="a .npz file of features, one vector per sample and modality")
    one.add_argument(
        "--gap",
        default="paper",
        choices=("paper", "matched", "shared", "stable"),
        help="the estimator of the gap. paper: as published; matched: on as many training samples "
        "as validation samples; shared: with the training split's clusters; stable: corrects for "
        "the sizes and class shares of the splits, and counts a gap of up to three standard errors "
        "as none",
    )
    one.add_argument("--restarts", type=int, default=10, help="restarts of each k-means")
    one.add_argument(
        "--sample", type=int | None, help="rows used by the restarts, if a split has more"
    )
    one.add_argument("--seed", type=int, default=0, help="seed of the clusterings")
    return one


def run(options: Namespace) -> None:
    """Measures, and prints the table."""
    from evenly import Features
    from evenly import diagnose as measure
    from evenly.data import Split, load_npz

    data = load_npz(Path(options.file), needed=("train", "val"))
    for name, modality in data.modalities.items():
        if modality.kind != "vector":
            raise UserError(
                f"a diagnosis takes features, one vector per sample, but '{name}' in "
                f"{options.file} has samples of shape {modality.shape}. Save the encoder's pooled "
                "output, (samples, width)."
            )

    def features(split: Split) -> Features:
        inputs: Any = split.__getitems__(range(len(split)))["inputs"]  # vectors, as checked
        return Features({name: x.float() for name, x in inputs.items()}, split.target)

    found = measure(
        features(data.split("train")),
        features(data.split("val")),
        gap=options.gap,
        restarts=options.restarts,
        sample=options.sample,
        seed=options.seed,
    )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    print(found)
