import math

import pytest
import torch

from evenly.data.tasks import Classes
from evenly.lab.run.evaluation import Evaluation
from evenly.output import Output


def evaluation(guesses, target):
    """As from these guesses, in batches of four."""
    found = Evaluation(Classes(["a", "b", "c"]))
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), 3).float()
    for part in torch.arange(len(target)).split(4):
        unimodal = {"a": logits[part].flip(1)}
        found.add(Output(logits[part], {}, unimodal, part), torch.tensor(target)[part])
    return found


def test_by_hand():
    found = evaluation([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 0]).metrics()
    assert found["accuracy"] == 3 / 6
    assert found["accuracy/a"] == 2 / 6  # flipped: 2 1 0 2 2 1
    # classes 0, 1, 2: precision 1/3, 1/2, 1; recall 1/2, 1/2, 1/2
    assert found["macro_f1"] == pytest.approx((0.4 + 0.5 + 2 / 3) / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_diverged(value):
    """Its scores would be those of class 0; what stands for a missing modality counts nowhere."""
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, value, 0]])
    here = {"a": torch.tensor([True, False])}
    found = Evaluation(Classes(["a", "b", "c"]))
    found.add(Output(good, {}, {"a": bad}, present=here), torch.tensor([0, 1]))
    found.check_finite("test")
    found.add(Output(good, {}, {"a": bad}), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"some logits of 'a' of the test split .* has diverged"):
        found.check_finite("test")
    found.add(Output(bad, {}, {"a": good}), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="some logits of the test split are NaN or infinite"):
        found.check_finite("test")


def test_balanced_accuracy_is_that_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    guess, target = [0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]  # of class 2 there is none
    found = evaluation(guess, target).metrics()["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(target, guess))
    assert found == (3 / 4 + 1 / 2) / 2


@pytest.mark.parametrize("right", [1, 3, 7, 9])
def test_accuracy_is_the_fraction_to_the_last_bit(right):
    target = [0] * 10
    found = evaluation([0] * right + [1] * (10 - right), target).metrics()
    assert found["accuracy"] == right / 10


def test_details_by_hand():
    """Two samples of class 0, of which one is right with confidence .8 and one wrong with .6."""
    found = Evaluation(Classes(["yes", "no/never"]))
    probabilities = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
    found.add(Output(probabilities.log(), {}, index=torch.arange(3)), torch.tensor([0, 0, 1]))
    details = found.details()
    assert details["recall/yes"] == 0.5
    assert details["recall/no/never"] == 1
    # |1 - .8|, |0 - .6|, |1 - .9|, each alone in its bin
    assert details["calibration_error"] == pytest.approx((0.2 + 0.6 + 0.1) / 3)
    assert details["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.1**2) / 3)
