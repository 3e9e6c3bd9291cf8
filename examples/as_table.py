"""The data of an .npz file as a table: a row for each sample, a column for each modality.

    python examples/convert_cmu_mosi.py cmu_mosi.npz
    python examples/as_table.py cmu_mosi.npz cmu_mosi.parquet
    evenly compare --data cmu_mosi.parquet

Vectors and sequences become lists in cells; pictures are written as .npy files beside the table,
and cells hold their paths. Classes become names, several labels a list of their names, and the
splits stay the same. Numbers to regress on stay numbers; if all are whole, `evenly` needs
`--task number`. Texts of word numbers, as convert_cmu_mosi_words.py writes them, are refused:
a table has no form for them.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from evenly.data import Padded, load_npz


def labels(task, target):
    """The columns of the labels."""
    if task.name == "classes":
        return {"label": [task.names[number] for number in target.tolist()]}
    if task.name == "labels":
        pairs = [zip(task.names, row, strict=True) for row in target.tolist()]
        return {"label": [[name for name, here in row if here] for row in pairs]}
    names = [f"label_{name}" for name in task.names] if len(task.names) > 1 else ["label"]
    return dict(zip(names, target.T.tolist(), strict=True))


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
    if texts := [name for name, modality in data.modalities.items() if modality.kind == "text"]:
        parser.error(
            f"{texts[0]} of {options.npz} holds word numbers, for which a table has no form. Train "
            "on the .npz file itself."
        )
    columns = defaultdict(list)
    for part in ("train", "val", "test"):
        split = data.split(part)
        columns["split"] += [part] * len(split)
        for name, found in labels(data.task, split.target).items():
            columns[name] += found
        for name, modality in data.modalities.items():
            folder = options.table.with_name(f"{options.table.stem}_{name}")
            columns[name] += cells(name, split, modality.kind, folder)
    parquet.write_table(pa.table(columns), options.table)
    print(f"{options.table}: {len(columns['split'])} samples of {', '.join(data.modalities)}")


if __name__ == "__main__":
    main()
