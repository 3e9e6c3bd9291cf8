"""A method's course through a training: the epochs in which it acts, and that it has only one."""

from weakref import WeakSet

from evenly.errors import UserError
from evenly.method import Method

_HORIZON = 1000  # epochs to look ahead
_BEGUN: "WeakSet[Method]" = WeakSet()  # methods whose training has begun


def begin(method: Method) -> None:
    """Records that the training of a method has begun."""
    _BEGUN.add(method)


def has_begun(method: Method) -> bool:
    """Whether a method remembers a training, so that it cannot begin a new one."""
    return method in _BEGUN and bool(method.state)


def check_new(method: Method) -> None:
    """Raises if a method remembers a training other than the one that begins."""
    if has_begun(method):
        raise UserError(
            f"this {type(method).__name__} remembers {' and '.join(method.state)} of a training "
            "that has begun before. Make a new method for a new training, or resume the old one "
            "from a checkpoint."
        )


def too_short(method: Method, epochs: int) -> str | None:
    """A warning for the start of a training in whose epochs a method never acts, else None."""
    if epochs > _HORIZON or any(method.is_due(epoch) for epoch in range(epochs)):
        return None
    return _but(method, f"this training has {_count(epochs)}.")


def never_acted(method: Method, epochs: int) -> str:
    """A warning for the end of a training in which a method never acted."""
    settings = " and ".join(f"`{setting}`" for setting in method.info.in_epochs)
    remedy = f" Train longer, or change {settings}." if settings else ""
    return _but(method, f"this training ended after {_count(epochs)}.{remedy}")


def _but(method: Method, what: str) -> str:
    name = type(method).__name__
    due = [epoch for epoch in range(_HORIZON) if method.is_due(epoch)]
    if not due:
        return f"By its schedule, {name} acts in no epoch with these settings."
    first, last = due[0], due[-1]
    word = "before" if method.info.writes == "weights" else "in"
    if due == list(range(first, _HORIZON)):
        where = f"from epoch {first} on"
    elif len(due) > 4 and due == list(range(first, last + 1)):
        where = f"{word} epochs {first} to {last}"
    elif len(due) > 4:
        where = f"{word} epochs {', '.join(map(str, due[:4]))}, ..."
    else:
        listed = " and ".join(", ".join(map(str, due)).rsplit(", ", 1))
        where = f"{word} epoch{'s' * (len(due) > 1)} {listed}"
    return f"By its schedule, {name} acts {where} (counted from 0), but {what}"


def _count(epochs: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)}"
