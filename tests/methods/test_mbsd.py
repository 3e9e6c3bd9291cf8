import math
from itertools import combinations

import pytest
import torch
from torch import nn

import evenly
from evenly import METHODS
from evenly.methods.mbsd import divergence, lead

MBSD = METHODS["mbsd"]
TARGET = torch.tensor([0, 1, 2, 0, 1])


def random_output(names, seed=0):
    stream = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(5, 3, generator=stream, dtype=torch.float64) * 2

    unimodal = {name: draw().requires_grad_() for name in names}
    return evenly.Output(draw(), {name: torch.zeros(5, 1) for name in names}, unimodal)


def method_of(names, **settings):
    return MBSD({name: nn.Linear(1, 1) for name in names}, **settings)


class TestFormulas:
    def test_lead_by_hand(self):
        p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3], [0.4, 0.5, 0.1]])
        q = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
        # ahead and right; wrong and behind; right but behind; ahead but wrong
        found = lead(p.log(), q.log(), torch.tensor([0, 0, 0, 0]))
        torch.testing.assert_close(found, torch.tensor([0.2, 0.0, 0.0, 0.0]))

    def test_divergence_is_that_of_whole_distributions(self):
        p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.1, 0.4]])
        by_hand = 0.7 * math.log(7 / 5) + 0.2 * math.log(2) + 0.1 * math.log(1 / 4)
        assert divergence(p.log(), q.log()).tolist() == pytest.approx([by_hand])
        assert divergence(p.log(), p.log()).tolist() == pytest.approx([0.0], abs=1e-7)


def reference(output, names, strength):
    """Sample by sample, pair by pair: the one that is ahead and right teaches the other."""
    loss = nn.functional.cross_entropy(output.logits, TARGET)
    for name in names:
        loss = loss + nn.functional.cross_entropy(output.unimodal[name], TARGET)
    pairs = list(combinations(names, 2))
    for one, other in pairs:
        for i, y in enumerate(TARGET.tolist()):
            p, q = (output.unimodal[name][i].softmax(0) for name in (one, other))
            if p[y] < q[y]:
                p, q = q, p
            if int(p.argmax()) != y:
                continue
            p = p.detach()
            weight = (p[y] - q[y]).item()
            kl = sum(p[c] * (p[c].log() - q[c].log()) for c in range(3))
            loss = loss + strength / len(pairs) / len(TARGET) * weight * kl
    return loss


@pytest.mark.parametrize("names", [("a",), ("a", "aa"), ("a", "b", "c")])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_golden_loss_and_gradients(names, seed):
    output = random_output(names, seed)
    leaves = list(output.unimodal.values())
    found = method_of(names, distillation=0.7).loss(output, TARGET)
    expected = reference(output, names, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, leaves) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_only_the_student_learns():
    """No gradient of the distillation reaches the teacher, nor goes through the weights."""
    names = ("a", "b")
    sure = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    unsure = torch.tensor([[0.5, 0.0, 0.2]], dtype=torch.float64).requires_grad_()
    features = {name: torch.zeros(1, 1) for name in names}
    output = evenly.Output(sure.detach(), features, {"a": sure, "b": unsure})
    one, two = (
        torch.autograd.grad(
            method_of(names, distillation=s).loss(output, torch.tensor([0])), [sure, unsure]
        )
        for s in (0.0, 1.0)
    )
    assert torch.equal(one[0], two[0])
    p, q = sure.softmax(1), unsure.softmax(1)
    torch.testing.assert_close(two[1] - one[1], (p - q)[0, 0] * (q - p), rtol=1e-10, atol=1e-12)


def test_metrics_tell_who_is_taught():
    names = ("a", "b")
    logits = {"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[0.0, 0.0]])}
    method = method_of(names)
    features = {name: torch.zeros(1, 1) for name in names}
    method.loss(evenly.Output(logits["a"], features, logits), torch.tensor([0]))
    ahead = math.exp(2) / (math.exp(2) + 1) - 0.5
    assert {key: float(value) for key, value in method.metrics.items()} == pytest.approx(
        {"taught/a": 0.0, "taught/b": ahead}
    )


@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan")])
def test_a_weight_out_of_range(value):
    with pytest.raises(ValueError, match=r"'distillation' must be finite and not negative; found "):
        method_of(("a",), distillation=value)
