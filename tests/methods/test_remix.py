import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import evenly
from evenly.methods import DataRemixing
from evenly.methods.remix import assignment, chosen, confidence
from support import NAMES, Run, Toy, forward, loaders, net, same, samples, sgd, train


class TestFormulas:
    def test_confidence_by_hand(self):
        p = [0.7, 0.2, 0.1]
        logits = torch.tensor([[math.log(x) for x in p], [0.0] * 3], dtype=torch.float64)
        expected = sum(x * math.log(x / (1 / 3)) for x in p)
        assert confidence(logits).tolist() == pytest.approx([expected, 0.0], abs=1e-6)

    def test_a_sure_prediction_is_finite(self):
        found = confidence(torch.tensor([[1000.0, 0.0, 0.0]]))
        assert found.item() == pytest.approx(math.log(3))

    def test_each_sample_goes_to_its_least_confident_modality(self):
        found = assignment(torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.6], [0.3, 0.4, 0.1]]))
        assert found.tolist() == [1, 0, 2]

    def test_chosen_logits(self):
        z = torch.arange(12.0).view(2, 3, 2)
        assert chosen(z, torch.tensor([1, 0, 1])).tolist() == [[6, 7], [2, 3], [10, 11]]


def made(names=NAMES[:2], epochs=0, **settings):
    model = net(names, head="multi")
    if epochs:
        train(model, evenly.methods.MultiLoss(model.encoders), sgd(model), epochs, names=names)
    loader, val = loaders(names)
    method = DataRemixing(
        model.encoders, sampler=loader.batch_sampler.sampler, **{"warmup": 1, **settings}
    )
    return model, method, evenly.Probe(model, forward, loader, val), loader


def assigned_by_hand(model, data):
    """One sample at a time."""
    model.eval()
    found = []
    for i in range(len(data)):
        output = model({name: x[i : i + 1] for name, x in data.inputs.items()})
        distance = []
        for logits in output.unimodal.values():
            p = logits.softmax(1)[0].tolist()
            distance.append(sum(x * math.log(x * len(p)) for x in p))
        found.append(distance.index(min(distance)))
    return found


class TestOrder:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_every_sample_once_with_its_modality(self, count):
        model, method, probe, loader = made(NAMES[:count], epochs=2)
        method.before_epoch(1, probe)
        expected = assigned_by_hand(model, loader.dataset)
        assert method.assigned.tolist() == expected
        assert method.sampler.pool.tolist() == [i + 36 * (m + 1) for i, m in enumerate(expected)]
        assert len(set(expected)) == count

    def test_batches_are_of_one_modality_but_for_what_is_left_over(self):
        _, method, probe, loader = made(epochs=2)
        method.before_epoch(1, probe)
        kinds = [(method.assigned[index] + 1).unique().tolist() for _, _, index in loader]
        counts = torch.bincount(method.assigned).tolist()
        whole = sum(count // 8 for count in counts)
        assert whole > 1
        assert all(len(kind) == 1 for kind in kinds[:whole])
        assert {kind for (kind,) in kinds[:whole]} == {1, 2}
        assert sum(len(target) for _, target, _ in loader) == 36

    def test_the_batch_size_is_that_of_all_ranks(self):
        model, _, _, loader = made()
        sampler = evenly.Resampler(loader.dataset, 2, 0)
        method = DataRemixing(model.encoders, sampler=sampler, warmup=0)
        loader = torch.utils.data.DataLoader(loader.dataset, 8, sampler=sampler)
        probe = evenly.Probe(model, forward, loader, loader)
        method.before_epoch(0, probe)
        assert sampler.batch_size == 16

    def test_the_batch_size_is_that_of_all_ranks_if_the_loop_shares_out_the_batches(
        self, monkeypatch
    ):
        _, method, probe, _ = made()
        assert method.sampler.num_replicas == 1
        monkeypatch.setattr("evenly.distributed.world_size", lambda: 2)
        assert method._global_batch_size(probe) == 16

    def test_a_loader_that_does_not_tell_its_batch_size(self):
        model, method, _, loader = made()
        method.before_epoch(1, evenly.Probe(model, forward, list(loader), list(loader)))
        assert method.sampler.batch_size is None
        assert len(method.sampler.pool) == 36

    def test_the_warm_up_is_in_the_common_order(self):
        _, method, probe, _ = made()
        method.sampler.pool, method.sampler.batch_size = torch.arange(3), 4  # of a run before
        method.before_epoch(0, probe)
        assert method.sampler.pool is None
        assert method.sampler.batch_size is None
        default = DataRemixing(net().encoders, sampler=method.sampler)
        assert [default.is_due(epoch) for epoch in (9, 10)] == [False, True]

    def test_the_sampler_of_a_resumed_run_has_the_order(self):
        _, method, probe, _ = made(epochs=2)
        method.before_epoch(1, probe)
        _, fresh, _, _ = made()
        fresh.load_state_dict(method.state_dict())
        assert list(fresh.sampler) == list(method.sampler)
        assert fresh.sampler.batch_size == 8

    def test_shares_are_told(self):
        _, method, probe, _ = made(epochs=2)
        method.before_epoch(1, probe)
        share = torch.bincount(method.assigned, minlength=2) / 36
        assert [float(method.metrics[f"share/{n}"]) for n in NAMES[:2]] == share.tolist()


def batch(model):
    """Six samples in double precision, without dropout."""
    inputs, target, index = next(iter(DataLoader(Toy(6), 6)))
    model.eval().double()
    return {name: x.double() for name, x in inputs.items()}, target, index


def assert_same_step(model, loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    mine, theirs = (
        torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for value in (loss, expected)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def stand_in(method, assigned):
    """What a look would have found of the 36 samples of the training split."""
    method.samples, method.assigned = samples(36), assigned


class TestLoss:
    def test_golden_warm_up(self):
        model, method, probe, _ = made(alpha=0.3)
        method.before_epoch(0, probe)
        inputs, target, index = batch(model)
        output = model(inputs, index)
        ce = nn.functional.cross_entropy
        expected = ce(output.logits, target) + 0.3 * sum(
            ce(logits, target) for logits in output.unimodal.values()
        )
        assert_same_step(model, method.loss(output, target), expected)

    def test_golden_remixed(self):
        """Each sample by itself, with the other modality's feature at zero."""
        model, method, probe, _ = made(gamma=0.7)
        method.before_epoch(0, probe)
        inputs, target, index = batch(model)
        modality = [0, 1, 1, 0, 1, 0]
        stand_in(method, torch.tensor(modality + [0] * 30))
        expected = torch.zeros((), dtype=torch.float64)
        for i, m in enumerate(modality):
            feature = [model.encoders[name](inputs[name][i : i + 1]) for name in NAMES[:2]]
            row = torch.cat([feature[n] * (n == m) for n in (0, 1)], dim=1)
            own = model.head.heads[NAMES[m]](feature[m])
            for weight, logits in ((1.0, model.head.linear(row)), (0.7, own)):
                loss = nn.functional.cross_entropy(logits, target[i : i + 1])
                expected = expected + weight * loss / 6
        assert_same_step(model, method.loss(model(inputs, index), target), expected)

    def test_a_batch_of_one_modality_trains_nothing_of_the_others(self):
        model, method, _, _ = made()
        inputs, target, index = batch(model)
        stand_in(method, torch.ones(36, dtype=torch.int64))
        method.loss(model(inputs, index), target).backward()
        for part in (model.encoders["a"], model.head.heads["a"]):
            assert all((p.grad == 0).all() for p in part.parameters())
        assert (model.head.linear.weight.grad[:, :6] == 0).all()
        assert (model.head.linear.weight.grad[:, 6:] != 0).any()

    def test_a_validations_positions_are_not_read(self):
        model, method, _, _ = made(alpha=0.0)
        inputs, target, index = batch(model)
        stand_in(method, torch.ones(36, dtype=torch.int64))
        output = model(inputs, index)
        with torch.no_grad():
            found = method.loss(output, target)
        assert torch.equal(found, nn.functional.cross_entropy(output.logits, target))


def test_the_warm_up_is_multi_loss_bit_for_bit():
    warm = Run("remix", warmup=5, alpha=0.5).train(3).model
    assert same(warm, Run("multi_loss", weight=0.5).train(3).model)


@pytest.mark.parametrize("name", ["warmup", "alpha", "gamma"])
def test_settings_out_of_range(name):
    sampler = evenly.Resampler(Toy(3), 1, 0)
    with pytest.raises(ValueError, match=rf"DataRemixing: '{name}' must be not negative; found -1"):
        DataRemixing(net().encoders, sampler=sampler, **{name: -1 if name == "warmup" else -1.0})


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"warmup": 0}])
def test_logits_that_nothing_trains_are_refused(settings):
    sampler = evenly.Resampler(Toy(3), 1, 0)
    with pytest.raises(ValueError, match=r"DataRemixing: 'gamma' is 0 .* so nothing trains"):
        DataRemixing(net().encoders, sampler=sampler, gamma=0.0, **settings)
    DataRemixing(net().encoders, sampler=sampler, gamma=0.0)


def test_a_loader_that_draws_from_another_sampler_is_refused():
    run = Run("remix")
    run.method.sampler = evenly.Resampler(run.train_loader.dataset, 1, 0)
    with pytest.raises(ValueError, match="the training loader does not draw from its sampler"):
        run.train(1)
