import math

import pytest
import torch
from torch import nn

import evenly
from evenly.methods.mcr import MCR, coalitions, contrast, divergence
from support import NAMES, Run, forward, loaders, net


def jsd(p, q):
    """Of two distributions, in plain loops."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total = total + (a * torch.log(a / m) + b * torch.log(b / m)) / 2
    return total


def mean_jsd(one, other):
    p, q = one.softmax(1), other.softmax(1)
    return sum(jsd(a, b) for a, b in zip(p, q, strict=True)) / len(p)


class TestFormulas:
    def test_divergence_against_plain_loops(self):
        one, other = torch.randn(2, 5, 3, dtype=torch.float64)
        torch.testing.assert_close(divergence(one, other), mean_jsd(one, other))
        assert float(divergence(torch.tensor([[99.0, 0]]), torch.tensor([[0, 99.0]]))) == (
            pytest.approx(math.log(2))
        )

    def test_divergence_of_equals_has_a_gradient_of_zero(self):
        z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
        divergence(z, z.detach()).backward()
        assert z.grad.tolist() == [[0, 0, 0]]

    def test_contrast_against_plain_loops(self):
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0])
        s = nn.functional.cosine_similarity(x[:, None], x[None, :], dim=2) / 0.2
        losses = []
        for a in range(6):
            others = sum(math.exp(s[a, k]) for k in range(6) if y[k] != y[a])
            losses += [
                -math.log(math.exp(s[a, p]) / (math.exp(s[a, p]) + others))
                for p in range(6)
                if p != a and y[p] == y[a]
            ]
        assert len(losses) == 3 * 2 + 2
        assert float(contrast(x, y, 0.2)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)

    @pytest.mark.parametrize("y", [[0, 0], [0, 1], [0]])
    def test_contrast_without_pairs_or_without_others_is_zero(self, y):
        x = torch.ones(len(y), 3, requires_grad=True)
        loss = contrast(x, torch.tensor(y), 0.1)
        loss.backward()
        assert float(loss.detach()) == 0
        assert not x.grad.any()

    def test_coalitions(self):
        names = ("a", "b", "c")
        assert list(coalitions(names, "b", 1)) == [(names, 1.0)]
        assert list(coalitions(names, "b", 0)) == [(("b",), 1.0)]
        assert list(coalitions(names, "b", -1)) == [(("b",), 1.0), (("a",), -0.5), (("c",), -0.5)]


def batch_of(model, names=NAMES[:2]):
    inputs, target, index = next(iter(loaders(names, count=24, batch=24)[0]))
    return forward(model, ({n: x.double() for n, x in inputs.items()}, target, index))


def contributions(model, output, orders):
    """J_m of each modality, one permutation after the other."""
    found = {}
    for moved in output.features:
        total = 0.0
        for order in orders:
            parts = [x[order] if name == moved else x for name, x in output.features.items()]
            total = total + mean_jsd(output.logits, model.head.linear(torch.cat(parts, 1)))
        found[moved] = total / len(orders)
    return found


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_loss(names):
    model = net(names, head="decoding").double().eval()
    output, target = batch_of(model, names)
    method = MCR(
        model.encoders, head=model.head, strength=0.5, contrast=0.7, bottleneck=0.3, k=1, samples=3
    )
    orders = method._orders(output.logits).view(3, 24)
    assert all(sorted(order.tolist()) == list(range(24)) for order in orders)
    game = -sum(contributions(model, output, orders).values())
    features = torch.cat(list(output.features.values()))
    error = torch.cat(list(output.features.values()), 1) - model.head.decoder(output.logits)
    expected = (
        nn.functional.cross_entropy(output.logits, target)
        + 0.5 * game
        + 0.7 * contrast(features, target.repeat(len(names)), 0.5)
        + 0.3 * error.square().mean()
    )
    torch.testing.assert_close(method.loss(output, target), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
@pytest.mark.parametrize("k", [-1, 0, 1])
def test_what_each_encoder_plays_for(k, names):
    """∇_θm (-J_m - k · Σ J of the others), with -1 shared out among the others."""
    model = net(names, head="decoding").double().eval()
    output, target = batch_of(model, names)
    settings = {"contrast": 0.0, "bottleneck": 0.0, "samples": 2, "k": k, "strength": 0.5}
    method = MCR(model.encoders, **settings)
    features = list(output.features.values())
    game = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    found = torch.autograd.grad(game, features, retain_graph=True)

    j = contributions(model, output, method._orders(output.logits).view(2, 24))
    slopes = {
        moved: torch.autograd.grad(value, features, retain_graph=True) for moved, value in j.items()
    }
    shared = -1 / (len(names) - 1) if k == -1 else k
    for m, name in enumerate(names):
        others = sum(slopes[moved][m] for moved in names if moved != name)
        expected = -slopes[name][m] - shared * others
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(found[m], 0.5 * expected, rtol=1e-10, atol=1e-14)


def test_modalities_without_an_encoder_stay_in_the_prediction():
    """And neither are permuted nor learn."""
    names = NAMES[:3]
    model = net(names, head="decoding").double().eval()
    output, target = batch_of(model, names)
    mine = {name: model.encoders[name] for name in names[:2]}
    method = MCR(mine, contrast=0.0, bottleneck=0.0, samples=2, strength=0.5, k=1)
    j = contributions(model, output, method._orders(output.logits).view(2, 24))
    game = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    torch.testing.assert_close(game, -0.5 * (j["a"] + j["aa"]), rtol=1e-10, atol=1e-14)
    (slope,) = torch.autograd.grad(game, output.features["b"])
    assert slope.abs().max() < 1e-15


def test_a_validation_leaves_the_metrics():
    model = net(head="decoding").double().eval()
    output, target = batch_of(model)
    method = MCR(model.encoders, head=model.head, samples=2)
    method.loss(output, target)
    before = dict(method.metrics)
    assert set(before) == {"contribution/a", "contribution/aa", "contrast", "bottleneck"}
    assert not any(value.requires_grad for value in before.values())
    with torch.no_grad():
        method.loss(output, target.flip(0))
    assert method.metrics == before


@pytest.mark.parametrize("count", [2, 4])
def test_a_greedy_game_leaves_the_head_to_the_task(count):
    """Each contribution is fought for as much as against, which cancels where it is shared."""
    model = net(NAMES[:count], head="decoding").double().eval()
    output, target = batch_of(model, NAMES[:count])
    method = MCR(model.encoders, contrast=0.0, bottleneck=0.0, samples=2, strength=10.0)
    game = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    (slope,) = torch.autograd.grad(game, model.head.linear.weight)
    assert slope.abs().max() < 1e-12


def test_the_bottleneck_does_not_reach_the_prediction():
    model = net(head="decoding").double().eval()
    output, target = batch_of(model)
    method = MCR(model.encoders, head=model.head, strength=0.0, contrast=0.0, bottleneck=1.0)
    term = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    parts = torch.autograd.grad(
        term, [*model.head.linear.parameters(), *model.head.decoder.parameters()], allow_unused=True
    )
    assert not any(p.abs().max() > 1e-15 for p in parts[:2] if p is not None)
    assert all(p.any() for p in parts[2:])


def test_permutations_differ_from_step_to_step_but_not_from_run_to_run():
    def two():
        method = MCR(net().encoders, bottleneck=0.0, seed=4)
        first = method._orders(torch.zeros(9, 2))
        method.before_step()
        return first, method._orders(torch.zeros(9, 2))

    (one, after), (again, _) = two(), two()
    assert torch.equal(one, again)
    assert not torch.equal(one, after)


def test_one_modality_has_no_game():
    run = Run("mcr", names=("a",)).train(1)
    assert set(run.method.metrics) == {"contrast", "bottleneck"}


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"strength": -0.1}, r"MCR: 'strength' is finite and not negative; found -0\.1\."),
            ({"contrast": -1.0}, r"MCR: 'contrast' is finite and not negative; found -1\.0\."),
            ({"bottleneck": math.inf}, r"MCR: 'bottleneck' is finite and not negative; found inf"),
            ({"k": 2}, r"MCR: 'k' is -1, 0 or 1; found 2\."),
            ({"samples": 0}, r"MCR: 'samples' is at least 1; found 0\."),
            ({"temperature": 0.0}, r"MCR: 'temperature' is finite and above 0; found 0\.0\."),
            ({"temperature": math.inf}, r"MCR: 'temperature' is finite and above 0; found inf\."),
        ],
    )
    def test_settings(self, settings, text):
        model = net(head="decoding")
        with pytest.raises(ValueError, match=text):
            MCR(model.encoders, head=model.head, **settings)

    def test_a_head_that_cannot_decode(self):
        model = net()
        text = r"found ConcatHead\. Pass head=model\.head of a model with the head 'decoding'"
        with pytest.raises(ValueError, match=text):
            MCR(model.encoders, head=model.head)
        with pytest.raises(ValueError, match=r"can decode; found NoneType\."):
            MCR(model.encoders)

    def test_features_of_unequal_width(self):
        method = MCR(net().encoders, strength=0.0, bottleneck=0.0)
        features = {"a": torch.zeros(2, 3), "aa": torch.zeros(2, 4)}
        with pytest.raises(ValueError, match=r"found \{'a': 3, 'aa': 4\}\. .* contrast=0\."):
            method.loss(evenly.Output(torch.zeros(2, 3), features), torch.tensor([0, 1]))
