"""CREMA-D: actors saying twelve sentences in six emotions (Cao et al., 2014)."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Reader, Video
from evenly.data.raw.sets.official import Front, listed, passed_over, sound
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes

EMOTIONS = {"NEU": "neutral", "HAP": "happy", "SAD": "sad", "FEA": "fear", "DIS": "disgust",
            "ANG": "anger"}  # fmt: skip
"""In the order of the paper's class numbers."""
PARTS = ("AudioWAV", "VideoFlash")


def cremad(
    folder: Path,
    split: Literal["paper", "actors"] = "paper",
    front: Front = "fbank",
    seconds: float = 3.0,
    frames: int = 2,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The 7,442 clips as distributed: `AudioWAV/NAME.wav` and `VideoFlash/NAME.flv`.

    Args:
        folder: Where the two folders are.
        split: `paper`, the split of D&R's released code (5,954 / 744 / 744), in which every actor
            is in every split; or `actors`, in which no actor is in two: 63 / 14 / 14 of the 91.
        front: Front end of the sound: fbank and mel at 16 kHz, stft at 22,050 Hz.
        seconds: Length of the sound.
        frames: Number of video frames.
        size: Size of the frames.
    """
    clips = list(_clips())
    if split == "actors":
        of_actor = _actors(sorted({name[:4] for name, _ in clips}))
        clips = [(name, of_actor[name[:4]]) for name, _ in clips]
    classes = list(EMOTIONS)
    samples = [
        Sample(
            name,
            classes.index(name[9:12]),
            part,
            {
                "audio": folder / "AudioWAV" / f"{name}.wav",
                "visual": folder / "VideoFlash" / f"{name}.flv",
            },
        )
        for name, part in clips
    ]
    known = {path for sample in samples for path in sample.files()}
    others = [path for part in PARTS for path in (folder / part).glob("*") if path not in known]
    notes = passed_over(sorted(others), "as one of the 7,442 clips")
    if split == "paper":
        notes.append("A leak: every actor is in every split. With split=actors, none is in two.")
    readers: dict[str, Reader] = {"audio": sound(front, seconds), "visual": Video(frames, size)}
    return Source("cremad", readers, samples, Classes(list(EMOTIONS.values())), notes)


def _clips() -> Iterator[tuple[str, SplitName]]:
    """Names of the clips with their part of the paper's split; each line has those of one actor."""
    parts: dict[str, SplitName] = {"": "train", "val": "val", "test": "test"}
    for line in listed("cremad.txt"):
        actor, *rest = line.split()
        for entry in rest:
            name, _, part = entry.partition("=")
            yield f"{actor}_{name}", parts[part]


def _actors(actors: list[str]) -> dict[str, SplitName]:
    random.Random(0).shuffle(actors)
    test, val = set(actors[:14]), set(actors[14:28])
    return {a: "test" if a in test else "val" if a in val else "train" for a in actors}
