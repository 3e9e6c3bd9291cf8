"""Kinetics-Sounds: 31 actions that are seen and heard (Arandjelović & Zisserman, ICCV 2017)."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Literal

import torch

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SplitName, stratified
from evenly.data.raw.readers import Reader, Spectrogram, Video
from evenly.data.raw.sets.official import listed
from evenly.data.raw.source import Sample, Source

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv")


def kinetics_sounds(
    folder: Path,
    front: Literal["fbank", "mel", "stft"] = "fbank",
    seconds: float = 10.0,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The clips of OGM-GE's lists (14,799 / 2,597) that are in a folder, however deep.

    A clip is known by the eleven characters of its video's address, and by the second at which
    it begins where its name has it: `ID_000058_000068.mp4`, `ID_58.mp4` or `ID.mp4`. Many videos
    are gone from the web, so what is not there is left out and counted. A stratified 15 % of the
    training clips become the validation split (seed 0); the lists have none.

    Args:
        folder: Where the clips are.
        front: Front end of the sound.
        seconds: Of sound.
        frames: Of the video.
        size: Of the frames.
    """
    there = _clips(folder)
    wanted = [line.split() for line in listed("kinetics_sounds.txt.gz")]
    found: list[tuple[str, int, Path]] = []
    missing: dict[str, int] = {"train": 0, "test": 0}
    for part, label, video, start in wanted:
        clip = there[video].get(int(start), there[video].get(None))
        if clip is None:
            missing[part] += 1
        else:
            found.append((part, int(label), clip))
    if not found:
        raise ValueError(f"{folder}: holds none of the {len(wanted):,} clips, such as ID_58.mp4.")
    training = [n for n, (part, _, _) in enumerate(found) if part == "train"]
    drawn, _ = stratified(torch.tensor([found[n][1] for n in training]), (VALIDATION,))
    val = {training[n] for n in drawn.tolist()}
    classes = sorted({label for _, label, _ in found})  # all 31, but for a part of the data
    samples = [
        Sample(
            clip.stem, classes.index(label), _part(part, n in val), {"audio": clip, "visual": clip}
        )
        for n, (part, label, clip) in enumerate(found)
    ]
    notes = [
        f"{missing['train']:,} training and {missing['test']:,} test clips of the lists are not in "
        f"{folder}; {len(found):,} are.",
        f"Validation split: {VALIDATION:.0%} of the training clips, stratified, seed 0.",
    ]
    readers: dict[str, Reader] = {
        "audio": Spectrogram(front, seconds),
        "visual": Video(frames, size),
    }
    # The lists number the classes and do not name them.
    return Source("kinetics_sounds", readers, samples, [str(n) for n in classes], notes)


def _clips(folder: Path) -> defaultdict[str, dict[int | None, Path]]:
    """By video, and by the second at which they begin (None where the name does not say)."""
    found: defaultdict[str, dict[int | None, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        name = re.fullmatch(r"(.{11})(?:_(\d+))?(?:_\d+)?", path.stem)
        if name and path.suffix.lower() in SUFFIXES:
            found[name[1]][int(name[2]) if name[2] else None] = path
    return found


def _part(part: str, drawn: bool) -> SplitName:
    if drawn:
        return "val"
    return "train" if part == "train" else "test"
