"""What a model makes of each modality."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenly
from evenly.diagnosis.classes import Classes
from evenly.diagnosis.use import use

CLASSES = 4


class Pair(nn.Module):
    """Two identity encoders, whose features are one-hot classes, under weights of our choice."""

    def __init__(self, weights, outputs=lambda x: x):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": nn.Identity(), "b": Wrapped(outputs)})
        self.weights = weights

    def fused(self, features):
        return sum(weight * features[name] for name, weight in self.weights.items())

    def forward(self, a, b):
        features = {"a": self.encoders["a"](a), "b": self.encoders["b"](b)[0]}
        return self.fused(features), features


class Wrapped(nn.Module):
    """Gives a tuple, as the encoders of libraries do."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return (self.outputs(x), "no tensor")


def loader(count=200, batch_size=50):
    target = torch.arange(count) * CLASSES // count  # sorted by class
    hot = nn.functional.one_hot(target, CLASSES).float()
    return DataLoader(TensorDataset(hot, hot.clone(), target), batch_size)


def looked(model, *, fuse, present=None, batches=None):
    batches = batches or loader()

    def forward(model, batch):
        a, b, target = batch
        logits, features = model(a, b)
        here = None if present is None else {"b": present(target)}
        return evenly.Output(
            logits, features, fuse=model.fused if fuse else None, present=here
        ), target

    probe = evenly.Probe(model, forward, batches, batches)
    encoders = dict(model.encoders.items())
    return use(probe, encoders, Classes(CLASSES, None, one_logit=False))


@pytest.mark.parametrize("fuse", [True, False])
def test_what_the_head_leaves_out_is_not_used(fuse):
    found = looked(Pair({"a": 1.0, "b": 0.0}), fuse=fuse)
    assert found.right.mean() == 1
    assert found.flipped["b"].max() == 0
    assert found.without["b"].mean() == 1
    assert found.contribution["b"].abs().max() == 0
    # Swaps are drawn from all classes although the split is sorted: a quarter keeps its own.
    assert found.without["a"].mean() == pytest.approx(0.25, abs=0.06)
    assert found.flipped["a"].mean() == pytest.approx(0.75, abs=0.06)
    torch.testing.assert_close(found.contribution["a"], 1 - found.without["a"])
    assert found.followed["a"].mean() == 1
    assert found.outvoted["a"].mean() == 0
    assert found.followed["b"].mean() == 0
    assert found.outvoted["b"].mean() == 1


def test_the_stronger_one_wins_and_both_contribute():
    found = looked(Pair({"a": 2.0, "b": 1.0}), fuse=True)
    assert found.followed["a"].mean() == 1
    assert found.outvoted["b"].mean() == 1
    # v(a) = 1, v(b) = v() = chance: all of it is a's
    torch.testing.assert_close(found.contribution["b"], torch.zeros(200).double())


def test_replayed_encoders_give_what_fuse_gives():
    first, second = (looked(Pair({"a": 1.0, "b": 0.9}), fuse=fuse) for fuse in (True, False))
    for name in ("a", "b"):
        torch.testing.assert_close(first.contribution[name], second.contribution[name])
        torch.testing.assert_close(first.followed[name], second.followed[name])


def test_encoders_run_as_before_afterwards():
    model = Pair({"a": 1.0, "b": 0.5})
    looked(model, fuse=False)
    assert "forward" not in vars(model.encoders["a"])
    own = model.encoders["a"].forward = lambda x: x
    looked(model, fuse=False)
    assert model.encoders["a"].forward is own


def test_samples_without_a_modality_swap_it_with_nobody():
    found = looked(Pair({"a": 0.5, "b": 1.0}), fuse=True, present=lambda target: target < 2)
    lacking = found.flipped["b"] == 0
    assert lacking.sum() >= 100  # of the two classes that have no b


def test_a_last_batch_of_one_sample_is_left_out():
    found = looked(Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=loader(21, 5))
    assert len(found.right) == 20
    with pytest.raises(ValueError, match="batch_size above 1"):
        looked(Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=loader(8, 1))


class Time(nn.Module):
    """A GRU over three copies of its input; its features are the last hidden state."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.gru = nn.GRU(CLASSES, CLASSES, batch_first=batch_first)

    def forward(self, x):
        steps = x[:, None].expand(-1, 50, -1)  # as many as samples in a batch
        return self.gru(steps if self.batch_first else steps.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_samples_are_found_along_any_dimension(batch_first):
    """Samples are the first or second dimension of the output, the second of the last state."""
    torch.manual_seed(0)

    class Recurrent(Pair):
        def forward(self, a, b):
            state = self.encoders["b"](b)[1][-1]
            features = {"a": self.encoders["a"](a), "b": state - state.mean(0)}
            return self.fused(features), features

    model = Recurrent({"a": 0.01, "b": 1.0})
    model.encoders["b"] = Time(batch_first)
    by_fuse, by_replay = (looked(model, fuse=fuse) for fuse in (True, False))
    assert by_replay.flipped["b"].mean() > 0.3
    torch.testing.assert_close(by_fuse.flipped["b"], by_replay.flipped["b"])


def test_what_has_no_row_for_each_sample_is_refused():
    class Flat(Pair):
        def forward(self, a, b):
            features = {
                "a": self.encoders["a"](a), "b": self.encoders["b"](b)[0].view(-1, CLASSES)
            }  # fmt: skip
            return self.fused(features), features

    model = Flat({"a": 1.0, "b": 1.0}, outputs=torch.flatten)
    with pytest.raises(ValueError, match="no row for each of the 50"):
        looked(model, fuse=False)
    assert "forward" not in vars(model.encoders["a"])  # is put back all the same


def test_a_model_that_will_not_repeat_itself_is_refused():
    class Moody(Pair):
        calls = 0

        def forward(self, a, b):
            logits, features = super().forward(a, b)
            self.calls += 1
            return logits + self.calls * torch.arange(CLASSES), features

    with pytest.raises(ValueError, match="predicts differently"):
        looked(Moody({"a": 1.0, "b": 1.0}), fuse=False)
