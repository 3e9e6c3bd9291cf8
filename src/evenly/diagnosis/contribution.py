"""What each modality adds: the Shapley value of a figure known for any set of modalities.

Shapley, "A value for n-person games", 1953. As a measure of multimodal models: Hu, Li, Zhou,
"SHAPE: A Unified Approach to Evaluate the Contribution and Cooperation of Individual Modalities",
IJCAI 2022, https://arxiv.org/abs/2205.00302.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any, TypeVar

V = TypeVar("V")

EXACT = 6
"""Most modalities for which all 2^M sets are evaluated; beyond, orders of arrival are drawn."""
ORDERS = 32


def subsets(names: Sequence[str]) -> list[frozenset[str]]:
    """All 2^M sets of modalities: set number s holds those whose bit is set in s."""
    return [
        frozenset(name for m, name in enumerate(names) if s >> m & 1)
        for s in range(2 ** len(names))
    ]


def shapley(value: Mapping[frozenset[str], V], names: Sequence[str]) -> dict[str, V]:
    """The Shapley value of each modality.

    φ_m = Σ over S without m of |S|! (M - |S| - 1)! / M! · (v(S ∪ m) - v(S)); for two modalities
    φ_1 = ½ (v(1) - v(∅) + v(1,2) - v(2)). They add up to v of all modalities minus v of none.

    Args:
        value: v of every set of modalities, including the empty one: numbers or tensors.
        names: The modalities.
    """
    found = {}
    for name in names:
        total: Any = 0
        for without in subsets([other for other in names if other != name]):
            weight = 1 / (len(names) * comb(len(names) - 1, len(without)))
            gain: Any = value[without | {name}] - value[without]  # type: ignore[operator]
            total = total + weight * gain
        found[name] = total
    return found


def contributions(
    values: Callable[[Sequence[frozenset[str]]], Mapping[frozenset[str], V]],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, V]:
    """The Shapley value of each modality; for more than six, an estimate.

    The estimate is the mean gain over random orders of arrival, each also taken in reverse. The
    values add up exactly; their error falls with the square root of the number of orders.

    Args:
        values: Returns v of sets of modalities, numbers or tensors; called once, for all sets
            needed.
        names: The modalities.
        seed: Seed of the orders.
    """
    if len(names) <= EXACT:
        return shapley(values(subsets(names)), names)
    stream = random.Random(seed)
    drawn = [stream.sample(list(names), len(names)) for _ in range(ORDERS // 2)]
    orders = [order for one in drawn for order in (one, one[::-1])]
    met = {frozenset(order[:place]) for order in orders for place in range(len(names) + 1)}
    v = values(sorted(met, key=sorted))
    found: dict[str, Any] = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            gain: Any = v[before | {name}] - v[before]  # type: ignore[operator]
            found[name] = found[name] + gain / len(orders)
    return found


def imbalance(contribution: Mapping[str, float]) -> float | None:
    """How unevenly modalities contribute: (M · largest share - 1) / (M - 1).

    0 if all contribute the same, 1 if one contributes everything, above 1 if others do harm. None
    for a single modality, and if the sum is not positive.
    """
    total, count = sum(contribution.values()), len(contribution)
    if count < 2 or total <= 0:
        return None
    return (count * max(contribution.values()) / total - 1) / (count - 1)
