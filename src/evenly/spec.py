"""A name with settings, as written on the command line: `relearn(every=5,gap=matched)`."""

import inspect
import itertools
import json
import math
import re
import reprlib
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from evenly.errors import UserError
from evenly.imported import is_own
from evenly.suggest import unknown

T = TypeVar("T")

DEPTH = 30
"""Nesting depth of lists and mappings in YAML."""
VALUES = 100_000
"""Total values in YAML: far more than a comparison of a thousand methods has."""


@dataclass(frozen=True)
class Spec:
    """What to build: a method or data set by name, with settings that differ from the defaults.

    Attributes:
        name: Name of the method or data set, or a path.
        settings: Settings by name: numbers, strings, booleans, None, and lists and mappings of
            these.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The canonical text, settings in alphabetical order; `parse` reads it back."""
        if not self.settings:
            return self.name
        settings = ",".join(f"{key}={_text(self.settings[key])}" for key in sorted(self.settings))
        return f"{self.name}({settings})"


def parse(text: str) -> Spec:
    """Reads `name` or `name(setting=value,...)`; values are YAML, so `0.1`, `true`, `[1,2]`, `x`.

    Several combined, `ogm_ge+relearn(every=5)`, count as one name without settings; `together`
    splits them.

    Raises:
        ValueError: If the text does not have that form.
    """
    several = together(text)
    return Spec("+".join(spec.text for spec in several)) if len(several) > 1 else several[0]


def together(text: str) -> list[Spec]:
    """The parts of `name(setting=value)+name`, joined by a plus; just one without a plus.

    They are sorted as texts, so that `a+b` and `b+a` are the same.

    Raises:
        ValueError: If a part does not have the form that `parse` reads.
    """
    parts = [part.strip() for part in _parts(text, "+")] if "+" in text else [text]
    names = [part.partition("(")[0].strip() for part in parts]
    if len(parts) < 2 or not all(name.isidentifier() or is_own(name) for name in names):
        return [_one(text)]
    return sorted(map(_one, parts), key=lambda spec: spec.text)


def split(text: str) -> list[Spec]:
    """Reads several specs, `joint,relearn(every=5,times=2)`, split at commas outside brackets.

    Raises:
        ValueError: If there is none, or one does not have the form that `parse` reads.
    """
    parts = _parts(text)
    if not all(part.strip() for part in parts):
        raise UserError(f"'{text}' has an empty place in its list of names. Write name,name,name.")
    if not parts:
        raise UserError("the list of names is empty. Write at least one name.")
    return [parse(part) for part in parts]


def converted(what: str, value: Any, hint: Any) -> Any:
    """A setting's value in the type of its annotation; the only conversion is from int to float.

    Args:
        what: The setting, for error messages.
        value: The value as `parse` read it.
        hint: Made of int, float, bool, str, None, lists, tuples, dicts, literals and unions;
            anything else in a union cannot be written as text and is ignored.

    Raises:
        ValueError: If the value is of another type.
    """
    for option in _options(hint):
        if option is float and type(value) is int:
            return float(value)
        if option is Any or type(value) is option:
            return value
        if get_origin(option) is Literal:
            for known in get_args(option):
                if str(known) == str(value):  # YAML reads the word 32 as a number
                    return known
        if get_origin(option) is list and isinstance(value, list):
            return [converted(what, item, *get_args(option)) for item in value]
        parts = get_args(option)
        if get_origin(option) is tuple and isinstance(value, list) and parts[1:] == (...,):
            return tuple(converted(what, item, parts[0]) for item in value)
        if get_origin(option) is tuple and isinstance(value, list) and len(value) == len(parts):
            return tuple(map(partial(converted, what), value, parts))
        if get_origin(option) is dict and isinstance(value, dict):
            keys, items = get_args(option)
            return {
                converted(what, key, keys): converted(what, item, items)
                for key, item in value.items()
            }
    found = "null" if value is None else reprlib.repr(value)
    raise UserError(f"{what} takes {wanted(hint)}, found {found}.")


def numbers(value: Any, hint: Any) -> Any:
    """The same value, with 1e-3 as a number where one is expected; plain YAML reads it as text."""
    for option in _options(hint):
        if isinstance(value, dict) and (option is Any or get_origin(option) is dict):
            item = Any if option is Any else get_args(option)[1]
            return {key: numbers(each, item) for key, each in value.items()}
        if option in (float, Any) and isinstance(value, str) and _NUMBER.match(value):
            return float(value)
    return value


def wanted(hint: Any) -> str:
    """What `converted` accepts for an annotation, in words."""
    return " or ".join(filter(None, map(_in_words, _options(hint))))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def made(what: str, spec: Spec, makers: Mapping[str, Callable[..., T]]) -> T:
    """Makes what a spec describes.

    Args:
        what: Kind of thing, for error messages.
        spec: Name and settings.
        makers: Functions or dataclasses by name; every parameter is a setting, with an annotation
            that `converted` knows.

    Raises:
        ValueError: If the name or a setting is unknown, or a setting is of another type.
    """
    if spec.name not in makers:
        raise unknown(what, spec.name, makers)
    maker = makers[spec.name]
    known = inspect.signature(maker).parameters
    hints = get_type_hints(maker.func if isinstance(maker, partial) else maker)
    settings = {}
    for name, value in spec.settings.items():
        if name not in known:
            raise unknown(f"setting of {spec.name}", name, known)
        settings[name] = converted(f"{spec.name}: {name}", value, hints[name])
    return maker(**settings)


def _in_words(hint: Any) -> str:
    """What to give for an annotation; empty if it cannot be written."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is list:
        return f"a list of {_in_words(*get_args(hint)).removeprefix('a ')}s"
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        return f"a list of {_in_words(get_args(hint)[0]).removeprefix('a ')}s"
    if get_origin(hint) is tuple:
        return f"a list [{', '.join(map(wanted, get_args(hint)))}]"
    if get_origin(hint) is dict:
        keys, items = (_in_words(part).removeprefix("a ") for part in get_args(hint))
        return f"a mapping {{{keys}: {items}}}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return "any value" if hint is Any else plain.get(hint, "")


def _setting(name: str, part: str) -> tuple[str, Any]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not (equals and value and key.isidentifier()):
        raise UserError(f"'{name}' cannot read '{part.strip()}' as a setting. Write setting=value.")
    try:
        return key, _load(value)
    except ValueError as error:
        raise UserError(
            f"'{name}' cannot read the value of '{key}', found '{value}'. Write a number, a word, "
            'or a list such as [1,2]; put text with special characters between "quotes".'
        ) from error


def _one(text: str) -> Spec:
    text = text.strip()
    opening = text.find("(")
    name = (text if opening < 0 else text[:opening]).strip()
    if not name or ")" in name:
        raise UserError(f"'{text}' has no name before its settings. Write name(setting=value).")
    if opening < 0:
        return Spec(name)
    closing = next((at for at, _, depth in _scan(text) if depth == 0 and at > opening), -1)
    if closing != len(text) - 1:
        raise UserError(
            f"'{text}' goes on after the closing parenthesis with '{text[closing + 1 :]}'. "
            "Write name(setting=value), and a comma before the next name."
        )
    settings: dict[str, Any] = {}
    for part in _parts(text[opening + 1 : closing]):
        key, value = _setting(name, part)
        if key in settings:
            raise UserError(f"'{name}' is given the setting '{key}' twice. Give it once.")
        settings[key] = value
    return Spec(name, settings)


def _parts(text: str, at_each: str = ",") -> list[str]:
    """Splits at commas, or other characters, outside brackets; an empty text has no parts."""
    cuts = [at for at, character, depth in _scan(text) if character == at_each and depth == 0]
    starts = [0, *(cut + 1 for cut in cuts)]
    ends = [*cuts, len(text)]
    if not text.strip():
        return []
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _scan(text: str) -> Iterator[tuple[int, str, int]]:
    """Each character outside quotes, with its position and the brackets open after it."""
    pairs = {")": "(", "]": "[", "}": "{"}
    inside: list[str] = []
    quote = ""
    before = ","
    for at, character in enumerate(text):
        if quote:
            # A backslash keeps the next double quote from closing; YAML's single quotes have none.
            escaped = quote == '"' and (at - len(text[:at].rstrip("\\"))) % 2
            quote = "" if character == quote and not escaped else quote
            continue
        if character in "\"'" and before in "([{,=:":  # an apostrophe within a word is not a quote
            quote = character
            continue
        if character in "([{":
            inside.append(character)
        elif character in pairs and (not inside or inside.pop() != pairs[character]):
            raise UserError(f"'{text}' closes a bracket '{character}' that is not open.")
        before = before if character.isspace() else character
        yield at, character, len(inside)
    if quote or inside:
        raise UserError(f"'{text}' does not close {quote or inside[-1]}. Close it.")


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as a person writes it: dates are text, no key repeats, and its size is limited."""

    def get_single_node(self) -> Any:
        """The one document."""
        try:
            node = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError(f"it is nested more than {DEPTH} deep") from None
        self._check(node, 0, 0)
        return node

    def _check(self, node: Any, depth: int, count: int) -> int:
        """Counts the values of a node as if every alias were written out."""
        if depth > DEPTH:
            raise yaml.YAMLError(f"it is nested more than {DEPTH} deep")
        if count > VALUES:
            raise yaml.YAMLError(f"it holds more than {VALUES:,} values")
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in parts if isinstance(key, yaml.ScalarNode))
            if keys and (most := keys.most_common(1)[0])[1] > 1:
                raise yaml.YAMLError(f"'{most[0]}' stands in it twice")
            parts = itertools.chain(*parts)
        for part in parts:
            count = self._check(part, depth + 1, count + 1)
        return count


class _Loader(_Plain):
    """The same, with 1e-3 as a number (YAML 1.1 wants 1.0e-3)."""


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Plain.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    _NUMBER,
    list("-+.0123456789"),
)


def load_yaml(content: bytes | str, loader: type[yaml.SafeLoader] = _Plain) -> Any:
    """The plain values in a YAML file.

    Raises:
        ValueError: If it is not such a file; the error says what is wrong, not where.
    """
    try:
        return yaml.load(content, loader)
    except yaml.reader.ReaderError as error:
        raise ValueError("it is no text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:  # such as a number of 5,000 digits
        raise ValueError(str(error)) from error


def _load(text: str) -> Any:
    return load_yaml(text, _Loader)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, str):
        bare = re.fullmatch(r"[\w./+-]+", value) and _load(value) == value
        return value if bare else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
