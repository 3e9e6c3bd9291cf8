"""Kinetics-Sounds: 31 actions that are seen and heard (Arandjelović & Zisserman, ICCV 2017)."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SPLITS, SplitName, stratified
from evenly.data.raw.readers import Reader, Video
from evenly.data.raw.sets.official import Front, listed, passed_over, some, sound
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes
from evenly.errors import UserError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv")


class Clip(NamedTuple):
    """A line of the lists.

    Attributes:
        split: That it belongs to.
        label: Its class.
        video: The eleven characters of the video's address.
        start: The second of it at which the clip begins.
    """

    split: SplitName
    label: int
    video: str
    start: int


def kinetics_sounds(
    folder: Path,
    front: Front = "fbank",
    seconds: float = 10.0,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The clips of OGM-GE's lists (14,799 / 2,597) that are in a folder, however deep.

    A clip is known by the eleven characters of its video's address, and by the second at which
    it begins where its name has it: `ID_000058_000068.mp4`, `ID_58.mp4` or `ID.mp4`. Many videos
    are gone from the web, so what is not there is left out and counted. A stratified 15 % of the
    listed training clips are the validation split (seed 0); the lists have none.

    Args:
        folder: Where the clips are.
        front: Front end of the sound: fbank and mel at 16 kHz, stft at 22,050 Hz.
        seconds: Of sound.
        frames: Of the video.
        size: Of the frames.
    """
    there, others = _files(folder)
    wanted = clips()
    found: dict[Clip, Path] = {}
    for clip in wanted:
        path = there[clip.video].get(clip.start, there[clip.video].get(None))
        if path is not None:
            found[clip] = path
    if not found:
        other = f", but {some([path.name for path in others])}" if others else ""
        raise UserError(
            f"{folder}: holds none of the {len(wanted):,} clips{other}. Name them such as "
            f"{wanted[0].video}_{wanted[0].start:06d}.mp4."
        )
    classes = sorted({clip.label for clip in found})  # all 31, but for a part of the data
    samples = [
        Sample(path.stem, classes.index(clip.label), clip.split, {"audio": path, "visual": path})
        for clip, path in found.items()
    ]
    notes = [
        *_missing(folder, wanted, found),
        *passed_over(others, "ID_000058_000068, ID_58 or ID"),
        f"Validation split: {VALIDATION:.0%} of the listed training clips, stratified, seed 0.",
    ]
    readers: dict[str, Reader] = {"audio": sound(front, seconds), "visual": Video(frames, size)}
    # The lists number the classes and do not name them.
    return Source("kinetics_sounds", readers, samples, Classes([str(n) for n in classes]), notes)


def clips() -> list[Clip]:
    """The lists.

    The validation split is drawn from all that they name, so that a clip stays in its split
    whatever others there are.
    """
    lines = [line.split() for line in listed("kinetics_sounds.txt.gz")]
    training = [n for n, (part, *_) in enumerate(lines) if part == "train"]
    drawn, _ = stratified(torch.tensor([int(lines[n][1]) for n in training]), (VALIDATION,))
    split: dict[int, SplitName] = dict.fromkeys(training, "train")
    split |= dict.fromkeys((training[n] for n in drawn.tolist()), "val")
    return [
        Clip(split.get(n, "test"), int(label), video, int(start))
        for n, (_, label, video, start) in enumerate(lines)
    ]


def _files(folder: Path) -> tuple[defaultdict[str, dict[int | None, Path]], list[Path]]:
    """By video, and by the second at which they begin (None where the name does not say).

    Also the videos whose names are of another form.
    """
    found: defaultdict[str, dict[int | None, Path]] = defaultdict(dict)
    others = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            name = re.fullmatch(r"([\w-]{11})(?:_(\d+))?(?:_\d+)?", path.stem, re.ASCII)
            if name:
                found[name[1]][int(name[2]) if name[2] else None] = path
            else:
                others.append(path)
    return found, others


def _missing(folder: Path, wanted: list[Clip], found: dict[Clip, Path]) -> list[str]:
    """Notes on the clips and classes that are not there."""
    if len(found) == len(wanted):
        return []
    lost = Counter(clip.split for clip in wanted if clip not in found)
    splits = ", ".join(f"{lost[split]:,} {split}" for split in SPLITS)
    notes = [
        f"{len(found):,} of the {len(wanted):,} clips of the lists are in {folder}; missing: "
        f"{splits}."
    ]
    classes = {clip.label for clip in wanted}
    if without := sorted(classes - {clip.label for clip in found}):
        names = some(without, 10)
        notes.append(f"{len(without)} of the {len(classes)} classes have no clip: {names}.")
    return notes
