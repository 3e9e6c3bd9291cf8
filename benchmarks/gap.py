"""Whether you can act on the `stable` gap: steady, 0 without over-fitting, with a true error.

    python benchmarks/gap.py               # eight minutes on two cores
    python benchmarks/gap.py --only real   # one of the four questions

1. seeds: how much different seeds of k-means change the strength, and tanh(3 · gap), which the
   strength cuts to 0 up to three errors; on the inputs of the sets in ../shared/data and on a small
   joint model's features;
2. null: the strength if both splits have the same source, for any sizes and class shares;
3. real: the strength if the classes of the training split are further apart;
4. errors: the standard error over the standard deviation of the gap from draw to draw.

Each is shown beside the published gap.
"""

import argparse
import itertools
import math
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from promise import Promise, report
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, cross_entropy

from evenly import Features, diagnose
from evenly.data import Padded, load_npz

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
SETS = (  # the longest first
    "leaves",
    "av_digits",
    "cremad_votes",
    "emoji_tags",
    "ravdess_av",
    "cmu_mosi",
    "watch_exercises",
    "htad",
)
GAPS = ("stable", "paper")
SEEDS, STEADY = 10, 0.03  # seeds of k-means, and their maximum standard deviation
GRID = 16  # length that sequences, and both sides of images, are averaged to
HALF, WELL = 3, {True: 20, False: 60}  # epochs; fewer for sets with many samples
MANY = 3000

CELLS, NONE = 100, 0.05  # cells of the grid, and the maximum strength
SIZES = (60, 300, 1500, 6000)
CLASSES = (2, 6, 30)
SHARES = (("equal", "equal"), ("skewed", "skewed"), ("skewed", "reversed"))
APART = {"none": 0.0, "half": 3.0, "full": 8.0}  # class means, in standard deviations
WIDTHS = (8, 64, 512)

# Separations of training and validation split, and the minimum strength; as in CREMA-D, there are
# 5,954 and 744 rows of 6 classes, in 128 dimensions.
OVER_TRAINED = ((0.4, 0.3, 0.15), (0.3, 0.2, 0.45), (0.4, 0.2, 0.55), (0.6, 0.15, 0.8))
ROUNDS = 3

DRAWS = 20
TRUE = 0.7, 1.3  # minimum and maximum of the stated error over the true one
# Rows of both splits, width, classes, shares of both, separation of both.
SITUATIONS = {
    "not separated": (1200, 300, 64, 6, "equal", "equal", 0.0, 0.0),
    "half separated": (1200, 300, 64, 6, "equal", "equal", 0.4, 0.4),
    "separated": (1200, 300, 64, 6, "equal", "equal", 1.0, 1.0),
    "few rows, other shares": (240, 60, 32, 6, "skewed", "reversed", 0.5, 0.5),
    "over-trained a little": (1200, 300, 64, 6, "equal", "equal", 0.45, 0.35),
    "over-trained": (1200, 300, 64, 6, "equal", "equal", 0.6, 0.3),
    "over-trained, 2 classes": (1000, 200, 16, 2, "equal", "equal", 0.6, 0.3),
    "over-trained, 20 classes": (1200, 240, 64, 20, "equal", "equal", 0.8, 0.5),
}


def counts(size, classes, shares):
    """Samples of each class, at least one; skewed ones decrease as 1, 1/2, 1/3, ......"""
    share = torch.ones(classes) if shares == "equal" else 1 / torch.arange(1.0, classes + 1)
    if shares == "reversed":
        share = share.flip(0)
    return (size * share / share.sum()).round().long().clamp_min(1)


def drawn(count, separation, width, seed):
    """Rectified Gaussians around class means, whose scale is the separation."""
    means = torch.randn(len(count), width, generator=torch.Generator().manual_seed(0))
    y = torch.repeat_interleave(torch.arange(len(count)), count)
    noise = torch.randn(len(y), width, generator=torch.Generator().manual_seed(seed + 1))
    return Features({"x": (separation * means[y] + noise).relu()}, y)


def measured(train, val, gap, seed=0):
    """Strength, gap and standard error."""
    found = diagnose(train, val, gap=gap, seed=seed)
    return found.strength()["x"], found.train["x"] - found.val["x"], found.standard_error["x"]


def flat(x, modality):
    """One vector per sample: the words in it, or values averaged to a grid."""
    if modality.kind == "text":
        words = x.values.long()
        return torch.zeros(len(words), modality.shape[1]).scatter_(1, words, 1.0)[:, 1:]
    if isinstance(x, Padded):
        whole = (values[:length].float() for values, length in zip(*x, strict=True))
        return torch.stack([adaptive_avg_pool1d(one.T, GRID).flatten() for one in whole])
    x = x.float()
    if modality.kind == "sequence":
        x = adaptive_avg_pool1d(x.mT, GRID)
    elif modality.kind == "image":
        x = adaptive_avg_pool2d(x, GRID)
    return x.flatten(1)


def read(name):
    """Standardised inputs of a set by modality, for training and validation split, and classes."""
    with tempfile.TemporaryDirectory() as folder:
        program, file = HERE.parent / "examples" / f"convert_{name}.py", Path(folder, "set.npz")
        command = [sys.executable, program, SHARED / name, file]
        subprocess.run(command, check=True, capture_output=True)
        data = load_npz(file)
        splits = [data.split(part) for part in ("train", "val")]
        batches = [split.__getitems__(range(len(split))) for split in splits]
    inputs = {}
    for key, modality in data.modalities.items():
        train, val = (flat(batch["inputs"][key], modality) for batch in batches)
        mean, std = train.mean(0), train.std(0)
        std = torch.where(std > 0, std, 1.0)
        inputs[key] = (train - mean) / std, (val - mean) / std
    return inputs, batches[0]["target"], batches[1]["target"]


def learnt(inputs, y):
    """Features of both splits by state (inputs, half learnt, well learnt) and modality."""
    torch.manual_seed(0)
    encoders = nn.ModuleDict(
        {
            name: nn.Sequential(
                nn.Linear(train.shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
            )
            for name, (train, _) in inputs.items()
        }
    )
    head = nn.Linear(64 * len(encoders), int(y.max()) + 1)
    optimizer = torch.optim.Adam([*encoders.parameters(), *head.parameters()])
    found = {("input", name): splits for name, splits in inputs.items()}
    epochs = {HALF: "half learnt", WELL[len(y) > MANY]: "well learnt"}
    for epoch in range(1, max(epochs) + 1):
        for rows in torch.randperm(len(y)).split(64):
            x = [encoders[name](train[rows]) for name, (train, _) in inputs.items()]
            cross_entropy(head(torch.cat(x, 1)), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch in epochs:
            with torch.no_grad():
                for name, splits in inputs.items():
                    found[epochs[epoch], name] = tuple(encoders[name](x) for x in splits)
    return found


def of_set(name):
    """What `varied` says of ten seeds, by state, modality and gap; and the cost.

    The cost is the CPU time of the stable gaps, over that of the paper's.
    """
    inputs, y, w = read(name)
    found, took = {}, dict.fromkeys(GAPS, 0.0)
    for key, (x, v) in learnt(inputs, y).items():
        train, val = Features({"x": x}, y), Features({"x": v}, w)
        found[key] = {}
        for gap in GAPS:
            start = time.process_time()
            runs = [measured(train, val, gap, seed) for seed in range(SEEDS)]
            took[gap] += time.process_time() - start
            found[key][gap] = varied(runs)
    return found, took["stable"] / took["paper"]


def varied(runs):
    """Mean and deviation of the strength, and the deviation of tanh(3 · gap), from run to run."""
    strengths, gaps, _ = zip(*runs, strict=True)
    uncut = [math.tanh(3 * gap) for gap in gaps]
    return statistics.mean(strengths), statistics.stdev(strengths), statistics.stdev(uncut)


def seeds(pool):
    """Prints the effect of different seeds on the available sets."""
    here = [name for name in SETS if (SHARED / name).is_dir()]
    for name in SETS:
        if name not in here:
            print(f"left out: {name}, as there is no {SHARED / name}")
    print(f"\nstrength, mean ± deviation of {SEEDS} seeds (deviation of tanh(3 · gap))")
    print(f"{'set':<17}{'modality':<15}{'state':<12} {'stable':>23} {'paper':>23}")
    promises = []
    for name, (found, cost) in zip(here, pool.map(of_set, here), strict=True):
        for (state, modality), by_gap in found.items():
            cells = ("{:6.3f} ± {:.4f} ({:.4f})".format(*one) for one in by_gap.values())
            print(f"{name:<17}{modality:<15}{state:<12}", *cells, flush=True)
        print(f"{name:<17}a stable gap takes {cost:.0f} times as long as the paper's")
        promises += steady(name, found)
    return promises


def steady(name, found):
    """The promises for a set: the largest deviations of the strength, with its cut and without."""
    promises = []
    for place, what in ((1, "the strength tanh(3 · used)"), (2, "tanh(3 · gap)")):
        worst = {gap: max(one[gap][place] for one in found.values()) for gap in GAPS}
        what = f"stable gap, {name}: deviation of {what} (paper {worst['paper']:.3f})"
        promises.append(Promise(what, worst["stable"], STEADY, at_least=False))
    return promises


def cells():
    """A random part of the grid, always the same."""
    every = list(itertools.product(SIZES, SIZES, CLASSES, SHARES, APART, WIDTHS))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return [every[number] for number in order[:CELLS]]


def of_cell(cell):
    """Strength, gap and error by estimator, for two splits of one source."""
    size, val_size, classes, shares, apart, width = cell
    separation = APART[apart] / math.sqrt(2 * width)
    train = drawn(counts(size, classes, shares[0]), separation, width, 1)
    val = drawn(counts(val_size, classes, shares[1]), separation, width, 2)
    return {gap: measured(train, val, gap) for gap in GAPS}


def null(pool):
    """Prints the strengths without over-fitting."""
    found = list(zip(cells(), pool.map(of_cell, cells()), strict=True))
    print(f"\nstrength in {CELLS} cells without over-fitting")
    print("classes apart    cells  stable: mean     most   paper: mean     most")
    for apart in APART:
        those = [one for cell, one in found if cell[4] == apart]
        columns = ([one[gap][0] for one in those] for gap in GAPS)
        figures = (f"{statistics.mean(column):13.3f}{max(column):9.3f}" for column in columns)
        print(f"{apart:<16}{len(those):>6}", *figures)
    for cell, one in found:
        if one["stable"][0] > 0:
            print("not 0:", *cell, "strength {:.3f}, gap {:.3f} ± {:.3f}".format(*one["stable"]))
    ratios = [gap / error for _, gap, error in (one["stable"] for _, one in found)]
    print(
        f"stable gap / its error: mean {statistics.mean(ratios):.2f}, "
        f"deviation {statistics.stdev(ratios):.2f}, most {max(ratios):.2f}"
    )
    most = max(one["stable"][0] for _, one in found)
    what = f"stable gap, {CELLS} cells without over-fitting: strength at most"
    return [Promise(what, most, NONE, at_least=False)]


def of_row(row, rounds):
    """Strengths of each round, by gap."""
    of_train, of_val, _ = row
    found = {"stable": [], "paper": [], "shared": []}
    for n in range(rounds):
        train = drawn(counts(5954, 6, "equal"), of_train, 128, 2 * n)
        val = drawn(counts(744, 6, "equal"), of_val, 128, 2 * n + 1)
        for gap, strengths in found.items():
            strengths.append(measured(train, val, gap, n)[0])
    return found


def real(pool, rounds=ROUNDS):
    """Prints the strengths with real over-fitting."""
    print(f"\nstrength where over-fitting is real, mean of {rounds} draws (least)")
    print(f"{'separations':<12} {'stable':>14} {'paper':>14} {'shared':>14}")
    promises = []
    every = pool.map(partial(of_row, rounds=rounds), OVER_TRAINED)
    for row, found in zip(OVER_TRAINED, every, strict=True):
        figures = (f"{statistics.mean(x):.3f} ({min(x):.3f})" for x in found.values())
        shape = f"{row[0]:.2f} / {row[1]:.2f}"
        print(f"{shape:<12}", *(f"{one:>14}" for one in figures))
        what = f"stable gap, separations {shape}: strength at least"
        promises.append(Promise(what, min(found["stable"]), row[2]))
    return promises


def of_situation(name):
    """The mean of each gap, and the true and stated errors, over fresh draws."""
    size, val_size, width, classes, shares, val_shares, apart, val_apart = SITUATIONS[name]
    found = {"stable": [], "paper": []}
    for n in range(DRAWS):
        train = drawn(counts(size, classes, shares), apart, width, 2 * n)
        val = drawn(counts(val_size, classes, val_shares), val_apart, width, 2 * n + 1)
        for gap, ones in found.items():
            ones.append(measured(train, val, gap, n)[1:])
    return {
        gap: (
            statistics.mean(gap for gap, _ in ones),
            statistics.stdev(gap for gap, _ in ones),
            math.sqrt(statistics.mean(error**2 for _, error in ones)),
        )
        for gap, ones in found.items()
    }


def errors(pool):
    """Prints stated and true errors."""
    print(f"\nstandard error of the gap, {DRAWS} draws of both splits")
    head = f"{'gap':>7}{'true':>8}{'told':>8}{'told / true':>13}"
    print(f"{'':<26}{'stable:':>9}{head}{'paper:':>9}{head}")
    ratios = []
    for name, found in zip(SITUATIONS, pool.map(of_situation, SITUATIONS), strict=True):
        ratios.append(found["stable"][2] / found["stable"][1])
        figures = (
            f"{mean:7.3f}{true:8.4f}{told:8.4f}{told / true:13.2f}"
            for mean, true, told in found.values()
        )
        print(f"{name:<26}", *(f"{'':<8}{one}" for one in figures), flush=True)
    middle = statistics.median(ratios)
    what = f"stable gap, {len(SITUATIONS)} situations: told error / true one, median"
    return [Promise(what, middle, TRUE[0]), Promise(what, middle, TRUE[1], at_least=False)]


PARTS = {"seeds": seeds, "null": null, "real": real, "errors": errors}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these of them")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="draws in real (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    arguments = parser.parse_args()
    parts = PARTS | {"real": partial(real, rounds=arguments.rounds)}
    start = time.perf_counter()
    promises = []
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(arguments.jobs, context, torch.set_num_threads, (1,)) as pool:
        for name in arguments.only:
            promises += parts[name](pool)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} min\n")
    report(promises)


if __name__ == "__main__":
    main()
