"""What a target is: metrics of labels and numbers against scikit-learn's and SciPy's."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as theirs
from torch import nn

from evenly.data import load_npz, save_npz
from evenly.data.tasks import (
    Classes,
    Labels,
    Numbers,
    concordance,
    criterion_of_labels,
    pearson,
    restated,
    sentiment,
    task_of,
)
from evenly.lab.statistics import bootstrap

NAMES = ("a", "b", "c", "never")
STREAM = torch.Generator().manual_seed(0)
TRUTH = (torch.rand(60, 4, generator=STREAM) < torch.tensor([0.5, 0.2, 0.1, 0.0])).float()
LOGITS = (2 * TRUTH - 1 + 2 * torch.randn(60, 4, generator=STREAM)).mul(4).round() / 4 - 0.1
LOGITS[:, 3] = -1.0  # of a label that neither occurs nor is said


def test_metrics_of_labels_are_those_of_scikit_learn():
    found = Labels(NAMES).measured(LOGITS, TRUTH)
    truth, said = TRUTH.numpy(), (LOGITS > 0).numpy()
    some = slice(0, 3)
    assert found == pytest.approx(
        {
            "loss": float(nn.functional.binary_cross_entropy_with_logits(LOGITS, TRUTH)),
            "accuracy": theirs.accuracy_score(truth, said),
            "macro_f1": theirs.f1_score(truth[:, some], said[:, some], average="macro"),
            "micro_f1": theirs.f1_score(truth, said, average="micro"),
            "mean_average_precision": theirs.average_precision_score(
                truth[:, some], LOGITS.numpy()[:, some], average="macro"
            ),
        }
    )
    assert len(LOGITS[:, 0].unique()) < 60  # some samples have one score


def test_f1_of_labels_in_repeats_is_that_of_the_samples_drawn():
    truth, said = (TRUTH > 0).numpy(), (LOGITS > 0).numpy()
    count = np.random.default_rng(0).integers(0, 3, 60)
    drawn = (count / count.sum()).astype(np.float32)[None]
    for average in ("macro", "micro"):
        some = slice(0, 3) if average == "macro" else slice(0, 4)
        expected = theirs.f1_score(
            truth[:, some], said[:, some], average=average, sample_weight=count
        )
        found = bootstrap.label_f1(drawn, said[None], truth, average)
        assert found[0, 0] == pytest.approx(expected, rel=1e-5)


def test_details_of_labels_by_hand():
    logits = torch.tensor([[0.8, 0.4], [0.9, 0.1]]).logit()
    found = Labels(("a", "b")).details(logits, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert found["recall/a"] == 1
    assert found["recall/b"] == 0
    assert found["brier"] == pytest.approx((0.2**2 + 0.6**2 + 0.9**2 + 0.1**2) / 4)
    assert found["calibration_error"] == pytest.approx((0.2 + 0.6 + 0.9 + 0.1) / 4)


def test_the_group_of_a_sample_is_its_rarest_label():
    target = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).float()
    assert Labels(("a", "b", "c")).groups(target).tolist() == [1, 0, 2, 3]


def test_who_has_seen_no_input_knows_the_shares():
    target = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert Labels(("a", "b")).uninformed(target).sigmoid().tolist() == pytest.approx([0.75, 0.25])
    logits = Classes(("a", "b", "c")).uninformed(torch.tensor([1, 1, 2, 0, 2, 1, 2, 2, 1, 0]))
    assert logits.softmax(0).tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert logits.argmax() == 1  # the first of equals


def test_balanced_labels_count_as_much_as_their_absence():
    target = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    weight = criterion_of_labels(target, balanced=True).pos_weight
    assert (weight * target.sum(0)).tolist() == (1 - target).sum(0).tolist()
    assert criterion_of_labels(target, balanced=False).pos_weight is None


def test_the_form_of_a_target_tells_the_task():
    assert isinstance(task_of(torch.tensor([0, 1]), ["a", "b"]), Classes)
    assert isinstance(task_of(torch.zeros(2, 3), NAMES), Labels)


LABELS = np.stack([np.arange(40) % 2, np.arange(40) % 4 == 0], 1).astype(np.uint8)
X = np.ones((40, 3), np.float32)


def saved(path, labels=LABELS, split=None, **arrays):
    split = np.arange(40) % 3 if split is None else split
    save_npz(path / "a.npz", labels, split, {"x": X, **arrays})
    return load_npz(path / "a.npz")


def test_columns_of_labels_in_an_npz(tmp_path):
    data = saved(tmp_path, class_names=np.array(["odd", "fourth"]))
    assert data.task == Labels(("odd", "fourth"))
    train = data.split("train")
    assert train.target.dtype == torch.float32
    assert train.target.tolist() == LABELS[::3].tolist()
    assert train.__getitems__([1])["target"].tolist() == [[1, 0]]
    assert len(data.limited(3).split("train")) == 3


def test_a_note_says_that_columns_are_several_labels(tmp_path):
    told = saved(tmp_path, class_names=np.array(["odd", "fourth"])).notes
    assert told == [
        "a.npz: 'labels' look like several labels per sample: odd, fourth. If each sample has one "
        "class, store its number in place of the columns; if the columns are numbers to regress "
        "on, use --task number."
    ]
    assert load_npz(tmp_path / "a.npz", task="labels").notes == []
    assert saved(tmp_path, labels_kind=np.array("labels")).notes == []
    many = np.eye(7, dtype=bool)[np.arange(40) % 7]
    assert "label 3, label 4 and 2 more." in saved(tmp_path, many).notes[0]


def test_a_validation_split_of_labels_is_drawn(tmp_path):
    data = saved(tmp_path, split=2 * (np.arange(40) % 5 == 0))
    val, train = data.split("val"), data.split("train")
    assert len(val) + len(train) == 32
    assert val.target[:, 0].mean() == pytest.approx(0.5, abs=0.2)
    assert "become one" in data.notes[0]


@pytest.mark.parametrize(
    ("labels", "arrays", "message"),
    [
        (2 * LABELS, {}, "which are not sets of labels. Give a column per label, 1 where"),
        (LABELS, {"class_names": np.array(["a"])}, "1 different names for 2 columns"),
        (LABELS, {"class_names": np.array(["a", "a"])}, "1 different names for 2 columns"),
        (LABELS, {"class_names": np.array(["a", "b;c"])}, "contains ';' in 'b;c'"),
        (LABELS[None], {}, r"Give one label per sample, \(N,\), or a column"),
        (1 | LABELS, {}, "all samples or none have the label 'label 0'"),
    ],
)
def test_labels_that_cannot_be(labels, arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saved(tmp_path, labels, **arrays)


VALUES = torch.tensor([[-1.0], [0.0], [2.0], [3.0], [1.0]])
SAID = torch.tensor([[-2.0], [1.0], [2.5], [2.0], [0.0]])


def test_metrics_of_numbers_are_those_of_scikit_learn_and_scipy():
    task = Numbers(("n",), (1.0,), (2.0,))
    found = task.measured((SAID - 1) / 2, VALUES)
    said, truth = SAID[:, 0].numpy(), VALUES[:, 0].numpy()
    cov = np.cov(said, truth, ddof=0)
    assert found == pytest.approx(
        {
            "loss": 4.5 / 5 / 2,
            "mae": 4.5 / 5,
            "rmse": theirs.root_mean_squared_error(truth, said),
            "pearson": stats.pearsonr(truth, said).statistic,
            "concordance": 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (said - truth).mean() ** 2),
        }
    )


def test_correlations_in_repeats_are_those_of_the_samples_drawn():
    stream = np.random.default_rng(0)
    target = 1000 + stream.normal(size=(60, 2)).astype(np.float32)
    guess = (target + stream.normal(size=(60, 2))).astype(np.float32)
    count = stream.integers(0, 3, 60)
    drawn = (count / count.sum()).astype(np.float32)[None]
    rows = np.repeat(np.arange(60), count)
    said, truth = torch.from_numpy(guess[rows]), torch.from_numpy(target[rows])
    for kind, of in (("pearson", pearson), ("concordance", concordance)):
        found = bootstrap.correlation(drawn, guess[None], target, kind)
        assert found[0, 0] == pytest.approx(of(said, truth), rel=1e-4)


def test_several_numbers_have_the_mean_of_their_metrics():
    task, logits, truth = Numbers(("a", "b")), SAID.repeat(1, 2), torch.cat([VALUES, SAID], 1)
    found, one = task.measured(logits, truth), Numbers(("a",)).measured(SAID, VALUES)
    for name in ("loss", "mae", "rmse"):
        assert found[name] == pytest.approx(one[name] / 2)
    for name in ("pearson", "concordance"):
        assert found[name] == pytest.approx((one[name] + 1) / 2)
    assert task.details(logits, truth) == pytest.approx({"error/a": 0.9, "error/b": 0})
    assert Numbers(("a",)).details(SAID, VALUES) == {}


CONSTANT = torch.full((5, 1), 1 / 3)


@pytest.mark.parametrize(
    ("said", "truth", "wanted"),
    [
        # Lin's formula has a value for constant predictions, Pearson's has none.
        (CONSTANT, VALUES, {"pearson": math.nan, "concordance": 0}),
        (VALUES, CONSTANT, {"pearson": math.nan, "concordance": math.nan}),
        (CONSTANT, CONSTANT, {"pearson": math.nan, "concordance": math.nan}),
        # A column of which nothing can be told does not enter the mean.
        (
            torch.cat([VALUES, VALUES], 1),
            torch.cat([CONSTANT, VALUES], 1),
            {"pearson": 1, "concordance": 1},
        ),
    ],
)
def test_of_a_constant_no_correlation_is_told(said, truth, wanted):
    task = Numbers(("n", "m")[: said.shape[1]], (0.1,) * said.shape[1], (0.7,) * said.shape[1])
    found = task.measured(task.encoded(said), truth)
    assert {kind: found[kind] for kind in wanted} == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    drawn = np.full((1, 5), 0.2, np.float32)
    for kind, value in wanted.items():
        repeats = bootstrap.correlation(drawn, said[None].numpy(), truth.numpy(), kind)
        assert repeats[0, 0] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_means_over_columns_of_unlike_size_are_told():
    assert Numbers(("a", "b"), (0.0, 0.0), (1.0, 2.9)).remark() == ""
    assert Numbers(("a",), (0.0,), (300.0,)).remark() == ""
    found = Numbers(("a", "b", "c"), (0.0,) * 3, (2.0, 300.0, 0.1)).remark()
    assert "'b' (deviation 300) counts for more than 'c' (0.1). --select loss counts" in found


def test_sentiment_by_hand():
    """As MMSA counts it: halves go to even numbers, and 0 is not negative."""
    truth = torch.tensor([-2.6, 0.0, 0.4, 1.5, 3.0, -0.4])
    said = torch.tensor([-3.4, 0.2, -0.2, 2.5, 2.4, -1.2])
    found = sentiment(said, truth)
    # From 0 on: truth - + + + + -, said - + - + + -.
    assert found["acc_2"] == pytest.approx(5 / 6)
    assert found["f1"] == pytest.approx((2 * (2 * 2 / 5) + 4 * (2 * 3 / 7)) / 6)
    # Without the 0: truth - + + + -, said - - + + -.
    assert found["acc_2_nonzero"] == pytest.approx(4 / 5)
    assert found["f1_nonzero"] == pytest.approx((2 * (2 * 2 / 5) + 3 * (2 * 2 / 5)) / 5)
    # Rounded: -3 0 0 2 3 0 and -3 0 0 2 2 -1; cut off at 2 the fifth is right, too.
    assert found["acc_7"] == pytest.approx(4 / 6)
    assert found["acc_5"] == pytest.approx(5 / 6)
    assert Numbers(("n",), scale="sentiment").measured(said[:, None], truth[:, None]).keys() == {
        *Numbers(("n",), scale="sentiment").metrics
    }


def test_numbers_are_standardised_by_the_training_split(tmp_path):
    labels = np.arange(40.0).reshape(40, 1)
    data = saved(tmp_path, labels, class_names=np.array(["degrees"]))
    mean, std = labels[::3].mean(), labels[::3].std()
    assert data.task == Numbers(("degrees",), (mean,), (std,))
    target = data.split("train").target
    assert target.tolist() == labels[::3].tolist()  # as the data have it
    encoded = data.task.encoded(target)
    assert encoded.mean() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(data.task.answers(encoded), target)
    assert data.task.scores(encoded + 1, target).tolist() == pytest.approx([std] * 14)
    assert data.limited(3).task == data.task
    assert "numbers to regress on: degrees (mean 19.5, deviation 12.09)" in data.notes[-1]
    assert restated(data.task.stated()) == data.task


def test_groups_of_numbers_are_tenths():
    assert Numbers(("n",)).groups(torch.arange(100.0)[:, None]).bincount().tolist() == [10] * 10


def test_who_has_seen_no_input_says_the_median():
    task = Numbers(("n",), (1.0,), (2.0,))
    assert task.uninformed(torch.tensor([[5.0], [0], [1]])).tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "task", "name", "target"),
    [
        (np.arange(40) % 4, "number", "number", [[0.0], [1], [2]]),
        (np.arange(40) % 4 / 1, "classes", "classes", [0, 1, 2]),
        (np.arange(40) % 4 / 1, "auto", "number", [[0.0], [1], [2]]),
        (LABELS / 1, "auto", "labels", [[0.0, 1], [1, 0], [0, 0]]),
        (LABELS, "number", "number", [[0.0, 1], [1, 0], [0, 0]]),
        (LABELS + 0.5, "auto", "number", [[0.5, 1.5], [1.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_what_labels_are_can_be_asked_for(labels, task, name, target, tmp_path):
    saved(tmp_path, labels)
    data = load_npz(tmp_path / "a.npz", task=task)
    assert data.task.name == name
    assert data._target[:3].tolist() == target


def test_the_file_says_what_labels_are(tmp_path):
    labels = np.arange(40) % 5 - 2
    data = saved(tmp_path, labels, labels_kind=np.array("sentiment"))
    assert data.task.scale == "sentiment"
    assert list(data.modalities) == ["x"]
    assert load_npz(tmp_path / "a.npz", task="classes").class_names == ["-2", "-1", "0", "1", "2"]


def test_numbers_are_written_so_that_float32_reads_them_back():
    numbers = torch.tensor([11815268.017, 0.1, 3, -1e20, 1 / 3])
    said = Numbers(tuple("abcde")).predicted(numbers.tolist())
    assert said == "11815268;0.1;3;-1e+20;0.33333334"
    assert torch.tensor([float(text) for text in said.split(";")]).equal(numbers)
