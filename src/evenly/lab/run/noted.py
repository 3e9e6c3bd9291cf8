"""Files about the methods that programs wrote beside this module; reading them needs no torch."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """`title`, `year` and `category` of each method, as `docs/make_methods.py` writes them."""
    return noted("methods.json")


def measured() -> Mapping[str, Any]:
    """What `benchmarks/overhead.py` last measured: `methods` by name, and the conditions."""
    return noted("overhead.json")


def noted(name: str) -> dict[str, Any]:
    """The content of a file beside this module; empty if it is missing."""
    file = files("evenly.lab.run").joinpath(name)
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
