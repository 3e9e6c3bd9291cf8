"""Reading training batches: from a prepared store, and from files one sample at a time.

    python benchmarks/loader.py

The samples have CREMA-D's shape: two frames of 224 x 224 and the spectrogram of three seconds of
sound. From files they are read as plain.py does: JPEG frames of 480 x 360, opened, scaled and
stacked, and a WAV, for each sample. Both sides run in one process on one core, with the files in
the page cache; passes alternate, and the ratio is of the medians.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import crema
import torch
from plain import Files
from promise import Promise, report, seconds
from torch.utils.data import DataLoader

from evenly.data import collate
from evenly.data.raw import prepare
from evenly.data.store import open_store

BATCH, SIZE = 64, 224
LEAST_RATIO = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of passes")
    parser.add_argument("--clips", type=int, default=504, help="how many are read")
    arguments = parser.parse_args()
    counts = {"train": arguments.clips, "val": 6, "test": 6}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = crema.write(folder / "clips", counts)
        prepare(crema.source(known, SIZE), folder / "store", workers=2)
        files = Files([clip for clip in known if clip.split == "train"], (SIZE, SIZE))
        split = open_store(folder / "store").split("train")
        sides = {
            "files": DataLoader(files, BATCH, shuffle=True),
            "store": DataLoader(split, BATCH, shuffle=True, collate_fn=collate),
        }
        took: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.rounds + 1):
            for side, loader in sides.items():
                took[side].append(seconds(lambda loader=loader: list(loader)))
    rates = {side: arguments.clips / statistics.median(found[1:]) for side, found in took.items()}
    for side, rate in rates.items():
        print(f"{side}: {rate:,.0f} samples/s on one core")
    ratio = rates["store"] / rates["files"]
    report([Promise("batches on one core: time from files / from the store", ratio, LEAST_RATIO)])


if __name__ == "__main__":
    main()
