"""The cost of a diagnosis on several ranks: memory of each rank, bytes exchanged, time.

    python benchmarks/ranks.py   # on one, two and four gloo processes of this machine: two minutes

Each process represents a device: it has one thread and its own rows, and all call
`evenly.diagnose`. Memory is the peak of a rank beyond what it held before creating its features;
"of share" is that over its share of what one process needs. Bytes are those passed to collectives,
counted at `torch.distributed`, against `exchanged`, the formula of docs/design.md. Neither depends
on other work on the machine; seconds do, so they have no target. The further lines have more
clusters that are closer together, so k-means takes more rounds.
"""

import argparse
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from promise import Promise, peak, report

import evenly

BLOCK = 1_000  # rows drawn at a time, on one rank
RESTARTS = 10
MEMORY = 1.25  # maximum of share
APART = 0.01  # maximum difference of count and formula


@dataclass(frozen=True)
class Case:
    """What to diagnose: rows of two splits, columns, classes and the scale of their means."""

    train: int
    val: int
    width: int
    classes: int
    separation: float


LARGE = Case(120_000, 24_000, 512, 6, 0.3)
RUNS = {  # on how many processes
    LARGE: (1, 2, 4),
    Case(15_000, 3_000, 512, 31, 0.1): (1, 2),
    Case(20_000, 4_000, 256, 100, 0.1): (1, 2),
}
LINK = 2**23  # bytes of a reduction that shows the rate of a link


def exchanged(width, clusters, passes, ranks, restarts=RESTARTS, trials=0, drafts=0):
    """Bytes that a rank passes to collectives to diagnose a modality by the paper's gap.

    Args:
        width: Columns of the features.
        clusters: k, the number of classes.
        passes: Lloyd's iterations, added up over restarts and both splits.
        ranks: Number of ranks.
        restarts: Restarts of each k-means.
        trials: Trials of jumping centres, over both splits.
        drafts: Number of splits with more rows than the restarts see.
    """
    candidates = restarts * (1 + (clusters - 1) * (2 + int(math.log(clusters))))
    of_split = (
        16 * width  # extent and mean of each column
        + candidates * (4 * ranks + 4 * width + 8)  # keys of a draw, its rows, their gains
        + 8 * clusters * clusters  # the table of purity
    )
    of_trial = clusters * (36 * (width + 1) + 12)  # sums of clusters, of three cuts, a row of each
    of_draft = 8 * width  # the mean of its rows
    return (
        2 * of_split
        + passes * 8 * clusters * (width + 1)  # sums and counts of clusters
        + trials * of_trial
        + drafts * of_draft
    )


def collectives(clusters, rounds, groups=1, trials=0, drafts=0):
    """The number of collectives in it.

    Args:
        clusters: k.
        rounds: Lloyd's iterations, with the restarts of a group side by side.
        groups: Number of groups of restarts.
        trials: Trials of jumping centres, over both splits.
        drafts: Number of splits with more rows than the restarts see.
    """
    return 6 * clusters * groups + 2 * rounds + 11 * trials + 3 * drafts + 25


class Counted:
    """The collectives of `torch.distributed`, with what goes through them."""

    def __init__(self):
        self.reduce, self.gather = dist.all_reduce, dist.all_gather
        dist.all_reduce, dist.all_gather = self.all_reduce, self.all_gather
        self.clear()

    def clear(self):
        """Counts from 0."""
        self.calls = self.bytes = self.largest = self.passes = self.rounds = self.trials = 0
        self.drafts = -4  # a diagnosis without drafts gathers numbers of rows this often
        self.seconds = 0.0

    def all_reduce(self, x, *args, **kwargs):
        """Counts, and performs the collective."""
        if x.ndim == 3 and x.dtype == torch.float64:  # sums of each running restart's clusters
            self.passes += len(x)
            self.rounds += 1
        self.trials += x.ndim == 2 and x.dtype == torch.float32  # a row of each cluster
        return self._timed(self.reduce, x.nbytes, x.nbytes, x, *args, **kwargs)

    def all_gather(self, parts, x, *args, **kwargs):
        """Counts, and performs the collective."""
        received = sum(part.nbytes for part in parts)
        self.drafts += x.dtype == torch.int64 and x.shape == (1,)
        return self._timed(self.gather, x.nbytes, received, parts, x, *args, **kwargs)

    def _timed(self, call, given, received, *args, **kwargs):
        self.calls += 1
        self.bytes += given
        self.largest = max(self.largest, received)
        start = time.perf_counter()
        done = call(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return done


def share(case, count, first, rank, world):
    """This rank's blocks of a split, the same rows for any number of ranks."""
    stream = torch.Generator().manual_seed(0)
    means = case.separation * torch.randn(case.classes, case.width, generator=stream)
    blocks = range(rank, count // BLOCK, world)
    x = torch.empty(len(blocks) * BLOCK, case.width)
    target = torch.empty(len(x), dtype=torch.int64)
    index = torch.empty(len(x), dtype=torch.int64)
    for place, block in enumerate(blocks):
        span = slice(place * BLOCK, (place + 1) * BLOCK)
        stream.manual_seed(first + block)
        torch.randint(case.classes, (BLOCK,), generator=stream, out=target[span])
        x[span].normal_(generator=stream).add_(means[target[span]]).relu_()
        index[span] = torch.arange(block * BLOCK, (block + 1) * BLOCK)
    return evenly.Features({"m": x}, target, index, sharded=world > 1)


def diagnosed(case):
    """The diagnosis, seconds, and bytes of this rank's features."""
    rank, world = dist.get_rank(), dist.get_world_size()
    train = share(case, case.train, 1, rank, world)
    val = share(case, case.val, 1_000_000, rank, world)
    dist.barrier()
    start = time.perf_counter()
    found = evenly.diagnose(train, val, restarts=RESTARTS)
    own = train.features["m"].nbytes + val.features["m"].nbytes
    return found, time.perf_counter() - start, own


FIGURES = (
    "seconds",
    "waiting",
    "memory",
    "own",
    "bytes",
    "calls",
    "largest",
    "passes",
    "rounds",
    "trials",
    "drafts",
    "gap",
    "small",
    "big",
)


def reduced(size, times=15):
    """Seconds of a reduction of this many bytes, the median of several."""
    x = torch.zeros(size // 8, dtype=torch.float64)
    took = []
    for _ in range(times):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(x)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def one(rank, world, port, case):
    """Prints the figures of one rank."""
    torch.set_num_threads(1)
    wait = timedelta(minutes=10)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", wait, world, rank)
    counted = Counted()
    diagnosed(Case(BLOCK * world, BLOCK * world, 8, 2, 1.0))  # does the loading of a first run
    counted.clear()
    before = peak()
    found, seconds, own = diagnosed(case)
    figures = (
        seconds,
        counted.seconds,
        (peak() - before) / 2**20,
        own / 2**20,
        counted.bytes,
        counted.calls,
        counted.largest,
        counted.passes,
        counted.rounds,
        counted.trials,
        counted.drafts,
        found.gap["m"],
        reduced(8),
        reduced(LINK),
    )
    print(*figures, flush=True)
    dist.barrier()
    os._exit(0)  # torch's own threads can abort a process that unloads its modules


def on(world, case):
    """The figures of the rank that needs or waits most; exchanged bytes are the same on each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--one"]
    ranks = [
        subprocess.Popen(
            [*command, *map(str, (rank, world, port, *astuple(case)))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    texts = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit("a rank failed; its error stands above")
    columns = zip(*(map(float, text.split()) for text in texts), strict=True)
    return dict(zip(FIGURES, map(max, columns), strict=True))


def table():
    print(f"{platform.processor() or platform.machine()}, gloo, one thread a rank; memory in MiB")
    print(
        f"{'rows x columns, k':<22}{'ranks':>5}{'features':>9}{'memory':>7}{'of share':>9}"
        f"{'bytes':>12}{'formula':>12}{'largest':>10}{'calls':>6}{'formula':>8}"
        f"{'passes':>7}{'rounds':>7}{'seconds':>8}{'in calls':>9}"
    )
    alone, shares, ratios, links = {}, [], [], {}
    for case, world in ((case, world) for case, worlds in RUNS.items() for world in worlds):
        found = on(world, case)
        base = alone.setdefault(case, found)
        share = found["memory"] * world / base["memory"]
        size, calls, largest = formulas(case, world, found) if world > 1 else (0, 0, 0)
        assert found["largest"] == largest, "a tensor that grows with the rows is exchanged"
        assert abs(found["gap"] - base["gap"]) < 1e-9, "ranks find another gap than one process"
        if case == LARGE:
            shares.append(share)
        if world > 1:
            links[world] = found["small"], found["big"]
            ratios += [found["bytes"] / size, found["calls"] / calls]
        what = f"{case.train + case.val:,} x {case.width}, {case.classes}"
        print(
            f"{what:<22}{world:>5}{found['own']:>9.0f}{found['memory']:>7.0f}{share:>9.2f}"
            f"{found['bytes']:>12,.0f}{size:>12,.0f}{found['largest']:>10,.0f}"
            f"{found['calls']:>6.0f}{calls:>8.0f}{found['passes']:>7.0f}{found['rounds']:>7.0f}"
            f"{found['seconds']:>8.1f}{found['waiting']:>9.1f}",
            flush=True,
        )
    for world, (small, big) in links.items():
        rate = 2 * (world - 1) / world * LINK / (big - small) / 1e9
        print(f"all_reduce on {world} ranks: {1e6 * small:.0f} µs and {rate:.2f} GB/s")
    farthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    return [
        Promise(
            "memory of one of 4 ranks / its share of one process's", max(shares), MEMORY, False
        ),
        Promise(
            "what ranks exchange / docs/design.md's formula, at most", farthest, 1 + APART, False
        ),
    ]


def formulas(case, world, found):
    """Bytes, collectives, and the largest tensor in one: the sums of all restarts' clusters."""
    return (
        exchanged(
            case.width,
            case.classes,
            found["passes"],
            world,
            trials=found["trials"],
            drafts=found["drafts"],
        ),
        collectives(case.classes, found["rounds"], trials=found["trials"], drafts=found["drafts"]),
        RESTARTS * case.classes * case.width * 8,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=8, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        *counts, separation = arguments.one
        rank, world, port, *shape = map(int, counts)
        one(rank, world, port, Case(*shape, float(separation)))
    report(table())


if __name__ == "__main__":
    main()
