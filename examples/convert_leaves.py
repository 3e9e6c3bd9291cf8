"""Leaves of 100 species to one .npz file: modalities `margin`, `shape` and `texture`.

64 values each for 16 leaves per species: 10 / 2 / 4 for training, validation and testing. Margin
and shape come from the same leaf, texture from a leaf of the same species. The three complement
each other: logistic regression reaches 82 % on the best one and 98 % on all.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "leaves"), argv, "leaves.npz")
    save_npz(
        arguments.out,
        source["label"],
        source["split"],
        {name: source[name] for name in ("margin", "shape", "texture")},
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(source["split"])
    print(f"{arguments.out}: {train} / {val} / {test} leaves, margin, shape and texture")


if __name__ == "__main__":
    main()
