"""Preparing a Parquet file from the Hugging Face Hub: time against `datasets`, and peak memory.

    python benchmarks/parquet.py

Speed: 2,000 pictures and sounds (JPEG of 320 x 240, two seconds of FLAC), read by `evenly prepare`
with two workers, and by `datasets` in NumPy format under a DataLoader with two, to the same arrays:
pictures decoded by `datasets` itself and scaled like ours, sounds decoded and turned into
spectrograms by the same code. Memory: a file of 2 GB, with pictures of 1 MB; the peak of the
command and its decoders together, without the file system's cache. Texts, numbers and arrays in a
table take memory by their size; docs/data.md says how much.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image
from promise import Promise, report, seconds

from evenly.data.raw.readers import Spectrogram

SIZE = (224, 224)
MOST_MEMORY = 0.7  # GB
WORKERS = 2
RATE = 16_000
DRAWS = np.random.default_rng(0)


def picture(height, width, quality):
    """A JPEG file of noise over a gradient, which takes as long to decode as a photograph."""
    ramp = np.linspace(0, 128, width)[None, :, None]
    values = ramp + DRAWS.integers(0, 128, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def sound():
    """Two seconds of noise as FLAC."""
    file = io.BytesIO()
    soundfile.write(file, DRAWS.normal(0, 0.1, 2 * RATE), RATE, format="FLAC")
    return file.getvalue()


def written(path, count, make, group=100):
    """A Parquet file as on the Hub, with `count` rows in row groups."""
    label = np.arange(count) % 4
    split = np.array(["train", "train", "train", "validation", "test"])[np.arange(count) % 5]
    kept = {name: [one() for _ in range(20)] for name, one in make.items()}
    writer = None
    for start in range(0, count, group):
        rows = range(start, min(start + group, count))
        cells = {
            name: [{"bytes": found[n % len(found)], "path": f"{n}"} for n in rows]
            for name, found in kept.items()
        }
        cells |= {"label": label[rows.start : rows.stop], "split": split[rows.start : rows.stop]}
        part = pa.table(cells)
        if writer is None:
            # Without a dictionary, each cell is in the file, as with different pictures.
            writer = pq.ParquetWriter(path, part.schema, use_dictionary=False, compression="NONE")
        writer.write_table(part, row_group_size=group)
    writer.close()


def prepared(path, out, *options):
    """Runs the command; returns the peak bytes of it and its decoders together."""
    command = ["-m", "evenly.cli", "prepare", path, "--out", out, "--workers", WORKERS, *options]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, held(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"evenly prepare ended with {process.returncode}")
    return most


def held(process):
    """Bytes of a process and its children, with shared pages divided."""
    total = 0
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):  # it has ended
        return total
    return total + sum(held(int(child)) for child in children)


class Both:
    """A row of `datasets` in NumPy format as the arrays that `prepare` stores."""

    def __init__(self, path, cache):
        import datasets

        rows = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(cache))["train"]
        rows = rows.cast_column("picture", datasets.Image())
        self.rows = rows.with_format("numpy")
        self.spectrogram = Spectrogram()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        import cv2

        row = self.rows[number]
        image = cv2.resize(row["picture"], SIZE[::-1], interpolation=cv2.INTER_AREA)
        return image.transpose(2, 0, 1), self.spectrogram(bytes(row["sound"]["bytes"]))


def iterated(path, cache):
    """Reads all samples once with `datasets`."""
    from torch.utils.data import DataLoader

    rows = Both(path, cache)
    loader = DataLoader(rows, batch_size=32, num_workers=WORKERS, collate_fn=len)
    assert sum(loader) == len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        small, large = folder / "small.parquet", folder / "large.parquet"
        written(small, options.samples, {"picture": lambda: picture(240, 320, 90), "sound": sound})
        Both(small, folder / "cache")  # the copy that `datasets` makes is not counted
        theirs = seconds(lambda: iterated(small, folder / "cache"))
        ours = seconds(lambda: prepared(small, folder / "store"))
        print(f"datasets {theirs:.1f} s, prepare {ours:.1f} s, its start included")
        one = len(picture(1024, 1024, 90))
        count = round(options.gigabytes * 1e9 / one)
        written(large, count, {"picture": lambda: picture(1024, 1024, 90)})
        print(f"{count} pictures, {large.stat().st_size / 1e9:.2f} GB")
        most = prepared(large, folder / "stored") / 1e9
    what = f"prepare of {options.samples:,} pictures and sounds of a Parquet file"
    memory = f"GB that prepare of a Parquet file of {options.gigabytes:g} GB of pictures holds"
    report(
        [
            Promise(f"{what}: time by datasets / ours", theirs / ours, 1.0),
            Promise(memory, most, MOST_MEMORY, at_least=False),
        ]
    )


if __name__ == "__main__":
    main()
