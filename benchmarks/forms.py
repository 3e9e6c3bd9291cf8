"""evenly's own forms of computation against the plain forms that they replace.

    python benchmarks/forms.py

Each line is work of the size of a run on CREMA-D (5,952 training and 744 test samples, 512
features, a pair of ResNet-18s), on one thread. Both sides give the same result, which is checked
first. None may be slower than its plain form.
"""

import argparse

import numpy as np
import torch
from promise import Promise, ratio, report
from torch import nn

from evenly import distributed, purity, soft_reinit_
from evenly.data import Data
from evenly.data.tasks import Classes
from evenly.diagnosis.kmeans import assign
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.statistics import bootstrap
from evenly.output import Output

N, WIDTH, CLASSES, TESTED, BATCH = 5_952, 512, 6, 744, 64


def forms():
    """The plain form and ours, by purpose, each with a comparable result."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(N, WIDTH, generator=draws)
    centers = torch.randn(CLASSES, WIDTH, generator=draws)
    cluster = torch.randint(CLASSES, (N,), generator=draws)
    target = torch.randint(CLASSES, (N,), generator=draws)
    logits = torch.randn(TESTED, CLASSES, generator=draws)
    weights = [torch.randn(512, 512, 3, 3, generator=draws) for _ in range(8)]
    pictures = torch.randint(0, 255, (N // 4, 3, 112, 112), dtype=torch.uint8, generator=draws)
    rows = torch.randperm(len(pictures), generator=draws)[:BATCH]
    correct = (torch.rand(5, TESTED, generator=draws) < 0.7).numpy()
    encoder, again = network(0), network(0)
    initial = dict(network(1).named_parameters())
    yield (
        "rows to their nearest centre, against torch.cdist",
        (
            lambda: torch.cdist(x, centers).argmin(1),
            lambda: assign(x, centers),
        ),
    )
    yield (
        "purity, against loops",
        (
            lambda: looped_purity(cluster, target),
            lambda: purity(cluster, target),
        ),
    )
    yield (
        "re-learning's step, against load_state_dict",
        (
            lambda: mixed(encoder, initial, 0.1),
            lambda: relearnt(again, initial, 0.1),
        ),
    )
    yield (
        "deviation of a gradient, against torch.std",
        (
            weights[0].std,
            lambda: distributed.std(weights[0]),
        ),
    )
    yield (
        "squared norm of a model's gradients, against a sum by tensor",
        (
            lambda: sum(weight.square().sum() for weight in weights),
            lambda: distributed.square_sums([weights], torch.device("cpu"))[0],
        ),
    )
    yield (
        "a batch of pictures, against indexing",
        (
            lambda: pictures[rows],
            data(pictures, rows),
        ),
    )
    yield (
        "metrics of a split, against a loop over samples",
        (
            lambda: counted(logits, target[:TESTED]),
            lambda: evaluated(logits, target[:TESTED]),
        ),
    )
    yield (
        "accuracy of every bootstrap repeat, against a loop",
        (
            lambda: resampled(correct),
            lambda: weighted(correct),
        ),
    )


def network(seed):
    """As many tensors and parameters as in a ResNet-18."""
    torch.manual_seed(seed)
    layers = [nn.Linear(512, 512) for _ in range(42)]
    return nn.Sequential(*layers)


def looped_purity(cluster, target):
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for c, t in zip(cluster.tolist(), target.tolist(), strict=True):
        counts[c][t] += 1
    return sum(max(row) for row in counts) / len(cluster)


def mixed(encoder, initial, alpha):
    state = encoder.state_dict()
    for name in state:
        state[name] = (1 - alpha) * state[name] + alpha * initial[name]
    encoder.load_state_dict(state)
    return encoder[0].weight


def relearnt(encoder, initial, alpha):
    soft_reinit_(encoder, initial, alpha)
    return encoder[0].weight


def data(pictures, rows):
    """Reading them from a split."""
    all_ = torch.arange(len(pictures))
    whole = {"train": all_, "val": all_[:CLASSES], "test": all_[:CLASSES]}
    target = torch.arange(len(pictures)) % CLASSES
    split = Data("pictures", {"p": pictures}, target, whole, list("abcdef")).split("train")
    wanted = rows.tolist()
    return lambda: split.__getitems__(wanted)["inputs"]["p"]


def counted(logits, target):
    right = [0.0] * CLASSES
    for row, label in zip(logits, target, strict=True):
        if int(np.argmax(row.numpy())) == int(label):
            right[int(label)] += 1.0
    return sum(right) / len(target)


def evaluated(logits, target):
    evaluation = Evaluation(Classes([str(n) for n in range(CLASSES)]))
    for part, labels in zip(logits.split(BATCH), target.split(BATCH), strict=True):
        evaluation.add(Output(part, {"a": part}), labels)
    return evaluation.metrics()["accuracy"]


def resampled(correct):
    draws = np.random.default_rng(0)
    found = [
        correct[:, draws.integers(TESTED, size=TESTED - 1)].mean(1)
        for _ in range(bootstrap.REPEATS)
    ]
    return np.stack(found).std(0)


def weighted(correct):
    bootstrap.weights.cache_clear()  # a report draws once for all its figures
    return bootstrap.mean(bootstrap.weights(5, TESTED).samples, correct).std(0)


def same(one, other):
    """Whether two forms agree: up to rounding, or to a tenth if they are random."""
    one, other = (torch.as_tensor(value).detach().double() for value in (one, other))
    return torch.allclose(one, other, 0.1 if one.shape == (5,) else 1e-4, 1e-6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="runs of each side")
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    promises = []
    for what, (plain, ours) in forms():
        assert same(plain(), ours()), what
        promises.append(Promise(what, ratio(plain, ours, pairs), 1.0))
    report(promises)


if __name__ == "__main__":
    main()
