"""Parquet files as the Hugging Face Hub has them."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Image, Value, Video
from pyarrow import parquet

from clips import write_video
from evenly.data import from_datasets, open_store
from evenly.data.raw import Array, Spectrogram, Text, prepare, table
from evenly.data.raw import Image as ImageReader
from evenly.data.raw.rows import Entry, ParquetRows, Turn
from hubs import FEATURES, FILE, dataset, on_the_hub, picture

SMALL = {
    "photo": "image(size=[2,2])",
    "sound": "spectrogram(front=stft,seconds=0.25,sample_rate=8000)",
}


@pytest.fixture
def hub(tmp_path):
    """Of 8 training samples in two shards, 4 of validation and 4 of test."""
    train = [dataset(range(5)), dataset(range(5, 8))]
    return on_the_hub(
        tmp_path / "cats",
        train=train,
        validation=dataset(range(8, 12)),
        test=dataset(range(12, 16)),
    )


def said(path, **options):
    """What is said of a table that cannot be used."""
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, **options)
    return str(caught.value)


class TestFolders:
    def test_what_columns_and_splits_are(self, hub):
        source = table(hub)
        vocabulary = source.readers["caption"].vocabulary
        assert source.readers == {
            "photo": ImageReader(),
            "sound": Spectrogram(),
            "caption": Text(vocabulary=vocabulary),
            "age": Array(),
        }
        assert source.name == "cats"
        assert source.classes == ["cat", "dog"]
        assert [s.split for s in source.samples] == ["test"] * 4 + ["train"] * 8 + ["val"] * 4
        assert [s.label for s in source.samples] == [0, 1] * 8
        assert {"cat", "7"} < set(vocabulary.split())
        assert "8" not in vocabulary.split()  # validation has it
        assert len(list(source.files())) == 4

    def test_every_cell_is_stored_once(self, hub, tmp_path):
        prepare(table(hub, None, SMALL), tmp_path / "store", workers=2)
        data = open_store(tmp_path / "store")
        batch = data.split("train").__getitems__(range(8))
        assert batch["inputs"]["photo"][:, 0, 0, 0].tolist() == list(range(8))
        loudness = batch["inputs"]["sound"].float().amax((1, 2, 3))
        assert (loudness[1:].diff() > 0).all()
        assert batch["inputs"]["age"].flatten().tolist() == [k / 2 for k in range(8)]
        assert batch["target"].tolist() == [0, 1] * 4
        assert data.class_names == ["cat", "dog"]

    def test_splits_of_other_names_and_the_rest_left_out(self, hub):
        source = table(hub, splits={"train": "train", "test": "validation"})
        assert [s.split for s in source.samples].count("test") == 4
        assert len(source.samples) == 12
        assert "cats: 4 samples are in none of the splits asked for: left out." in source.notes
        assert any("has no val split" in note for note in source.notes)

    def test_several_splits_are_one(self, hub):
        source = table(hub, splits={"train": "train+validation", "test": "test"})
        assert {s.split for s in source.samples} == {"train", "val", "test"}
        assert len(source.samples) == 16

    def test_names_that_say_no_split(self, tmp_path):
        for number in range(2):
            rows = range(8 * number, 8 * number + 8)
            dataset(rows).to_parquet(tmp_path / f"part{number}.parquet")
        source = table(tmp_path)
        assert {s.split for s in source.samples} == {"train", "val", "test"}
        assert len(source.notes) == 2

    @pytest.mark.parametrize("name", ["dev", "valid", "my_val", "validation.clean"])
    def test_words_for_validation(self, tmp_path, name):
        path = on_the_hub(tmp_path, train=dataset(), test=dataset(), **{name: dataset()})
        assert [s.split for s in table(path).samples].count("val") == 8

    def test_folders_that_name_splits(self, tmp_path):
        for name in ("train", "test"):
            (tmp_path / name).mkdir()
            dataset(range(8)).to_parquet(tmp_path / name / "0000.parquet")
        assert [s.split for s in table(tmp_path).samples].count("test") == 8

    @pytest.mark.parametrize("form", ["{}/train-{}.parquet", "{}/train/{}.parquet"])
    def test_two_versions_of_a_split(self, tmp_path, form):
        for n, version in enumerate(("raw", "clean")):
            for part in (form, form.replace("train", "test")):
                path = tmp_path / part.format(version, n)
                path.parent.mkdir(exist_ok=True, parents=True)
                dataset(range(8)).to_parquet(path)
        assert "are both of the test split, but in different folders" in said(tmp_path)
        assert len(table(tmp_path / "raw").samples) == 16

    def test_one_file_alone(self, hub):
        """It is drawn from, whatever split its name says."""
        dataset(range(20)).to_parquet(hub / "data" / "test-00000-of-00001.parquet")
        source = table(hub / "data" / "test-00000-of-00001.parquet")
        assert source.classes == ["cat", "dog"]
        assert [s.split for s in source.samples].count("train") == 14

    def test_pictures_that_lie_beside_the_file(self, tmp_path):
        features = Features({"photo": Image(), "label": FEATURES["label"]})
        for number, part in enumerate(("train", "test")):
            (tmp_path / part).mkdir()
            for k in range(8):
                (tmp_path / part / f"{k}.png").write_bytes(picture(k + 100 * number))
            cells = [{"bytes": None, "path": f"{k}.png"} for k in range(8)]
            found = dataset(features=features, photo=cells)
            parquet.write_table(found.data.table, tmp_path / part / "a.parquet")
        source = table(tmp_path)
        assert source.readers["photo"](source.samples[0].cells["photo"]).max() == 100
        assert source.readers["photo"](source.samples[9].cells["photo"]).max() == 1


@pytest.mark.parametrize("in_python", [False, True])
def test_clips_of_the_feature_video(tmp_path, in_python):
    """The feature says what they are: by the name of the column, they would be sounds."""
    clips = [write_video(tmp_path / f"{n}.mp4", frames=n, sound=0.2) for n in (5, 10)]
    cells = [{"bytes": clips[k % 2].read_bytes(), "path": None} for k in range(12)]
    features = Features({"voice": Video(), "label": FEATURES["label"]})
    found = dataset(range(12), features, voice=cells)
    if in_python:
        data = from_datasets(found, tmp_path / "store", workers=1)
    else:
        found.to_parquet(tmp_path / "t.parquet")
        prepare(table(tmp_path / "t.parquet"), tmp_path / "store", workers=1)
        data = open_store(tmp_path / "store")
    assert data.modalities["voice"].kind == "video"
    part = data.split("train")
    frames = part.__getitems__(range(len(part)))["inputs"]["voice"]
    # Frame k is a grey of 20 k: the middles of halves are frames 1 and 3 of 5, 2 and 7 of 10.
    wanted = [[20, 60] if row % 2 == 0 else [40, 140] for row in part.rows.tolist()]
    assert frames[:, :, 0, 0, 0].float().numpy() == pytest.approx(np.array(wanted), abs=6)


class TestLabels:
    def test_the_only_class_column_is_the_label(self, tmp_path):
        features = Features({"photo": Image(), "breed": ClassLabel(names=["b", "a", "unseen"])})
        path = tmp_path / "t.parquet"
        dataset(range(16), features, breed=[k % 2 for k in range(16)]).to_parquet(path)
        source = table(path)
        assert source.classes == ["b", "a"]
        assert list(source.readers) == ["photo"]
        assert source.notes[0] == "t.parquet: 'breed' is the label column."

    def test_another_class_column_is_no_modality(self, tmp_path):
        both = {"fine": ClassLabel(names=["c", "d"]), "coarse": ClassLabel(names=["x", "y"])}
        features = Features({"age": Value("float32"), **both})
        path = tmp_path / "t.parquet"
        classes = [k % 2 for k in range(16)]
        dataset(range(16), features, fine=classes, coarse=classes).to_parquet(path)
        assert "has classes in fine, coarse. Say with --label which" in said(path)
        source = table(path, label="coarse")
        assert source.classes == ["x", "y"]
        assert list(source.readers) == ["age"]
        assert any("'fine' holds class numbers, too" in note for note in source.notes)
        assert list(table(path, ["fine"], label="coarse").readers) == ["fine"]

    def test_a_label_that_has_no_name(self, tmp_path):
        path = tmp_path / "t.parquet"
        dataset(label=[0, 1] * 3 + [0, 2]).to_parquet(path)
        assert "row 8 has the label 2, but only the classes 0 to 1 have names" in said(path)

    def test_no_label(self, hub):
        shard = hub / "data" / "test-00000-of-00001.parquet"
        dataset(range(12, 16), label=[-1] * 4).to_parquet(shard)
        assert "row 1 has no label. Take other splits with --splits" in said(hub)
        assert len(table(hub, splits={"train": "train", "val": "validation"}).samples) == 12
        assert table(hub, labelled=False).samples[0].label == -1


class TestMessages:
    def test_a_missing_split(self, hub):
        text = said(hub, splits={"train": "train", "val": "dev"})
        assert "has no split 'dev', which --splits takes for val. There is test, train" in text

    def test_splits_that_cannot_be(self, hub):
        assert "'dev' is no split of ours" in said(hub, splits={"dev": "train"})
        twice = {"train": "train", "val": "train"}
        assert "'train' cannot be both train and val" in said(hub, splits=twice)
        shard = hub / "data" / "train-00000-of-00002.parquet"
        assert "has no splits to choose from" in said(shard, splits={"train": "train"})

    def test_a_split_of_an_unknown_name(self, tmp_path):
        path = on_the_hub(tmp_path, train=dataset(), unlabeled=dataset())
        assert "row 9 has the split 'unlabeled'. Use train, val and test, or say" in said(path)

    def test_a_file_that_says_no_split(self, hub):
        dataset().to_parquet(hub / "more.parquet")
        assert "more.parquet: names no split, and other files of" in said(hub)

    def test_splits_that_are_said_twice(self, tmp_path):
        features = Features({**FEATURES, "split": Value("string")})
        both = dataset(features=features, split=["train"] * 8)
        text = said(on_the_hub(tmp_path, train=both, test=both))
        assert "gives the splits twice, in a column 'split' and by the names of its files" in text

    def test_a_missing_shard(self, hub):
        (hub / "data" / "train-00001-of-00002.parquet").unlink()
        assert "data/train-00001-of-00002.parquet is missing" in said(hub)

    def test_shards_of_other_columns(self, hub):
        shard = hub / "data" / "train-00001-of-00002.parquet"
        whole = parquet.read_table(shard)
        parquet.write_table(whole.drop_columns(["age"]), shard)
        assert "train-00001-of-00002.parquet: has no column 'age', and" in said(hub)
        text = whole.set_column(3, "age", pa.array(["x"] * 3))
        parquet.write_table(text, shard)
        assert "holds string in the column 'age', and" in said(hub)

    def test_a_shard_with_nothing_in_a_column(self, hub):
        shard = hub / "data" / "train-00001-of-00002.parquet"
        whole = parquet.read_table(shard)
        parquet.write_table(whole.set_column(3, "age", pa.nulls(3)), shard)
        ages = [s.cells["age"] for s in table(hub).samples]
        assert [age is None for age in ages] == [False] * 9 + [True] * 3 + [False] * 4

    def test_lists_of_files(self, tmp_path):
        path = tmp_path / "t.parquet"
        cells = [[{"bytes": picture(k), "path": None}] * 2 for k in range(16)]
        found = dataset(range(16)).data.table.append_column("x", pa.array(cells, pa.list_(FILE)))
        parquet.write_table(found, path)
        source = table(path)
        assert source.readers["x"] == ImageReader(several=True)
        assert Turn()(source.samples[3].cells)["x"] == (picture(3), picture(3))
        cells = pa.array([[[cell] for cell in row] for row in cells], pa.list_(pa.list_(FILE)))
        parquet.write_table(dataset(range(16)).data.table.append_column("x", cells), path)
        assert "column 'x' holds files within lists of lists or structures: make" in said(path)
        assert "x" not in table(path, ["photo", "age"]).readers

    def test_parts_with_the_same_rows_are_told(self, hub):
        assert not [note for note in table(hub).notes if "the same rows" in note]
        train, test = hub / "data/train-00001-of-00002.parquet", hub / "data/test-00000-of-00001"
        parquet.write_table(parquet.read_table(train), f"{test}.parquet", compression="NONE")
        found = [note for note in table(hub).notes if "the same rows" in note]
        assert found == [f"cats: {test}.parquet and {train} hold the same rows."]

    def test_parts_that_differ_by_files_alone_are_not(self, tmp_path):
        features = Features({"photo": Image(), "label": ClassLabel(names=["cat", "dog"])})
        parts = [dataset(rows, features) for rows in (range(8), range(8, 16))]
        assert not [x for x in table(on_the_hub(tmp_path, train=parts)).notes if "same rows" in x]

    def test_an_unknown_column(self, hub):
        assert "unknown column 'lable' of" in said(hub, label="lable")
        assert "unknown modality 'image' of" in said(hub, modalities=["image"])

    def test_no_parquet_files(self, tmp_path):
        (tmp_path / "x.bin").touch()
        assert "holds no .parquet, .arrow, .feather, .jsonl or .tar files" in said(tmp_path)

    def test_broken_files(self, hub, tmp_path):
        shard = hub / "data" / "train-00001-of-00002.parquet"
        cells = [{"bytes": picture(k)[: 40 if k == 6 else None], "path": None} for k in (5, 6, 7)]
        dataset(range(5, 8), photo=cells).to_parquet(shard)
        with pytest.raises(ValueError, match=r"1 of 16 samples cannot be used:\n  row 11: photo:"):
            prepare(table(hub, None, SMALL), tmp_path / "store", workers=1)
        shard.write_bytes(shard.read_bytes()[:-9])
        assert "train-00001-of-00002.parquet: cannot be read as a table" in said(hub)


class TestRows:
    def stored(self, path, rows=40, group=8, size=1 << 20):
        noise = np.random.default_rng(0).bytes(size)
        cells = [{"bytes": bytes([k % 256]) + noise, "path": None} for k in range(rows)]
        found = pa.table({"x": pa.array(cells, FILE), "label": [k % 2 for k in range(rows)]})
        options = {"row_group_size": group, "use_dictionary": False, "write_batch_size": 4}
        parquet.write_table(found, path, **options)
        return ParquetRows.of(path)

    def test_from_any_row_on(self, tmp_path):
        rows = self.stored(tmp_path / "t.parquet", size=10)
        for start in (0, 7, 8, 39):
            turn = Turn()
            found = [turn({"x": Entry(rows, "x", k)})["x"][0] for k in range(start, 40)]
            assert found == list(range(start, 40))

    def test_a_row_group_without_rows(self, tmp_path):
        cells = pa.table({"x": pa.array([{"bytes": b"a", "path": None}] * 4, FILE)})
        with parquet.ParquetWriter(tmp_path / "t.parquet", cells.schema) as file:
            for part in (cells, cells[:0], cells):
                file.write_table(part)
        rows, turn = ParquetRows.of(tmp_path / "t.parquet"), Turn()
        assert rows.about.num_row_groups == 3
        assert [turn({"x": Entry(rows, "x", k)})["x"] for k in range(8)] == [b"a"] * 8

    def test_rows_before_are_read_again(self, tmp_path):
        rows, turn = self.stored(tmp_path / "t.parquet", size=10), Turn()
        assert [turn({"x": Entry(rows, "x", k)})["x"][0] for k in (9, 3, 20, 0)] == [9, 3, 20, 0]

    def test_each_part_is_read_once(self, tmp_path, monkeypatch):
        rows, calls = self.stored(tmp_path / "t.parquet", size=10), []
        whole = ParquetRows.batches
        monkeypatch.setattr(ParquetRows, "batches", lambda *a: calls.append(a) or whole(*a))
        turn = Turn()
        for k in range(40):
            turn({"x": Entry(rows, "x", k), "y": Entry(rows, "x", k)})
        assert len(calls) == 1

    @pytest.mark.slow
    def test_a_row_group_is_not_held_whole(self, tmp_path):
        self.stored(tmp_path / "t.parquet", rows=300, group=300)
        code = (
            "import resource, sys; from pathlib import Path\n"
            "import pyarrow, pyarrow.parquet\n"
            "from evenly.data.raw.rows import Entry, ParquetRows, Turn\n"
            "rows, turn = ParquetRows.of(Path(sys.argv[1])), Turn()\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "for k in range(len(rows)): turn({'x': Entry(rows, 'x', k)})\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert grown < 100_000  # kilobytes; the file has 300,000
