import math
from itertools import permutations

import pytest
import torch
from torch import nn

from evenly import Output
from evenly.methods.mnl import MNL, guidance, rivals, standing
from support import NAMES, Run, batch_of, make, net, same


class TestFormulas:
    def test_rivals_are_never_the_true_class(self):
        logits = torch.tensor([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0], [-9.0, -7.0, -8.0]])
        assert rivals(logits, torch.tensor([0, 1, 1])).tolist() == [2, 0, 2]

    def test_standing_by_hand(self):
        logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
        p, margin = standing(logits, torch.tensor([1]), torch.tensor([2]))
        assert p.tolist() == pytest.approx([2 / 8])
        assert margin.tolist() == pytest.approx([math.log(2 / 5)])

    def test_guidance_by_hand(self):
        guide, guided = torch.tensor([[1.0, 3.0, 4.0]]).log(), torch.tensor([[2.0, 1.0, 1.0]]).log()
        expected = (
            -(math.log(1 / 4) + 0.7 * (1 / 8 * math.log(2 / 4) + 4 / 8 * math.log(1 / 4))) / 3
        )
        assert guidance(guide, guided, torch.tensor([1]), 0.7).tolist() == pytest.approx([expected])

    def test_a_guide_gets_no_gradient(self):
        guide, guided = torch.randn(2, 3, 4).unbind()
        guide.requires_grad_()
        guided.requires_grad_()
        guidance(guide, guided, torch.tensor([1, 2, 0]), 0.7).sum().backward()
        assert guide.grad is None
        assert guided.grad.abs().max() > 0


def golden(output, target, weight):
    """Sample by sample and pair by pair, in plain loops; and how often each is guided."""
    z = {name: logits.tolist() for name, logits in output.unimodal.items()}
    p = {name: logits.softmax(1) for name, logits in output.unimodal.items()}
    ce = nn.functional.cross_entropy
    total = ce(output.logits, target) + sum(ce(x, target) for x in output.unimodal.values())
    guided = dict.fromkeys(z, 0)
    for a, b in permutations(z, 2):
        for n, y in enumerate(target.tolist()):
            j = max((c for c in range(3) if c != y), key=output.logits[n].tolist().__getitem__)
            margins = [z[m][n][y] - z[m][n][j] for m in (a, b)]
            if not (margins[0] > margins[1] and p[a][n, y] > p[b][n, y]):
                continue
            term = -p[b][n, y].log()
            for c in range(3):
                if c != y:
                    term = term - weight * p[a][n, c].detach() * p[b][n, c].log()
            total = total + term / (24 * 3) / (len(z) - 1)
            guided[b] += 1
    return total, guided


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_step(names):
    model = net(names, head="late").double().eval()
    output, target = batch_of(model)
    expected, guided = golden(output, target, 0.3)
    assert all(0 < count < 24 * (len(names) - 1) for count in guided.values())
    method = MNL(model.encoders, weight=0.3)
    found = method.loss(output, target)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    learns = list(model.parameters())
    slopes = [torch.autograd.grad(x, learns, retain_graph=True) for x in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    shares = {f"guided/{name}": count / 24 for name, count in guided.items()}
    assert {name: float(x) for name, x in method.metrics.items()} == pytest.approx(shares)


def test_level_modalities_guide_none():
    z = torch.randn(4, 3)
    output = Output(z, {"a": z, "b": z}, {"a": z, "b": z})
    target = torch.tensor([0, 1, 2, 0])
    found = make("mnl", net(("a", "b"), head="late")).loss(output, target)
    torch.testing.assert_close(found, 3 * nn.functional.cross_entropy(z, target))


def test_a_sample_that_lacks_a_modality_guides_and_learns_nothing():
    sure, none = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    model = net(("a", "b"), head="late")
    for logits in (sure, -sure):  # which would guide, or be guided by, one that is not there
        present = {"b": torch.tensor([False])}
        output = Output(logits, {"a": logits, "b": none}, {"a": logits, "b": none}, present=present)
        method = MNL(model.encoders)
        method.loss(output, torch.tensor([0]))
        assert [float(x) for x in method.metrics.values()] == [0, 0]


def test_one_modality_is_trained_jointly():
    run, joint = Run("mnl", names=("a",)), Run("joint", names=("a",), head="late")
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_message(weight):
    with pytest.raises(
        ValueError, match=f"MNL: 'weight' must be finite and not negative; found {weight}"
    ):
        MNL(net().encoders, weight=weight)
