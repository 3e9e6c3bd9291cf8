"""Criteria against torch's own, and worked out by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from evenly import BinaryCrossEntropy, CrossEntropy, Focal, SigmoidFocal, balanced_weights
from evenly.criteria import partitions, weights

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 0, 0, 1, 2])
WEIGHT = torch.tensor([1.0, 2.0, 5.0])


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    found = balanced_weights(TARGET, 3)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=TARGET.numpy())
    assert found.tolist() == pytest.approx(theirs.tolist())
    assert float(found[TARGET].mean()) == pytest.approx(1)


def test_a_class_without_a_sample_has_no_weight():
    with pytest.raises(ValueError, match="no sample is of class 3, so"):
        balanced_weights(TARGET, 4)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_is_torchs_in_any_precision(weight):
    ours = CrossEntropy(weight, label_smoothing=0.1)
    theirs = nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    assert torch.equal(ours(LOGITS, TARGET), theirs(LOGITS, TARGET))
    half = LOGITS.bfloat16()
    assert torch.equal(ours(half, TARGET), theirs(half.float(), TARGET))
    assert ours(LOGITS.double(), TARGET).dtype == torch.float64


def test_focal_by_hand():
    """Of p = 0.9 and 0.2 with γ = 2: the paper's (1 - p)² (-log p), weighed by 1 and 3."""
    logits = torch.tensor([[math.log(9), 0.0], [math.log(4), 0.0]])
    losses = 0.1**2 * -math.log(0.9), 0.8**2 * -math.log(0.2)
    target = torch.tensor([0, 1])
    assert float(Focal(2.0)(logits, target)) == pytest.approx(sum(losses) / 2, rel=1e-5)
    weighed = Focal(2.0, torch.tensor([1.0, 3.0]))(logits, target)
    assert float(weighed) == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-5)


LABELS = (TARGET[:, None] % torch.tensor([2, 3, 1])).clamp(max=1).float()


@pytest.mark.parametrize("pos_weight", [None, WEIGHT])
def test_label_smoothing_of_several_labels(pos_weight):
    """A share of each 0 and 1 goes to both; without any it is torch's, in any precision."""
    found = float(BinaryCrossEntropy(pos_weight, label_smoothing=0.2)(LOGITS, LABELS))
    losses = []
    for row, labels in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        for c, (z, t) in enumerate(zip(row, labels, strict=True)):
            p, w = 1 / (1 + math.exp(-z)), 1.0 if pos_weight is None else float(pos_weight[c])
            t = 0.8 * t + 0.1
            losses.append(-w * t * math.log(p) - (1 - t) * math.log(1 - p))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    theirs = nn.BCEWithLogitsLoss(pos_weight=pos_weight)
    assert torch.equal(BinaryCrossEntropy(pos_weight)(LOGITS, LABELS), theirs(LOGITS, LABELS))
    half = LOGITS.bfloat16()
    found = BinaryCrossEntropy(pos_weight)(half, LABELS)
    torch.testing.assert_close(found, theirs(half.float(), LABELS))


@pytest.mark.parametrize("pos_weight", [None, WEIGHT])
def test_sigmoid_focal_by_the_papers_formula(pos_weight):
    losses = []
    for row, labels in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        for c, (z, t) in enumerate(zip(row, labels, strict=True)):
            p = 1 / (1 + math.exp(-z))
            p, w = (p, 1.0 if pos_weight is None else float(pos_weight[c])) if t else (1 - p, 1.0)
            losses.append(-w * (1 - p) ** 1.5 * math.log(p))
    found = SigmoidFocal(1.5, pos_weight)(LOGITS, LABELS)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    theirs = nn.BCEWithLogitsLoss(pos_weight=pos_weight)
    found = SigmoidFocal(0.0, pos_weight)(LOGITS, LABELS)
    torch.testing.assert_close(found, theirs(LOGITS, LABELS))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_sigmoid_focal_of_what_is_certain_has_a_finite_slope(gamma):
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    SigmoidFocal(gamma)(logits, torch.tensor([[1.0, 1.0]])).backward()
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 1]) == pytest.approx(-0.5, rel=1e-4)


def test_sigmoid_focal_takes_labels():
    with pytest.raises(ValueError, match="SigmoidFocal takes 0 or 1 for each logit; found"):
        SigmoidFocal()(LOGITS, TARGET)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_without_gamma_is_cross_entropy_ignored_rows_too(weight):
    target = TARGET.where(torch.arange(5) != 1, -100)
    theirs = cross_entropy(LOGITS, target, weight)
    torch.testing.assert_close(Focal(0.0, weight)(LOGITS, target), theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_finite_slope_where_all_is_known(gamma):
    logits = torch.tensor([[100.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    Focal(gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1, 0] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("logits", "target"), [(LOGITS, one_hot(TARGET).float()), (LOGITS[:, :1], TARGET % 2)]
)
def test_focal_takes_class_numbers_alone(logits, target):
    with pytest.raises(ValueError, match="Focal takes class numbers, one for each sample"):
        Focal()(logits, target)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Focal(-1.0),
        lambda: Focal(math.inf),
        lambda: CrossEntropy(label_smoothing=2.0),
        lambda: SigmoidFocal(-1.0),
        lambda: BinaryCrossEntropy(label_smoothing=2.0),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(ValueError, match=r"'(gamma|label_smoothing)' must be"):
        make()


@pytest.mark.parametrize(
    "criterion",
    [
        CrossEntropy(WEIGHT, label_smoothing=0.2),
        nn.CrossEntropyLoss(WEIGHT),
        partial(cross_entropy, weight=WEIGHT, label_smoothing=0.2),
        Focal(2.0, WEIGHT),
        Focal(2.0),
        cross_entropy,
    ],
)
def test_a_mean_divides_by_the_sum_of_weights(criterion):
    """So the means of two parts, each by its weights, make that of the whole."""
    target = TARGET.where(torch.arange(5) != 1, -100)
    whole = criterion(LOGITS, target)
    parts = [slice(0, 2), slice(2, 5)]
    sums = [criterion(LOGITS[s], target[s]) * weights(criterion, target[s]).sum() for s in parts]
    torch.testing.assert_close(sum(sums) / weights(criterion, target).sum(), whole)


def test_other_criteria_count_all_samples_alike():
    assert weights(nn.BCEWithLogitsLoss(weight=WEIGHT), one_hot(TARGET).float()).tolist() == [1] * 5
    assert weights(nn.MSELoss(), TARGET.float()).tolist() == [1] * 5


@pytest.mark.parametrize(
    "target", [TARGET, one_hot(TARGET, 3).float().lerp(torch.ones(3) / 3, 0.3)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_partitions_are_what_the_loss_has_of_each_sample(target, smoothing):
    """The rest is linear: moved by 1 along a sample's logits, it falls by the factor."""
    criterion = CrossEntropy(WEIGHT, label_smoothing=smoothing)
    factor = partitions(criterion, LOGITS, target)

    def rest(logits):
        return criterion(logits, target) - factor @ logits.logsumexp(1)

    moved = 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    one, other, both = rest(LOGITS), rest(moved), rest(LOGITS + moved)
    torch.testing.assert_close(one + other, both, atol=1e-5, rtol=1e-5)


def test_without_weights_all_partitions_count_alike():
    assert partitions(CrossEntropy(label_smoothing=0.1), LOGITS, TARGET) is None
    assert partitions(None, LOGITS, TARGET) is None
