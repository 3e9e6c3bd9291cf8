"""What to say of a name that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches

from evenly.errors import UserError


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> UserError:
    """The error for an unknown name: the nearest ones, and all there are.

    Args:
        what: Kind of thing, such as 'method' or 'setting of relearn'.
        name: As it was given.
        known: The names there are.
        more: What else would do, such as 'or the path of a file'.
    """
    names = list(known)
    kind, of, place = what.partition(" of ")
    said = f"unknown {kind} '{name}'{of}{place}"
    if not names and not more:
        return UserError(f"{said}: there are none.")
    listed = f"{', '.join(names)}{', ' if names and more else ''}{more}"
    return UserError(f"{said}. {nearest(name, names)}Choose from: {listed}.")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The question whether one of the nearest names was meant; empty if none is near.

    Args:
        name: As it was given.
        known: The names there are.
        cutoff: How alike they must be at least, from 0 to 1.
    """
    near = get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""
