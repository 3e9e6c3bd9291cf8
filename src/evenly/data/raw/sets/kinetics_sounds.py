"""Kinetics-Sounds: 31 actions that are seen and heard (Arandjelović & Zisserman, ICCV 2017)."""

from pathlib import Path

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Reader, Video
from evenly.data.raw.sets.clips import Clip, source_of_clips, with_validation
from evenly.data.raw.sets.official import Front, listed, sound
from evenly.data.raw.source import Source

CLASSES = [str(number) for number in range(31)]
"""The lists only number the classes, without naming them."""


def kinetics_sounds(
    folder: Path,
    front: Front = "fbank",
    seconds: float = 10.0,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The clips of OGM-GE's lists (14,799 / 2,597) in a folder, at any depth.

    A clip is identified by the eleven characters of its video's address, and by the second at which
    it begins if its name has that: `ID_000058_000068.mp4`, `ID_58.mp4` or `ID.mp4`. Many videos are
    gone from the web, so missing clips are left out and counted. The lists have no validation
    split: it is a stratified 15 % of the listed training clips (seed 0).

    Args:
        folder: Where the clips are.
        front: Front end of the sound: fbank and mel at 16 kHz, stft at 22,050 Hz.
        seconds: Length of the sound.
        frames: Number of video frames.
        size: Size of the frames.
    """
    readers: dict[str, Reader] = {"audio": sound(front, seconds), "visual": Video(frames, size)}
    return source_of_clips("kinetics_sounds", folder, clips(), CLASSES, readers, by_video=True)


def clips() -> list[Clip]:
    """The lists."""
    parts: dict[str, SplitName] = {"train": "train", "test": "test"}
    lines = [line.split() for line in listed("kinetics_sounds.txt.gz")]
    return with_validation(
        [Clip(parts[part], int(label), video, int(start)) for part, label, video, start in lines]
    )
