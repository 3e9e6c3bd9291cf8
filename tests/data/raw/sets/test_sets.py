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
from evenly.cli.sources import official_source
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
    "mosei": ("mosei", trees.mosei_pickle),
    "mosei, its scores": ("mosei(task=number)", trees.mosei_pickle),
    "sims": ("sims(classes=3)", trees.sims_pickle),
    "ave": ("ave(frames=1,size=[24,24],seconds=0.5)", trees.ave),
    "vggsound": ("vggsound(frames=1,size=[24,24],seconds=0.5)", trees.vggsound),
    "food101": ("food101(size=[24,24])", trees.food101),
    "mvsa": ("mvsa(size=[24,24])", trees.mvsa),
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
    "cremad": ("cremad(split=actors,frames=1,size=[8,8],seconds=0.1)", "visual", few_actors),
    "kinetics_sounds": (
        "kinetics_sounds(frames=1,size=[8,8],seconds=0.1)",
        "visual",
        trees.kinetics_sounds,
    ),
    "ucf101": ("ucf101(frames=1,size=[16,16])", "rgb", three_classes),
    "av_mnist": ("av_mnist(seconds=0.1)", "audio", trees.av_mnist),
    "ave": ("ave(frames=1,size=[8,8],seconds=0.1)", "visual", trees.ave),
    "vggsound": ("vggsound(frames=1,size=[8,8],seconds=0.1)", "visual", trees.vggsound),
    "food101": ("food101(size=[8,8])", "image", trees.food101),
    "mvsa": ("mvsa(size=[8,8])", "image", trees.mvsa),
}


def a_training_file_of_three_classes(source, modality):
    found = {}
    for sample in source.samples:
        if sample.split == "train" and sample.cells[modality].exists():
            found.setdefault(sample.label, sample.cells[modality])
    return [found[label] for label in range(3)]


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_left_of_a_damaged_tree_is_a_store(name, tmp_path):
    text, modality, tree = DAMAGES[name]
    folder = tree(tmp_path / "tree")
    whole = opened(folder, text)
    empty, cut, misnamed = a_training_file_of_three_classes(whole, modality)
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:40])
    misnamed.rename(misnamed.with_stem(f"{misnamed.stem} (1)"))

    source = opened(folder, text)
    note = next(note for note in source.notes if f"{misnamed.stem} (1)." in note)
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
    if name == "ucf101":
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
        leak = "A leak: every actor is in every split. With split=actors, none is in two."
        assert source.notes == [leak]
        parts = {}
        for sample in source.samples:
            parts.setdefault(sample.name[:4], set()).add(sample.split)
        assert all(len(splits) == 3 for splits in parts.values())

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
        assert set(opened(folder, "mosi(task=number)").target[:, 0].tolist()) == {-2.0, 2.0}

    def test_a_segment_without_steps_lacks_the_modality(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
            data = file["CMU_MOSI_COVAREP/data"]
            del data[next(iter(data))]
        about = prepare(opened(folder, "mosi"), tmp_path / "store", workers=1)
        assert about.modalities["audio"].missing == 2

    def test_features_that_have_changed_since_the_store_was_made(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        prepare(opened(folder, "mosi"), tmp_path / "store", workers=1)
        with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
            for entry in file["CMU_MOSI_COVAREP/data"].values():
                entry["features"][...] += 1
        with pytest.raises(ValueError, match="holds a store made from other files"):
            prepare(opened(folder, "mosi"), tmp_path / "store", workers=1)

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
        with pytest.raises(ValueError, match=r"is not a pickle of plain arrays .*builtins\.print"):
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
        with pytest.raises(ValueError, match="is not a pickle of plain arrays"):
            opened(tmp_path / "tree", "mosi")

    def test_a_pickle_comes_before_other_files(self, tmp_path):
        folder = trees.mosi(tmp_path / "tree")
        path = trees.mosi_pickle(tmp_path / "pickle") / "unaligned_50.pkl"
        path.rename(folder / path.name)
        notes = opened(folder, "mosi").notes
        assert notes[1].startswith("Read from unaligned_50.pkl, and not from CMU_MOSI_COVAREP.csd,")


class TestMosei:
    def test_the_file_and_the_classes_that_are_asked_for(self, tmp_path):
        folder = trees.mosei_pickle(tmp_path / "tree")
        trees.mmsa_pickle(folder, "aligned_50.pkl", [1.0, -1.0])
        two = opened(folder, "mosei")
        assert [s.label for s in two.samples[:3]] == [0, 1, 1]  # scores of -2.6, 0 and 1.4
        assert [s.label for s in opened(folder, "mosei(classes=7)").samples[:3]] == [0, 3, 4]
        assert [s.label for s in opened(folder, "mosei(aligned=true)").samples[:3]] == [1, 0, 1]
        assert counts(two) == [6, 6, 6]
        assert two.notes == [
            f"18 of the 22,856 segments are in {folder / 'unaligned_50.pkl'}.",
        ]

    def test_padding_of_aligned_files(self, tmp_path):
        path = trees.mmsa_pickle(tmp_path, "aligned_50.pkl", [1.0, -1.0]) / "aligned_50.pkl"
        content = pickle.loads(path.read_bytes())
        for part in content.values():
            del part["audio_lengths"], part["vision_lengths"]
            part["audio"] = np.ones((6, 50, 5))
            part["audio"][:, 7:] = 0
            part["audio"][1, 9] = 1  # not padding
            part["vision"] = np.zeros((6, 20, 4))  # at a pace of its own
        path.write_bytes(pickle.dumps(content))
        samples = opened(tmp_path, "mosei(aligned=true)").samples
        assert [len(s.cells["audio"]) for s in samples[:3]] == [7, 50, 7]
        assert [len(s.cells["text"]) for s in samples[:3]] == [7, 7, 7]
        assert len(samples[0].cells["video"]) == 20

    def test_scores_to_regress_on(self, tmp_path):
        source = opened(trees.mosei_pickle(tmp_path), "mosei(task=number)")
        assert (source.task.name, source.task.scale) == ("number", "sentiment")
        assert source.target[:3].tolist() == [[np.float32(-2.6)], [0.0], [np.float32(1.4)]]

    def test_a_video_in_two_splits_is_a_leak(self, tmp_path):
        path = trees.mosei_pickle(tmp_path / "tree") / "unaligned_50.pkl"
        content = pickle.loads(path.read_bytes())
        content["test"]["id"] = np.array([f"train$_${n + 6}" for n in range(6)])
        path.write_bytes(pickle.dumps(content))
        assert (
            "A leak: videos in more than one split (1): 'train'."
            in opened(path.parent, "mosei").notes
        )

    def test_another_folder(self, tmp_path):
        trees.sims_pickle(tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"holds no unaligned_50\.pkl, but unaligned_39\.pkl\. Give"
        ):
            opened(tmp_path, "mosei")

    def test_a_harmless_object_of_another_class_is_refused_by_name(self, tmp_path):
        (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps({"train": Counter("ab")}))
        with pytest.raises(ValueError, match=r"plain arrays \(it asks for collections\.Counter\)"):
            opened(tmp_path, "mosei")


class TestSims:
    @pytest.mark.parametrize(
        ("classes", "labels"), [(2, [0, 0, 1]), (3, [0, 1, 2]), (5, [0, 2, 3])]
    )
    def test_classes_as_in_the_paper(self, tmp_path, classes, labels):
        source = opened(trees.sims_pickle(tmp_path), f"sims(classes={classes})")
        assert [s.label for s in source.samples[:3]] == labels  # scores of -0.8, 0 and 0.6
        assert len(source.classes) == classes

    def test_scores_of_one_modality(self, tmp_path):
        folder = trees.sims_pickle(tmp_path)
        assert [s.label for s in opened(folder, "sims(labels=T)").samples[:3]] == [1, 0, 0]
        path = trees.mmsa_pickle(folder, "unaligned_39.pkl", [1.0]) / "unaligned_39.pkl"
        wanted = rf"{path}: there is no 'regression_labels_A' in it\. .* regression_labels_A, with"
        with pytest.raises(ValueError, match=wanted):
            opened(folder, "sims(labels=A)")

    def test_scores_to_regress_on(self, tmp_path):
        source = opened(trees.sims_pickle(tmp_path), "sims(task=number,labels=V)")
        assert (source.task.name, source.task.scale) == ("number", "")
        assert source.target[0].tolist() == [np.float32(0.8)]


class TestAVE:
    def test_the_split_of_the_lists(self, tmp_path):
        source = opened(trees.ave(tmp_path), "ave")
        assert counts(source) == [9, 3, 3]
        assert source.classes == ["Bark", "Church bell", "Violin, fiddle"]
        first = source.samples[0]
        assert (first.name, first.label, first.split) == ("train---0_0[0-10]", 0, "train")
        assert set(first.files()) == {tmp_path / "AVE" / "train---0_0.mp4"}
        assert source.notes == []

    def test_an_event_of_a_known_video_is_told(self, tmp_path):
        path = trees.ave(tmp_path, ("Bark",)) / "testSet.txt"
        head = "Category&VideoID&Quality&StartTime&EndTime"
        path.write_text(f"{head}\n\nBark&train---0_0&good&0&10\nBus&test----0_0&good&0&0\n")
        source = opened(tmp_path, "ave")
        assert counts(source) == [3, 1, 2]
        assert source.notes == [
            "A leak: videos in more than one split (1): 'train---0_0'.",
            "6 events are in 5 videos: one with several events is there for each, and no model can "
            "tell which is meant.",
        ]

    @pytest.mark.parametrize("line", ["Bark&an id", "Bark&&good&0&10", "Bark,an id,good,0,10"])
    def test_a_line_of_another_form(self, tmp_path, line):
        path = trees.ave(tmp_path, ("Bark",)) / "valSet.txt"
        path.write_text(f"Bark&val-----0_0&good&0&10\n{line}\n")
        with pytest.raises(ValueError, match=r"valSet\.txt: line 2 holds 'Bark.*', not Category&"):
            opened(tmp_path, "ave")

    def test_a_list_that_is_missing(self, tmp_path):
        (trees.ave(tmp_path, ("Bark",)) / "valSet.txt").unlink()
        wanted = (
            r"holds no valSet\.txt, but AVE, testSet\.txt, trainSet\.txt\. Give the folder that"
        )
        with pytest.raises(FileNotFoundError, match=wanted):
            opened(tmp_path, "ave")

    def test_a_list_that_is_none(self, tmp_path):
        (trees.ave(tmp_path, ("Bark",)) / "valSet.txt").write_bytes(b"\xff\xfe\0")
        with pytest.raises(ValueError, match=r"valSet\.txt: is not a complete list in UTF-8"):
            opened(tmp_path, "ave")


class TestVGGSound:
    def test_the_clips_of_the_list(self, tmp_path):
        source = opened(trees.vggsound(tmp_path), "vggsound")
        assert counts(source) == [9, 3, 3]
        assert source.classes == ["dog barking", "heart sounds, heartbeat", "zebra braying"]
        assert {s.name for s in source.samples} >= {"clip-____00_000000", "clip-____01_10"}
        assert source.opened == [tmp_path / "vggsound.csv"]
        assert source.notes == [
            f"15 of the 16 clips of the lists are in {tmp_path}; missing: 0 train, 0 val, 1 test.",
            "Validation split: 15% of the listed training clips, stratified, seed 0.",
        ]

    def test_clips_of_one_video(self, tmp_path):
        """Those that train and validate stay together; one that tests is a leak."""
        listed = [("a" * 11, n, "bark", "train") for n in range(20)]
        listed += [("b" * 11, n, "bark", "train") for n in range(20)]
        listed += [("b" * 11, 20, "meow", "test")]
        lines = [",".join(map(str, line)) for line in listed]
        (tmp_path / "vggsound.csv").write_text("\n".join(lines))
        for video, start, *_ in listed:
            (tmp_path / f"{video}_{start:06d}.mp4").write_bytes(b"x")
        (tmp_path / f"{'a' * 11}.mp4").write_bytes(b"x")  # says not which
        source = opened(tmp_path, "vggsound")
        assert sorted(counts(source)) == [1, 20, 20]
        assert source.notes[:2] == [
            f"Passed over, as not called ID_000058 or ID_58 (1): {tmp_path.name}/{'a' * 11}.mp4.",
            f"A leak: videos in more than one split (1): '{'b' * 11}'.",
        ]

    @pytest.mark.parametrize(
        "line",
        ["id,start,label,split", "id,30,bark", "id,30,bark,val", "id,30,ice cream, van,test"],
    )
    def test_a_line_of_another_form(self, tmp_path, line):
        (tmp_path / "vggsound.csv").write_text(f"--4-0ihtnBU,30,bark,train\n{line}\n")
        with pytest.raises(
            ValueError, match=r"vggsound\.csv: line 2 holds 'id.*', not YouTube ID, "
        ):
            opened(tmp_path, "vggsound")

    def test_no_list_and_no_clip(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no vggsound\.csv, but nothing\. Give"):
            opened(tmp_path, "vggsound")
        (tmp_path / "vggsound.csv").write_text("--4-0ihtnBU,30,bark,train\n")
        wanted = r"holds none of the 1 clips\. Name them such as --4-0ihtnBU_000030\.mp4\."
        with pytest.raises(ValueError, match=wanted):
            opened(tmp_path, "vggsound")


class TestFood101:
    def test_pictures_and_titles(self, tmp_path):
        source = opened(trees.food101(tmp_path), "food101")
        assert counts(source) == [9, 3, 3]
        assert source.classes == ["apple_pie", "churros", "pho"]
        sample = next(s for s in source.samples if s.name == "apple_pie_3")
        assert sample.cells == {
            "image": tmp_path / "images" / "train" / "apple_pie" / "apple_pie_3.jpg",
            "text": "Apple Pie, the best of 3",
        }
        assert source.notes == [
            "12 of 15 titles name their class, as the pages were found by searching for it.",
            "A leak: titles in more than one split (1): 'dish 0'.",  # in the drawn one, too
            "Validation split: 15% of the training samples, stratified, seed 0.",
        ]
        known = source.readers["text"].vocabulary.split()
        assert {"apple", "churros", "pho", "best"} <= set(known)
        assert "4" not in known  # of the test split alone

    def test_a_title_that_trains_and_tests_and_one_that_is_missing(self, tmp_path):
        path = trees.food101(tmp_path) / "texts" / "test_titles.csv"
        path.write_text('pho_4.jpg,"Pho, the best of 1",pho\nchurros_4.jpg,,churros\n')
        source = opened(tmp_path, "food101")
        assert [s.cells["text"] for s in source.samples if s.split == "test"] == [
            "Pho, the best of 1",
            None,
        ]
        leak = "A leak: titles in more than one split (2): 'dish 0', 'Pho, the best of 1'."
        assert leak in source.notes

    def test_a_tokenizer_in_place_of_words(self, tmp_path):
        source = opened(trees.food101(tmp_path), "food101(tokenizer=./folder,length=7)")
        reader = source.readers["text"]
        assert (reader.tokenizer, reader.vocabulary, reader.length) == ("./folder", "", 7)

    def test_a_line_of_another_form(self, tmp_path):
        path = trees.food101(tmp_path) / "texts" / "train_titles.csv"
        path.write_text("pho_1.jpg,Pho, the best,pho\n")
        wanted = r"train_titles\.csv: line 1 holds 'pho_1.*', not the file of a picture, its title"
        with pytest.raises(ValueError, match=wanted):
            opened(tmp_path, "food101")

    def test_the_other_food_101(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "meta").mkdir()
        wanted = r"holds no texts/train_titles\.csv, but images, meta\. Give the folder"
        with pytest.raises(FileNotFoundError, match=wanted):
            opened(tmp_path, "food101")


VOTES = {
    "positive,positive": "positive",
    "neutral,negative": "negative",
    "positive,neutral": "positive",
    "neutral,neutral": "neutral",
    "negative,positive": None,
    "positive,positive\tpositive,neutral\tnegative,neutral": "positive",
    "negative,neutral\tneutral,neutral\tneutral,negative": "neutral",
    "positive,neutral\tneutral,neutral\tnegative,neutral": None,
    "neutral,positive\tneutral,neutral\tneutral,negative": None,
    "positive,negative\tpositive,negative\tneutral,neutral": None,
}


class TestMvsa:
    def test_the_split_is_drawn_and_said_so(self, tmp_path):
        source = opened(trees.mvsa(tmp_path), "mvsa")
        assert counts(source) == [24, 3, 3]
        assert source.classes == ["negative", "neutral", "positive"]
        assert source.notes == [
            "Split: 80 / 10 / 10 %, stratified, seed 0, as there is no official one."
        ]
        other = opened(tmp_path, "mvsa(seed=1)")
        assert [s.split for s in source.samples] != [s.split for s in other.samples]
        assert source.samples[2].cells == {
            "image": tmp_path / "data" / "3.jpg",
            "text": "RT @one: negative day 3 #x",
        }

    @pytest.mark.parametrize("votes", VOTES)
    def test_one_label_of_text_and_picture(self, tmp_path, votes):
        source = opened(trees.mvsa(tmp_path, ("neutral,neutral", votes), 4), "mvsa")
        label = VOTES[votes]
        found = {s.name: source.classes[s.label] for s in source.samples}
        expected = {"2": "neutral", "4": "neutral"}
        assert found == (expected | {"1": label, "3": label} if label else expected)
        assert any(note.startswith("Left out, as") for note in source.notes) == (not label)

    def test_texts_that_are_missing_strange_or_there_twice(self, tmp_path):
        folder = trees.mvsa(tmp_path)
        (folder / "data" / "3.txt").unlink()
        (folder / "data" / "6.txt").write_bytes(b" \n")
        (folder / "data" / "9.txt").write_bytes(b"caf\xe9 time")
        for n in (12, 15, 18, 21, 24, 27, 30):
            (folder / "data" / f"{n}.txt").write_text("again")
        (folder / "data" / "31.txt").write_text("in no line")
        source = opened(folder, "mvsa")
        texts = [s.cells["text"] for s in source.samples]
        assert texts[2::3][:4] == [None, None, "caf time", "again"]
        assert source.notes[:4] == [
            "Passed over, as not called as one of the listed tweets, N.jpg or N.txt (1): "
            "data/31.txt.",
            "Without text, as its file is missing or empty (2): 3, 6.",
            "Not in UTF-8, so that a part of the text is lost (1): 9.",
            "A leak: texts in more than one split (1): 'again'.",
        ]

    @pytest.mark.parametrize("line", ["1\tpositive", "1\tgood,bad", "1,positive,positive", "1"])
    def test_a_line_of_another_form(self, tmp_path, line):
        (tmp_path / "labelResultAll.txt").write_text(f"ID\ttext,image\n{line}\n")
        wanted = r"labelResultAll\.txt: line 2 holds '1.*', not a number and the sentiments of text"
        with pytest.raises(ValueError, match=wanted):
            opened(tmp_path, "mvsa")

    def test_another_folder(self, tmp_path):
        trees.mvsa(tmp_path / "MVSA_Single")
        with pytest.raises(FileNotFoundError, match=r"no labelResultAll\.txt, but MVSA_Single\. G"):
            opened(tmp_path, "mvsa")
        (tmp_path / "labelResultAll.txt").write_text("ID\ttext,image\n1\tpositive,negative\n")
        with pytest.raises(ValueError, match="holds no tweet whose annotators agree"):
            opened(tmp_path, "mvsa")


class TestMMImdb:
    def test_genres_plots_and_the_split(self, tmp_path):
        source = opened(trees.mm_imdb(tmp_path), "mm_imdb")
        assert counts(source) == [23, 23, 23]
        assert len(source.classes) == 23
        first = source.samples[1]
        assert (first.name, first.split) == ("0000001", "train")
        assert first.label == (1.0, 1.0, *[0.0] * 21)  # Action, Adventure; News is not predicted
        assert first.cells == {
            "image": tmp_path / "dataset" / "0000001.jpeg",
            "text": "A Adventure and a Action of day 0.",
        }
        assert source.notes == []

    def test_plots_that_are_in_two_splits(self, tmp_path):
        data = trees.mm_imdb(tmp_path) / "dataset"
        (data / "2000003.json").write_bytes((data / "0000003.json").read_bytes())
        (note,) = opened(tmp_path, "mm_imdb").notes
        assert note.startswith("A leak: plots in more than one split (1): 'A ")

    def test_movies_that_lack_something(self, tmp_path):
        data = trees.mm_imdb(tmp_path) / "dataset"
        (data / "0000003.json").unlink()
        (data / "0000004.json").write_text('{"plot": ["x"]}')
        (data / "0000005.json").write_bytes(b"")
        (data / "0000006.json").write_text('{"plot": [], "genres": ["Adult"]}')
        assert opened(tmp_path, "mm_imdb").notes == [
            "Left out, as their .json is missing or lacks plot or genres (3): 0000003, 0000004, "
            "0000005.",
            "Without plot (1): 0000006.",
            "With none of the 23 genres (1): 0000006.",
        ]

    def test_another_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no split\.json, but nothing\. Give"):
            opened(tmp_path, "mm_imdb")
        (tmp_path / "split.json").write_text('{"train": ["1"], "dev": [], "test": []}')
        with pytest.raises(ValueError, match=r"holds none of the 1 movies .* such as 1\.json with"):
            opened(tmp_path, "mm_imdb")

    @pytest.mark.parametrize("content", ["", "[]", '{"train": []}', '{"train": 1, "dev": 1}'])
    def test_a_split_of_another_form(self, tmp_path, content):
        (tmp_path / "split.json").write_text(content)
        with pytest.raises(ValueError, match="holds no lists of movies under train, dev and test"):
            opened(tmp_path, "mm_imdb")


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
        with pytest.raises(ValueError, match="is not a complete idx file"):
            opened(tmp_path / "tree", "av_mnist")

    @pytest.mark.parametrize("left", [0, 30])
    def test_a_damaged_archive(self, tmp_path, left):
        path = trees.av_mnist(tmp_path / "tree") / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(ValueError, match=r"ubyte\.gz: is not a complete idx file"):
            opened(tmp_path / "tree", "av_mnist")
        whole = bytearray(gzip.compress(bytes(range(256)) * 9))
        whole[20:40] = bytes(20)
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=r"ubyte\.gz: is not a complete idx file"):
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


def test_the_task_that_is_asked_for_on_the_command_line(tmp_path):
    folder = str(trees.mosei_pickle(tmp_path))
    assert official_source("mosei", folder, "number").task.name == "number"
    assert official_source("mosei", folder).task.name == "classes"
    with pytest.raises(ValueError, match="mosei: task takes 'classes' or 'number', found 'labels'"):
        official_source("mosei", folder, "labels")


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. It should hold AudioWAV"):
        opened(tmp_path / "none", "cremad")


def test_an_unknown_setting(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown setting 'frame' of cremad\. Did you mean frames"
    ):
        opened(tmp_path, "cremad(frame=2)")
