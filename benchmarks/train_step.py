"""A training step as the lab takes it, and as plain PyTorch takes it by default.

    python benchmarks/train_step.py

The model is the paper's for CREMA-D: a ResNet-18 over two frames of 224 x 224 and one over a
spectrogram of 257 x 300. The lab trains it with bf16 autocast where the machine is fast at it, and
with this encoder laid out channels-last; the plain side is the same model in fp32 and the default
layout. Steps alternate in one process, and the ratio is of the medians. What is promised is
promised for processors with AMX; elsewhere the ratio is shown and nothing is demanded.
"""

import argparse
import contextlib
import statistics
import time

import torch
import torch.nn.functional as F
from claims import AMX, Claim, report

from evenly.data import Data
from evenly.lab.build import build_model, build_optimizer
from evenly.lab.run import forward
from evenly.lab.settings import Cell, Training

SHAPES = {"visual": ((2, 3, 224, 224), torch.uint8), "audio": ((1, 257, 300), torch.float16)}
CLASSES, LEAST_RATIO = 6, 3.5


class Side:
    """One way to take a step."""

    def __init__(self, data, batch_size, autocast, layout):
        training = Training(batch_size=batch_size, encoders=dict.fromkeys(SHAPES, "resnet18"))
        self.model = build_model(data, Cell(training, "joint", 0)).to(memory_format=layout)
        self.optimizer = build_optimizer(self.model, training)
        self.autocast = autocast

    def step(self, batch):
        """Seconds of one batch."""
        start = time.perf_counter()
        bf16 = torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with bf16:
            output, target = forward(self.model, batch)
            loss = F.cross_entropy(output.logits, target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def random_data(batch_size):
    """Three splits of one batch each."""
    stream = torch.Generator().manual_seed(0)
    count = 3 * batch_size
    inputs = {
        name: torch.randint(0, 256, (count, *shape), generator=stream, dtype=torch.uint8).to(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }
    rows = torch.arange(count).chunk(3)
    cut = dict(zip(("train", "val", "test"), rows, strict=True))
    names = [str(n) for n in range(CLASSES)]
    return Data("random", inputs, torch.arange(count) % CLASSES, cut, names)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of steps")
    options = parser.parse_args()
    data = random_data(options.batch)
    batch = data.split("train").__getitems__(list(range(options.batch)))
    sides: dict[str, tuple[bool, torch.memory_format]] = {
        "plain fp32": (False, torch.contiguous_format),
        "fp32, channels-last": (False, torch.channels_last),
        "bf16": (True, torch.contiguous_format),
        "bf16, channels-last": (True, torch.channels_last),
    }
    made = {name: Side(data, options.batch, *how) for name, how in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 1):  # the first makes the optimiser's state
        for name, side in made.items():
            seconds[name].append(side.step(batch))
    rates = {name: options.batch / statistics.median(took[1:]) for name, took in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>7.1f} samples/s {rate / rates['plain fp32']:>6.2f}x")
    claim = "a training step: plain fp32's time / the lab's"
    ratio = rates["bf16, channels-last"] / rates["plain fp32"]
    report([Claim(claim, ratio, LEAST_RATIO, **AMX)])


if __name__ == "__main__":
    main()
