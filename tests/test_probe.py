import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import evenly
from evenly.loaders import shuffled, untouched
from evenly.probe import trained_batchnorms
from many_ranks import on_ranks
from support import NAMES, Merging, Toy, forward, loaders, net, sgd, weights
from unchecked import error_of


def test_every_row_once_in_the_order_of_the_data_set():
    train, val = loaders(count=37)
    features = evenly.Probe(net(), forward, train, val).features("train")
    assert features.index.tolist() == list(range(37))
    assert torch.equal(features.target, train.dataset.target)
    assert not features.sharded


def test_features_are_those_of_evaluation_mode():
    model = net()
    train, val = loaders()
    found = evenly.Probe(model, forward, train, val).features("val")
    expected, _ = forward(model.eval(), next(iter(DataLoader(val.dataset, 18))))
    torch.testing.assert_close(found.features["a"], expected.features["a"])
    assert not found.features["a"].requires_grad


def test_a_look_changes_nothing():
    """Modes of each module, buffers, and every random stream that a pass draws from."""

    class Augmented(Toy):
        def __getitem__(self, i):
            np.random.rand()
            torch.rand(1)
            return super().__getitem__(i)

    model = net().train()
    model.encoders["a"][1].eval()  # a BatchNorm that the user has frozen
    stream = torch.Generator().manual_seed(4)
    train = DataLoader(Augmented(36), 8, shuffle=True, generator=stream)
    own = DataLoader(Augmented(18), sampler=SubsetRandomSampler(range(18), generator=stream))
    probe = evenly.Probe(model, forward, train, own)
    before, modes = weights(model), [module.training for module in model.modules()]
    states = torch.get_rng_state(), stream.get_state(), np.random.get_state()[1]

    probe.features("train")
    probe.features("val")

    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(stream.get_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in weights(model).items())


def test_pythons_own_stream_is_left_too():
    random.seed(1)
    with untouched():
        random.random()
    assert random.random() == random.Random(1).random()


def test_modes_come_back_after_an_error():
    model = net().train()
    probe = evenly.Probe(model, lambda model, batch: 1 / 0, *loaders())
    with pytest.raises(ZeroDivisionError):
        probe.features("train")
    assert all(module.training for module in model.modules())


def test_layers_that_merge_for_evaluation_are_parted_after_a_look():
    encoder = Merging()
    model = nn.ModuleDict({"a": encoder})
    before = encoder.weight.detach().clone()

    def forward(model, batch):
        x = model["a"](batch)
        return evenly.Output(x, {"a": x}), torch.zeros(len(batch)).long()

    probe = evenly.Probe(model, forward, [torch.randn(4, 2)], [torch.randn(4, 2)])
    probe.features("val")
    assert not encoder.merged
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with probe.trained(fused, epochs=1, optimizer=optimizer):
        assert not torch.equal(encoder.weight, before)
    assert not encoder.merged
    torch.testing.assert_close(encoder.weight.detach(), before)


def test_a_sampler_that_picks_rows_is_respected():
    picked = [3, 5, 8]
    train = DataLoader(Toy(36), 2, sampler=SubsetRandomSampler(picked))
    features = evenly.Probe(net(), forward, train, loaders()[1]).features("train")
    assert sorted(features.index.tolist()) == picked


def test_a_row_that_is_drawn_twice_counts_once():
    heavy = DataLoader(Toy(6), 4, sampler=WeightedRandomSampler([1, 0, 0, 0, 0, 1], 20))
    features = evenly.Probe(net(), forward, heavy, loaders()[1]).features("train")
    assert sorted(features.index.tolist()) == [0, 5]


def test_any_iterable_of_batches():
    def without_index(model, batch):
        output, target = forward(model, batch)
        return evenly.Output(output.logits, output.features), target

    batches = list(DataLoader(Toy(10), 4))
    features = evenly.Probe(net(), without_index, batches, batches).features("train")
    assert features.index.tolist() == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_no_difference(workers):
    val = DataLoader(Toy(18, seed=2), 8, num_workers=workers)
    found = evenly.Probe(net(), forward, val, val).features("val")
    expected = evenly.Probe(net(), forward, *loaders()).features("val")
    assert torch.equal(found.features["aa"], expected.features["aa"])


def test_an_empty_loader_is_named():
    with pytest.raises(ValueError, match="the loader of the 'val' split gave no batch"):
        evenly.Probe(net(), forward, [], []).features("val")


def test_an_empty_data_set_is_named():
    empty = DataLoader(Toy(6))
    empty.dataset.target = empty.dataset.target[:0]
    with pytest.raises(ValueError, match="the loader of the 'val' split gave no batch"):
        evenly.Probe(net(), forward, empty, empty).features("val")


def test_a_forward_that_returns_something_else():
    code = (
        "import torch, evenly; "
        "evenly.Probe(torch.nn.Linear(1, 1), lambda m, b: m(b), [torch.ones(2, 1)], [])"
        ".features('train')"
    )
    assert "TypeError: forward(model, batch) returns an evenly.Output and the target" in error_of(
        code
    )


def test_batchnorm_statistics_are_those_of_the_training_split():
    """By hand: the input of the first BatchNorm averaged over batches of the training split."""
    model = net()
    train, val = loaders(count=32)
    evenly.Probe(model, forward, train, val).reestimate_batchnorm([model.encoders["a"]])
    conv, norm = model.encoders["a"][0], model.encoders["a"][1]
    inputs = conv(train.dataset.inputs["a"]).detach()
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2)))
    batches = [part.var((0, 2)) for part in inputs.split(8)]
    torch.testing.assert_close(norm.running_var, torch.stack(batches).mean(0))
    assert norm.momentum == 0.1
    assert norm.training
    other = model.encoders["aa"][1]
    assert torch.equal(other.running_mean, torch.zeros(4))


def test_frozen_batchnorms_keep_their_statistics():
    """As they came with weights, also where kept features mean that they never run."""
    model = net()
    model.encoders["a"].requires_grad_(False)
    evenly.Probe(model, forward, *loaders(count=32)).reestimate_batchnorm(model.encoders.values())
    frozen, trained = model.encoders["a"][1], model.encoders["aa"][1]
    assert torch.equal(frozen.running_mean, torch.zeros(4))
    assert frozen.num_batches_tracked == 0
    assert trained.running_mean.any()


def test_a_batchnorm_without_parameters_is_frozen_with_the_module_around_it():
    def norm(**settings):
        return nn.BatchNorm1d(2, **settings)

    still = nn.Sequential(nn.Linear(2, 2), nn.Sequential(norm(affine=False))).requires_grad_(False)
    whole = nn.Sequential(still, norm(affine=False), norm(), norm().requires_grad_(False))
    assert list(trained_batchnorms(whole)) == [whole[1], whole[2]]
    alone = norm(affine=False)
    assert list(trained_batchnorms(alone)) == [alone]


class TestOf:
    def test_something_else_than_features(self):
        model = net(head="multi")
        probe = evenly.Probe(model, forward, *loaders(count=37))
        found = probe.features(
            "train",
            of=lambda output, target: {**output.unimodal, "target": target.unsqueeze(1)},
        )
        assert set(found.features) == {*NAMES[:2], "target"}
        assert torch.equal(found.features["target"].squeeze(1).long(), found.target)
        expected, _ = forward(model.eval(), next(iter(DataLoader(Toy(37, seed=1), 37))))
        torch.testing.assert_close(found.features["a"], expected.unimodal["a"])
        assert not found.features["a"].requires_grad


class TestFraction:
    def look(self, fraction, seed=0, count=37, **settings):
        probe = evenly.Probe(net(), forward, *loaders(count=count, **settings))
        return probe.features("train", fraction=fraction, seed=seed)

    @pytest.mark.parametrize(
        ("fraction", "rows"), [(1.0, 37), (0.5, 19), (0.25, 10), (0.01, 1), (1e-9, 1)]
    )
    def test_it_draws_that_share_each_row_once(self, fraction, rows):
        found = self.look(fraction)
        assert len(set(found.index.tolist())) == len(found.index) == rows
        assert torch.equal(found.target, Toy(37, seed=1).target[found.index])

    def test_no_row_too_many_by_rounding(self):
        assert 0.07 * 100 > 7
        assert len(self.look(0.07, count=100).index) == 7

    def test_it_is_a_function_of_the_seed_alone(self):
        torch.manual_seed(1)
        one = self.look(0.5).index.tolist()
        torch.manual_seed(2)
        assert self.look(0.5, batch=5).index.tolist() == one
        assert self.look(0.5, seed=1).index.tolist() != one

    def test_the_first_batches_of_any_iterable(self):
        batches = list(DataLoader(Toy(20), 4))
        probe = evenly.Probe(net(), forward, batches, batches)
        assert probe.features("train", fraction=0.5).index.tolist() == list(range(12))

    def test_all_of_an_iterable_that_does_not_know_its_length(self):
        class Stream(IterableDataset):
            def __iter__(self):
                toy = Toy(10)
                return (toy[i] for i in range(10))

        stream = DataLoader(Stream(), 4)
        probe = evenly.Probe(net(), forward, stream, stream)
        assert len(probe.features("train", fraction=0.1).index) == 10

    @pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
    def test_a_share_that_is_none(self, fraction):
        with pytest.raises(ValueError, match=rf"above 0 and at most 1; found {fraction}"):
            self.look(fraction)


class TestSample:
    def test_rows_drawn_once_with_gradients_recorded(self):
        model = net().train()
        model.encoders["a"][1].eval()
        modes = [module.training for module in model.modules()]
        probe = evenly.Probe(model, forward, *loaders())
        output, target = probe.sample("train", 7, seed=3)
        rows = output.index
        assert len(set(rows.tolist())) == 7
        assert torch.equal(target, Toy(36, seed=1).target[rows])
        assert [module.training for module in model.modules()] == modes
        gradients = torch.autograd.grad(output.logits.sum(), list(model.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        # Evaluation mode: no dropout, and BatchNorm by its running statistics.
        expected = probe.features("train").features["a"][rows]
        torch.testing.assert_close(output.features["a"].detach(), expected)

    def test_it_is_a_function_of_the_seed_and_touches_no_stream(self):
        probe = evenly.Probe(net(), forward, *loaders())
        before = torch.get_rng_state()
        one, two, other = (probe.sample("train", 9, seed=seed)[0].index for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_more_than_there_are(self):
        output, _ = evenly.Probe(net(), forward, *loaders()).sample("val", 100)
        assert sorted(output.index.tolist()) == list(range(18))

    def test_the_first_batch_of_any_iterable(self):
        batches = list(DataLoader(Toy(10), 4))
        output, _ = evenly.Probe(net(), forward, batches, batches).sample("train", 3)
        assert output.index.tolist() == [0, 1, 2, 3]

    def test_errors(self):
        with pytest.raises(ValueError, match="the loader of the 'val' split gave no batch"):
            evenly.Probe(net(), forward, [], []).sample("val", 3)
        with pytest.raises(ValueError, match="'count' must be at least 1; found 0"):
            evenly.Probe(net(), forward, *loaders()).sample("val", 0)


def fused(output, target):
    return nn.functional.cross_entropy(output.logits, target)


def straight(seed=0):
    """Without BatchNorm and dropout, which see a rank's own rows only."""
    model = net(seed=seed)
    for encoder in model.encoders.values():
        encoder[1], encoder[3] = nn.Identity(), nn.Identity()
    return model


class TestTrained:
    def test_all_is_as_it_was(self):
        """Weights, buffers, modes, gradients, the optimiser, and every random stream."""

        class Augmented(Toy):
            def __getitem__(self, i):
                np.random.rand()
                torch.rand(1)
                return super().__getitem__(i)

        model = net()
        model.encoders["a"][1].eval()
        optimizer = sgd(model)
        fused(*forward(model, next(iter(loaders()[0])))).backward()
        optimizer.step()
        model.head.linear.weight.grad = None
        stream = torch.Generator().manual_seed(4)
        train = DataLoader(Augmented(36), 8, shuffle=True, generator=stream)
        own = DataLoader(Augmented(18), sampler=SubsetRandomSampler(range(18), generator=stream))

        def found():
            return (
                weights(model),
                [module.training for module in model.modules()],
                copy.deepcopy(optimizer.state_dict()),
                [torch.get_rng_state(), stream.get_state()],
                np.random.get_state()[1].tolist(),  # Python's own is drawn from by beartype
            )

        gradients = {p: p.grad for p in model.parameters()}
        values = {p: None if g is None else g.clone() for p, g in gradients.items()}
        before = found()
        for loader in (train, own):
            probe = evenly.Probe(model, forward, loader, own)
            with probe.trained(fused, epochs=2, optimizer=optimizer):
                assert not torch.equal(
                    weights(model)["head.linear.weight"], before[0]["head.linear.weight"]
                )
                assert model.encoders["aa"][1].num_batches_tracked > 1
                probe.features("train")
            torch.testing.assert_close(found(), before, rtol=0, atol=0)
            for parameter, gradient in gradients.items():
                assert parameter.grad is gradient
                assert gradient is None or torch.equal(gradient, values[parameter])

    @pytest.mark.parametrize("where", ["training", "within"])
    def test_all_is_as_it_was_after_an_error(self, where):
        model = net()
        before = weights(model)
        probe = evenly.Probe(model, forward, *loaders())
        steps = []

        def objective(output, target):
            steps.append(target)
            if where == "training" and len(steps) == 3:
                raise ZeroDivisionError
            return fused(output, target)

        with (
            pytest.raises(ZeroDivisionError),
            probe.trained(objective, epochs=1, optimizer=sgd(model)),
        ):
            raise ZeroDivisionError
        assert len(steps) == (3 if where == "training" else 5)
        assert model.training
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_it_equals_a_plain_loop(self):
        """In the order of the seed, by a new optimiser: the old one's momentum is not used."""
        model, reference = net(), net()
        optimizer = sgd(model)
        fused(*forward(model, next(iter(loaders()[0])))).backward()
        optimizer.step()
        reference.load_state_dict(model.state_dict())
        dataset, order = Toy(36, seed=1), torch.Generator().manual_seed(5)
        theirs = sgd(reference)
        torch.manual_seed(5)  # dropout
        for _ in range(2):
            rows = torch.randperm(36, generator=order).tolist()
            for batch in DataLoader(dataset, 8, sampler=rows):
                theirs.zero_grad()
                fused(*forward(reference, batch)).backward()
                theirs.step()
        torch.manual_seed(99)
        probe = evenly.Probe(model, forward, *loaders())
        with probe.trained(fused, epochs=2, optimizer=optimizer, seed=5):
            ours = weights(model)
        for key, value in weights(reference).items():
            torch.testing.assert_close(ours[key], value)

    def test_a_model_in_evaluation_mode_is_trained_in_training_mode(self):
        model = net().eval()
        probe = evenly.Probe(model, forward, *loaders())
        with probe.trained(fused, epochs=1, optimizer=sgd(model)):
            assert model.encoders["a"][1].num_batches_tracked == 5
        assert not any(module.training for module in model.modules())

    def test_a_batchnorm_kept_in_evaluation_mode_stays_so(self):
        model = net().train()
        model.encoders["a"][1].eval()
        probe = evenly.Probe(model, forward, *loaders())
        with probe.trained(fused, epochs=1, optimizer=sgd(model)):
            assert model.encoders["a"][1].num_batches_tracked == 0
            assert model.encoders["aa"][1].num_batches_tracked == 5

    def test_parameters_outside_of_the_optimiser_stay(self):
        model = net()
        before = weights(model)
        probe = evenly.Probe(model, forward, *loaders())
        with probe.trained(fused, epochs=1, optimizer=sgd(model.head)):
            inside = weights(model)
        same = {key for key, value in inside.items() if torch.equal(before[key], value)}
        assert {"encoders.a.0.weight", "encoders.aa.5.weight"} <= same
        assert "head.linear.weight" not in same
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("count", "drop_last", "batches"), [(33, False, 4), (34, False, 5), (34, True, 4)]
    )
    def test_a_last_batch_that_the_loop_or_batchnorm_cannot_use(self, count, drop_last, batches):
        seen = []

        def objective(output, target):
            seen.append(len(target))
            return fused(output, target)

        model, (train, val) = net(), loaders(count=count)
        train.batch_sampler.drop_last = drop_last
        probe = evenly.Probe(model, forward, train, val)
        with probe.trained(objective, epochs=1, optimizer=sgd(model)):
            pass
        assert len(seen) == batches

    def test_any_iterable_of_batches(self):
        model = net()
        before = weights(model)
        batches = list(DataLoader(Toy(12), 4))
        probe = evenly.Probe(model, forward, batches, batches)
        with probe.trained(fused, epochs=2, optimizer=sgd(model)):
            assert model.encoders["a"][1].num_batches_tracked == 6
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())

    @pytest.mark.parametrize("count", [1, 2, 7, 24])
    def test_ranks_have_equally_many_rows(self, count, monkeypatch):
        monkeypatch.setattr("evenly.distributed.world_size", lambda: 3)
        sizes, seen = [], set()
        for rank in range(3):
            monkeypatch.setattr("evenly.distributed.rank", lambda rank=rank: rank)
            indices = [batch[2] for batch in shuffled(loaders(count=count, batch=5)[0], 1, 0)]
            sizes.append([len(index) for index in indices])
            seen |= set(torch.cat(indices).tolist())
        assert sizes[0] == sizes[1] == sizes[2]
        assert seen == set(range(count))


def shown(probe, objective=fused, **settings):
    """The gradients of each batch, of one weight."""
    weight, found = probe.model.encoders["a"][0].weight, []
    probe.gradients(objective, lambda: found.append(weight.grad.clone()), **settings)
    return found


class TestGradients:
    def test_those_of_each_batch_in_evaluation_mode(self):
        model = net()
        found = shown(evenly.Probe(model, forward, *loaders()))
        model.eval()
        batches = list(DataLoader(Toy(36, seed=1), 8))
        assert len(found) == len(batches)
        for grad, batch in zip(found, batches, strict=True):
            model.zero_grad()
            fused(*forward(model, batch)).backward()
            assert torch.equal(grad, model.encoders["a"][0].weight.grad)

    def test_all_is_as_it_was_also_after_an_error(self):
        model = net()
        fused(*forward(model, next(iter(loaders()[0])))).backward()
        model.head.linear.weight.grad = None
        gradients = {p: p.grad for p in model.parameters()}
        before, stream = weights(model), torch.get_rng_state()
        probe = evenly.Probe(model, forward, *loaders())
        shown(probe)
        with pytest.raises(ZeroDivisionError):
            probe.gradients(fused, lambda: 1 // 0)
        assert all(p.grad is grad for p, grad in gradients.items())
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())
        assert torch.equal(stream, torch.get_rng_state())
        assert model.training


def on_rank(rank, world):
    """What a rank trains, draws and looks at."""
    probe = evenly.Probe(straight(), forward, *loaders(count=40, batch=8 // world))
    found = {"gradients": torch.stack(shown(probe))}
    for count in (40, 37):
        model = straight()
        probe = evenly.Probe(model, forward, *loaders(count=count, batch=8 // world))
        with probe.trained(fused, epochs=2, optimizer=sgd(model), seed=1):
            found[count] = weights(model)

    def partial(output, target):
        """One rank's rows lack a modality."""
        kept = output.unimodal if rank == 1 else {"a": output.unimodal["a"]}
        return sum(nn.functional.cross_entropy(z, target) for z in kept.values())

    model = straight()
    probe = evenly.Probe(model, forward, *loaders(count=40, batch=8 // world))
    criterion = evenly.CrossEntropy(torch.tensor([1.0, 4.0, 16.0]))
    of_classes = {"objective": evenly.Method(criterion=criterion).loss, "criterion": criterion}
    with probe.trained(epochs=2, optimizer=sgd(model), seed=1, **of_classes):
        found["weights"] = weights(model)
    found["weighted gradients"] = torch.stack(shown(probe, **of_classes))

    model = net(head="late")
    probe = evenly.Probe(model, forward, *loaders(count=40, batch=4))
    with probe.trained(partial, epochs=1, optimizer=sgd(model)):
        found["partial"] = weights(model)
    found["sample"] = probe.sample("train", 5, seed=2)[0].index
    found["fraction"] = probe.features("train", fraction=0.3, seed=1)
    return found


@pytest.mark.distributed
def test_two_ranks_train_and_draw_as_one_process_does(tmp_path):
    one, two = on_ranks(on_rank, tmp_path)
    alone = on_rank(0, 1)
    for key in (40, 37, "partial"):  # 'partial': BatchNorm's statistics are averaged, too
        assert all(torch.equal(value, two[key][name]) for name, value in one[key].items())
    for key in (40, "weights"):
        for name, value in alone[key].items():
            torch.testing.assert_close(one[key][name], value, rtol=1e-5, atol=1e-6)
    for key in ("gradients", "weighted gradients"):
        torch.testing.assert_close(one[key], alone[key], rtol=1e-4, atol=1e-7)
        assert torch.equal(one[key], two[key])
    assert torch.equal(one["sample"], two["sample"])
    assert torch.equal(one["sample"], alone["sample"])
    drawn = torch.cat([rank["fraction"].index for rank in (one, two)])
    assert len(drawn) == 12
    assert sorted(drawn.tolist()) == alone["fraction"].index.tolist()


def test_a_trial_runs_at_the_rate_that_the_schedule_is_made_of():
    """At the first step of a warm-up the rate is next to nothing."""

    def learnt(scheduled):
        model = net()
        optimizer = sgd(model)
        if scheduled:
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-9)
        probe = evenly.Probe(model, forward, *loaders())
        objective = evenly.Method().loss
        with probe.trained(objective, epochs=1, optimizer=optimizer):
            return weights(model)

    plain, scheduled = learnt(False), learnt(True)
    assert all(torch.equal(plain[name], scheduled[name]) for name in plain)
