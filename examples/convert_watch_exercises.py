"""Shoulder exercises to one .npz file: modalities `accelerometer` and `gyroscope`, 7 exercises.

Two smartwatch sensors at 50 Hz, three axes, windows of 128 steps. Subjects 1-6 are for training,
7-8 for validation, 9-10 for testing: windows of one recording almost repeat each other, and
subjects differ more than methods do.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "watch_exercises"), argv, "watch_exercises.npz")
    save_npz(
        arguments.out,
        source["label"],
        source["split"],
        {name: source[name] for name in ("accelerometer", "gyroscope")},
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(source["split"])
    print(f"{arguments.out}: {train} / {val} / {test} windows, accelerometer and gyroscope")


if __name__ == "__main__":
    main()
