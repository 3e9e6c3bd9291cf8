"""What a setting may be, and what is said of one that may not."""

import math

import pytest

from evenly.ranges import check_choice, check_range


class Model: ...


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        ("not negative", (0, math.inf), (-1e-9,)),
        ("finite and not negative", (0, 1e9), (-1e-9, math.inf)),
        ("above 0", (1e-9, math.inf), (0,)),
        ("finite and above 0", (1e-9,), (0, math.inf)),
        ("above 0 and at most 1", (1e-9, 1), (0, 1.001)),
        ("from 0 to 1", (0, 1), (-1e-9, 1.001)),
        ("at least 1", (1,), (0,)),
    ],
)
def test_a_setting_out_of_its_range_is_named(allowed, inside, outside):
    check_range(Model(), allowed, **{f"x{n}": value for n, value in enumerate(inside)})
    for value in (*outside, math.nan):
        said = rf"^Model: 'rate' must be {allowed}; found {value}\.$"
        with pytest.raises(ValueError, match=said):
            check_range(Model(), allowed, weight=1, rate=value)


def test_a_setting_that_is_none_of_its_values_is_named():
    check_choice(Model(), ("a", "b", "c"), kind="b")
    with pytest.raises(ValueError, match=r"^Model: 'kind' must be 'a', 'b' or 'c'; found 'd'\.$"):
        check_choice(Model(), ("a", "b", "c"), kind="d")
