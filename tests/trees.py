"""Miniature trees of data sets in their official layouts, written by real encoders."""

import gzip
import json
import pickle
import struct

import h5py
import numpy as np
import soundfile
from PIL import Image

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


def mosi_pickle(folder):
    return mmsa_pickle(folder, "unaligned_50.pkl", [-1.0, 1.0])


def mosei_pickle(folder):
    return mmsa_pickle(folder, "unaligned_50.pkl", [-2.6, 0.0, 1.4])


def sims_pickle(folder):
    return mmsa_pickle(folder, "unaligned_39.pkl", [-0.8, 0.0, 0.6], alone=True)


def mmsa_pickle(folder, name, scores, count=6, *, alone=False):
    """As MMSA writes it; the scores in turn, and others of each modality alone."""
    folder.mkdir(exist_ok=True)
    draws = np.random.default_rng(0)
    content = {}
    for split in ("train", "valid", "test"):
        mask = np.zeros((count, 3, 50), np.float32)
        mask[:, 1, :7] = 1
        found = np.resize(np.array(scores, np.float32), count)
        content[split] = {
            "id": np.array([f"{split}$_${n}" for n in range(count)]),
            "raw_text": np.array(["words"] * count),
            "text": draws.normal(size=(count, 50, 8)).astype(np.float32),
            "text_bert": mask,
            "audio": draws.normal(size=(count, 30, 5)),
            "audio_lengths": [n + 1 for n in range(count)],
            "vision": draws.normal(size=(count, 20, 4)),
            "vision_lengths": [0, *[20] * (count - 1)],
            "classification_labels": np.sign(found).astype(np.int64) + 1,
            "regression_labels": found,
        }
        if alone:
            content[split] |= {f"regression_labels_{m}": -found for m in "TAV"}
    (folder / name).write_bytes(pickle.dumps(content))
    return folder


def ave(folder, classes=("Bark", "Church bell", "Violin, fiddle")):
    """Three training clips of each class, one of each other split."""
    (folder / "AVE").mkdir(parents=True)
    for part, count in (("train", 3), ("val", 1), ("test", 1)):
        lines = []
        for kind, name in enumerate(classes):
            for n in range(count):
                video = f"{part:-<8}{kind}_{n}"
                lines.append(f"{name}&{video}&good&{n}&10")
                write_video(folder / "AVE" / f"{video}.mp4", 6, sound=0.5)
        (folder / f"{part}Set.txt").write_text("\n".join(lines))
    return folder


def vggsound(folder, classes=("dog barking", "heart sounds, heartbeat", "zebra braying")):
    """Four training clips of each class, one test clip; and a line whose clip is not there."""
    (folder / "video").mkdir(parents=True)
    lines = ['gone_______0,30,"heart sounds, heartbeat",test']
    for kind, name in enumerate(classes):
        for n, part in enumerate(("train", "train", "train", "train", "test")):
            video, start = f"clip-____{kind}{n}", 10 * n
            lines.append(f'{video},{start},"{name}",{part}')
            called = (f"{video}_{start:06d}", f"{video}_{start}")[n % 2]
            write_video(folder / "video" / f"{called}.mp4", 6, sound=0.5)
    (folder / "vggsound.csv").write_text("\n".join(lines))
    return folder


def food101(folder, classes=("apple_pie", "churros", "pho")):
    """Four training pictures of each class, one for testing, with titles."""
    (folder / "texts").mkdir(parents=True)
    for part, numbers in (("train", range(4)), ("test", range(4, 5))):
        lines = []
        for kind, name in enumerate(classes):
            (folder / "images" / part / name).mkdir(parents=True)
            for n in numbers:
                file = f"{name}_{n}.jpg"
                picture = np.full((16, 20, 3), 60 * kind, np.uint8)
                Image.fromarray(picture).save(folder / "images" / part / name / file)
                title = f'"{name.replace("_", " ").title()}, the best of {n}"' if n else f"dish {n}"
                lines.append(f"{file},{title},{name}")
        (folder / "texts" / f"{part}_titles.csv").write_text("\n".join(lines))
    return folder


def mvsa(folder, votes=("negative,neutral", "neutral,neutral", "positive,positive"), count=30):
    """Tweets with these labels in turn; three annotators stand apart by a tab in one of them."""
    (folder / "data").mkdir(parents=True)
    lines = ["ID\ttext,image"]
    for n in range(1, count + 1):
        vote = votes[n % len(votes)]
        lines.append(f"{n}\t{vote}")
        Image.fromarray(np.full((20, 16, 3), 8 * n, np.uint8)).save(folder / "data" / f"{n}.jpg")
        (folder / "data" / f"{n}.txt").write_text(f"RT @one: {vote.split(',')[0]} day {n} #x")
    (folder / "labelResultAll.txt").write_text("\r\n".join(lines))
    return folder


def mm_imdb(folder):
    """Movies with two of the genres each, all genres in each split, and one that is rare."""
    from evenly.data.raw.sets.mm_imdb import GENRES

    (folder / "dataset").mkdir(parents=True)
    split = {"train": [], "dev": [], "test": []}
    for part, movies in enumerate(split.values()):
        for n, genre in enumerate(GENRES):
            movie = f"{part}{n:06}"
            movies.append(movie)
            content = {
                "plot": [f"A {genre}.", f"A {genre} and a {GENRES[n - 1]} of day {part}."],
                "genres": [genre, GENRES[n - 1], "News"],
                "title": "Day",
            }
            (folder / "dataset" / f"{movie}.json").write_text(json.dumps(content))
            poster = Image.fromarray(np.full((30, 20, 3), 10 * n, np.uint8))
            poster.save(folder / "dataset" / f"{movie}.jpeg")
    (folder / "split.json").write_text(json.dumps(split))
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
