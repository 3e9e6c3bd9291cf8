"""Folders of `save_to_disk`, of media by class or with metadata, and `datasets` in Python."""

import json

import pytest
from datasets import ClassLabel, DatasetDict, Features, Image, IterableDataset, Value
from datasets import Sequence as Several

from evenly.data import from_datasets, open_store
from evenly.data.raw import Array, Spectrogram, Text, prepare, table
from evenly.data.raw import Image as ImageReader
from hubs import FEATURES, dataset, picture, tone

SMALL = {"photo": "image(size=[2,2])", "sound": "spectrogram(seconds=0.25)"}


def said(path, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, **options)
    return str(caught.value)


def splits():
    return DatasetDict(
        train=dataset(range(8)), validation=dataset(range(8, 12)), test=dataset(range(12, 16))
    )


def greys(data, split="train"):
    part = data.split(split)
    return part.__getitems__(range(len(part)))["inputs"]["photo"][:, 0, 0, 0].tolist()


class TestSaved:
    def test_a_dict_of_splits(self, tmp_path):
        splits().save_to_disk(tmp_path / "pets")
        source = table(tmp_path / "pets", None, SMALL)
        assert [s.split for s in source.samples] == ["train"] * 8 + ["val"] * 4 + ["test"] * 4
        assert source.classes == ["cat", "dog"]
        assert source.name == "pets"
        prepare(source, tmp_path / "store", workers=2)
        assert greys(open_store(tmp_path / "store")) == list(range(8))
        assert greys(open_store(tmp_path / "store"), "test") == [12, 13, 14, 15]

    def test_one_split_in_several_files(self, tmp_path):
        dataset(range(20)).save_to_disk(tmp_path / "pets", num_shards=3)
        source = table(tmp_path / "pets")
        assert {s.split for s in source.samples} == {"train", "val", "test"}
        assert [s.cells["age"].tolist() for s in source.samples] == [[k / 2] for k in range(20)]
        assert len(source.opened) == 3

    def test_what_is_missing_or_broken(self, tmp_path):
        splits().save_to_disk(tmp_path / "pets")
        file = tmp_path / "pets" / "test" / "data-00000-of-00001.arrow"
        whole = file.read_bytes()
        file.write_bytes(b"nothing" + whole[:100])
        assert f"{file}: cannot be read as a table" in said(tmp_path / "pets")
        file.unlink()
        assert "data-00000-of-00001.arrow is missing, which state.json names" in said(
            tmp_path / "pets"
        )
        (tmp_path / "pets" / "test" / "state.json").write_text("{}")
        assert "state.json: is not as `datasets` wrote it" in said(tmp_path / "pets")


def by_class(folder, parts=("train", "test"), endings=("png",), rows=8):
    for number, part in enumerate(parts):
        for k in range(rows):
            place = folder / part / ("cat", "dog")[k % 2]
            place.mkdir(parents=True, exist_ok=True)
            for ending in endings:
                content = picture(k + 100 * number) if ending == "png" else tone(k / 10)
                (place / f"{k}.{ending}").write_bytes(content)
    return folder


class TestMediaFolders:
    def test_classes_and_splits(self, tmp_path):
        source = table(by_class(tmp_path / "pets"))
        assert source.readers == {"image": ImageReader()}
        assert source.classes == ["cat", "dog"]
        assert source.samples[0].name == "test/cat/0.png"
        assert source.samples[0].cells["image"] == tmp_path / "pets/test/cat/0.png"
        assert [s.split for s in source.samples].count("test") == 8

    def test_classes_alone(self, tmp_path):
        source = table(by_class(tmp_path / "pets", [""], ["wav"], 16))
        assert source.readers == {"audio": Spectrogram()}
        assert {s.split for s in source.samples} == {"train", "val", "test"}

    def test_a_class_that_is_called_like_a_split(self, tmp_path):
        folder = by_class(tmp_path / "pets", [""], rows=16)
        (folder / "cat").rename(folder / "test tube")
        assert table(folder).classes == ["dog", "test tube"]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["cat/s0", "cat/s1", "dog/s0"], "folders cat/s0 and dog/s0 would be one class, s0"),
            (["train/cat/s0", "test/cat/s0", "test/dog/s0"], "cat/s0 and dog/s0 would be one"),
            (["cat", "dog", "dog/pug"], "folders dog/pug is within dog, and both would"),
            (["cat/train", "cat/test", "dog/train"], "folders test and train name splits, but lie"),
            (["a/train/cat", "b/test/cat"], "or write metadata.csv with the columns file_name, la"),
            (["data/train/cat", "data/val/cat", "data/test/dog"], "or give {}/data."),
        ],
    )
    def test_classes_and_splits_that_are_unclear(self, tmp_path, names, message):
        for name in names:
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "0.png").write_bytes(picture(0))
        assert message.format(tmp_path) in said(tmp_path)

    @pytest.mark.parametrize(
        "names", [["2023/jan", "2024/jan"], ["a", "a/b"], ["x/train", "x/test"], ["", "train"]]
    )
    def test_folders_matter_only_where_labels_are_needed(self, tmp_path, names):
        for name in names:
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "0.png").write_bytes(picture(0))
        source = table(tmp_path, ["image"], labelled=False)
        assert [s.label for s in source.samples] == [-1, -1]
        said(tmp_path)

    @pytest.mark.parametrize(
        ("names", "classes"),
        [
            (["train/train/cat", "test/test/cat", "train/train/dog"], ["cat", "dog"]),
            (["data/cat", "data/dog"], ["cat", "dog"]),
            (["cars/bus", "cars/train"], ["bus", "train"]),
        ],
    )
    def test_classes_that_lie_deeper(self, tmp_path, names, classes):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            for k in range(8):
                (tmp_path / name / f"{k}.png").write_bytes(picture(k))
        assert table(tmp_path).classes == classes

    @pytest.mark.parametrize("within", ["", "cat/"])
    def test_pictures_and_sounds_that_are_in_no_sample_together(self, tmp_path, within):
        for kind, ending in (("images", "png"), ("audio", "wav")):
            by_class(tmp_path / kind, [within], [ending])
        assert "of the kinds audio and image, but no sample has two of them" in said(tmp_path)
        assert "image_file_name" in said(tmp_path)

    def test_a_picture_and_a_sound_of_one_name_are_a_sample(self, tmp_path):
        source = table(by_class(tmp_path / "pets", ["train", "test"], ["png", "wav"]))
        assert list(source.readers) == ["image", "audio"]
        assert len(source.samples) == 16
        assert source.samples[0].cells["audio"].name == "0.wav"

    def test_what_cannot_be(self, tmp_path):
        folder = by_class(tmp_path / "pets")
        (folder / "train" / "9.png").write_bytes(picture(9))
        assert "train/9.png is in no folder of a class" in said(folder)
        (folder / "train" / "9.png").unlink()
        (folder / "other").mkdir()
        (folder / "other" / "9.png").write_bytes(picture(9))
        assert "other/9.png is in the folder of no split, and others are" in said(folder)
        folder = by_class(tmp_path / "both", ["train"], ["png", "wav"])
        (folder / "train" / "cat" / "0.jpg").write_bytes(picture(0))
        assert "0.jpg and 0.png have the same name" in said(folder)
        dataset().to_parquet(folder / "a.parquet")
        (folder / "a.tar").touch()
        assert "holds both .parquet and .tar files" in said(folder)


class TestMetadata:
    def make(self, folder, header="file_name,caption,label", rows=8):
        for part in ("train", "test"):
            (folder / part).mkdir(parents=True)
            lines = [header]
            for k in range(rows):
                (folder / part / f"{k}.png").write_bytes(picture(k))
                lines.append(f"{k}.png,the {('cat', 'dog')[k % 2]} {k},{('cat', 'dog')[k % 2]}")
            (folder / part / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    def test_csv(self, tmp_path):
        source = table(self.make(tmp_path / "pets"))
        vocabulary = source.readers["caption"].vocabulary
        assert source.readers == {"caption": Text(vocabulary=vocabulary), "image": ImageReader()}
        assert source.classes == ["cat", "dog"]
        assert [s.split for s in source.samples].count("test") == 8
        assert source.readers["image"](source.samples[3].cells["image"]).max() == 3

    def test_json_lines_with_two_files_each(self, tmp_path):
        folder = by_class(tmp_path, [""], ["png", "wav"], 16)
        rows = [
            {
                "image_file_name": f"{('cat', 'dog')[k % 2]}/{k}.png",
                "audio_file_name": f"{('cat', 'dog')[k % 2]}/{k}.wav" if k else None,
                "age": k / 2,
            }
            for k in range(15)
        ]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = table(folder)
        assert source.readers == {
            "age": Array(),
            "image": ImageReader(),
            "audio": Spectrogram(),
        }
        assert source.samples[0].cells["audio"] is None
        assert source.classes == ["cat", "dog"]
        assert any("the folder that a file is in is its class" in x for x in source.notes)
        assert any("3 files that metadata.jsonl does not name" in x for x in source.notes)

    def test_what_cannot_be(self, tmp_path):
        folder = self.make(tmp_path / "a", "file,caption,label")
        assert "has no column 'file_name' that names the files, it has file, caption" in said(
            folder
        )
        folder = self.make(tmp_path / "b")
        (folder / "train" / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
        assert "has other columns than" in said(folder)
        folder = self.make(tmp_path / "c")
        (folder / "metadata.jsonl").write_text("{\n")
        assert "holds both metadata.jsonl and metadata.csv" in said(folder)
        for file in folder.rglob("metadata.csv"):
            file.unlink()
        assert "metadata.jsonl: line 1 is not JSON" in said(folder)
        (folder / "metadata.jsonl").write_text("3\n")
        assert "metadata.jsonl: line 1 holds no fields" in said(folder)

    def described(self, folder, header, *places):
        """A dozen pictures in turn in each place, with two classes and two splits."""
        lines = [header]
        for k in range(12 * len(places)):
            file = folder / places[k // 12] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(k))
            cells = {"split": ("train", "test")[k % 12 > 8], "label": ("cat", "dog")[k % 2]}
            kinds = {"subset": "split", "emotion": "label", "Label": "label"}
            rest = [cells[kinds[name]] for name in header.split(",")[1:]]
            lines.append(",".join([str(file.relative_to(folder)), *rest]))
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    @pytest.mark.parametrize("places", [["a/clips", "b/clips"], ["a", "a/b"]])
    def test_folders_that_are_not_the_label(self, tmp_path, places):
        folder = self.described(tmp_path, "file_name,emotion", *places)
        source = table(folder, label="emotion")
        assert source.classes == ["cat", "dog"]
        assert [*source.readers] == ["image"]
        assert "or add a column 'label' to metadata.csv, or name the one that" in said(folder)
        assert {s.label for s in table(folder, ["image"], labelled=False).samples} == {-1}

    def test_folders_that_are_not_the_splits(self, tmp_path):
        folder = self.described(tmp_path / "a", "file_name,Label,subset", "x/train", "x/test")
        source = table(folder)
        assert [s.split for s in source.samples].count("test") == 6
        assert source.classes == ["cat", "dog"]
        assert [*source.readers] == ["image"]
        folder = self.described(tmp_path / "b", "file_name,Label", "x/train", "x/test")
        assert "outermost, as in train/CLASS/1.jpg, or add a column 'split' to metadata" in said(
            folder
        )

    def test_a_file_that_is_not_there(self, tmp_path):
        folder = self.make(tmp_path / "pets")
        (folder / "test" / "3.png").unlink()
        with pytest.raises(
            ValueError, match=r"1 of 16 samples cannot be used:\n  test/3.png: image"
        ):
            prepare(table(folder, ["image"]), tmp_path / "store", workers=1)


class TestInPython:
    def test_a_dict_of_splits(self, tmp_path):
        data = from_datasets(splits(), tmp_path / "store", readers=SMALL, workers=1)
        assert greys(data) == list(range(8))
        assert greys(data, "val") == [8, 9, 10, 11]
        assert data.class_names == ["cat", "dog"]
        assert list(data.modalities) == ["photo", "sound", "caption", "age"]

    def test_rows_in_the_order_of_the_data_set(self, tmp_path):
        found = dataset(range(24)).shuffle(seed=0).with_format("torch")
        order = found.with_format("arrow")["age"].to_pylist()
        data = from_datasets(found, tmp_path / "store", modalities=["photo"], workers=1)
        rows = data.split("train").rows.tolist()
        assert greys(data) == [2 * order[row] for row in rows]

    def test_it_goes_on_with_its_store_and_no_other(self, tmp_path):
        found = dataset(range(24))
        one = from_datasets(found, tmp_path / "store", modalities=["photo"], workers=1)
        before = (tmp_path / "store" / "dataset.json").stat().st_mtime_ns
        assert greys(from_datasets(found, tmp_path / "store", modalities=["photo"])) == greys(one)
        assert (tmp_path / "store" / "dataset.json").stat().st_mtime_ns == before
        with pytest.raises(ValueError, match="holds a store made from other files"):
            from_datasets(found.select(range(23)), tmp_path / "store", modalities=["photo"])

    def test_pictures_that_lie_in_files(self, tmp_path):
        features = Features({"photo": Image(), "label": FEATURES["label"]})
        for k in range(16):
            (tmp_path / f"{k}.png").write_bytes(picture(k))
        cells = [{"bytes": None, "path": str(tmp_path / f"{k}.png")} for k in range(16)]
        found = dataset(range(16), features, photo=cells)
        data = from_datasets(found, tmp_path / "store", readers={"photo": "image(size=[2,2])"})
        assert sorted(greys(data)) == greys(data) != []

    def test_what_it_does_not_take(self, tmp_path):
        stream = IterableDataset.from_generator(lambda: iter([{"x": 1}]))
        for wrong, wanted in [
            (stream, "found IterableDataset. Load a data set without streaming"),
            ([1, 2], "found list"),
            (DatasetDict(), "has no splits"),
            (
                DatasetDict(train=dataset(), test=dataset().remove_columns("age")),
                "has no column 'age'",
            ),
        ]:
            with pytest.raises(ValueError, match=wanted):
                from_datasets(wrong, tmp_path / "store")

    def test_several_classes(self, tmp_path):
        features = Features(
            {"age": Value("float32"), "a": ClassLabel(names=["x", "y"]), "b": FEATURES["label"]}
        )
        numbers = [k % 2 for k in range(16)]
        found = dataset(range(16), features, a=numbers, b=numbers)
        with pytest.raises(ValueError, match=r"has classes in a, b\. Say with --label which"):
            from_datasets(found, tmp_path / "store")
        data = from_datasets(found, tmp_path / "store", label="b", workers=1)
        assert data.class_names == ["cat", "dog"]


def test_each_part_names_its_classes_in_its_own_order(tmp_path):
    kinds = {"age": Value("float32"), "tags": Several(ClassLabel(names=["cat", "dog"]))}
    swapped = {"age": Value("float32"), "tags": Several(ClassLabel(names=["dog", "cat"]))}
    kinds |= {"label": ClassLabel(names=["cat", "dog"]), "sort": ClassLabel(names=["cat", "dog"])}
    swapped |= {"label": ClassLabel(names=["dog", "cat"]), "sort": ClassLabel(names=["dog", "cat"])}
    one, two = [k % 2 for k in range(8)], [1 - k % 2 for k in range(8)]
    parts = DatasetDict(
        train=dataset(range(8), Features(kinds), label=one, sort=one, tags=[[k] for k in one]),
        test=dataset(range(8), Features(swapped), label=two, sort=two, tags=[[k] for k in two]),
    )
    parts.save_to_disk(tmp_path / "pets")
    source = table(tmp_path / "pets", ["age", "sort"], label="label", labelled=False)
    assert [s.label for s in source.samples] == one * 2
    assert [s.cells["sort"].tolist() for s in source.samples] == [[k] for k in one * 2]
    source = table(tmp_path / "pets", ["age"], label="tags", labelled=False)
    assert source.classes == ["cat", "dog"]
    assert [s.label for s in source.samples] == [(1.0 - k, float(k)) for k in one * 2]
