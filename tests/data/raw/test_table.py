import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image as Picture

from clips import write_video
from evenly.data.raw import Array, Image, Spectrogram, Text, Video, prepare, table
from evenly.lab.trained.load import load_run
from evenly.lab.trained.predict import predictions


@pytest.fixture
def folder(tmp_path):
    """Twenty samples of two classes with every kind of cell."""
    lines = ["name,clip,sound,both,photo,numbers,frames,score,label"]
    (tmp_path / "frames").mkdir()
    Picture.new("RGB", (8, 6)).save(tmp_path / "frames" / "1.png")
    write_video(tmp_path / "silent.mp4")
    write_video(tmp_path / "film.mkv", sound=0.5)
    soundfile.write(tmp_path / "voice.flac", np.zeros(4000), 8_000)
    Picture.new("RGB", (8, 6)).save(tmp_path / "photo.jpg")
    np.save(tmp_path / "steps.npy", np.zeros((4, 3), np.float32))
    for k in range(20):
        cells = ["silent.mp4", "voice.flac", "film.mkv", "photo.jpg", "steps.npy", "frames/", k]
        lines.append(",".join(map(str, [f"s{k}", *cells, ("cat", "dog")[k % 2]])))
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def write(folder, text):
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def test_what_a_column_holds_is_found_out(folder):
    source = table(folder / "all.csv")
    assert source.readers == {
        "clip": Video(),
        "sound": Spectrogram(),
        "both": Video(),
        "photo": Image(),
        "numbers": Array("sequence", ragged=True),
        "frames": Video(),
        "score": Array(),
    }
    assert source.classes == ["cat", "dog"]
    assert source.samples[3].name == "s3"
    assert source.samples[3].label == 1
    assert source.samples[3].cells["sound"] == folder / "voice.flac"
    assert source.samples[3].cells["score"] == [3]


@pytest.mark.parametrize("name", ["audio", "Voice", "speech_track"])
def test_a_film_is_sound_in_a_column_that_is_called_so(folder, name):
    rows = "\n".join(f"film.mkv,film.mkv,{k % 2}" for k in range(20))
    source = table(write(folder, f"{name},picture,label\n{rows}\n"))
    assert source.readers == {name: Spectrogram(), "picture": Video()}


def test_columns_and_readers_of_ones_own(folder):
    asked = {"both": "spectrogram(front=mel,seconds=5)", "clip": "video(size=[32,48])"}
    source = table(folder / "all.csv", ["clip", "both"], asked)
    assert source.readers == {"clip": Video(size=(32, 48)), "both": Spectrogram("mel", 5.0)}


def test_without_a_split_validation_and_test_are_drawn(folder):
    source = table(folder / "all.csv")
    splits = [sample.split for sample in source.samples]
    assert [splits.count(name) for name in ("train", "val", "test")] == [14, 2, 4]
    for split in ("train", "val", "test"):
        assert {s.label for s in source.samples if s.split == split} == {0, 1}
    assert [note.split(":")[0] for note in source.notes] == [
        "all.csv has no test split", "all.csv has no val split",
    ]  # fmt: skip
    assert table(folder / "all.csv").samples == source.samples


def test_the_split_given_is_kept(folder):
    rows = [f"{k},{k % 2},{('train', 'train', 'val', 'val', 'test', 'test')[k]}" for k in range(6)]
    source = table(write(folder, "x,label,split\n" + "\n".join(rows)))
    assert [s.split for s in source.samples] == ["train", "train", "val", "val", "test", "test"]
    assert source.notes == []


def test_empty_cells_are_missing(folder):
    source = table(write(folder, "x,y,label\n" + "1,,a\n,2,b\n" * 10))
    assert source.samples[0].cells == {"x": [1], "y": None}
    assert source.samples[1].cells == {"x": None, "y": [2]}


def test_parquet_holds_vectors_and_sequences(tmp_path):
    columns = {
        "vector": [[k, 2.0 * k] for k in range(8)],
        "steps": [[[1.0, 2.0]] * (k + 1) for k in range(8)],
        "label": [k % 2 for k in range(8)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = table(tmp_path / "t.parquet")
    assert source.readers == {"vector": Array(), "steps": Array("sequence", ragged=True)}
    assert source.samples[2].cells["steps"].tolist() == [[1.0, 2.0]] * 3
    assert source.classes == ["0", "1"]


def test_parquet_of_what_no_reader_takes(tmp_path):
    fine = {"x": [1.0] * 8, "label": [k % 2 for k in range(8)]}
    for columns, message in (
        ({**fine, "x": [[[1, 2], [3]]] * 8}, "'x' holds list values such as"),
        ({**fine, "label": [{"a": k % 2} for k in range(8)]}, "row 1 has the label {'a': 0}. Give"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=message):
            table(tmp_path / "t.parquet")


class TestText:
    def test_the_words_of_the_training_texts_are_numbered(self, folder):
        rows = [
            "The film was good,a,train",
            '"Good, good; not bad",b,train',
            "A terrible film!,a,val",
            "bad unseen words,b,val",
            ",a,test",
            "...,b,test",
        ]
        source = table(write(folder, "said,label,split\n" + "\n".join(rows)))
        reader = source.readers["said"]
        assert reader.vocabulary == "good , ; bad film not the was"
        tokens = [reader(s.cells["said"]).tolist() for s in source.samples if s.cells["said"]]
        # good 2, "," 3, ; 4, bad 5, film 6, not 7, the 8, was 9; unknown ones are 1
        assert tokens[0] == [8, 6, 9, 2]
        assert tokens[1] == [2, 3, 2, 4, 7, 5]
        assert tokens[2] == [1, 1, 6, 1]
        assert tokens[4] == [1, 1, 1]
        assert source.samples[4].cells["said"] is None

    def test_a_note_on_tokens_that_training_texts_lack(self, folder):
        splits = ["train", "train", "val", "val", "test", "test"]
        seen = [f"{w},{'ab'[k % 2]},{splits[k % 6]}" for k, w in enumerate(["one", "two"] * 6)]
        header = "said,label,split\n"
        assert table(write(folder, header + "\n".join(seen))).notes == []
        new = [line.replace("one", f"one new{k}") for k, line in enumerate(seen)]
        # In validation and test, 4 times "one" and "two" each, and 4 new ones.
        assert table(write(folder, header + "\n".join(new))).notes == []
        new = [line.replace("two", f"new{k}") for k, line in enumerate(new)]
        (note,) = table(write(folder, header + "\n".join(new))).notes
        assert note.startswith("t.csv: 67% of the tokens of 'said' in validation and test are in")

    def test_one_word_texts_and_long_ones(self, folder):
        source = table(write(folder, "said,label\n" + "yes,a\nno,b\n" * 10), None,
                       {"said": "text(length=1)"})  # fmt: skip
        assert source.readers["said"].length == 1
        assert source.readers["said"]("yes no yes").tolist() == [3]
        assert source.readers["said"]("").tolist() == [1]

    def test_a_tokenizer_of_a_folder(self, folder, monkeypatch):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        made = Tokenizer(models.WordLevel({"[UNK]": 0, "yes": 5, "no": 7}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder / "tokenizer")
        asked = f"text(tokenizer={folder / 'tokenizer'})"
        source = table(write(folder, "said,label\n" + "yes,a\nno,b\n" * 10), None, {"said": asked})
        assert source.readers["said"]("yes no what").tolist() == [5, 7, 0]
        monkeypatch.chdir(folder)  # a relative path names the same folder later, from elsewhere
        assert Text("tokenizer").tokenizer == str(folder / "tokenizer")
        assert Text("bert-base-uncased").tokenizer == "bert-base-uncased"

    def test_a_tokenizer_that_is_not_there(self, folder):
        asked = f"text(tokenizer={folder / 'none'})"
        source = table(write(folder, "said,label\n" + "yes,a\nno,b\n" * 10), None, {"said": asked})
        with pytest.raises(ValueError, match=r"there is no tokenizer .*none"):
            source.readers["said"]("yes")

    def test_from_texts_to_a_trained_run_and_its_predictions(self, folder):
        from evenly.cli import main

        rows = [f"{('a dull and bad', 'a fine and good')[k % 2]} film number {k},{k % 2}"
                for k in range(60)]  # fmt: skip
        path = write(folder, "said,label\n" + "\n".join(rows))
        out = folder / "run"
        training = ["--data", str(path), "--epochs", "8", "--width", "8", "--batch_size", "8"]
        training += ["--lr", "0.05"]
        assert main(["train", "--method", "joint", *training, "--out", str(out)]) == 0
        new = write(folder, "said\nsuch a good one\nreally bad\n")
        found = [p.answers[1] for p in predictions(load_run(out), str(new))]
        assert found[0] > found[1] + 0.01  # of the first epoch that is right everywhere


def rows(*cells, labels="ab"):
    """A line for each label in turn, twenty in all, with these cells in turn."""
    return "".join(f"{cells[k % len(cells)]},{labels[k % len(labels)]}\n" for k in range(20))


class TestPathsAndTexts:
    """Which of the two a column of texts holds."""

    @pytest.mark.parametrize("first", ["gone.mp4", "clips/gone.mp4", "my clips/gone", "gone"])
    def test_a_first_file_that_is_missing(self, folder, first):
        source = table(write(folder, "x,label\n" + rows(first, "silent.mp4")))
        assert source.readers["x"] == Video()
        assert source.samples[0].cells["x"] == folder / first

    @pytest.mark.parametrize("cell", ["a/{k}", "a\\{k}", "my clips/{k}.MP4", "{k}.npy"])
    def test_paths_that_all_lead_nowhere(self, tmp_path, cell):
        cells = [cell.format(k=k) for k in range(20)]
        with pytest.raises(ValueError, match=r"paths in column 'x' exists, such as .*0") as caught:
            table(write(tmp_path, "x,label\n" + rows(*cells)))
        assert f"looked up in {tmp_path}" in str(caught.value)
        assert "--readers.x=text" in str(caught.value)
        source = table(write(tmp_path, "x,label\n" + rows(*cells)), None, {"x": "text"})
        assert source.samples[1].cells["x"] == cells[1]

    @pytest.mark.parametrize(
        "text", ["w" * 300, "word " * 80, "yes and/or no", "Good. End.", "no", "e.g. this one", "."]
    )
    def test_texts(self, tmp_path, text):
        source = table(write(tmp_path, "x,label\n" + rows(text, "other words")))
        assert isinstance(source.readers["x"], Text)
        assert source.samples[0].cells["x"] == text.strip()

    @pytest.mark.parametrize("words", [("and/or",), ("yes/no", "n/a")])
    def test_words_with_a_slash(self, tmp_path, words):
        source = table(write(tmp_path, "x,label\n" + rows(*words)))
        assert isinstance(source.readers["x"], Text)

    @pytest.mark.parametrize("path", ["/gone/a", "./a", "C:\\gone\\a", "gone/a.png"])
    def test_one_path_that_leads_nowhere(self, tmp_path, path):
        with pytest.raises(ValueError, match="paths in column 'x' exists"):
            table(write(tmp_path, "x,label\n" + rows(path)))

    def test_folders_that_are_called_by_numbers(self, tmp_path):
        for k in range(20):
            (tmp_path / f"{k:04d}").mkdir()
            Picture.new("RGB", (8, 6)).save(tmp_path / f"{k:04d}" / "1.png")
        path = write(tmp_path, "x,label\n" + rows(*[f"{k:04d}" for k in range(20)]))
        source = table(path)
        assert source.readers["x"] == Video()
        assert source.samples[7].cells["x"] == tmp_path / "0007"
        (tmp_path / "0003" / "1.png").unlink()
        (tmp_path / "0003").rmdir()
        assert table(path).readers["x"] == Array()  # as likely numbers
        source = table(path, None, {"x": "video(frames=1)"})
        assert source.readers["x"] == Video(1)
        assert source.samples[7].cells["x"] == tmp_path / "0007"

    @pytest.mark.parametrize("values", ["01", ("cat", "dog")])
    def test_values_that_folders_of_classes_are_called_by(self, tmp_path, values):
        for value in values:
            (tmp_path / value).mkdir()
            Picture.new("RGB", (8, 6)).save(tmp_path / value / "1.png")
        path = write(tmp_path, "x,label\n" + rows(*values * 10))
        if values == "01":
            source = table(path)
            assert source.readers["x"] == Array()
            assert any("'x' holds numbers that recur, although" in note for note in source.notes)
        else:
            with pytest.raises(ValueError, match="'x' holds words that recur, such as 'cat', and"):
                table(path)
            assert isinstance(table(path, None, {"x": "text"}).readers["x"], Text)
        assert table(path, None, {"x": "video"}).readers["x"] == Video()

    def test_lines_within_texts_of_a_large_table(self, tmp_path):
        text = '"a good film, number {k}\nand its second line ' + "word " * 100 + '"'
        lines = [f"{text.format(k=k)},{k % 2}\n" for k in range(3000)]
        source = table(write(tmp_path, "x,label\n" + "".join(lines)))
        assert len(source.samples) == 3000
        assert source.samples[2999].cells["x"].startswith("a good film, number 2999\nand its")


class TestFirstFiles:
    """What a column's files hold is found out from the first that is whole."""

    @pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY junk"])
    @pytest.mark.parametrize("suffix", [".png", ".npy", ".mp4"])
    def test_a_first_file_that_is_broken(self, folder, suffix, content):
        (folder / f"broken{suffix}").write_bytes(content)
        good = {".png": "photo.jpg", ".npy": "steps.npy", ".mp4": "silent.mp4"}[suffix]
        source = table(write(folder, "x,label\n" + rows(f"broken{suffix}", good)))
        assert source.readers["x"] == {
            ".png": Image(), ".npy": Array("sequence", ragged=True), ".mp4": Video(),
        }[suffix]  # fmt: skip

    @pytest.mark.parametrize(
        ("shape", "reader"),
        [
            ((5,), Array()),
            ((5, 4), Array("sequence", ragged=True)),
            ((3, 5, 4), Array("image")),
            ((5, 4, 3), Array("image")),
            ((2, 3, 5, 4), Array("video")),
        ],
    )
    def test_arrays_by_their_axes(self, tmp_path, shape, reader):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        source = table(write(tmp_path, "x,label\n" + rows("a.npy")))
        assert source.readers["x"] == reader
        found = reader(source.samples[0].cells["x"])
        assert found.shape == ((3, 5, 4) if shape == (5, 4, 3) else shape)

    def test_files_go_by_what_they_hold(self, folder):
        (folder / "silent.mp4").rename(folder / "silent.npy")
        (folder / "photo.jpg").rename(folder / "photo.mp4")
        source = table(write(folder, "x,label\n" + rows("silent.npy")))
        assert source.readers["x"] == Video()
        source = table(write(folder, "x,label\n" + rows("photo.mp4")))
        assert source.readers["x"] == Image()

    def test_arrays_of_texts(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array(["yes", "no"]))
        with pytest.raises(ValueError, match=r"a\.npy, which holds neither pictures nor sound nor"):
            table(write(tmp_path, "x,label\n" + rows("a.npy")))


class TestReadersThatDoNotFit:
    """Said once, before anything is decoded."""

    def test_numbers_are_no_files(self, tmp_path):
        path = write(tmp_path, "x,label\n" + rows(1, 2))
        with pytest.raises(ValueError, match="paths in column 'x' exists, such as '1'"):
            table(path, None, {"x": "video"})
        assert table(path, None, {"x": "text"}).samples[1].cells["x"] == "2"

    @pytest.mark.parametrize("reader", ["text", "video"])
    def test_numbers_of_a_parquet_file(self, tmp_path, reader):
        columns = {"x": [float(k) for k in range(8)], "label": [k % 2 for k in range(8)]}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=f"holds numbers such as 0.0, which {reader} does not"):
            table(tmp_path / "t.parquet", None, {"x": reader})

    def test_values_that_are_no_numbers(self, tmp_path):
        columns = {"x": [b"bytes"] * 8, "label": [k % 2 for k in range(8)]}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match="column 'x' begins with a file in memory of 5 bytes"):
            table(tmp_path / "t.parquet")

    def test_texts_are_no_arrays(self, tmp_path):
        with pytest.raises(ValueError, match="exists, such as 'some words'"):
            table(write(tmp_path, "x,label\n" + rows("some words")), None, {"x": "array"})

    def test_a_kind_that_arrays_do_not_have(self, tmp_path):
        path = write(tmp_path, "x,label\n" + rows(1))
        with pytest.raises(ValueError, match="array: kind takes 'vector' or 'sequence'"):
            table(path, None, {"x": "array(kind=text)"})
        with pytest.raises(ValueError, match="array: only sequences can have unequal lengths"):
            table(path, None, {"x": "array(ragged=true)"})


class TestLabels:
    def test_without_need_of_labels_what_is_none_is_unknown(self, tmp_path):
        path = write(tmp_path, "x,label\n1,b\n2,\n3,a\n")
        source = table(path, labelled=False)
        assert source.classes == ["a", "b"]
        assert [sample.label for sample in source.samples] == [1, -1, 0]
        assert {sample.split for sample in source.samples} == {"test"}
        source = table(write(tmp_path, "x,label\n1,0\n2,0.5\n"), labelled=False, task="classes")
        assert [sample.label for sample in source.samples] == [0, 1]
        source = table(write(tmp_path, "x,label\n1,\n2,\n"), labelled=False)
        assert [sample.label for sample in source.samples] == [-1, -1]

    @pytest.mark.parametrize("many", [1, 2])
    def test_a_label_that_is_no_number_among_numbers(self, tmp_path, many):
        path = write(tmp_path, "x,label\n" + rows(1, labels="01") + "1,nan\n" * many)
        with pytest.raises(ValueError, match="row 21 has the label nan"):
            table(path)
        source = table(path, labelled=False)
        assert source.classes == ["0", "1"]
        assert [sample.label for sample in source.samples[20:]] == [-1] * many

    def test_labels_of_parquet_that_are_no_classes(self, tmp_path):
        columns = {"x": [1.0, 2.0], "label": [{"a": 1}, {"a": 2}]}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        source = table(tmp_path / "t.parquet", labelled=False)
        assert [sample.label for sample in source.samples] == [-1, -1]

    def test_a_class_that_is_called_na(self, tmp_path):
        source = table(write(tmp_path, "x,label\n" + rows(1, "NA", 3, labels=["NA", "yes"])))
        assert source.classes == ["NA", "yes"]
        assert source.samples[1].cells["x"] is None

    def test_names_are_kept_as_they_are_written(self, tmp_path):
        lines = "".join(f"{k:03d},{k},{k % 2}\n" for k in range(20))
        source = table(write(tmp_path, "name,x,label\n" + lines + ",5,1\n"))
        assert source.samples[7].name == "007"
        assert source.samples[20].name == "row 21"


@pytest.mark.parametrize("name", ["keys", "a.b", "a/b", "../out"])
def test_a_column_that_no_modality_can_be_called_like(tmp_path, name):
    path = write(tmp_path, f"{name},label\n" + rows(1, 2))
    with pytest.raises(ValueError, match=f"rename the modality '{name}'"):
        table(path)


def test_blanks_between_modalities(folder):
    assert list(table(folder / "all.csv", ["clip", " score"]).readers) == ["clip", "score"]


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("said,label\nun café,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv: is not in UTF-8\. .*iconv -f LATIN1 -t UTF-8"):
        table(tmp_path / "t.csv")


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("x,label\n", "has no rows"),
            ("x,label\n1,2,3\n", "cannot be read as a table"),
            ("x,x,label\n1,2,a\n", "two columns are named 'x'"),
            ("x,y\n1,2\n", r"needs a column 'label' and one for each modality; found x, y\."),
            ("label\na\n", "needs a column 'label' and one for each modality"),
            ("x,label\n1,a\n2,\n", "row 2 has the label None"),
            ("x,label\n1,0.5\n2,1\n", "has no val split, and too few samples that are alike"),
            ("x,label\n1,0.5\n2,a\n", "class '0.5' has too few samples to draw one from"),
            (
                "x,label,split\n1,a,other\n",
                r"row 1 has the split 'other'\. Use train, val and test",
            ),
            ("x,label\n1,a\n2,b\n3,a\n", "no test split, and class 'b' has too few samples"),
            ("x,y,label\n1,,a\n2,,b\n", "column 'y' is empty"),
            ("x,label\ngone.wav,a\n", "paths in column 'x' exists, such as 'gone.wav'"),
            ("x,label\nt.csv,a\n", "holds neither pictures nor sound nor an array"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, text, wanted):
        with pytest.raises(ValueError, match=wanted):
            table(write(tmp_path, text))

    def test_no_table(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            table(tmp_path / "t.csv")

    def test_a_column_that_is_not_there(self, folder):
        with pytest.raises(ValueError, match=r"unknown modality 'clips' of .*Did you mean clip\?"):
            table(folder / "all.csv", ["clips"])

    def test_an_unknown_reader(self, folder):
        with pytest.raises(ValueError, match=r"unknown reader 'vidio'\. Did you mean video\?"):
            table(folder / "all.csv", ["clip"], {"clip": "vidio"})

    def test_an_unknown_setting(self, folder):
        with pytest.raises(ValueError, match="unknown setting 'frame' of video"):
            table(folder / "all.csv", ["clip"], {"clip": "video(frame=2)"})


def npy_table(folder, form, arrays):
    """A table of `.npy` files, by their paths, or as they lie in Parquet or an archive."""
    names = [f"{n}.npy" for n in range(len(arrays))]
    for name, array in zip(names, arrays, strict=True):
        np.save(folder / name, array)
    if form == "csv":
        return write(folder, "v,label\n" + rows(*names))
    if form == "parquet":
        contents = [(folder / name).read_bytes() for name in names]
        labels = ["a", "b"] * (len(names) // 2)
        pq.write_table(pa.table({"v": contents, "label": labels}), folder / "t.parquet")
        return folder / "t.parquet"
    with tarfile.open(folder / "t.tar", "w") as archive:
        for n, name in enumerate(names):
            archive.add(folder / name, name)
            label = tarfile.TarInfo(f"{n}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"ab"[n % 2 : n % 2 + 1]))
    return folder / "t.tar"


class TestFarFromZero:
    """Numbers that float32 cannot tell apart."""

    @pytest.mark.parametrize("start", [1_700_000_000, 1_700_000_000.5])
    def test_a_column(self, tmp_path, start):
        path = write(tmp_path, "t,label\n" + rows(*(start + k for k in range(20))))
        with pytest.raises(ValueError, match="32-bit floats are 128 apart at that size") as caught:
            table(path)
        assert "the column 't' has mean 1.70000001e+09 and deviation 5.77" in str(caught.value)
        option, reader = str(caught.value).split("--readers.")[1].rstrip(".").split(" ")
        source = table(path, None, {option: reader.strip("'")})
        read = source.readers[option]
        found = [float(read(sample.cells[option])[0]) for sample in source.samples]
        train = [x for x, s in zip(found, source.samples, strict=True) if s.split == "train"]
        assert [np.mean(train), np.std(train)] == pytest.approx([0, 1], abs=1e-6)
        assert len(set(found)) == 20
        assert len(table(path, labelled=False).samples) == 20

    def test_a_list(self, tmp_path):
        cells = [[k / 2, 1e9 + k] for k in range(20)]
        pq.write_table(pa.table({"v": cells, "label": ["a", "b"] * 10}), tmp_path / "t.parquet")
        with pytest.raises(
            ValueError, match=r"number 2 of the column 'v' has .* Subtract the mean.$"
        ):
            table(tmp_path / "t.parquet")

    @pytest.mark.parametrize(
        ("shape", "which"),
        [
            ((2,), "number 2 of the column 'v'"),
            ((1,), "the column 'v'"),
            ((3, 2), "number 2 of the column 'v'"),
            ((2, 3, 5, 6), "number 3 of the column 'v'"),
        ],
    )
    @pytest.mark.parametrize("form", ["csv", "parquet", "tar"])
    def test_files(self, tmp_path, shape, which, form):
        """One by one, each would be rounded without a word."""
        axis = -3 if len(shape) > 2 else -1
        far = np.zeros(shape)
        np.moveaxis(far, axis, -1)[..., -1] = 1.7e9
        files = [far + k for k in range(20)]
        with pytest.raises(
            ValueError, match=r"mean 1.70000001e\+09 .* 128 apart at that size"
        ) as found:
            table(npy_table(tmp_path, form, files))
        assert f"{which.replace('v', 'npy') if form == 'tar' else which} has mean" in str(
            found.value
        )

    @pytest.mark.parametrize("form", ["csv", "parquet", "tar"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
    def test_files_that_are_taken(self, tmp_path, form, dtype):
        files = [np.array([k, 5 + k]).astype(dtype) for k in range(20)]
        assert len(table(npy_table(tmp_path, form, files)).samples) == 20

    def test_broken_files_are_told_with_the_others(self, tmp_path):
        path = npy_table(tmp_path, "csv", [np.array([float(k)]) for k in range(20)])
        (tmp_path / "3.npy").write_bytes(b"\x93NUMPY\1\0")
        (tmp_path / "4.npy").unlink()
        assert len(table(path).samples) == 20

    @pytest.mark.parametrize("cells", [range(-10, 10), [1_700_000_001], range(0, 10**6, 50_000)])
    def test_what_is_taken(self, tmp_path, cells):
        source = table(write(tmp_path, "t,label\n" + rows(*cells)))
        assert source.samples[1].cells["t"].tolist() == [cells[1 % len(cells)]]


class TestNamesOfSplits:
    def of(self, folder, header, names, more=""):
        lines = [f"{k},{k % 2},{names[k % len(names)]}{more}" for k in range(24)]
        return write(folder, "\n".join([header, *lines]))

    @pytest.mark.parametrize("names", [["train", "eval", "test"], ["train", "dev", "val", "test"]])
    def test_two_that_mean_one_split(self, tmp_path, names):
        path = self.of(tmp_path, "x,label,split", names)
        first, second = names[1:3]
        with pytest.raises(ValueError, match=rf"splits '{first}' and '{second}' would both be"):
            table(path)
        given = {"train": "train", "val": names[1], "test": "test"}
        assert table(path, splits=given).samples[1].split == "val"

    @pytest.mark.parametrize(
        "names",
        [["train-clean", "train-other", "valid", "test"], ["Train", "TRAIN", "val", "Test"]],
    )
    def test_parts_of_one_split_are_one(self, tmp_path, names):
        source = table(self.of(tmp_path, "x,label,split", names))
        assert [s.split for s in source.samples[:4]] == ["train", "train", "val", "test"]

    def test_in_a_column_of_another_name(self, tmp_path):
        path = self.of(tmp_path, "x,label,subset", ["train", "Validation", "test"])
        source = table(path)
        assert [s.split for s in source.samples[:3]] == ["train", "val", "test"]
        assert list(source.readers) == ["x"]
        assert source.notes == ["t.csv: 'subset' is the split column."]
        asked = {"train": "train", "val": "test", "test": "Validation"}
        assert table(path, splits=asked).samples[1].split == "test"
        assert list(table(path, ["x", "subset"]).readers) == ["x", "subset"]

    @pytest.mark.parametrize(("odd", "said"), [("", "nothing"), ("unlabeled", "'unlabeled'")])
    def test_in_a_column_with_rows_of_none(self, tmp_path, odd, said):
        """Drawn at random, the test split would be trained on."""
        path = self.of(tmp_path, "x,label,phase", ["train", "dev", "test", "train", odd])
        with pytest.raises(ValueError, match=f"'phase' names splits, but row 5 holds {said}\\."):
            table(path)
        source = table(path, splits={"train": "train", "val": "dev", "test": "test"})
        assert [s.split for s in source.samples[:4]] == ["train", "val", "test", "train"]
        assert [s.cells["x"].item() for s in source.samples[:6]] == [0, 1, 2, 3, 5, 6]
        assert "4 samples are in none of the splits asked for: left out." in " ".join(source.notes)
        assert list(table(path, None, {"phase": "text"}).readers) == ["x", "phase"]

    def test_in_a_column_of_which_few_cells_are_splits(self, tmp_path):
        path = self.of(tmp_path, "x,label,team", ["train", "dev", "sales", "staff"])
        assert list(table(path).readers) == ["x", "team"]

    def test_in_two_columns(self, tmp_path):
        path = self.of(tmp_path, "x,label,a,b", ["train", "val", "test"], ",train")
        assert list(table(path).readers) == ["x", "b"]  # a single word is none of splits
        lines = [f"{k},{k % 2},{'train' if k % 3 else 'test'},train" for k in range(24)]
        text = "x,label,a,b\n" + "\n".join([*lines[:-1], "23,1,train,test"])
        with pytest.raises(ValueError, match="columns a, b all name splits"):
            table(write(tmp_path, text))
        source = table(write(tmp_path, text.replace("label,a", "label,split")), labelled=True)
        assert "t.csv: the column 'b' names splits, so it is not a modality." in source.notes


def test_a_note_on_files_with_the_same_content_in_two_splits(tmp_path):
    lines = []
    for k in range(24):
        content = {20: 3, 21: 4, 6: 5}.get(k, k)  # 3 and 4 of training are in the test split, too
        Picture.new("RGB", (8, 6), (10 * content, 0, 0)).save(tmp_path / f"{k}.png")
        split = "train" if k < 12 else "val" if k < 18 else "test"
        lines.append(f"{k}.png,{k}.png;{k + 1 if k < 11 else 'shared'}.png,{k % 2},{split}")
    Picture.new("RGB", (8, 6)).save(tmp_path / "shared.png")
    path = write(tmp_path, "picture,several,label,split\n" + "\n".join(lines))
    small = {"picture": "image(size=[2,2])", "several": "image(size=[2,2],several=true)"}
    about = prepare(table(path, None, small), tmp_path / "store", workers=1)
    assert about.notes[-1] == (
        "A leak: files of 'picture' with the same content are in more than one split (2), such as "
        f"{tmp_path.name}/3.png."
    )
