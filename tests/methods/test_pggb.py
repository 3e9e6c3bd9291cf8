import math

import pytest
import torch
from torch import nn

from evenly import Output, chance
from evenly.methods.pggb import PGGB, scales, slope
from support import NAMES, Run, batch_of, linear_of, make, net, same


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestFormulas:
    @pytest.mark.parametrize(
        ("accuracy", "alpha", "expected"),
        [
            ((0.65, 0.35), 0.5, [1.0, 1.5]),
            ((0.651, 0.65), 0.5, [1.0, 1.5]),  # whatever the distance
            ((0.5, 0.5), 0.5, [1.0, 1.0]),
            ((0.2, 0.6, 0.5), 0.4, [1.4, 1.0, 1.1]),
            ((0.2, 0.6, 0.5), 2.0, [2.0, 1.0, 1.5]),
        ],
    )
    def test_scales_by_hand(self, accuracy, alpha, expected):
        assert scales(t(*accuracy), alpha).tolist() == pytest.approx(expected, rel=1e-4)

    def test_scales_do_not_depend_on_where_the_means_begin(self):
        assert scales(t(0.065, 0.02), 0.5).tolist() == pytest.approx([1.0, 1.5], rel=1e-6)

    def test_slope_is_autograds(self):
        weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        x, target = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
        (expected,) = torch.autograd.grad(nn.functional.cross_entropy(x @ weight.T, target), weight)
        torch.testing.assert_close(slope(weight.detach(), x, target), expected)


class Slow:
    """Probes and running means as one would write them: linear layers, Adam, plain numbers."""

    def __init__(self, method):
        self.layers = {name: linear_of(weights) for name, weights in method.probes.items()}
        self.optimizers = {
            name: torch.optim.Adam(layer.parameters(), lr=method.rate)
            for name, layer in self.layers.items()
        }
        self.accuracy = dict.fromkeys(self.layers, 0.0)
        self.scale = dict.fromkeys(self.layers, 1.0)

    def look(self, method, output, target, step):
        drawn = chance.uniform(output.index, method.seed, step).tolist()
        order = sorted(range(len(drawn)), key=drawn.__getitem__)
        train, score = order[: len(order) // 2], order[len(order) // 2 :]
        for name, layer in self.layers.items():
            x = output.features[name].detach()
            for _ in range(10):
                self.optimizers[name].zero_grad()
                nn.functional.cross_entropy(layer(x[train]), target[train]).backward()
                self.optimizers[name].step()
            right = sum(int(layer(x[n]).argmax() == target[n]) for n in score)
            mean = self.accuracy[name]
            self.accuracy[name] = method.beta * right / len(score) + (1 - method.beta) * mean
        best, worst = max(self.accuracy.values()), min(self.accuracy.values())
        for name, mean in self.accuracy.items():
            new = min(1 + method.alpha * (best - mean) / (best - worst + 1e-8), 2)
            self.scale[name] = method.mu * new + (1 - method.mu) * self.scale[name]


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_steps(names):
    """The second and the fourth step look; the scales of a look act from the next step on."""
    model = net(names, head="multi").double().eval()
    method = PGGB(model.encoders, unimodal=0.6, every=2, rate=0.05, seed=3)
    method.before_epoch(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    slow, scale = None, dict.fromkeys(names, 1.0)
    for step in range(5):
        output, target = batch_of(model)
        ce = nn.functional.cross_entropy
        loss = ce(output.logits, target)
        loss = loss + 0.6 * sum(ce(z, target) for z in output.unimodal.values())
        plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        found = method.loss(output, target)
        torch.testing.assert_close(found, loss)
        method.backward(found)
        if step % 2:
            slow = slow or Slow(method)
            slow.look(method, output, target, step)
        method.before_step()
        for (name, p), grad in zip(model.named_parameters(), plain, strict=True):
            factor = scale[name.split(".")[1]] if name.startswith("encoders") else 1
            torch.testing.assert_close(p.grad, grad * factor, rtol=1e-9, atol=1e-14)
        if slow:
            scale = dict(slow.scale)
            assert method.scale.tolist() == pytest.approx(list(scale.values()), rel=1e-9)
            assert method.accuracy.tolist() == pytest.approx(list(slow.accuracy.values()))
            for name, layer in slow.layers.items():
                learnt = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
                torch.testing.assert_close(method.probes[name], learnt, rtol=1e-8, atol=1e-10)
        optimizer.step()
        optimizer.zero_grad()
    assert max(scale.values()) > 1.2


def test_a_probe_sends_nothing_back():
    model = net(head="multi").double().eval()
    method = PGGB(model.encoders, every=1, unimodal=0.0)
    output, target = batch_of(model)
    loss = method.loss(output, target)
    assert torch.equal(loss, nn.functional.cross_entropy(output.logits, target))


def test_a_step_whose_features_overflow_is_no_look():
    """Where a loop leaves such a loss out, all gradients are finite."""
    model = net(head="multi").double().eval()
    method = PGGB(model.encoders, every=1)
    method.before_epoch(0)
    output, target = batch_of(model)
    method.backward(method.loss(output, target))
    method.before_step()
    before = method.state_dict()
    output.features["aa"].detach()[0, 0] = math.inf
    method.loss(output, target)
    method.before_step()
    after = method.state_dict()
    for key in ("accuracy", "scale", "learnt"):
        assert torch.equal(after[key], before[key])
    for key in ("probes", "first", "second"):
        assert all(torch.equal(after[key][name], x) for name, x in before[key].items())


def test_of_one_sample_nothing_is_learnt():
    model = net(head="multi").double().eval()
    method = PGGB(model.encoders, every=1)
    output, target = batch_of(model, count=1)
    method.backward(method.loss(output, target))
    method.before_step()
    assert method.learnt == 0
    assert method.scale.tolist() == [1, 1]


@pytest.mark.parametrize("kind", [{"device": "meta"}, {"dtype": torch.float64}])
def test_a_state_is_used_where_the_gradients_are(kind):
    """Loaded on the CPU, as a checkpoint is, for a model elsewhere or of another precision."""
    run = Run("pggb").train(1)
    moved = net(head="multi").eval().to(**kind)
    method = make("pggb", moved, every=1)
    method.load_state_dict(run.method.state_dict())
    x = torch.ones(8, 1, 5).to(**kind)
    features = {name: encoder(x) for name, encoder in moved.encoders.items()}
    logits, unimodal = moved.head(features)
    index = torch.arange(8).to(x.device)
    method.backward(method.loss(Output(logits, features, unimodal, index), index % 3))
    method.before_step()
    tables = (method.probes, method.first, method.second)
    for found in (*(part for table in tables for part in table.values()), method.scale):
        assert (found.device, found.dtype) == (x.device, x.dtype)


def test_one_modality_is_trained_jointly():
    run, joint = Run("pggb", names=("a",)), Run("joint", names=("a",), head="multi")
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"alpha": -1.0}, r"PGGB: 'alpha' must be finite and not negative; found -1\.0"),
        ({"unimodal": math.inf}, "PGGB: 'unimodal' must be finite and not negative; found inf"),
        ({"every": 0}, "PGGB: 'every' must be at least 1; found 0"),
        ({"beta": 0.0}, r"PGGB: 'beta' must be above 0 and at most 1; found 0\.0"),
        ({"mu": 1.5}, r"PGGB: 'mu' must be above 0 and at most 1; found 1\.5"),
        ({"rate": 0.0}, r"PGGB: 'rate' must be finite and above 0; found 0\.0"),
    ],
)
def test_messages(settings, text):
    with pytest.raises(ValueError, match=text):
        PGGB(net().encoders, **settings)
