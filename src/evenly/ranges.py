"""The ranges of settings, and the errors for values outside them."""

import math
from collections.abc import Callable

from evenly.errors import UserError

_RANGES: dict[str, Callable[[float], bool]] = {
    "not negative": lambda x: x >= 0,
    "finite and not negative": lambda x: 0 <= x < math.inf,
    "above 0": lambda x: x > 0,
    "finite and above 0": lambda x: 0 < x < math.inf,
    "above 0 and at most 1": lambda x: 0 < x <= 1,
    "from 0 to 1": lambda x: 0 <= x <= 1,
    "at least 1": lambda x: x >= 1,
}


def check_range(who: object, allowed: str, /, **settings: float | int) -> None:
    """Raises if a setting is out of its range; NaN is out of any range.

    Args:
        who: The owner of the settings.
        allowed: Their range, in words.
        settings: Settings by name.
    """
    for name, value in settings.items():
        if not _RANGES[allowed](value):
            raise UserError(f"{type(who).__name__}: '{name}' must be {allowed}; found {value}.")


def check_choice(who: object, allowed: tuple[str, ...], /, **settings: str) -> None:
    """Raises if a setting is not one of its two or more allowed values."""
    for name, value in settings.items():
        if value not in allowed:
            *most, last = (f"'{one}'" for one in allowed)
            raise UserError(
                f"{type(who).__name__}: '{name}' must be {', '.join(most)} or {last}; found "
                f"'{value}'."
            )
