"""Every promise of speed in one table, from a single run: `make bench`.

    python benchmarks/run.py            # an hour on two cores with nothing else to do
    python benchmarks/run.py --write    # and note it down, in results/ and docs/performance.md

Where there is a GPU, its own benchmarks run, gpu.py, and none of those of the processor.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from promise import FILE, Promise, table

from evenly.lab.many.compare import hardware

HERE = Path(__file__).parent
PROGRAMS = [
    "kmeans",
    "growth",
    "forms",
    "loader",
    "train_step",
    "whole",
    "lab",
    "relearn",
    "overhead",
    "ranks",
]
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- benchmarks: make bench-write -->"


def promises_of(program: str, options: list[str]) -> list[Promise]:
    """Runs a benchmark; what is promised of it, with what it found."""
    print(f"\n== {program}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "promises"
        command = [sys.executable, HERE / f"{program}.py", *options]
        done = subprocess.run(command, env={**os.environ, FILE: str(file)}, check=False)
        if not file.is_file():
            raise SystemExit(f"{program}.py ended with {done.returncode}, before its promises")
        lines = file.read_text(encoding="utf-8").splitlines()
    return [Promise(**json.loads(line)) for line in lines]


def noted(promises: list[Promise], machine: dict[str, str], results: Path, page: Path) -> None:
    """Writes the results of this machine, and those of all machines to the page."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    result = {**machine, "promises": [asdict(promise) for promise in promises]}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (results / f"{kind}.json").write_text(text, encoding="utf-8")
    written, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    parts = [
        section(json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(results.glob("[cg]pu.json"))
    ]
    page.write_text(written + MARK + "\n\n" + "\n".join(parts), encoding="utf-8")


def section(result: dict) -> str:
    """A machine's table."""
    cells = [Promise(**promise).cells for promise in result["promises"]]
    lines = [
        f"{result['hardware']}; torch {result['torch']}; {result['date']}:",
        "",
        "| promise | found | target | |",
        "| --- | ---: | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*PROGRAMS, "gpu"], help="these of them")
    parser.add_argument("--write", action="store_true", help="note the table down")
    arguments = parser.parse_args()
    programs = arguments.only or (["gpu"] if torch.cuda.is_available() else PROGRAMS)
    promises = []
    for program in programs:
        keep = arguments.write and program == "growth"  # whose figures are drawn, too
        promises += promises_of(program, ["--write"] if keep else [])
    machine = {
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    print(f"\n{machine['hardware']}, torch {machine['torch']}\n\n{table(promises)}")
    if arguments.write:
        noted(promises, machine, HERE / "results", PAGE)
    sys.exit(any(promise.here and not promise.met for promise in promises))


if __name__ == "__main__":
    main()
