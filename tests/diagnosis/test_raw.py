"""What goes into an encoder, as a vector that a linear classifier can read."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenly
from evenly.data.dataset import Padded
from evenly.diagnosis.raw import WIDEST, raw, real_steps, summary


def test_words_are_counted():
    found = summary(torch.tensor([[3, 3, 0], [WIDEST + 1, 5, 5]]))
    assert found.shape == (2, WIDEST)
    assert found[0, [0, 3]].tolist() == [1, 2]
    assert found[1, [1, 5]].tolist() == [1, 2]


def test_sequences_have_mean_and_deviation():
    found = summary(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    assert found.tolist() == [[2.0, 0.0, 1.0, 0.0]]


def test_pictures_are_averaged_down_and_videos_over_time_first():
    assert summary(torch.ones(2, 3, 64, 48)).shape == (2, 3 * 16 * 16)
    assert summary(torch.ones(2, 1, 8, 8)).shape == (2, 64)
    video = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(2, 4, 3, 20, 20)
    assert summary(video.transpose(1, 2)).tolist() == [[1.5] * (3 * 256)] * 2
    two = video[:, :2].contiguous()  # frames 0 and 1, in evenly's layout
    assert summary(two).tolist() == [[0.5] * (3 * 256)] * 2
    assert summary(two.transpose(1, 2)).tolist() == [[0.5] * (3 * 256)] * 2
    assert summary(torch.ones(2, 5000)).shape == (2, WIDEST)


STEPS = torch.tensor([[[1.0], [3.0], [0.0]], [[5.0], [0.0], [0.0]]])


def test_padding_is_left_out():
    length = torch.tensor([2, 1])
    is_real = real_steps(STEPS, [STEPS, length])
    assert is_real.tolist() == [[True, True, False], [True, False, False]]
    assert summary(STEPS, is_real).tolist() == [[2.0, 1.0], [5.0, 0.0]]
    words = torch.tensor([[4, 4, 0], [7, 0, 0]])
    counts = summary(words, real_steps(words, [words, length]))
    assert counts.sum(1).tolist() == [2, 1]
    assert counts[0, 4] == 2
    video = STEPS[..., None, None].expand(2, 3, 1, 20, 20)
    assert summary(video, real_steps(video, [video, length])).unique().tolist() == [2.0, 5.0]


def test_a_mask_tells_padding_as_well():
    words = torch.tensor([[9, 4, 4], [9, 9, 7]])  # padded with 9 on the left
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert real_steps(words, [words, mask]).tolist() == (mask > 0).tolist()


def test_numbers_that_are_no_lengths_are_not_taken_for_them():
    assert real_steps(STEPS, [STEPS, torch.tensor([1, 1])]) is None  # a step beyond differs
    assert real_steps(STEPS, [STEPS, torch.tensor([2, 4])]) is None  # longer than the sequence
    assert real_steps(STEPS, [STEPS, torch.tensor([2.0, 1.0])]) is None
    assert real_steps(STEPS[..., 0], [STEPS[..., 0], torch.tensor([2, 1])]) is None  # no sequence


class Lengths(nn.Module):
    """The mean of a sequence of unequal length."""

    def forward(self, x):
        return x.values.sum(1) / x.length[:, None]


def test_a_sequence_is_read_alike_in_any_batch():
    rows = [(torch.tensor([[float(i)]] * (1 + i % 4)), i % 2) for i in range(8)]

    def padded(samples):
        values = nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
        length = torch.tensor([len(x) for x, _ in samples])
        return Padded(values, length), torch.tensor([y for _, y in samples])

    def forward(model, batch):
        features = {"sound": model(batch[0])}
        return evenly.Output(features["sound"], features), batch[1]

    model = Lengths()
    expected = [[float(i), 0.0] for i in range(8)]  # mean and deviation
    for size in (1, 3, 8):
        batches = DataLoader(rows, size, collate_fn=padded)
        found = raw(evenly.Probe(model, forward, batches, batches), {"sound": model}, "train")
        assert found.features["sound"].sort(0).values.tolist() == expected


class Two(nn.Module):
    """The second encoder takes its input with the samples along the second dimension."""

    def __init__(self):
        super().__init__()
        self.plain, self.sideways = nn.Linear(3, 2), nn.Identity()

    def forward(self, x):
        return {"plain": self.plain(x), "sideways": self.sideways(x.T).T}


def test_inputs_without_a_row_for_each_sample_are_left_out():
    rows = TensorDataset(torch.randn(10, 3), torch.arange(10) % 2)
    loader = DataLoader(rows, 3)  # three samples in most batches, as many as columns, and then one

    def forward(model, batch):
        features = model(batch[0])
        here = batch[0][:, 0] > -9
        return evenly.Output(features["plain"], features, present={"plain": here}), batch[1]

    model = Two()
    probe = evenly.Probe(model, forward, loader, loader)
    found = raw(probe, {"plain": model.plain, "sideways": model.sideways}, "train")
    assert list(found.features) == ["plain"]
    torch.testing.assert_close(found.features["plain"], rows.tensors[0])
    assert raw(probe, {"sideways": model.sideways}, "train") is None
