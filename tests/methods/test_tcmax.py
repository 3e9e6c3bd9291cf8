import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from evenly import Output
from evenly.chance import stream
from evenly.methods.tcmax import TCMax, partition, sampled_partition
from support import NAMES, Run, batch_of, forward, lacking, loaders, net, same


class TestFormulas:
    def test_partition_by_hand(self):
        """Samples with exp f of 1 and 3, 2 and 4 for the one class: the mean of 2, 4, 6 and 12."""
        parts = [torch.tensor([[1.0], [3.0]]).log(), torch.tensor([[2.0], [4.0]]).log()]
        assert float(partition(parts)) == pytest.approx(math.log((2 + 4 + 6 + 12) / 4))

    def test_partition_adds_up_classes(self):
        parts = [torch.tensor([[1.0, 5.0]]).log(), torch.tensor([[2.0, 3.0]]).log()]
        assert float(partition(parts)) == pytest.approx(math.log(2 + 15))

    def test_sampled_partition_by_hand(self):
        logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log()
        assert float(sampled_partition(logits)) == pytest.approx(math.log(10 / 2))

    def test_large_logits_do_not_overflow(self):
        parts = [torch.full((3, 2), 500.0), torch.full((3, 2), 500.0)]
        assert float(partition(parts)) == pytest.approx(1000 + math.log(2))


def golden(logits_of, output, target, pairings):
    """-mean_i log(exp z_i[y_i] / mean of Σ_c exp over pairings), in plain loops."""
    total = sum(float(z.exp()) for rows in pairings for z in logits_of(rows)) / len(pairings)
    losses = [
        -math.log(math.exp(float(z[y])) / total)
        for z, y in zip(output.logits.detach(), target, strict=True)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_loss_is_over_all_pairings(names):
    model = net(names).double().eval()
    output, target = batch_of(model, count=6)

    def logits_of(rows):
        features = [x[row] for x, row in zip(output.features.values(), rows, strict=True)]
        return model.head.linear(torch.cat(features)).detach()

    expected = golden(logits_of, output, target, list(product(range(6), repeat=len(names))))
    found = TCMax(model.encoders).loss(output, target)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_golden_gradient_is_that_of_all_pairings():
    model = net().double().eval()
    output, target = batch_of(model, count=6)
    a, b = output.features.values()
    grid = model.head.linear(
        torch.cat([a.repeat_interleave(6, 0), b.repeat(6, 1)], 1)  # row 6 i + j is (i, j)
    )
    true = output.logits.gather(1, target[:, None]).mean()
    expected = torch.autograd.grad(grid.exp().sum().log() - true, (a, b), retain_graph=True)
    found = torch.autograd.grad(TCMax(model.encoders).loss(output, target), (a, b))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("pairs", "drawn"), [(12, 12), (7, 12)])
def test_golden_loss_of_drawn_pairings(pairs, drawn):
    """With a head whose logits are no sum; as many as fill the batch once more."""
    model = net(head="gated").double().eval()
    output, target = batch_of(model, count=6)
    method = TCMax(model.encoders, pairs=pairs, seed=4)
    method.steps = 3
    rows = torch.randint(6, (3, drawn), generator=stream(torch.device("cpu"), 4, 3))[1:]

    def logits_of(pair):
        features = {
            name: x[row : row + 1]
            for (name, x), row in zip(output.features.items(), pair, strict=True)
        }
        return model.head(features)[0][0].detach()

    expected = golden(logits_of, output, target, rows.T.tolist())
    found = method.loss(output, target)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_pairings_that_are_drawn_come_near_all_of_them():
    model = net().double().eval()
    output, target = batch_of(model, count=24)
    every = TCMax(model.encoders).loss(output, target)
    some = TCMax(model.encoders, pairs=24 * 400).loss(output, target)
    assert float(some.detach()) == pytest.approx(float(every.detach()), abs=0.01)


def test_each_step_draws_anew_and_a_look_does_not():
    model = net().double().eval()
    output, target = batch_of(model, count=6)
    method = TCMax(model.encoders, pairs=12)
    first, again = method.loss(output, target), method.loss(output, target)
    method.before_step()
    assert torch.equal(first, again)
    assert not torch.equal(first, method.loss(output, target))


def test_of_one_sample_it_is_the_cross_entropy():
    model = net().double().eval()
    output, target = batch_of(model, count=1)
    expected = nn.functional.cross_entropy(output.logits, target)
    torch.testing.assert_close(TCMax(model.encoders).loss(output, target), expected)


def test_one_modality_is_trained_jointly():
    one, joint = Run("tcmax", names=("a",)).train(2), Run("joint", names=("a",)).train(2)
    assert same(one.model, joint.model)


def test_what_no_encoder_gives_is_paired_as_one_part():
    names = NAMES[:3]
    model = net(names).double().eval()
    output, target = batch_of(model, count=6)
    method = TCMax({name: model.encoders[name] for name in names[:2]})
    z = list(output.unimodal.values())
    sums = [x + y + w for x, y, w in product(*z)]
    expected = torch.stack(sums).exp().sum(1).mean().log()
    true = output.logits.gather(1, target[:, None]).mean()
    torch.testing.assert_close(method.loss(output, target), expected - true)


def test_a_first_batch_that_lacks_a_modality_is_no_reason_to_refuse():
    """Its logits are no sum, as the missing one's share of the bias is in no other's."""
    model = net(NAMES[:3]).double().eval()
    with torch.no_grad():
        model.head.linear.bias.fill_(3.0).mul_(torch.tensor([1.0, 2.0, 3.0]))
    output, target = batch_of(model, count=6)
    features = {name: output.features[name] for name in ("aa", "b")}
    logits, unimodal = model.head(features)
    found = TCMax(model.encoders).loss(Output(logits, features, unimodal), target)
    z = [sum(pair) + model.head.linear.bias / 3 for pair in product(*unimodal.values())]
    expected = torch.stack(z).exp().sum(1).mean().log()
    true = logits.gather(1, target[:, None]).mean()
    torch.testing.assert_close(found, expected - true)


class TestMessages:
    def test_settings(self):
        with pytest.raises(ValueError, match="TCMax: 'pairs' must be not negative; found -1"):
            TCMax(net().encoders, pairs=-1)

    def test_logits_that_are_no_sum(self):
        model = net(head="late").eval()
        output, target = forward(model, next(iter(loaders()[0])))
        text = r"TCMax takes .*`Output\.unimodal` does not add up .*or pass pairs=1024"
        with pytest.raises(ValueError, match=text):
            TCMax(model.encoders).loss(output, target)

    @pytest.mark.parametrize("count", [0, 1, 7, 8])
    def test_samples_that_have_all_tell_whether_masks_are_there_or_not(self, count):
        """Masks of a batch that lacks nothing, too; where all lack something, nothing tells."""
        model = net(head="late").eval()
        output, target = lacking(model, {"a": torch.arange(8) < count}, count=8)
        method = TCMax(model.encoders)
        if count == 0:
            method.loss(output, target)
            return
        with pytest.raises(ValueError, match="does not add up"):
            method.loss(output, target)
        output, target = lacking(model, {}, count=8)
        with pytest.raises(ValueError, match="does not add up"):
            method.loss(output, target)


def test_a_sample_is_paired_in_what_it_has():
    model, here = net().double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    w, v = model.head.linear.weight.detach().split(6, dim=1)
    a, aa = (x.detach() for x in output.features.values())
    excess = 0.0
    for has in (True, False):
        pairs = list(product(here.nonzero().flatten().tolist() if has else [None], range(24)))
        logits = torch.stack(
            [v @ aa[k] + (0 if j is None else w @ a[j]) + model.head.linear.bias for j, k in pairs]
        )
        excess += (16 if has else 8) / 24 * float(sampled_partition(logits.detach()))
    excess -= float(output.logits.logsumexp(1).mean().detach())
    method = TCMax(model.encoders)
    method.loss(output, target)
    assert float(method.metrics["excess"]) == pytest.approx(excess, rel=1e-10)


def test_pairings_are_drawn_among_those_that_have_the_modality():
    model, here = net(head="gated").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method, seen = TCMax(model.encoders, pairs=96), {}

    def fuse(features):
        seen.update(features)
        return output.fuse(features)

    method.loss(replace(output, fuse=fuse), target)
    assert len(seen["a"]) == 96
    assert seen["a"].any(1).all()
    parts = output.fuse(seen).detach().unflatten(0, (4, 24))
    expected = sum(
        rows.sum() / 24 * sampled_partition(parts[:, rows].flatten(0, 1)) for rows in (here, ~here)
    )
    expected = expected - output.logits.logsumexp(1).mean().detach()
    torch.testing.assert_close(method.metrics["excess"], expected)
