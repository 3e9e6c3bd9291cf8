"""Stores made of real files by real processes, killed and continued, whole and broken."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Picture
from tensordict import TensorDict

from evenly.data.dataset import Data, Padded
from evenly.data.raw.prepare import prepare
from evenly.data.raw.readers import Array, Flow, Image, Spectrogram, Video, Wave
from evenly.data.raw.source import Sample, Source
from evenly.data.store import describe, is_store, open_store

SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 6


def make(folder, count=15, **readers):
    """Samples with a picture of grey k, a sound of amplitude k / 100, k + 1 steps and a vector."""
    folder.mkdir(exist_ok=True)
    samples = []
    for k in range(count):
        Picture.new("RGB", (12, 8), (k, k, k)).save(folder / f"{k}.png")
        soundfile.write(folder / f"{k}.wav", np.full(4000, k / 100), 8_000, "FLOAT")
        cells = {
            "picture": folder / f"{k}.png",
            "sound": folder / f"{k}.wav",
            "steps": np.full((k + 1, 2), k, np.float32),
            "vector": [k, -k, 0.5],
        }
        samples.append(Sample(f"sample{k}", k % 3, SPLITS[k], cells))
    readers = readers or {
        "picture": Image((8, 12)),
        "sound": Spectrogram("stft", 0.25, 8_000),
        "steps": Array("sequence", ragged=True),
        "vector": Array(),
    }
    return Source("made", readers, samples, ["a", "b", "c"])


def rows(data, split, name):
    part = data.split(split)
    return part.__getitems__(range(len(part)))["inputs"][name]


def assert_same(one, two):
    for split in ("train", "val", "test"):
        x, y = (d.split(split).__getitems__(range(len(d.split(split)))) for d in (one, two))
        assert torch.equal(x["target"], y["target"])
        for name in x["inputs"]:
            a, b = x["inputs"][name], y["inputs"][name]
            pairs = zip(a, b, strict=True) if isinstance(a, Padded) else [(a, b)]
            assert all(torch.equal(p, q) for p, q in pairs)
    for name, modality in one.modalities.items():
        other = two.modalities[name]
        assert (modality.kind, modality.shape) == (other.kind, other.shape)
        assert torch.equal(modality.mean, other.mean)
        assert torch.equal(modality.std, other.std)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    prepare(make(folder / "files"), folder / "store", workers=2, made_by="evenly prepare made")
    return folder / "store"


class TestStore:
    def test_what_was_read_is_what_the_files_hold(self, store):
        data = open_store(store)
        assert isinstance(data, Data)
        assert rows(data, "val", "picture").dtype == torch.uint8
        assert rows(data, "val", "picture").amax((1, 2, 3)).tolist() == [6, 7, 8]
        assert rows(data, "test", "vector").tolist() == [[k, -k, 0.5] for k in range(9, 15)]
        steps = rows(data, "train", "steps")
        assert steps.length.tolist() == [1, 2, 3, 4, 5, 6]
        assert steps.values.amax((1, 2)).tolist() == [0, 1, 2, 3, 4, 5]
        assert data.split("val").target.tolist() == [0, 1, 2]
        assert data.class_names == ["a", "b", "c"]

    def test_the_statistics_are_of_the_training_split(self, store):
        vector = open_store(store).modalities["vector"]
        assert vector.mean.tolist() == [2.5, -2.5, 0.5]
        assert vector.std[2] == 1
        steps = open_store(store).modalities["steps"]
        weights = torch.arange(1.0, 7)
        assert steps.mean[0] == pytest.approx(float((weights * (weights - 1)).sum() / 21))

    def test_it_says_what_it_holds(self, store):
        about = json.loads((store / "dataset.json").read_text())
        assert about["splits"] == {"train": 6, "val": 3, "test": 6}
        assert about["made_by"] == "evenly prepare made"
        assert about["modalities"]["sound"]["units"] == "ln magnitude"
        assert about["modalities"]["sound"]["dtype"] == "float16"
        assert about["modalities"]["picture"]["shape"] == [3, 8, 12]
        assert about["modalities"]["steps"] == {
            "kind": "sequence", "shape": [15, 2], "dtype": "float32", "units": "", "rate": None,
            "ragged": True, "missing": 0, "read": "array(kind=sequence,ragged=true)",
            "mean": about["modalities"]["steps"]["mean"],
            "std": about["modalities"]["steps"]["std"],
        }  # fmt: skip
        sizes = {k.rpartition("/")[2]: v for k, v in about["sources"].items()}
        assert len(sizes) == 30
        assert sizes["3.wav"] > 16_000

    def test_tensordict_opens_it(self, store):
        found = TensorDict.load_memmap(store)
        assert found["picture"].shape == (15, 3, 8, 12)
        assert found["label"].tolist() == [k % 3 for k in range(15)]

    def test_the_number_of_workers_changes_nothing(self, store, tmp_path):
        prepare(make(store.parent / "files"), tmp_path / "one", workers=1)
        assert_same(open_store(store), open_store(tmp_path / "one"))

    def test_the_same_command_again_has_nothing_to_do(self, store):
        before = {p.name: p.stat().st_mtime_ns for p in store.iterdir()}
        again = prepare(make(store.parent / "files"), store, workers=1)
        assert again == describe(store)
        assert {p.name: p.stat().st_mtime_ns for p in store.iterdir()} == before


def test_every_reader(tmp_path):
    readers = {
        "clip": Video(2, (6, 8)),
        "drawn": Video(2, (6, 8), "random"),
        "paced": Video(4, (6, 8), "rate", fps=5.0),
        "flow": Flow(2, (16, 16)),
        "field": Flow(2, (16, 16), "farneback", "stacked"),
        "mel": Spectrogram("mel", 0.2),
        "fbank": Spectrogram("fbank", 0.2),
        "wave": Wave(0.5, 8_000),
    }
    samples = []
    for k in range(3):
        clip = tmp_path / f"clip{k}"
        clip.mkdir()
        for n in range(10):
            Picture.new("RGB", (12, 8), (10 * n, k, 0)).save(clip / f"{n}.png")
        soundfile.write(tmp_path / f"{k}.wav", np.random.default_rng(k).normal(size=4000), 16_000)
        cells = {name: tmp_path / f"{k}.wav" if name in ("mel", "fbank", "wave") else clip
                 for name in readers}  # fmt: skip
        samples.append(Sample(clip.name, 0, ("train", "val", "test")[k], cells))
    prepare(Source("clips", readers, samples, ["one"]), tmp_path / "store", workers=1)
    data = open_store(tmp_path / "store")
    assert rows(data, "val", "clip")[0, :, 0, 0, 0].tolist() == [20, 70]
    drawn = rows(data, "val", "drawn")[0, :, 0, 0, 0].tolist()
    assert drawn[0] in range(0, 50, 10)
    assert drawn[1] in range(50, 100, 10)
    # 25 frames a second for 0.36 s: at 0 and 0.2 s, and then the last one again.
    assert rows(data, "val", "paced")[0, :, 0, 0, 0].tolist() == [0, 50, 50, 50]
    assert rows(data, "val", "flow").shape == (1, 2, 3, 16, 16)
    assert rows(data, "val", "field").shape == (1, 4, 16, 16)
    assert rows(data, "val", "mel").shape == (1, 1, 128, 21)
    assert rows(data, "val", "fbank").shape == (1, 1, 128, 18)
    assert rows(data, "val", "wave").shape == (1, 4000, 1)  # of 2,000: they are repeated
    kinds = {name: modality.kind for name, modality in data.modalities.items()}
    assert [kinds.pop(name) for name in ("clip", "drawn", "paced", "flow")] == ["video"] * 4
    assert kinds == {"field": "image", "mel": "image", "fbank": "image", "wave": "sequence"}


def test_a_missing_modality(tmp_path):
    source = make(tmp_path / "files")
    for k, name in ((1, "picture"), (4, "steps"), (7, "vector"), (11, "picture")):
        source.samples[k].cells[name] = None
    about = prepare(source, tmp_path / "store", workers=2)
    assert about.modalities["picture"].missing == 2
    assert about.modalities["sound"].missing == 0
    data = open_store(tmp_path / "store")
    train = data.split("train").__getitems__(range(6))
    assert train["present"]["picture"].tolist() == [True, False, True, True, True, True]
    assert set(train["present"]) == {"picture", "steps", "vector"}
    assert not train["inputs"]["picture"][1].any()
    assert train["inputs"]["steps"].length.tolist() == [1, 2, 3, 4, 0, 6]
    assert data.modalities["steps"].mean[0] == pytest.approx((0 + 2 + 6 + 12 + 30) / 16)
    assert data.modalities["picture"].mean.tolist() == pytest.approx([2.8] * 3)
    assert data.notes[0].startswith("2 of 15 samples lack 'picture'")


def test_a_sample_without_any_modality(tmp_path):
    source = make(tmp_path / "files")
    source.samples[2].cells.clear()
    with pytest.raises(ValueError, match="sample2: has none of the modalities"):
        prepare(source, tmp_path / "store", workers=1)


class TestBroken:
    def broken(self, folder):
        source = make(folder)
        (folder / "1.png").write_bytes(b"no picture")
        (folder / "9.wav").unlink()
        return source

    def test_they_are_listed_with_their_reasons(self, tmp_path):
        with pytest.raises(ValueError, match="2 of 15 samples cannot be used") as caught:
            prepare(self.broken(tmp_path / "files"), tmp_path / "store", workers=2)
        text = str(caught.value)
        assert f"sample1: picture: {tmp_path}/files/1.png: is no image" in text
        assert f"sample9: sound: {tmp_path}/files/9.wav: there is no such file" in text
        assert "--skip-broken" in text
        assert not is_store(tmp_path / "store")

    def test_skipped_when_asked(self, tmp_path):
        source = self.broken(tmp_path / "files")
        about = prepare(source, tmp_path / "store", workers=2, skip_broken=True)
        assert about.splits == {"train": 5, "val": 3, "test": 5}
        data = open_store(tmp_path / "store")
        assert data.notes == ["2 of 15 samples were left out as broken."]
        assert rows(data, "train", "vector")[:, 0].tolist() == [0, 2, 3, 4, 5]
        assert rows(data, "test", "steps").length.tolist() == [11, 12, 13, 14, 15]

    def test_mended_files_are_taken_and_no_others_read_again(self, tmp_path):
        files, out = tmp_path / "files", tmp_path / "store"
        source = self.broken(files)
        with pytest.raises(ValueError, match="2 of 15"):
            prepare(source, out, workers=2)
        fresh = make(tmp_path / "fresh")
        for name in ("1.png", "9.wav"):
            (tmp_path / "fresh" / name).rename(files / name)
        for path in files.iterdir():
            if path.name not in ("1.png", "1.wav", "9.png", "9.wav"):
                path.write_bytes(b"")  # whoever read these again would notice
        prepare(source, out, workers=2)
        make(tmp_path / "fresh")
        prepare(fresh, tmp_path / "other", workers=2)
        assert_same(open_store(out), open_store(tmp_path / "other"))

    def test_arrays_of_another_shape(self, tmp_path):
        source = make(tmp_path / "files")
        source.samples[2].cells["vector"] = [1.0, 2.0]
        with pytest.raises(ValueError, match=r"sample2: vector: has the shape \(2,\) of float32"):
            prepare(source, tmp_path / "store", workers=1)

    def test_numbers_that_are_not_finite(self, tmp_path):
        source = make(tmp_path / "files")
        source.samples[2].cells["vector"] = [1.0, np.nan, 0.0]
        with pytest.raises(ValueError, match="sample2: vector: holds values that are not finite"):
            prepare(source, tmp_path / "store", workers=1)


class TestFolder:
    def test_another_data_set_in_the_folder(self, store):
        with pytest.raises(ValueError, match="holds another store"):
            prepare(make(store.parent / "others"), store, workers=1)
        assert is_store(store)

    def test_other_files_in_the_folder(self, tmp_path):
        (tmp_path / "mine.txt").write_text("keep me")
        with pytest.raises(ValueError, match="is not empty"):
            prepare(make(tmp_path / "files"), tmp_path, workers=1)

    def test_no_store(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no prepared store"):
            open_store(tmp_path)

    @pytest.mark.parametrize("name", ["vector", "steps", "label"])
    def test_a_file_that_was_cut(self, tmp_path, name):
        prepare(make(tmp_path / "files"), tmp_path / "store", workers=1)
        path = tmp_path / "store" / f"{name}.memmap"
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(ValueError, match=r"The store is damaged: prepare it again\."):
            open_store(tmp_path / "store")

    def test_a_damaged_description(self, tmp_path):
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset\.json: is damaged"):
            open_store(tmp_path)

    def test_no_validation_split(self, tmp_path):
        source = make(tmp_path / "files", count=6)
        with pytest.raises(ValueError, match="no sample is in the val split"):
            prepare(source, tmp_path / "store", workers=1)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_store import make, Slow
from evenly.data.raw.prepare import prepare
if __name__ == "__main__":
    folder = Path({folder!r})
    source = make(folder / "files", vector=Slow(str(folder / "read")))
    prepare(source, folder / "store", workers=2)
"""


class Slow:
    """Takes its time over a vector, and notes that it read it."""

    kind, units, rate, ragged = "vector", "", None, False

    def __init__(self, log):
        self.log = log

    def __call__(self, cell):
        with open(self.log, "a") as file:
            file.write(f"{cell[0]}\n")
        time.sleep(0.3)
        return np.asarray(cell, np.float32)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again_it_decodes_no_sample_twice_that_was_written(tmp_path, how):
    script = SCRIPT.format(here=os.path.dirname(__file__), folder=str(tmp_path))
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, str(tmp_path / "run.py")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = tmp_path / "store" / "journal.jsonl"
    for _ in range(3000):
        if journal.exists() and journal.read_text().count("\n") >= 4:
            break
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(60)
    time.sleep(1)
    written = [json.loads(line)["sample"] for line in journal.read_text().splitlines()[1:]]
    assert 3 <= len(written) < 15
    with journal.open("a") as file:
        file.write('{"sample": 11, "a')  # as if killed while it wrote
    (tmp_path / "read").unlink()
    subprocess.run(command, check=True, timeout=120)
    again = sorted(int(line) for line in (tmp_path / "read").read_text().split())
    assert again == sorted(set(range(15)) - set(written))
    found = open_store(tmp_path / "store")
    assert rows(found, "train", "vector")[:, 0].tolist() == list(range(6))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process is left behind
