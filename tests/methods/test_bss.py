import math

import pytest
import torch
from torch import nn

import evenly
from evenly import chance
from evenly.methods import BSS
from evenly.methods.bss import difficulty, drawn, reached, scaled, similarity, weights
from support import NAMES, Run, forward, loaders, net, same
from support import weights as weights_of


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestFormulas:
    def test_similarity_by_hand(self):
        """Of p = (¾, ¼) and (¼, ¾) the cosine is .6; of three, the mean over pairs."""
        one, other = t(3.0, 1.0).log(), t(1.0, 3.0).log()
        assert similarity(torch.stack([one, other])[:, None]).tolist() == pytest.approx([0.6])
        assert similarity(torch.stack([one, one])[:, None]).tolist() == pytest.approx([1.0])
        found = similarity(torch.stack([one, one, other])[:, None])
        assert found.tolist() == pytest.approx([(1.0 + 0.6 + 0.6) / 3])

    def test_scaled_by_hand(self):
        assert scaled(t(2.0, 6.0, 3.0)).tolist() == [0.0, 1.0, 0.25]
        assert scaled(t(2.0, 2.0)).tolist() == [0.0, 0.0]

    def test_difficulty_and_weights_by_hand(self):
        found = difficulty(t(0.2, 1.0, 0.6), t(5.0, 1.0, 2.0))
        assert found.tolist() == pytest.approx([2.0, 0.0, 0.75])
        assert weights(found).tolist() == pytest.approx([0.01, 2.01, 1.26])

    def test_the_share_that_is_reached_by_hand(self):
        assert reached(0, 0.1, 40) == pytest.approx(math.sqrt(0.99 / 40 + 0.01))
        assert reached(19, 0.1, 40) == pytest.approx(math.sqrt(0.505))
        assert reached(39, 0.1, 40) == reached(99, 0.1, 40) == reached(99, 0.59, 100) == 1

    def test_an_order_is_drawn_in_proportion_to_the_weights(self):
        """The first is i with probability w_i / Σ w, the second j with w_j / (Σ w - w_i)."""
        weight, count = t(0.2, 1.0, 2.0), 4_000
        uniform = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
        orders = [tuple(drawn(weight, u.double()).tolist()) for u in uniform]
        for i, j, k in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            p = weight[i] / 3.2 * weight[j] / (3.2 - weight[i])
            assert orders.count((i, j, k)) / count == pytest.approx(float(p), abs=0.03)


def made(pace, names=NAMES[:2], **settings):
    run = Run("bss", names, pace=pace, **settings)
    return run, run.train_loader.dataset, run.train_loader.batch_sampler.sampler


@torch.no_grad()
def scores_by_hand(model, data):
    """One sample at a time: the cosine of the predictions, and the loss."""
    model.eval()
    alike, losses = [], []
    for i in range(len(data)):
        features = {name: model.encoders[name](x[i : i + 1]) for name, x in data.inputs.items()}
        own = [model.head.heads[name](f)[0] for name, f in features.items()]
        p = [z.softmax(0) for z in own]
        pairs = [(k, m) for m in range(len(p)) for k in range(m)]
        cos = [float(p[k] @ p[m] / (p[k].norm() * p[m].norm())) for k, m in pairs]
        alike.append(sum(cos) / len(cos))
        joint = model.head.linear(torch.cat(list(features.values()), 1))[0]
        ce = [-float(z.log_softmax(0)[data.target[i]]) for z in (joint, *own)]
        losses.append(0.1 * ce[0] + 0.9 * sum(ce[1:]))
    return alike, losses


def by_hand(model, data):
    alike, losses = scores_by_hand(model, data)
    return [
        1 - (a - min(alike)) / (max(alike) - min(alike))
        + (loss - min(losses)) / (max(losses) - min(losses))
        for a, loss in zip(alike, losses, strict=True)
    ]  # fmt: skip


class TestCurriculum:
    @pytest.mark.parametrize("count", [2, 3])
    def test_an_epoch_draws_from_the_easiest_share(self, count):
        run, data, sampler = made("curriculum", NAMES[:count], grow=5)
        hard = by_hand(run.model, data)
        easiest = sorted(range(36), key=hard.__getitem__)
        for epoch in range(6):
            sampler.set_epoch(epoch)
            run.method.before_epoch(epoch, run.probe)
            share = int(36 * min(1, math.sqrt(0.99 * (epoch + 1) / 5 + 0.01)))
            found = list(sampler)
            assert len(found) == 36
            assert set(found) == set(easiest[:share])
            assert found[:share] != easiest[:share]
            run.train(epoch + 1, start=epoch)  # other weights, of which it takes no note
        assert sampler.pool is None

    def test_when_it_is_due(self):
        method = made("curriculum", grow=4)[0].method
        assert [method.is_due(epoch) for epoch in range(5)] == [True, True, True, False, False]


class TestSelfPaced:
    def test_easy_samples_tend_to_come_first(self):
        run, data, sampler = made("self_paced")
        run.train(1)
        hard = torch.tensor(by_hand(run.model, data))
        place = torch.zeros(36)
        for epoch in range(1, 20):
            run.method.before_epoch(epoch, run.probe)
            place[list(sampler)] += torch.arange(36.0)
        assert torch.corrcoef(torch.stack([place, hard]))[0, 1] > 0.5


def test_golden_training():
    """Self-paced, in float64: orders drawn by hand, and a loss of the parts of the prediction."""
    model, slow = (net(head="total").double().eval() for _ in range(2))
    train, val = loaders()
    data = train.dataset
    data.inputs = {name: x.double() for name, x in data.inputs.items()}
    sampler, ce = train.batch_sampler.sampler, nn.functional.cross_entropy
    method = BSS(model.encoders, sampler=sampler, seed=5)
    optimizer, plain = (torch.optim.SGD(one.parameters(), 0.2) for one in (model, slow))
    probe = evenly.Probe(model, forward, train, val)
    for epoch in range(3):
        uniform = chance.uniform(torch.arange(36), 5, epoch).double().tolist()
        hard = by_hand(slow, data)
        time = [-math.log(1 - u) / (2.01 - h) for u, h in zip(uniform, hard, strict=True)]
        rows = torch.tensor(sorted(range(36), key=time.__getitem__)).split(8)
        method.before_epoch(epoch, probe)
        for batch, mine in zip(train, rows, strict=True):
            assert batch[2].tolist() == mine.tolist()
            method.backward(method.loss(*forward(model, batch)))
            method.before_step()
            features = {name: slow.encoders[name](x[mine]) for name, x in data.inputs.items()}
            own = {name: slow.head.heads[name](f) for name, f in features.items()}
            z = slow.head.linear(torch.cat(list(features.values()), 1))
            loss = 0.1 * ce(z, data.target[mine])
            (loss + 0.9 * sum(ce(x, data.target[mine]) for x in own.values())).backward()
            for one in (optimizer, plain):
                one.step()
                one.zero_grad()
        for key, value in weights_of(slow).items():
            torch.testing.assert_close(weights_of(model)[key], value, rtol=1e-8, atol=1e-10)


def test_the_prediction_is_the_sum_of_all():
    model = net(head="total")
    output, _ = forward(model, next(iter(loaders()[0])))
    z = model.head.linear(torch.cat(list(output.features.values()), 1))
    torch.testing.assert_close(output.logits, z + output.unimodal["a"] + output.unimodal["aa"])


def test_the_fused_layers_logits_are_told_in_bfloat16_too():
    run = Run("bss")
    inputs, target, index = next(iter(run.train_loader))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = forward(run.model.eval(), (inputs, target, index))
        z = run.model.head.linear(torch.cat(list(output.features.values()), 1))
    assert z.dtype == torch.bfloat16
    torch.testing.assert_close(run.method._joint(output), z.float(), rtol=1e-5, atol=1e-6)


def test_a_resumed_epoch_keeps_its_order():
    for pace in ("self_paced", "curriculum"):
        run, _, sampler = made(pace)
        run.train(1)
        fresh, _, other = made(pace, seed=7)
        fresh.method.load_state_dict(run.method.state_dict())
        assert list(other) == list(sampler)
        fresh.method.before_epoch(0, fresh.probe)
        assert list(other) == list(sampler)


def test_one_modality_is_trained_jointly():
    run, joint = Run("bss", names=("a",)), Run("joint", names=("a",), head="total")
    assert same(run.train(2).model, joint.train(2).model)


def test_a_loader_that_draws_from_another_sampler():
    run = Run("bss")
    probe = evenly.Probe(run.model, forward, *loaders())
    with pytest.raises(ValueError, match="BSS writes the order of the samples, but"):
        run.method.before_epoch(0, probe)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fused": -1.0}, r"BSS: 'fused' must be finite and not negative; found -1\.0"),
        ({"unimodal": math.nan}, "BSS: 'unimodal' must be finite and not negative; found nan"),
        ({"start": 1.5}, r"BSS: 'start' must be from 0 to 1; found 1\.5"),
        ({"grow": 0}, "BSS: 'grow' must be at least 1; found 0"),
    ],
)
def test_messages(settings, text):
    with pytest.raises(ValueError, match=text):
        BSS(net().encoders, sampler=loaders()[0].batch_sampler.sampler, **settings)
