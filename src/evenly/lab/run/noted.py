"""What programs wrote down of the methods beside this module; reading it needs no torch."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """By name, `title`, `year` and `category` of each method; `docs/make_methods.py` writes it."""
    return noted("methods.json")


def measured() -> Mapping[str, Any]:
    """What `benchmarks/overhead.py` last measured: `methods` by name, and under what conditions."""
    return noted("overhead.json")


def noted(name: str) -> dict[str, Any]:
    """What a file beside this module holds; empty if it is not there."""
    file = files("evenly.lab.run").joinpath(name)
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
