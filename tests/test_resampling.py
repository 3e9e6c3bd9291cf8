import itertools

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

import evenly
from evenly import Repeated, Resampler
from evenly.resampling import kept_alone
from support import Run, Toy


def sampler(count=11, world=1, rank=0, pool=None, batch_size=None, seed=3, epoch=0):
    found = Resampler(range(count), world, rank, seed=seed)
    found.pool, found.batch_size = pool, batch_size
    found.set_epoch(epoch)
    return found


def whole(world, **settings):
    """The order that the ranks share: position k is on rank k % world."""
    parts = [list(sampler(world=world, rank=rank, **settings)) for rank in range(world)]
    return [position for row in zip(*parts, strict=True) for position in row]


class TestWithoutAPool:
    @pytest.mark.parametrize("world", [1, 2, 3])
    @pytest.mark.parametrize("epoch", [0, 1, 5])
    def test_it_is_the_distributed_sampler(self, world, epoch):
        for rank in range(world):
            plain = DistributedSampler(range(11), world, rank, shuffle=True, seed=3)
            plain.set_epoch(epoch)
            ours = sampler(world=world, rank=rank, epoch=epoch)
            assert list(ours) == list(plain)
            assert len(ours) == len(plain)

    def test_a_batch_size_alone_changes_nothing(self):
        assert list(sampler(batch_size=4)) == list(sampler())

    def test_a_pool_that_is_taken_back_leaves_no_trace(self):
        ours = sampler(pool=torch.arange(3))
        list(ours)
        ours.pool = None
        assert list(ours) == list(sampler())


class TestPool:
    @pytest.mark.parametrize("size", [1, 4, 11, 12, 50])
    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_the_length_is_constant(self, size, world):
        """Lightning reads it before the method writes the pool."""
        pool = torch.arange(size) + 11
        for batch_size in (None, 4):
            ours = sampler(world=world, pool=pool, batch_size=batch_size)
            assert len(list(ours)) == len(ours) == len(sampler(world=world))

    def test_every_sample_once_is_the_same_order_as_none(self):
        assert list(sampler(pool=torch.arange(11))) == list(sampler())

    def test_each_comes_as_often_as_it_stands_there(self):
        pool = torch.tensor([0, 1, 1, 2, 2, 2, 13, 14, 14, 15, 15])
        assert sorted(sampler(pool=pool)) == sorted((pool % 11).tolist())

    def test_a_larger_pool_is_drawn_from_without_repeats(self):
        found = torch.tensor(list(sampler(pool=torch.arange(40))))
        times = torch.bincount(torch.arange(40) % 11, minlength=11)
        assert len(found) == 11
        assert found.max() < 11
        assert (found.bincount(minlength=11) <= times).all()
        assert len(found.unique()) < 11

    def test_a_smaller_pool_comes_again(self):
        found = list(sampler(pool=torch.arange(4)))
        assert sorted(found[:4]) == sorted(found[4:8]) == [0, 1, 2, 3]
        assert len(set(found[8:])) == 3

    def test_entries_in_the_pools_own_order(self):
        pool = torch.tensor([4, 2 + 11, 9, 4])
        for world in (1, 2):
            ranks = [sampler(world=world, rank=rank, pool=pool) for rank in range(world)]
            for rank in ranks:
                rank.in_order = True
            rows = zip(*map(list, ranks), strict=True)
            found = [position for row in rows for position in row]
            assert found == ([4, 2, 9, 4] * 3)[: 11 if world == 1 else 12]

    def test_order_is_a_function_of_seed_and_epoch(self):
        pool = torch.arange(30)
        first = list(sampler(pool=pool))
        assert first == list(sampler(pool=pool))
        assert first != list(sampler(pool=pool, epoch=1))
        assert first != list(sampler(pool=pool, seed=4))

    @pytest.mark.parametrize("batch_size", [None, 6])
    def test_ranks_partition_one_order(self, batch_size):
        pool = torch.arange(36)
        alone = list(sampler(count=12, pool=pool, batch_size=batch_size))
        for world in (2, 3):
            assert whole(world, count=12, pool=pool, batch_size=batch_size) == alone

    def test_an_empty_pool(self):
        with pytest.raises(ValueError, match="Resampler: the pool is empty"):
            list(sampler(pool=torch.arange(0)))


class TestVariants:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_any_data_set_is_asked_for_samples_that_it_has(self, workers):
        data = Toy(6)
        ours = Resampler(data, 1, 0, seed=0)
        ours.pool = torch.tensor([2, 3 + 6, 2 + 12])
        (x, target, index), *_ = DataLoader(data, 6, sampler=ours, num_workers=workers)
        assert index.bincount().tolist() == [0, 0, 4, 2]
        assert torch.equal(x["a"], data.inputs["a"][index])
        assert torch.equal(target, data.target[index])

    def test_one_modality_is_kept_alone(self):
        features = {name: torch.ones(4, 2, requires_grad=True) for name in ("a", "aa", "b")}
        found = kept_alone(features, list(features), torch.tensor([0, 1, 2, 3]))
        kept = {name: x[:, 0].tolist() for name, x in found.items()}
        assert kept == {"a": [1, 1, 0, 0], "aa": [1, 0, 1, 0], "b": [1, 0, 0, 1]}
        sum(x.sum() for x in found.values()).backward()
        for name, x in features.items():
            assert x.grad[:, 0].tolist() == kept[name]

    def test_features_of_no_name_stay_and_absent_ones_keep_their_number(self):
        features = {"b": torch.ones(2, 1), "other": torch.ones(2, 1)}
        found = kept_alone(features, ["a", "b"], torch.tensor([1, 2]))
        assert found["b"].tolist() == [[0], [1]]
        assert torch.equal(found["other"], features["other"])


class TestHomogeneousBatches:
    count, size = 40, 4

    def pool(self):
        """Variants of 17, 14 and 9 samples: 4, 3 and 2 whole batches, 4 samples left over."""
        variant = torch.tensor([1] * 17 + [2] * 14 + [3] * 9)
        return torch.arange(self.count) + variant * self.count

    def entries(self, order):
        """Those of the pool; each sample has one."""
        return self.pool()[torch.tensor(order)]

    def batches(self, world=1, **settings):
        order = whole(world, count=self.count, pool=self.pool(), batch_size=self.size, **settings)
        return self.entries(order).split(self.size)

    @pytest.mark.parametrize("world", [1, 2])
    def test_one_variant_each_and_the_rest_last(self, world):
        batches = self.batches(world)
        kinds = [set((batch // self.count).tolist()) for batch in batches]
        assert all(len(kind) == 1 for kind in kinds[:9])
        counts = [sum(kind == {variant} for kind in kinds[:9]) for variant in (1, 2, 3)]
        assert counts == [4, 3, 2]
        assert kinds[9] == {1, 2, 3}

    def test_nothing_is_lost(self):
        assert sorted(torch.cat(self.batches()).tolist()) == sorted(self.pool().tolist())

    def test_batches_and_their_samples_are_in_random_order(self):
        first, second = self.batches(), self.batches(epoch=1)
        kinds = [[int(batch[0]) // self.count for batch in found[:9]] for found in (first, second)]
        assert kinds[0] != kinds[1]
        assert kinds[0] != sorted(kinds[0])
        assert not torch.equal(first[9], second[9])

    def test_ranks_hold_parts_of_the_same_batch(self):
        ranks = [sampler(self.count, 2, rank, self.pool(), batch_size=self.size) for rank in (0, 1)]
        local = [self.entries(list(rank)).split(self.size // 2) for rank in ranks]
        for parts in list(zip(*local, strict=True))[:9]:
            assert len(torch.cat(parts).div(self.count, rounding_mode="floor").unique()) == 1


class TestRepeated:
    def test_each_batch_in_a_row(self):
        batches = Repeated(sampler(), 4, repeats=3)
        found = list(batches)
        assert len(found) == len(batches) == 9
        plain = list(Repeated(sampler(), 4))
        assert found == [batch for batch in plain for _ in range(3)]
        assert sorted(itertools.chain(*plain)) == list(range(11))

    def test_the_copies_are_not_one_list(self):
        first, second, *_ = Repeated(sampler(), 4, repeats=2)
        first.clear()
        assert len(second) == 4

    def test_a_last_batch_left_out(self):
        batches = Repeated(sampler(), 4, drop_last=True, repeats=2)
        assert [len(batch) for batch in batches] == [4] * 4
        assert len(batches) == 4

    def test_a_loader_and_the_probe_take_it(self):
        data = Toy(11)
        loader = DataLoader(data, batch_sampler=Repeated(Resampler(data, 1, 0), 4, repeats=2))
        index = [index.tolist() for _, _, index in loader]
        assert index[0] == index[1]
        assert len(index) == len(loader) == 6

        def forward(model, batch):
            x = batch[0]["a"].flatten(1)
            return evenly.Output(model(x), {"a": x}), batch[1]

        probe = evenly.Probe(torch.nn.Linear(5, 3), forward, loader, loader)
        assert probe.features("train").index.tolist() == list(range(11))


@pytest.mark.parametrize("name", ["smv", "remix", "bss"])
def test_methods_give_each_epoch_an_order_of_its_own(name):
    """Also where the loop forgets `set_epoch`, and in a run that goes on within an epoch."""

    def order(run):
        return list(run.train_loader.batch_sampler.sampler)

    run, again = Run(name), Run(name, seed=99)
    run.method.before_epoch(0, run.probe)
    first = order(run)
    run.method.before_epoch(1, run.probe)
    assert order(run) != first
    again.load(run.state())
    assert order(again) == order(run)
