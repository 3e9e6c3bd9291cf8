import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import evenly
from evenly import Diagnosis, Features, diagnose
from evenly.diagnosis.gap import _Clustering, _parts, check_rows, doubts, in_classes
from evenly.diagnosis.kmeans import kmeans
from unchecked import error_of


def features(x: Tensor, y: Tensor, **more: Tensor) -> Features:
    return Features({"m": x, **more}, y)


def blobs(count, separation, seed, classes=6, width=128):
    """Rectified Gaussians; separation is the scale of the class means, which share a seed."""
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=stream)
    return features((separation * means[y] + noise).relu(), y)


class TestByHand:
    # Two clear pairs of clusters on a line, four samples each.
    x = torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3]).unsqueeze(1)

    def test_purity_and_gap(self):
        """Training clusters are pure; one of each validation cluster's four is of another class."""
        train = features(self.x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
        val = features(self.x, torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]))
        found = diagnose(train, val)
        assert found.train["m"] == 1.0
        assert found.val["m"] == 6 / 8
        assert found.gap["m"] == 0.25
        assert found.strength(3.0)["m"] == math.tanh(0.75)
        assert found.strength(0.0)["m"] == 0.0

    def test_shared_assigns_validation_rows_to_training_clusters(self):
        """Clustered by itself, the validation split would put 4 with 5."""
        train = features(self.x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
        val = features(torch.tensor([[0.0], [4.0], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1]))
        found = diagnose(train, val, gap="shared")  # border at 4.65
        assert found.val["m"] == 1.0
        assert diagnose(train, val).val["m"] == 3 / 4  # its own clusters: 0 and the rest

    def test_the_sign_of_the_gap_does_not_matter(self):
        worse = features(self.x, torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]))
        better = features(self.x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
        assert diagnose(worse, better).gap["m"] == 0.25


class TestSizeBias:
    """The table of three estimators over separations: where nothing is over-fitted, and where."""

    # Half of CREMA-D's 5,954 and 744 rows, for speed; the separations are moved to fit.
    TRAIN, VAL = 2977, 372

    def weight(self, of_train, of_val, gap):
        train, val = blobs(self.TRAIN, of_train, 10), blobs(self.VAL, of_val, 20)
        return diagnose(train, val, gap=gap).strength(3.0)["m"]

    def test_paper_resets_where_nothing_is_over_fitted(self):
        assert self.weight(0.27, 0.27, "paper") > 0.5

    @pytest.mark.parametrize("separation", [0.15, 0.22, 0.27, 0.35, 0.5])
    def test_shared_is_near_zero_where_nothing_is_over_fitted(self, separation):
        assert self.weight(separation, separation, "shared") < 0.15

    @pytest.mark.parametrize(("of_train", "of_val"), [(0.45, 0.2), (0.6, 0.15)])
    @pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
    def test_all_are_large_where_much_is(self, of_train, of_val, gap):
        assert self.weight(of_train, of_val, gap) > 0.5

    def test_matched_removes_most_of_the_bias(self):
        matched, paper = (
            sum(self.weight(x, x, gap) for x in (0.25, 0.27, 0.3)) for gap in ("matched", "paper")
        )
        assert matched < paper / 2


class TestMatched:
    def test_gives_a_standard_error(self):
        found = diagnose(blobs(600, 0.3, 1), blobs(120, 0.3, 2), gap="matched")
        assert 0 < found.standard_error["m"] < 0.2

    def test_equal_splits_have_nothing_to_draw(self):
        split = blobs(120, 0.3, 1)
        found = diagnose(split, split, gap="matched")
        assert found.gap["m"] == pytest.approx(0, abs=1e-12)

    def test_positions_may_be_any_numbers(self):
        """Such as those of a data set of billions of rows."""
        train, val = blobs(300, 0.3, 1), blobs(60, 0.3, 2)
        far = Features(train.features, train.target, torch.arange(300) * 10**15)
        assert diagnose(far, val, gap="matched").standard_error["m"] > 0

    def test_draws_do_not_depend_on_the_order_of_rows(self):
        train, val = blobs(300, 0.3, 1), blobs(60, 0.3, 2)
        order = torch.randperm(300)
        shuffled = Features({"m": train.features["m"][order]}, train.target[order], order)
        one, two = (diagnose(split, val, gap="matched") for split in (train, shuffled))
        assert two.gap["m"] == pytest.approx(one.gap["m"], abs=1e-6)


def shares(kind, count, classes):
    """Rows of each class."""
    share = torch.ones(classes)
    if kind != "equal":
        share /= torch.arange(1, classes + 1)
    counts = (count * share / share.sum()).round().long().clamp_min(1)
    return counts.flip(0) if kind == "reversed" else counts


def drawn(counts, separation, width, seed):
    """Rectified Gaussians, as `blobs` but of any class shares."""
    means = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(counts)), counts)
    noise = torch.randn(len(y), width, generator=stream)
    return features((separation * means[y] + noise).relu(), y)


class TestStable:
    # Each row and column of a Latin design over sizes, classes, shares, separations and widths.
    GRID = (
        (60, 60, 2, "equal", "equal", 0.0, 8),
        (60, 60, 30, "equal", "equal", 1.0, 64),
        (60, 300, 6, "equal", "reversed", 0.5, 64),
        (60, 1500, 6, "skewed", "skewed", 0.4, 512),
        (300, 60, 2, "skewed", "reversed", 1.0, 8),
        (300, 60, 30, "skewed", "equal", 0.3, 512),
        (300, 300, 6, "equal", "equal", 0.4, 64),
        (300, 6000, 6, "skewed", "reversed", 0.0, 64),
        (1500, 60, 6, "equal", "equal", 0.4, 64),
        (1500, 300, 30, "skewed", "skewed", 0.6, 64),
        (1500, 1500, 2, "skewed", "reversed", 0.5, 8),
        (1500, 300, 6, "skewed", "reversed", 0.4, 64),
        (6000, 60, 2, "equal", "reversed", 0.7, 8),
        (6000, 300, 6, "equal", "equal", 0.35, 64),
        (6000, 1500, 6, "equal", "reversed", 1.0, 8),
        (6000, 6000, 6, "skewed", "skewed", 0.3, 64),
    )

    @pytest.mark.parametrize(
        ("size", "val_size", "classes", "of_train", "of_val", "separation", "width"),
        [pytest.param(*row, marks=[pytest.mark.slow] * (sum(row[:2]) > 1000)) for row in GRID],
    )
    def test_no_gap_without_over_fitting(
        self, size, val_size, classes, of_train, of_val, separation, width
    ):
        train = drawn(shares(of_train, size, classes), separation, width, 1)
        val = drawn(shares(of_val, val_size, classes), separation, width, 2)
        assert diagnose(train, val, gap="stable", restarts=1).strength()["m"] <= 0.05

    def test_seeds_hardly_change_it(self):
        train = drawn(shares("equal", 300, 4), 0.6, 32, 1)
        val = drawn(shares("equal", 100, 4), 0.2, 32, 2)
        found = [
            diagnose(train, val, gap="stable", seed=n, restarts=1).strength()["m"] for n in range(6)
        ]
        assert min(found) > 0.3
        assert torch.tensor(found).std() <= 0.03

    @pytest.mark.slow
    def test_its_error_is_that_of_other_draws(self, monkeypatch):
        """Of 20 draws the standard deviation is known within a third, at two of its errors."""
        monkeypatch.setattr("evenly.diagnosis.gap.HALVINGS", (10, 10))
        found = [
            diagnose(
                drawn(shares("equal", 300, 4), 0.8, 16, 2 * n),
                drawn(shares("equal", 100, 4), 0.5, 16, 2 * n + 1),
                gap="stable",
                seed=n,
                restarts=1,
            )
            for n in range(20)
        ]
        true = float(torch.tensor([one.gap["m"] for one in found]).std())
        told = sum(one.standard_error["m"] for one in found) / len(found)
        assert told == pytest.approx(true, rel=0.4)

    def test_what_of_the_gap_counts(self):
        """gap · (1 - (3 · s.e. / gap)²): of .10 ± .02 that is .064; nothing of three errors."""
        of = dict.fromkeys("abc", 0.5)
        found = Diagnosis(
            of,
            of,
            {"a": 0.10, "b": 0.06, "c": -0.3},
            dict.fromkeys("abc", 0.02),
            of,
            of,
            "stable",
        )
        assert found.used == pytest.approx({"a": 0.064, "b": 0.0, "c": 0.0})
        assert found.strength(2.0)["a"] == pytest.approx(math.tanh(0.128))

    def test_a_sample_and_missing_modalities(self):
        """Rows that lack the modality are as if they were not there."""
        train, val = blobs(900, 0.6, 1), blobs(150, 0.3, 2)
        here = torch.arange(900) % 5 > 0
        part = Features(train.features, train.target, present={"m": here})
        rows = features(train.features["m"][here], train.target[here])
        rows = Features(rows.features, rows.target, here.nonzero()[:, 0])
        found = diagnose(part, val, gap="stable", sample=150)
        assert found == diagnose(rows, val, gap="stable", sample=150)
        assert found.strength()["m"] > 0.3

    @pytest.mark.slow
    def test_more_clusters_than_rows_of_a_half(self):
        train, val = blobs(9, 1.0, 1), blobs(12, 1.0, 2)
        found = diagnose(train, val, gap="stable")
        assert found.standard_error["m"] > 0
        assert found.strength() == {"m": 0.0}

    def test_no_rows_of_a_modality(self):
        train, val = blobs(60, 0.5, 1), blobs(30, 0.5, 2)
        none = Features(val.features, val.target, present={"m": torch.zeros(30).bool()})
        with pytest.raises(ValueError, match="of a modality there are 60 and 0 samples"):
            diagnose(train, none, gap="stable")

    @pytest.mark.usefixtures("few")
    def test_draws_do_not_depend_on_the_order_of_rows(self):
        train, val = blobs(300, 0.3, 1), blobs(60, 0.3, 2)
        order = torch.randperm(300)
        shuffled = Features({"m": train.features["m"][order]}, train.target[order], order)
        one, two = (diagnose(split, val, gap="stable") for split in (train, shuffled))
        assert two.gap["m"] == pytest.approx(one.gap["m"], abs=1e-6)


class TestNotes:
    def test_a_gap_within_its_error(self):
        noise = blobs(300, 0.0, 1), blobs(200, 0.0, 2)
        found = diagnose(*noise)
        assert found.gap["m"] <= found.standard_error["m"]
        assert "The gap of 'm' is no larger than its error, a lower bound: take" in str(found)

    @pytest.mark.parametrize(
        ("gap", "words"), [("shared", "error, a lower bound:"), ("matched", "error:")]
    )
    def test_an_error_that_leaves_out_the_starts_is_a_lower_bound(self, gap, words):
        """That of `matched` has the spread of five draws, each with starts of its own."""
        of = {"m": 0.02}
        (note,) = doubts(Diagnosis(of, {"m": 0.0}, of, {"m": 0.03}, of, of, gap))
        assert note.startswith(f"The gap of 'm' is no larger than its {words}")

    def test_a_gap_of_shuffled_labels(self):
        """The largest class is .5 of one split and .75 of the other."""
        train = drawn(torch.tensor([300, 300]), 0.0, 8, 1)
        val = drawn(torch.tensor([450, 150]), 0.0, 8, 2)
        found = diagnose(train, val)
        assert found.train_chance["m"] == pytest.approx(0.5, abs=0.04)
        assert found.val_chance["m"] == pytest.approx(0.75, abs=0.01)
        assert "The gap of 'm' is that of chance" in str(found)
        assert diagnose(train, val, gap="stable").strength()["m"] == 0.0

    def test_none_where_the_gap_is_sure(self):
        assert diagnose(blobs(300, 1.0, 1), blobs(200, 0.3, 2)).notes == ()


def test_scaling_is_by_each_split_itself():
    """A validation split in other units has the same purity: min-max per dimension and split."""
    train, val = blobs(300, 0.5, 1), blobs(60, 0.5, 2)
    other = features(val.features["m"] * 1000 + 5, val.target)
    assert diagnose(train, other).val["m"] == pytest.approx(diagnose(train, val).val["m"])


def test_the_extent_of_half_precision_may_be_beyond_its_range():
    x = torch.tensor([[-60000.0, 1], [-59000, 1], [60000, 2], [59000, 2]]).half()
    split = features(x, torch.tensor([0, 0, 1, 1]))
    assert diagnose(split, split).train == {"m": 1.0}


def test_a_constant_dimension_is_harmless():
    train, val = blobs(60, 1.0, 1), blobs(30, 1.0, 2)
    constant = torch.full((60, 1), 3.0)
    wider = features(torch.cat([train.features["m"], constant], 1), train.target)
    narrow = features(torch.cat([val.features["m"], constant[:30]], 1), val.target)
    assert diagnose(wider, narrow).gap == diagnose(train, val).gap


def test_regression_targets_are_cut_into_equal_counts():
    x = torch.rand(200, 2)  # the target is a column of a table, which is not contiguous
    train, val = features(x[:, :1], x[:, 0]), features(x[:50, :1], x[:50, 0])
    found = diagnose(train, val)
    assert "cut into 10 equal-count bins" in str(found)
    assert found.train["m"] > 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_few_values_are_classes_even_as_floats(dtype):
    """Mostly 1: equal counts would put both values into one bin."""
    x, y = TestByHand.x, torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    found = diagnose(features(x, y.to(dtype)), features(x, y.to(dtype)))
    assert "2 values count as classes" in str(found)
    assert found.train["m"] == diagnose(features(x, y), features(x, y)).train["m"] == 7 / 8


@pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
def test_a_split_may_lack_one_of_few_values(gap):
    """Three values that the features tell; the smallest is in three training samples alone."""
    y, v = torch.tensor([1.0] * 3 + [2] * 30 + [4] * 30), torch.tensor([2.0] * 15 + [4] * 15)
    found = diagnose(features(y[:, None], y), features(v[:, None], v), gap=gap)
    assert (found.train, found.val, found.gap) == ({"m": 1}, {"m": 1}, {"m": 0})
    assert "3 values count as classes; in one split only: 1." in str(found)


def test_the_bins_of_a_target_with_ties_are_told_by_their_sizes():
    """Of 100 values, 60 are the largest: bins of 10, 10, 10, 10 and 60."""
    x = torch.cat([torch.arange(40.0), torch.full((60,), 99.0)])
    split = features(x[:, None], x)
    found = diagnose(split, split)
    assert "cut into 5 bins of 10 to 60 training samples, since values recur." in str(found)
    x = torch.cat([torch.arange(15.0), torch.full((285,), 99.0)])  # no edge is below the largest
    split = features(x[:, None], x)
    assert "cut into 2 bins of 15 to 285 training samples" in str(diagnose(split, split))


REAL = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


def whole(count, seed):
    """Numbers from 0 to 15, which every real type holds."""
    split = blobs(count, 1.0, seed, classes=3, width=6)
    return split.features["m"].mul(3).round().clamp(0, 15), split.target


@pytest.fixture
def few(monkeypatch):
    """Few clusterings, where it is all the same how many there are."""
    monkeypatch.setattr("evenly.diagnosis.gap.HALVINGS", (2, 2))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
def test_features_of_any_real_type(dtype, gap):
    (x, y), (v, w) = whole(90, 1), whole(45, 2)
    x, v = x.to(dtype), v.to(dtype)
    found = diagnose(features(x, y), features(v, w), gap=gap)
    same = diagnose(features(x.float(), y), features(v.float(), w), gap=gap)
    assert (found.train, found.val) == (same.train, same.val)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16, torch.int32])
def test_targets_and_positions_of_any_whole_type(dtype):
    (x, y), (v, w) = whole(90, 1), whole(45, 2)
    order = torch.arange(90).flip(0)
    train = Features({"m": x}, y.to(dtype), order.to(dtype))
    found = diagnose(train, features(v, w.to(dtype)))
    same = diagnose(Features({"m": x}, y, order), features(v, w))
    assert (found.train, found.val) == (same.train, same.val)


def test_bools_are_two_classes():
    x, y = TestByHand.x, TestByHand.x[:, 0] > 5
    assert diagnose(features(x, y), features(x, y)).train["m"] == 1.0


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("several", [False, True])
def test_the_default_type_and_device_do_not_matter(dtype, gap, several):
    (x, y), (v, w) = whole(90, 1), whole(45, 2)
    if several:
        y, w = one_hot(y), one_hot(w)
    train, val = features(x, y), features(v, w)
    expected = diagnose(train, val, gap=gap, sample=60)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert diagnose(train, val, gap=gap, sample=60) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
def test_tensors_in_any_state(gap):
    (x, y), (v, w) = whole(90, 1), whole(45, 2)
    expected = diagnose(features(x, y), features(v, w), gap=gap)
    with torch.inference_mode():
        inferred = x.clone()
    for form in (x.clone().requires_grad_(), x.T.contiguous().T, inferred):
        assert diagnose(features(form, y), features(v, w), gap=gap) == expected
    with torch.inference_mode():
        assert diagnose(features(x, y), features(v, w), gap=gap) == expected


def test_the_global_stream_is_left_alone():
    torch.manual_seed(3)
    diagnose(blobs(60, 0.5, 1), blobs(30, 0.5, 2), gap="matched")
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_it_repeats_itself():
    train, val = blobs(300, 0.2, 1), blobs(60, 0.2, 2)
    assert diagnose(train, val, seed=4) == diagnose(train, val, seed=4)


@pytest.mark.slow
def test_reads_as_a_table():
    train, val = blobs(60, 0.5, 1), blobs(30, 0.5, 2)
    text = str(diagnose(train, val))
    head, row = text.splitlines()[:2]
    assert head.split()[:3] == ["modality", "purity", "train"]
    assert row.split()[0] == "m"
    assert len(row) == len(head)
    stable = str(diagnose(train, val, gap="stable")).splitlines()
    assert "used" in stable[0]
    assert "used" not in head
    assert len(stable[0]) == len(stable[1])


class TestMessages:
    def raises(self, message, train, val, **settings):
        with pytest.raises(ValueError, match=message):
            diagnose(train, val, **settings)

    def test_nan(self):
        bad = blobs(60, 0.5, 1)
        bad.features["m"][17, 3] = math.nan
        self.raises("'m' are NaN or infinite in row 17 of the training split", bad, bad)

    def test_infinite_in_validation(self):
        bad = blobs(60, 0.5, 1)
        bad.features["m"][5, 0] = math.inf
        self.raises("row 5 of the validation split", blobs(60, 0.5, 1), bad)

    def test_a_class_missing(self):
        whole, part = blobs(60, 0.5, 1), blobs(30, 0.5, 2, classes=5)
        self.raises("class 5 is missing from the validation split", whole, part)
        self.raises("class 5 is missing from the training split", part, whole)

    def test_one_class(self):
        split = features(torch.rand(8, 2), torch.full((8,), 4))
        self.raises(r"has only class 4", split, split)

    def test_fewer_samples_than_clusters(self):
        x = torch.rand(30, 1)
        small = features(x[:5], x[:5, 0])
        self.raises("5 samples for 10 clusters", features(x, x[:, 0]), small)

    def test_labels_that_are_no_classes(self):
        split = blobs(60, 0.5, 1)
        split.target[7] = -100
        self.raises("a label of the training split is -100", split, blobs(60, 0.5, 1))

    def test_labels_that_number_nothing(self):
        split = blobs(60, 0.5, 1)
        split.target[7] = 10**12
        self.raises("a label is 1000000000000, but classes are numbered", split, split)

    def test_one_value(self):
        x = torch.rand(30, 1)
        whole, part = features(x, x[:, 0]), features(x, torch.full((30,), 2.5))
        self.raises(r"every target of the validation split is 2\.5", whole, part)
        self.raises(r"every target of the training split is 2\.5", part, whole)

    @pytest.mark.usefixtures("few")
    def test_a_modality_that_few_samples_have(self):
        train, val = blobs(60, 0.5, 1, classes=3), blobs(30, 0.5, 2, classes=3)
        rare = replace(val, present={"m": torch.arange(30) < 2})
        scarce = replace(train, present={"m": torch.arange(60) < 2})
        for gap, splits in {
            "paper": (train, rare), "matched": (train, rare), "shared": (scarce, val)
        }.items():  # fmt: skip
            message = "'m' has 2 samples for 3 clusters .* take gap='stable'"
            self.raises(message, *splits, gap=gap)
            with pytest.raises(ValueError, match=message):
                check_rows(in_classes(*splits), gap)
        for gap, splits in {"stable": (scarce, rare), "shared": (train, rare)}.items():
            check_rows(in_classes(*splits), gap)
            assert diagnose(*splits, gap=gap).gap["m"] < 1
        none = replace(val, present={"m": torch.zeros(30).bool()})
        for gap, least in {"stable": 2, "shared": 3}.items():
            message = f"gap='{gap}', which takes at least {least} of the training split and 1 of "
            with pytest.raises(ValueError, match=message):
                check_rows(in_classes(train, none), gap)

    def test_no_sample(self):
        split = features(torch.rand(0, 2), torch.zeros(0).long())
        self.raises("the training split has no sample with a label", split, split)

    def test_targets_that_are_no_numbers(self):
        x = torch.rand(30, 1)
        bad = x[:, 0].clone()
        bad[3] = math.nan
        self.raises(
            "a target of the validation split is NaN", features(x, x[:, 0]), features(x, bad)
        )

    def test_other_widths(self):
        split = blobs(60, 0.5, 1)
        narrow = features(split.features["m"][:, :5], split.target)
        self.raises("'m' are 128 wide in the training split but 5", split, narrow)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            ("torch.rand(60, 2)", "UserError: Features: features of 'm': 60 rows for 4 targets"),
            ("torch.rand(4, 0)", "UserError: Features: features of 'm': no columns"),
            (
                "torch.rand(4, 2, 2)",
                "Features: features of 'm': shape (4, 2, 2); found too many dimensions",
            ),
            (
                "torch.rand(4, 2).numpy()",
                "TypeError: Features: features of 'm': an object of type ndarray",
            ),
            ("torch.rand(4, 2) * 1j", "TypeError: Features: features of 'm': complex numbers"),
        ],
    )
    def test_rows_that_are_none(self, x, message):
        code = f"import torch, evenly; evenly.Features({{'m': {x}}}, torch.zeros(4).long())"
        assert message in error_of(code)

    def test_a_target_that_is_one_number(self):
        code = "import torch, evenly; evenly.Features({'m': torch.rand(4, 2)}, torch.tensor(1))"
        assert "Features: target: shape (); found too few dimensions" in error_of(code)

    def test_no_modality_and_no_positions(self):
        with pytest.raises(ValueError, match="there is no modality"):
            Features({}, torch.zeros(4))
        code = "evenly.Features({'m': torch.rand(4, 2)}, torch.zeros(4), torch.rand(4))"
        assert "TypeError: Features: the index holds floats" in error_of(
            f"import torch, evenly; {code}"
        )
        with pytest.raises(TypeError, match="the index holds bools"):
            Features({"m": torch.rand(4, 2)}, torch.zeros(4), torch.ones(4, dtype=torch.bool))

    def test_other_modalities(self):
        split = blobs(60, 0.5, 1)
        other = Features({"n": split.features["m"]}, split.target)
        self.raises(r"modalities \['m', 'n'\] are in one split only", split, other)


def labelled(count, separation, seed, width=32):
    """Rectified Gaussians whose mean is the sum of their labels' means."""
    shares = torch.tensor([0.5, 0.3, 0.2, 0.1])
    means = torch.randn(len(shares), width, generator=torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(seed)
    y = (torch.rand(count, len(shares), generator=stream) < shares).float()
    noise = torch.randn(count, width, generator=stream)
    return features((separation * (y @ means) + noise).relu(), y)


class TestLabels:
    @pytest.mark.slow
    @pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
    def test_one_label_is_two_classes(self, gap):
        splits = blobs(120, 0.3, 1, classes=2), blobs(60, 0.2, 2, classes=2)
        as_labels = [features(x.features["m"], x.target[:, None].float()) for x in splits]
        assert diagnose(*as_labels, gap=gap) == diagnose(*splits, gap=gap)

    def test_one_label_a_sample_is_a_class(self):
        splits = blobs(300, 0.3, 1), blobs(120, 0.2, 2)
        of_classes = diagnose(*splits)
        found = diagnose(*(features(x.features["m"], one_hot(x.target)) for x in splits))
        assert found.train == pytest.approx(of_classes.train)
        assert found.val == pytest.approx(of_classes.val)
        assert found.standard_error == pytest.approx(of_classes.standard_error)
        assert found.val_chance["m"] == pytest.approx(of_classes.val_chance["m"], abs=0.03)

    def test_each_halving_is_another_though_no_two_samples_are_alike(self):
        y = (torch.arange(1, 41)[:, None] >> torch.arange(6)) % 2
        split = features(torch.randn(40, 4), y.float())
        (found,) = in_classes(split, split)
        assert len(found.train.target.unique()) == 40
        rows = _Clustering(found.k, 0, 1, None, found.sets, found.group).rows(found.train, "m", {})
        assert not torch.equal(_parts(rows, 2, 0), _parts(rows, 2, 1))

    @pytest.mark.parametrize("separation", [0.2, 0.5, 1.0])
    def test_no_gap_where_nothing_is_over_fitted(self, separation):
        splits = labelled(600, separation, 1), labelled(200, separation, 2)
        found = diagnose(*splits, gap="stable")
        assert abs(found.gap["m"]) < 3 * found.standard_error["m"]
        assert found.strength()["m"] < 0.1

    @pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
    def test_a_gap_where_much_is(self, gap):
        found = diagnose(labelled(600, 1.0, 1), labelled(200, 0.3, 2), gap=gap)
        assert found.strength()["m"] > 0.6

    @pytest.mark.parametrize("gap", ["paper", "stable"])
    def test_noise_has_the_purity_of_chance(self, gap):
        found = diagnose(labelled(600, 0.0, 1), labelled(200, 0.0, 2), gap=gap)
        for purity, chance in (
            (found.train, found.train_chance),
            (found.val, found.val_chance),
        ):
            assert purity["m"] == pytest.approx(chance["m"], abs=0.03)

    def test_the_error_is_the_spread_over_draws(self):
        """Of clusters that other draws do not change."""
        found = [
            diagnose(labelled(200, 2.0, seed), labelled(100, 2.0, seed + 50), gap="shared")
            for seed in range(1, 41)
        ]
        gaps = torch.tensor([x.train["m"] - x.val["m"] for x in found])
        error = sum(x.standard_error["m"] for x in found) / len(found)
        assert error == pytest.approx(float(gaps.std()), rel=0.4)

    def test_labels_that_tell_nothing(self):
        train, val = labelled(300, 1.0, 1), labelled(100, 1.0, 2)
        train, val = (
            features(x.features["m"], torch.cat([x.target, torch.ones(len(x.target), 1)], 1))
            for x in (train, val)
        )
        val.target[:, 3] = 0
        found = diagnose(train, val)
        assert found.notes[0].endswith("are left out: 3, 4.")
        fewer = [features(x.features["m"], x.target[:, :3]) for x in (train, val)]
        assert found.train == diagnose(*fewer).train
        val.target[:] = 1
        with pytest.raises(ValueError, match="no label is present in some samples and absent"):
            diagnose(train, val)

    def test_one_column_of_numbers_is_one_number_a_sample(self):
        splits = [blobs(count, 0.5, count) for count in (120, 80)]
        flat = [features(x.features["m"], x.target + 0.5) for x in splits]
        columns = [features(x.features["m"], x.target[:, None] + 0.5) for x in splits]
        assert diagnose(*columns) == diagnose(*flat)

    def test_numbers_are_no_labels(self):
        split = labelled(60, 1.0, 1)
        other = features(split.features["m"], split.target / 2)
        with pytest.raises(ValueError, match="target of the validation split of shape"):
            diagnose(split, other)
        with pytest.raises(ValueError, match=r"shape \(60, 3\) in one split and \(60, 4\)"):
            diagnose(split, features(split.features["m"], split.target[:, :3]))


class TestSeveralNumbers:
    x = TestByHand.x

    def splits(self, train, val):
        return [features(self.x, torch.tensor(y).T) for y in (train, val)]

    def test_purity_is_the_mean_over_numbers(self):
        """The first is 1 and 6 / 8, as that of classes; the second is 1/2 in both splits."""
        a, b = [2.0] * 4 + [5.0] * 4, [1.0, 1, 7, 7, 1, 1, 7, 7]
        wrong = [2.0] * 3 + [5.0] * 4 + [2.0]
        found = diagnose(*self.splits([a, b], [wrong, b]))
        assert (found.train["m"], found.val["m"]) == ((1 + 1 / 2) / 2, (6 / 8 + 1 / 2) / 2)
        assert found.gap["m"] == 0.125
        assert found.notes[:2] == (
            "Columns 0, 1: the target's 2 values count as classes.",
            "Purities, gaps and errors are means over the columns.",
        )

    @pytest.mark.usefixtures("few")
    @pytest.mark.parametrize("gap", ["paper", "matched", "shared", "stable"])
    def test_each_is_diagnosed_as_if_alone(self, gap):
        """Ten bins, three values, and samples that lack a modality."""
        stream = torch.Generator().manual_seed(0)
        splits = []
        for count in (90, 60):
            x = torch.rand(count, 3, generator=stream)
            y = torch.stack([x[:, 0], (3 * x[:, 1]).floor(), x[:, 2].square()], 1)
            here = torch.arange(count) % 5 > 0
            splits.append(Features({"m": x, "part": x}, y, present={"part": here}))
        found = diagnose(*splits, gap=gap)
        alone = [
            diagnose(*(replace(x, target=x.target[:, column]) for x in splits), gap=gap)
            for column in range(3)
        ]
        for figure in ("train", "val", "train_chance", "val_chance", "standard_error"):
            for name, value in getattr(found, figure).items():
                mean = sum(getattr(one, figure)[name] for one in alone) / 3
                assert value == pytest.approx(mean, abs=1e-12)

    def test_equal_bins_share_their_clusters(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "evenly.diagnosis.gap.kmeans", lambda *x, **y: calls.append(x) or kmeans(*x, **y)
        )
        x = torch.rand(40, 3)
        diagnose(features(x, x), features(x[:20], x[:20]))
        assert len(calls) == 2  # one for each split

    def test_constant_ones_are_left_out(self):
        a, b = [2.0] * 4 + [5.0] * 4, [1.0, 1, 7, 7, 1, 1, 7, 7]
        found = diagnose(*self.splits([a, b], [a, [3.0] * 8]))
        assert found.train["m"] == 1
        assert "Numbers that are constant in a split are left out: 1." in found.notes
        with pytest.raises(ValueError, match="no number varies in both splits"):
            diagnose(*self.splits([a, [3.0] * 8], [[3.0] * 8, a]))
        with pytest.raises(ValueError, match="a target of the validation split is NaN"):
            diagnose(*self.splits([a, b], [a, [math.nan] * 8]))

    def test_whole_ones_are_neither_labels_nor_numbers(self):
        y = torch.arange(8)[:, None] + torch.arange(2)
        with pytest.raises(ValueError, match="which are 0 or 1 each; found other values"):
            diagnose(features(self.x, y), features(self.x, y))


def test_public_names():
    assert evenly.diagnose is diagnose
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evenly.nothing  # noqa: B018
    assert all(getattr(evenly, name) for name in evenly.__all__)
