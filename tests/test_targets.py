from functools import partial

import pytest
import torch
from torch import nn

from evenly.targets import ANY, in_words, kinds

LOGITS, ONE = torch.zeros(4, 3), torch.zeros(4, 1)


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        (LOGITS, torch.tensor([0, 1, 2, 0]), ("classes",)),
        (LOGITS, torch.tensor([0, 1, 2, 0], dtype=torch.uint8), ("classes",)),
        (LOGITS, torch.tensor([0, -100, 2, 0]), ("ignored",)),
        (LOGITS, torch.full((4, 3), 1 / 3), ("soft",)),
        (LOGITS, torch.ones(4, 3), ("labels", "number")),
        (LOGITS, torch.tensor([[1.5, -0.5, 0.0]]).expand(4, 3), ("labels", "number")),
        (LOGITS, torch.ones(4, 3, dtype=torch.int64), ("labels",)),
        (LOGITS, torch.tensor([0.5, 1.0, 2.0, 0.0]), ("number",)),
        (ONE, torch.tensor([0, 1, 1, 0]), ("logit", "number")),
        (ONE, torch.tensor([0.5, 1.0, 2.0, 0.0]), ("number",)),
        (ONE, torch.tensor([1.0, 0.0]), ("logit", "number")),
        (ONE, torch.zeros(4, 1), ("logit", "number")),
        (LOGITS, torch.zeros(4, 1, dtype=torch.int64), ()),
        (LOGITS, torch.zeros(4, 3, 2), ()),
    ],
)
def test_what_a_target_may_be(logits, target, expected):
    assert kinds(logits, target) == expected


def test_the_criterion_says_which_rows_are_ignored():
    target = torch.tensor([0, 255, 2, 0])
    assert kinds(LOGITS, target, nn.CrossEntropyLoss(ignore_index=255)) == ("ignored",)
    assert kinds(LOGITS, target, nn.CrossEntropyLoss()) == ("classes",)
    given = partial(nn.functional.cross_entropy, ignore_index=255)
    assert kinds(LOGITS, target, given) == ("ignored",)
    assert kinds(LOGITS, target, lambda z, y: given(z, y)) == ("ignored",)

    def own(logits, y, gamma):
        return gamma * given(logits, y)

    assert kinds(LOGITS, target, partial(own, gamma=2.0)) == ("ignored",)
    focal = partial(nn.CrossEntropyLoss(ignore_index=255).forward)
    assert kinds(LOGITS, target, focal) == ("ignored",)


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (nn.CrossEntropyLoss(), "soft"),
        (nn.BCEWithLogitsLoss(), "labels"),
        (nn.HuberLoss(), "number"),
        (nn.functional.cross_entropy, "soft"),
        (nn.functional.binary_cross_entropy_with_logits, "labels"),
        (partial(nn.functional.mse_loss, reduction="sum"), "number"),
    ],
)
def test_the_criterion_says_what_rows_of_numbers_are(criterion, kind):
    assert kinds(LOGITS, torch.eye(4, 3), criterion) == (kind,)


def test_the_criterion_says_what_a_column_is():
    target = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert kinds(ONE, target, nn.BCEWithLogitsLoss()) == ("logit",)
    assert kinds(ONE, target, nn.MSELoss()) == ("number",)
    assert kinds(ONE, target * 0.9 + 0.05, nn.BCEWithLogitsLoss()) == ("logit",)


def test_in_words():
    assert in_words(ANY) == "any"
    assert in_words(("soft", "classes")) == "class numbers, soft labels"
