import math

import pytest
import torch
from torch import nn

from evenly.methods.qmf import confidence
from evenly.nn import HEADS, LateFusion


def model():
    torch.manual_seed(0)
    return LateFusion({name: nn.Linear(2, 3) for name in "ab"}, 4, "energy").double()


def test_logits_by_hand():
    found = model()
    inputs = {name: torch.randn(5, 2, dtype=torch.float64) for name in "ab"}
    output = found(inputs)
    for i in range(5):
        expected = [0.0] * 4
        for name in "ab":
            layer = found.head.heads[name]
            z = (layer.weight @ output.features[name][i] + layer.bias).tolist()
            w = math.log(sum(math.exp(x) for x in z)) / 10
            expected = [e + w * x for e, x in zip(expected, z, strict=True)]
            assert output.unimodal[name][i].tolist() == pytest.approx(z, rel=1e-12)
        assert output.logits[i].tolist() == pytest.approx(expected, rel=1e-12)


def test_it_weighs_by_the_confidence_that_the_method_ranks():
    output = model()({name: torch.randn(5, 2, dtype=torch.float64) for name in "ab"})
    expected = sum(confidence(z)[:, None] * z for z in output.unimodal.values())
    torch.testing.assert_close(output.logits, expected, rtol=1e-12, atol=1e-14)


def test_gradients_flow_through_the_weights():
    head = HEADS["energy"]({"a": 1}, 2)
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (found,) = torch.autograd.grad(head.combined({"a": z})[0, 0], z)
    total = math.exp(1) + math.exp(2)
    expected = [0.1 * (math.log(total) + math.exp(1) / total), 0.1 * math.exp(2) / total]
    assert found[0].tolist() == pytest.approx(expected)


def test_a_missing_modality_is_left_out_of_the_sum():
    found = model()
    output = found({"b": torch.randn(5, 2, dtype=torch.float64)})
    z = output.unimodal["b"]
    torch.testing.assert_close(output.logits, confidence(z)[:, None] * z)


def test_confidences_are_of_single_precision_at_least():
    z = torch.randn(4, 300).bfloat16()
    found = HEADS["energy"]({"a": 1}, 300).combined({"a": z})
    assert torch.equal(found, confidence(z)[:, None] * z)
    assert found.dtype == torch.float32


def test_large_logits_stay_finite():
    z = torch.tensor([[2000.0, -2000.0]])
    assert HEADS["energy"]({"a": 1}, 2).combined({"a": z}).isfinite().all()
