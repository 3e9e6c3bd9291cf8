"""All figures that need a GPU, in under eight minutes.

    python benchmarks/gpu.py

Timings wait for the device. Before the promises, it shows train_step.py's ways of taking a step,
including those that the lab does not use. For k-means beside flash-kmeans: `pip install
flash-kmeans`.
"""

import argparse
import math
import tempfile
import warnings
from pathlib import Path

import relearn
import torch
import train_step
import whole
from kmeans import ROUNDING
from overhead import PAIRS, Trainer, random_data
from promise import Promise, ratio, report, seconds
from sklearn.cluster import KMeans

from evenly import kmeans
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training

ROWS, WIDTH, CLUSTERS = 15_000, 512, 31
STARTS, STEPS, TOLERANCE = 10, 100, 1e-4
"""For flash-kmeans: as many starts as scikit-learn, its default limit, its README's tolerance."""
NO_FLASH = {"here": False, "why": "measured with flash-kmeans, which is not installed"}


def clustering(device):
    """k-means on the device against scikit-learn's on the processor, and flash-kmeans."""
    draws = torch.Generator().manual_seed(0)
    means = 0.3 * torch.randn(CLUSTERS, WIDTH, generator=draws)
    x = means[torch.arange(ROWS) % CLUSTERS] + torch.randn(ROWS, WIDTH, generator=draws)
    x = x.relu()
    there = x.to(device)
    found = ratio(
        lambda: KMeans(CLUSTERS, n_init=10, random_state=0).fit(x.numpy()),
        lambda: waited(kmeans(there, CLUSTERS), device),
        pairs=3,
    )
    what = f"k-means, {ROWS:,} x {WIDTH}, k = {CLUSTERS}: scikit-learn's time / ours on the GPU"
    return [Promise(what, found, 50), *beside_flash(there, CLUSTERS)]


def beside_flash(x, k):
    """k-means against flash-kmeans on the same device: time, and inertia on all rows."""
    try:
        from flash_kmeans import batch_kmeans_Euclid
    except ImportError:
        time, inertia, missing = math.nan, math.nan, NO_FLASH
    else:
        many = x.expand(STARTS, *x.shape).contiguous()

        def theirs():
            """The centres of all starts, which it takes as a batch."""
            rows = torch.stack([torch.randperm(len(x), device=x.device)[:k] for _ in many])
            _, centres, _ = batch_kmeans_Euclid(
                many, k, max_iters=STEPS, tol=TOLERANCE, init_centroids=x[rows]
            )
            return waited(centres, x.device)

        time = ratio(theirs, lambda: waited(kmeans(x, k), x.device))
        inertia = kmeans(x, k).inertia / min(within(x, centres) for centres in theirs())
        missing = {}
    what = f"k-means, {len(x):,} x {x.shape[1]}, k = {k}"
    return [
        Promise(f"{what}: flash-kmeans' time, {STARTS} starts / ours", time, 1, **missing),
        Promise(f"{what}: inertia / flash-kmeans'", inertia, 1 + ROUNDING, False, **missing),
    ]


def within(x, centres):
    """The inertia of rows around their nearest centres."""
    return torch.cdist(x.double(), centres.double()).amin(1).square().sum().item()


def busy(device, pair, batches):
    """The rate of a run over that of its step on a batch already on the device."""
    shapes, size, _ = PAIRS[pair]
    data = random_data(shapes, batches * size, size)
    encoders = {} if pair == "mlp" else dict.fromkeys(shapes, "resnet18")
    training = Training(epochs=3, batch_size=size, width=512, encoders=encoders, diagnose_every=0)
    trainer = Trainer("joint", pair, device)
    batch = trainer.begin(0)[0]
    for _ in range(5):
        trainer.step(batch)
    step = (
        seconds(lambda: waited([trainer.step(batch, wait=False) for _ in range(50)], device)) / 50
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("warm", "measured"):  # the first run finds the fastest kernels
            cell = Cell(training, "joint", 0)
            result = run_cell(cell, Path(folder) / name, data=data, tests=False)
    of_run = result.seconds / result.steps
    print(f"a step: {1e3 * step:.1f} ms alone, {1e3 * of_run:.1f} ms in a run")
    if torch.device(device).type == "cuda":
        waits(trainer)
    return Promise("rate of a run / rate of its step on a batch on the GPU", step / of_run, 0.9)


def waits(trainer):
    """Prints where a step, with its batch on the GPU, waits for the GPU; it should not."""
    split = trainer.loader.dataset
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        trainer.step(split.__getitems__([0, 1, 2, 3]), wait=False)
        torch.cuda.set_sync_debug_mode("default")
    print(f"waits in a step: {len(found)}", *(str(each.message) for each in found), sep="\n  ")


def waited(found, device):
    """The result, once the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="'cpu' tries the program, small")
    device = parser.parse_args().device
    small = device == "cpu"
    if small:
        sizes = {"train": 48, "epochs": 3, "batch": 8, "size": 64}
    elif not torch.cuda.is_available():
        raise SystemExit("there is no GPU; --device cpu tries the program")
    else:
        sizes = {"train": 1536, "epochs": 6, "batch": 64, "size": 224}
        print(torch.cuda.get_device_name(), torch.__version__)
    pair, batches = ("mlp", 2) if small else ("paper", 60)
    train_step.measured(device, sizes["batch"], rounds=1 if small else 20)
    promises = [busy(device, pair, batches), *clustering(device)]
    share, _ = relearn.share(pair, 3, device)
    promises.append(Promise(relearn.WHAT, share, relearn.MOST, at_least=False))
    promises += whole.promised(argparse.Namespace(**sizes, lr=0.01, rounds=1))
    report(promises)


if __name__ == "__main__":
    main()
