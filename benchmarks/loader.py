"""Reading training batches: from a prepared store, and from files one sample at a time.

    python benchmarks/loader.py

The samples have CREMA-D's shape: two frames of 224 x 224 and a spectrogram of 257 x 300. The files
are what the field's released code reads: JPEG frames of 480 x 360, opened, scaled and stacked, and
one array of the spectrogram, for each sample. Both sides run in one process on one core, with the
files in the page cache; passes alternate, and the ratio is of the medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from evenly.data import collate
from evenly.data.raw import Array, Sample, Source, Video, prepare
from evenly.data.store import open_store

SAMPLES, BATCH, SIZE, BANDS = 512, 64, (224, 224), (257, 300)
LEAST_RATE, LEAST_RATIO = 1000, 20


class Files(Dataset):
    """A sample at a time from its files."""

    def __init__(self, folders):
        self.folders = folders

    def __len__(self):
        return len(self.folders)

    def __getitem__(self, n):
        frames = []
        for path in sorted(self.folders[n].glob("*.jpg")):
            with Image.open(path) as image:
                scaled = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
            frames.append(torch.from_numpy(np.array(scaled)).permute(2, 0, 1))
        spectrogram = torch.from_numpy(np.load(self.folders[n] / "spectrogram.npy"))
        return torch.stack(frames), spectrogram, n % 6


def written(folder):
    """A folder of files for each sample."""
    draws = np.random.default_rng(0)
    y, x = np.mgrid[0:360, 0:480]
    folders = []
    for n in range(SAMPLES):
        own = folder / f"{n:04d}"
        own.mkdir()
        for frame in range(2):
            waves = draws.uniform(0.01, 0.1, (3, 2))
            planes = [127 + 100 * np.sin(a * x + b * y) for a, b in waves]
            noise = draws.normal(0, 8, (360, 480, 3))
            picture = (np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(own / f"{frame}.jpg", quality=90)
        np.save(own / "spectrogram.npy", draws.normal(size=(1, *BANDS)).astype(np.float16))
        folders.append(own)
    return folders


def prepared(folders, out):
    samples = [
        Sample(
            path.name,
            n % 6,
            ("val", "test")[n - SAMPLES + 12 >= 6] if n >= SAMPLES - 12 else "train",
            {"visual": path, "audio": path / "spectrogram.npy"},
        )
        for n, path in enumerate(folders)
    ]
    readers = {"visual": Video(2, SIZE), "audio": Array("image")}
    prepare(Source("crema", readers, samples, list("abcdef")), out, workers=2)
    return open_store(out).split("train")


def rate(loader):
    """Samples a second of one pass."""
    start, seen = time.perf_counter(), 0
    for batch in loader:
        seen += len(batch["target"] if isinstance(batch, dict) else batch[-1])
    return seen / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of passes")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = written(folder)
        split = prepared(folders, folder / "store")
        sides = {
            "files": DataLoader(Files(folders), BATCH, shuffle=True),
            "store": DataLoader(split, BATCH, shuffle=True, collate_fn=collate),
        }
        rates = {side: [] for side in sides}
        for _ in range(rounds + 1):
            for side, loader in sides.items():
                rates[side].append(rate(loader))
    medians = {side: statistics.median(found[1:]) for side, found in rates.items()}
    ratio = medians["store"] / medians["files"]
    for side, median in medians.items():
        print(f"{side}: {median:,.0f} samples/s on one core")
    print(f"ratio: {ratio:.0f}x (at least {LEAST_RATIO}x, and {LEAST_RATE:,} samples/s)")
    if ratio < LEAST_RATIO or medians["store"] < LEAST_RATE:
        raise SystemExit("below what is promised")


if __name__ == "__main__":
    main()
