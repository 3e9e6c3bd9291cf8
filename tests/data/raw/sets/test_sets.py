"""Each data set from a miniature of its official tree to a trained epoch."""

import gzip
import inspect
import pickle
import struct
from collections import Counter

import h5py
import numpy as np
import pytest
import soundfile

import trees
from evenly.data.media.error import MediaError
from evenly.data.raw import prepare
from evenly.data.raw.sets import SETS
from evenly.data.raw.sets.cremad import _actors
from evenly.data.raw.sets.kinetics_sounds import clips
from evenly.data.raw.sets.official import check, listed
from evenly.data.raw.sets.pickles import read_pickle
from evenly.data.store import open_store
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
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


def few_actors(folder):
    """One of each part of the split by actor."""
    part = _actors(sorted({line.split()[0] for line in listed("cremad.txt")}))
    return trees.cremad(folder, {split: actor for actor, split in part.items()}.values())


def three_classes(folder):
    return trees.ucf101(folder, ("ApplyEyeMakeup", "Typing", "YoYo"))


DAMAGES = {
    "flv": ("cremad(split=actors,frames=1,size=[8,8],seconds=0.1)", "visual", few_actors),
    "mp4": ("kinetics_sounds(frames=1,size=[8,8],seconds=0.1)", "visual", trees.kinetics_sounds),
    "avi": ("ucf101(frames=1,size=[16,16])", "rgb", three_classes),
    "wav": ("av_mnist(seconds=0.1)", "audio", trees.av_mnist),
}


def a_training_file_of_three_classes(source, modality):
    found = {}
    for sample in source.samples:
        if sample.split == "train" and sample.cells[modality].exists():
            found.setdefault(sample.label, sample.cells[modality])
    return [found[label] for label in range(3)]


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_left_of_a_damaged_tree_is_a_store(kind, tmp_path):
    text, modality, tree = DAMAGES[kind]
    folder = tree(tmp_path / "tree")
    whole = opened(folder, text)
    empty, cut, misnamed = a_training_file_of_three_classes(whole, modality)
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:40])
    misnamed.rename(misnamed.with_stem(f"{misnamed.stem} (1)"))

    source = opened(folder, text)
    note = next(note for note in source.notes if f"{misnamed.stem} (1).{kind}" in note)
    assert note.startswith("Passed over, as not called")
    assert empty in check(source).missing
    for path, reason in ((empty, "the file is empty"), (cut, "cannot be decoded")):
        with pytest.raises(MediaError, match=reason):
            source.readers[modality](path)

    source = source.limited(1000)  # of CREMA-D, what the tree holds
    lost = [s for s in source.samples if {empty, cut} & set(s.files())]
    assert {empty, cut} <= {file for sample in lost for file in sample.files()}
    about = prepare(source, tmp_path / "store", workers=1, skip_broken=True)
    assert about.splits["train"] == sum(s.split == "train" for s in source.samples if s not in lost)
    assert note in about.notes
    assert any(f"{len(lost)} of {len(source.samples)} samples were left" in n for n in about.notes)
    if kind == "avi":
        training = Training(str(tmp_path / "store"), epochs=1, batch_size=8, width=8)
        result = run_cell(Cell(training, "joint", 0), tmp_path / "run")
        assert set(result.metrics) == {"val", "test"}


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

    def test_the_stft_has_the_published_shape(self, tmp_path):
        """OGM-GE's, of three seconds at 22,050 samples a second."""
        soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(44_100)), 44_100)
        reader = opened(tmp_path, "cremad(front=stft)").readers["audio"]
        assert reader(tmp_path / "a.wav").shape == (1, 257, 188)
        for front in ("fbank", "mel"):
            reader = opened(tmp_path, f"cremad(front={front})").readers["audio"]
            assert reader.sample_rate == 16_000

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
        assert source.classes == ["0", "1", "2"]
        assert source.notes[:2] == [
            f"12 of the 17,396 clips of the lists are in {tmp_path / 'tree'}; missing: 12,571 "
            "train, 2,219 val, 2,594 test.",
            "28 of the 31 classes have no clip: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 18 more.",
        ]

    def test_a_clip_stays_in_its_split_whatever_others_are_there(self, tmp_path):
        names = [f"{clip.video}_{clip.start}.mp4" for clip in clips() if clip.label < 2]
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        before = {s.name: s.split for s in opened(tmp_path, "kinetics_sounds").samples}
        # 15 % of 268 and of 690
        assert Counter(before.values())["val"] == 40 + 104
        for name in names[::3]:
            (tmp_path / name).unlink()
        after = {s.name: s.split for s in opened(tmp_path, "kinetics_sounds").samples}
        assert len(after) == len(names) - len(names[::3])
        assert after.items() <= before.items()

    @pytest.mark.data
    def test_the_lists_are_those_of_the_released_code(self, shared_data):
        expected = set()
        for split in ("train", "test"):
            path = shared_data / "kinetics_sounds_ids" / f"my_{split}.txt"
            for line in path.read_text().split():
                name, _, label = line.split(",")
                expected.add((split, int(label), name[:11], int(name[12:].split("_")[0])))
        own = clips()
        assert len(own) == len(expected) == 17_396
        assert {c._replace(split="test" if c.split == "test" else "train") for c in own} == expected

    def test_names_that_say_nothing(self, tmp_path):
        (tmp_path / "my holiday.mp4").write_bytes(b"x")
        wanted = r"holds none of the 17,396 clips, but my holiday\.mp4\. Name them such as"
        with pytest.raises(ValueError, match=wanted):
            opened(tmp_path, "kinetics_sounds")

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds none of the 17,396 clips"):
            opened(tmp_path, "kinetics_sounds")

    def test_the_second_in_the_name_is_heeded(self, tmp_path):
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

    def write(self, folder, *names):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")

    def test_misnamed_files_are_passed_over_and_named(self, tmp_path):
        good = ["Typing/v_Typing_g25_c07.avi", "HandstandPushups/v_HandStandPushups_g01_c01.avi"]
        bad = [
            "Archery/v_Typing_g01_c01.avi",
            "Typing/v_Typing_g01_c01 (1).avi",
            "Typing/v_Typing_g01_c01.mp4",
            "Typing/v_Typing_g26_c01.avi",
            "Typing/v_Typing_g99_c01.avi",
            "typing/v_typing_g01_c01.avi",
        ]
        self.write(tmp_path, *good, *bad)
        source = opened(tmp_path, "ucf101")
        assert {(s.name, s.split) for s in source.samples} == {
            ("v_Typing_g25_c07", "val"), ("v_HandStandPushups_g01_c01", "test"),
        }  # fmt: skip
        assert source.classes == ["HandstandPushups", "Typing"]
        assert (
            "Passed over, as not called CLASS/v_CLASS_gGG_cCC.avi with a group up to 25 (6): "
            f"{', '.join(bad[:5])} and 1 more."
        ) in source.notes
        for name in good:
            (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=r"_c01\.avi, but Archery/v_Typing_g01_c01\.avi, "):
            opened(tmp_path, "ucf101")

    def test_what_is_missing_is_counted_and_named(self, tmp_path):
        source = opened(trees.ucf101(tmp_path / "tree"), "ucf101")
        assert source.notes[:2] == [
            f"18 of the 13,320 clips are in {tmp_path / 'tree' / 'UCF-101'}.",
            "99 of the 101 classes have no clip: ApplyLipstick, Archery, BabyCrawling, "
            "BalanceBeam, BandMarching, BaseballPitch, Basketball, BasketballDunk, BenchPress, "
            "Biking and 89 more.",
        ]

    def test_nothing_is_said_of_a_whole_folder(self, tmp_path):
        groups = [(name, group) for name in listed("ucf101.txt") for group in range(1, 26)]
        assert len(groups) == 101 * 25
        for n, (name, group) in enumerate(groups):
            # 13,320 in all; how many are in which group does not matter here.
            count = 6 if n < 13_320 - 5 * len(groups) else 5
            clips = [f"{name}/v_{name}_g{group:02d}_c{k:02d}.avi" for k in range(1, count + 1)]
            self.write(tmp_path, *clips)
        assert [note[:16] for note in opened(tmp_path, "ucf101").notes] == ["Validation split"]


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
        with pytest.raises(FileNotFoundError, match=r"holds no file \*Opinion_Labels.* nothing\."):
            opened(tmp_path, "mosi")

    @pytest.mark.data
    def test_the_folds_are_the_standard_ones(self, shared_data):
        found = np.load(shared_data / "cmu_mosi" / "cmu_mosi_utterance.npz")
        expected = {"train": set(), "val": set(), "test": set()}
        for video, split in zip(found["video_index"], found["split_official"], strict=True):
            expected[("train", "val", "test")[split]].add(str(found["video_ids"][video]))
        folds = [line.split() for line in listed("mosi.txt")]
        assert {name: set(videos) for name, *videos in folds} == expected
        assert [len(videos) for _, *videos in folds] == [52, 10, 31]

    def test_missing_videos_are_counted_and_others_passed_over(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
            data = file["CMU_MOSI_COVAREP/data"]
            data.move("03bSnISJMiM", "another one")
        notes = opened(folder, "mosi").notes
        assert notes[0] == f"18 of the 2,199 segments are in {folder}."
        assert notes[1].startswith("84 of the 93 videos of the standard folds are not in CMU_MOSI_")
        assert any(
            note.startswith("85 of the 93 videos of the standard folds are not in CMU_MOSI_COVAREP")
            for note in notes
        )
        lost = "Passed over, as in no fold (1), of CMU_MOSI_COVAREP.csd: another one."
        assert lost in notes

    def test_a_video_without_intervals_is_left_out(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
            del file["CMU_MOSI_COVAREP/data/03bSnISJMiM/intervals"]
        source = opened(folder, "mosi")
        with pytest.raises(MediaError, match=r"COVAREP\.csd: has no intervals and features"):
            source.readers["audio"](source.samples[0].cells["audio"])
        about = prepare(source, tmp_path / "store", workers=1, skip_broken=True)
        assert about.splits == {"train": 4, "val": 6, "test": 6}

    def test_intervals_and_features_of_unequal_length(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        source = opened(folder, "mosi")
        for name in ("COVAREP", "Opinion_Labels"):
            with h5py.File(folder / f"CMU_MOSI_{name}.csd", "a") as file:
                entry = next(iter(file.values()))["data/03bSnISJMiM"]
                del entry["features"]
                entry["features"] = np.zeros((1, 1))
        wanted = r"features of shape \(1, 1\) of float64 for the video 03bSnISJMiM"
        with pytest.raises(MediaError, match=rf"COVAREP\.csd: .*{wanted}"):
            source.readers["audio"](source.samples[0].cells["audio"])
        with pytest.raises(MediaError, match=rf"Labels\.csd: .*{wanted}"):
            opened(folder, "mosi")

    @pytest.mark.parametrize("name", ["COVAREP", "Opinion_Labels"])
    @pytest.mark.parametrize("left", [0, 1000])
    def test_an_empty_file_and_a_part_of_one(self, tmp_path, name, left):
        path = trees.mosi(tmp_path / "tree") / f"CMU_MOSI_{name}.csd"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(MediaError, match=rf"{name}\.csd: is no \.csd file, or part of one"):
            opened(tmp_path / "tree", "mosi")

    def test_a_misnamed_file(self, tmp_path):
        path = trees.mosi(tmp_path / "tree") / "CMU_MOSI_COVAREP.csd"
        path.rename(path.with_stem("COVAREP (1)"))
        wanted = r"holds no file \*COVAREP\.csd, .* but CMU_MOSI_O.*\. Put it there under its"
        with pytest.raises(FileNotFoundError, match=wanted):
            opened(tmp_path / "tree", "mosi")

    def test_labels_of_other_videos_and_scores_that_are_none(self, tmp_path):
        path = trees.mosi(tmp_path / "tree") / "CMU_MOSI_Opinion_Labels.csd"
        with h5py.File(path, "a") as file:
            file["Opinion Segment Labels/data/03bSnISJMiM/features"][1] = np.nan
        with pytest.raises(MediaError, match=r"has the score nan for 03bSnISJMiM\[1\]"):
            opened(tmp_path / "tree", "mosi")
        with h5py.File(path, "w") as file:
            file.create_group("Opinion Segment Labels/data/another")
        with pytest.raises(MediaError, match="holds no video of the standard folds, such as 03bS"):
            opened(tmp_path / "tree", "mosi")

    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            (
                lambda content: content.update(train=1),
                r"'train' is of another form \(it is int\)",
            ),
            (lambda content: content.pop("valid"), "there is no 'valid' in it"),
            (lambda content: content["valid"].pop("vision"), "there is no 'vision' in it"),
            (
                lambda content: content["test"].update(text=np.zeros((2, 5, 3))),
                r"\(6 of id, 2 of text, 6 of audio, 6 of vision for 6 labels\)",
            ),
            (
                lambda content: content["test"].update(audio=np.zeros((6, 3))),
                r"a row of audio has the shape \(3,\), not \(t, d\)",
            ),
            (
                lambda content: content["train"].update(regression_labels=[np.nan] * 6),
                "a score is not finite",
            ),
            (
                lambda content: content["train"].update(audio_lengths=[1]),
                "'train' is of another form",
            ),
        ],
    )
    def test_a_pickle_of_another_form(self, tmp_path, change, wanted):
        path = trees.mosi_pickle(tmp_path / "tree") / "unaligned_50.pkl"
        content = pickle.loads(path.read_bytes())
        change(content)
        path.write_bytes(pickle.dumps(content))
        form = "MMSA's pickles hold train, valid and test"
        with pytest.raises(ValueError, match=rf"unaligned_50\.pkl: .*{wanted}.*{form}"):
            opened(tmp_path / "tree", "mosi")

    @pytest.mark.parametrize("left", [0, 1000])
    def test_an_empty_pickle_and_a_part_of_one(self, tmp_path, left):
        path = trees.mosi_pickle(tmp_path / "tree") / "unaligned_50.pkl"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ValueError, match="is no pickle of plain arrays"):
            opened(tmp_path / "tree", "mosi")

    def test_a_pickle_comes_before_other_files(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        path = trees.mosi_pickle(tmp_path / "pickle") / "unaligned_50.pkl"
        path.rename(folder / path.name)
        notes = opened(folder, "mosi").notes
        assert notes[1].startswith("Read from unaligned_50.pkl, and not from CMU_MOSI_COVAREP.csd,")


class TestAVMnist:
    def test_the_digits_of_a_pair_are_the_same(self, tmp_path):
        source = opened(trees.av_mnist(tmp_path / "tree"), "av_mnist")
        assert {path.name for path in source.opened} == {
            path.name for path in (tmp_path / "tree").iterdir() if path.is_file()
        }
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

    @pytest.mark.parametrize("left", [0, 30])
    def test_a_damaged_archive(self, tmp_path, left):
        path = trees.av_mnist(tmp_path / "tree") / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ValueError, match=r"ubyte\.gz: is no idx file, or part of one"):
            opened(tmp_path / "tree", "av_mnist")
        whole = bytearray(gzip.compress(bytes(range(256)) * 9))
        whole[20:40] = bytes(20)
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=r"ubyte\.gz: is no idx file, or part of one"):
            opened(tmp_path / "tree", "av_mnist")

    def test_images_and_labels_of_unequal_number(self, tmp_path):
        path = trees.av_mnist(tmp_path / "tree") / "train-labels-idx1-ubyte"
        path.write_bytes(struct.pack(">HBBI", 0, 8, 1, 70) + path.read_bytes()[8:78])
        wanted = r"train-images-idx3-ubyte holds an array of shape \(80, 28, 28\) and .* \(70,\)"
        with pytest.raises(ValueError, match=wanted):
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
    assert list(inspect.signature(info.build).parameters) == ["folder", *info.settings]
    assert info.licence
    assert info.source
    assert info.layout


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. It should hold AudioWAV"):
        opened(tmp_path / "none", "cremad")


def test_an_unknown_setting(tmp_path):
    with pytest.raises(ValueError, match=r"'frame' is no setting of cremad\. Did you mean frames"):
        opened(tmp_path, "cremad(frame=2)")
