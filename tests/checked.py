"""How annotations are checked where the tests import evenly: as jaxtyping does, at less cost.

Jaxtyping's own decorator binds the arguments of every call of every function, checks them once more
with what is returned, and is made anew for a function within another whenever that is defined.
"""

import dataclasses
import functools
import inspect
import types
import typing

import jaxtyping

jaxtyped = jaxtyping.jaxtyped


def checked(what=None, *, typechecker):
    """Stands in for `jaxtyping.jaxtyped`, which the import hook puts on functions and classes."""
    if what is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(what):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = checked(what.__init__, typechecker=typechecker)
        return what
    if "<locals>" in what.__qualname__:
        return what
    written = what.__annotations__
    hints = {name: _resolved(hint, what.__globals__) for name, hint in written.items()}
    # A generator's check would come late; a size such as {n} is looked up among the arguments.
    if inspect.isgeneratorfunction(what) or "{" in repr(list(hints.values())):
        return jaxtyped(what, typechecker=typechecker)
    what.__annotations__ = hints
    found = typechecker(what)
    what.__annotations__ = found.__annotations__ = written
    return _with_sizes(found) if any(map(_has_sizes, hints.values())) else found


def _resolved(hint, names):
    """What a text says; anything, where it is for type checkers alone or names what comes later."""
    holder = types.SimpleNamespace(__annotations__={"it": hint})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except (NameError, TypeError):
        return typing.Any


def _with_sizes(function):
    """Has each call compare the sizes that its annotations give the same name."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jaxtyped("context"):
            return function(*args, **kwargs)

    return call


def _has_sizes(hint):
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_sizes, typing.get_args(hint)))
