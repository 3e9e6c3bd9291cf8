"""VGGSound: 309 sounds with visible sources (Chen et al., ICASSP 2020).

The list is the authors' vggsound.csv, whose columns https://github.com/hche11/VGGSound describes;
clips are named as in its data/test.csv. The list was not available, so counts are as reported by
others.
"""

from pathlib import Path

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Reader, Video
from evenly.data.raw.sets.clips import Clip, source_of_clips, with_validation
from evenly.data.raw.sets.official import Front, misread, needed, rows, sound
from evenly.data.raw.source import Source

FILE = "vggsound.csv"
SPLITS: dict[str, SplitName] = {"train": "train", "test": "test"}


def vggsound(
    folder: Path,
    front: Front = "fbank",
    seconds: float = 10.0,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The clips of `vggsound.csv` (183,730 / 15,446) in a folder, at any depth.

    A line of the list holds the video's address, the second at which the clip begins, its label and
    `train` or `test`; the clip is named `ID_000030.mp4` or `ID_30.mp4`. Many videos are gone from
    the web, so missing clips are left out and counted. The list has no validation split: it is a
    stratified 15 % of the listed training clips (seed 0).

    Args:
        folder: Where the list and the clips are.
        front: Front end of the sound: fbank and mel at 16 kHz, stft at 22,050 Hz.
        seconds: Length of the sound.
        frames: Number of video frames.
        size: Size of the frames.
    """
    path = needed(folder, FILE)
    wanted, classes = _listed(path)
    readers: dict[str, Reader] = {"audio": sound(front, seconds), "visual": Video(frames, size)}
    return source_of_clips(
        "vggsound", folder, wanted, classes, readers, by_video=False, opened=[path]
    )


def _listed(path: Path) -> tuple[list[Clip], list[str]]:
    """The clips, and the names of their classes."""
    found = []
    for line, row in rows(path):
        if len(row) != 4 or not row[1].isdecimal() or row[3] not in SPLITS:
            raise misread(path, line, row, "YouTube ID, start seconds, label, train or test")
        found.append(row)
    classes = sorted({label for _, _, label, _ in found})
    number = {label: n for n, label in enumerate(classes)}
    clips = [
        Clip(SPLITS[split], number[label], video, int(start))
        for video, start, label, split in found
    ]
    return with_validation(clips), classes
