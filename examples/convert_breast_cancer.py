"""Measurements of cell nuclei to one .npz file: three modalities of ten values, two classes.

For each of 569 tumours, benign or malignant, ten properties of the nuclei in an image (radius,
texture, ...): means, standard errors and worst values. These three modalities tell almost the same,
so balancing has the least to gain. scikit-learn includes the data (Wolberg, Street, Mangasarian,
UCI 1995, CC BY 4.0); nothing is downloaded. The stratified split, 60/20/20 %, is drawn here with
seed 0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from evenly.data import save_npz, stratified


def main(argv: Sequence[str] | None = None) -> None:
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("out", type=Path, help="the .npz file to write")
    out = command.parse_args(argv).out
    values, labels = load_breast_cancer(return_X_y=True)
    names = load_breast_cancer().target_names.tolist()
    split = np.empty(len(labels), np.int64)
    for number, rows in enumerate(stratified(torch.from_numpy(labels), (0.6, 0.2))):
        split[rows.numpy()] = number
    modalities = {
        name: values[:, 10 * place : 10 * (place + 1)].astype(np.float32)
        for place, name in enumerate(("mean", "deviation", "worst"))
    }
    save_npz(out, labels, split, modalities, class_names=names)
    print(f"{out}: {len(labels)} tumours, three times ten values")


if __name__ == "__main__":
    main()
