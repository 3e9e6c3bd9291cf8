"""Features and scores of opinions in MMSA's pickles: CMU-MOSI, CMU-MOSEI and CH-SIMS.

The layout follows what https://github.com/thuiar/MMSA reads (src/MMSA/data_loader.py) and what
others print of the files, which were not available. Whether the ones of `text_bert`'s mask come
first, and where aligned files have their padding, could not be verified.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Array, Reader
from evenly.data.raw.sets.official import leaks, needed
from evenly.data.raw.sets.pickles import read_pickle
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes, Numbers, Task
from evenly.errors import UserError

CLASSES = {
    2: ["negative", "non-negative"],
    7: ["-3", "-2", "-1", "0", "1", "2", "3"],
}
"""Classes of CMU-MOSI's and CMU-MOSEI's scores, from -3 to 3."""
SIMS_CLASSES = {
    2: ["non-positive", "positive"],
    3: ["negative", "neutral", "positive"],
    5: ["negative", "weakly negative", "neutral", "weakly positive", "positive"],
}
"""Classes of CH-SIMS's scores, from -1 to 1."""
BOUNDS = {2: [0.0], 3: [-0.1, 0.1], 5: [-0.7, -0.1, 0.1, 0.7]}
"""Upper ends of CH-SIMS's classes; as in MMSA's metrics, they belong to the lower class."""
SPLITS: dict[str, SplitName] = {"train": "train", "valid": "val", "test": "test"}
MODALITIES = {"text": "text", "audio": "audio", "video": "vision"}
"""Their names by ours."""
FORM = (
    "MMSA's pickles hold train, valid and test, and each of these id, text, audio, vision and "
    "{scores}, with a row for each segment."
)

SCORE = ["score"]
Scored = Literal["classes", "number"]
Label = Callable[[float], int | tuple[float]]
Found = tuple[list[Sample], Mapping[str, Reader], list[str]]
"""Samples, readers and notes."""


def mosei(
    folder: Path,
    aligned: bool = False,
    task: Scored = "classes",
    classes: Literal[2, 7] = 2,
) -> Source:
    """The 22,856 segments of CMU-MOSEI (16,326 / 1,871 / 4,659), as MMSA distributes them.

    `unaligned_50.pkl` holds the features of each modality at its own pace, `aligned_50.pkl` one
    step for each word: BERT's features of the text, COVAREP's of the sound and Facet's or
    OpenFace's of the face. Padding is cut off: of text by the mask of `text_bert`, of sound and
    video by `audio_lengths` and `vision_lengths`. Without those, as in aligned files, steps of
    zeros beyond the text's length are cut off; other sequences stay as they are. Only plain arrays
    are read from a pickle.

    Args:
        folder: Where the pickle is.
        aligned: Which of the two files.
        task: classes, or number: the score itself, from -3 to 3, to regress on.
        classes: 2, negative (score below 0) or not, as in MMSA's accuracy with zeros; or 7, the
            rounded score.
    """
    path = needed(folder, f"{'' if aligned else 'un'}aligned_50.pkl")
    return _source("mosei", path, sentiment(task, classes), 22_856)


def sims(
    folder: Path,
    labels: Literal["M", "T", "A", "V"] = "M",
    task: Scored = "classes",
    classes: Literal[2, 3, 5] = 2,
) -> Source:
    """The 2,281 segments of CH-SIMS (1,368 / 456 / 457), as MMSA distributes them.

    `unaligned_39.pkl` has the layout of CMU-MOSEI's pickle, and also holds the ratings of people
    who were given the text, the sound or the video alone.

    Args:
        folder: Where the pickle is.
        labels: M, the ratings from all modalities, or T, A or V, those from the text, the sound or
            the video alone.
        task: classes, or number: the score itself, from -1 to 1, to regress on.
        classes: 2, positive (score above 0) or not; 3, with neutral; or 5, also weak or not, as in
            MMSA's accuracies.
    """
    path = needed(folder, "unaligned_39.pkl")
    scores = "regression_labels" + ("" if labels == "M" else f"_{labels}")
    labelling: tuple[Label, Task] = (
        (_itself, Numbers(SCORE))
        if task == "number"
        else (partial(_sims_class, classes=classes), Classes(SIMS_CLASSES[classes]))
    )
    return _source("sims", path, labelling, 2_281, scores)


def sentiment(task: Scored, classes: int) -> tuple[Label, Task]:
    """The conversion of a CMU-MOSI or CMU-MOSEI score, and the task."""
    if task == "number":
        return _itself, Numbers(SCORE, scale="sentiment")
    return partial(_class, classes=classes), Classes(CLASSES[classes])


def _itself(score: float) -> tuple[float]:
    return (score,)


def _class(score: float, classes: int) -> int:
    return int(score >= 0) if classes == 2 else int(np.clip(np.rint(score), -3, 3)) + 3


def _sims_class(score: float, classes: int) -> int:
    return int(np.searchsorted(BOUNDS[classes], score))


def of_pickle(path: Path, label: Label, scores: str = "regression_labels") -> Found:
    """The content of one of MMSA's pickles.

    Args:
        path: Path of the pickle.
        label: Conversion of a score.
        scores: Which of the scores to use.

    Raises:
        ValueError: If it holds something else.
    """
    content = read_pickle(path)
    form = FORM.format(scores=scores)
    samples: list[Sample] = []
    for key, split in SPLITS.items():
        try:
            samples += _segments(content[key], split, label, scores)
            content[key] = None  # frees gigabytes of padding
        except KeyError as error:
            raise UserError(f"{path}: there is no {error} in it. {form}") from error
        except (IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path}: '{key}' is of another form ({error}). {form}") from error
    kinds = {"text": "BERT", "audio": "MMSA audio", "video": "MMSA vision"}
    readers = {name: Array("sequence", units, ragged=True) for name, units in kinds.items()}
    videos = ((sample.name.partition("$_$")[0], sample.split) for sample in samples)
    return samples, readers, leaks("videos", videos)


def _segments(part: Any, split: SplitName, label: Label, scores: str) -> list[Sample]:
    """The samples of one split."""
    if not isinstance(part, dict):
        raise TypeError(f"it is {type(part).__name__}")
    found = np.asarray(part[scores], np.float32).ravel()
    if not np.isfinite(found).all():
        raise ValueError("a score is not finite")
    counts = {name: len(part[name]) for name in ("id", *MODALITIES.values())}
    if set(counts.values()) != {len(found)}:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"{listed} for {len(found)} labels")
    samples = []
    for n, score in enumerate(found.tolist()):
        cells = {}
        for name, theirs in MODALITIES.items():
            steps = np.asarray(part[theirs][n])
            if steps.ndim != 2:
                raise ValueError(f"a row of {theirs} has the shape {steps.shape}, not (t, d)")
            steps = steps[: _length(part, theirs, n, steps)].astype(np.float32)
            cells[name] = np.nan_to_num(steps, posinf=0, neginf=0)
        samples.append(Sample(str(part["id"][n]), label(score), split, cells))
    return samples


def _length(part: Mapping[str, Any], name: str, n: int, steps: np.ndarray) -> int:
    """Time steps that are not padding; at least one, even if a sequence is all padding."""
    longest = length = len(steps)
    if (lengths := part.get(f"{name}_lengths")) is not None and name != "text":
        length = int(lengths[n])
    elif "text_bert" in part:
        words = int(np.asarray(part["text_bert"][n])[1].sum())  # rows: ids, mask, segments
        aligned = longest == len(part["text"][n]) and not steps[words:].any()
        length = words if name == "text" or aligned else longest
    return max(1, min(length, longest))


def _source(
    name: str,
    path: Path,
    labelling: tuple[Label, Task],
    whole: int,
    scores: str = "regression_labels",
) -> Source:
    label, task = labelling
    samples, readers, notes = of_pickle(path, label, scores)
    if len(samples) != whole:
        notes = [f"{len(samples):,} of the {whole:,} segments are in {path}.", *notes]
    return Source(name, readers, samples, task, notes, [path])
