"""AVE: 28 events that are seen and heard (Tian et al., ECCV 2018).

The layout is that of the authors' AVE_Dataset.zip, according to its ReadMe.txt, to Annotations.txt
of https://github.com/YapengTian/AVE-ECCV18, and to public loaders, which read the three lists of
the split in the form of Annotations.txt. The archive itself was not available.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Reader, Video
from evenly.data.raw.sets.official import (
    Front,
    leaks,
    misread,
    needed,
    passed_over,
    rows,
    sound,
)
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes

LISTS: dict[str, SplitName] = {
    "trainSet.txt": "train",
    "valSet.txt": "val",
    "testSet.txt": "test",
}
FORM = ["Category", "VideoID", "Quality", "StartTime", "EndTime"]


class Event(NamedTuple):
    """A line of the lists.

    Attributes:
        split: Its split.
        category: The event that is seen and heard.
        video: The address of the video.
        seconds: When it begins and ends, as `0-10`.
    """

    split: SplitName
    category: str
    video: str
    seconds: str


def ave(
    folder: Path,
    front: Front = "fbank",
    seconds: float = 10.0,
    frames: int = 3,
    size: tuple[int, int] = (224, 224),
) -> Source:
    """The 4,143 events of the official split (3,339 / 402 / 402), each with its whole clip.

    `trainSet.txt`, `valSet.txt` and `testSet.txt` hold a line for each event, such as `Church
    bell&RUhOCu3LNXM&good&0&10`; the clips are `AVE/RUhOCu3LNXM.mp4`, ten seconds each. A clip with
    several events occurs once for each. The start and end of events are not used, as usual in AVE
    classification.

    Args:
        folder: Where the lists and the folder `AVE` are.
        front: Front end of the sound: fbank and mel at 16 kHz, stft at 22,050 Hz.
        seconds: Length of the sound.
        frames: Number of video frames.
        size: Size of the frames.
    """
    opened = [needed(folder, name) for name in LISTS]
    events = [event for path in opened for event in _events(path)]
    classes = sorted({event.category for event in events})
    samples = []
    for event in events:
        clip = folder / "AVE" / f"{event.video}.mp4"
        name, label = f"{event.video}[{event.seconds}]", classes.index(event.category)
        samples.append(Sample(name, label, event.split, {"audio": clip, "visual": clip}))
    known = {path for sample in samples for path in sample.files()}
    others = [path for path in sorted((folder / "AVE").glob("*")) if path not in known]
    videos = {event.video for event in events}
    notes = [
        *passed_over(others, "as one of the listed videos, ID.mp4"),
        *leaks("videos", ((event.video, event.split) for event in events)),
    ]
    if len(videos) < len(events):
        notes.append(
            f"{len(events):,} events are in {len(videos):,} videos: one with several events is "
            "there for each, and no model can tell which is meant."
        )
    readers: dict[str, Reader] = {"audio": sound(front, seconds), "visual": Video(frames, size)}
    return Source("ave", readers, samples, Classes(classes), notes, opened)


def _events(path: Path) -> Iterator[Event]:
    for line, row in rows(path, "&", quoted=False):
        if row == FORM:
            continue
        if len(row) != len(FORM) or not all(row):
            raise misread(path, line, row, "&".join(FORM))
        category, video, _, start, end = row
        yield Event(LISTS[path.name], category, video, f"{start}-{end}")
