"""The benchmarks in a short form: ratios with wide margins, so that what got slower is noticed."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from promise import FILE, Promise, table  # noqa: E402

# Short options, and which share of its target a figure must reach at least.
SHORT = {
    "forms": (["--pairs", "5"], 0.6),
    "kmeans": (["--pairs", "3", "--small"], 0.2),
    "loader": (["--rounds", "1", "--clips", "64"], 0.5),
    "relearn": (["--pair", "mlp", "--pairs", "3"], 0.7),
}


@pytest.mark.slow
@pytest.mark.xdist_group("benchmarks")  # one after the other
@pytest.mark.parametrize("program", SHORT)
def test_what_is_promised_of_speed_holds_with_a_margin(program, tmp_path):
    options, margin = SHORT[program]
    promises = short(program, options, tmp_path)
    low = [promise for promise in promises if not within(promise, margin)]
    assert not low, table(low)


def test_a_promise_says_whether_it_is_met():
    least, most = Promise("fast", 3.0, 4.0), Promise("small", 3.0, 4.0, at_least=False)
    assert (least.met, most.met) == (False, True)
    assert least.cells == ("fast", "3", "≥ 4", "NOT met")
    assert Promise("fast", 3.0, 4.0, here=False, why="no GPU").cells[3] == "(no GPU)"
    assert table([most]).splitlines()[1].split() == ["small", "3", "≤", "4", "met"]


def test_what_is_noted_down_stands_on_the_page(tmp_path):
    import run

    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\n{run.MARK}\n\nan older table")
    machine = {"date": "2026-11-21", "hardware": "two cores", "torch": "2.13.0"}
    promises = [Promise("fast", 5.0, 4.0), Promise("small", 3.0, 2.0, at_least=False)]
    found = {**machine, "promises": [asdict(promise) for promise in promises]}
    for _ in range(2):
        run.noted({"kmeans": found}, tmp_path, page)
    written = page.read_text()
    assert written.startswith(f"# Performance\n\n{run.MARK}\n\ntwo cores; torch 2.13.0:\n")
    assert written.count("| fast | 5 | ≥ 4 | met | 2026-11-21 |") == 1
    assert "| small | 3 | ≤ 2 | NOT met |" in written
    assert "older" not in written
    later = {**found, "date": "2026-11-29", "promises": [asdict(Promise("slim", 2.0, 4.0))]}
    run.noted({"lab": later}, tmp_path, page)
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if "20" in line]
    assert rows[-3:] == ["fast", "small", "slim"]


def within(promise, margin):
    """Whether the figure is not worse than its target by more than the margin, if it is of time."""
    if "inertia" in promise.what:
        return promise.met
    if promise.at_least:
        return promise.found >= margin * promise.target
    return promise.found <= promise.target / margin


def short(program, options, folder):
    """The promises of a benchmark's short form."""
    file = folder / "promises"
    command = [sys.executable, BENCHMARKS / f"{program}.py", *options]
    # One thread: two that wait for each other beside another test would be measured, not the work.
    given = {**os.environ, FILE: str(file), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert file.is_file(), done.stderr
    return [Promise(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
