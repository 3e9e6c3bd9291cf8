"""Each data set from a miniature of its official tree to a trained epoch."""

import pickle

import numpy as np
import pytest

import trees
from evenly.data.raw import prepare
from evenly.data.raw.sets import SETS
from evenly.data.raw.sets.official import check
from evenly.data.raw.sets.pickles import read_pickle
from evenly.data.store import open_store
from evenly.lab.run import run_cell
from evenly.lab.settings import Cell, Training
from evenly.spec import parse

CASES = {
    "cremad": ("cremad(frames=2,size=[24,24],seconds=0.5)", trees.cremad),
    "cremad by actor": ("cremad(split=actors,frames=1,size=[24,24],seconds=0.5)", trees.cremad),
    "kinetics_sounds": ("kinetics_sounds(size=[24,24],seconds=0.5)", trees.kinetics_sounds),
    "ucf101": ("ucf101(size=[24,24])", trees.ucf101),
    "mosi": ("mosi", trees.mosi),
    "mosi by MMSA": ("mosi", trees.mosi_pickle),
    "av_mnist": ("av_mnist", trees.av_mnist),
}


def opened(folder, text):
    spec = parse(text)
    return SETS[spec.name].open(folder, spec)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_from_files_to_a_trained_epoch(case, tmp_path):
    text, tree = CASES[case]
    source = opened(tree(tmp_path / "tree"), text)
    prepare(source, tmp_path / "store", workers=2, skip_broken="cremad" in text)
    data = open_store(tmp_path / "store")
    training = Training(str(tmp_path / "store"), epochs=1, batch_size=8, width=8)
    result = run_cell(Cell(training, "joint", 0), tmp_path / "run", data=data)
    assert set(result.metrics) == {"val", "test"}
    assert (tmp_path / "run" / "best.ckpt").exists()
    assert all(len(data.split(name)) for name in ("train", "val", "test"))


def counts(source):
    splits = [sample.split for sample in source.samples]
    return [splits.count(name) for name in ("train", "val", "test")]


class TestCremad:
    def test_the_official_counts(self, tmp_path):
        source = opened(tmp_path, "cremad")
        assert counts(source) == [5954, 744, 744]
        assert len({sample.name for sample in source.samples}) == 7442
        by_class = np.bincount([sample.label for sample in source.samples])
        assert by_class.tolist() == [1087, 1271, 1271, 1271, 1271, 1271]
        assert source.classes == ["neutral", "happy", "sad", "fear", "disgust", "anger"]

    def test_no_actor_is_in_two_parts(self, tmp_path):
        source = opened(tmp_path, "cremad(split=actors)")
        parts = {}
        for sample in source.samples:
            parts.setdefault(sample.name[:4], set()).add(sample.split)
        assert len(parts) == 91
        assert all(len(splits) == 1 for splits in parts.values())
        assert counts(source)[1] > 1000 < counts(source)[2]

    @pytest.mark.data
    def test_the_split_is_that_of_the_released_code(self, tmp_path, shared_data):
        found = np.load(shared_data / "cremad_votes" / "cremad_votes.npz")
        names = ("train", "val", "test")
        expected = {
            str(name): (names[split], label)
            for name, split, label in zip(
                found["clip_name"], found["split_paper"], found["label"], strict=True
            )
        }
        source = opened(tmp_path, "cremad")
        assert {s.name: (s.split, s.label) for s in source.samples} == expected

    def test_what_is_missing_is_counted(self, tmp_path):
        folder = trees.cremad(tmp_path / "tree", ("1001",))
        empty = next((folder / "AudioWAV").iterdir())
        empty.write_bytes(b"")
        there = len(list((folder / "VideoFlash").iterdir()))
        found = check(opened(folder, "cremad"))
        assert found.files == 2 * 7442
        assert len(found.missing) == 2 * (7442 - there) + 1
        assert empty in found.missing
        assert sum(whole for whole, _ in found.splits.values()) == there - 1


class TestKineticsSounds:
    def test_clips_under_each_of_their_names(self, tmp_path):
        source = opened(trees.kinetics_sounds(tmp_path / "tree"), "kinetics_sounds")
        assert counts(source) == [6, 3, 3]
        assert {len(s.name) for s in source.samples} >= {11, 25}
        assert "14,790 training and 2,594 test clips of the lists are not in" in source.notes[0]
        assert source.classes == ["0", "1", "2"]

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds none of the 17,396 clips"):
            opened(tmp_path, "kinetics_sounds")

    def test_the_second_in_the_name_is_heeded(self, tmp_path):
        from evenly.data.raw.sets.official import listed

        _, _, video, start = listed("kinetics_sounds.txt.gz")[0].split()
        for second in (int(start), int(start) + 1):
            (tmp_path / f"{video}_{second:06d}_{second + 10:06d}.mp4").write_bytes(b"x")
        source = opened(tmp_path, "kinetics_sounds")
        assert [s.name for s in source.samples] == [
            f"{video}_{int(start):06d}_{int(start) + 10:06d}"
        ]


class TestUCF101:
    @pytest.mark.parametrize(
        ("split", "test", "val"),
        [(1, {1, 2}, {23, 24, 25}), (2, {8, 9}, {23, 24, 25}), (3, {15}, {23, 24, 25})],
    )
    def test_groups_are_kept_together(self, tmp_path, split, test, val):
        source = opened(trees.ucf101(tmp_path / "tree"), f"ucf101(split={split})")
        groups = {}
        for sample in source.samples:
            groups.setdefault(sample.split, set()).add(int(sample.name[-6:-4]))
        assert groups["test"] == test
        assert groups["val"] == val
        assert len(source.samples) == 18
        assert source.classes == ["ApplyEyeMakeup", "YoYo"]

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds no clip such as ApplyEyeMakeup"):
            opened(tmp_path, "ucf101")


class TestMosi:
    def test_segments_of_the_official_files(self, tmp_path):
        source = opened(trees.mosi(tmp_path / "tree"), "mosi")
        assert counts(source) == [6, 6, 6]
        first = source.samples[0]
        steps = {name: source.readers[name](cell) for name, cell in first.cells.items()}
        assert {name: x.shape for name, x in steps.items()} == {
            "text": (9, 6), "audio": (60, 4), "video": (30, 5),
        }  # fmt: skip
        assert not steps["audio"][0].any()  # what was -inf
        assert np.isfinite(steps["audio"]).all()

    def test_classes(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        two, seven = opened(folder, "mosi"), opened(folder, "mosi(classes=7)")
        assert {s.label for s in two.samples} == {0, 1}
        assert {s.label for s in seven.samples} == {1, 5}  # scores of -2 and 2
        for one, other in zip(two.samples, seven.samples, strict=True):
            assert (one.label == 1) == (other.label == 5)

    def test_a_segment_without_steps_lacks_the_modality(self, tmp_path):
        import h5py

        folder = trees.mosi(tmp_path / "tree")
        with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
            data = file["CMU_MOSI_COVAREP/data"]
            del data[next(iter(data))]
        about = prepare(opened(folder, "mosi"), tmp_path / "store", workers=1)
        assert about.modalities["audio"].missing == 2

    def test_the_pickle_of_mmsa(self, tmp_path):
        source = opened(trees.mosi_pickle(tmp_path / "tree"), "mosi")
        assert counts(source) == [6, 6, 6]
        lengths = [len(sample.cells["audio"]) for sample in source.samples[:6]]
        assert lengths == [1, 2, 3, 4, 5, 6]
        assert [len(sample.cells["video"]) for sample in source.samples[:2]] == [1, 20]
        assert source.samples[0].cells["text"].shape == (7, 8)

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ("run",)

        (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps({"train": Evil()}))
        with pytest.raises(ValueError, match=r"is no pickle of plain arrays .*builtins\.print"):
            opened(tmp_path, "mosi")

    def test_plain_pickles_of_every_protocol(self, tmp_path):
        content = {"a": np.arange(3), "b": [np.float64(2.5), "text"], "c": np.array(["x"])}
        for protocol in range(2, 6):
            (tmp_path / "p").write_bytes(pickle.dumps(content, protocol))
            found = read_pickle(tmp_path / "p")
            assert found["a"].tolist() == [0, 1, 2]
            assert found["b"] == [2.5, "text"]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no file \*Timestamped"):
            opened(tmp_path, "mosi")


class TestAVMnist:
    def test_the_digits_of_a_pair_are_the_same(self, tmp_path):
        source = opened(trees.av_mnist(tmp_path / "tree"), "av_mnist")
        assert counts(source) == [60, 20, 40]
        parts = {}
        for sample in source.samples:
            assert sample.cells["audio"].name.startswith(f"{sample.label}_")
            assert (sample.cells["image"] == 20 * sample.label).all()
            parts.setdefault(sample.split, set()).add(sample.cells["audio"].stem[-2:].strip("_"))
        assert parts == {"train": {"12"}, "val": {"7"}, "test": {"0"}}

    def test_the_seed_draws_other_pairs(self, tmp_path):
        folder = trees.av_mnist(tmp_path / "tree")
        one, again, other = (
            [s.cells["audio"] for s in opened(folder, f"av_mnist(seed={k})").samples]
            for k in (0, 0, 1)
        )
        assert one == again != other

    def test_half_a_file(self, tmp_path):
        path = trees.av_mnist(tmp_path / "tree") / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="is no idx file, or part of one"):
            opened(tmp_path / "tree", "av_mnist")

    def test_a_digit_without_recording(self, tmp_path):
        folder = trees.av_mnist(tmp_path / "tree")
        for path in (folder / "recordings").glob("3_*_7.wav"):
            path.unlink()
        with pytest.raises(ValueError, match="no recording of the digit 3 for the val split"):
            opened(folder, "av_mnist")


@pytest.mark.parametrize("name", SETS)
def test_every_set_explains_itself(name):
    info = SETS[name]
    assert list(info.defaults) == list(info.settings)
    assert info.licence
    assert info.source
    assert info.layout


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. It should hold AudioWAV"):
        opened(tmp_path / "none", "cremad")


def test_an_unknown_setting(tmp_path):
    with pytest.raises(ValueError, match=r"'frame' is no setting of cremad\. Did you mean frames"):
        opened(tmp_path, "cremad(frame=2)")
