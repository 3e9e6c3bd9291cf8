"""The checker of annotations that the tests import evenly with."""

import beartype as runtime


def beartype(function):
    """Leaves a function within another alone: it is made at every call, and its check with it."""
    return function if "<locals>" in function.__qualname__ else runtime.beartype(function)
