"""A whole run, from files to the accuracy on the test split: evenly's, and plain.py's.

    python benchmarks/whole.py

Both train two ResNet-18 on the same clips of CREMA-D's shape (two frames of 224 x 224, three
seconds of sound), diagnose and re-learn once, validate after each epoch and test the best one: the
same model, number of steps, batch size and learning rate. evenly's run is `evenly train` on a store
made by `evenly prepare`, with everything that the command measures at the end beyond the baseline
(contributions, robustness, probes), but without diagnoses for figures during training, which the
baseline lacks. The second ratio includes the preparation, which is done once for all methods and
seeds. With several rounds the sides alternate, and ratios use medians.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import crema
import plain
import torch
from promise import AMX, Promise, report, seconds

from evenly.data.raw import prepare
from evenly.data.store import open_store
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.nn.pretrained import ResNet18

EVERY = 1  # re-learns before the third epoch
TARGETS = {"cpu": 4.0, "cuda": 8.0}


def ours(store, out, arguments):
    """Accuracy, steps and seconds of the command's run."""
    training = Training(
        data=str(store),
        epochs=arguments.epochs,
        batch_size=arguments.batch,
        lr=arguments.lr,
        width=512,
        encoders={"audio": "resnet18", "visual": "resnet18"},
        threads=cores(),
        diagnose_every=0,
    )
    start = time.perf_counter()
    result = run_cell(Cell(training, f"relearn(every={EVERY},times=1)", 0), out)
    return result.metrics["test"]["accuracy"], result.steps, time.perf_counter() - start


def theirs(known, store, arguments):
    """The same of the baseline's."""
    torch.manual_seed(0)
    modalities = open_store(store).modalities
    return plain.train(
        known,
        [ResNet18(modalities["audio"]), ResNet18(modalities["visual"])],
        epochs=arguments.epochs,
        every=EVERY,
        size=(arguments.size, arguments.size),
        batch=arguments.batch,
        lr=arguments.lr,
        device="cuda" if torch.cuda.is_available() else "cpu",
        workers=cores(),
    )


def cores():
    return min(len(os.sched_getaffinity(0)), 16)


def promised(arguments):
    """Runs both sides; returns the promises about them."""
    torch.set_num_threads(cores())
    counts = {"train": arguments.train, "val": arguments.train // 8, "test": arguments.train // 8}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = crema.write(folder / "clips", counts)
        source = crema.source(known, arguments.size)
        before = seconds(lambda: prepare(source, folder / "store", workers=cores()))
        pairs = []
        for number in range(arguments.rounds):
            pairs.append(
                (
                    ours(folder / "store", folder / f"run-{number}", arguments),
                    theirs(known, folder / "store", arguments),
                )
            )
            for side, (accuracy, steps, took) in zip(("evenly", "plain"), pairs[-1], strict=True):
                print(f"{side}: {steps} steps, accuracy {accuracy:.3f}, {took:.1f} s", flush=True)
    print(f"evenly prepare: {before:.1f} s for {len(known)} clips")
    assert len({side[1] for pair in pairs for side in pair}) == 1, "unequal numbers of steps"
    mine, other = (statistics.median(pair[side][2] for pair in pairs) for side in (0, 1))
    accuracies = [statistics.mean(pair[side][0] for pair in pairs) for side in (0, 1)]
    gpu = torch.cuda.is_available()
    target = TARGETS["cuda" if gpu else "cpu"]
    here = {} if gpu else AMX
    where = "on the GPU" if gpu else f"on {cores()} cores"
    # Two standard errors of the difference, if both models had the average accuracy.
    common = statistics.mean(accuracies)
    noise = 2 * math.sqrt(2 * common * (1 - common) / counts["test"])
    return [
        Promise(
            f"a whole D&R run {where}: plain.py's time / evenly's", other / mine, target, **here
        ),
        Promise("the same, evenly's preparation counted", other / (mine + before), 1.0),
        Promise("difference of their accuracies", abs(accuracies[0] - accuracies[1]), noise, False),
        Promise(
            f"the lower one of them (chance: {1 / len(crema.CLASSES):.2f})", min(accuracies), 0.5
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=384, help="training clips")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="height and width of a frame")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side")
    report(promised(parser.parse_args()))


if __name__ == "__main__":
    main()
