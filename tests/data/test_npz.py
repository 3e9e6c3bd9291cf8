import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from evenly.data import Padded, load_npz, save_npz

N = 12
LABELS = np.arange(N) % 2
SPLIT = np.array([0] * 6 + [1] * 2 + [2] * 4)
RNG = np.random.default_rng(0)
VECTOR = RNG.normal(size=(N, 3))


def _write(path, **arrays):
    """A file that is right but for what is given; None takes an array out."""
    base = {"labels": LABELS, "split": SPLIT, "x": VECTOR}
    merged = {name: value for name, value in (base | arrays).items() if value is not None}
    np.savez(path, **merged)
    return path


def _all(data, name):
    split = data.split(name)
    return split.__getitems__(list(range(len(split))))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "stored"),
    [
        ((), "f4", "vector", (1,)),
        ((5,), "f4", "vector", (5,)),
        ((5,), "u1", "vector", (5,)),
        ((5, 4), "u1", "image", (1, 5, 4)),
        ((5, 4), "i1", "image", (1, 5, 4)),
        ((5, 4), "f4", "sequence", (5, 4)),
        ((5, 4), "i2", "sequence", (5, 4)),
        ((2, 5, 6), "u1", "image", (2, 5, 6)),
        ((3, 5, 4), "f4", "image", (3, 5, 4)),
        ((6, 5, 3), "u1", "image", (3, 6, 5)),
        ((6, 5, 4), "f4", "image", (4, 6, 5)),
        ((6, 5, 1), "f4", "image", (1, 6, 5)),
        ((3, 5, 3), "u1", "image", (3, 5, 3)),
        ((6, 5, 2), "f4", "image", (6, 5, 2)),
    ],
)
def test_the_shape_of_a_sample_suggests_its_kind(tmp_path, shape, dtype, kind, stored):
    x = RNG.integers(0, 100, (N, *shape)).astype(dtype)
    data = load_npz(_write(tmp_path / "a.npz", x=x))
    modality = data.modalities["x"]
    assert (modality.kind, modality.shape) == (kind, stored)
    batch = _all(data, "val")
    assert batch["inputs"]["x"].shape == (2, *stored)
    assert torch.from_numpy(np.zeros(1, dtype)).dtype == batch["inputs"]["x"].dtype
    first = torch.from_numpy(x[6].reshape(-1))
    if shape[-1:] != stored[-1:] and len(shape) == 3:
        first = torch.from_numpy(x[6]).permute(2, 0, 1).reshape(-1)
    assert torch.equal(batch["inputs"]["x"][0].flatten(), first)


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "stored"),
    [
        ((5, 4), "f4", "image", (1, 5, 4)),
        ((5, 4), "u1", "sequence", (5, 4)),
        ((5, 4), "f4", "vector", (20,)),
        ((2, 5, 4), "f4", "vector", (40,)),
        ((5,), "f4", "sequence", (5, 1)),
    ],
)
def test_a_kind_of_ones_own(tmp_path, shape, dtype, kind, stored):
    x = RNG.integers(0, 9, (N, *shape)).astype(dtype)
    data = load_npz(_write(tmp_path / "a.npz", x=x, x_kind=kind))
    assert (data.modalities["x"].kind, data.modalities["x"].shape) == (kind, stored)
    assert list(data.modalities) == ["x"]


@pytest.mark.parametrize("width", [None, 1, 2])
def test_sequences_of_unequal_lengths(tmp_path, width):
    length = 1 + np.arange(N) % 4
    offset = np.concatenate([[0], np.cumsum(length)])
    steps = np.arange(offset[-1] * (width or 1), dtype="f4")
    steps = steps if width is None else steps.reshape(-1, width)
    data = load_npz(_write(tmp_path / "a.npz", s=steps, s_offset=offset.astype("u2")))
    assert (data.modalities["s"].kind, data.modalities["s"].shape) == ("sequence", (4, width or 1))
    padded = _all(data, "test")["inputs"]["s"]
    assert isinstance(padded, Padded)
    for row, value, n in zip(range(8, 12), *padded, strict=True):
        assert n == length[row]
        expected = steps[offset[row] : offset[row + 1]].reshape(n, -1)
        assert np.array_equal(value[:n], expected)


def test_strings_are_classes_in_alphabetical_order(tmp_path):
    data = load_npz(_write(tmp_path / "a.npz", labels=np.array(["sad", "glad"])[LABELS]))
    assert data.class_names == ["glad", "sad"]
    assert _all(data, "train")["target"].tolist() == [1, 0, 1, 0, 1, 0]


def test_bytes_are_strings(tmp_path):
    labels = np.array([b"no", b"yes"])[LABELS]
    split = np.array([b"train", b"val", b"test"])[SPLIT]
    data = load_npz(_write(tmp_path / "a.npz", labels=labels, split=split))
    assert data.class_names == ["no", "yes"]
    assert len(data.split("val")) == 2


@pytest.mark.parametrize(
    ("values", "names", "class_names"),
    [
        ([-5, 90], None, ["-5", "90"]),
        ([0, 1], ["no", "yes"], ["no", "yes"]),
        ([1, 2], ["no", "yes"], ["no", "yes"]),
        (["no", "yes"], ["yes", "no"], ["yes", "no"]),
    ],
)
def test_any_labels_become_classes_from_0(tmp_path, values, names, class_names):
    path = _write(tmp_path / "a.npz", labels=np.array(values)[LABELS], class_names=names)
    data = load_npz(path)
    assert data.class_names == class_names
    flipped = names == ["yes", "no"]
    assert _all(data, "val")["target"].tolist() == ([1, 0] if flipped else [0, 1])


@pytest.mark.parametrize(
    "split", [SPLIT, SPLIT.astype(float), np.array(["train", "val", "test"])[SPLIT]]
)
def test_splits_by_number_or_name(tmp_path, split):  # fmt: skip
    data = load_npz(_write(tmp_path / "a.npz", split=split))
    assert data.split("train").rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.split("val").rows.tolist() == [6, 7]
    assert data.split("test").rows.tolist() == [8, 9, 10, 11]
    assert data.notes == []


def test_without_validation_a_part_of_train_is_drawn_and_said(tmp_path):
    labels = np.repeat([0, 1, 0, 1], [200, 100, 20, 20])
    split = np.repeat(["train", "test"], [300, 40])
    x = RNG.normal(size=(340, 2))
    data = load_npz(_write(tmp_path / "a.npz", labels=labels, split=split, x=x))
    val = data.split("val")
    assert val.target.bincount().tolist() == [30, 15]
    rows = torch.cat([data.split("train").rows, val.rows]).sort().values
    assert torch.equal(rows, torch.arange(300))
    assert data.notes == [
        "a.npz has no validation split: 45 of the 300 training samples (15%, stratified, seed 0) "
        "become one."
    ]
    again = load_npz(tmp_path / "a.npz")
    assert torch.equal(again.split("val").rows, val.rows)


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", "<u4", "<u8", "<i2", ">i4", ">u2", "<i8", "<f2", ">f4", "f8"]
)
def test_every_number_type_is_read(tmp_path, dtype):
    x = np.asfortranarray(RNG.integers(0, 2, (N, 3)).astype(dtype))
    data = load_npz(_write(tmp_path / "a.npz", x=x))
    values = _all(data, "train")["inputs"]["x"]
    assert np.array_equal(values.numpy(), x[:6])
    torch.testing.assert_close(
        data.modalities["x"].mean, torch.from_numpy(x[:6].astype("f4")).mean(0)
    )


def test_numbers_of_the_samples_are_no_modality(tmp_path):
    file = _write(tmp_path / "a.npz", id=np.arange(N)[::-1])
    data = load_npz(file)
    assert list(data.modalities) == ["x"]
    assert "'id' numbers the samples, so it is not a modality" in " ".join(data.notes)
    data = load_npz(_write(tmp_path / "words.npz", index=np.array([f"s{n}" for n in range(N)])))
    assert list(data.modalities) == ["x"]
    assert data.names == [f"s{n}" for n in range(N)]
    for given in ({"id": np.arange(N) // 2}, {"id": np.arange(N), "id_kind": "vector"}):
        data = load_npz(_write(tmp_path / "b.npz", **given))
        assert (list(data.modalities), data.notes) == (["x", "id"], [])
    data = load_npz(file, labelled=False, kinds={"id": None})
    assert (list(data.modalities), data.names) == (["x", "id"], None)


def test_eight_bit_images_stay_eight_bit(tmp_path):
    x = RNG.integers(0, 256, (N, 4, 4), dtype=np.uint8)
    data = load_npz(_write(tmp_path / "a.npz", x=x))
    assert _all(data, "train")["inputs"]["x"].dtype == torch.uint8


def test_only_what_is_needed_must_be_there(tmp_path):
    """A test split is not looked at where nobody will read it."""
    path = _write(tmp_path / "a.npz", split=SPLIT.clip(0, 1))
    data = load_npz(path, needed=("train", "val"))
    assert data.split("val").rows.tolist() == [6, 7, 8, 9, 10, 11]
    _write(path, labels=np.append(LABELS[:8], [1, 1, 1, 1]))  # class 0 is not in test
    assert data.split("train").rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_validation_split_that_is_needed_is_not_drawn(tmp_path):
    path = _write(tmp_path / "a.npz", split=SPLIT.clip(0, 1) * 2)
    with pytest.raises(ValueError, match=r"'split' marks no sample as val\. Mark some"):
        load_npz(path, needed=("train", "val"))


class TestWithoutLabels:
    """What a prediction needs, which looks at no label."""

    def test_neither_labels_nor_split(self, tmp_path):
        path = _write(tmp_path / "a.npz", labels=None, split=None)
        data = load_npz(path, labelled=False)
        assert len(data.split("train")) == len(data.split("val")) == 0
        assert np.array_equal(_all(data, "test")["inputs"]["x"], VECTOR)
        assert set(_all(data, "test")["target"].tolist()) == {-1}
        assert data.class_names == []
        mean = torch.from_numpy(VECTOR.mean(0)).float()
        torch.testing.assert_close(data.modalities["x"].mean, mean)

    def test_what_there_is_is_taken_and_nothing_asked_of_it(self, tmp_path):
        path = _write(tmp_path / "a.npz", labels=np.array(["yes"] * N), split=np.array([2] * N))
        data = load_npz(path, labelled=False)
        assert len(data.split("test")) == N
        assert data.class_names == ["yes"]
        assert set(data.split("test").target.tolist()) == {0}
        path = _write(tmp_path / "a.npz", labels=None)
        assert len(load_npz(path, labelled=False).split("val")) == 2
        path = _write(tmp_path / "a.npz", split=None)
        data = load_npz(path, labelled=False)
        assert data.split("test").target.tolist() == LABELS.tolist()

    def test_a_validation_split_is_drawn_like_a_training_s(self, tmp_path):
        split = np.where(SPLIT == 1, 0, SPLIT)
        path = _write(tmp_path / "a.npz", split=split)
        data, trained = load_npz(path, labelled=False), load_npz(path)
        assert data.notes == trained.notes
        for name in ("train", "val", "test"):
            assert data.split(name).rows.tolist() == trained.split(name).rows.tolist()
        data = load_npz(_write(path, split=split, labels=None), labelled=False)
        assert len(data.split("train")) == 8
        assert data.notes[0].endswith("would draw one: its training split is whole.")
        rare = np.where(np.arange(N) == 0, 2, LABELS)
        data = load_npz(_write(path, split=split, labels=rare), labelled=False)
        assert len(data.split("train")) == 8
        assert "class '2' has a single training sample, so none can be drawn" in data.notes[0]

    def test_offsets_tell_how_many_samples_there_are(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path, s=np.zeros((24, 2)), s_offset=2 * np.arange(N + 1))
        assert len(load_npz(path, labelled=False).split("test")) == N
        # One that describes nothing is a modality.
        np.savez(path, clock_offset=VECTOR, audio=VECTOR)
        assert list(load_npz(path, labelled=False).modalities) == ["clock_offset", "audio"]
        assert len(load_npz(path, labelled=False).split("test")) == N

    def test_a_kind_that_the_file_does_not_speak_of_is_not_to_be_left_out(self, tmp_path):
        np.savez(tmp_path / "a.npz", s=np.zeros((24, 2)), s_offset=2 * np.arange(N + 1))
        with pytest.raises(ValueError, match=r"cannot be read as image.* leave out 's_offset'\.$"):
            load_npz(tmp_path / "a.npz", labelled=False, kinds={"s": "image"})

    def test_labels_alone_are_no_modality(self, tmp_path):
        np.savez(tmp_path / "a.npz", class_names=np.array(["a", "b"]))
        with pytest.raises(ValueError, match="has no modality"):
            load_npz(tmp_path / "a.npz", labelled=False)


def test_what_is_saved_is_read(tmp_path):
    path = tmp_path / "a.npz"
    save_npz(path, LABELS, SPLIT, {"x": VECTOR, "y": VECTOR[:, :2]}, class_names=["no", "yes"])
    data = load_npz(path)
    assert data.class_names == ["no", "yes"]
    assert np.array_equal(_all(data, "test")["inputs"]["y"], VECTOR[8:, :2])
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_npz(path, LABELS, SPLIT, {"x": VECTOR})
    before = path.read_bytes()

    def fail(file, *_, **__):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        save_npz(path, LABELS, SPLIT, {"x": 2 * VECTOR})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"save_npz: 'x' holds Python objects"):
        save_npz(tmp_path / "a.npz", LABELS, SPLIT, {"x": np.array([None] * N)})
    assert not list(tmp_path.iterdir())


OFFSET = np.arange(N + 1)
NAN = VECTOR.copy()
NAN[7, 2] = np.nan
INFINITE = VECTOR.astype("f2")
INFINITE[[3, 9]] = -np.inf

WRONG = {
    "no labels": ({"labels": None}, "has no array 'labels', only split, x. Add 'labels'"),
    "no split": ({"split": None}, "has no array 'split', only labels, x. Add 'split'"),
    "label columns": (
        {"labels": LABELS[:, None]},
        "'labels' holds int64 values of shape (12, 1), which are not sets of labels",
    ),
    "no samples": ({"labels": LABELS[:0]}, "'labels' has the shape (0,)"),
    "labels of no kind": ({"labels_kind": "mood"}, "'labels_kind' is 'mood'. Use classes, labels"),
    "halves": (
        {"labels": LABELS / 2, "labels_kind": "classes"},
        "'labels' holds float64 values of shape (12,), which are not classes.",
    ),
    "words": (
        {"labels": np.array(["a", "b"])[LABELS], "labels_kind": "number"},
        "'labels' holds <U1 values, which cannot be regressed on.",
    ),
    "number that is none": (
        {"labels": np.where(np.arange(N) == 3, np.nan, LABELS)},
        "'labels' holds nan in sample 3, which cannot be regressed on.",
    ),
    "one number": ({"labels": np.ones(N)}, "in the training split 'number' is 1 in all samples"),
    "number far from 0": (
        {"labels": 1e8 + np.arange(N) / 2},
        "'labels' has mean 100000003 and deviation 1.73. 32-bit floats are 8 apart at that size, "
        "too coarse to tell its values apart. Subtract the mean.",
    ),
    "one of several numbers far from 0": (
        {"labels": np.stack([LABELS / 2, 1e8 + np.arange(N)], 1), "class_names": ["a", "b"]},
        "column 'b' of 'labels' has mean 100000006 and",
    ),
    "values far from 0": (
        {"x": 1_700_000_000 + np.arange(N)},
        "modality 'x' has mean 1.70000001e+09 and deviation 3.45. 32-bit floats are 128 apart at "
        "that size, too coarse to tell its values apart. Subtract the mean.",
    ),
    "feature far from 0": (
        {"x": 0.5 + np.arange(2 * N).reshape(N, 2) + np.array([0, 1e8])},
        "feature 2 of modality 'x' has mean",
    ),
    "sentiments": (
        {"labels": np.stack([LABELS, LABELS], 1) / 2, "labels_kind": "sentiment"},
        "'labels' has 2 columns, but sentiment is one number per sample.",
    ),
    "names of numbers": (
        {"labels": LABELS / 2, "class_names": ["a", "b"]},
        "'class_names' has 2 different names for 1 column of 'labels'. Give one for each.",
    ),
    "one class": ({"labels": np.ones(N, int)}, "all labels are '1'. Classification needs two"),
    "split length": ({"split": SPLIT[:5]}, "'split' has the shape (5,) for 12 labels"),
    "split names": (
        {"split": np.array(["train", "valid", "test"])[SPLIT]},
        "'split' holds valid. Use train, val and test, or 0, 1 and 2.",
    ),
    "split numbers": ({"split": SPLIT + 1}, "'split' holds 3. Use train"),
    "split fractions": ({"split": SPLIT / 2}, "'split' holds 0.5. Use train"),
    "split truth": ({"split": SPLIT > 0}, "'split' holds False, True. Use train"),
    "no train": ({"split": SPLIT.clip(1)}, "'split' marks no sample as train. Mark some"),
    "no test": ({"split": SPLIT.clip(0, 1)}, "'split' marks no sample as test. Mark some"),
    "lost arrays": (
        {"y": VECTOR[:7], "rate": 8000, "z_offset": OFFSET},
        "these arrays do not match the 12 samples: 'y' (7, 3), 'rate' (), 'z_offset' (13,). "
        "Give a modality 12 rows, or a 'NAME_offset' with 13, or leave it out.",
    ),
    "no modality": ({"x": None}, "has no modality. Add an array with 12 rows"),
    "text": (
        {"words": np.array(["a"] * N)},
        "modality 'words' holds <U1 values. Turn them into numbers, or leave the array out.",
    ),
    "complex": ({"x": VECTOR * 1j}, "modality 'x' holds complex128 values"),
    "nan": ({"x": NAN}, "modality 'x' holds nan in sample 7 (1 samples in all). Replace"),
    "infinite": ({"x": INFINITE}, "modality 'x' holds -inf in sample 3 (2 samples in all)"),
    "beyond float32": (
        {"x": np.where(VECTOR.max() == VECTOR, 1e300, VECTOR)},
        "modality 'x' holds 1e+300 (float32 ends at 3.4e+38) in sample "
        f"{VECTOR.max(1).argmax()} (1 samples in all). Replace",
    ),
    "beyond int64": (
        {"x": np.full((N, 2), 2**63, np.uint64)},
        "modality 'x' holds 9223372036854775808 (int64 ends at 9.2e+18) in sample 0 (12 samples",
    ),
    "dates": ({"x": VECTOR.astype("M8[s]")}, "'x' holds datetime64[s] values. Turn them into"),
    "words without number": (
        {"said": np.full((N, 2), 10**12), "said_kind": "text"},
        "modality 'said' uses word numbers up to 1,000,000,000,000, and an encoder keeps a vector "
        "for each. Number words from 1, without gaps, below 10,000,000.",
    ),
    "bytes": (
        {"labels": np.array([b"caf\xe9", b"tea"])[LABELS]},
        "'labels' holds bytes that are not UTF-8. Give strings instead.",
    ),
    "bytes of a kind": ({"x_kind": np.array(b"\xff")}, "'x_kind' holds bytes that are not UTF-8"),
    "long name": ({"x" * 81: VECTOR}, "is too long for a file name. Use at most 80"),
    "nothing in a sample": (
        {"x": None, "s": np.zeros(22), "s_offset": np.append(0, 2 * OFFSET[:-1])},
        "sample 0 has no modality. Leave it out.",
    ),
    "ragged nan": (
        {"s": np.append(np.zeros(23), np.nan), "s_offset": 2 * OFFSET},
        "modality 's' holds nan in sample 11 (1 time steps in all)",
    ),
    "no width": ({"x": VECTOR[:, :0]}, "modality 'x' is empty (shape (12, 0))"),
    "five axes": (
        {"x": np.zeros((N, 2, 3, 4, 5, 6))},
        "a sample of modality 'x' has the shape (2, 3, 4, 5, 6), which cannot be read as a vector, "
        "sequence, image or video. Give (d), (time, features), (channels, height, width) or",
    ),
    "kind that does not fit": (
        {"x_kind": "image"},
        "a sample of modality 'x' has the shape (3,), which cannot be read as image",
    ),
    "unknown kind": (
        {"x_kind": "sound"},
        "'x_kind' is 'sound'. Use vector, sequence, image, video, text.",
    ),
    "no kind": ({"x_kind": np.array([], "U1")}, "'x_kind' is ''. Use vector"),
    "dot": ({"a.b": VECTOR}, "rename the modality 'a.b'"),
    "slash": ({"a/b": VECTOR}, "rename the modality 'a/b'"),
    "line break": (
        {"a\nb": VECTOR},
        r"rename the modality 'a\nb', without line breaks",
    ),
    "tab": ({"a\tb": VECTOR}, r"rename the modality 'a\tb'"),
    "attribute": ({"float": VECTOR}, "rename the modality 'float'"),
    "offset falls": (
        {"s": VECTOR, "s_offset": np.array([0, 1, 3, 2, *range(4, 13)])},
        "'s_offset' does not ascend: row 3 holds 2 after 3. Sample i must be s[offset[i]",
    ),
    "offset ends early": (
        {"s": np.zeros((20, 2)), "s_offset": OFFSET},
        "'s_offset' runs from 0 to 12, but 's' has 20 rows. It must run from 0 to 20.",
    ),
    "offset starts late": (
        {"s": np.zeros((20, 2)), "s_offset": np.append(OFFSET[1:], 20)},
        "'s_offset' runs from 1 to 20, but 's' has 20 rows",
    ),
    "offset length": (
        {"s": VECTOR, "s_offset": OFFSET[:-1]},
        "'s_offset' holds int64 in the shape (12,). Give 13 whole numbers, from 0 to the length",
    ),
    "offset type": ({"s": VECTOR, "s_offset": OFFSET / 1}, "'s_offset' holds float64 in the shape"),
    "ragged images": (
        {"s": np.zeros((N, 4, 4)), "s_offset": OFFSET},
        "modality 's' has offsets and the shape (12, 4, 4)",
    ),
    "ragged vector": (
        {"s": VECTOR, "s_offset": OFFSET, "s_kind": "vector"},
        "modality 's' has offsets, so it cannot be read as vector. Only sequences",
    ),
    "class not in val": (
        {"labels": np.array([0, 1] * 3 + [1, 1] + [0, 1, 0, 1]), "class_names": ["no", "yes"]},
        "the val split has no sample of class 'no'. Split again",
    ),
    "class nowhere": (
        {"class_names": ["no", "yes", "maybe"]},
        "the train split has no sample of class 'maybe'. Split again",
    ),
    "fewer samples than classes": (
        {"labels": np.arange(N) % 3},
        "the val split has 2 samples for 3 classes",
    ),
    "class in no training sample": (
        {"labels": np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 2]), "split": SPLIT.clip(0, 1) * 2},
        "the train split has no sample of class '2'",
    ),
    "no validation sample to draw": (
        {"labels": np.array([0] * 5 + [1] + [0, 1] * 3), "split": SPLIT.clip(0, 1) * 2},
        "has no validation split, and class '1' has a single training sample, so none can be drawn",
    ),
    "names twice": ({"class_names": ["a", "a"]}, "'class_names' holds a name twice: a, a."),
    "names too few": (
        {"labels": LABELS + 5, "class_names": ["a", "b", "c"]},
        "'class_names' has 3 names, but 'labels' holds 2 classes, 5 to 6. Give one name per class",
    ),
    "strange label": (
        {"labels": np.array(["no", "yes"])[LABELS], "class_names": ["no", "oui"]},
        "'labels' holds 'yes', which is missing from 'class_names' (no, oui). Add it there",
    ),
    "objects": (
        {"x": np.array([None] * N)},
        "array 'x' holds pickled Python objects, which could run code and are never read.",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_file_is_explained_in_one_line(tmp_path, wrong):
    arrays, message = WRONG[wrong]
    path = _write(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        load_npz(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_missing_from_train_is_named(tmp_path):
    labels = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"the train split has no sample of class '0'"):
        load_npz(_write(tmp_path / "a.npz", labels=labels))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.npz: there is no such file"):
        load_npz(tmp_path / "b.npz")


def test_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder. Give the path of an \.npz file"):
        load_npz(tmp_path)


def test_another_format(tmp_path):
    path = tmp_path / "a.npz"
    with path.open("wb") as file:
        np.save(file, VECTOR)
    with pytest.raises(ValueError, match=r"a\.npz: is not a complete \.npz file"):
        load_npz(path)


def test_half_a_file(tmp_path):
    path = _write(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.npz: is not a complete \.npz file"):
        load_npz(path)


@pytest.mark.parametrize("shape", [(10**12,), (10**18, 10**18), (2,), (4,), (-1,), ()])
def test_a_header_that_lies_about_the_length(tmp_path, shape):
    path = tmp_path / "a.npz"
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w") as archive, archive.open("labels.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(24))
    with pytest.raises(ValueError, match=r"a\.npz: array 'labels' is damaged .* 24 bytes can hold"):
        load_npz(path)


def test_a_directory_that_lies_about_the_length(tmp_path):
    """Neither the header nor the directory make it ask for more memory than a file can fill."""
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**9,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", header.getvalue() + bytes(24))
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\1\2") + 24  # the length in the directory
    content[at : at + 4] = (len(header.getvalue()) + 8 * 10**9 & 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="array 'labels' is damaged"):
        load_npz(path)


def test_a_damaged_directory(tmp_path):
    path = _write(tmp_path / "a.npz")
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    at = whole.rfind(b"PK\1\2") - 200
    said = []
    for _ in range(300):
        content = bytearray(whole)
        for place in draw.integers(at, len(whole), 3):
            content[place] = draw.integers(256)
        path.write_bytes(content)
        try:
            load_npz(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in said)


def test_an_array_of_a_type_that_numpy_lacks(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        head = b"{'descr': '<f1', 'fortran_order': False, 'shape': (3,), }"
        archive.writestr("labels.npy", b"\x93NUMPY\1\0" + bytes([len(head), 0]) + head + bytes(3))
    with pytest.raises(ValueError, match=r"array 'labels' is damaged \(descr is not a valid dtype"):
        load_npz(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.mat", r"is a MATLAB file\. Write its arrays to an \.npz file in Python"),
        ("a.npy", r"is a single array\. Write labels, split and modalities to one \.npz"),
        ("a.pkl", r"is not a complete \.npz file\. Write it with numpy\.savez"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"MATLAB 5.0 MAT-file, or something else")
    with pytest.raises(ValueError, match=said):
        load_npz(tmp_path / name)


def test_what_matlab_wrote(tmp_path):
    """The way that the message tells."""
    from scipy import io as matlab

    picture = np.zeros((N, 1, 5, 4))
    cell = {"labels": LABELS, "split": SPLIT, "audio": VECTOR, "picture": picture}
    matlab.savemat(tmp_path / "a.mat", cell)
    found = matlab.loadmat(tmp_path / "a.mat")
    modalities = {name: found[name] for name in ("audio", "picture")}
    save_npz(tmp_path / "a.npz", found["labels"].ravel(), found["split"].ravel(), modalities)
    assert load_npz(tmp_path / "a.npz").modalities["picture"].shape == (1, 5, 4)
    assert np.array_equal(_all(load_npz(tmp_path / "a.npz"), "test")["inputs"]["audio"], VECTOR[8:])


def test_an_empty_sequence_is_a_missing_modality(tmp_path):
    lengths = np.array([2, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    offset = np.append(0, lengths.cumsum())
    words = np.ones((N, 3), int)
    words[3] = 0
    arrays = {"s": np.arange(11.0), "s_offset": offset, "said": words, "said_kind": "text"}
    for labelled in (True, False):
        data = load_npz(_write(tmp_path / "a.npz", **arrays), labelled=labelled)
        present = _all(data, "train")["present"]
        assert present["s"].tolist() == [True, False, True, True, True, True]
        assert present["said"].tolist() == [True, True, True, False, True, True]
        assert "x" not in present
    notes = load_npz(tmp_path / "a.npz").notes
    assert notes[0].startswith("2 of 12 samples lack 's': its encoder skips them")


class TestSaving:
    """What is saved is read, or is not saved."""

    @pytest.mark.parametrize(
        "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "float4_e2m1fn"]
    )
    def test_types_of_other_packages_are_widened(self, tmp_path, name):
        own = np.dtype(getattr(ml_dtypes, name))
        x = (np.arange(24).reshape(N, 2) % 3).astype(own)
        save_npz(tmp_path / "a.npz", LABELS, SPLIT, {"x": x})
        found = _all(load_npz(tmp_path / "a.npz"), "train")["inputs"]["x"]
        assert found.dtype == (torch.int8 if "int" in name else torch.float32)
        assert found.flatten().tolist() == [0, 1, 2] * 4

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.half, torch.int16])
    def test_tensors(self, tmp_path, dtype):
        x = torch.arange(24).reshape(N, 2) % 3
        x = x.to(dtype) if dtype == torch.int16 else x.float().requires_grad_().to(dtype)
        save_npz(tmp_path / "a.npz", torch.from_numpy(LABELS), SPLIT, {"x": x})
        found = _all(load_npz(tmp_path / "a.npz"), "train")["inputs"]["x"]
        assert found.flatten().tolist() == [0, 1, 2] * 4
        assert found.dtype == (dtype if dtype in (torch.half, torch.int16) else torch.float32)

    def test_strings_as_objects(self, tmp_path):
        """As pandas gives them."""
        labels = np.array(["no", "yes"], object)[LABELS]
        split = np.array(["train", "val", "test"], np.dtypes.StringDType())[SPLIT]
        save_npz(tmp_path / "a.npz", labels, split, {"x": VECTOR})
        data = load_npz(tmp_path / "a.npz")
        assert data.class_names == ["no", "yes"]
        assert len(data.split("val")) == 2

    def test_names_of_numpys_own_arguments(self, tmp_path):
        save_npz(tmp_path / "a.npz", LABELS, SPLIT, {"file": VECTOR, "allow_pickle": VECTOR})
        assert list(load_npz(tmp_path / "a.npz").modalities) == ["file", "allow_pickle"]
        with np.load(tmp_path / "a.npz") as file:
            assert np.array_equal(file["file"], VECTOR)

    @pytest.mark.parametrize(
        "wrong",
        [
            VECTOR * 1j, VECTOR.astype("M8[s]"), NAN, VECTOR * 1e300, VECTOR[:7], VECTOR[:, :0],
            np.zeros(N, "f4,f4"), np.array(["a"] * N),
        ],
    )  # fmt: skip
    def test_what_load_refuses(self, tmp_path, wrong):
        with pytest.raises(ValueError) as loaded:  # noqa: PT011 - compared below
            load_npz(_write(tmp_path / "a.npz", x=wrong))
        (tmp_path / "a.npz").unlink()
        with pytest.raises(ValueError) as saved:  # noqa: PT011
            save_npz(tmp_path / "a.npz", LABELS, SPLIT, {"x": wrong})
        assert str(saved.value) == str(loaded.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (np.ma.masked_greater(VECTOR, 1), "'x' holds masked values. Fill them"),
            ([[1, 2], [3]] * 6, "'x' is not an array"),
        ],
    )
    def test_what_is_no_array(self, tmp_path, wrong, said):
        with pytest.raises(TypeError, match=said):
            save_npz(tmp_path / "a.npz", LABELS, SPLIT, {"x": wrong})


def test_blanks_around_labels_and_splits(tmp_path):
    split = np.array(["train ", "val", " test"])[SPLIT]
    data = load_npz(_write(tmp_path / "a.npz", labels=np.array(["a ", "b"])[LABELS], split=split))
    assert data.class_names == ["a", "b"]
    assert len(data.split("train")) == 6


def test_a_damaged_file(tmp_path):
    path = _write(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    at = content.find(VECTOR.tobytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.npz: array 'x' is damaged \(Bad CRC-32"):
        load_npz(path)


def test_something_else_in_the_archive(tmp_path):
    path = _write(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"'readme\.txt' is not an array"):
        load_npz(path)


def test_texts_and_videos(tmp_path):
    labels, split = np.arange(12) % 2, np.repeat([0, 1, 2], 4)
    tokens = np.arange(36).reshape(12, 3) % 5
    arrays = {
        "said": tokens,
        "said_kind": "text",
        "told": np.arange(24) % 7,
        "told_offset": 2 * np.arange(13),
        "told_kind": "text",
        "clip": np.zeros((12, 2, 3, 4, 5), np.uint8),
        "film": np.zeros((12, 2, 6, 5, 3), np.uint8),
    }
    save_npz(tmp_path / "a.npz", labels, split, arrays)
    data = load_npz(tmp_path / "a.npz")
    kinds = {name: (m.kind, m.shape) for name, m in data.modalities.items()}
    assert kinds == {
        "said": ("text", (3, 5)), "told": ("text", (2, 7)),
        "clip": ("video", (2, 3, 4, 5)), "film": ("video", (2, 3, 6, 5)),
    }  # fmt: skip
    inputs = data.split("train").__getitems__([0, 1, 2])["inputs"]
    assert inputs["said"].values.tolist() == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert inputs["said"].length.tolist() == [3, 2, 3]  # 0 after the last token is padding
    assert inputs["told"].values.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("tokens", [np.ones((12, 3)), -np.ones((12, 3), int), np.ones(12, int)])
def test_what_is_no_text(tmp_path, tokens):
    arrays = {"said": tokens, "said_kind": "text"}
    with pytest.raises(ValueError, match=r"which is not text\. Give whole numbers from 0"):
        load_npz(_write(tmp_path / "a.npz", **arrays))
    with pytest.raises(ValueError, match=r"which is not text\. Give whole numbers from 0"):
        save_npz(tmp_path / "b.npz", LABELS, SPLIT, arrays)
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(N) - 5.5,  # less its mean
        np.full(N, 1.7e9 + 0.1),  # constant
        np.arange(N) * 10**6,
        1_700_000_000 + 128 * (np.arange(N) % 2) - 1_700_000_000 % 128,  # float32 has all of them
        (1e8 + np.arange(N)).astype(np.float32),
    ],
)
def test_float32_tells_these_apart(tmp_path, values):
    np.savez(tmp_path / "a.npz", labels=LABELS, split=SPLIT, x=values)
    assert load_npz(tmp_path / "a.npz")._inputs["x"].flatten().tolist() == values.tolist()


def test_few_samples_to_predict_may_lie_close_together(tmp_path):
    np.savez(tmp_path / "a.npz", x=1e8 + np.arange(2))
    assert len(load_npz(tmp_path / "a.npz", labelled=False)._inputs["x"]) == 2
