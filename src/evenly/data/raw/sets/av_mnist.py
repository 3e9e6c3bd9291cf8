"""AV-MNIST: a handwritten and a spoken digit (Vielzeuf et al., ECCVW 2018), from free parts."""

import gzip
import re
import struct
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Array, Reader, Spectrogram
from evenly.data.raw.sets.official import passed_over
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes
from evenly.errors import UserError, UserFileNotFoundError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION = 5_000
"""Validation images, MNIST's last training images, as in the split 55,000 / 5,000 / 10,000."""


def av_mnist(folder: Path, seconds: float = 0.5, seed: int = 0) -> Source:
    """Each image of MNIST with a recording of the same digit, drawn at random.

    The images are MNIST's idx files (compressed or not), the recordings those of the Free Spoken
    Digit Dataset, `recordings/DIGIT_SPEAKER_NUMBER.wav`. No recording is in two splits: numbers 0
    to 4 are its official test split, 5 to 9 go to validation and the others to training. (The paper
    took its recordings from TIDIGITS, which is not free, and added noise.)

    Args:
        folder: Where the idx files and `recordings` are.
        seconds: Length of the sound.
        seed: Seed of the pairs.
    """
    recordings, others = _recordings(folder / "recordings")
    generator = np.random.default_rng(seed)
    samples, opened = [], []
    for part, names in FILES.items():
        paths = [_path(folder, name) for name in names]
        opened += paths
        images, labels = map(_idx, paths)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{folder}: {names[0]} holds an array of shape {images.shape} and {names[1]} one "
                f"of shape {labels.shape}, not an image and a label of each digit. Take both "
                "from one download."
            )
        for n, (image, label) in enumerate(zip(images, labels, strict=True)):
            split: SplitName = "test" if part == "test" else "train"
            if part == "train" and n >= len(labels) - min(VALIDATION, len(labels) // 4):
                split = "val"
            of_digit = recordings[split, int(label)]
            if not of_digit:
                raise UserError(
                    f"{folder / 'recordings'}: holds no recording of the digit {label} for the "
                    f"{split} split, such as {label}_jackson_{NUMBERS[split][0]}.wav."
                )
            sound = of_digit[generator.integers(len(of_digit))]
            cells = {"audio": sound, "image": image[None]}
            samples.append(Sample(f"{part} image {n}", int(label), split, cells))
    readers: dict[str, Reader] = {
        "audio": Spectrogram("mel", seconds, 8_000),
        "image": Array("image", "grey levels, 0 to 255"),
    }
    notes = passed_over(others, "DIGIT_SPEAKER_NUMBER.wav with a number up to 49")
    classes = [str(number) for number in range(10)]
    return Source("av_mnist", readers, samples, Classes(classes), notes, opened)


NUMBERS = {"train": range(10, 50), "val": range(5, 10), "test": range(5)}
"""Numbers of the recordings in each split."""


def _recordings(folder: Path) -> tuple[defaultdict[tuple[str, int], list[Path]], list[Path]]:
    """The recordings by split and digit, and misnamed files."""
    found: defaultdict[tuple[str, int], list[Path]] = defaultdict(list)
    others = []
    for path in sorted(folder.glob("*")):
        name = re.fullmatch(r"(\d)_\w+_(\d+)\.wav", path.name)
        part = name and next((part for part, own in NUMBERS.items() if int(name[2]) in own), None)
        if name and part:
            found[part, int(name[1])].append(path)
        else:
            others.append(path)
    return found, others


def _path(folder: Path, name: str) -> Path:
    """The file as named, or compressed."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UserFileNotFoundError(f"{folder}: holds neither {name} nor {name}.gz.")
    return path


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in MNIST's format: a magic number, the shape, the values."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        kind, axes = struct.unpack_from(">HBB", data)[1:]
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if kind != 8:
            raise ValueError(f"holds values of type {kind}, not bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (struct.error, zlib.error, ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: is not a complete idx file ({error}).") from error
