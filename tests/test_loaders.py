"""Tests of loaders that are read in another order than the loop reads them."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import evenly
from evenly.loaders import Draw, batch_size, drawn, shuffled
from many_ranks import on_ranks
from support import Run, Toy, forward, loaders, make, net, sgd

COUNT = 30


class Half(RandomSampler):
    """A sampler of one's own, which draws from the first half alone."""

    def __iter__(self):
        return iter(torch.randperm(COUNT // 2).tolist())

    def __len__(self):
        return COUNT // 2


class Marked(RandomSampler):
    """A subclass in name only."""


class Streams(Sampler):
    """One with a stream and a counter of its own."""

    def __init__(self, stream):
        self.stream, self.epoch = stream, 0

    def __iter__(self):
        self.epoch += 1
        if isinstance(self.stream, random.Random):
            return iter(self.stream.sample(range(COUNT), COUNT))
        return iter(self.stream.permutation(COUNT).tolist())

    def __len__(self):
        return COUNT


class Halved(DataLoader):
    """As a prefetcher to a device: another form of the batch, made in a class of one's own."""

    def __iter__(self):
        for inputs, target, index in super().__iter__():
            yield {name: x / 2 for name, x in inputs.items()}, target, index


class Chunked(DataLoader):
    """Gives each batch in parts."""

    def __iter__(self):
        for inputs, target, index in super().__iter__():
            for part in torch.arange(len(target)).split(3):
                yield {name: x[part] for name, x in inputs.items()}, target[part], index[part]


class Endless(DataLoader):
    """Keeps its iterator, as those that spare the workers' restart do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = super().__iter__()

    def __iter__(self):
        for _ in range(len(self)):
            try:
                yield next(self.kept)
            except StopIteration:
                self.kept = super().__iter__()
                yield next(self.kept)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Toy(COUNT))


def by_length(rows):
    """Sorts a batch, as packed sequences want it."""
    return default_collate(sorted(rows, key=lambda row: float(row[0]["a"][0, 1])))


def without_broken(rows):
    return default_collate([row for row in rows if row[2] != 7])


def accelerated(**settings):
    from accelerate import Accelerator, DataLoaderConfiguration

    config = DataLoaderConfiguration(**settings)
    return Accelerator(cpu=True, dataloader_config=config).prepare


def of_fabric(loader):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    return fabric.setup_dataloaders(loader)


def by_lightning(sampler):
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

    return DistributedSamplerWrapper(sampler, num_replicas=1, rank=0)


def loader(sampler=None, kind=DataLoader, **settings):
    given = {"sampler": sampler} if sampler is not None else {"shuffle": True}
    return kind(Toy(COUNT), 8, **{**given, **settings})


def streamed(seed=3):
    return torch.Generator().manual_seed(seed)


# What a loop may read; each is asked for anew, so that the state of its streams is the same.
LOADERS = {
    "shuffled": lambda: loader(),
    "drop_last": lambda: loader(drop_last=True),
    "generator": lambda: loader(generator=streamed()),
    "a part": lambda: loader(RandomSampler(range(20))),
    "a part in order": lambda: loader(SequentialSampler(range(20))),
    "a part by ranks": lambda: loader(DistributedSampler(range(20), 1, 0)),
    "a share of ranks that are not there": lambda: loader(
        DistributedSampler(range(COUNT), 2, 1, shuffle=False)
    ),
    "a subclass": lambda: loader(Half(range(COUNT))),
    "a subclass in name": lambda: loader(Marked(range(20))),
    "picked": lambda: loader(SubsetRandomSampler([3, 5, 5, 8, 29])),
    "a list": lambda: loader([3, 5, 8]),
    "weighted": lambda: loader(WeightedRandomSampler([1, 0, 3] * 10, 100)),
    "several times": lambda: loader(RandomSampler(range(COUNT), num_samples=70)),
    "batches": lambda: DataLoader(Toy(COUNT), batch_sampler=[[1, 2], [3, 4, 5]]),
    "a stream of NumPy's": lambda: loader(Streams(np.random.default_rng(0))),
    "NumPy's old stream": lambda: loader(Streams(np.random.RandomState(0))),
    "a stream of Python's": lambda: loader(Streams(random.Random(0))),
    "a class": lambda: loader(kind=Halved),
    "parts of batches": lambda: loader(kind=Chunked),
    "sorted": lambda: loader(collate_fn=by_length),
    "broken rows": lambda: loader(collate_fn=without_broken),
    "iterable": lambda: DataLoader(Stream(), 8),
    "workers": lambda: loader(
        num_workers=1, persistent_workers=True, prefetch_factor=3, timeout=60
    ),
    "accelerate": lambda: accelerated()(loader()),
    "accelerate by seed": lambda: accelerated(use_seedable_sampler=True)(loader()),
    "fabric": lambda: of_fabric(loader(DistributedSampler(range(COUNT), 1, 0))),
    "lightning": lambda: loader(by_lightning(SubsetRandomSampler(range(20)))),
}


def objective(output, target):
    return nn.functional.cross_entropy(output.logits, target)


@pytest.mark.parametrize("name", LOADERS)
def test_a_look_sees_what_the_loop_sees_and_leaves_the_loop_as_it_was(name):
    orders, model = [], net().eval()
    for looks in (False, True):
        torch.manual_seed(1)
        train, order = LOADERS[name](), []
        probe = evenly.Probe(model, forward, train, loaders()[1])
        for _ in range(2):
            if looks:
                found = probe.features("train")
                probe.features("train", fraction=0.3)
                probe.sample("train", 3)
                with probe.trained(objective, epochs=2, optimizer=sgd(model)):
                    pass
            batches = list(train)
            order += torch.cat([index for _, _, index in batches]).tolist()
        orders.append(order)
    assert orders[0] == orders[1]
    drops = {} if name != "drop_last" else set(range(COUNT)) - set(orders[0])
    assert sorted(found.number.tolist()) == sorted({*orders[0], *drops})
    with torch.no_grad():
        for inputs, target, index in batches:
            rows = [found.number.tolist().index(i) for i in index.tolist()]
            expected = model(inputs, index).features["a"]
            torch.testing.assert_close(found.features["a"][rows], expected)
            assert torch.equal(found.target[rows], target)


@pytest.mark.parametrize("name", ["sorted", "shuffled", "a class", "accelerate", "fabric"])
def test_positions_are_those_in_the_data_set(name):
    train = LOADERS[name]()
    found = evenly.Probe(net(), forward, train, train).features("train")
    assert torch.equal(found.index, found.number)


def shared_by_accelerate(rank, world, settings):
    from accelerate.data_loader import prepare_data_loader

    train = prepare_data_loader(
        loader(), num_processes=world, process_index=rank, put_on_device=False, **settings
    )
    with torch.no_grad():
        model = net().eval()
        probe = evenly.Probe(model, forward, train, train)
        with probe.trained(objective, epochs=1, optimizer=sgd(model)):
            pass
        probe.sample("train", 3)
        return probe.features("train").number, batch_size(train)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("settings", "size"), [({}, 8), ({"split_batches": True}, 4), ({"even_batches": False}, 8)]
)
def test_batches_that_accelerate_shares_among_ranks(settings, size, tmp_path):
    found = on_ranks(shared_by_accelerate, tmp_path, settings)
    assert sorted(torch.cat([number for number, _ in found]).tolist()) == list(range(COUNT))
    assert [each for _, each in found] == [size, size]


def test_a_loader_with_an_iterator_of_its_own_is_taken_as_it_comes():
    train = loader(kind=Endless)
    found = evenly.Probe(net(), forward, train, train).features("train")
    assert sorted(found.number.tolist()) == list(range(COUNT))
    assert torch.equal(found.index, found.number)


def test_an_iterator_is_refused():
    with pytest.raises(TypeError, match="the 'val' loader is an iterator"):
        evenly.Probe(net(), forward, loader(), iter(loader()))


def test_two_samples_with_one_number():
    """Of a sampler of one's own: rows of one number are taken for one sample."""

    def numbered(model, batch):
        output, target = forward(model, batch)
        return replace(output, index=batch[2] // 2), target

    train = loader(Half(range(COUNT)))
    with pytest.raises(ValueError, match=r"samples of different classes the number \d+"):
        evenly.Probe(net(), numbered, train, train).features("train")


class TestDrawn:
    def rows(self, sampler, **settings):
        return drawn(loader(sampler), **settings)

    def test_rows_by_hand(self):
        assert self.rows(RandomSampler(range(4))).rows.tolist() == [0, 1, 2, 3]
        assert self.rows(SubsetRandomSampler([5, 2, 2])).rows.tolist() == [5, 2, 2]
        assert self.rows(WeightedRandomSampler([0, 2, 0, 1], 9)).rows.tolist() == [1, 3]
        assert self.rows((4, 1)).rows.tolist() == [4, 1]
        assert self.rows(by_lightning(SubsetRandomSampler([5, 2]))).rows.tolist() == [5, 2]

    @pytest.mark.parametrize(
        "sampler",
        [
            Half(range(COUNT)),
            Streams(random.Random(0)),
            DistributedSampler(range(COUNT), 2, 0),
            SubsetRandomSampler(["a", "b"]),
        ],
    )
    def test_what_cannot_be_told(self, sampler):
        assert self.rows(sampler) is None
        assert self.rows(sampler, every=True).rows.tolist() == list(range(COUNT))

    @pytest.mark.parametrize(
        "other",
        [
            [],
            DataLoader(Stream(), 4),
            DataLoader(Toy(COUNT), batch_sampler=[[1], [2]]),
            DataLoader(Toy(COUNT), None),
        ],
    )
    def test_what_is_taken_as_it_comes_whatever_is_asked(self, other):
        assert drawn(other, every=True) is None


class TestDraw:
    stream = streamed()

    def test_an_epoch_of_each_row_once(self):
        found = Draw(torch.tensor([4, 4, 9]), 3).again(self.stream)
        assert sorted(found.tolist()) == [4, 4, 9]

    def test_several_rounds_each_of_all_rows(self):
        found = Draw(torch.arange(5), 13).again(self.stream)
        assert sorted(found.bincount().tolist()) == [2, 2, 3, 3, 3]

    def test_with_replacement(self):
        found = Draw(torch.arange(5), 2000, replacement=True).again(self.stream)
        assert (found.bincount() / 2000).tolist() == pytest.approx([0.2] * 5, abs=0.04)

    def test_by_weight(self):
        weights = torch.tensor([1.0, 3.0])
        found = Draw(torch.tensor([2, 7]), 2000, True, weights).again(self.stream)
        assert float((found == 7).float().mean()) == pytest.approx(0.75, abs=0.04)


class TestShuffled:
    def test_an_epoch_is_as_long_as_the_loops(self):
        for sampler, length in (
            (RandomSampler(range(COUNT), num_samples=12), 12),
            (WeightedRandomSampler([1.0] * COUNT, 40), 40),
            (SubsetRandomSampler([1, 2, 3]), 3),
        ):
            batches = list(shuffled(loader(sampler), 2, 0))
            assert sum(len(target) for _, target, _ in batches) == 2 * length

    def test_rows_that_are_left_out_train_no_teacher(self):
        seen = {int(i) for _, _, index in shuffled(LOADERS["a part"](), 3, 0) for i in index}
        assert seen == set(range(20))

    def test_the_form_is_that_of_the_loops_class(self):
        data = Toy(COUNT)
        for inputs, _, index in shuffled(loader(kind=Halved), 1, 0):
            assert torch.equal(inputs["a"], data.inputs["a"][index] / 2)

    def test_a_sampler_that_needs_the_epoch_is_told(self):
        class Own(DistributedSampler):
            def __iter__(self):
                return iter(torch.arange(COUNT).roll(self.epoch).tolist())

        first = [int(index[0]) for _, _, index in shuffled(loader(Own(range(COUNT), 1, 0)), 3, 0)]
        assert first[:: len(first) // 3] == [0, COUNT - 1, COUNT - 2]


class TestTeachers:
    """Tables that are looked up in each step hold whatever the loop may draw."""

    def run(self, train, case="umt"):
        run = Run(case)
        run.train_loader = train
        run.method = make(case, run.model, run.optimizer)
        run.seen_by(forward)
        for epoch in range(3):
            run.method.before_epoch(epoch, run.probe)
            for batch in train:
                run.step(batch)
        return run.method

    def test_of_a_sampler_that_draws_other_rows_in_each_epoch(self):
        class Balanced(Sampler):
            def __iter__(self):
                return iter(torch.randint(COUNT, (COUNT,)).tolist())

            def __len__(self):
                return COUNT

        assert len(self.run(loader(Balanced())).samples["number"]) == COUNT

    @pytest.mark.parametrize("name", ["drop_last", "weighted", "picked", "a class", "sorted"])
    def test_of_a_part(self, name):
        train = LOADERS[name]()
        assert self.run(train).samples["number"].tolist() == drawn(train).rows.unique().tolist()

    def test_of_parts_of_parts(self):
        data = ConcatDataset([Subset(Toy(COUNT), [7, 3]), Subset(Toy(COUNT), range(10, 28))])
        method = self.run(DataLoader(data, 5, shuffle=True))
        assert method.samples["number"].tolist() == [3, 7, *range(10, 28)]
        assert method.samples["position"].tolist() == [1, 0, *range(2, 20)]
