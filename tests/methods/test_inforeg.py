import math

import pytest
import torch
from torch import nn

from evenly.methods import InfoReg
from evenly.methods.inforeg import (
    _pull_at_once,
    _pull_in_turn,
    change,
    fisher_trace,
    pull_,
    regulation,
)
from support import NAMES, Run, forward, lacking, loaders, net, rows_of, same, sgd


class TestFormulas:
    def test_trace_by_hand(self):
        """Σ over weights of mean(g²); biases and norms do not count, nor what has no gradient."""
        encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
        assert fisher_trace(encoder).item() == 0
        encoder[0].weight.grad = torch.tensor([[1.0, -2.0], [0.0, 3.0]]).double()
        encoder[0].bias.grad = torch.tensor([9.0, 9.0]).double()
        encoder[1].weight.grad = torch.tensor([9.0, 9.0]).double()
        assert fisher_trace(encoder).item() == pytest.approx(14 / 4, rel=1e-12)
        encoder[2].weight.grad = torch.tensor([[0.5, 0.5]]).double()
        assert fisher_trace(encoder).item() == pytest.approx(14 / 4 + 0.25, rel=1e-12)

    def test_change_by_hand(self):
        assert change([], 3) == 1.0
        assert change([5.0], 3) == 1.0
        assert change([5.0, 3.0], 3) == pytest.approx(3 / 8)
        # 2 + 3 + 4 after 1 + 2 + 3
        assert change([7.0, 1.0, 2.0, 3.0, 4.0], 3) == pytest.approx((9 - 6) / 9)
        assert change([4.0, 1.0, 1.0, 1.0], 3) == pytest.approx((3 - 6) / 3)
        assert change([0.0, 0.0], 3) == 0.0

    def test_a_constant_trace_leaves_the_window_when_it_is_full(self):
        found = [change([2.0] * epoch, 10) for epoch in range(13)]
        assert found == [1.0] + [pytest.approx(1 / n) for n in range(1, 11)] + [0.0, 0.0]

    def test_the_one_ahead_is_regulated_by_how_far(self):
        score = torch.tensor([3.0, 2.5], dtype=torch.float64)
        found = regulation(score, 0.95)
        assert found.tolist() == pytest.approx([0.95 * math.exp(math.tanh(0.5)), 0.0], rel=1e-12)
        assert regulation(score.flip(0), 0.95).tolist() == found.flip(0).tolist()

    def test_three_are_compared_with_the_best_other(self):
        score = torch.tensor([1.0, 4.0, 3.8], dtype=torch.float64)
        expected = [0.0, 0.5 * math.exp(math.tanh(0.2)), 0.0]
        assert regulation(score, 0.5).tolist() == pytest.approx(expected, rel=1e-12)

    def test_nobody_ahead(self):
        assert regulation(torch.tensor([2.0, 2.0]), 0.95).tolist() == [0, 0]
        assert regulation(torch.tensor([2.0]), 0.95).tolist() == [0]

    def test_pull_by_hand(self):
        layer = nn.Linear(2, 2).double()
        start = {"weight": torch.zeros(2, 2).double(), "bias": torch.ones(2).double()}
        layer.weight.grad = torch.ones(2, 2).double()
        pull_(layer, start, torch.tensor(0.5))
        expected = 1 + 0.5 * layer.weight.detach()
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-12, atol=0)
        assert layer.bias.grad is None


@pytest.mark.parametrize("pull", [_pull_in_turn, _pull_at_once])
def test_both_ways_to_pull(pull):
    grads, now, then = ([torch.randn(n, 3).double() for n in (2, 5)] for _ in range(3))
    expected = [g + 0.3 * (p - s) for g, p, s in zip(grads, now, then, strict=True)]
    pull(grads, now, then, torch.tensor(0.3, dtype=torch.float64))
    pull(grads, now, then, torch.tensor(0.0, dtype=torch.float64))
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-15)


def straight(names=NAMES[:2], **settings):
    model = net(names).double().eval()
    return model, InfoReg(model.encoders, **settings)


def batches(names=NAMES[:2]):
    for inputs, target, index in loaders(names, count=24)[0]:
        yield {name: x.double() for name, x in inputs.items()}, target, index


@pytest.mark.parametrize("count", [2, 3])
def test_golden_steps(count):
    """An epoch against the formula in plain autograd, one parameter at a time."""
    names = NAMES[:count]
    model, method = straight(names, strength=0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    method.before_epoch(0)
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    trace = dict.fromkeys(names, 0.0)
    regulated = set()
    for step, (inputs, target, index) in enumerate(batches(names)):
        output = model(inputs, index)
        ce = nn.functional.cross_entropy
        loss = ce(output.logits, target) + sum(ce(output.unimodal[n], target) for n in names)
        parameters = list(model.parameters())
        plain = dict(
            zip(start, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True)
        )
        score = {
            n: sum(
                float(z.detach().softmax(0)[y])
                for z, y in zip(output.unimodal[n], target, strict=True)
            )
            for n in names
        }
        method.backward(method.loss(output, target))
        method.before_step()
        for key, p in model.named_parameters():
            expected = plain[key]
            name = key.split(".")[1] if key.startswith("encoders") else None
            if name is not None:
                gap = score[name] - max(score[n] for n in names if n != name)
                if gap > 0:
                    regulated.add(name)
                    strength = 0.7 * math.exp(math.tanh(gap))
                    expected = expected + strength * (p.detach() - start[key])
                    assert float(method.metrics[f"regulation/{name}"]) == pytest.approx(
                        strength, rel=1e-5
                    )
                if p.ndim > 1:
                    trace[name] += float(p.grad.square().mean())
            # scores are summed in single precision
            torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-9)
            if step == 0:  # the weights have not moved yet
                torch.testing.assert_close(p.grad, plain[key], rtol=1e-10, atol=1e-14)
        optimizer.step()
        optimizer.zero_grad()
    assert regulated == set(names)  # each is ahead in some step
    method.before_epoch(1)
    for name in names:
        assert method.traces[name] == pytest.approx([trace[name]], rel=1e-10)


def test_the_copy_is_of_the_epochs_start():
    model, method = straight()
    method.before_epoch(0)
    first = {key: value.clone() for key, value in method.start["a"].items()}
    with torch.no_grad():
        for p in model.encoders["a"].parameters():
            p.add_(1.0)
    assert all(torch.equal(method.start["a"][key], value) for key, value in first.items())
    method.before_epoch(1)
    for key, p in model.encoders["a"].named_parameters():
        assert torch.equal(method.start["a"][key], p)


def test_each_encoder_has_a_window_of_its_own():
    """Out of it nothing is copied and nothing pulled."""
    model, method = straight(window=2, threshold=0.05)
    method.traces = {"a": [1.0, 1.0, 1.0], "aa": [1.0, 1.0, 3.0]}
    method.before_epoch(3)
    assert method.change == {"a": 0.0, "aa": pytest.approx((4 - 2) / 4)}
    assert set(method.start) == {"aa"}
    assert (method.is_open("a"), method.is_open("aa")) == (False, True)
    inputs, target, index = next(batches())
    method.backward(method.loss(model(inputs, index), target))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    method.before_step()
    assert set(method.metrics) == {"regulation/aa"}


def test_an_epoch_of_steps_that_all_overflowed_decides_nothing():
    """Its trace is not 0, which would be that of an encoder that has learnt enough."""
    model, method = straight(window=2)
    for epoch in range(2):
        method.before_epoch(epoch)
        inputs, target, index = next(batches())
        method.backward(method.loss(model(inputs, index), target))
        if epoch == 0:
            model.encoders["a"][0].weight.grad[0] = math.inf
        method.before_step()
        assert set(method.metrics) == {"regulation/a", "regulation/aa"}
        model.zero_grad()
    method.before_epoch(2)
    assert {name: len(traces) for name, traces in method.traces.items()} == {"a": 1, "aa": 1}
    assert method.change == {"a": 1.0, "aa": 1.0}


def test_a_threshold_that_is_never_passed_is_multi_loss_bit_for_bit():
    for settings in ({"strength": 0.0}, {"threshold": 2.0}):
        ours = Run("inforeg", **settings).train(3).model
        assert same(ours, Run("multi_loss", head="concat").train(3).model)


def test_one_backward_for_a_step():
    """The released code has six, three of them for its logs."""
    calls = []
    model, method = straight()
    for parameter in model.encoders.parameters():
        parameter.register_hook(lambda grad: calls.append(1))
    method.before_epoch(0)
    inputs, target, index = next(batches())
    method.backward(method.loss(model(inputs, index), target))
    method.before_step()
    assert len(calls) == len(list(model.encoders.parameters()))


def test_a_run_resumed_within_an_epoch_is_pulled_to_the_same_weights():
    def halves(stop):
        model = net()
        optimizer = sgd(model)
        method = InfoReg(model.encoders)
        method.before_epoch(0)
        for n, batch in enumerate(loaders()[0]):
            if n == stop:
                states = [part.state_dict() for part in (model, optimizer, method)]
                model = net(seed=9)
                optimizer = sgd(model)
                method = InfoReg(model.encoders)
                for part, state in zip((model, optimizer, method), states, strict=True):
                    part.load_state_dict(state)
            torch.manual_seed(n)
            method.backward(method.loss(*forward(model, batch)))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
        method.before_epoch(1)
        return model, method.traces

    model, traces = halves(None)
    resumed, theirs = halves(2)
    assert same(model, resumed)
    assert traces == theirs


def test_a_batch_that_lacks_a_modality_compares_nothing():
    model, method = straight()
    method.before_epoch(0)
    inputs, target, index = next(batches())
    del inputs["a"]
    method.backward(method.loss(model(inputs, index), target))
    method.before_step()
    assert [float(value) for value in method.metrics.values()] == [0, 0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"strength": -1.0}, r"InfoReg: 'strength' must be finite and not negative; found -1\.0"),
        ({"strength": math.inf}, r"InfoReg: 'strength' must be finite and not negative; found inf"),
        ({"threshold": math.nan}, r"InfoReg: 'threshold' is a number; found nan"),
        ({"window": 0}, r"InfoReg: 'window' must be at least 1; found 0"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ValueError, match=text):
        InfoReg(net().encoders, **settings)


def test_scores_are_of_samples_that_lack_nothing():
    model, here = net(head="concat").eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = InfoReg(model.encoders)
    method.before_epoch(0)
    found = []
    for batch in ((output, target), rows_of(output, target, here)):
        method.loss(*batch)
        found.append(method._score.take(method))
    torch.testing.assert_close(*found)
