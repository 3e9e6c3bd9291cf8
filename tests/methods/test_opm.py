import math

import pytest
import torch
from torch import nn

from evenly.chance import uniform
from evenly.methods.opm import OPM, drop_rates, modulated
from support import NAMES, Run, Toy, forward, net


class TestFormulas:
    def test_only_the_dominant_modality_is_dropped(self):
        """Not both, as where the second is compared with a score already divided."""
        score = torch.tensor([40.0, 20.0], dtype=torch.float64)
        rate = drop_rates(score, base=0.5, strength=0.5)
        assert rate.tolist() == pytest.approx([0.5 * (1 + 0.5 * math.tanh(40 / 20 - 1)), 0.0])
        assert score.tolist() == [40.0, 20.0]

    def test_three_modalities_compare_with_the_mean_of_the_others(self):
        """Not with their sum, beside which hardly any is ahead."""
        rate = drop_rates(torch.tensor([6.0, 5.0, 1.0]), base=0.4, strength=1.0)
        wanted = [0.4 * (1 + math.tanh(6 / 3 - 1)), 0.4 * (1 + math.tanh(5 / 3.5 - 1)), 0.0]
        assert rate.tolist() == pytest.approx(wanted)

    def test_a_rate_is_at_most_one(self):
        assert drop_rates(torch.tensor([9.0, 1.0]), base=0.9, strength=5.0).tolist() == [1.0, 0.0]

    @pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
    def test_one_modality_is_never_dropped(self, count):
        """So that no sample is left empty, whatever rounding makes of equal scores."""
        for score in (torch.full((count,), 0.1), torch.rand(count), torch.zeros(count)):
            assert drop_rates(score, base=1.0, strength=1.0).min() == 0

    def test_masks_and_scale_by_hand(self):
        features = {
            "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            "aa": torch.tensor([[1.0], [2.0]]),
            "b": torch.tensor([[5.0], [6.0]]),
        }
        kept = {"a": torch.tensor([True, False]), "aa": torch.tensor([True, True])}
        rate = {"a": torch.tensor(0.6), "aa": torch.tensor(0.0)}
        scale = 1 - (2 * 0.6 + 1 * 0.0) / 4
        found = modulated(features, kept, rate)
        torch.testing.assert_close(found["a"], torch.tensor([[1.0, 2.0], [0.0, 0.0]]) / scale)
        torch.testing.assert_close(found["aa"], features["aa"] / scale)
        torch.testing.assert_close(found["b"], features["b"] / scale)


def batch_of(names=NAMES[:2], count=24):
    inputs, target, index = next(iter(torch.utils.data.DataLoader(Toy(count, names), count)))
    return {name: x.double() for name, x in inputs.items()}, target, index + 100


def steps(method, model, batch, count):
    """Steps on one batch, at unchanged weights."""
    for _ in range(count):
        model.zero_grad()
        method.backward(method.loss(*forward(model, batch)))
        method.before_step()


@pytest.mark.parametrize("count", [2, 3])
def test_golden_step(count):
    """The gradients of CE on features that plain loops have masked and scaled."""
    batch = batch_of(NAMES[:count])
    model = net(NAMES[:count]).double().eval()
    method = OPM(model.encoders, base=0.5, strength=0.7, probability=1.0, start=0, seed=4)
    method.before_epoch(0)
    steps(method, model, batch, 1)

    output, target = forward(model, batch)
    score = [
        float(output.unimodal[name].detach().softmax(1)[range(24), target].sum())
        for name in NAMES[:count]
    ]
    rate, theta, features = {}, 0.0, {}
    for m, name in enumerate(NAMES[:count]):
        ratio = score[m] / ((sum(score) - score[m]) / (count - 1))
        q = 0.5 * (1 + 0.7 * math.tanh(ratio - 1)) if ratio > 1 else 0.0
        rate[f"rate/{name}"] = q
        theta += 6 * q / (6 * count)
        rows = [
            row * float(uniform(batch[2][i : i + 1], 4, 0, m) >= q)
            for i, row in enumerate(output.features[name])
        ]
        features[name] = torch.stack(rows)
    joined = torch.cat([features[name] for name in NAMES[:count]], dim=1)
    assert {name: float(q) for name, q in method.metrics.items()} == pytest.approx(rate, rel=1e-9)
    logits = model.head.linear(joined / (1 - theta))
    wanted = torch.autograd.grad(nn.functional.cross_entropy(logits, target), model.parameters())
    assert sum(bool((x == 0).all(1).any()) for x in features.values()) == 1, "one was dropped"
    for parameter, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)


def test_none_is_dropped_while_it_warms_up():
    method = OPM(net().encoders, probability=1.0)
    modulated = []
    for epoch in range(8):
        method.before_epoch(epoch)
        modulated.append(method.is_modulated)
    assert modulated == [False] * 6 + [True] * 2


def test_a_share_of_the_steps_is_modulated():
    method = OPM(net().encoders, probability=0.7, start=0)
    method.before_epoch(0)
    found = []
    for step in range(2000):
        method.steps = step
        found.append(method.is_modulated)
    assert sum(found) / 2000 == pytest.approx(0.7, abs=0.04)


def test_a_dominant_modality_that_is_dropped_whole_leaves_a_loss():
    run = Run("opm", base=1.0, probability=1.0, start=0).train(2)
    assert max(float(rate) for rate in run.method.metrics.values()) == 1
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_a_modality_without_an_encoder_here_is_never_dropped():
    model = net(NAMES[:3]).double().eval()
    some = {name: model.encoders[name] for name in NAMES[:2]}
    method = OPM(some, base=1.0, probability=1.0, start=0)
    method.before_epoch(0)
    output, target = forward(model, batch_of(NAMES[:3]))
    seen, fuse = {}, output.fuse

    def spied(features):
        seen.update(features)
        return fuse(features)

    object.__setattr__(output, "fuse", spied)
    method.loss(output, target)
    dropped = {name for name, x in seen.items() if (x == 0).all(1).any()}
    assert seen.keys() == set(NAMES[:3])
    ahead = {name.removeprefix("rate/") for name, rate in method.metrics.items() if rate > 0}
    assert dropped == ahead < set(some)


class TestMessages:
    @pytest.mark.parametrize("name", ["base", "probability"])
    def test_no_probability(self, name):
        with pytest.raises(ValueError, match=rf"OPM: '{name}' must be from 0 to 1; found 1\.5\."):
            OPM(net().encoders, **{name: 1.5})

    @pytest.mark.parametrize(("name", "value"), [("strength", -0.5), ("start", -1)])
    def test_negative(self, name, value):
        with pytest.raises(
            ValueError, match=rf"OPM: '{name}' must be not negative; found {value}\."
        ):
            OPM(net().encoders, **{name: value})
