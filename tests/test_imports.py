"""The house has no circle: what a module imports, at its head or within a function."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


@cache
def modules():
    """By name, the file of each module."""
    files = sorted((SOURCE / "evenly").rglob("*.py"))
    parts = [file.relative_to(SOURCE).with_suffix("").parts for file in files]
    names = [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]
    return dict(zip(names, files, strict=True))


def imported(name):
    """The modules of ours that a module imports, but for those that only its types name."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {x if x in modules() else node.module for x in within}
    return {x for x in found if x in modules()} - {name}


def test_no_circle():
    graph = {name: imported(name) for name in modules()}
    assert sum(map(len, graph.values())) > 500  # it does see them
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


# Rooms from the roof down: none knows of one that stands before it.
ROOMS = ("cli", "lab.many", "lab.statistics", "lab.trained", "lab.run", "report", "data", "methods")


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room):
    above = [f"evenly.{x}" for x in ROOMS[: ROOMS.index(room)]]
    for name in modules():
        if f"{name}.".startswith(f"evenly.{room}."):
            up = [x for x in imported(name) if any(f"{x}.".startswith(f"{y}.") for y in above)]
            assert not up, f"{name} imports {up}"
