import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import evenly
from evenly.methods.di_mml import DIMML, effective, transfer
from evenly.nn import LateFusion
from evenly.nn.heads import CertaintyHead
from many_ranks import on_ranks
from support import NAMES, Run, batch_of, forward, lacking, loaders, net, rows_of


class TestHead:
    def test_the_prediction_by_hand(self):
        head = CertaintyHead({"a": 4, "b": 4}, 3).double()
        a, b = torch.randn(2, 5, 4, dtype=torch.float64)
        logits, unimodal = head({"a": a, "b": b})
        z = [head.heads["a"](a), head.heads["b"](b), head.linear(torch.cat([a, b], 1))]
        for i in range(5):
            certainty = [math.exp(float(x.detach()[i].softmax(0).max())) for x in z]
            expected = sum(w / sum(certainty) * x[i] for w, x in zip(certainty, z, strict=True))
            torch.testing.assert_close(logits[i], expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(unimodal["b"], z[1])

    def test_the_layer_on_all_features_is_detached_and_that_in_common_is_not(self):
        head = CertaintyHead({"a": 4, "b": 4}, 3)
        features = {name: torch.randn(5, 4, requires_grad=True) for name in ("a", "b")}
        head.joined(features).sum().backward()
        assert all(x.grad is None for x in features.values())
        sum(z.sum() for z in head.aligned(features).values()).backward()
        assert all(x.grad is not None for x in features.values())

    def test_a_missing_modality_has_no_say(self):
        head = CertaintyHead({"a": 4, "b": 4}, 3)
        logits, unimodal = head({"b": torch.randn(5, 4)})
        assert logits.shape == (5, 3)
        assert set(unimodal) == {"b"}

    def test_unequal_widths(self):
        with pytest.raises(ValueError, match=r"one width; found \{'a': 4, 'b': 5\}\."):
            CertaintyHead({"a": 4, "b": 5}, 3)


def effective_slowly(x, y):
    """In plain loops."""
    right = []
    for d in range(x.shape[1]):
        centres = {int(c): float(x[y == c, d].mean()) for c in y.unique()}
        nearest = [min(centres, key=lambda c: abs(float(v) - centres[c])) for v in x[:, d]]
        right.append(sum(c == int(t) for c, t in zip(nearest, y, strict=True)))
    return [r > sum(right) / len(right) for r in right]


def split():
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 5
    y[y == 3] = 4  # class 3 is absent
    clear = y[:, None] * torch.tensor([0.0, 2.0, 0.1, 1.0, 0.0, 5.0])
    return clear + torch.randn(40, 6, generator=stream), y


def effective_on(rank, world):
    x, y = split()
    mine = slice(0, 25) if rank == 0 else slice(25, 40)
    return effective(x[mine], y[mine], sharded=True)


class TestEffective:
    def test_against_plain_loops(self):
        x, y = split()
        found = effective(x, y).tolist()
        assert found == effective_slowly(x.double(), y)
        assert True in found
        assert False in found

    def test_equal_dimensions_are_not_effective(self):
        x, y = split()
        assert not effective(x[:, :1].repeat(1, 3), y).any()

    def test_a_sample_that_float16_cannot_hold_is_left_out(self):
        x, y = split()
        rows = torch.arange(40) != 8
        expected = effective(x[rows], y[rows])
        x[8, 1] = torch.inf  # in a dimension that tells its class, the most frequent one, apart
        assert torch.equal(effective(x, y), expected)
        assert expected[1]

    @pytest.mark.distributed
    def test_the_same_on_several_ranks(self, tmp_path):
        for found in on_ranks(effective_on, tmp_path):
            assert torch.equal(found, effective(*split()))


class TestTransfer:
    def test_against_plain_loops(self):
        learner, guide = torch.randn(2, 4, 3, dtype=torch.float64)
        dimensions = torch.tensor([True, False, True])
        total = 0.0
        for i in range(4):
            s = [sum(float(learner[i, d] * guide[j, d]) for d in (0, 2)) / 5.0 for j in range(4)]
            total -= math.log(math.exp(s[i]) / sum(math.exp(x) for x in s)) / 4
        found = transfer(learner, guide, dimensions, 5.0)
        assert float(found) == pytest.approx(total, rel=1e-12)

    def test_only_the_learner_learns_and_only_on_the_dimensions(self):
        learner, guide = torch.randn(4, 3).requires_grad_(), torch.randn(4, 3).requires_grad_()
        transfer(learner, guide, torch.tensor([True, False, True]), 1.0).backward()
        assert guide.grad is None
        assert learner.grad[:, [0, 2]].all()
        assert not learner.grad[:, 1].any()


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_loss(names):
    model = net(names, head="certainty").double().eval()
    output, target = batch_of(model)
    method = DIMML(model.encoders, head=model.head, align=0.5, temperature=2.0)
    method.effective = {name: torch.randn(6) > 0 for name in names}
    cross_entropy, f = nn.functional.cross_entropy, output.features
    expected = cross_entropy(model.head.linear(torch.cat(list(f.values()), 1)), target)
    for m in names:
        expected = expected + cross_entropy(model.head.heads[m](f[m]), target)
        expected = expected + 0.5 * cross_entropy(model.head.shared(f[m]), target)
        for j in names:
            if j != m:
                there = method.effective[j] & ~method.effective[m]
                s = f[m][:, there] @ f[j][:, there].T / 2
                expected = expected + cross_entropy(s, torch.arange(24))
    torch.testing.assert_close(method.loss(output, target), expected, rtol=1e-12, atol=0)


def test_encoders_learn_apart_before_the_transfer():
    """No encoder's gradient changes with what another modality shows."""

    def gradient(noise):
        model = net(head="certainty").eval()
        inputs, target, index = next(iter(loaders()[0]))
        inputs["aa"] = inputs["aa"] + noise
        method = DIMML(model.encoders, head=model.head)
        method.before_epoch(0)
        method.loss(*forward(model, (inputs, target, index))).backward()
        return [p.grad for p in model.encoders["a"].parameters()]

    for one, other in zip(gradient(0.0), gradient(3.0), strict=True):
        assert torch.equal(one, other)


def test_effective_dimensions_are_found_once_before_the_start():
    run = Run("di_mml", start=1)
    run.method.before_epoch(0)
    assert run.method.effective == {}
    run.method.before_epoch(1, run.probe)
    found = run.probe.features("train")
    for name, there in run.method.effective.items():
        assert torch.equal(there, effective(found.features[name], found.target))
    run.method.before_epoch(2)  # asks for no probe again


def test_modalities_without_an_encoder_stay_in_the_joined_features():
    """And have no losses of their own."""
    names = NAMES[:3]
    model = net(names, head="certainty").eval()
    output, target = batch_of(model)
    method = DIMML({name: model.encoders[name] for name in names[:2]}, head=model.head)
    found, f = method.loss(output, target), output.features
    layers = [(model.head.linear, torch.cat(list(f.values()), 1))]
    for name in names[:2]:
        layers += [(model.head.heads[name], f[name]), (model.head.shared, f[name])]
    expected = sum(nn.functional.cross_entropy(layer(x), target) for layer, x in layers)
    torch.testing.assert_close(found, expected)


def test_a_validation_leaves_the_metrics():
    model = net(head="certainty").eval()
    output, target = batch_of(model)
    method = DIMML(model.encoders, head=model.head)
    method.effective = {"a": torch.arange(6) < 3, "aa": torch.arange(6) > 1}
    method.loss(output, target)
    before = dict(method.metrics)
    assert set(before) == {"transfer/a/aa", "transfer/aa/a"}
    with torch.no_grad():
        method.loss(*batch_of(model.train()))
    assert method.metrics == before


def test_loaded_dimensions_move_to_the_device_once():
    model = net(head="certainty").to("meta")
    method = DIMML(model.encoders, head=model.head)
    method.effective = {"a": torch.arange(6) < 3, "aa": torch.arange(6) > 1}
    features = {name: torch.randn(4, 6, device="meta") for name in ("a", "aa")}
    logits, unimodal = model.head(features)
    target = torch.zeros(4, dtype=torch.int64, device="meta")
    method.loss(evenly.Output(logits, features, unimodal), target)
    assert all(there.device.type == "meta" for there in method.effective.values())


def test_one_modality_has_no_one_to_learn_from():
    assert Run("di_mml", names=("a",)).train(3).method.effective == {}


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"align": 0.0}, r"DIMML: 'align' must be finite and above 0; found 0\.0\."),
            ({"align": math.inf}, r"DIMML: 'align' must be finite and above 0; found inf\."),
            (
                {"temperature": -1.0},
                r"DIMML: 'temperature' must be finite and above 0; found -1\.0\.",
            ),
            ({"start": -1}, r"DIMML: 'start' must be not negative; found -1\."),
        ],
    )
    def test_settings(self, settings, text):
        model = net(head="certainty")
        with pytest.raises(ValueError, match=text):
            DIMML(model.encoders, head=model.head, **settings)

    def test_another_head(self):
        model = net()
        text = r"found ConcatHead\. Build the model with the head 'certainty'\."
        with pytest.raises(ValueError, match=text):
            DIMML(model.encoders, head=model.head)


def test_only_samples_that_have_both_take_part_in_a_transfer():
    model, here = net(head="certainty").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = DIMML(model.encoders, head=model.head, temperature=2.0)
    method.before_epoch(0)
    without = method.loss(output, target)
    method.effective = {"a": torch.arange(6) < 3, "aa": torch.arange(6) > 1}
    found = method.loss(output, target) - without
    a, aa = (output.features[name][here] for name in ("a", "aa"))
    expected = transfer(a, aa, torch.arange(6) > 2, 2.0) + transfer(aa, a, torch.arange(6) < 2, 2.0)
    torch.testing.assert_close(found, 16 / 24 * expected)


def test_the_layer_in_common_learns_nothing_of_samples_that_lack_the_modality():
    model, here = net(head="certainty").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here, "aa": here})
    method = DIMML(model.encoders, head=model.head)
    method.before_epoch(0)
    bias = model.head.shared.bias
    (found,) = torch.autograd.grad(method.loss(output, target), bias, retain_graph=True)
    (part,) = torch.autograd.grad(method.loss(*rows_of(output, target, here)), bias)
    torch.testing.assert_close(found, 16 / 24 * part)


def test_dimensions_are_effective_by_the_samples_that_have_the_modality():
    run = Run("di_mml", head="certainty")
    here = torch.arange(36) % 8 > 5

    def seen(model, batch):
        inputs, target, index = batch
        output = LateFusion.forward(model, inputs, {"a": here[index]})
        return replace(output, index=index), target

    run.seen_by(seen).method.before_epoch(1, run.probe)
    found = run.probe.features("train")
    expected = effective(found.features["a"][here], found.target[here])
    assert torch.equal(run.method.effective["a"], expected)
    assert not torch.equal(expected, effective(found.features["a"], found.target))
