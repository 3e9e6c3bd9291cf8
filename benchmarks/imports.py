"""The cost of importing Lightning Fabric besides torch, which a run imports anyway.

    pip install lightning-fabric lightning transformers
    python benchmarks/imports.py

Fabric checks for torchmetrics by importing it, and torchmetrics imports Transformers. So one line
hides the former, and the next the latter. Each line is imported in separate processes, in turns;
figures are medians of user-mode processor time and of peak resident memory.
"""

import argparse
import statistics
import subprocess
import sys

CASES = {
    "torch": ("torch", ()),
    "torch, torch._dynamo": ("torch, torch._dynamo", ()),  # like torch's optimisers
    "lightning_fabric, no torchmetrics": ("lightning_fabric", ("torchmetrics",)),
    "lightning_fabric, no Transformers": ("lightning_fabric", ("transformers",)),
    "lightning_fabric": ("lightning_fabric", ()),
    "lightning.fabric": ("lightning.fabric", ()),
}


def measured(modules: str, hidden: tuple[str, ...]) -> tuple[float, float]:
    """Seconds and megabytes of a process that imports modules while others are hidden."""
    program = (
        f"import sys; sys.modules |= dict.fromkeys({hidden}); import {modules}; import resource; "
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime, used.ru_maxrss)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    found = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, case in CASES.items():
            found[name].append(measured(*case))
    print("| imported | seconds | MB |\n| --- | ---: | ---: |")
    for name, runs in found.items():
        seconds, peak = map(statistics.median, zip(*runs, strict=True))
        print(f"| {name} | {seconds:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
