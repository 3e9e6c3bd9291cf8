"""CMU-MOSI: opinions in text, sound and video (Zadeh et al., 2016)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from jaxtyping import Float

from evenly.data.dataset import Kind, SplitName
from evenly.data.media.error import MediaError
from evenly.data.raw.journal import checksum
from evenly.data.raw.sets.mmsa import Found, Label, Scored, of_pickle, sentiment
from evenly.data.raw.sets.official import listed, some
from evenly.data.raw.source import Sample, Source
from evenly.errors import UserFileNotFoundError

SEQUENCES = {
    "text": "*TimestampedWordVectors.csd",
    "audio": "*COVAREP.csd",
    "video": "*Facet*.csd",
}
LABELS = "*Opinion_Labels.csd"
SEGMENTS = 2_199


@dataclass(frozen=True)
class Segment:
    """A stretch of a video in a computational sequence of the CMU-MultimodalSDK.

    Attributes:
        path: Path of the `.csd` file.
        video: Name of the video.
        start: In seconds.
        end: In seconds.
        checksum: Of the file, which distinguishes it from later versions.
    """

    path: Path
    video: str
    start: float
    end: float
    checksum: int


@dataclass(frozen=True)
class Steps:
    """The features of a segment: the steps whose midpoint is in it."""

    units: str = ""
    kind: ClassVar[Kind] = "sequence"
    rate: ClassVar[float | None] = None
    ragged: ClassVar[bool] = True

    def __call__(self, cell: Segment) -> Float[np.ndarray, "t d"] | None:
        """The steps; None if the segment has none. Values that are not finite become 0.

        COVAREP writes -inf for the logarithm of a silent frame.
        """
        with _videos(cell.path) as videos:
            if cell.video not in videos:
                return None
            intervals, features = _entry(cell.path, videos, cell.video)
        middle = intervals.mean(1)
        inside = (middle >= cell.start) & (middle < cell.end)
        if not inside.any():
            return None
        found = features[inside].astype(np.float32)
        finite: np.ndarray = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
        return finite


def mosi(folder: Path, task: Scored = "classes", classes: Literal[2, 7] = 2) -> Source:
    """The official files of the CMU-MultimodalSDK, or MMSA's pickle of them.

    From a folder with `.csd` files: word vectors, COVAREP and Facet features of each labelled
    segment, as sequences of unequal lengths, in the standard folds (52 / 10 / 31 videos). From one
    with `unaligned_50.pkl` (or `aligned_50.pkl`): its arrays and its split. Missing segments and
    videos are counted.

    Args:
        folder: Where the files are.
        task: classes, or number: the score itself, to regress on.
        classes: 2, negative (score below 0) or not; or 7, the rounded score.
    """
    pickles = sorted(folder.glob("*aligned_50.pkl"), reverse=True)
    label, what = sentiment(task, classes)
    if pickles:
        opened = pickles[:1]
        samples, readers, notes = of_pickle(opened[0], label)
        if beside := [file.name for file in sorted(folder.glob("*.csd"))]:
            notes = [f"Read from {opened[0].name}, and not from {some(beside)}.", *notes]
    else:
        labels = _one(folder, LABELS)
        paths = {name: _one(folder, pattern) for name, pattern in SEQUENCES.items()}
        opened = [labels, *paths.values()]
        samples, readers, notes = _of_csd(labels, paths, label)
    if len(samples) != SEGMENTS:
        notes = [f"{len(samples):,} of the {SEGMENTS:,} segments are in {folder}.", *notes]
    return Source("mosi", readers, samples, what, notes, opened)


def _of_csd(labels: Path, paths: Mapping[str, Path], label: Label) -> Found:
    marks = {name: checksum(path) for name, path in paths.items()}
    fold: dict[str, SplitName] = {}
    parts: dict[str, SplitName] = {"train": "train", "val": "val", "test": "test"}
    for line in listed("mosi.txt"):
        name, *videos = line.split()
        fold |= dict.fromkeys(videos, parts[name])
    samples = []
    for video, number, start, end, score in _scores(labels, list(fold)):
        cells = {
            name: Segment(path, video, start, end, marks[name]) for name, path in paths.items()
        }
        samples.append(Sample(f"{video}[{number}]", label(score), fold[video], cells))
    notes = [note for path in (labels, *paths.values()) for note in _missing(path, list(fold))]
    units = {"text": "GloVe", "audio": "COVAREP", "video": "Facet"}
    return samples, {name: Steps(units[name]) for name in paths}, notes


def _missing(path: Path, wanted: Sequence[str]) -> list[str]:
    """Notes on videos missing from a computational sequence, and on those in no fold."""
    with _videos(path) as videos:
        there = set(videos)
    notes = []
    if lost := [video for video in wanted if video not in there]:
        notes.append(
            f"{len(lost)} of the {len(wanted)} videos of the standard folds are not in "
            f"{path.name}: {some(lost)}."
        )
    if others := sorted(there - set(wanted)):
        notes.append(f"Passed over, as in no fold ({len(others)}), of {path.name}: {some(others)}.")
    return notes


def _scores(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, int, float, float, float]]:
    """Video, number, start, end and score of each labelled segment of these videos.

    Raises:
        MediaError: If a score is not a number, or there is none at all.
    """
    with _videos(path) as videos:
        known = sorted(set(videos) & set(wanted))
        if not known:
            raise MediaError(path, f"holds no video of the standard folds, such as {wanted[0]}")
        for video in known:
            intervals, features = _entry(path, videos, video)
            for number, ((start, end), score) in enumerate(
                zip(intervals, features[:, 0], strict=True)
            ):
                if not np.isfinite(score):
                    raise MediaError(path, f"has the score {score} for {video}[{number}]")
                yield video, number, float(start), float(end), float(score)


def _one(folder: Path, pattern: str) -> Path:
    """The file with this name; the newest of several versions."""
    found = sorted(folder.glob(pattern))
    if not found:
        other = some(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise UserFileNotFoundError(
            f"{folder}: holds no file {pattern}, and no *aligned_50.pkl, but {other}. Put it "
            "there under its own name."
        )
    return found[-1]


@contextmanager
def _videos(path: Path) -> Iterator[Any]:
    """The videos of a computational sequence, the only group of its file."""
    try:
        with h5py.File(path) as file:
            groups = [group for group in file.values() if isinstance(group, h5py.Group)]
            found = next((group["data"] for group in groups if "data" in group), None)
            if not isinstance(found, h5py.Group):
                raise MediaError(path, "holds no computational sequence")
            yield found
    except (OSError, KeyError, RuntimeError) as error:
        raise MediaError(path, "is no .csd file, or part of one") from error


def _entry(path: Path, videos: Any, video: str) -> tuple[np.ndarray, np.ndarray]:
    """Intervals and features of a video: (t, 2) and (t, d) numbers."""
    entry = videos[video]
    if not isinstance(entry, h5py.Group) or not {"intervals", "features"} <= set(entry):
        raise MediaError(path, f"has no intervals and features for the video {video}")
    intervals, features = (np.asarray(entry[name]) for name in ("intervals", "features"))
    whole = features.ndim == 2 and features.shape[1] and intervals.shape == (len(features), 2)
    if not whole or {intervals.dtype.kind, features.dtype.kind} - set("fiu"):
        raise MediaError(
            path,
            f"has intervals of shape {intervals.shape} and features of shape {features.shape} of "
            f"{features.dtype} for the video {video}, not (t, 2) and (t, d) numbers",
        )
    return intervals, features
