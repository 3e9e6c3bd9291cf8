"""Tests of samples that are found again, however `Output.index` numbers them."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Subset, default_collate

import evenly
from evenly.numbering import rows, samples
from support import Run, Toy, forward, loaders, make, same

FOLLOWING = ("umt", "g2d", "smv", "remix", "qmf", "bss")


def found(number):
    every = torch.arange(len(number))
    features = {"a": every.float().unsqueeze(1)}
    return evenly.Features(features, every % 2, every, number=torch.tensor(number))


class TestSamples:
    def test_in_the_order_of_their_numbers(self):
        known, values = samples(found([7, -3, 2**40]), "X")
        assert known["number"].tolist() == [-3, 7, 2**40]
        assert known["position"].tolist() == [1, 0, 2]
        assert known["target"].tolist() == [1, 0, 0]
        assert values["a"].flatten().tolist() == [1, 0, 2]

    def test_two_with_one_number(self):
        with pytest.raises(ValueError, match=r"one number \(2 too many, the first of them 4\)"):
            samples(found([4, 1, 4, 4]), "X")

    def test_none(self):
        without = evenly.Features({"a": torch.zeros(2, 1)}, torch.zeros(2), torch.arange(2))
        with pytest.raises(ValueError, match=r"X needs `Output\.index`; found None"):
            samples(without, "X")


class TestRows:
    @pytest.fixture
    def known(self):
        return samples(found([7, -3, 2**40]), "X")[0]

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
    def test_by_hand(self, known, dtype):
        index = torch.tensor([-3, 7, -3], dtype=dtype)
        assert rows(known, index, torch.tensor([1, 0, 1]), "X").tolist() == [0, 1, 0]

    @pytest.mark.parametrize("number", [-4, 0, 8, 2**41])
    def test_a_sample_that_was_not_seen(self, known, number):
        with pytest.raises(ValueError, match="numbers other samples than in X's look"):
            rows(known, torch.tensor([7, number]), torch.tensor([0, 0]), "X")

    def test_a_sample_of_another_class_is_another(self, known):
        """A count of the epoch's samples is one to one, too, and yet tells nothing."""
        with pytest.raises(ValueError, match="or numbers them otherwise"):
            rows(known, torch.tensor([7]), torch.tensor([1]), "X")

    def test_soft_targets_are_not_compared(self, known):
        assert rows(known, torch.tensor([7]), torch.rand(1, 2), "X").tolist() == [1]


NUMBERS = {
    "reversed": lambda i: 35 - i,
    "negative": lambda i: -5 * i - 1,
    "hashes": lambda i: (i + 1) * 0x5851F42D4C957F2D,  # wraps around
    "int32": lambda i: (3 * i + 1000).int(),
}


def numbered(number):
    def other(model, batch):
        output, target = forward(model, batch)
        return replace(output, index=number(output.index)), target

    return other


@cache
def plain(case):
    """The model trained on samples that are numbered by position, which no test changes."""
    return Run(case).train(3).model


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("case", FOLLOWING)
def test_the_training_is_the_same_however_samples_are_numbered(case, numbers):
    assert same(plain(case), Run(case).seen_by(numbered(NUMBERS[numbers])).train(3).model)


PARTS = {
    "subset": lambda data: Subset(data, list(range(40, 4, -1))),
    "nested": lambda data: Subset(Subset(data, list(range(49, 4, -1))), list(range(3, 39))),
    "concat": lambda data: ConcatDataset(
        [Subset(data, list(range(18))), Subset(data, list(range(30, 48)))]
    ),
}


def trained_on(dataset, case, workers=0):
    run = Run(case)
    sampler = evenly.Resampler(dataset, 1, 0, seed=3)
    run.train_loader = DataLoader(
        dataset, batch_sampler=BatchSampler(sampler, 8, False), num_workers=workers
    )
    run.method = make(case, run.model, run.optimizer, sampler)
    return run.seen_by(forward).train(3).model


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("case", FOLLOWING)
def test_a_part_of_a_data_set_is_trained_as_one_of_its_own(case, part):
    """The samples bring their positions in the whole data set."""
    data = PARTS[part](Toy(50, seed=1))
    own = [(*data[i][:2], i) for i in range(len(data))]
    assert same(trained_on(data, case), trained_on(own, case))


def backwards(rows):
    return default_collate(rows[::-1])


@pytest.mark.parametrize("case", ["smv", "remix"])
def test_a_batch_in_another_order_whose_numbers_are_no_positions(case):
    """Then nothing tells which row of the data set a sample is."""
    run = Run(case, warmup=0)
    settings = {"batch_sampler": run.train_loader.batch_sampler, "collate_fn": backwards}
    run.train_loader = DataLoader(run.train_loader.dataset, **settings)
    run.seen_by(numbered(lambda i: i + 1000))
    with pytest.raises(ValueError, match="collate function may reorder a batch"):
        run.method.before_epoch(0, run.probe)
    run.seen_by(forward)
    run.method.before_epoch(0, run.probe)


def test_workers_read_what_is_sampled_again():
    data = PARTS["subset"](Toy(50, seed=1))
    assert same(trained_on(data, "smv", workers=1), trained_on(data, "smv"))


@pytest.mark.parametrize("case", ["umt", "g2d", "smv", "remix", "bss"])
def test_samples_with_one_number_are_refused_before_the_first_step(case):
    run = Run(case, **({"warmup": 0} if case in ("smv", "remix") else {}))
    run.seen_by(numbered(lambda i: i // 2))
    with pytest.raises(ValueError, match=r"several of them one number \(18 too many"):
        run.method.before_epoch(0, run.probe)


@pytest.mark.parametrize("case", ["umt", "g2d", "remix"])
def test_a_count_within_the_epoch_is_refused_in_the_first_steps(case):
    run = Run(case, **({"warmup": 0} if case == "remix" else {}))
    seen = []

    def counting(model, batch):
        output, target = forward(model, batch)
        start = sum(seen) % 36
        seen.append(len(target))
        return replace(output, index=torch.arange(start, start + len(target))), target

    with pytest.raises(ValueError, match="or numbers them otherwise"):
        run.seen_by(counting).train(1)


@pytest.mark.parametrize("case", ["umt", "g2d"])
def test_a_model_without_numbers_is_refused_before_teachers_are_trained(case):
    run = Run(case)
    passes = []

    def without(model, batch):
        passes.append(1)
        output, target = forward(model, batch)
        return replace(output, index=None), target

    with pytest.raises(ValueError, match=r"needs `Output\.index`; found None"):
        run.method.before_epoch(0, evenly.Probe(run.model, without, *loaders()))
    assert len(passes) == 1


def test_numbers_of_a_loader_of_its_own_must_be_the_samplers():
    """Without a DataLoader nothing but the numbers tells which sample the sampler means."""
    run = Run("remix", warmup=0)
    batches = list(run.train_loader)
    probe = evenly.Probe(run.model, numbered(lambda i: i + 4), batches, batches)
    with pytest.raises(ValueError, match=r"numbered 4 to 39 by Output\.index, where the sampler"):
        run.method.before_epoch(0, probe)
