"""Time and memory of `evenly.kmeans(x, k, sample=...)` from ten thousand to ten million rows.

    python benchmarks/growth.py [--folder FOLDER]                 # 11 GB free in FOLDER
    python benchmarks/growth.py --quick                           # half a minute; a guard
    python benchmarks/growth.py --write                           # and keep the results
    python benchmarks/growth.py --figure docs/assets/growth.svg   # of the kept results

Rows of 512 float16 values are in a memory-mapped file; each clustering runs in its own process.
Memory is the peak RAM of that process beyond files (resident minus shared pages, sampled every 5
ms), minus what it held before: pages of the mapped file are the system's cache, which it reclaims
as needed. The purity is compared with that of the exact clustering, in which all rows take part in
all restarts, for as many rows as time allows.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import torch
from promise import Promise, report

from evenly import kmeans, purity

WIDTH, LATENT = 512, 32
RESULTS = Path(__file__).parent / "results" / "growth.json"
# Spread of the classes by their number, with class means of spread 1: they overlap like an
# encoder's, but so that seeds agree on a best clustering. With 16 latent dimensions, exact
# clusterings into 31 differ by 0.02 in purity between seeds, so none could be called off by 0.01.
SPREAD = {6: 1.6, 31: 1.6, 1000: 1.2}
# By clusters: rows; the largest number of rows with an exact clustering; sample and restarts.
FULL = {
    6: ([10**4, 10**5, 10**6, 10**7], 10**6, 100_000, 10),
    31: ([10**4, 10**5, 10**6, 10**7], 10**6, 100_000, 10),
    1000: ([10**5, 10**6], 10**5, 50_000, 1),
}
QUICK = {6: ([10**4, 10**5], 10**4, 4000, 10)}
COLOURS = {6: "#0072b2", 31: "#d55e00", 1000: "#009e73"}
PURITY, SLOPE, QUICK_SLOPE = 0.01, 1.05, 1.3
PAGE = os.sysconf("SC_PAGE_SIZE")


def allowed(n, sample):
    """The limit in bytes from the docstring of `kmeans`."""
    return 10 * min(n, sample) * WIDTH + 1.5e8 + 40 * n


def write(folder, n, k):
    """Rows of k overlapping classes behind a rectifier, and their classes, as files."""
    stream = torch.Generator().manual_seed(k)
    means = torch.randn(k, LATENT, generator=stream)
    mix = torch.randn(LATENT, WIDTH, generator=stream) / math.sqrt(LATENT)
    with (folder / "x").open("wb") as rows, (folder / "y").open("wb") as classes:
        for start in range(0, n, 2**14):
            y = torch.randint(k, (min(2**14, n - start),), generator=stream)
            z = means[y] + SPREAD[k] * torch.randn(len(y), LATENT, generator=stream)
            x = (z @ mix + 0.3 * torch.randn(len(y), WIDTH, generator=stream)).relu_()
            rows.write(x.half().numpy().data)
            classes.write(y.numpy().data)


class Peak:
    """The peak memory beyond files of this process within the block."""

    def __enter__(self):
        self.before = self.bytes = self._now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        self.bytes -= self.before

    def _watch(self):
        while not self.over.wait(0.005):
            self.bytes = max(self.bytes, self._now())

    def _now(self):
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - shared) * PAGE


def one(folder, n, k, sample, restarts):
    """Prints the cost of one clustering as JSON; a sample of 0 means the exact one."""
    x = torch.from_file(str(folder / "x"), True, n * WIDTH, dtype=torch.float16).view(n, WIDTH)
    y = torch.from_file(str(folder / "y"), True, n, dtype=torch.int64)
    kmeans(x[:1000], 6, restarts=2)  # loads libraries, starts threads
    with Peak() as peak:
        start = time.perf_counter()
        labels = kmeans(x, k, sample=sample or None, restarts=restarts).labels
        seconds = time.perf_counter() - start
        found = purity(labels, y)
    print(json.dumps({"seconds": seconds, "bytes": peak.bytes, "purity": found}))


def measured(folder, plan):
    """One entry for each clustering."""
    runs = []
    print(f"{'rows':>12}{'k':>7}{'sample':>9}{'seconds':>10}{'memory GB':>11}{'purity':>9}")
    for k, (counts, exact, sample, restarts) in plan.items():
        for n in counts:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                write(Path(own), n, k)
                for size in (sample, 0) if n <= exact else (sample,):
                    settings = [own, *(str(value) for value in (n, k, size, restarts))]
                    command = [sys.executable, __file__, "--one", *settings]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    run = {"rows": n, "k": k, "sample": size, "restarts": restarts}
                    runs.append(run | json.loads(done.stdout))
                    print(
                        f"{n:>12,}{k:>7,}{f'{size:,}' if size else 'all':>9}"
                        f"{runs[-1]['seconds']:>10.1f}{runs[-1]['bytes'] / 1e9:>11.2f}"
                        f"{runs[-1]['purity']:>9.4f}",
                        flush=True,
                    )
    return runs


def promises(runs, slope):
    """The promises about the runs."""
    found = []
    sampled = {(run["k"], run["rows"]): run for run in runs if run["sample"]}
    exact = {(run["k"], run["rows"]): run for run in runs if not run["sample"]}
    for k in dict.fromkeys(run["k"] for run in runs):
        counts = [n for clusters, n in sampled if clusters == k]
        first, last = counts[-2:]  # fewer rows would show mostly fixed costs
        ratio = sampled[k, last]["seconds"] / sampled[k, first]["seconds"]
        grown = math.log(ratio) / math.log(last / first)
        what = f"k = {k:,}: slope of log time, {first:,} to {last:,} rows"
        found.append(Promise(what, grown, slope, at_least=False))
        most = max(sampled[k, n]["bytes"] / allowed(n, sampled[k, n]["sample"]) for n in counts)
        found.append(Promise(f"k = {k:,}: memory / what is stated", most, 1.0, at_least=False))
        far = [abs(run["purity"] - sampled[key]["purity"]) for key, run in exact.items()
               if key[0] == k]  # fmt: skip
        found.append(Promise(f"k = {k:,}: purity off the exact one", max(far), PURITY, False))
    return found


def draw(results):
    """Seconds and memory over rows, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    from evenly.report.drawing import QUIET, add_heading

    figure = Figure(figsize=(9.4, 3.9))
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.89, top=0.74, bottom=0.16, wspace=0.42)
    runs = results["runs"]
    least, *_, most = sorted(run["sample"] for run in runs if run["sample"])
    size = f"{least:,} to {most:,}"
    add_heading(figure, 0.35, "Seconds", f"lines: restarts on {size} rows; dotted: on all")
    add_heading(figure, 5.05, "Memory beside the features, GB", "at its most, of the same runs")
    counts = sorted({run["rows"] for run in runs})
    for axes, value, unit in ((panels[0], "seconds", 1), (panels[1], "bytes", 1e9)):
        for run in runs:
            run["height"] = run[value] / unit
        ends = {}
        for k, colour in COLOURS.items():
            for sampled, style in ((True, "-"), (False, ":")):
                some = [run for run in runs if run["k"] == k and bool(run["sample"]) == sampled]
                places, heights = zip(*((run["rows"], run["height"]) for run in some), strict=True)
                axes.plot(places, heights, style, color=colour, marker="o", markersize=4,
                          linewidth=1.6)  # fmt: skip
                if sampled:
                    ends[f"k = {k:,}"] = (places[-1], heights[-1], colour)
        axes.set(xscale="log", yscale="log", xlabel="rows")
        powers = [10**n for n in range(4, 8)]
        axes.set_xticks(powers, [f"10{'⁰¹²³⁴⁵⁶⁷'[round(math.log10(n))]}" for n in powers])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        if value == "bytes":
            sizes = [2 * WIDTH * n / 1e9 for n in counts]
            axes.plot(counts, sizes, "--", color=QUIET, linewidth=1)
            ends["features"] = (counts[-1], sizes[-1], QUIET)
        _name_ends(axes, ends)
    return figure


def _name_ends(axes, ends):
    """Writes each line's name at its end (x, y, colour), one above another where they meet."""
    axes.autoscale_view()  # now rather than when drawn, since names need positions
    free = {}
    for text, (x, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        own = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi
        lift = max(0, free.get(x, own) - own)
        free[x] = own + lift + 12
        axes.annotate(
            text, (x, y), (6, lift), textcoords="offset points", va="center", color=colour
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where rows lie meanwhile (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--write", action="store_true", help=f"keep the results: {RESULTS.name}")
    parser.add_argument("--figure", type=Path, help="draw the kept results here: .svg or .png")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(Path(options.one[0]), *map(int, options.one[1:]))
        return
    if options.figure:
        from evenly.report.drawing import write_drawing

        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        write_drawing(options.figure, lambda: draw(results))
        return
    runs = measured(options.folder, QUICK if options.quick else FULL)
    if options.write:
        from evenly.files import write_text
        from evenly.lab.many.compare import hardware

        what = f"{hardware()}; {torch.get_num_threads()} threads; torch {torch.__version__}"
        kept = {"date": date.today().isoformat(), "hardware": what, "runs": runs}
        write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
    report(promises(runs, QUICK_SLOPE if options.quick else SLOPE))


if __name__ == "__main__":
    main()
