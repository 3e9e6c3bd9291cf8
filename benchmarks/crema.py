"""Files shaped like CREMA-D's: clips of two JPEG frames and a WAV of three seconds, of six classes.

The class decides the direction of a picture's stripes and the tone, under noise: a small ResNet
learns it in a few epochs, but not immediately.
"""

import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from evenly.data.raw import Sample, Source, Spectrogram, Video
from evenly.data.tasks import Classes

CLASSES = list("abcdef")
RATE, SECONDS = 16_000, 3
HEIGHT, WIDTH = 360, 480


class Clip(NamedTuple):
    """One sample.

    Attributes:
        folder: The folder with 0.jpg, 1.jpg and sound.wav.
        label: Its class, from 0.
        split: train, val or test.
    """

    folder: Path
    label: int
    split: str


def write(folder: Path, counts: dict[str, int]) -> list[Clip]:
    """Writes this many clips of each split, with alternating classes."""
    clips = []
    for split, count in counts.items():
        for n in range(count):
            clip = Clip(folder / f"{split}-{n:05d}", n % len(CLASSES), split)
            _write(clip, np.random.default_rng([len(clips), clip.label]))
            clips.append(clip)
    return clips


def source(clips: list[Clip], size: int) -> Source:
    """The source from which `evenly prepare` makes a store."""
    readers = {"audio": Spectrogram("fbank", SECONDS), "visual": Video(2, (size, size))}
    samples = [
        Sample(
            clip.folder.name,
            clip.label,
            clip.split,
            {"audio": clip.folder / "sound.wav", "visual": clip.folder},
        )
        for clip in clips
    ]
    return Source("clips", readers, samples, Classes(CLASSES))


def _write(clip, draws):
    clip.folder.mkdir(parents=True)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    angle = np.pi * (clip.label + draws.normal(0, 0.25)) / len(CLASSES)
    for frame in range(2):
        along = (x * np.cos(angle) + y * np.sin(angle)) / 20 + draws.uniform(0, 2 * np.pi)
        picture = 127 + 60 * np.sin(along)[..., None] + draws.normal(0, 40, (HEIGHT, WIDTH, 3))
        pixels = picture.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(clip.folder / f"{frame}.jpg", quality=90)
    time = np.arange(RATE * SECONDS) / RATE
    tone = np.sin(2 * np.pi * 200 * 1.5 ** (clip.label + draws.normal(0, 0.25)) * time)
    sound = 3000 * tone + draws.normal(0, 3000, len(time))
    with wave.open(str(clip.folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.clip(-32768, 32767).astype("<i2").tobytes())
