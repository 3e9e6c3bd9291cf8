"""UCF-101: actions in short clips, as pictures and as optical flow (Soomro et al., 2012)."""

import re
from pathlib import Path
from typing import Literal

from evenly.data.dataset import SplitName
from evenly.data.media.flow import FlowMethod
from evenly.data.raw.readers import Flow, Reader, Video
from evenly.data.raw.source import Sample, Source

GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
"""Test groups of the official splits: the clips of a group are cut from one video."""
VALIDATION = 3
"""Training groups that serve as validation split, the last ones."""


def ucf101(
    folder: Path,
    split: Literal[1, 2, 3] = 1,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
    flow: FlowMethod = "dis",
) -> Source:
    """The clips as distributed, `UCF-101/CLASS/v_CLASS_gGG_cCC.avi`, in an official split.

    The official lists hold a training and a test part, which no group shares. The last three
    groups of the training part become the validation split, so that no group is in two parts.

    Args:
        folder: Where the folder of each class is, or the folder `UCF-101` above them.
        split: Number of the official split.
        frames: Of each clip, as pictures and as flow from each to the next.
        size: Of the frames.
        flow: How it is computed.
    """
    root = folder / "UCF-101" if (folder / "UCF-101").is_dir() else folder
    found = sorted(root.glob("*/v_*_g*_c*.avi"))
    if not found:
        raise ValueError(
            f"{root}: holds no clip such as ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi."
        )
    classes = sorted({path.parent.name for path in found})
    samples = [
        Sample(
            path.stem,
            classes.index(path.parent.name),
            _part(path, split),
            {"rgb": path, "flow": path},
        )
        for path in found
    ]
    notes = [f"Validation split: the last {VALIDATION} training groups of official split {split}."]
    readers: dict[str, Reader] = {"rgb": Video(frames, size), "flow": Flow(frames, size, flow)}
    return Source("ucf101", readers, samples, classes, notes)


def _part(path: Path, split: int) -> SplitName:
    number = re.search(r"_g(\d+)_c\d+$", path.stem)
    assert number is not None
    group = int(number[1])
    training = [n for n in range(1, 26) if n not in GROUPS[split]]
    if group in GROUPS[split]:
        return "test"
    return "val" if group in training[-VALIDATION:] else "train"
