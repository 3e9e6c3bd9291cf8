import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

import evenly
from evenly.probe import _frozen_randomness
from support import Toy, forward, loaders, net, weights
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
    with _frozen_randomness():
        random.random()
    assert random.random() == random.Random(1).random()


def test_modes_come_back_after_an_error():
    model = net().train()
    probe = evenly.Probe(model, lambda model, batch: 1 / 0, *loaders())
    with pytest.raises(ZeroDivisionError):
        probe.features("train")
    assert all(module.training for module in model.modules())


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
