"""The report of 200 runs: how long it takes to write, what it weighs, and how soon it is open.

    python benchmarks/report_page.py

40 methods with five seeds, 60 epochs each, on the built-in digits: one run is trained for three
epochs, and the others are copies of it with noise in their numbers. Writing is all that
`evenly report` does but for the projections, which runs have after it. The page is opened with
chromium from the disk: until it is loaded and the figures near the window are drawn.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from playwright.sync_api import sync_playwright
from promise import Promise, report, seconds

from evenly.files import read_npz, write_csv
from evenly.lab.run.result import Result, checksums
from evenly.lab.statistics.tables import table, write_tables

METHODS, SEEDS, EPOCHS = 40, 5, 60
WRITTEN, WEIGHT, OPENED = 10.0, 6.0, 2.0  # seconds, MB, seconds


def comparison(folder: Path) -> None:
    """A comparison of that size."""
    options = ["--methods", "joint", "--seeds", "1", "--epochs", "3", "--out", folder]
    subprocess.run([sys.executable, "-m", "evenly.cli", "compare", *options], check=True)
    (trained,) = (folder / "runs").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    methods = ["joint", *(f"relearn(every={i})" for i in range(1, METHODS))]
    config |= {"methods": methods, "seeds": SEEDS, "epochs": EPOCHS}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    stream = np.random.default_rng(0)
    for number, method in enumerate(methods):
        for seed in range(SEEDS):
            copy = folder / "runs" / f"m{number}-{seed}"
            shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("*.ckpt", "events*"))
            vary(copy, method, seed, stream)
            if seed:
                (copy / "projection.npz").unlink()
    shutil.rmtree(trained)


def vary(folder: Path, method: str, seed: int, stream: np.random.Generator) -> None:
    """Makes the copy of a run one of its own."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    rows = [
        {name: float(value or 0) * stream.uniform(0.9, 1.0) for name, value in last.items()}
        | {"epoch": epoch}
        for epoch in range(EPOCHS)
    ]
    write_csv(folder / "metrics.csv", list(last), rows)
    found = read_npz(folder / "predictions.npz")
    found["probabilities"] = stream.dirichlet(np.ones(10), len(found["target"]))
    np.savez(folder / "predictions.npz", allow_pickle=False, **found)
    known = Result.read(folder)
    assert known is not None
    values = vars(known) | {"method": method, "seed": seed, "files": checksums(folder)}
    values["metrics"] = {
        split: {name: value * stream.uniform(0.95, 1.0) for name, value in metrics.items()}
        for split, metrics in known.metrics.items()
    }
    Result(**values).write(folder)


def opened(page: Path) -> float:
    """Seconds until it is loaded and what is near the window is drawn: the least of three."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        found = []
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            ready = "document.documentElement.dataset.drawn && performance.now()"
            found.append(tab.wait_for_function(ready).json_value() / 1000)
            tab.close()
        browser.close()
    return min(found)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "comparison"
        comparison(folder)

        def written() -> None:
            write_tables(folder)
            table(folder)

        took, page = seconds(written), folder / "report.html"
        runs = f"report of {METHODS * SEEDS} runs"
        promises = [
            Promise(f"{runs}: written, s", took, WRITTEN, at_least=False),
            Promise(f"{runs}: weight, MB", page.stat().st_size / 1e6, WEIGHT, at_least=False),
            Promise(f"{runs}: opened, s", opened(page), OPENED, at_least=False),
        ]
    report(promises)


if __name__ == "__main__":
    main()
