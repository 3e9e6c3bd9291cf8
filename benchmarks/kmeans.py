"""Time and memory of `evenly.kmeans`, against scikit-learn's `KMeans(n_init=10)`.

    python benchmarks/kmeans.py            # a table of ratios: speed and inertia
    python benchmarks/kmeans.py --growth   # time and peak memory from 10,000 to 1,000,000 rows

Both run on all cores, in turn, on rectified Gaussians with class structure in 512 dimensions,
as an encoder that ends in a ReLU gives them. The ratio is the median over the pairs of runs,
so that other work on the machine weighs on both sides.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from evenly import kmeans

WIDTH = 512
SEPARATION = 0.3  # scale of the class means, where the unit is the noise
CLAIMS = [(5_954, 6, 10.0), (15_000, 31, 5.0)]  # rows, clusters, how many times faster
INERTIA = 0.005  # how far the inertias may lie apart
MEMORY = 1.5  # peak over features


def features(n, k):
    """Rectified Gaussians around `k` class means; filled in place, so memory has no peak."""
    generator = torch.Generator().manual_seed(0)
    means = SEPARATION * torch.randn(k, WIDTH, generator=generator)
    x = torch.empty(n, WIDTH)
    for part in x.split(10_000):
        part.normal_(generator=generator)
        part += means[torch.randint(k, (len(part),), generator=generator)]
        part.relu_()
    return x


def pair(x, k, seed):
    """Seconds of ours, seconds of scikit-learn's, our inertia over theirs."""
    from sklearn.cluster import KMeans

    ours_s, ours = seconds(lambda: kmeans(x, k, seed=seed))
    theirs_s, theirs = seconds(lambda: KMeans(k, n_init=10, random_state=seed).fit(x.numpy()))
    return ours_s, theirs_s, ours.inertia / theirs.inertia_


def seconds(work):
    time.sleep(0.2)  # the other side's threads stay awake for a while and hold the cores
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def speed(pairs):
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(
        f"{'claim':<24}{'ours s':>8}{'sklearn s':>11}{'ratio':>8}{'target':>8}"
        f"{'lowest':>8}{'highest':>9}{'inertia ratio':>15}"
    )
    met = True
    for n, k, target in CLAIMS:
        x = features(n, k)
        pair(x[:1000], k, 0)  # each side's first run starts its threads
        runs = [pair(x, k, seed) for seed in range(pairs)]
        ours, theirs = [run[0] for run in runs], [run[1] for run in runs]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        inertia = [run[2] for run in runs]
        worst = max(inertia, key=lambda ratio: abs(ratio - 1))
        ratio = statistics.median(ratios)
        met &= ratio >= target and abs(worst - 1) <= INERTIA
        print(
            f"{f'{n:,} x {WIDTH}, k = {k}':<24}"
            f"{statistics.median(ours):>8.3f}"
            f"{statistics.median(theirs):>11.3f}"
            f"{ratio:>8.1f}{target:>8.1f}{min(ratios):>8.1f}{max(ratios):>9.1f}{worst:>15.5f}"
        )
    return met


def growth(k):
    print(f"k = {k}, 10 restarts, {torch.get_num_threads()} threads")
    print(
        f"{'rows':>10}{'seconds':>10}{'passes':>8}{'us a row and pass':>19}"
        f"{'memory / features':>19}{'target':>8}"
    )
    met = True
    for n in (10_000, 30_000, 100_000, 300_000, 1_000_000):
        # A process of its own for each: the peak of memory is that of a process.
        command = [sys.executable, __file__, "--one", str(n), str(k)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        elapsed, passes, extra = (float(value) for value in done.stdout.split())
        memory = 1 + extra
        # Below 100,000 rows a fixed working memory outweighs the features.
        met &= memory < MEMORY or n < 1_000_000
        print(
            f"{n:>10,}{elapsed:>10.2f}{passes:>8.0f}{elapsed / n / passes * 1e6:>19.3f}"
            f"{memory:>19.2f}{MEMORY:>8.1f}"
        )
    return met


def one(n, k):
    """Prints the seconds, the passes over the rows and the extra memory over the features."""
    from evenly.diagnosis.kmeans import _Rows

    x = features(n, k)
    kmeans(x[:5000], k)
    passes = 0
    chunks = _Rows.chunks

    def counted(*args):
        nonlocal passes
        passes += 1
        return chunks(*args)

    _Rows.chunks = counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    elapsed, _ = seconds(lambda: kmeans(x, k))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(elapsed, passes, (after - before) * 1024 / (x.numel() * 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="time and memory over rows")
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--clusters", type=int, default=6, help="for --growth (default 6)")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    met = growth(arguments.clusters) if arguments.growth else speed(arguments.pairs)
    print("all targets met" if met else "NOT all targets met")
    sys.exit(not met)


if __name__ == "__main__":
    main()
