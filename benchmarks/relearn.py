"""What Diagnosing & Re-learning adds to a whole run with the paper's settings.

    python benchmarks/relearn.py

The run is CREMA-D's: 5,952 training and 744 validation samples of the paper's shape, 90 epochs, a
look before the first epoch and three rounds. Ninety epochs take a day on a CPU, so the run is added
up from measured parts: a training step for each batch (joint training's, without validation passes,
which would reduce the share), a sample's part of a look at both splits, and k-means of both
modalities on the full number of features. Steps and looks alternate.
"""

import argparse
import statistics

import torch
from overhead import Trainer
from promise import Promise, report, seconds

from evenly import Features, diagnose

EPOCHS, ROUNDS, TRAIN, VAL, WIDTH, CLASSES = 90, 3, 5_952, 744, 512, 6
MOST = 1.02
WHAT = "a whole run of D&R / joint training's time"


def looked(trainer):
    """A look at both splits."""
    for split in ("train", "val"):
        trainer.probe.features(split)
    trainer.wait()


def clustered(device):
    """A diagnosis of the full number of features, like those of a half-trained encoder."""
    draws = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, WIDTH, generator=draws)
    splits = []
    for count in (TRAIN, VAL):
        target = torch.arange(count) % CLASSES
        features = {
            name: (0.3 * means[target] + torch.randn(count, WIDTH, generator=draws)).relu()
            for name in ("sound", "picture")
        }
        there = {name: x.to(device) for name, x in features.items()}
        splits.append(Features(there, target.to(device)))
    return lambda: diagnose(*splits)


def share(pair, pairs, device="cpu"):
    """The time of the whole run over joint training's, and the parts in seconds."""
    trainer = Trainer("joint", pair, device)
    batches = trainer.begin(0)
    size = len(batches[0]["target"])
    samples = sum(len(loader.dataset) for loader in trainer.probe.loaders.values())
    step, look, cluster = [], [], []
    diagnosis = clustered(device)
    trainer.step(batches[0])
    looked(trainer)
    for n in range(pairs):
        step.append(trainer.step(batches[n % len(batches)]))
        look.append(seconds(lambda: looked(trainer)))
        trainer.model.train()
        cluster.append(seconds(diagnosis))
    of_epoch = statistics.median(step) / size * TRAIN
    of_look = statistics.median(look) / samples * (TRAIN + VAL)
    added = (1 + ROUNDS) * of_look + ROUNDS * statistics.median(cluster)
    return 1 + added / (EPOCHS * of_epoch), (of_epoch, of_look, statistics.median(cluster))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="paper", help="of models, as overhead.py has them")
    parser.add_argument("--pairs", type=int, default=5, help="steps and looks")
    arguments = parser.parse_args()
    found, (epoch, look, cluster) = share(arguments.pair, arguments.pairs)
    print(f"an epoch {epoch:.0f} s, a look {look:.0f} s, k-means {cluster:.1f} s")
    report([Promise(WHAT, found, MOST, at_least=False)])


if __name__ == "__main__":
    main()
