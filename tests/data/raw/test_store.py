"""Stores made of real files by real processes, killed and continued, whole and broken."""

import errno
import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Picture
from tensordict import TensorDict

import forked
from clips import write_video
from evenly.data.dataset import Data
from evenly.data.raw.decode import batches
from evenly.data.raw.journal import JOURNAL, Journal, checksum
from evenly.data.raw.prepare import prepare
from evenly.data.raw.readers import Array, Flow, Image, Spectrogram, Text, Video, Wave
from evenly.data.raw.rows import Part
from evenly.data.raw.source import Sample, Source
from evenly.data.store import describe, is_store, open_store
from evenly.data.tasks import Classes
from evenly.files import locked
from full import no_file_above
from stores import assert_same
from vectors import Killed, Slow

SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 6


def make(folder, count=15, **readers):
    """Samples with a picture of grey k, a sound of amplitude k / 100, k + 1 steps and a vector.

    Files that are there stay: sound of floats holds the time when it was written.
    """
    folder.mkdir(exist_ok=True)
    samples = []
    for k in range(count):
        if not (folder / f"{k}.png").exists():
            Picture.new("RGB", (12, 8), (k, k, k)).save(folder / f"{k}.png")
        if not (folder / f"{k}.wav").exists():
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
    return Source("made", readers, samples, Classes(["a", "b", "c"]))


def rows(data, split, name):
    part = data.split(split)
    return part.__getitems__(range(len(part)))["inputs"][name]


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
        assert vector.std[2] == 0
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
            "sample_rate": None, "ragged": True, "missing": 0, "streamed": False,
            "read": 'array(kind=sequence,ragged=true,rate=null,units="")',
            "mean": about["modalities"]["steps"]["mean"],
            "std": about["modalities"]["steps"]["std"],
        }  # fmt: skip
        sound = about["modalities"]["sound"]
        assert (sound["rate"], sound["sample_rate"]) == (8_000 / 353, 8_000)
        settings = "front=stft,sample_rate=8000,seconds=0.25,several=false,stream=0"
        assert sound["read"] == f"spectrogram({settings})"
        sizes = {k.rpartition("/")[2]: v for k, v in about["sources"].items()}
        assert len(sizes) == 30
        assert sizes["3.wav"] > 16_000

    def test_tensordict_opens_it(self, store):
        found = TensorDict.load_memmap(store)
        assert found["inputs", "picture"].shape == (15, 3, 8, 12)
        assert found["length", "steps"].tolist() == list(range(1, 16))
        assert found["label"].tolist() == [k % 3 for k in range(15)]

    def test_samples_keep_their_names(self, store):
        data = open_store(store)
        assert [data.names[row] for row in data.split("val").rows] == [
            "sample6", "sample7", "sample8",
        ]  # fmt: skip

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
    for k in range(6):
        clip = tmp_path / f"clip{k}"
        clip.mkdir()
        for n in range(10):
            Picture.new("RGB", (12, 8), (10 * n, k, 0)).save(clip / f"{n}.png")
        soundfile.write(tmp_path / f"{k}.wav", np.random.default_rng(k).normal(size=4000), 16_000)
        cells = {name: tmp_path / f"{k}.wav" if name in ("mel", "fbank", "wave") else clip
                 for name in readers}  # fmt: skip
        cells["paced"] = write_video(tmp_path / f"{k}.mp4")
        samples.append(Sample(clip.name, k % 2, ("train", "val", "test")[k // 2], cells))
    prepare(Source("clips", readers, samples, Classes(["a", "b"])), tmp_path / "store", workers=1)
    data = open_store(tmp_path / "store")
    assert rows(data, "val", "clip")[0, :, 0, 0, 0].tolist() == [20, 70]
    drawn = rows(data, "val", "drawn")[0, :, 0, 0, 0].tolist()
    assert drawn[0] in range(0, 50, 10)
    assert drawn[1] in range(50, 100, 10)
    # 25 frames a second for 0.36 s: at 0 and 0.2 s, and then the last one again.
    paced = rows(data, "val", "paced")[0, :, 0, 0, 0].tolist()
    assert paced == pytest.approx([0, 100, 100, 100], abs=4)
    assert rows(data, "val", "flow").shape == (2, 2, 3, 16, 16)
    assert rows(data, "val", "field").shape == (2, 4, 16, 16)
    assert rows(data, "val", "mel").shape == (2, 1, 128, 21)
    assert rows(data, "val", "fbank").shape == (2, 1, 128, 18)
    assert rows(data, "val", "wave").shape == (2, 4000, 1)  # of 2,000: they are repeated
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
    with pytest.raises(ValueError, match="sample2: has no modality"):
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
        assert f"sample1: picture: {tmp_path}/files/1.png: cannot be decoded" in text
        assert f"sample9: sound: {tmp_path}/files/9.wav: file not found" in text
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
                path.unlink()  # whoever read these again would notice
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
        with pytest.raises(ValueError, match="sample2: vector: holds nan"):
            prepare(source, tmp_path / "store", workers=1)


class TestFolder:
    def test_another_data_set_in_the_folder(self, store):
        with pytest.raises(ValueError, match="holds a store made from other files"):
            prepare(make(store.parent / "others"), store, workers=1)
        assert is_store(store)

    def test_other_files_in_the_folder(self, tmp_path):
        (tmp_path / "mine.txt").write_text("keep me")
        with pytest.raises(ValueError, match="is not empty"):
            prepare(make(tmp_path / "files"), tmp_path, workers=1)

    def test_no_store(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="not a prepared store"):
            open_store(tmp_path)

    @pytest.mark.parametrize("name", ["inputs/vector", "start/steps", "label"])
    def test_a_file_that_was_cut(self, tmp_path, name):
        prepare(make(tmp_path / "files"), tmp_path / "store", workers=1)
        path = tmp_path / "store" / f"{name}.memmap"
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(ValueError, match=r"The store is damaged: prepare it again\."):
            open_store(tmp_path / "store")
        about = describe(tmp_path / "store")
        assert prepare(make(tmp_path / "files"), tmp_path / "store", workers=1) == about
        open_store(tmp_path / "store")

    def test_a_damaged_description(self, tmp_path):
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset\.json: is damaged"):
            open_store(tmp_path)

    def test_a_description_that_was_edited(self, tmp_path):
        prepare(vectors(x=lambda k: [k]), tmp_path, workers=1)
        path = tmp_path / "dataset.json"
        whole = json.loads(path.read_text())
        edits = [{key: value} for key in whole for value in (None, 5, "x", [], {"a": 1}, 10**18)]
        for edit in edits:
            path.write_text(json.dumps(whole | edit))
            if whole | edit != whole:
                with pytest.raises(ValueError, match=r"dataset\.json: (is damaged|has the format)"):
                    open_store(tmp_path)
        for text in ("[]", "null", "5", "[" * 100_000, "{}", '{"format": 4}', "\xff"):
            path.write_bytes(text.encode("latin-1"))
            with pytest.raises(ValueError, match=r"dataset\.json: is damaged \("):
                open_store(tmp_path)
        path.write_text(json.dumps(whole))  # laid out otherwise
        assert open_store(tmp_path).class_names == ["a", "b"]

    @pytest.mark.parametrize("name", ["label", "split", "start/s", "length/s", "present/s"])
    def test_an_array_that_was_edited(self, tmp_path, name):
        source = vectors(x=lambda k: [k], s=lambda k: np.ones((k, 1)) if k else None)
        source.readers["s"] = Array("sequence", ragged=True)
        prepare(source, tmp_path, workers=1)
        path = tmp_path / f"{name}.memmap"
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.memmap: is not as evenly wrote it"):
            open_store(tmp_path)

    def test_no_validation_split(self, tmp_path):
        source = make(tmp_path / "files", count=6)
        with pytest.raises(ValueError, match="the val split is empty"):
            prepare(source, tmp_path / "store", workers=1)


def vectors(**cells):
    """Six samples of two classes; cell k of each modality is given by its function of k."""
    splits = ["train", "train", "val", "val", "test", "test"]
    samples = [
        Sample(f"s{k}", k % 2, splits[k], {name: cell(k) for name, cell in cells.items()})
        for k in range(6)
    ]
    return Source("vectors", {name: Array() for name in cells}, samples, Classes(["a", "b"]))


def everything(store, name):
    data = open_store(store)
    parts = [rows(data, split, name) for split in ("train", "val", "test")]
    return torch.cat(parts).flatten().tolist()


def test_a_store_is_prepared_by_one_process_and_also_where_there_are_no_locks(
    tmp_path, monkeypatch
):
    source, out = vectors(x=lambda k: [k, 1]), tmp_path / "store"
    out.mkdir()
    with (out / JOURNAL).open("w") as file:
        assert locked(file)
        with pytest.raises(ValueError, match=r"another process is preparing this store\. Wait"):
            prepare(source, out, workers=1)

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    prepare(source, out, workers=1)
    assert everything(out, "x") == [0, 1, 1, 1, 2, 1, 3, 1, 4, 1, 5, 1]


class TestNames:
    def test_no_modality_overwrites_what_belongs_to_another(self, tmp_path):
        names = ["said", "said_length", "said_start", "said_present", "label", "split", "inputs"]
        source = vectors(**{name: (lambda k, n=n: [10 * n + k]) for n, name in enumerate(names)})
        source.readers["said"] = Array("sequence", ragged=True)
        for k, sample in enumerate(source.samples):
            sample.cells["said"] = None if k == 1 else np.ones((k + 1, 1))
        prepare(source, tmp_path, workers=1)
        for n, name in enumerate(names[1:], 1):
            assert everything(tmp_path, name) == [10 * n + k for k in range(6)]
        said = open_store(tmp_path).split("train").__getitems__([0, 1])
        assert said["inputs"]["said"].length.tolist() == [1, 0]
        assert said["present"]["said"].tolist() == [True, False]
        assert TensorDict.load_memmap(tmp_path)["present", "said"].sum() == 5

    def test_any_name(self, tmp_path):
        names = ["face video", "A", "a", "a b", "a  b", "a:b", "a%b", "50%", "a*b?", "a\\b", "a,b"]
        names += ['q"<>|', "é", "e\u0301", "画像", "📷", "(x)", "[x]", "-", "#", " lead", "q=1"]
        names += ["~", "~41", "a~20b", "a~~2", "meta", "con", "$HOME", "x" * 80]
        source = vectors(**{name: (lambda k, n=n: [10 * n + k]) for n, name in enumerate(names)})
        prepare(source, tmp_path, workers=1)
        for n, name in enumerate(names):
            assert everything(tmp_path, name) == [10 * n + k for k in range(6)]
        files = [path.name for path in (tmp_path / "inputs").glob("*.memmap")]
        assert len({name.casefold() for name in files}) == len(names)
        assert all(re.fullmatch(r"[\w~-]+\.memmap", name) for name in files)
        assert TensorDict.load_memmap(tmp_path)["inputs", "face~20video"].flatten().tolist() == [
            0, 1, 2, 3, 4, 5,
        ]  # fmt: skip
        assert prepare(source, tmp_path, workers=1) == describe(tmp_path)

    @pytest.mark.parametrize("name", ["keys", "a.b", "a/b", "../out", ""])
    def test_a_name_that_cannot_be_used(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"vectors: rename the modality '{name}'"):
            prepare(vectors(**{name: lambda k: [k]}), tmp_path / "store", workers=1)
        assert list(tmp_path.iterdir()) == []


class TestNumbers:
    def test_every_type_is_stored_as_it_is_or_in_a_wider_one(self, tmp_path):
        types = [">f4", ">f8", "<f8", "<f2", ">i2", "<u2", ">u4", "u1", "?"]
        names = {f"x{n}": dtype for n, dtype in enumerate(types)}
        cells = {
            name: (lambda k, dtype=dtype: np.array([k % 2, 1], dtype))
            for name, dtype in names.items()
        }
        about = prepare(vectors(**cells), tmp_path, workers=1)
        assert all(everything(tmp_path, name) == [0, 1, 1, 1] * 3 for name in names)
        assert [field.dtype for field in about.modalities.values()] == [
            "float32", "float32", "float32", "float16", "int16", "int32", "int64", "uint8", "bool",
        ]  # fmt: skip

    @pytest.mark.parametrize("wrong", [np.array(["no"]), np.array([1j]), np.array([None])])
    def test_what_is_no_number(self, tmp_path, wrong):
        source = vectors(x=lambda k: wrong if k == 3 else [k])
        with pytest.raises(ValueError, match=f"{wrong.dtype} values, which cannot be stored as"):
            prepare(source, tmp_path, workers=1)

    def test_what_single_precision_cannot_hold(self, tmp_path):
        source = vectors(x=lambda k: [1e300 if k == 3 else 1.0])
        with pytest.raises(ValueError, match=r"s3: x: holds 1e\+300 \(float32 ends at 3\.4e\+38\)"):
            prepare(source, tmp_path, workers=1)


class TestBatches:
    def test_a_modality_that_no_sample_of_a_batch_has_is_blank(self):
        source = vectors(x=lambda k: [k, 1], y=lambda k: None if k < 2 else [k], z=lambda k: None)
        source.readers["steps"] = Array("sequence", ragged=True)
        source.samples[5].cells["steps"] = np.ones((3, 2))
        found = list(batches(source, 2, 1, []))
        assert [[s.name for s in samples] for samples, *_ in found] == [
            ["s0", "s1"], ["s2", "s3"], ["s4", "s5"],
        ]  # fmt: skip
        _, inputs, present = found[0]
        assert inputs["y"].tolist() == [[0], [0]]
        assert present["y"].tolist() == [False, False]
        assert inputs["steps"].values.shape == (2, 0, 2)
        assert "x" not in present
        _, inputs, present = found[2]
        assert inputs["y"].tolist() == [[4], [5]]
        assert inputs["steps"].length.tolist() == [0, 3]
        assert present["steps"].tolist() == [False, True]
        assert all("z" not in inputs for _, inputs, _ in found)  # nowhere: its shape is unknown


class TestOdd:
    """Files that their readers do not expect."""

    def test_each_is_reported_and_the_others_are_read(self, tmp_path):
        source = vectors(x=lambda k: tmp_path / f"{k}.npy", picture=lambda k: tmp_path / f"{k}.png")
        source.readers["picture"] = Image((4, 4))
        for k in range(6):
            np.save(tmp_path / f"{k}.npy", np.full(2, k))
            Picture.new("RGB", (4, 4)).save(tmp_path / f"{k}.png")
        np.savez(tmp_path / "two.npz", a=np.zeros(2))
        (tmp_path / "two.npz").rename(tmp_path / "0.npy")
        source.samples[3].cells["x"] = {"not": "numbers"}
        source.samples[4].cells["picture"] = 7
        with pytest.raises(ValueError, match="3 of 6 samples") as caught:
            prepare(source, tmp_path / "store", workers=1)
        text = str(caught.value)
        assert "s0: x: " in text
        assert "0.npy: is an .npz file of several arrays" in text
        assert "s3: x: holds an array of shape ()" in text
        assert "s4: picture: " in text

    def test_all_of_them(self, tmp_path):
        with pytest.raises(ValueError, match="6 of 6 samples cannot be used"):
            prepare(vectors(x=lambda k: ["no"]), tmp_path, workers=1, skip_broken=True)

    def test_clips_that_were_cut_off(self, tmp_path):
        source = vectors(sound=lambda k: None)
        kinds = {".mp4": "mpeg4", ".flv": "flv", ".avi": "mpeg4"}
        source.samples.extend(Sample(f"cut{kind}", 0, "train", {}) for kind in kinds)
        source.readers.update(clip=Video(2, (8, 8)), sound=Spectrogram("mel", 0.2))
        whole = write_video(tmp_path / "whole.mp4", sound=0.5)
        for sample in source.samples[:6]:
            sample.cells.update(clip=whole, sound=whole)
        for sample, (kind, codec) in zip(source.samples[6:], kinds.items(), strict=True):
            path = write_video(tmp_path / f"cut{kind}", codec=codec, sound=0.5)
            os.truncate(path, path.stat().st_size // 4)
            sample.cells.update(clip=path, sound=path)
        out = tmp_path / "store"
        with pytest.raises(ValueError, match="3 of 9 samples cannot be used") as caught:
            prepare(source, out, workers=1)
        for said in ("cut.mp4: is cut off", "cut.flv: cannot be decoded", "cut.avi: cannot"):
            assert said in str(caught.value)
        about = prepare(source, out, workers=1, skip_broken=True)
        assert about.splits == {"train": 2, "val": 2, "test": 2}
        assert about.notes[-1] == "3 of 9 samples were left out as broken."

    def test_a_clip_without_sound_lacks_it(self, tmp_path):
        source = vectors(picture=lambda k: None)
        source.readers.update(picture=Image((8, 8)), sound=Spectrogram("mel", 0.2))
        silent = write_video(tmp_path / "silent.mp4")
        loud = write_video(tmp_path / "loud.mp4", sound=0.5)
        for k, sample in enumerate(source.samples):
            sample.cells.update(picture=silent if k in (1, 4) else loud)
            sample.cells.update(sound=sample.cells["picture"])
        about = prepare(source, tmp_path / "store", workers=1)
        assert about.modalities["sound"].missing == 2
        data = open_store(tmp_path / "store")
        assert data.split("train").__getitems__([0, 1])["present"]["sound"].tolist() == [
            True,
            False,
        ]
        assert any(note.startswith("2 of 6 samples lack 'sound'") for note in data.notes)
        for sample in source.samples:
            del sample.cells["picture"]
        with pytest.raises(ValueError, match=r"s1: sound: .*silent\.mp4: has no sound"):
            prepare(source, tmp_path / "other", workers=1)


class TestAgain:
    """The same command once more."""

    def broken(self, folder):
        folder.mkdir(exist_ok=True)
        source = vectors(x=lambda k: folder / f"{k}.npy")
        source.samples.append(Sample("s6", 0, "train", {"x": folder / "6.npy"}))
        for k in range(6):
            np.save(folder / f"{k}.npy", np.full(2, k, np.float32))
        return source

    def test_without_skipping_what_is_broken_the_store_stays(self, tmp_path):
        source, out = self.broken(tmp_path / "files"), tmp_path / "store"
        about = prepare(source, out, workers=1, skip_broken=True)
        with pytest.raises(ValueError, match="1 of 7 samples cannot be used"):
            prepare(source, out, workers=1)
        assert describe(out) == about
        np.save(tmp_path / "files" / "6.npy", np.full(2, 6, np.float32))
        assert prepare(source, out, workers=1).splits["train"] == 3

    def test_what_is_still_broken_changes_no_byte(self, tmp_path):
        """Runs know their data by the description; a command like the first goes on with them."""
        source, out = self.broken(tmp_path / "files"), tmp_path / "store"
        prepare(source, out, workers=1, skip_broken=True, made_by="evenly train")
        before = (out / "dataset.json").read_bytes()
        prepare(source, out, workers=1, skip_broken=True, made_by="evenly train --resume")
        assert (out / "dataset.json").read_bytes() == before

    def test_files_that_have_changed(self, tmp_path):
        """By their content: a copy has another time, too."""
        source, out = self.broken(tmp_path / "files"), tmp_path / "store"
        prepare(source, out, workers=1, skip_broken=True)
        path = tmp_path / "files" / "2.npy"
        os.utime(path, (0, 0))
        prepare(source, out, workers=1, skip_broken=True)
        np.save(path, np.full(2, 7, np.float32))
        with pytest.raises(ValueError, match=r"1 of its files have changed since .*/2\.npy\. Re"):
            prepare(source, out, workers=1, skip_broken=True)

    def test_an_unfinished_store_reads_changed_files_again(self, tmp_path):
        source, out = self.broken(tmp_path / "files"), tmp_path / "store"
        with pytest.raises(ValueError, match="1 of 7 samples cannot be used"):
            prepare(source, out, workers=1)
        np.save(tmp_path / "files" / "6.npy", np.full(2, 6, np.float32))
        np.save(tmp_path / "files" / "2.npy", np.full(2, 7, np.float32))
        for _ in range(2):
            prepare(source, out, workers=1)
            assert [everything(out, "x").count(value) for value in (2, 7)] == [0, 2]

    @pytest.mark.parametrize("size", [10, 200_000])
    def test_any_of_sixteen_parts_of_a_file(self, tmp_path, size):
        path = tmp_path / "a"
        known = []
        for part in range(16):
            content = bytearray(size)
            content[(size - 1) * part // 15] = 1
            path.write_bytes(content)
            known.append(checksum(path))
            assert known[-1] == checksum(Part(path, 0, size))
        assert len(set(known)) == min(size, 16)

    def test_from_another_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        prepare(self.broken(Path("files")), Path("store"), workers=1, skip_broken=True)
        (tmp_path / "else").mkdir()
        monkeypatch.chdir(tmp_path / "else")
        for folder in (tmp_path / "files", Path("../files")):
            again = prepare(self.broken(folder), Path("../store"), workers=1, skip_broken=True)
            assert again.samples == 7

    @pytest.mark.parametrize("text", ["", '{"prepar'])
    def test_killed_before_anything_was_noted(self, tmp_path, text):
        (tmp_path / "journal.jsonl").write_text(text)
        assert prepare(vectors(x=lambda k: [k]), tmp_path, workers=1).samples == 6

    def test_an_attempt_that_decoded_nothing_is_forgotten(self, tmp_path):
        source = vectors(x=lambda k: tmp_path / f"{k}.npy")
        with pytest.raises(ValueError, match="cannot be used"):
            prepare(source, tmp_path / "out", workers=1)
        source = vectors(x=lambda k: [k])
        assert prepare(source, tmp_path / "out", workers=1).samples == len(source.samples)

    def test_a_journal_that_is_none_is_left_alone(self, tmp_path):
        (tmp_path / "journal.jsonl").write_text("dear diary,\nwe prepared\n")
        with pytest.raises(ValueError, match="holds a store made from other files"):
            prepare(vectors(x=lambda k: [k]), tmp_path, workers=1)
        assert (tmp_path / "journal.jsonl").read_text().startswith("dear")

    def test_two_at_once(self, tmp_path):
        source = vectors(x=lambda k: [k])
        with Journal(source, tmp_path), pytest.raises(ValueError, match="another process is"):
            prepare(source, tmp_path, workers=1)

    def test_what_did_not_reach_the_disk_is_decoded_again(self, tmp_path):
        source = self.broken(tmp_path / "files")
        source.readers["x"] = Array("sequence", ragged=True)
        for k in range(6):
            np.save(tmp_path / "files" / f"{k}.npy", np.full((1, 2), k, np.float32))
        with pytest.raises(ValueError, match="1 of 7"):
            prepare(source, tmp_path / "store", workers=1)
        values = tmp_path / "store" / "inputs" / "x.memmap"
        with values.open("r+b") as file:
            file.seek(8 * 2)
            file.write(b"\0" * 8)  # of sample 2
        os.truncate(values, 8 * 5)  # sample 5 is lost
        for k in (0, 1, 3, 4):
            (tmp_path / "files" / f"{k}.npy").unlink()
        prepare(source, tmp_path / "store", workers=1, skip_broken=True)
        data = open_store(tmp_path / "store")
        assert rows(data, "val", "x").values.tolist() == [[[2, 2]], [[3, 3]]]
        assert rows(data, "test", "x").values.tolist() == [[[4, 4]], [[5, 5]]]


def test_one_class_only(tmp_path):
    source = replace(vectors(x=lambda k: [k]), task=Classes(["a"]))
    with pytest.raises(
        ValueError, match=r"all samples are of the class 'a'\. Classification needs"
    ):
        prepare(source, tmp_path / "store", workers=1)


def test_a_tokenizer_that_is_not_there_is_said_once_and_first(tmp_path):
    source = vectors(x=lambda k: "some words")
    source.readers["x"] = Text(tokenizer=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^there is no tokenizer .*none"):
        prepare(source, tmp_path / "store", workers=1)


def test_a_full_disk_is_named_and_what_was_written_is_taken_up(tmp_path):
    source = vectors(vector=lambda k: [float(k)] * 1000)
    whole = prepare(source, tmp_path / "whole", workers=1)
    with no_file_above(20_000), pytest.raises(OSError, match=r"File too large: '.*/store'"):
        prepare(source, tmp_path / "store", workers=1)
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert journal.count('"at"') == 5
    assert prepare(source, tmp_path / "store", workers=1) == whole
    assert_same(open_store(tmp_path / "whole"), open_store(tmp_path / "store"))


def prepare_slowly(folder):
    source = make(folder / "files", vector=Slow(str(folder / "read")))
    prepare(source, folder / "store", workers=2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again_it_decodes_no_sample_twice_that_was_written(tmp_path, how):
    process = forked.Forked(prepare_slowly, tmp_path)
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
    workers = {int(line.split()[1]) for line in (tmp_path / "read").read_text().splitlines()}
    (tmp_path / "read").unlink()
    assert forked.run(prepare_slowly, tmp_path).returncode == 0
    again = sorted(int(line.split()[0]) for line in (tmp_path / "read").read_text().splitlines())
    assert again == sorted(set(range(15)) - set(written))
    found = open_store(tmp_path / "store")
    assert rows(found, "train", "vector")[:, 0].tolist() == list(range(6))
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", ["reading", "sending"])
def test_a_process_that_is_killed_is_said_and_the_same_command_goes_on(tmp_path, moment):
    source = make(tmp_path / "files", vector=Killed(moment))
    said = r"^made: the process that decoded 'sample7' was killed, perhaps out of memory\. Run"
    with pytest.raises(RuntimeError, match=said):
        prepare(source, tmp_path / "store", workers=2)
    journal = (tmp_path / "store" / "journal.jsonl").read_text()
    assert journal.count('"at"') == 7
    source.readers["vector"].moment = "never"
    prepare(source, tmp_path / "store", workers=2)
    found = open_store(tmp_path / "store")
    assert rows(found, "val", "vector")[:, 0].tolist() == [6, 7, 8]


def test_a_process_ends_though_it_has_not_closed_its_pool():
    code = "import sys; from evenly.pool import pool; sys.held = pool(abs, 1, 'evenly')"
    ran = forked.run(forked.code, f"{code}; print(sys.held.__enter__()(-3).result())")
    assert (ran.returncode, ran.stdout) == (0, "3\n")
