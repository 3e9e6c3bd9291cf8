"""What to say of a name that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches

from evenly.errors import UserError


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> UserError:
    """The error for an unknown name: the nearest ones, and all there are.

    Args:
        what: Kind of thing, such as 'method'.
        name: As it was given.
        known: The names there are.
        more: What else would do, such as 'or the path of a file'.
    """
    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    if not names and not more:
        return UserError(f"'{name}' is no {what}; there is none.")
    return UserError(
        f"'{name}' is no {what}. {guess}There is {', '.join(names)}{', ' if more else ''}{more}."
    )
