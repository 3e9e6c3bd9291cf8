"""Time and peak memory of every method's training step, over joint training's.

    python benchmarks/overhead.py                    # all methods, both models: half an hour
    python benchmarks/overhead.py --methods ogm,mlb  # some of them
    python benchmarks/overhead.py --write            # and note it down for `evenly methods`
                                                     # (what is not measured stays noted)

The models are a pair of ResNet-18 (a sound of one channel, a picture of three; 64 samples per batch
as in the papers, at a quarter of their pixels) and a pair of MLPs. A method over its budget on the
ResNets, which may only come from work on parameters, is measured again at full size and with more
pairs. A step is what the lab does with one batch: forward and loss, under bf16 autocast if the
processor is fast at it, backward, the method's hooks and the optimiser; work between epochs is not
included. Steps of the method and of joint training alternate, and the ratio is the median over
pairs, so that other work on the machine affects both sides; of a method's phases, the most
expensive counts. Memory is the peak of a process that trains only with the method, beyond what it
held before creating the model.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from functools import cache
from pathlib import Path

import torch
from promise import Promise, peak, report

from evenly import METHODS, Probe
from evenly.data import Data
from evenly.lab.many.compare import hardware
from evenly.lab.run.build import expanded
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place
from evenly.lab.run.precision import decided
from evenly.lab.run.settings import Cell, Training
from evenly.spec import parse, split

EPOCHS = 4  # a short training, for which the lab scales a method's schedule
CLASSES = 6
PAIRS = {
    # shapes of a sample by modality, samples per batch, batches per epoch
    "resnet": ({"sound": (1, 112, 112), "picture": (3, 112, 112)}, 64, 2),
    "whole": ({"sound": (1, 224, 224), "picture": (3, 224, 224)}, 64, 2),
    "paper": ({"sound": (1, 128, 298), "picture": (2, 3, 224, 224)}, 64, 2),
    "mlp": ({"first": (1024,), "second": (1024,)}, 256, 10),
}
NOISE = 1.05  # noise that remains with a few pairs of steps
NOTED = Path(__file__).parents[1] / "src" / "evenly" / "lab" / "run" / "overhead.json"


@cache
def precision(pair):
    """The lab's precision for joint training of a pair."""
    cell, data = _asked("joint", pair)
    return decided(cell, {}, data)[0].training.precision


def _asked(case, pair):
    shapes, size, batches = PAIRS[pair]
    encoders = {} if pair == "mlp" else dict.fromkeys(shapes, "resnet18")
    training = Training(epochs=EPOCHS, batch_size=size, width=512, encoders=encoders)
    return Cell(training, case, 0), random_data(shapes, size * batches, size)


class Trainer:
    """One training, built like the lab's, step by step."""

    def __init__(self, case, pair, device="cpu"):
        cell, data = _asked(case, pair)
        self.place = Place(torch.device(device), precision(pair))
        self.parts = Parts.of(cell, data, self.place)
        self.model, self.method = self.parts.model, self.parts.method
        self.optimizer, self.loader = self.parts.optimizer, self.parts.train
        val = self.parts.in_order("val", cell.training.batch_size)
        self.probe = Probe(self.model, self.parts.forward, self.loader, val)
        self.cuda = self.place.device.type == "cuda"

    def begin(self, epoch):
        """Runs `before_epoch`; the batches of the epoch."""
        self.parts.begin(epoch)
        self.method.before_epoch(epoch, self.probe)
        return list(self.loader)[:: self.method.repeats]

    def step(self, whole, *, wait=True):
        """Seconds of one batch; meaningless for a GPU without waiting."""
        start = time.perf_counter()
        for _ in range(self.method.repeats):
            batch = whole
            if (turn := self.method.turn) is not None:
                batch = {**batch, "inputs": {turn: batch["inputs"][turn]}}
            with self.place.autocast():
                loss = self.method.loss(*self.parts.forward(self.model, batch))
            self.method.backward(loss)
            self.method.before_step()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if wait:
            self.wait()
        return time.perf_counter() - start

    def wait(self):
        """Waits until a GPU has finished its work."""
        if self.cuda:
            torch.cuda.synchronize()


def random_data(shapes, train, val):
    stream = torch.Generator().manual_seed(0)
    target = torch.arange(train + 2 * val) % CLASSES
    inputs = {
        name: torch.randn(len(target), *shape, generator=stream) for name, shape in shapes.items()
    }
    rows = torch.arange(len(target))
    cut = {"train": rows[:train], "val": rows[train : train + val], "test": rows[train + val :]}
    return Data("random", inputs, target, cut, [str(n) for n in range(CLASSES)])


def time_ratio(case, pair, rounds):
    """The median ratio of pairs of steps in the most expensive phase."""
    joint, other = Trainer("joint", pair), Trainer(case, pair)
    medians = []
    for epoch in range(EPOCHS):
        batches = list(zip(joint.begin(epoch), other.begin(epoch), strict=True)) * rounds
        if epoch == 0:  # the first steps create the optimiser's state and fill caches
            joint.step(batches[0][0])
            other.step(batches[0][1])
        ratios = []
        for n, (plain, own) in enumerate(batches):
            if n % 2:
                theirs, ours = joint.step(plain), other.step(own)
            else:
                ours, theirs = other.step(own), joint.step(plain)
            ratios.append(ours / theirs)
        medians.append(statistics.median(ratios))
    return max(medians)


def memory(case, pair):
    """Peak bytes of a training with this method alone."""
    before = peak()
    trainer = Trainer(case, pair)
    for epoch in range(EPOCHS):
        trainer.step(trainer.begin(epoch)[0])
    return peak() - before


def child(case, pair, rounds):
    """Time relative to joint training's and peak bytes, measured in a separate process."""
    command = [sys.executable, __file__, "--one", case, pair, str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    ratio, size = map(float, done.stdout.split())
    return ratio, size


def table(cases, rounds):
    """Prints a line for each method; returns the results, and each time over its budget."""
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    if not 1 / NOISE < (level := child("joint", "resnet", 2)[0]) < NOISE:
        sys.exit(f"joint training takes {level:.2f} times its own time: this machine is busy")
    print(f"{'':<24}{'ResNet-18 pair':>26}{'MLP pair':>24}")
    head = f"{'method':<24}{'time':>8}{'budget':>10}{'memory':>8}{'time':>16}{'memory':>8}"
    print(head, flush=True)
    joint = {pair: child("joint", pair, 1)[1] for pair in ("resnet", "mlp")}
    found, shares = {}, {}
    for case in cases:
        (slow, large), (quick, small) = (child(case, pair, rounds) for pair in ("resnet", "mlp"))
        large, small = large / joint["resnet"], small / joint["mlp"]
        budget = METHODS[parse(case).name].info.budget
        shares[case] = slow / budget
        over = case != "joint" and slow > budget * NOISE
        line = f"{case:<24}{slow:>8.2f}{budget:>9.2f}{'!' if over else ' '}{large:>8.2f}"
        print(f"{line}{quick:>16.2f}{small:>8.2f}", flush=True)
        whole = child(case, "whole", 3 * rounds)[0] if over else None
        if whole is not None:
            shares[case] = whole / budget
            mark = "!" if whole > budget * NOISE else " "
            print(f"{'  at all pixels':<24}{whole:>8.2f}{budget:>9.2f}{mark}")
        found[case] = {
            "date": date.today().isoformat(),
            "time": round(slow, 3),
            "memory": round(large, 3),
            "mlp_time": round(quick, 3),
            "mlp_memory": round(small, 3),
            "time_at_224": whole and round(whole, 3),
        }
    return found, shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="all", help="as for `evenly compare`")
    parser.add_argument("--rounds", type=int, default=1, help="passes over an epoch's batches")
    parser.add_argument("--write", action="store_true", help=f"write {NOTED.name}")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, pair, rounds = arguments.one
        size = memory(case, pair)  # first, so that the peak excludes what follows
        print(time_ratio(case, pair, int(rounds)), size)
        return
    cases = [c for c in expanded(split(arguments.methods), ["first"]) if not alone(c)]
    found, shares = table(cases, arguments.rounds)
    if arguments.write:
        known = json.loads(NOTED.read_text(encoding="utf-8"))["methods"] if NOTED.is_file() else {}
        note = {
            "threads": torch.get_num_threads(),
            "hardware": hardware(),
            "torch": torch.__version__,
            "methods": {**known, **found},
        }
        NOTED.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    shares.pop("joint", None)
    most = max(shares, key=shares.__getitem__)
    what = f"a step of the most expensive method for its budget ({most}), of {len(shares)}"
    report([Promise(what, shares[most], NOISE, at_least=False)])


def alone(case):
    """Whether a method trains one modality alone: less work, so there is nothing to compare."""
    return METHODS[parse(case).name].info.alone


if __name__ == "__main__":
    main()
