"""What goes into an encoder, as a vector that a linear classifier can read."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenly
from evenly.diagnosis.raw import WIDEST, raw, summary


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
