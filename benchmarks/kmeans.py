"""Time of `evenly.kmeans`, against scikit-learn's `KMeans(n_init=10)`.

    python benchmarks/kmeans.py

Both run on all cores, in turn, on rectified Gaussians with class structure in 512 dimensions,
as an encoder that ends in a ReLU gives them. The ratio is the median over the pairs of runs,
so that other work on the machine weighs on both sides.
"""

import argparse
import platform
import statistics
import time

import torch
from promise import AMX, Promise, report

from evenly import kmeans

WIDTH = 512
SEPARATION = 0.3  # scale of the class means, where the unit is the noise
PROMISES = [(5_954, 6, 10.0), (15_000, 31, 5.0)]  # rows, clusters, how many times faster
INERTIA = 0.005  # by how much ours may be above


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


def speed(pairs, promised):
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(
        f"{'promise':<24}{'ours s':>8}{'sklearn s':>11}{'ratio':>8}{'target':>8}"
        f"{'lowest':>8}{'highest':>9}{'inertia ratio':>15}"
    )
    promises = []
    for n, k, target in promised:
        x, shape = features(n, k), f"{n:,} x {WIDTH}, k = {k}"
        pair(x[:1000], k, 0)  # each side's first run starts its threads
        runs = [pair(x, k, seed) for seed in range(pairs)]
        ours, theirs = [run[0] for run in runs], [run[1] for run in runs]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        inertia = [run[2] for run in runs]
        worst = max(inertia)
        ratio = statistics.median(ratios)
        promises += [
            Promise(f"k-means, {shape}: scikit-learn's time / ours", ratio, target, **AMX),
            Promise(f"k-means, {shape}: our inertia / theirs", worst, 1 + INERTIA, at_least=False),
        ]
        print(
            f"{shape:<24}"
            f"{statistics.median(ours):>8.3f}"
            f"{statistics.median(theirs):>11.3f}"
            f"{ratio:>8.1f}{target:>8.1f}{min(ratios):>8.1f}{max(ratios):>9.1f}{worst:>15.5f}"
        )
    return promises


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--small", action="store_true", help="the first promise only")
    arguments = parser.parse_args()
    report(speed(arguments.pairs, PROMISES[:1] if arguments.small else PROMISES))


if __name__ == "__main__":
    main()
