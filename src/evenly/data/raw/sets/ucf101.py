"""UCF-101: actions in short clips, as pictures and optical flow (Soomro et al., 2012)."""

import re
from pathlib import Path
from typing import Literal

from evenly.data.dataset import SplitName
from evenly.data.media.flow import FlowMethod
from evenly.data.raw.readers import Flow, Reader, Video
from evenly.data.raw.sets.official import listed, passed_over, some
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes
from evenly.errors import UserError

CLIPS = 13_320
GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
"""Test groups of the official splits: the clips of a group are cut from one video."""
LAST_GROUP = 25
VALIDATION = 3
"""Last training groups, which serve as validation split."""


def ucf101(
    folder: Path,
    split: Literal[1, 2, 3] = 1,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
    flow: FlowMethod = "dis",
) -> Source:
    """The clips as distributed, `UCF-101/CLASS/v_CLASS_gGG_cCC.avi`, in an official split.

    The official lists hold a training and a test part without common groups. The last three groups
    of the training part become the validation split, so that no group is in two splits. Missing
    clips and classes are counted.

    Args:
        folder: The folder with one folder per class, or the one above it that contains `UCF-101`.
        split: Number of the official split.
        frames: Number of frames of each clip, as pictures and as flow from each to the next.
        size: Size of the frames.
        flow: How to compute the flow.
    """
    root = folder / "UCF-101" if (folder / "UCF-101").is_dir() else folder
    groups, others = _clips(root)
    if not groups:
        found = f", but {some([path.relative_to(root) for path in others])}" if others else ""
        raise UserError(
            f"{root}: holds no clip such as ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi{found}. "
            "Unpack UCF101.rar there, and leave its names as they are."
        )
    classes = sorted({path.parent.name for path in groups})
    samples = [
        Sample(
            path.stem,
            classes.index(path.parent.name),
            _part(group, split),
            {"rgb": path, "flow": path},
        )
        for path, group in groups.items()
    ]
    notes = [
        *_missing(root, len(groups), classes),
        *passed_over(others, f"CLASS/v_CLASS_gGG_cCC.avi with a group up to {LAST_GROUP}"),
        f"Validation split: the last {VALIDATION} training groups of official split {split}.",
    ]
    readers: dict[str, Reader] = {"rgb": Video(frames, size), "flow": Flow(frames, size, flow)}
    return Source("ucf101", readers, samples, Classes(classes), notes)


def _clips(root: Path) -> tuple[dict[Path, int], list[Path]]:
    """The clips with their groups, and misnamed files."""
    classes = set(listed("ucf101.txt"))
    groups, others = {}, []
    for path in sorted(root.glob("*/*")):
        kind = path.parent.name
        # In any case: HandstandPushups holds v_HandStandPushups_g01_c01.avi.
        name = re.fullmatch(rf"v_{re.escape(kind)}_g(\d\d)_c\d\d\.avi", path.name, re.IGNORECASE)
        if name and kind in classes and 1 <= int(name[1]) <= LAST_GROUP:
            groups[path] = int(name[1])
        else:
            others.append(path)
    return groups, others


def _missing(root: Path, count: int, classes: list[str]) -> list[str]:
    """Notes on missing clips and classes."""
    lost = [name for name in listed("ucf101.txt") if name not in classes]
    notes = []
    if count != CLIPS:
        notes.append(f"{count:,} of the {CLIPS:,} clips are in {root}.")
    if lost:
        notes.append(f"{len(lost)} of the 101 classes have no clip: {some(lost, 10)}.")
    return notes


def _part(group: int, split: int) -> SplitName:
    training = [n for n in range(1, LAST_GROUP + 1) if n not in GROUPS[split]]
    if group in GROUPS[split]:
        return "test"
    return "val" if group in training[-VALIDATION:] else "train"
