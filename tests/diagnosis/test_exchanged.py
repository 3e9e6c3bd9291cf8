"""What ranks exchange in a diagnosis: as much as the documentation says, whatever the rows."""

import importlib
import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import run_pages
import torch

import evenly
from evenly.diagnosis.rows import Rows
from many_ranks import on_ranks

kmeans = importlib.import_module("evenly.diagnosis.kmeans")  # not the function of that name
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("exchanged"),  # counted once
]
WIDTH, K = 128, 5


def benchmark():
    sys.path.append(str(ROOT / "benchmarks"))  # last: its `ranks` is not that of the tests
    spec = importlib.util.spec_from_file_location("many_ranks", ROOT / "benchmarks" / "ranks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def split(rows, first, rank, world):
    """This rank's rows of a split; the first ones are those of a smaller split."""
    index = torch.arange(rank, rows, world)
    stream = torch.Generator().manual_seed(0)
    means = torch.randn(K, WIDTH, generator=stream)
    noise = torch.randn(rows, WIDTH, generator=stream.manual_seed(first))
    x = means[torch.arange(rows) % K] + 2 * noise
    return evenly.Features({"m": x[index]}, index % K, index, sharded=True)


def look(rank, world, gap, state=None):
    """For 400 and 1,600 rows, what was counted."""
    if state is not None:
        vars(kmeans)["_STATE"] = state
    counted = benchmark().Counted()
    found = []
    for rows in (400, 1600):
        parts = split(rows, 1, rank, world), split(rows // 4, 2, rank, world)
        counted.clear()
        evenly.diagnose(*parts, gap=gap, restarts=4)
        names = ("bytes", "calls", "largest", "passes", "rounds", "trials", "drafts")
        found.append({name: getattr(counted, name) for name in names})
    return found


@cache
def counted(gap, world, state=None):
    with TemporaryDirectory() as folder:
        return on_ranks(look, Path(folder), gap, state, world=world)


@pytest.mark.parametrize(("gap", "world"), [("paper", 4), ("shared", 2)])
def test_no_rank_receives_rows_of_others(gap, world):
    """The largest tensor is the sums of all clusters, however many rows there are."""
    for few, many in counted(gap, world):
        # Of four restarts, or of eight sets of jumps.
        assert {few["largest"], many["largest"]} <= {n * K * WIDTH * 8 for n in (4, 8)}
        # What does not depend on the number of iterations does not on that of rows, either.
        trial = K * (36 * (WIDTH + 1) + 12)
        once = [
            found["bytes"] - found["passes"] * 8 * K * (WIDTH + 1) - found["trials"] * trial
            for found in (few, many)
        ]
        assert once[0] == once[1] < 2000 / world * 4 * WIDTH


@pytest.fixture(scope="module")
def page():
    """The names that the page defines."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    names = {}
    exec(next(b.code for b in run_pages.blocks(text) if "def exchanged" in b.code), names)
    return names


def test_what_is_counted_is_what_the_page_says(page):
    for found in counted("paper", 4)[0]:
        more = {name: found[name] for name in ("trials", "drafts")}
        size = page["exchanged"](WIDTH, K, found["passes"], ranks=4, restarts=4, **more)
        assert found["bytes"] == pytest.approx(size, rel=0.01)
        assert found["calls"] == page["collectives"](K, found["rounds"], **more)


def test_restarts_that_do_not_fit_together_are_drawn_group_by_group(page):
    for found in counted("paper", 2, state=1)[0]:  # so that each of four is a group
        more = {name: found[name] for name in ("trials", "drafts")}
        size = page["exchanged"](WIDTH, K, found["passes"], ranks=2, restarts=4, **more)
        assert found["bytes"] == pytest.approx(size, rel=0.01)
        assert found["calls"] == page["collectives"](K, found["rounds"], 4, **more)


@pytest.mark.parametrize(
    "of", [(7_442, 512, 6, 8), (185_000, 512, 309, 64), (10**7, 768, 1000, 64), (10**5, 64, 9, 1)]
)
def test_the_page_knows_how_many_groups_there_are(of, page):
    rows, width, k, ranks = of
    known = object.__new__(Rows)  # whose values are never looked at
    size = kmeans._draft_size(width, k, 10)
    seen = (size if rows > 1.5 * size else rows) // ranks
    known.x, known.longest = torch.empty(seen, width, device="meta"), seen
    assert page["groups"](*of, restarts=10) == math.ceil(10 / kmeans._at_once(known, k))


@pytest.mark.parametrize("of", [(512, 6, 100, 8, 10), (64, 309, 1200, 1000, 3)])
def test_the_page_and_the_benchmark_have_one_formula(of, page):
    assert page["exchanged"](*of, 3, 1) == benchmark().exchanged(*of, 3, 1)
    assert page["collectives"](*of[:3], 3, 1) == benchmark().collectives(*of[:3], 3, 1)
