"""Says in words when a method acts, for a training that may be too short for it."""

from evenly.method import Method

_HORIZON = 1000  # epochs to look ahead


def too_short(method: Method, epochs: int) -> str | None:
    """A sentence for the start of a training if a method acts in none of its epochs, else None."""
    if epochs > _HORIZON or any(method.is_due(epoch) for epoch in range(epochs)):
        return None
    return f"{_when(method)}, but this training has {_count(epochs)}."


def never_acted(method: Method, epochs: int) -> str:
    """A sentence for the end of a training in which the time of a method did not come."""
    settings = " and ".join(f"`{setting}`" for setting in method.info.in_epochs)
    remedy = f" Train longer, or change {settings}." if settings else ""
    return f"{_when(method)}, but this training ended after {_count(epochs)}.{remedy}"


def _when(method: Method) -> str:
    name = type(method).__name__
    due = [epoch for epoch in range(_HORIZON) if method.is_due(epoch)]
    if not due:
        return f"{name} acts in no epoch with these settings"
    first, last = due[0], due[-1]
    if due == list(range(first, _HORIZON)):
        return f"{name} acts from epoch {first} on (counted from 0)"
    if len(due) > 1 and due == list(range(first, last + 1)):
        return f"{name} acts in epochs {first} to {last} (counted from 0)"
    named = [str(epoch) for epoch in due[:4]]
    if len(due) > len(named):
        listed = ", ".join(named) + ", ..."
    else:
        listed = " and ".join(", ".join(named).rsplit(", ", 1))
    return f"{name} acts before epoch{'s' * (len(due) > 1)} {listed} (counted from 0)"


def _count(epochs: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)}"
