"""Time and inertia of `evenly.kmeans`, against scikit-learn's, its Intel extension's and faiss's.

    python benchmarks/kmeans.py

It compares `KMeans(n_init=10)` of scikit-learn and of scikit-learn-intelex, and faiss's default,
all on all cores and in turn, on rectified Gaussians with class structure in 512 dimensions, like
the output of an encoder that ends in a ReLU. The ratio is the median over pairs of runs, so that
other work on the machine affects both sides. Then it shows how many of 20 seeds find all classes if
these are separated, and the purity at two thirds of that separation.
"""

import argparse
import platform
import statistics
import time

import torch
from promise import Promise, report

from evenly import kmeans, purity

WIDTH = 512
SEPARATION, HALF = 0.3, 0.2  # scale of the class means, in units of the noise
# Rows, clusters, how many times faster than scikit-learn-intelex and than scikit-learn.
PROMISES = [(5_954, 6, 3.5, 20.0), (15_000, 31, 3.5, 12.0)]
ROUNDING = 1e-5  # how far inertia may be above
SEEDS = 20
PURE = 0.9  # minimum for half-separated classes
PEERS = ("sklearnex", "sklearn", "faiss")


def features(n, k, separation=SEPARATION):
    """Rectified Gaussians around `k` class means, and their classes.

    They are filled in place, so memory use has no peak.
    """
    generator = torch.Generator().manual_seed(0)
    means = separation * torch.randn(k, WIDTH, generator=generator)
    x = torch.empty(n, WIDTH)
    y = torch.empty(n, dtype=torch.int64)
    for part, label in zip(x.split(10_000), y.split(10_000), strict=True):
        part.normal_(generator=generator)
        label.random_(k, generator=generator)
        part += means[label]
        part.relu_()
    return x, y


def peer(name, x, k, seed):
    """Inertia of another k-means, and a function that returns its labels."""
    if name == "faiss":
        from faiss import Kmeans

        found = Kmeans(WIDTH, k, seed=seed)
        found.train(x.numpy())
        near, labels = found.index.search(x.numpy(), 1)
        return float(near.sum(dtype="float64")), torch.from_numpy(labels[:, 0])
    if name == "sklearnex":
        from sklearnex.cluster import KMeans
    else:
        from sklearn.cluster import KMeans
    found = KMeans(k, n_init=10, random_state=seed).fit(x.numpy())
    return float(found.inertia_), torch.from_numpy(found.labels_).long()


def ours(x, k, seed):
    """The same for ours."""
    found = kmeans(x, k, seed=seed)
    return found.inertia, found.labels


def turn(x, k, seed):
    """Seconds and inertia of each."""
    runs = {"ours": seconds(lambda: ours(x, k, seed))}
    for name in PEERS:
        runs[name] = seconds(lambda name=name: peer(name, x, k, seed))
    return {name: (took, inertia) for name, (took, (inertia, _)) in runs.items()}


def seconds(work):
    time.sleep(0.2)  # the other side's threads stay awake for a while and occupy the cores
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def speed(pairs, promised):
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(
        f"{'rows':<24}{'':<11}{'seconds':>9}{'/ ours':>8}{'lowest':>8}{'highest':>9}"
        f"{'ours: mean inertia':>20}{'worst':>10}"
    )
    promises = []
    for n, k, *targets in promised:
        x, shape = features(n, k)[0], f"{n:,} x {WIDTH}, k = {k}"
        turn(x[:1000], k, 0)  # each side's first run starts its threads
        runs = [turn(x, k, seed) for seed in range(pairs)]
        mine = [run["ours"][1] for run in runs]
        print(f"{shape:<24}{'ours':<11}{statistics.median(run['ours'][0] for run in runs):>9.3f}")
        for name in PEERS:
            took, inertia = zip(*(run[name] for run in runs), strict=True)
            ratios = [run[name][0] / run["ours"][0] for run in runs]
            ratio = statistics.median(ratios)
            mean, worst = sum(mine) / sum(inertia), max(mine) / max(inertia)
            print(
                f"{'':<24}{name:<11}{statistics.median(took):>9.3f}{ratio:>8.1f}{min(ratios):>8.1f}"
                f"{max(ratios):>9.1f}{mean:>20.6f}{worst:>10.6f}"
            )
            if name == "faiss":
                continue
            target = targets[PEERS.index(name)]
            promises.append(Promise(f"k-means, {shape}: {name}'s time / ours", ratio, target))
            if name == "sklearnex":
                promises += [
                    Promise(
                        f"k-means, {shape}: {what} inertia / {name}'s", found, 1 + ROUNDING, False
                    )
                    for what, found in (("mean", mean), ("worst", worst))
                ]
    return promises


def classes():
    """Seeds that find all separated classes, and purity where classes are half separated."""
    n, k, *_ = PROMISES[1]
    x, y = features(n, k)
    found = 0
    for seed in range(SEEDS):
        labels = kmeans(x, k, seed=seed).labels
        table = torch.zeros(k, k).index_put_((labels, y), torch.tensor(1.0), accumulate=True)
        found += len(table.argmax(1).unique()) == k
    x, y = features(n, k, HALF)
    pure = min(purity(kmeans(x, k, seed=seed).labels, y) for seed in range(3))
    other = max(purity(peer("faiss", x, k, seed)[1], y) for seed in range(3))
    print(f"half separated classes: purity {pure:.3f} at least, faiss's {other:.3f} at most")
    return [
        Promise(f"k-means: seeds of {SEEDS} that find all {k} classes", found, SEEDS),
        Promise(f"k-means, {k} classes half separated: purity", pure, PURE),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--small", action="store_true", help="the first shape only")
    arguments = parser.parse_args()
    if arguments.small:
        report(speed(arguments.pairs, PROMISES[:1]))
    report(speed(arguments.pairs, PROMISES) + classes())


if __name__ == "__main__":
    main()
