import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import evenly
from evenly.methods.lfm import (
    LFM,
    alignment,
    divergence,
    heuristic,
    mean_curvature,
    replayed,
)
from evenly.nn import LateFusion
from support import NAMES, Run, batch_of, loaders, make, net, same
from unchecked import error_of

LEARNT = "lfm(schedule=learnt)"


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def js(p, q):
    """Jensen-Shannon's divergence of two lists of probabilities."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    kl = [sum(a * math.log(a / c) for a, c in zip(x, m, strict=True) if a > 0) for x in (p, q)]
    return sum(kl) / 2


class TestFormulas:
    def test_divergence_by_loops(self):
        p, q = double([0.7, 0.2, 0.1], [0.1, 0.1, 0.8]), double([0.3, 0.3, 0.4], [0.1, 0.2, 0.7])
        expected = sum(js(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)) / 2
        assert divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-12)

    def test_divergence_is_symmetric_and_at_most_ln_2(self):
        z, other = double([200.0, 0.0]), double([0.0, 200.0])
        assert divergence(z, other).item() == pytest.approx(math.log(2))
        assert divergence(z, other).item() == divergence(other, z).item()
        assert divergence(z, z).item() == 0

    def test_alignment_is_the_sum_over_pairs(self):
        torch.manual_seed(0)
        z = list(torch.randn(3, 4, 5, dtype=torch.float64))
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected = sum(divergence(z[i], z[j]) for i, j in pairs)
        torch.testing.assert_close(alignment(z), expected, rtol=1e-12, atol=0)

    def test_curvature_by_hand(self):
        """Losses xᵀ A x / 2 and bᵀ x: the product is A b, and it has a mean over all tensors."""
        a = double([2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 5.0])
        b = double([1.0], [2.0], [-1.0]).squeeze(1)
        x, y = (nn.Parameter(torch.zeros(n).double()) for n in (1, 2))
        idle = nn.Parameter(torch.zeros(7).double())
        both = torch.cat([x, y])
        found = mean_curvature(both @ a @ both / 2 + idle.sum(), b @ both, [x, y, idle])
        assert found.item() == pytest.approx(float((a @ b).sum()) / 3)
        assert float((a @ b)[0]) != pytest.approx(float((a @ b).sum()) / 3)  # nor of the first


def test_golden_loss():
    torch.manual_seed(0)
    model = net(NAMES[:3], head="late").double().eval()
    method = LFM(model.encoders, head=model.head, schedule="learnt", weight=0.7)
    output, target = batch_of(model)
    z = [output.unimodal[name] for name in NAMES[:3]]
    p = [x.detach().softmax(1).tolist() for x in z]
    pairs = [(0, 1), (0, 2), (1, 2)]
    agreement = sum(js(p[i][n], p[j][n]) for i, j in pairs for n in range(24)) / 24
    expected = 2 * (0.3 * cross_entropy(sum(z) / 3, target).item() + 0.7 * agreement)
    assert method.loss(output, target).item() == pytest.approx(expected, rel=1e-12)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def with_weights(model, values):
    parts = values.split([p.numel() for p in model.parameters()])
    shaped = [v.view_as(p) for v, p in zip(parts, model.parameters(), strict=True)]
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, shaped, strict=True))


def smooth():
    """A model of which finite differences are exact."""
    torch.manual_seed(4)
    encoders = {"a": nn.Sequential(nn.Linear(3, 4), nn.Tanh()), "b": nn.Linear(2, 4)}
    for encoder in encoders.values():
        encoder.out_features = 4
    return LateFusion(encoders, 3, "late").double()


class Few(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        torch.manual_seed(i)
        return {"a": torch.randn(3).double(), "b": torch.randn(2).double()}, i % 3


def test_golden_update():
    """a₁ ← a₁ - η · mean(H v), against the formula by finite differences of gradients."""
    model = smooth()
    loader = torch.utils.data.DataLoader(Few(), 5)
    probe = evenly.Probe(model, lambda model, batch: (model(batch[0]), batch[1]), loader, loader)
    method = LFM(
        model.encoders, head=model.head, schedule="learnt", weight=0.6, rate=20.0, samples=10
    )
    inputs, target = next(iter(torch.utils.data.DataLoader(Few(), 10)))

    def gradient(values, a0, a1):
        given = {k: v.requires_grad_() for k, v in with_weights(model, values).items()}
        output = torch.func.functional_call(model, given, (inputs,))
        p, q = (z.softmax(1) for z in output.unimodal.values())
        m = (p + q) / 2
        agreement = 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(1).mean()
        loss = a0 * cross_entropy(sum(output.unimodal.values()) / 2, target) + a1 * agreement
        found = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
        return torch.cat([g.reshape(-1) for g in found])

    at, small = flat(model), 1e-5
    v = gradient(at, 1.0, 0.0)
    ahead, behind = (gradient(at + sign * small * v, 0.4, 0.6) for sign in (1, -1))
    mean = float((ahead - behind).mean()) / (2 * small)
    assert abs(20 * mean) > 1e-3
    method.before_epoch(0, probe)
    assert method.weight == pytest.approx(0.6 - 20 * mean, abs=1e-8)
    assert method.history == {0: method.weight}


class TestSchedules:
    def test_the_documented_run(self):
        """Weights by epoch that the released script computes [njustkmg/NeurIPS24-LFM, ad44fa0]."""
        published = {
            0: 0.795376296,
            5: 0.7758802839388454,
            20: 0.6991130629055999,
            80: 0.49978020090240005,
            140: 0.25746249995519976,
            176: 0.003197229962202286,
            180: 0.0,  # -0.0077: ours is never negative
            199: 0.08401124758375289,
        }
        for epoch, weight in published.items():
            assert replayed(float(epoch)) == pytest.approx(weight, abs=1e-12)

    def test_it_ends_where_the_documented_run_ends(self):
        assert replayed(1000.0) == replayed(199.0)

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("replayed", [replayed(t) for t in (0.0, 50.0, 100.0, 150.0, 199.0)]),
            ("heuristic", [0.95, *[0.05] * 4]),
        ],
    )
    def test_it_is_stretched_to_the_training(self, schedule, expected):
        run = Run("lfm", schedule=schedule, epochs=4)
        found = []
        for epoch in range(5):
            run.method.before_epoch(epoch, run.probe)
            found.append(run.method.weight)
        assert found == pytest.approx(expected)
        assert run.method.history == dict(enumerate(found))

    def test_heuristic_by_hand(self):
        assert [heuristic(t) for t in (0.0, 1.0, 3.0, 50.0)] == pytest.approx(
            [0.95, 0.74081822, 0.40656966, 0.05]
        )


class Bent:
    """In place of the curvature: what it is said to be."""

    def __init__(self, monkeypatch, found):
        monkeypatch.setattr(LFM, "_curvature", lambda method, probe: found)
        self.run = Run(LEARNT, rate=0.01, halve=2)

    def weights(self, epochs):
        found = []
        for epoch in range(epochs):
            self.run.method.before_epoch(epoch, self.run.probe)
            found.append(self.run.method.weight)
        return found


def test_it_starts_with_agreement():
    assert make(LEARNT, net(head="late")).weight == 0.95


def test_the_rate_is_halved_again_and_again(monkeypatch):
    found = Bent(monkeypatch, 1.0).weights(6)
    steps = [0.95 - found[0], *(a - b for a, b in pairwise(found))]
    assert steps == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])


@pytest.mark.parametrize(("curvature", "end"), [(1e9, 0.05), (-1e9, 0.95)])
def test_the_weight_stays_in_its_bounds(monkeypatch, curvature, end):
    assert Bent(monkeypatch, curvature).weights(2) == [end, end]


@pytest.mark.parametrize("curvature", [math.nan, math.inf, -math.inf])
def test_a_curvature_that_is_not_finite_leaves_the_weight_as_it_is(monkeypatch, curvature):
    assert Bent(monkeypatch, curvature).weights(2) == [0.95, 0.95]


def test_an_epoch_is_learnt_from_once():
    run = Run(LEARNT)
    run.method.before_epoch(0, run.probe)
    once = run.method.weight
    run.method.before_epoch(0, run.probe)
    assert run.method.weight == once != 0.95


def test_the_same_samples_each_time_and_none_of_training():
    run = Run(LEARNT, samples=5)
    seen = []
    sample = run.probe.sample
    run.probe.sample = lambda *given: (
        seen.append((given, sample(*given)[1].tolist())) or sample(*given)
    )
    run.train(2)
    assert [given for given, _ in seen] == [("val", 5, 0)] * 2
    assert seen[0][1] == seen[1][1]
    assert len(seen[0][1]) == 5


def test_gradients_and_modes_are_left_as_found():
    run = Run(LEARNT)
    run.model.head.heads["a"].weight.grad = torch.ones(3, 6)
    with torch.no_grad():  # a loop may call it so
        run.method.before_epoch(0, run.probe)
    assert run.method.weight != 0.95
    assert run.model.head.heads["a"].weight.grad.eq(1).all()
    assert run.model.encoders["a"][5].weight.grad is None
    assert run.model.training


class Attending(nn.Module):
    """Fused attention, which has no second derivative."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(1, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.up(x.transpose(1, 2))
        return self.attention(h, h, h, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    out_features = 4

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x.transpose(1, 2))[0][:, -1]


@pytest.mark.parametrize("kind", [Attending, Recurrent])
def test_encoders_whose_fast_kernels_have_no_second_derivative(kind):
    model = LateFusion({"a": kind(), "aa": kind()}, 3, "late")
    train_loader, val_loader = loaders()
    probe = evenly.Probe(
        model, lambda model, batch: (model(batch[0]), batch[1]), train_loader, val_loader
    )
    method = LFM(model.encoders, head=model.head, schedule="learnt", weight=0.5, rate=1e-3)
    method.before_epoch(0, probe)
    assert method.weight != 0.5
    assert math.isfinite(method.weight)


def test_one_modality_is_trained_plainly():
    run, plain = Run(LEARNT, names=("a",)), Run("joint", names=("a",), head="late")
    assert same(run.train(2).model, plain.train(2).model)


def test_a_batch_of_one_modality_has_nothing_to_agree_with():
    run = Run(LEARNT)
    inputs, target, _ = next(iter(run.train_loader))
    output = run.model.eval()({"aa": inputs["aa"]})
    expected = 2 * 0.05 * cross_entropy(output.logits, target)
    torch.testing.assert_close(run.method.loss(output, target), expected)


def test_a_missing_modality_is_in_no_pair():
    run = Run(LEARNT, names=NAMES[:3])
    inputs, target, _ = next(iter(run.train_loader))
    output = run.model.eval()({name: inputs[name] for name in ("a", "b")})
    pair = divergence(output.unimodal["a"], output.unimodal["b"])
    expected = 2 * (0.05 * cross_entropy(output.logits, target) + 0.95 * pair)
    torch.testing.assert_close(run.method.loss(output, target), expected)


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"weight": 0.96}, r"'weight' is from 0\.05 to 0\.95; found 0\.96"),
            ({"rate": -1.0}, r"'rate' must be finite and not negative; found -1\.0"),
            ({"epochs": 0}, "'epochs' must be at least 1; found 0"),
            ({"halve": 0}, r"'halve' must be at least 1; found 0"),
            ({"samples": 0}, r"'samples' must be at least 1; found 0"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            make("lfm", net(head="late"), **settings)

    def test_a_schedule_that_is_none(self):
        code = "import evenly; evenly.methods.LFM({}, head=None, schedule='replay')"
        assert "unknown schedule 'replay' of LFM. Did you mean replayed?" in error_of(code)
