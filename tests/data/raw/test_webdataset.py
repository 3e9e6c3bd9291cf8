"""WebDataset's shards, written by Python's own tarfile."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image as Picture

from clips import write_video
from evenly.data import open_store
from evenly.data.raw import Array, Image, Spectrogram, Text, Video, prepare, table
from hubs import picture, tone
from stores import npy, pack


def sample(k, **more):
    """The members of row k: a picture of grey k, a sound, numbers, a text and a class."""
    files = {
        "png": picture(k),
        "wav": tone(k / 100),
        "npy": npy(np.full(3, k, np.float32)),
        "txt": f"the {('cat', 'dog')[k % 2]} of row {k}\n",
        "cls": str(k % 2),
        **more,
    }
    return [(f"{k:06}.{ending}", x) for ending, x in files.items() if x is not None]


def parted(k):
    return [(name.partition("."), x) for name, x in sample(k)]


def packed(path, rows=range(16), **more):
    return pack(path, [member for k in rows for member in sample(k, **more)])


def said(path, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, **options)
    return str(caught.value)


class TestColumns:
    def test_extensions_are_columns(self, tmp_path):
        source = table(packed(tmp_path / "pets.tar"))
        vocabulary = source.readers["txt"].vocabulary
        assert source.readers == {
            "png": Image(),
            "wav": Spectrogram(),
            "npy": Array(),
            "txt": Text(vocabulary=vocabulary),
        }
        assert source.name == "pets"
        assert source.classes == ["0", "1"]
        assert [s.name for s in source.samples][:2] == ["000000", "000001"]
        assert [s.label for s in source.samples] == [0, 1] * 8

    def test_all_is_stored(self, tmp_path):
        members = [m for k in range(24) for m in sample(k, png=picture(k) if k != 3 else None)]
        readers = {"png": "image(size=[2,2])", "wav": "spectrogram(seconds=0.25)"}
        source = table(pack(tmp_path / "a.tar", members), None, readers)
        prepare(source, tmp_path / "store", workers=2)
        data = open_store(tmp_path / "store")
        for split in ("train", "val", "test"):
            part = data.split(split)
            batch = part.__getitems__(range(len(part)))
            rows = [int(data.names[row]) for row in part.rows.tolist()]
            grey = batch["inputs"]["png"][:, 0, 0, 0].tolist()
            assert grey == [0 if k == 3 else k for k in rows]
            assert batch["inputs"]["npy"].tolist() == [[k] * 3 for k in rows]
        assert any("1 of 24 samples lack 'png'" in note for note in data.notes)

    def test_a_clip_and_flac(self, tmp_path):
        write_video(tmp_path / "a.mp4")
        clip = (tmp_path / "a.mp4").read_bytes()
        flac = io.BytesIO()
        soundfile.write(flac, np.zeros(4000), 8_000, format="FLAC")
        more = {"mp4": clip, "flac": flac.getvalue(), "wav": None}
        source = table(packed(tmp_path / "a.tar", **more), ["mp4", "flac"])
        assert source.readers == {"mp4": Video(), "flac": Spectrogram()}

    def test_what_comes_before_the_ending(self, tmp_path):
        jpeg = io.BytesIO()
        Picture.new("RGB", (8, 8)).save(jpeg, "JPEG")
        more = {"left.jpeg": jpeg.getvalue(), "right.JPG": jpeg.getvalue(), "png": None}
        source = table(packed(tmp_path / "a.tar", **more))
        assert {"left_jpg", "right_jpg"} <= set(source.readers)

    def test_folders_are_a_part_of_the_key(self, tmp_path):
        members = [(f"{at}/{name}", x) for at in "ab" for k in range(8) for name, x in sample(k)]
        source = table(pack(tmp_path / "a.tar", members))
        assert [s.name for s in source.samples][7:9] == ["a/000007", "b/000000"]

    def test_pictures_of_two_formats_are_one_modality(self, tmp_path):
        jpeg = io.BytesIO()
        Picture.new("RGB", (8, 8), (200, 0, 0)).save(jpeg, "JPEG")
        odd = {"png": None, "jpg": jpeg.getvalue()}
        members = [m for k in range(16) for m in sample(k, **(odd if k % 3 else {}))]
        source = table(pack(tmp_path / "a.tar", members), ["png"])
        assert all(s.cells["png"] for s in source.samples)
        assert "a.tar: .png and .jpg are one modality, as no sample has more than one of them." in (
            source.notes
        )

    def test_members_in_any_order_and_others_beside_them(self, tmp_path):
        members = [m for k in range(16) for m in sample(k)]
        members.sort(key=lambda member: member[0].partition(".")[2])
        hidden = [("README", "x"), (".DS_Store", "x"), ("._000000.png", b"x")]
        source = table(pack(tmp_path / "a.tar", hidden + members))
        assert len(source.samples) == 16
        assert len(source.readers) == 4


class TestLabels:
    def test_names_as_classes(self, tmp_path):
        members = [m for k in range(16) for m in sample(k, cls=("dog", "cat")[k % 2] + "\n")]
        source = table(pack(tmp_path / "a.tar", members))
        assert source.classes == ["cat", "dog"]
        assert "a.tar: 'cls' is the label column." in source.notes

    def fields(self, path, **more):
        about = [{"label": f"c{k % 2}", "age": k / 2, "kind": k % 2} | more for k in range(16)]
        members = [m for k in range(16) for m in sample(k, cls=None, json=json.dumps(about[k]))]
        return pack(path, members)

    def test_of_json(self, tmp_path):
        path = self.fields(tmp_path / "a.tar")
        source = table(path)
        assert source.classes == ["c0", "c1"]
        assert "age" not in source.readers
        assert any("'age' is a field of .json, and no modality unless" in x for x in source.notes)
        assert table(path, ["png", "age"]).samples[3].cells["age"].tolist() == [1.5]
        assert table(path, label="kind").classes == ["0", "1"]

    def test_of_both(self, tmp_path):
        path = packed(tmp_path / "a.tar", json='{"label": "x"}')
        assert "has classes in cls, label. Say with --label which" in said(path)
        assert table(path, label="cls").classes == ["0", "1"]

    def test_of_neither(self, tmp_path):
        assert "needs a column 'label'" in said(packed(tmp_path / "a.tar", cls=None))

    def test_a_sample_without(self, tmp_path):
        members = [m for k in range(16) for m in sample(k, cls=None if k == 4 else str(k % 2))]
        path = pack(tmp_path / "a.tar", members)
        assert "row 5 has the label None. Give every sample a class" in said(path)
        assert table(path, labelled=False).samples[4].label == -1


class TestShards:
    def test_ranges_lists_and_folders(self, tmp_path):
        for number, part in enumerate((range(12), range(12, 20), range(20, 28))):
            packed(tmp_path / f"pets-{number:06}.tar", part)
        for name in ("pets-{000000..000002}.tar", "pets-00000{0,1,2}.tar", ""):
            source = table(tmp_path / name)
            assert len(source.samples) == 28
            assert source.samples[12].name == "pets-000001/000012"
            assert len(source.opened) == 3
        assert table(tmp_path / "pets-{000000..000002}.tar").name == "pets"
        assert len(table(tmp_path / "pets-00000{0..1}.tar").samples) == 20

    def test_names_say_the_split(self, tmp_path):
        for name in ("train-000000", "train-000001", "val-000000", "test-000000"):
            packed(tmp_path / "x" / f"{name}.tar", range(4))
        splits = [s.split for s in table(tmp_path / "x").samples]
        assert splits == ["test"] * 4 + ["train"] * 8 + ["val"] * 4
        splits = [s.split for s in table(tmp_path / "x" / "{train,val,test}-000000.tar").samples]
        assert splits == ["train"] * 4 + ["val"] * 4 + ["test"] * 4

    def test_one_is_missing(self, tmp_path):
        packed(tmp_path / "a-0.tar")
        text = said(tmp_path / "a-{0..3}.tar")
        assert "a-1.tar: there is no such file, of 4 that" in text
        assert "the range {3..0} ends before it begins" in said(tmp_path / "a-{3..0}.tar")

    def test_the_same_samples_in_two(self, tmp_path):
        packed(tmp_path / "a-0.tar", range(12))
        packed(tmp_path / "a-1.tar", range(8, 20))
        (note,) = [x for x in table(tmp_path / "a-{0..1}.tar").notes if "the very files" in x]
        assert note.startswith(
            "a-{0..1}.tar: 4 of 24 samples have the very files of another, such as 'a-1/000008' "
            "those of 'a-0/000008'. Of two that are alike, one may be"
        )

    def test_the_same_under_another_key(self, tmp_path):
        members = [(f"9{n:05}.{end}", x) for n in range(3) for (_, _, end), x in parted(2)]
        path = pack(tmp_path / "a.tar", [m for k in range(16) for m in sample(k)] + members)
        notes = [x for x in table(path).notes if "the very files" in x]
        assert "a.tar: 3 of 19 samples have the very files of another, such as '900000'" in notes[0]

    def test_other_samples_of_the_same_keys_and_sizes(self, tmp_path):
        packed(tmp_path / "a-0.tar")
        packed(tmp_path / "a-1.tar", png=picture(200))
        notes = table(tmp_path / "a-{0..1}.tar").notes
        assert not [x for x in notes if "the very files" in x]
        assert (
            "a-{0..1}.tar: 16 keys are in more than one shard, such as '000000', with other files. "
            "They are taken for different samples."
        ) in notes


class TestMessages:
    def test_pickles_are_never_opened(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "was opened"), "w"))

        path = packed(tmp_path / "a.tar", pyd=pickle.dumps(Evil()))
        assert "column 'pyd' holds pickles, which could run code of their own" in said(path)
        assert "pyd" not in table(path, ["png", "txt"]).readers
        objects = npy(np.array([Evil()], object))
        source = table(packed(tmp_path / "b.tar", npy=objects), ["npy"], {"npy": "array"})
        with pytest.raises(ValueError, match=r"is not a complete \.npy file of numbers"):
            prepare(source, tmp_path / "store", workers=1)
        assert not (tmp_path / "was opened").exists()

    def test_nothing_is_written_by_a_members_name(self, tmp_path):
        members = [(f"../{name}", x) for k in range(16) for name, x in sample(k, txt=None)]
        path = pack(tmp_path / "in" / "a.tar", members)
        prepare(table(path), tmp_path / "out" / "store", workers=1)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["store"]

    def test_extensions_that_nobody_knows(self, tmp_path):
        path = packed(tmp_path / "a.tar", xyz=b"1")
        assert "column 'xyz' holds files that no reader knows by their extension" in said(path)

    def test_one_file_twice(self, tmp_path):
        path = pack(tmp_path / "a.tar", [*sample(1), *sample(2), *sample(1)])
        assert "holds two files '000001.png'. Give each sample a key of its own." in said(path)

    def test_nothing(self, tmp_path):
        assert "a.tar: holds no samples" in said(pack(tmp_path / "a.tar", []))
        assert "a.tar: holds no samples" in said(pack(tmp_path / "a.tar", [("README", "x")]))

    def test_links(self, tmp_path):
        path = packed(tmp_path / "a.tar")
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("x.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        assert "holds 'x.png', which is a link" in said(path)

    def test_broken_archives(self, tmp_path):
        whole = packed(tmp_path / "a.tar").read_bytes()
        path = tmp_path / "b.tar"
        for content, wanted in {
            whole[: len(whole) // 2 + 100]: "download it again",
            whole[: 512 * 2]: "damaged or cut off",
            b"no archive at all" * 100: "is no whole tar archive",
            b"": "is no whole tar archive",
            whole + whole: "goes on after its end",
        }.items():
            path.write_bytes(content)
            text = said(path)
            assert text.startswith(f"{path}: ")
            assert wanted in text.replace("Download", "download")

    def test_a_damaged_member(self, tmp_path):
        files = [picture(k)[: 40 if k == 6 else None] for k in range(16)]
        members = [m for k in range(16) for m in sample(k, png=files[k])]
        source = table(pack(tmp_path / "a.tar", members), ["png"])
        with pytest.raises(ValueError, match=r"1 of 16 samples cannot be used:\n  000006: png: "):
            prepare(source, tmp_path / "store", workers=1)

    def test_texts_and_fields(self, tmp_path):
        members = [m for k in range(16) for m in sample(k, txt=b"\xff\xfe" if k == 5 else "a")]
        text = said(pack(tmp_path / "a.tar", members))
        assert "a text of '000005' is not in UTF-8" in text
        assert "the .json of '000000' cannot be read" in said(packed(tmp_path / "a.tar", json="{"))
        assert "the .json of '000000' holds no fields" in said(packed(tmp_path / "a.tar", json="3"))

    def test_a_compressed_archive(self, tmp_path):
        path = tmp_path / "a.tar.gz"
        path.touch()
        assert "is compressed, so that no place in it can be read alone" in said(path)


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_keys_with_dots(tmp_path, ending):
    members = [(f"img.{k:02}.{ending}", json.dumps({"label": k % 2})) for k in range(8)]
    with pytest.raises(ValueError, match=r"key ends at (the|its) first dot.*Leave dots out"):
        table(pack(tmp_path / "a.tar", members))
