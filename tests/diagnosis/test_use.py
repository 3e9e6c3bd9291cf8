"""What a model makes of each modality."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import evenly
from evenly.diagnosis.classes import Classes, Labels
from evenly.diagnosis.use import are_mixed, use

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
    batches = loader() if batches is None else batches

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
    assert found.lost["b"].abs().max() == 0
    assert found.flipped["b"].max() == 0
    assert found.without["b"].mean() == 1
    assert found.contribution["b"].abs().max() == 0
    # Swaps are drawn from all classes although the split is sorted: a quarter keeps its own.
    assert found.without["a"].mean() == pytest.approx(0.25, abs=0.06)
    assert found.flipped["a"].mean() == pytest.approx(0.75, abs=0.06)
    torch.testing.assert_close(found.contribution["a"], 1 - found.without["a"])
    torch.testing.assert_close(found.contribution["a"], found.lost["a"])
    assert found.followed["a"].nanmean() == 1
    assert found.outvoted["a"].nanmean() == 0
    assert found.followed["b"].nanmean() == 0
    assert found.outvoted["b"].nanmean() == 1


def test_the_stronger_one_wins_and_both_contribute():
    found = looked(Pair({"a": 2.0, "b": 1.0}), fuse=True)
    assert found.followed["a"].nanmean() == 1
    assert found.outvoted["b"].nanmean() == 1
    # v(a) = 1, v(b) = v() = chance: all of it is a's
    torch.testing.assert_close(found.contribution["b"], torch.zeros(200).double())


def test_replayed_encoders_give_what_fuse_gives():
    first, second = (looked(Pair({"a": 1.0, "b": 0.9}), fuse=fuse) for fuse in (True, False))
    for name in ("a", "b"):
        torch.testing.assert_close(first.contribution[name], second.contribution[name])
        torch.testing.assert_close(first.followed[name], second.followed[name], equal_nan=True)


def test_encoders_run_as_before_afterwards():
    model = Pair({"a": 1.0, "b": 0.5})
    looked(model, fuse=False)
    assert "forward" not in vars(model.encoders["a"])
    own = model.encoders["a"].forward = lambda x: x
    looked(model, fuse=False)
    assert model.encoders["a"].forward is own


def test_an_encoder_that_is_never_called_as_a_module_is_refused():
    """Its output would stay as it is in every swap, and the modality look unused."""

    class Past(Pair):
        def forward(self, a, b):
            features = {"a": self.encoders["a"].forward(a), "b": self.encoders["b"](b)[0]}
            return self.fused(features), features

    model = Past({"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="never calls the encoder of 'a' as a module"):
        looked(model, fuse=False)
    assert looked(model, fuse=True).flipped["a"].mean() > 0.3


def test_an_encoder_that_a_batch_without_its_modality_skips():
    """Of batches of four, some hold no sample with b."""

    class Skipping(Pair):
        def forward(self, a, b):
            features = {"a": self.encoders["a"](a)}
            features["b"] = self.encoders["b"](b)[0] if b.any() else torch.zeros_like(b)
            return self.fused(features), features

    a, b, target = loader().dataset.tensors
    without = DataLoader(TensorDataset(a, b * (target < 2)[:, None], target), 4)
    present = lambda target: target < 2  # noqa: E731
    found = looked(Skipping({"a": 0.5, "b": 1.0}), fuse=False, present=present, batches=without)
    assert found.flipped["b"].isnan().sum() >= 100
    assert found.lost["b"].nanmean() > 0.2


def test_samples_without_a_modality_say_nothing_of_it():
    found = looked(Pair({"a": 0.5, "b": 1.0}), fuse=True, present=lambda target: target < 2)
    for of_b in (found.flipped, found.without, found.lost, found.contribution):
        assert of_b["b"].isnan().sum() == 100  # of the two classes that have no b
        assert not of_b["a"].isnan().any()
    # Only two classes have b: it comes from the other one in half of the swaps.
    assert found.flipped["b"].nanmean() == pytest.approx(0.5, abs=0.06)
    assert found.lost["b"].nanmean() == pytest.approx(0.5, abs=0.06)
    assert found.followed["b"].nanmean() == 1


def of_labels(model, *, here):
    """Of two labels, of which the model gives each sample its own."""
    target = torch.tensor([[1, 0], [0, 1]] * 20)
    batches = DataLoader(TensorDataset(target.float(), target.float(), target, here), 40)

    def forward(model, batch):
        a, b, target, here = batch
        logits, features = model(a, b)
        return evenly.Output(logits, features, fuse=model.fused, present={"b": here}), target

    probe = evenly.Probe(model, forward, batches, batches)
    return use(probe, dict(model.encoders.items()), Labels(2, None, False, torch.full((2,), 0.5)))


def test_balanced_accuracy_is_that_of_the_samples_that_have_the_modality():
    here = torch.arange(40) < 16
    found = of_labels(Pair({"a": 0.0, "b": 1.0}), here=here)
    assert (~found.without["b"].isnan()).sum() == 16
    # All 16 are right, and those with another's labels are wrong.
    wrong = 1 - found.without["b"].nanmean()
    torch.testing.assert_close(found.lost["b"].nanmean(), wrong)
    torch.testing.assert_close(found.contribution["b"], found.lost["b"], equal_nan=True)


def test_a_last_batch_of_one_sample_is_left_out():
    found = looked(Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=loader(21, 5))
    assert len(found.lost["a"]) == 20


def test_three_samples_of_a_batch_show_whether_predictions_change():
    """Each of the two others gives its own class, so each swap between them changes it."""
    target = torch.arange(3)
    hot = nn.functional.one_hot(target, CLASSES).float()
    three = DataLoader(TensorDataset(hot, hot, target), 3)
    found = looked(Pair({"a": 1.0, "b": 0.0}), fuse=True, batches=three)
    assert found.flipped["a"].tolist() == [1.0, 1.0, 1.0]


def test_votes_are_means_over_the_swaps_of_each_sample():
    """A sample that swaps four times is still one sample."""
    target = torch.arange(3)
    hot = nn.functional.one_hot(target, CLASSES).float()
    three = DataLoader(TensorDataset(hot, hot, target), 3)
    of_a = torch.tensor([1.0, 3.0, 1.0, 1.0])  # a outweighs b if it is of class 1
    found = looked(Pair({"a": of_a, "b": 2.0}), fuse=True, batches=three)
    # In each round, one of the others takes a from the sample of class 1; that one never can.
    least, *others = sorted(found.followed["a"].tolist())
    assert (least, sum(others)) == (0, 1)
    torch.testing.assert_close(found.outvoted["a"], 1 - found.followed["a"])


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_less_than_three_are_refused(size):
    with pytest.raises(ValueError, match="no batch of the validation loader has three samples"):
        looked(Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=loader(8, size))


def test_a_batch_in_which_two_have_a_modality_says_nothing_of_flips():
    batches = loader(12, 6)
    order = []

    def first_two_of_the_first(target):
        order.append(len(target))
        return torch.arange(len(target)) < (2 if len(order) == 1 else 6)

    found = looked(
        Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=batches, present=first_two_of_the_first
    )
    assert found.flipped["b"].isnan().tolist() == [True] * 6 + [False] * 6
    assert found.lost["b"].isnan().tolist() == [False] * 2 + [True] * 4 + [False] * 6


class Stream(IterableDataset):
    """Rows in their order, which a loader cannot change."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_batches_of_one_class_are_refused_if_their_order_is_the_loaders():
    rows = loader().dataset  # sorted by class
    with pytest.raises(ValueError, match="most samples of a batch of the"):
        looked(Pair({"a": 1.0, "b": 1.0}), fuse=True, batches=DataLoader(Stream(rows), 50))
    mixed = [rows[i] for i in torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    found = looked(Pair({"a": 1.0, "b": 0.0}), fuse=True, batches=DataLoader(Stream(mixed), 50))
    assert found.lost["a"].mean() == pytest.approx(0.75, abs=0.06)


def test_how_mixed_batches_are():
    # Of the pairs within a batch, 1/2 differ; of those of the split, 16/28.
    assert are_mixed([torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0])])
    # 1/4 (of one batch, 1/2) and 15/28
    assert not are_mixed([torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 1, 1])])
    assert are_mixed([torch.tensor([0, 0]), torch.tensor([0])])
    assert not are_mixed([torch.tensor([[0, 1]] * 2), torch.tensor([[1, 1]] * 2)])


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
