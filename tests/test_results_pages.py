"""The programs that measure docs/results.md, docs/studies.md and the README's checkups."""

import importlib
import json
import os
import sys
from types import SimpleNamespace

import make_checkup
import make_results
import make_studies
import pytest


def write(path, text="", at=0):
    """A file, and its time in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (at, at))
    return path


def parsed(command):
    """The options of a command, if it is understood."""
    _, name, *options = map(str, command)
    return importlib.import_module(f"evenly.cli.{name}").arguments().parse_args(options)


@pytest.mark.parametrize("entry", [*make_results.SETS, *make_studies.MORE], ids=lambda one: one[0])
def test_the_options_of_every_set_are_understood(entry):
    options = parsed(["evenly", *make_results.comparison("joint", 5, entry[2])])
    assert options.epochs == int(entry[2].split()[1])
    assert options.seeds == 5


def test_the_checkups_of_the_readme_are_of_the_runs_just_compared(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(make_checkup, "run", commands.append)
    monkeypatch.setattr(make_checkup, "converted", lambda *_: tmp_path / "av_digits.npz")
    monkeypatch.setattr(sys, "argv", ["make_checkup.py", "--work", str(tmp_path)])
    make_checkup.main()
    compare, *checkups = map(parsed, commands)
    assert (compare.epochs, compare.seeds, compare.limit_samples) == (6, 3, 2000)
    assert [len(one.runs) for one in checkups] == [3, 3]
    for one in checkups:
        assert all(path.startswith(f"{compare.out}/runs/") for path in one.runs)


@pytest.mark.parametrize(("newer", "times"), [(None, 1), ("joint-3", 2), ("evenly", 2)])
def test_a_checkup_is_made_anew_if_its_runs_or_evenly_are_newer(
    newer, times, tmp_path, monkeypatch
):
    made = []

    def run(command):
        made.append(command)
        figure = dict.fromkeys(("value", "low", "high"), 0.0)
        found = {"findings": {}, "together": figure, "best": "audio"}
        write(tmp_path / "checkup" / "checkup.json", json.dumps(found), 20)

    code = write(tmp_path / "evenly" / "__init__.py", at=10)
    runs = {
        f"joint-{seed}": write(tmp_path / "runs" / f"joint-{seed}" / "result.json", at=20)
        for seed in range(make_results.SEEDS)
    }
    monkeypatch.setattr(make_results, "run", run)
    monkeypatch.setattr(make_results, "evenly", SimpleNamespace(__file__=str(code)))
    make_results.verdicts(tmp_path)
    if newer:
        os.utime({"evenly": code, **runs}[newer], (30, 30))
    make_results.verdicts(tmp_path)
    assert len(made) == times


def test_studies_take_the_runs_that_are_newer_and_keep_their_own(tmp_path):
    done, out = tmp_path / "results", tmp_path / "studies"
    write(done / "runs" / "joint-0" / "result.json", "first", 10)
    write(done / "runs" / "mcr-0" / "result.json", "first", 10)
    write(done / "config.yaml", "of results")
    make_studies.taken(done, out)
    assert (out / "runs" / "mcr-0" / "result.json").read_text() == "first"
    write(out / "config.yaml", "of studies")
    write(out / "runs" / "joint-0" / "own.txt")  # the run is the same, so it stays
    write(out / "runs" / "mcr-0" / "error.txt")
    write(out / "runs" / "ogm-0" / "result.json", "own", 10)
    write(done / "runs" / "mcr-0" / "result.json", "second", 20)
    write(done / "runs" / "awc-0" / "error.txt", "diverged", 20)
    write(done / "runs" / "remedy-0" / "result.json", "new", 20)
    make_studies.taken(done, out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    names = ("joint-0", "mcr-0", "ogm-0", "remedy-0")
    results = {f"runs/{name}/result.json" for name in names}
    assert found == {"config.yaml", "runs/joint-0/own.txt", *results}
    assert (out / "runs" / "mcr-0" / "result.json").read_text() == "second"
    assert (out / "runs" / "ogm-0" / "result.json").read_text() == "own"
    assert (out / "config.yaml").read_text() == "of studies"


@pytest.mark.parametrize(
    ("cells", "counts", "is_recommended"),
    [
        (["**+5.5**", "**+2.6**", "-0.4", ""], (2, 2, 0, 0), True),
        (["**+5.5**", "+2.6†", "+3.0†", "+1.0"], (3, 1, 0, 0), False),  # half, but not corrected
        (["**+5.5**", "**+2.6**", "-0.4†", ""], (2, 2, 1, 0), False),
        (["**+5.5**", "**+2.6**", "**-4.0**", "diverged"], (2, 2, 1, 1), False),
    ],
)
def test_remedy_is_recommended_only_by_the_strict_reading(cells, counts, is_recommended):
    above, surely_above, below, surely_below = counts
    text = make_results.recommended(cells)
    assert text.startswith("Of 4 sets, ")
    assert f"excludes 0 on {above}, and after correction on {surely_above}. " in text
    assert f"It is below on {below}, and after correction on {surely_below}. " in text
    assert text.endswith("we recommend it." if is_recommended else "we do not recommend it.")


def test_verdicts_are_taken_from_the_tables_of_the_sets():
    row = (
        "| {} | 74.4 [68.9, 78.9] | 2.0 [-1.0, 3.0] | 30.3 [26.1, 33.9] | 0.03 [-0.03, 0.08] | {} |"
    )
    rows = [row.format("audio", "learnt"), row.format("face", "over-trained")]
    said = {"htad": "\n".join(["## htad", "", "| joint | 74.4 ± 0.3 |", "", *rows, ""])}
    assert make_results.judged({**said, "leaves": "## leaves\n"}).splitlines()[2:] == [
        "| [htad](results.md#htad) | audio learnt, face over-trained |"
    ]


def test_the_pages_have_places_for_verdicts():
    text = make_results.CHECKUP.read_text(encoding="utf-8")
    between = text.partition(make_results.VERDICTS)[2].partition(make_results.END)[0]
    assert between.count("(results.md#") >= 7


def test_a_gap_stands_beside_its_standard_error(tmp_path):
    """Two seeds of each method: the last rows count, and their means are 0.8, 0.6, 0.2, 0.03."""
    head = "epoch,purity_train/a,purity_val/a,gap/a,gap_error/a\n0,0.5,0.5,0.0,0.9\n"
    for method in make_results.SHOWN:
        for seed, last in enumerate(("0.7,0.6,0.1,0.02", "0.9,0.6,0.3,0.04")):
            write(tmp_path / "runs" / f"{method}-{seed}" / "metrics.csv", f"{head}1,{last}\n")
    *_, joint, relearn, _ = make_results.learnt(tmp_path, {"modalities": ["a"]})
    assert joint == "| joint | a | 0.80 | 0.60 | 0.20 ± 0.03 |"
    assert relearn == "| relearn | a | 0.80 | 0.60 | 0.20 ± 0.03 |"
    for path in (tmp_path / "runs").glob("relearn-*/metrics.csv"):
        write(path, "epoch,purity_train/a,purity_val/a,gap/a\n1,0.8,0.6,0.2\n")
    *_, relearn, _ = make_results.learnt(tmp_path, {"modalities": ["a"]})
    assert relearn == "| relearn | a | 0.80 | 0.60 | 0.20 |"
