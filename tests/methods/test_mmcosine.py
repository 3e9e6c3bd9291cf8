import math

import pytest
import torch
from torch import nn

import evenly
from evenly import METHODS
from evenly.nn import LateFusion
from evenly.nn.heads import CosineHead
from support import Run, same

MMCosine = METHODS["mmcosine"]


def model(names=("a", "b"), classes=4, scale=10.0):
    torch.manual_seed(0)
    found = LateFusion({name: nn.Linear(3, 2 + n) for n, name in enumerate(names)}, classes)
    found.head = CosineHead(found.head.widths, classes, scale)
    return found.double()


def inputs(names=("a", "b"), n=5):
    stream = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, 3, generator=stream, dtype=torch.float64) for name in names}


@pytest.mark.parametrize("names", [("a",), ("a", "aa"), ("a", "b", "c")])
def test_golden_logits(names):
    """Cosines by hand, sample by sample and class by class."""
    net = model(names)
    with torch.no_grad():
        output = net(inputs(names))
    for i in range(5):
        for c in range(4):
            total = 0.0
            for name in names:
                f = output.features[name][i].tolist()
                w = net.head.weights[name][c].tolist()
                inner = sum(x * y for x, y in zip(f, w, strict=True))
                norms = math.sqrt(sum(x * x for x in f)) * math.sqrt(sum(y * y for y in w))
                share = 10 * inner / norms
                assert float(output.unimodal[name][i, c]) == pytest.approx(share, abs=1e-12)
                total += share
            assert float(output.logits[i, c]) == pytest.approx(total, abs=1e-12)


def test_the_loss_is_that_of_the_prediction():
    """What is trained is what is validated: no other logits anywhere."""
    net, target = model(), torch.tensor([0, 1, 2, 3, 0])
    output = net(inputs())
    found = MMCosine(net.encoders, head=net.head).loss(output, target)
    assert torch.equal(found, nn.functional.cross_entropy(output.logits, target))
    joint = Run("joint", head="cosine").train(3)
    assert same(Run("mmcosine").train(3).model, joint.model)


def test_norms_count_for_nothing():
    net = model()
    before = net(inputs()).logits
    with torch.no_grad():
        net.head.weights["a"].mul_(torch.tensor([[2.0], [0.1], [7.0], [1.0]]))
        for parameter in net.encoders["b"].parameters():
            parameter.mul_(30)
    torch.testing.assert_close(net(inputs()).logits, before, rtol=1e-12, atol=1e-12)


def test_a_missing_modality_adds_nothing():
    net = model()
    features = dict(net(inputs()).features)
    alone = net.head({"a": features["a"]})
    assert list(alone[1]) == ["a"]
    zeros = net.head({**features, "b": torch.zeros_like(features["b"])})
    assert torch.equal(alone[0], zeros[0])


def test_features_of_zeros_have_a_finite_gradient():
    net = model()
    zeros = {
        name: torch.zeros(2, w, dtype=torch.float64, requires_grad=True)
        for name, w in (("a", 2), ("b", 3))
    }
    logits = net.head(zeros)[0]
    assert torch.equal(logits, torch.zeros_like(logits))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for value in (*zeros.values(), *net.head.weights.values()):
        assert value.grad.isfinite().all()
        assert value.grad.abs().max() < 100


def test_the_scale():
    assert evenly.nn.HEADS["cosine"]({"a": 2}, 3).scale == 10
    torch.testing.assert_close(model(scale=5.0)(inputs()).logits * 2, model()(inputs()).logits)


class TestMessages:
    @pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
    def test_a_scale_out_of_range(self, scale):
        with pytest.raises(ValueError, match=r"'scale' is positive and finite; found "):
            CosineHead({"a": 2}, 3, scale)

    def test_another_head(self):
        net = LateFusion({"a": nn.Linear(3, 2)}, 4)
        with pytest.raises(ValueError, match=r"with a number `scale`; found ConcatHead\. "):
            MMCosine(net.encoders, head=net.head)

    def test_a_head_of_ones_own(self):
        head, encoder, target = nn.Linear(2, 4), nn.Linear(3, 2), torch.tensor([0, 1, 2, 3, 0])
        text = r"with a number `scale`; found Linear\. "
        with pytest.raises(ValueError, match=text):
            MMCosine({"a": encoder}, head=head)
        head.scale = 12
        method = MMCosine({"a": encoder}, head=head)
        features = encoder(torch.randn(5, 3))
        output = evenly.Output(head(features), {"a": features})
        expected = nn.functional.cross_entropy(output.logits, target)
        assert torch.equal(method.loss(output, target), expected)
