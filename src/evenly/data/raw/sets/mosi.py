"""CMU-MOSI: opinions in text, sound and video (Zadeh et al., 2016)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from jaxtyping import Float

from evenly.data.dataset import Kind, SplitName
from evenly.data.media.error import MediaError
from evenly.data.raw.readers import Array
from evenly.data.raw.sets.official import listed
from evenly.data.raw.sets.pickles import read_pickle
from evenly.data.raw.source import Sample, Source

SEQUENCES = {
    "text": "*TimestampedWordVectors.csd",
    "audio": "*COVAREP.csd",
    "video": "*Facet*.csd",
}
LABELS = "*Opinion_Labels.csd"
CLASSES = {
    2: ["negative", "non-negative"],
    7: ["-3", "-2", "-1", "0", "1", "2", "3"],
}


@dataclass(frozen=True)
class Segment:
    """A stretch of a video in a computational sequence of the CMU-MultimodalSDK.

    Attributes:
        path: Of the `.csd` file.
        video: Name of the video.
        start: In seconds.
        end: In seconds.
    """

    path: Path
    video: str
    start: float
    end: float


@dataclass(frozen=True)
class Steps:
    """The features of a segment: the steps whose middle lies in it."""

    units: str = ""
    kind: ClassVar[Kind] = "sequence"
    rate: ClassVar[float | None] = None
    ragged: ClassVar[bool] = True

    def __call__(self, cell: Segment) -> Float[np.ndarray, "t d"] | None:
        """The steps; None if the segment has none. Values that are not finite become 0.

        COVAREP writes -inf for the logarithm of a silent frame.
        """
        with _opened(cell.path) as file:
            data = _data(cell.path, file)
            if cell.video not in data:
                return None
            intervals: np.ndarray = data[cell.video]["intervals"][:]
            middle = intervals.mean(1)
            inside = (middle >= cell.start) & (middle < cell.end)
            if not inside.any():
                return None
            found: np.ndarray = data[cell.video]["features"][:][inside].astype(np.float32)
        finite: np.ndarray = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
        return finite


def mosi(folder: Path, classes: Literal[2, 7] = 2) -> Source:
    """The official files of the CMU-MultimodalSDK, or MMSA's pickle of them.

    Of a folder with `.csd` files: word vectors, COVAREP and Facet features of each labelled
    segment, as sequences of unequal lengths, in the standard folds (52 / 10 / 31 videos). Of one
    with `unaligned_50.pkl` (or `aligned_50.pkl`): its arrays and its split.

    Args:
        folder: Where the files are.
        classes: 2, negative (score below 0) or not; or 7, the score rounded.
    """
    pickles = sorted(folder.glob("*aligned_50.pkl"), reverse=True)
    samples, readers = _of_pickle(pickles[0], classes) if pickles else _of_csd(folder, classes)
    return Source("mosi", readers, samples, CLASSES[classes])


def _label(score: float, classes: int) -> int:
    return int(score >= 0) if classes == 2 else int(np.clip(np.rint(score), -3, 3)) + 3


def _of_csd(folder: Path, classes: int) -> tuple[list[Sample], dict[str, Steps]]:
    paths = {name: _one(folder, pattern) for name, pattern in SEQUENCES.items()}
    fold: dict[str, SplitName] = {}
    parts: dict[str, SplitName] = {"train": "train", "val": "val", "test": "test"}
    for line in listed("mosi.txt"):
        name, *videos = line.split()
        fold |= dict.fromkeys(videos, parts[name])
    samples = []
    for video, number, start, end, score in _scores(_one(folder, LABELS)):
        if video in fold:
            cells = {name: Segment(path, video, start, end) for name, path in paths.items()}
            label = _label(score, classes)
            samples.append(Sample(f"{video}[{number}]", label, fold[video], cells))
    units = {"text": "GloVe", "audio": "COVAREP", "video": "Facet 4.2"}
    return samples, {name: Steps(units[name]) for name in paths}


def _scores(path: Path) -> Iterator[tuple[str, int, float, float, float]]:
    """Video, number, begin, end and score of each labelled segment."""
    with _opened(path) as file:
        data = _data(path, file)
        for video in sorted(data):
            entry = data[video]
            for number, ((start, end), score) in enumerate(
                zip(entry["intervals"][:], entry["features"][:, 0], strict=True)
            ):
                yield video, number, float(start), float(end), float(score)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder}: holds no file {pattern}, and no *aligned_50.pkl.")
    return found[0]


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path)
    except OSError as error:
        raise MediaError(path, "is no .csd file, or part of one") from error


def _data(path: Path, file: h5py.File) -> Any:
    """The videos of a computational sequence, which is the one group of its file."""
    for name in file:
        if "data" in file[name]:
            return file[name]["data"]
    raise MediaError(path, "holds no computational sequence")


def _of_pickle(path: Path, classes: int) -> tuple[list[Sample], dict[str, Array]]:
    content = read_pickle(path)
    named: dict[str, SplitName] = {"train": "train", "valid": "val", "test": "test"}
    samples = []
    for key, split in named.items():
        part = content[key]
        for n, score in enumerate(np.asarray(part["regression_labels"]).ravel()):
            cells = {}
            for name, theirs in (("text", "text"), ("audio", "audio"), ("video", "vision")):
                steps = np.nan_to_num(np.asarray(part[theirs][n], np.float32), posinf=0, neginf=0)
                cells[name] = steps[: _length(part, theirs, n, len(steps))]
            label = _label(float(score), classes)
            samples.append(Sample(str(part["id"][n]), label, split, cells))
    kinds = {"text": "BERT", "audio": "MMSA audio", "video": "MMSA vision"}
    return samples, {name: Array("sequence", units, ragged=True) for name, units in kinds.items()}


def _length(part: Any, name: str, n: int, longest: int) -> int:
    """Time steps that are not padding; one is left of a sequence that is all padding."""
    if name == "text" and "text_bert" in part:
        length = int(np.asarray(part["text_bert"][n])[1].sum())  # rows: ids, mask, segments
    else:
        lengths = part.get(f"{name}_lengths")
        length = longest if lengths is None else int(lengths[n])
    return max(1, min(length, longest))
