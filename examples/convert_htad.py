"""HTAD home tasks to one .npz file: modalities `audio` and `accelerometer`, 7 tasks.

36 statistics of sound (MFCCs) and 16 of a wrist's acceleration for each window. The first 60 % of
each recording are for training, the next 15 % for validation, the rest for testing: neighbouring
windows are alike, so a random split would leak. The splits still share persons and rooms. The
data's terms forbid commercial use without the author's permission.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "htad"), argv, "htad.npz")
    save_npz(
        arguments.out,
        source["label"],
        source["split"],
        {name: source[name] for name in ("audio", "accelerometer")},
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(source["split"])
    print(f"{arguments.out}: {train} / {val} / {test} windows, audio and accelerometer")


if __name__ == "__main__":
    main()
