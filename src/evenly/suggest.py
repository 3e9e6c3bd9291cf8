"""What to say about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches

from evenly.errors import UserError


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> UserError:
    """The error for an unknown name: the nearest ones, and all there are.

    Args:
        what: Kind of thing, such as 'method' or 'setting of relearn'.
        name: The name as given.
        known: The existing names.
        more: What else would work, such as 'or the path of a file'.
    """
    names = list(known)
    kind, of, place = what.partition(" of ")
    said = f"unknown {kind} '{name}'{of}{place}"
    if not names and not more:
        return UserError(f"{said}: there are none.")
    listed = f"{', '.join(names)}{', ' if names and more else ''}{more}"
    return UserError(f"{said}. {nearest(name, names)}Choose from: {listed}.")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Asks whether the nearest names were meant; empty if none is near.

    Args:
        name: The name as given.
        known: The existing names.
        cutoff: Minimum similarity, from 0 to 1.
    """
    near = get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""
