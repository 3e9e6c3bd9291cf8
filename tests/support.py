"""A small multimodal problem and a plain loop, for the tests of everything that trains."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import evenly
from evenly import METHODS

CLASSES = 3
NAMES = ("a", "aa", "b", "sound", "text", "x")  # 'a' is part of 'aa': names are no substrings

# Settings under which a method acts within the few epochs of a test.
SETTINGS = {
    "joint": {},
    "relearn": {"every": 1, "times": 2, "restarts": 2},
    "ogm_ge": {"alpha": 0.5, "end": 2},
}
assert SETTINGS.keys() == METHODS.keys(), "a new method needs a line here"


class Net(nn.Module):
    """Late fusion of convolution, BatchNorm and dropout: all that a resume can get wrong."""

    def __init__(self, names=NAMES[:2], width=6):
        super().__init__()
        self.encoders = nn.ModuleDict({name: self._encoder(width) for name in names})
        self.head = nn.Linear(width * len(names), CLASSES)

    def forward(self, inputs, index=None):
        features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        logits = self.head(torch.cat(list(features.values()), 1))
        unimodal = evenly.split_linear(self.head, features)
        return evenly.Output(logits, features, unimodal, index)

    @staticmethod
    def _encoder(width):
        return nn.Sequential(
            nn.Conv1d(1, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(4 * 5, width),
        )


class Toy(Dataset):
    """Clear first modality, noisier ones after it."""

    def __init__(self, count, names=NAMES[:2], seed=0):
        stream = torch.Generator().manual_seed(seed)
        self.target = torch.arange(count) % CLASSES
        clear = nn.functional.one_hot(self.target, 5).float().unsqueeze(1)
        self.inputs = {
            name: clear + (0.2 + 0.4 * n) * torch.randn(count, 1, 5, generator=stream)
            for n, name in enumerate(names)
        }

    def __len__(self):
        return len(self.target)

    def __getitem__(self, i):
        return {name: x[i] for name, x in self.inputs.items()}, self.target[i], i


def forward(model, batch):
    inputs, target, index = batch
    return model(inputs, index), target


def net(names=NAMES[:2], seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(names)


def loaders(names=NAMES[:2], count=36, batch=8, world=1, rank=0):
    """The order of the batches is a function of the epoch, as every resumable run needs."""
    train, val = Toy(count, names, seed=1), Toy(18, names, seed=2)
    sampler = DistributedSampler(train, world, rank, seed=3)
    return DataLoader(train, batch, sampler=sampler), DataLoader(val, batch)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def make(name, model, **settings):
    return METHODS[name](model.encoders, **{**SETTINGS[name], **settings})


def train(model, method, optimizer, epochs, start=0, names=NAMES[:2], split=1, count=36):
    """The loop of the README; `split` passes make a step (gradient accumulation)."""
    train_loader, val_loader = loaders(names, count)
    probe = evenly.Probe(model, forward, train_loader, val_loader)
    for epoch in range(start, epochs):
        torch.manual_seed(1000 + epoch)
        train_loader.sampler.set_epoch(epoch)
        method.before_epoch(epoch, probe)
        for inputs, target, index in train_loader:
            for part in torch.arange(len(target)).tensor_split(split):
                batch = {name: x[part] for name, x in inputs.items()}, target[part], index[part]
                output, labels = forward(model, batch)
                share = len(part) / len(target)
                method.backward(method.loss(output, labels) * share)
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
    return model


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one, other):
    """Whether two models are equal bit for bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
