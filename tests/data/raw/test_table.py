import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image as Picture

from clips import write_video
from evenly.data.raw import Array, Image, Spectrogram, Video, table


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
        cells = ["silent.mp4", "voice.flac", "film.mkv", "photo.jpg", "steps.npy", "frames", k]
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
    assert source.samples[2].cells["steps"] == [[1.0, 2.0]] * 3
    assert source.classes == ["0", "1"]


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("x,label\n", "has no rows"),
            ("x,label\n1,2,3\n", "cannot be read as a table"),
            ("x,x,label\n1,2,a\n", "has two columns of one name"),
            ("x,y\n1,2\n", r"needs a column 'label' and one for each modality, it has x, y\."),
            ("label\na\n", "needs a column 'label' and one for each modality"),
            ("x,label\n1,a\n2,\n", "row 2 has the label None"),
            ("x,label\n1,0.5\n2,1\n", "row 1 has the label 0.5"),
            ("x,label,split\n1,a,dev\n", r"row 1 has the split 'dev'\. Use train, val and test\."),
            ("x,label\n1,a\n2,b\n3,a\n", "no test split, and class 'b' has too few samples"),
            ("x,y,label\n1,,a\n2,,b\n", "column 'y' is empty"),
            ("x,label\ngone.wav,a\n", "gone.wav: there is no such file"),
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
        with pytest.raises(ValueError, match=r"'clips' is no modality of .*Did you mean clip\?"):
            table(folder / "all.csv", ["clips"])

    def test_an_unknown_reader(self, folder):
        with pytest.raises(ValueError, match=r"'vidio' is no reader\. Did you mean video\?"):
            table(folder / "all.csv", ["clip"], {"clip": "vidio"})

    def test_an_unknown_setting(self, folder):
        with pytest.raises(ValueError, match="'frame' is no setting of video"):
            table(folder / "all.csv", ["clip"], {"clip": "video(frame=2)"})
