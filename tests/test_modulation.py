import math

import pytest
import torch
from torch import nn

from evenly import Output
from evenly.modulation import Overflow, StepSum, is_sum, kept, scale_


def t(*numbers):
    return torch.tensor(numbers)


YES, NO = torch.tensor(True), torch.tensor(False)


class TestIsSum:
    @pytest.mark.parametrize(
        ("logits", "expected"),
        [
            (t(4.0, 1.0), True),
            (t(4.0, 1.5), False),  # off by .5, of 3 in the largest part
            (t(4.0, math.nan), None),
        ],
    )
    def test_of_two_parts(self, logits, expected):
        assert is_sum([t(1.0, 2.0), t(3.0, -1.0)], logits) is expected

    def test_zeros_tell_nothing(self):
        """A last layer that begins with zeros says only later that it is no sum."""
        assert is_sum([t(0.0), t(0.0)], t(0.0)) is None
        assert is_sum([t(0.0), t(0.0)], t(1.0)) is False

    def test_no_samples_tell_nothing(self):
        assert is_sum([torch.zeros(0, 3)] * 2, torch.zeros(0, 3)) is None


class TestKept:
    @pytest.mark.parametrize(
        ("counts", "new", "expected"),
        [
            (YES, t(3.0, 4.0), [3.0, 4.0]),
            (NO, t(3.0, 4.0), [1.0, 2.0]),
            (YES, t(3.0, math.nan), [1.0, 2.0]),
            (YES, t(-math.inf, 4.0), [1.0, 2.0]),
        ],
    )
    def test_the_old_where_the_new_is_none(self, counts, new, expected):
        assert kept(counts, new, t(1.0, 2.0)).tolist() == expected

    def test_it_is_of_the_news_kind(self):
        new = t(3.0).double()
        assert kept(NO, new, t(1.0)).dtype == torch.float64


class TestStepSum:
    @pytest.mark.parametrize(
        ("passes", "expected"),
        [
            ([t(1.0, 2.0), t(3.0, 4.0)], [4.0, 6.0]),
            ([t(1.0, 2.0), t(3.0, math.nan)], [1.0, 2.0]),
            ([t(math.inf, 2.0), t(3.0, 4.0), t(5.0, 6.0)], [8.0, 10.0]),
        ],
    )
    def test_a_pass_that_overflowed_is_left_out_of_the_sum(self, passes, expected):
        found = StepSum()
        for x in passes:
            found.add(x)
        assert found.take(self).tolist() == expected

    def test_of_passes_that_all_overflowed_there_is_no_sum(self):
        found = StepSum()
        found.add(t(math.nan, 2.0))
        found.add(t(1.0, math.inf))
        assert not found.take(self).isfinite().all()


class Net(nn.Module):
    """An encoder, and what is on it: a layer that the logits need, and one that they do not."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.head, self.own, self.idle = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x):
        feature = self.encoder(x)
        return Output(self.head(feature), {"a": feature}, {"a": self.own(feature)})


def stepped(model, output=None):
    """After a step, with a gradient everywhere."""
    overflow = Overflow({"a": model.encoder})
    overflow.watch(output or model(torch.ones(1, 2)))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return overflow


class TestOverflow:
    def test_a_step_counts_whose_gradients_and_findings_are_finite(self):
        overflow = stepped(Net())
        assert overflow.counts(t(1.0, 2.0))
        assert not overflow.counts(t(1.0, math.nan))
        assert not overflow.counts(t(1.0, math.inf))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("part", ["encoder", "head", "own"])
    def test_one_gradient_that_is_not_finite_is_enough(self, part, value):
        model = Net()
        overflow = stepped(model)
        getattr(model, part).weight.grad[1, 0] = value
        assert not overflow.counts(t(1.0))

    def test_what_has_no_part_in_the_logits_is_not_looked_at(self):
        model = Net()
        overflow = stepped(model)
        model.idle.weight.grad[1, 0] = math.nan
        assert overflow.counts(t(1.0))

    def test_an_encoder_that_the_first_pass_lacks_is_looked_at(self):
        model = Net()
        logits = model.head(torch.ones(1, 2))
        overflow = stepped(model, Output(logits, {}))
        model.encoder.bias.grad[0] = math.inf
        assert not overflow.counts(t(1.0))

    def test_a_parameter_without_a_gradient(self):
        model = Net()
        model.encoder.requires_grad_(False)
        overflow = stepped(model)
        for p in model.encoder.parameters():
            p.grad = None
        assert overflow.counts(t(1.0))

    def test_gradients_in_float16_whose_norm_it_cannot_hold(self):
        model = Net().half()
        overflow = Overflow({"a": model.encoder})
        overflow.watch(model(torch.ones(1, 2).half()))
        for p in model.parameters():
            p.grad = torch.full_like(p, 60_000.0)
        assert overflow.counts(t(1.0))
        model.head.bias.grad[0] = math.inf
        assert not overflow.counts(t(1.0))

    def test_a_sparse_gradient(self):
        model = nn.Embedding(4, 3, sparse=True)
        logits = model(torch.tensor([0, 2]))
        overflow = Overflow({"a": model})
        overflow.watch(Output(logits, {}))
        logits.sum().backward()
        assert overflow.counts(t(1.0))
        model.weight.grad._values()[1, 1] = math.inf
        assert not overflow.counts(t(1.0))

    def test_a_gradient_in_complex_numbers(self):
        weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        overflow = Overflow({})
        overflow.watch(Output((weight * 2).abs().unsqueeze(0), {}))
        weight.grad = torch.ones_like(weight)
        assert overflow.counts(t(1.0))
        weight.grad[0] = complex(0, math.inf)
        assert not overflow.counts(t(1.0))

    def test_parameters_are_those_of_the_epoch(self):
        model, other = Net(), Net()
        overflow = stepped(model)
        overflow.watch(other(torch.ones(1, 2)))  # a later pass; the first was looked up
        other.head.weight.grad = torch.full((3, 2), math.nan)
        assert overflow.counts(t(1.0))
        overflow.clear()
        overflow.watch(other(torch.ones(1, 2)))
        assert not overflow.counts(t(1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coefficient_that_is_not_finite_leaves_gradients_as_they_are(value):
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scale_(layer, torch.tensor(0.5))
    scale_(layer, torch.tensor(value))
    assert layer.weight.grad.tolist() == [[0.5, 1.0], [1.5, 2.0]]
