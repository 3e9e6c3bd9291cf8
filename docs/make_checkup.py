"""Draws the README's checkups: a model of which one modality is suppressed, and what repairs it.

    python docs/make_checkup.py [--data ../shared/data] [--work runs/checkup]

Stopped and started again it goes on where it was. Takes a quarter of an hour on two cores.
"""

import argparse
from pathlib import Path

from make_results import EVENLY, HERE, SETS, comparison, converted, run

NAME = "av_digits"
METHODS = ("joint", "multi_loss")
SEEDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "checkup")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    _, options, training, _ = next(entry for entry in SETS if entry[0] == NAME)
    file = converted(arguments.data, arguments.work, NAME, options)
    out = arguments.work / NAME
    command = comparison(",".join(METHODS), SEEDS, training)
    run([EVENLY, *command, "--data", file, "--out", out])
    for method in METHODS:
        runs = [out / "runs" / f"{method}-{seed}" for seed in range(SEEDS)]
        picture = HERE / f"checkup-{method}.svg"
        run([EVENLY, "checkup", *runs, "--out", arguments.work / method, "--figure", picture])


if __name__ == "__main__":
    main()
