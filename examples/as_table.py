"""The data of an .npz file as a table: a row for each sample, a column for each modality.

    python examples/convert_cmu_mosi.py cmu_mosi.npz
    python examples/as_table.py cmu_mosi.npz cmu_mosi.parquet
    evenly compare --data cmu_mosi.parquet

It works after any of the converters beside this file. Vectors and sequences become lists in cells;
pictures are written as .npy files beside the table, and cells hold their paths. Classes become
names, and the splits stay the same.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from evenly.data import Padded, load_npz


def cells(name, split, kind, folder):
    """The cells of one modality in a split."""
    for row, position in enumerate(split.rows.tolist()):
        x = split.__getitems__([row])["inputs"][name]
        value = (x.values[0, : x.length[0]] if isinstance(x, Padded) else x[0]).numpy()
        if kind in ("vector", "sequence"):
            yield value.tolist()
            continue
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{position}.npy", value)
        yield f"{folder.name}/{position}.npy"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("table", type=Path, help="a .parquet file")
    options = parser.parse_args()
    data = load_npz(options.npz)
    columns = {"label": [], "split": [], **{name: [] for name in data.modalities}}
    for part in ("train", "val", "test"):
        split = data.split(part)
        columns["label"] += [data.class_names[number] for number in split.target.tolist()]
        columns["split"] += [part] * len(split)
        for name, modality in data.modalities.items():
            folder = options.table.with_name(f"{options.table.stem}_{name}")
            columns[name] += cells(name, split, modality.kind, folder)
    parquet.write_table(pa.table(columns), options.table)
    print(f"{options.table}: {len(columns['label'])} samples of {', '.join(data.modalities)}")


if __name__ == "__main__":
    main()
