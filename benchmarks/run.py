"""Every promise of speed in one table, from a single run: `make bench`.

    python benchmarks/run.py            # an hour and a half on two cores with nothing else to do
    python benchmarks/run.py --write    # and note it down, in results/ and docs/performance.md
    python benchmarks/run.py --only lab --write    # what is noted of the others stays

With a GPU, only its own benchmarks run, gpu.py, and none of the processor's.
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
    "frozen",
    "parquet",
    "lab",
    "report_page",
    "relearn",
    "overhead",
    "ranks",
    "gap",
    "verdicts",
]
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- benchmarks: make bench-write -->"


def promises_of(program: str, options: list[str]) -> list[Promise]:
    """Runs a benchmark; returns its promises with the results."""
    print(f"\n== {program}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "promises"
        command = [sys.executable, HERE / f"{program}.py", *options]
        done = subprocess.run(command, env={**os.environ, FILE: str(file)}, check=False)
        if not file.is_file():
            raise SystemExit(f"{program}.py ended with {done.returncode}, before its promises")
        lines = file.read_text(encoding="utf-8").splitlines()
    return [Promise(**json.loads(line)) for line in lines]


def noted(found: dict[str, dict], results: Path, page: Path) -> None:
    """Writes the results on this machine, and the known results of all machines to the page.

    Args:
        found: Promises by program, and when and where they were measured.
        results: The folder of known results.
        page: The page whose last part is rewritten.
    """
    file = results / ("gpu.json" if torch.cuda.is_available() else "cpu.json")
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = json.dumps(known | found, indent=1, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
    written, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    parts = [
        section(json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(results.glob("[cg]pu.json"))
    ]
    page.write_text(written + MARK + "\n\n" + "\n".join(parts), encoding="utf-8")


def section(programs: dict[str, dict]) -> str:
    """A table for each machine, with the day of each figure."""
    by_machine: dict[str, list[str]] = {}
    for name in sorted(programs, key=[*PROGRAMS, "gpu"].index):
        one = programs[name]
        rows = by_machine.setdefault(f"{one['hardware']}; torch {one['torch']}:", [])
        for promise in one["promises"]:
            rows.append(f"| {' | '.join(Promise(**promise).cells)} | {one['date']} |")
    lines = []
    for machine, rows in by_machine.items():
        head = "| promise | found | target | | measured on |"
        lines += [machine, "", head, "| --- | ---: | ---: | --- | --- |", *rows, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*PROGRAMS, "gpu"], help="these of them")
    parser.add_argument("--write", action="store_true", help="note the table down")
    arguments = parser.parse_args()
    programs = arguments.only or (["gpu"] if torch.cuda.is_available() else PROGRAMS)
    machine = {
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    promises = []
    for program in programs:
        keep = arguments.write and program == "growth"  # its results are drawn, too
        of_it = promises_of(program, ["--write"] if keep else [])
        promises += of_it
        if arguments.write:
            found = {program: {**machine, "promises": [asdict(promise) for promise in of_it]}}
            noted(found, HERE / "results", PAGE)
    print(f"\n{machine['hardware']}, torch {machine['torch']}\n\n{table(promises)}")
    sys.exit(any(promise.here and not promise.met for promise in promises))


if __name__ == "__main__":
    main()
