"""What ranks exchange in a diagnosis: as much as the documentation says, whatever the rows."""

import importlib.util
from pathlib import Path

import pytest
import run_pages
import torch

import evenly
from ranks import on_ranks

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]
WIDTH, K = 128, 5


def benchmark():
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


def look(rank, world, gap):
    """For 400 and 1,600 rows, what was counted."""
    counted = benchmark().Counted()
    found = []
    for rows in (400, 1600):
        parts = split(rows, 1, rank, world), split(rows // 4, 2, rank, world)
        counted.clear()
        evenly.diagnose(*parts, gap=gap, restarts=4)
        names = ("bytes", "calls", "largest", "passes", "rounds")
        found.append({name: getattr(counted, name) for name in names})
    return found


@pytest.mark.parametrize(("gap", "world"), [("paper", 2), ("paper", 4), ("shared", 2)])
def test_no_rank_receives_rows_of_others(gap, world, tmp_path):
    """The largest tensor is the sums of all clusters, however many rows there are."""
    for few, many in on_ranks(look, tmp_path, gap, world=world):
        assert few["largest"] == many["largest"] == 4 * K * WIDTH * 8
        a_row = 4 * WIDTH
        # without iterations, far below a rank's rows
        once = many["bytes"] - many["passes"] * 8 * K * (WIDTH + 1)
        assert once == few["bytes"] - few["passes"] * 8 * K * (WIDTH + 1)
        assert once < 2000 / world * a_row


def test_the_formula_of_the_documentation_is_what_is_counted(tmp_path):
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    names = {}
    code = next(b.code for b in run_pages.blocks(page) if "def exchanged" in b.code)
    exec(code, names)
    for found in on_ranks(look, tmp_path, "paper", world=2)[0]:
        for formula in (names, vars(benchmark())):
            size = formula["exchanged"](WIDTH, K, found["passes"], ranks=2, restarts=4)
            assert found["bytes"] == pytest.approx(size, rel=0.01)
            assert found["calls"] == formula["collectives"](K, found["rounds"])


@pytest.mark.parametrize("of", [(512, 6, 100, 8, 10), (64, 309, 1200, 1000, 3)])
def test_the_page_and_the_benchmark_have_one_formula(of):
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    names = {}
    exec(next(b.code for b in run_pages.blocks(page) if "def exchanged" in b.code), names)
    assert names["exchanged"](*of) == benchmark().exchanged(*of)
