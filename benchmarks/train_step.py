"""A training step in the lab, and in plain PyTorch by default.

    python benchmarks/train_step.py

The model is the paper's for CREMA-D: a ResNet-18 over two frames of 224 x 224 and one over a
spectrogram of 257 x 300. The lab trains it with bf16 autocast if the machine is fast at it, and
with this encoder in channels-last layout; the plain side is the same model in fp32 and the default
layout. Steps alternate in one process, and the ratio uses medians. The promise holds for processors
with AMX; elsewhere the ratio is shown without a target.

The last two sides are what the lab does not use, `torch.compile` and the optimiser in one kernel:
these lines show whether they would pay.
"""

import argparse
import contextlib
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from promise import AMX, Promise, report

from evenly.data import Data
from evenly.lab.run.build import build_model, build_optimizer
from evenly.lab.run.settings import Cell, Training

SHAPES = {"visual": ((2, 3, 224, 224), torch.uint8), "audio": ((1, 257, 300), torch.float16)}
CLASSES, LEAST_RATIO = 6, 3.5


class Way(NamedTuple):
    """A way to take a step."""

    autocast: bool = True
    layout: torch.memory_format = torch.channels_last
    compiled: bool = False
    fused: bool = False


PLAIN, LAB = "plain fp32", "bf16, channels-last"
WAYS = {
    PLAIN: Way(autocast=False, layout=torch.contiguous_format),
    "fp32, channels-last": Way(autocast=False),
    "bf16": Way(layout=torch.contiguous_format),
    LAB: Way(),
    "the same, compiled": Way(compiled=True),
    "the same, fused SGD": Way(fused=True),
}


class Side:
    """A model, and one way to train it."""

    def __init__(self, data, batch_size, device, way):
        training = Training(batch_size=batch_size, encoders=dict.fromkeys(SHAPES, "resnet18"))
        model = build_model(data, Cell(training, "joint", 0)).to(device, memory_format=way.layout)
        self.model = torch.compile(model) if way.compiled else model
        self.optimizer = build_optimizer(model, training)
        if way.fused:
            self.optimizer.param_groups[0]["fused"] = True
        self.autocast = way.autocast
        self.device = torch.device(device)

    def step(self, batch):
        """Seconds of one batch."""
        start = time.perf_counter()
        bf16 = torch.autocast(self.device.type, torch.bfloat16)
        with bf16 if self.autocast else contextlib.nullcontext():
            output = self.model(batch["inputs"], batch["present"])
            loss = F.cross_entropy(output.logits, batch["target"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
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


def measured(device, batch_size, rounds):
    """Prints each way's samples per second; returns the lab's over the plain one's."""
    data = random_data(batch_size)  # models are built from it, on the processor
    there = data.to(torch.device(device))
    batch = there.split("train").__getitems__(list(range(batch_size)))
    sides = {name: Side(data, batch_size, device, way) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 2):  # the first two compile and create the optimiser's state
        for name, side in list(sides.items()):
            try:
                seconds[name].append(side.step(batch))
            except RuntimeError as error:
                # From a missing compiler, or from a fused kernel, which on a GPU refuses a gradient
                # whose strides differ from its parameter's, even in a dimension of size 1
                # (PyTorch's issue 106951).
                if name in (PLAIN, LAB):
                    raise
                print(f"{name}: {str(error).splitlines()[0]}")
                del sides[name], seconds[name]
    rates = {name: batch_size / statistics.median(took[2:]) for name, took in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>9.1f} samples/s {rate / rates[PLAIN]:>6.2f}x")
    return rates[LAB] / rates[PLAIN]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of steps")
    options = parser.parse_args()
    ratio = measured("cpu", options.batch, options.rounds)
    promise = "a training step: plain fp32's time / the lab's"
    report([Promise(promise, ratio, LEAST_RATIO, **AMX)])


if __name__ == "__main__":
    main()
