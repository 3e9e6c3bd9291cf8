"""The heads that several methods share, by hand."""

import math

import pytest
import torch

from evenly.nn.heads import ConcatHead, EnsembleHead, LateHead, MultiHead, SharedHead


def features(**rows):
    return {name: torch.tensor([row]) for name, row in rows.items()}


def set_(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def unimodal(kind):
    head = kind({"a": 2, "b": 1}, 2)
    set_(head.heads["a"], [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    set_(head.heads["b"], [[1.0], [-1.0]], [0.5, 0.0])
    return head(features(a=[2.0, 4.0], b=[3.0]))


def test_concat():
    head = ConcatHead({"a": 2, "b": 1}, 2)
    set_(head.linear, [[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], [1.0, 0.0])
    logits, shares = head(features(a=[1.0, 1.0], b=[2.0]))
    assert logits.tolist() == [[1 + 2 + 6 + 1, 1 - 2]]
    assert shares["a"].tolist() == [[3.5, 1.0]]
    assert shares["b"].tolist() == [[6.5, -2.0]]


def test_late():
    logits, own = unimodal(LateHead)
    assert own["a"].tolist() == [[2.0, 4.0]]
    assert own["b"].tolist() == [[3.5, -3.0]]
    assert logits.tolist() == [[2.75, 0.5]]


def test_ensemble():
    """The mean of probabilities, as logits."""
    logits, _ = unimodal(EnsembleHead)
    a, b = math.exp(2) / (math.exp(2) + math.exp(4)), math.exp(3.5) / (math.exp(3.5) + math.exp(-3))
    assert logits.exp()[0].tolist() == pytest.approx([(a + b) / 2, 1 - (a + b) / 2])


def test_multi():
    """Its fused layer is that of joint training, with layers of their own beside it."""
    torch.manual_seed(0)
    head = MultiHead({"a": 2, "b": 1}, 2)
    torch.manual_seed(0)
    assert torch.equal(head.linear.weight, ConcatHead({"a": 2, "b": 1}, 2).linear.weight)
    x = features(a=[1.0, 2.0], b=[3.0])
    logits, own = head(x)
    torch.testing.assert_close(logits, head.linear(torch.tensor([[1.0, 2.0, 3.0]])))
    torch.testing.assert_close(own["b"], head.heads["b"](x["b"]))


def test_shared_weights_samples_by_certainty():
    head = SharedHead({"a": 2, "b": 2}, 2)
    set_(head.linear, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    logits, own = head(
        {
            "a": torch.tensor([[5.0, 0.0], [0.0, 0.0]]),
            "b": torch.tensor([[0.0, 0.0], [0.0, 5.0]]),
        }
    )
    p = math.exp(5) / (math.exp(5) + 1)
    sure = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    w = math.exp(-sure) / (math.exp(-sure) + math.exp(-math.log(2)))
    torch.testing.assert_close(logits, torch.tensor([[5 * w, 0.0], [0.0, 5 * w]]))
    assert own["a"].tolist() == [[5.0, 0.0], [0.0, 0.0]]


def test_shared_needs_one_width():
    with pytest.raises(ValueError, match=r"features of one width; found \{'a': 2, 'b': 1\}"):
        SharedHead({"a": 2, "b": 1}, 2)
