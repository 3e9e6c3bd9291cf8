import itertools
from math import comb

import pytest
import torch

from evenly.diagnosis.contribution import contributions, imbalance, shapley, subsets

NAMES = "abcdefgh"


def by_orders(value, names):
    """The Shapley value by its definition: the mean gain over all orders of arrival."""
    orders = list(itertools.permutations(names))
    found = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            gain = value[frozenset(order[: place + 1])] - value[frozenset(order[:place])]
            found[name] = found[name] + gain / len(orders)
    return found


def drawn(names, n=3):
    stream = torch.Generator().manual_seed(0)
    return {s: torch.randn(n, generator=stream, dtype=torch.float64) for s in subsets(names)}


def test_subsets_are_numbered_by_their_bits():
    assert subsets("ab") == [frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_equals_the_mean_over_all_orders(count):
    names = NAMES[:count]
    value = drawn(names)
    found, wanted = shapley(value, names), by_orders(value, names)
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)
    added = sum(found.values())
    torch.testing.assert_close(added, value[frozenset(names)] - value[frozenset()])


def test_two_modalities_by_hand():
    """Accuracies .2 of none, .5 and .6 of one, .9 of both."""
    value = dict(zip(subsets("av"), [0.2, 0.5, 0.6, 0.9], strict=True))
    assert shapley(value, "av") == pytest.approx({"a": 0.3, "v": 0.4})


def test_the_weights_of_the_sets():
    """|S|! (M - |S| - 1)! / M! is one over M times the number of sets of that size without m."""
    for count in range(1, 6):
        names = NAMES[:count]
        for size in range(count):
            value = dict.fromkeys(subsets(names), 0.0)
            value[frozenset(names[: size + 1])] = 1.0
            expected = 1 / (count * comb(count - 1, size))
            assert shapley(value, names)[names[size]] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 6])
def test_up_to_six_it_is_exact(count):
    names = NAMES[:count]
    value = {s: float(x[0]) for s, x in drawn(names).items()}
    found = contributions(lambda sets: {s: value[s] for s in sets}, names)
    assert found == pytest.approx(shapley(value, names))


def test_above_six_it_is_an_estimate_that_adds_up():
    asked = []

    def worth(chosen):
        together = 0.3 * ({"a", "b"} <= chosen)
        return sum(0.05 * (1 + NAMES.index(name)) for name in chosen) + together

    def values(sets):
        asked.append(len(sets))
        return {chosen: worth(chosen) for chosen in sets}

    found = contributions(values, NAMES)
    assert len(asked) == 1
    assert asked[0] < 2 ** len(NAMES)
    assert sum(found.values()) == pytest.approx(worth(frozenset(NAMES)))
    exact = {name: 0.05 * (1 + NAMES.index(name)) + 0.15 * (name in "ab") for name in NAMES}
    assert found == pytest.approx(exact, abs=0.08)
    assert found["c"] == pytest.approx(exact["c"])  # whose gain is the same in every order


@pytest.mark.parametrize(
    ("contribution", "expected"),
    [
        ({"a": 0.3, "v": 0.3}, 0.0),
        ({"a": 0.6, "v": 0.0}, 1.0),
        ({"a": 0.45, "v": 0.15}, 0.5),
        ({"a": 0.8, "v": -0.2}, 5 / 3),
        ({"a": 0.2, "v": 0.2, "t": 0.2}, 0.0),
        ({"a": 0.4, "v": 0.1, "t": 0.1}, 0.5),
        ({"a": 0.4}, None),
        ({"a": 0.1, "v": -0.1}, None),
    ],
)
def test_imbalance_by_hand(contribution, expected):
    assert imbalance(contribution) == (expected if expected is None else pytest.approx(expected))
