import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from evenly.data import Data, Padded, Ragged, collate, stratified
from evenly.data.dataset import check_classes, described
from evenly.data.store import mapped


def _data() -> Data:
    """Six samples: a vector of two features, sequences of 1 + i % 3 steps, 2×3 images."""
    n = 6
    length = torch.tensor([1 + i % 3 for i in range(n)])
    offset = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    # Step t of sample i is (10 i + t, 7): it tells where it comes from; the 7 is constant.
    steps = torch.cat([torch.stack([10.0 * i + torch.arange(k), 7 * torch.ones(k)], 1)
                       for i, k in enumerate(length.tolist())])  # fmt: skip
    return Data(
        "toy",
        {
            "vector": torch.arange(12.0).reshape(n, 2),
            "sequence": Ragged(steps, offset[:-1], length),
            "image": torch.arange(n * 6, dtype=torch.uint8).reshape(n, 1, 2, 3),
        },
        torch.tensor([0, 1, 0, 1, 0, 1]),
        {
            "train": torch.tensor([0, 3]),
            "val": torch.tensor([1, 4]),
            "test": torch.tensor([5, 2]),
        },
        ["no", "yes"],
    )


def test_statistics_are_of_the_training_split():
    modalities = _data().modalities
    vector = modalities["vector"]
    # Training rows are (0, 1) and (6, 7).
    assert (vector.kind, vector.shape) == ("vector", (2,))
    assert vector.mean.tolist() == [3, 4]
    assert vector.std.tolist() == [3, 3]
    sequence = modalities["sequence"]
    # Training samples 0 and 3 have one step each: 0 and 30; the second feature is constant.
    assert (sequence.kind, sequence.shape) == ("sequence", (3, 2))
    assert sequence.mean.tolist() == [15, 7]
    assert sequence.std.tolist() == [15, 0]
    image = modalities["image"]
    # Pixels 0..5 and 18..23: one channel.
    pixels = torch.cat([torch.arange(0.0, 6), torch.arange(18.0, 24)])
    assert (image.kind, image.shape) == ("image", (1, 2, 3))
    assert image.mean.tolist() == [11.5]
    torch.testing.assert_close(image.std, pixels.std(correction=0).reshape(1))


def test_what_no_training_sample_has_stays_as_it_is():
    steps = Ragged(torch.randn(4, 2), torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 2, 2]))
    found = described("steps", steps, torch.tensor([0, 1]))
    assert found.mean.tolist() == [0, 0]
    assert found.std.tolist() == [0, 0]


def test_statistics_of_many_rows_equal_those_of_the_whole():
    values = 1000 + torch.randn(5000, 3) * torch.tensor([1e-2, 1.0, 0.0])
    rows = torch.randperm(5000)[:3000]
    data = Data(
        "big", {"x": values}, torch.zeros(5000, dtype=torch.long),
        {"train": rows, "val": rows, "test": rows}, ["one"],
    )  # fmt: skip
    expected = values[rows].double()
    torch.testing.assert_close(data.modalities["x"].mean.double(), expected.mean(0))
    std = expected.std(0, correction=0)
    std[2] = 0
    torch.testing.assert_close(data.modalities["x"].std.double(), std, rtol=1e-5, atol=0)


def test_statistics_open_a_map_anew_for_every_few_samples(tmp_path):
    values = torch.randn(40, 3, 192, 192)
    values.numpy().tofile(tmp_path / "x.memmap")
    opened = []

    def again():
        # All but the first and the last are let go, or memory would hold what they read.
        assert sum(kept() is not None for kept in opened) <= 2
        found = mapped(tmp_path / "x.memmap", torch.float32, (40, 3, 192, 192))
        opened.append(weakref.ref(found))
        return found

    found = described("x", again(), torch.arange(30), again)
    assert len(opened) > 4
    expected = values[:30].double().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(found.mean, expected.mean(0).float())
    torch.testing.assert_close(found.std, expected.std(0, correction=0).float())


def test_a_constant_that_binary_cannot_hold_is_constant():
    x = torch.full((3000, 1), 0.1)
    rows = torch.arange(3000)
    data = Data(
        "flat", {"x": x}, torch.zeros(3000, dtype=torch.long),
        {"train": rows, "val": rows, "test": rows}, ["one"],
    )  # fmt: skip
    assert data.modalities["x"].std.tolist() == [0]


def test_a_batch_is_the_rows_asked_for():
    batch = _data().split("test").__getitems__([1, 0])
    assert batch["index"].tolist() == [1, 0]
    assert batch["target"].tolist() == [0, 1]  # rows 2 and 5
    assert batch["inputs"]["vector"].tolist() == [[4, 5], [10, 11]]
    image = batch["inputs"]["image"]
    assert image.dtype == torch.uint8
    assert image[0].flatten().tolist() == list(range(12, 18))
    sequence = batch["inputs"]["sequence"]
    assert isinstance(sequence, Padded)
    assert sequence.length.tolist() == [3, 3]
    assert sequence.values[..., 0].tolist() == [[20, 21, 22], [50, 51, 52]]


def test_sequences_are_padded_to_the_longest_of_the_batch():
    sequence = _data().split("val").__getitems__([0, 1])["inputs"]["sequence"]
    assert sequence.length.tolist() == [2, 2]  # rows 1 and 4
    sequence = _data().split("train")[0]["inputs"]["sequence"]
    assert sequence.values.tolist() == [[[0, 7]]]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
    st.data(),
)
def test_padding_is_zero_and_values_are_kept(lengths, draw):
    offset = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    steps = 1 + torch.arange(int(offset[-1])).reshape(-1, 1)
    rows = torch.arange(len(lengths))
    data = Data(
        "toy", {"x": Ragged(steps, offset[:-1], offset.diff())},
        torch.zeros(len(lengths), dtype=torch.long),
        {"train": rows, "val": rows, "test": rows}, ["one"],
    )  # fmt: skip
    asked = draw.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=6))
    values, length = data.split("val").__getitems__(asked)["inputs"]["x"]
    assert length.tolist() == [lengths[i] for i in asked]
    assert values.shape == (len(asked), max(length.tolist()), 1)
    for i, row in zip(asked, values, strict=True):
        expected = steps[offset[i] : offset[i + 1]]
        assert torch.equal(row[: lengths[i]], expected)
        assert not row[lengths[i] :].any()


def test_on_a_device_the_batches_are_the_same():
    data = _data()
    moved = data.to(torch.device("cpu"))
    assert moved.nbytes == data.nbytes == 6 * 2 * 4 + 12 * 2 * 4 + 2 * 6 * 8 + 36
    _assert_same(moved, data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_batches_are_read_there():
    data = _data().to(torch.device("cuda"))
    batch = data.split("test").__getitems__([1, 0])
    assert all(batch[key].is_cuda for key in ("target", "index"))
    assert batch["inputs"]["image"].is_cuda
    assert batch["inputs"]["sequence"].values.is_cuda
    _assert_same(data, _data())


def _assert_same(one, two):
    for name in ("train", "val", "test"):
        x, y = (data.split(name).__getitems__([1, 0]) for data in (one, two))
        assert torch.equal(x["target"].cpu(), y["target"])
        assert torch.equal(x["inputs"]["vector"].cpu(), y["inputs"]["vector"])
        for found, expected in zip(x["inputs"]["sequence"], y["inputs"]["sequence"], strict=True):
            assert torch.equal(found.cpu(), expected)


def test_a_loader_reads_whole_batches_and_each_row_once(monkeypatch):
    split = _data().split("train")
    calls = []
    read = type(split).__getitems__
    monkeypatch.setattr(
        type(split), "__getitems__", lambda self, i: calls.append(len(i)) or read(self, i)
    )
    loader = DataLoader(split, batch_size=2, shuffle=True, collate_fn=collate)
    batches = list(loader)
    assert calls == [2]
    assert sorted(batches[0]["index"].tolist()) == [0, 1]
    assert len(split) == 2


def test_worker_processes_read_the_same():
    split = _data().split("test")
    here, there = (
        [batch["inputs"]["vector"] for batch in DataLoader(
            split, batch_size=1, collate_fn=collate, num_workers=workers)]
        for workers in (0, 1)
    )  # fmt: skip
    assert torch.equal(torch.cat(here), torch.cat(there))


@pytest.mark.parametrize("fractions", [(0.15,), (0.6, 0.2)])
def test_stratified_parts_share_every_class(fractions):
    target = torch.cat([torch.zeros(100), torch.ones(40), torch.full((20,), 2)]).long()
    target = target[torch.randperm(160)]
    parts = stratified(target, fractions, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(160))
    for part, fraction in zip(parts, (*fractions, 1 - sum(fractions)), strict=True):
        assert torch.equal(part, part.sort().values)
        counts = target[part].bincount().tolist()
        assert counts == [round(fraction * size) for size in (100, 40, 20)]
    again = stratified(target, fractions, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    other = stratified(target, fractions, seed=4)
    assert not torch.equal(parts[0], other[0])


def test_a_small_class_is_in_the_first_part_too():
    val, rest = stratified(torch.tensor([0, 0, 0, 0, 1, 1]), (0.15,))
    assert sorted(torch.tensor([0, 0, 0, 0, 1, 1])[val].tolist()) == [0, 1]
    assert len(rest) == 4


@pytest.mark.parametrize("target", [[0, 2], [0, 0, 2]])
def test_numbers_that_are_no_classes(target):
    with pytest.raises(ValueError, match="or use --task number to regress on them"):
        check_classes("t", "train", torch.tensor(target), ["3", "-4", "5"])
