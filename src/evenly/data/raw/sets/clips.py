"""Clips of YouTube videos named in lists; many are gone from the web."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SPLITS, SplitName, stratified
from evenly.data.raw.readers import Reader
from evenly.data.raw.sets.official import leaks, passed_over, some
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes
from evenly.errors import UserError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv")


class Clip(NamedTuple):
    """A line of the lists.

    Attributes:
        split: Its split.
        label: Its class.
        video: The eleven characters of the video's address.
        start: The second of the video at which the clip begins.
    """

    split: SplitName
    label: int
    video: str
    start: int


def with_validation(clips: Sequence[Clip]) -> list[Clip]:
    """The clips, with a stratified part of the training clips as the validation split (seed 0).

    It is drawn from all listed clips, so that a clip's split does not depend on which others exist.
    Clips of one video stay together, and the first decides.
    """
    label: dict[str, int] = {}
    for clip in clips:
        if clip.split == "train":
            label.setdefault(clip.video, clip.label)
    drawn, _ = stratified(torch.tensor(list(label.values())), (VALIDATION,))
    videos = list(label)
    val = {videos[n] for n in drawn.tolist()}
    return [
        clip._replace(split="val") if clip.split == "train" and clip.video in val else clip
        for clip in clips
    ]


def source_of_clips(
    name: str,
    folder: Path,
    wanted: Sequence[Clip],
    classes: Sequence[str],
    readers: Mapping[str, Reader],
    *,
    by_video: bool,
    opened: Sequence[Path] = (),
) -> Source:
    """The clips in a folder, at any depth; missing ones are counted.

    Args:
        name: Name of the data set.
        folder: Where the clips are.
        wanted: The lists.
        classes: Names by class number; classes without any clip are left out.
        readers: Readers by modality, all reading from the clip.
        by_video: Whether a file without a second in its name is the video's only clip; otherwise it
            is ignored.
        opened: Files that the lists were read from.

    Raises:
        ValueError: If none of the clips exists.
    """
    there, others = _files(folder, by_video=by_video)
    found: dict[Clip, Path] = {}
    for clip in wanted:
        path = there.get((clip.video, clip.start), there.get((clip.video, None)))
        if path is not None:
            found[clip] = path
    if not found:
        other = f", but {some([path.name for path in others])}" if others else ""
        raise UserError(
            f"{folder}: holds none of the {len(wanted):,} clips{other}. Name them such as "
            f"{wanted[0].video}_{wanted[0].start:06d}.mp4."
        )
    labels = sorted({clip.label for clip in found})  # all of them, unless the data are partial
    samples = [
        Sample(path.stem, labels.index(clip.label), clip.split, dict.fromkeys(readers, path))
        for clip, path in found.items()
    ]
    notes = [
        *_missing(folder, wanted, found, classes),
        *passed_over(others, "ID_000058_000068, ID_58 or ID" if by_video else "ID_000058 or ID_58"),
        *leaks("videos", ((clip.video, clip.split) for clip in found)),
        f"Validation split: {VALIDATION:.0%} of the listed training clips, stratified, seed 0.",
    ]
    task = Classes([classes[n] for n in labels])
    return Source(name, readers, samples, task, notes, opened)


def _files(
    folder: Path, *, by_video: bool
) -> tuple[dict[tuple[str, int | None], Path], list[Path]]:
    """Files by video and by the second at which they begin (None if the name does not say).

    Also the videos with other forms of names.
    """
    found: dict[tuple[str, int | None], Path] = {}
    others = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            name = re.fullmatch(r"([\w-]{11})(?:_(\d+))?(?:_\d+)?", path.stem, re.ASCII)
            if name and (name[2] or by_video):
                found[name[1], int(name[2]) if name[2] else None] = path
            else:
                others.append(path)
    return found, others


def _missing(
    folder: Path, wanted: Sequence[Clip], found: Mapping[Clip, Path], classes: Sequence[str]
) -> list[str]:
    """Notes on missing clips and classes."""
    if len(found) == len(wanted):
        return []
    lost = Counter(clip.split for clip in wanted if clip not in found)
    splits = ", ".join(f"{lost[split]:,} {split}" for split in SPLITS)
    notes = [
        f"{len(found):,} of the {len(wanted):,} clips of the lists are in {folder}; missing: "
        f"{splits}."
    ]
    if without := sorted({clip.label for clip in wanted} - {clip.label for clip in found}):
        names = some([classes[n] for n in without], 10)
        notes.append(f"{len(without)} of the {len(classes)} classes have no clip: {names}.")
    return notes
