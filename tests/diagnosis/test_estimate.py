"""Figures with an interval."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from evenly.diagnosis.estimate import (
    Estimate,
    Z,
    difference,
    error_and_quantile,
    mean,
    placed,
    share,
    student,
)


def test_share_is_the_interval_of_agresti_and_coull():
    found = share(torch.tensor([1.0] * 50 + [0.0] * 50))
    half = Z * math.sqrt(0.25 / 104)
    assert (found.value, found.count) == (0.5, 100)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_difference_is_the_interval_of_agresti_and_min():
    # 30 of 100 are right only with the first, 10 only with the second
    found = difference(torch.tensor([1.0] * 30 + [-1.0] * 10 + [0.0] * 60))
    center = 20 / 102
    half = Z * math.sqrt((41 - 102 * center**2) / 102**2)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((center - half, center + half))


def test_where_all_agree_the_interval_stays_open():
    found = share(torch.ones(20))
    assert found.value == found.high == 1.0
    assert 0.7 < found.low < 0.95
    assert difference(torch.zeros(20)).high > 0.05


def test_seeds_add_their_variance():
    values = torch.tensor([[1.0] * 68 + [0.0] * 32, [1.0] * 72 + [0.0] * 28])
    found = share(values)
    assert found.value == pytest.approx(0.7)
    samples, seeds = share(values.mean(0)).error ** 2, 0.0008 / 2
    half = student(((samples + seeds) / seeds) ** 2) * math.sqrt(samples + seeds)
    assert found.error == pytest.approx(math.sqrt(samples + seeds))
    assert found.seed_error == pytest.approx(0.02)
    assert (found.low, found.high) == pytest.approx((72 / 104 - half, 72 / 104 + half))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1.0, 12.706), (2.0, 4.303), (2.5, 3.575), (9.0, 2.262), (120.0, 1.980), (1e9, Z)],
)
def test_quantiles_are_those_of_tables(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=5e-4)


def test_two_seeds_alone_tell_little():
    # Two seeds that differ by d: their mean ± 12.706 · d / 2
    error, quantile = error_and_quantile(0.0, torch.tensor([0.5, 0.6]))
    assert error * quantile == pytest.approx(0.635, rel=1e-3)
    assert error_and_quantile(0.0, torch.tensor([0.5, 0.5])) == (0, Z)
    # Samples that vary more than seeds: freedom (1 + 0.01 / 0.0025)²
    error, quantile = error_and_quantile(0.01, torch.tensor([0.5, 0.6]))
    assert error == pytest.approx(math.sqrt(0.0125))
    assert quantile == pytest.approx(student(25.0), rel=1e-4)
    assert error_and_quantile(0.04, torch.tensor([0.5])) == (0.2, Z)
    # The end of the range cuts the interval, not the standard error.
    found = share(torch.tensor([[0.0] * 100, [0.6] * 100]))
    assert (found.low, found.high) == (0, 1)
    assert found.error == pytest.approx(0.3, abs=0.01)
    assert json.loads(json.dumps(asdict(found)))["standard_error"] == found.error


def test_figures_of_each_seed():
    by_seed, errors = torch.tensor([0.1, 0.3]), torch.tensor([0.1, 0.2])
    found = Estimate.over_seeds(by_seed, errors, 50)
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt(0.025 + 0.01))
    assert found.seed_error == pytest.approx(0.1)
    assert found.high == pytest.approx(0.2 + student(3.5**2) * found.error, rel=1e-4)
    one = Estimate.over_seeds(by_seed[:1], errors[:1], 50)
    assert (one.low, one.high) == pytest.approx((0.1 - Z * 0.1, 0.1 + Z * 0.1))
    assert (one.standard_error, one.seed_error) == (None, 0)


def test_samples_that_do_not_count_are_left_out():
    here = torch.tensor([True, False, True, False])
    one, other = placed(torch.tensor([1.0, 0.0]), here), torch.tensor([0.0, math.nan, math.nan, 1])
    assert share(one) == share(torch.tensor([1.0, 0.0]))
    both = mean(torch.stack([one, other.double()]))
    assert both.count == 3
    assert both.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert share(torch.stack([one, torch.full((4,), math.nan).double()])) == share(one)


def test_mean_of_values_without_bounds():
    found = mean(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3.0
    assert found.error == pytest.approx(math.sqrt(14 / 16))


def test_samples_that_would_settle_it():
    found = Estimate(0.1, 0.1 - Z * 0.05, 0.1 + Z * 0.05, 100)
    assert found.error == pytest.approx(0.05)
    assert found.samples_for(0.05, 2.0) == 400  # half the error
    assert found.samples_for(0.2, 1.0) == 101  # never as few as have not settled it


def test_more_samples_do_not_lower_what_seeds_add():
    # The error of the samples is 0.04.
    found = Estimate(0.1, 0.0, 0.2, 100, standard_error=0.05, seed_error=0.03)
    assert found.samples_for(0.045, 1.0) == 143  # 100 · 0.04² / (0.045² - 0.03²)
    assert found.samples_for(0.09, 2.0) == 143
    # No number would do, or seeds would make up most of the error that is left.
    assert found.samples_for(0.03, 1.0) is None
    assert found.samples_for(0.04, 1.0) is None


def test_interval_holds_the_truth_as_often_as_it_says():
    stream = torch.Generator().manual_seed(0)
    for p in (0.5, 0.9, 0.99):
        draws = (torch.rand(1000, 60, generator=stream) < p).double()
        inside = sum(one.low <= p <= one.high for one in map(share, draws))
        assert inside > 930
