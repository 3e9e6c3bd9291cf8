"""Features of a split: held once, in memory or in a file."""

import tempfile
from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, WeightedRandomSampler

import evenly
from evenly.collected import Collected
from support import Toy, forward, loaders, net


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The folder of temporary files, which are to have no name in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


def collected(batches, **settings):
    rows = Collected(**settings)
    for batch in batches:
        rows.add(batch)
    return rows


@pytest.mark.parametrize("expected", [None, 23, 5])
@pytest.mark.parametrize("memory", [None, 0, 100, 10**6])
def test_rows_in_the_order_they_came(memory, expected):
    batches = [torch.randn(n, 3) for n in (8, 8, 0, 7)]
    whole = torch.cat(batches)
    keep = torch.rand(23) < 0.6
    for marked in (torch.ones(23, dtype=torch.bool), keep):
        found = collected(batches, expected=expected, memory=memory).take(marked)
        assert torch.equal(found, whole[marked])
        assert found.dtype == torch.float32
        assert torch.equal(collected(batches, memory=memory).take(), whole)


def test_the_file_outlives_its_collection_and_may_be_written():
    found = collected([torch.ones(4, 2)], memory=0).take(torch.ones(4, dtype=torch.bool))
    found += 1
    assert found.sum() == 16


def test_known_rows_are_never_moved():
    rows = collected([torch.randn(4, 3)], expected=12)
    place = rows._rows.data_ptr()
    rows.add(torch.randn(8, 3))
    assert rows.take(torch.arange(12) != 2).data_ptr() == place


@pytest.mark.parametrize("memory", [None, 0])
def test_batches_of_two_widths(memory):
    rows = collected([torch.randn(4, 3)], memory=memory)
    with pytest.raises(ValueError, match=r"shape \(2,\) in one batch and \(3,\) in those before"):
        rows.add(torch.randn(4, 2))
    rows.close()


class TestProbe:
    def look(self, memory, train=None):
        usual, val = loaders(count=37)
        return evenly.Probe(net(), forward, train or usual, val, memory=memory).features("train")

    @pytest.mark.parametrize("memory", [0, 37 * 6 * 4 - 1, 37 * 6 * 4])
    def test_a_file_changes_no_bit(self, memory):
        plain, found = self.look(None), self.look(memory)
        assert torch.equal(found.index, plain.index)
        for name, x in plain.features.items():
            assert torch.equal(found.features[name], x)

    @pytest.mark.parametrize("memory", [36 * 6 * 4, 37 * 6 * 4])
    def test_the_limit_is_of_one_modality(self, memory, monkeypatch):
        files = mock.Mock(side_effect=tempfile.TemporaryFile)
        monkeypatch.setattr("evenly.collected.tempfile.TemporaryFile", files)
        self.look(memory)
        assert files.call_count == (0 if memory == 37 * 6 * 4 else 2)

    def test_rows_drawn_twice_leave_the_file(self):
        heavy = DataLoader(Toy(6), 4, sampler=WeightedRandomSampler([1, 0, 0, 0, 0, 1], 20))
        found = self.look(0, heavy)
        assert sorted(found.index.tolist()) == [0, 5]
        assert len(found.features["a"]) == 2

    def test_nothing_stays_open_after_an_error(self):
        calls = []

        def failing(model, batch):
            calls.append(1)
            return forward(model, batch) if len(calls) < 3 else 1 / 0

        probe = evenly.Probe(net(), failing, *loaders(), memory=0)
        with pytest.raises(ZeroDivisionError):  # and no ResourceWarning, which would be an error
            probe.features("train")

    def test_a_diagnosis_from_files_is_the_same(self):
        memory = evenly.Probe(net(), forward, *loaders(count=90))
        file = evenly.Probe(net(), forward, *loaders(count=90), memory=0)
        one, two = (evenly.diagnose(p.features("train"), p.features("val")) for p in (memory, file))
        assert one == two

    def test_memory_below_zero(self):
        with pytest.raises(ValueError, match=r"'memory' is bytes, from 0 .*; found -1"):
            self.look(-1)


def test_lightning_hands_the_limit_on():
    train, val = loaders()
    trainer = mock.create_autospec(Trainer, instance=True)
    trainer.train_dataloader, trainer.val_dataloaders = train, val
    trainer.num_training_batches = len(train)
    balance = evenly.Balance(evenly.Method(), forward, memory=5)
    probe = balance._probe(trainer, mock.create_autospec(LightningModule, instance=True))
    assert probe.memory == 5
