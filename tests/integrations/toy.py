"""A small problem, a raw loop to compare with, and a method that uses all four hooks."""

from functools import cache
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import evenly

EPOCHS = 6
BATCH = 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(5, 6), nn.ReLU()) for name in ("left", "right")}
        )
        self.head = nn.Linear(12, 3)

    def forward(self, left, right, **options):  # of **options the Transformers Trainer makes much
        features = {"left": self.encoders["left"](left), "right": self.encoders["right"](right)}
        logits = self.head(torch.cat(list(features.values()), 1))
        return evenly.Output(logits, features, evenly.split_linear(self.head, features))


def forward(model, batch):
    left, right, target = batch
    return model(left, right), target


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def dataset(n, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % 3
    clear = nn.functional.one_hot(target, 5).float()
    left = clear + 0.3 * torch.randn(n, 5, generator=generator)
    right = clear + torch.randn(n, 5, generator=generator)
    return TensorDataset(left, right, target)


def loaders(n=44):
    """Training batches whose order is a function of the epoch, as every resumable run needs."""
    train = dataset(n, seed=1)
    sampler = DistributedSampler(train, num_replicas=1, rank=0, shuffle=True, seed=3)
    return (
        DataLoader(train, batch_size=BATCH, sampler=sampler),
        DataLoader(dataset(21, seed=2), batch_size=BATCH),
    )


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Everything(evenly.Method):
    """Acts in every hook, with random numbers of its own; `calls` says when."""

    info = evenly.Info(title="Everything", writes="gradients", needs_probe=True)
    state: ClassVar = ("noise", "scale", "epochs")

    def __init__(self, encoders):
        super().__init__(encoders)
        self.noise = torch.Generator().manual_seed(7)
        self.scale = 1.0
        self.epochs = []
        self.calls = []
        self.gradients = []

    def before_epoch(self, epoch, probe=None):
        self.epochs.append(epoch)
        self.calls.append(f"epoch {epoch}")
        self.scale = 1 + 0.1 * float(probe.features("val").features["left"].mean())
        with torch.no_grad():
            for encoder in self.encoders.values():
                encoder[0].weight.mul_(0.9)

    def loss(self, output, target):
        self.calls.append("loss")
        return super().loss(output, target) * self.scale

    def backward(self, loss):
        self.calls.append("backward")
        (2 * loss).backward()

    def before_step(self):
        self.calls.append("step")
        for encoder in self.encoders.values():
            grad = encoder[0].weight.grad
            self.gradients.append(grad.clone())
            grad.add_(0.01 * torch.randn(grad.shape, generator=self.noise))
        self.metrics = {"scale": torch.tensor(self.scale)}


class Halves(evenly.Method):
    """Writes the order of samples: one half of them by what the model makes of the data set."""

    info = evenly.Info(title="Halves", writes="loss", needs_probe=True)
    state: ClassVar = ("pool",)

    def __init__(self, encoders, sampler):
        super().__init__(encoders)
        self.sampler = sampler

    @property
    def pool(self):
        return self.sampler.pool

    @pool.setter
    def pool(self, pool):
        self.sampler.pool = pool

    def before_epoch(self, epoch, probe=None):
        self._check_sampler(probe, self.sampler)
        known = probe.features("train").features["left"].mean(1)
        self.pool = known.argsort()[epoch % 2 :: 2]


METHODS = {
    "everything": Everything,
    "joint": evenly.Method,
    "relearn": lambda encoders: evenly.Relearn(encoders, every=2, times=2, restarts=2),
    "ogm_ge": lambda encoders: evenly.OGMGE(encoders, end=3),
}


@cache
def raw_loop(name, *, n=44, accumulate=1, clip=0.0, short_group=None):
    """What the adapters must equal: the loop of the documentation.

    The last group of batches that are accumulated may be short; its loss is divided by
    `short_group` (Transformers: by its length, Lightning: by `accumulate` like any other).
    """
    model = net()
    method = METHODS[name](model.encoders)
    optimizer = sgd(model)
    train, val = loaders(n)
    probe = evenly.Probe(model, forward, train, val)
    for epoch in range(EPOCHS):
        train.sampler.set_epoch(epoch)
        method.before_epoch(epoch, probe)
        whole = len(train) // accumulate * accumulate
        for step, batch in enumerate(train, start=1):
            divisor = accumulate if step <= whole else short_group or accumulate
            method.backward(method.loss(*forward(model, batch)) / divisor)
            if step % accumulate == 0 or step == len(train):
                method.before_step()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return model, method


def assert_same(actual, expected):
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name
