"""Miniature trees of data sets in their official layouts, written by real encoders."""

import gzip
import pickle
import struct

import h5py
import numpy as np
import soundfile

from clips import write_video


def cremad(folder, actors=tuple(str(1001 + n) for n in range(10))):
    """Every clip of a few actors and sentences: sound of its class's pitch, a short video."""
    from evenly.data.raw.sets.cremad import EMOTIONS, _clips

    for part in ("AudioWAV", "VideoFlash"):
        (folder / part).mkdir(parents=True)
    pitch = {emotion: 200 * (n + 1) for n, emotion in enumerate(EMOTIONS)}
    for name, _ in _clips():
        actor, sentence, emotion, _ = name.split("_")
        if actor in actors and sentence in ("IEO", "TAI", "DFA"):
            wave = 0.3 * np.sin(2 * np.pi * pitch[emotion] * np.arange(8000) / 16_000)
            soundfile.write(folder / "AudioWAV" / f"{name}.wav", wave, 16_000)
            write_video(folder / "VideoFlash" / f"{name}.flv", 4, codec="flv", rate=30)
    return folder


def kinetics_sounds(folder, classes=3):
    """Two training clips of each class and one of each other split, under any of their names."""
    from evenly.data.raw.sets.kinetics_sounds import clips

    wanted = {(split, label): 1 + (split == "train")
              for split in ("train", "val", "test") for label in range(classes)}  # fmt: skip
    for split, label, video, start in clips():
        if wanted.get((split, label)):
            wanted[split, label] -= 1
            names = (f"{video}_{start:06d}_{start + 10:06d}", f"{video}_{start}", video)
            where = folder / str(label)
            where.mkdir(parents=True, exist_ok=True)
            write_video(where / f"{names[sum(wanted.values()) % 3]}.mp4", 6, sound=0.5)
    return folder


def ucf101(folder, classes=("ApplyEyeMakeup", "YoYo"), groups=(1, 2, 8, 9, 15, 22, 23, 24, 25)):
    for name in classes:
        (folder / "UCF-101" / name).mkdir(parents=True)
        for group in groups:
            clip = folder / "UCF-101" / name / f"v_{name}_g{group:02d}_c01.avi"
            write_video(clip, 8)
    return folder


def mosi(folder, videos=3, segments=2):
    """The four files of the SDK, for a few videos of each fold."""
    from evenly.data.raw.sets.official import listed

    folder.mkdir()
    draws = np.random.default_rng(0)
    rates = {
        "CMU_MOSI_TimestampedWordVectors": (3, 6),
        "CMU_MOSI_COVAREP": (20, 4),
        "CMU_MOSI_Visual_Facet_42": (10, 5),
    }
    names = [v for line in listed("mosi.txt") for v in line.split()[1 : 1 + videos]]
    for name, (rate, width) in rates.items():
        with h5py.File(folder / f"{name}.csd", "w") as file:
            root = file.create_group(name)
            root.create_group("metadata")
            for video in names:
                times = np.arange(10 * rate) / rate
                entry = root.create_group(f"data/{video}")
                entry["intervals"] = np.stack([times, times + 1 / rate], 1)
                values = draws.normal(size=(len(times), width)).astype(np.float32)
                if "COVAREP" in name:
                    values[0] = -np.inf  # as for a silent frame
                entry["features"] = values
    with h5py.File(folder / "CMU_MOSI_Opinion_Labels.csd", "w") as file:
        for n, video in enumerate(names):
            entry = file.create_group(f"Opinion Segment Labels/data/{video}")
            begins = np.arange(segments) * 4.0
            entry["intervals"] = np.stack([begins, begins + 3], 1)
            entry["features"] = np.array([[(-1.0) ** (n + s) * 2] for s in range(segments)])
    return folder


def mosi_pickle(folder, count=6):
    """As MMSA writes it."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    content = {}
    for split in ("train", "valid", "test"):
        mask = np.zeros((count, 3, 50), np.float32)
        mask[:, 1, :7] = 1
        content[split] = {
            "id": np.array([f"{split}$_${n}" for n in range(count)]),
            "raw_text": np.array(["words"] * count),
            "text": draws.normal(size=(count, 50, 8)).astype(np.float32),
            "text_bert": mask,
            "audio": draws.normal(size=(count, 30, 5)),
            "audio_lengths": [n + 1 for n in range(count)],
            "vision": draws.normal(size=(count, 20, 4)),
            "vision_lengths": [0, *[20] * (count - 1)],
            "regression_labels": np.array([(-1.0) ** n for n in range(count)], np.float32),
        }
    (folder / "unaligned_50.pkl").write_bytes(pickle.dumps(content))
    return folder


def av_mnist(folder, images=80):
    """Idx files, one of them not compressed, and recordings of two speakers."""
    (folder / "recordings").mkdir(parents=True)
    for part, count in (("train", images), ("t10k", images // 2)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.repeat(labels, 28 * 28).reshape(count, 28, 28) * 20
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(">HBB", 0, 8, array.ndim)
            head += struct.pack(f">{array.ndim}I", *array.shape)
            path = folder / f"{part}-{name}-ubyte"
            if part == "train":
                path.write_bytes(head + array.tobytes())
            else:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(head + array.tobytes()))
    for digit in range(10):
        for speaker in ("jackson", "lucas"):
            for number in (0, 7, 12):
                wave = 0.3 * np.sin((digit + 1) * 0.1 * np.arange(2400))
                soundfile.write(
                    folder / "recordings" / f"{digit}_{speaker}_{number}.wav", wave, 8_000
                )
    return folder
