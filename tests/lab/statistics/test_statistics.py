import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evenly.lab.statistics.paired import holm, paired_p, permutation_p, summarise


def test_interval_by_hand():
    """Three seeds: t(0.975, 2) = 4.3027, so half the interval is 4.3027 · s / √3."""
    found = summarise([0.7, 0.8, 0.9])
    assert found.mean == pytest.approx(0.8)
    assert found.std == pytest.approx(0.1)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.seeds == 3


def test_one_seed_has_no_interval():
    found = summarise([0.7])
    assert (found.mean, found.std, found.low, found.high) == (0.7, None, None, None)


def test_paired_test_agrees_with_scipy():
    ours, theirs = [0.71, 0.75, 0.69, 0.77], [0.70, 0.71, 0.69, 0.72]
    assert paired_p(ours, theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_pairing_counts():
    """A small gain on every seed is clear although the seeds differ by much more."""
    theirs = [0.5, 0.6, 0.7, 0.8]
    ours = [0.510, 0.612, 0.711, 0.809]
    assert paired_p(ours, theirs) < 0.01
    assert stats.ttest_ind(ours, theirs).pvalue > 0.9


def test_permutation_by_hand():
    """Differences 1, 2, -1: |sum| ≥ 2 for six of the eight ways to flip their signs."""
    assert permutation_p([1.0, 2.0, -1.0], [0.0] * 3) == pytest.approx(6 / 8)
    # Accuracies of 255 samples: one more right, one, three, none, three fewer. Rounding hides ties.
    ours = [right / 255 for right in (201, 199, 203, 200, 197)]
    theirs = [right / 255 for right in (200, 198, 200, 200, 200)]
    assert permutation_p(ours, theirs) == pytest.approx(24 / 32)
    assert permutation_p([0.7], [0.6]) is None
    assert permutation_p([0.7] * 6, [0.6] * 6) == pytest.approx(2 / 2**6)


@pytest.mark.parametrize("ours", [[0.5], [0.5, 0.5]])
def test_nothing_to_test(ours):
    assert paired_p(ours, [0.4] * len(ours)) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]),
        (np.float32([0.71, 0.72, 0.73]).tolist(), np.float32([0.61, 0.62, 0.63]).tolist()),
    ],
)
def test_equal_differences_that_differ_by_rounding(ours, theirs):
    """Tested as they are they would have p = 1e-31, and be bold."""
    assert paired_p(ours, theirs) is None


def test_one_sample_more_on_one_seed_is_a_difference():
    """Of ten thousand, which is more than any test split in use."""
    assert paired_p([0.6, 0.7, 0.8001], [0.5, 0.6, 0.7]) < 0.01


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_errors_are_compared_in_any_unit(unit):
    theirs = [2.0 * unit, 3.0 * unit, 4.0 * unit]
    assert paired_p([2.1 * unit, 3.1001 * unit, 4.1 * unit], theirs) < 0.01
    assert paired_p([2.1 * unit, 3.1 * unit, 4.1 * unit], theirs) is None


def test_holm_by_hand():
    """Sorted .01, .03, .04: times 3, 2, 1, and never below the one before."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    assert max(corrected) <= 1
    order = np.argsort(p_values)
    assert all(np.diff(np.array(corrected)[order]) >= 0)
