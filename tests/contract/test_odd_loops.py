"""Odd but valid loops: every method trains in them, to the end of a resumed run, or says why not.

A row is a choice for each column of `LOOPS` and a method; any two choices that can meet do so in
some row. What is asked of a row: training ends with finite weights that have moved, and what is
saved in its midst, loaded into objects made anew and taken up, ends as the training itself, bit for
bit. A method that cannot work in a row says so in a ValueError before the first step.
"""

import io
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import evenly
from evenly.methods.composed import parts
from evenly.nn import LateFusion
from support import CASES, info, make

ROWS, EPOCHS, BATCH = 14, 3, 4  # the last batch holds two
NAMES = ("a", "b")


# Parameters of any kind: an encoder of five numbers.


class Quantised(nn.Module):
    """A frozen base of integers with a trained part beside it."""

    def __init__(self):
        super().__init__()
        weight = torch.randint(-127, 127, (6, 5), dtype=torch.int8)
        self.base = nn.Parameter(weight, requires_grad=False)
        self.adapter = nn.Linear(5, 6)

    def forward(self, x):
        return x @ self.base.to(x).T / 127 + self.adapter(x)


class Tied(nn.Module):
    """One weight at two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 6)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()).tanh())


class Complex(nn.Module):
    """Weights on the Fourier transform of the input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5, dtype=torch.complex64) / 3)

    def forward(self, x):
        return (torch.fft.fft(x.float()) @ self.weight.T).abs().to(x)


class Sparse(nn.Module):
    """An embedding with sparse gradients, of the numbers' signs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, 6, sparse=True)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        code = ((x > 0) * 2 ** torch.arange(5)).sum(1)
        return self.linear(self.table(code).to(x))


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6))


def weight_norm():
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))


def partly_frozen():
    first = nn.Linear(5, 5).requires_grad_(False)
    return nn.Sequential(first, nn.LayerNorm(5), nn.Dropout(0.1), nn.Linear(5, 6))


PARAMETERS = {
    "plain": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh()),
    "partly frozen": partly_frozen,
    "quantised": Quantised,
    "tied": Tied,
    "complex": Complex,
    "sparse": Sparse,
    "weight_norm": weight_norm,
    "spectral_norm": spectral,
}


def model_of(case, parameters):
    torch.manual_seed(0)
    encoders = {name: PARAMETERS[parameters]() for name in NAMES}
    for encoder in encoders.values():
        encoder.out_features = 6
    return LateFusion(encoders, 3, info(case).head)


# Loaders: the epoch's order is a function of the epoch.


class Base(Dataset):
    """Inputs, label and position in the whole data set, as most code has it."""

    def __init__(self, count, seed):
        stream = torch.Generator().manual_seed(seed)
        self.y = torch.arange(count) % 3
        clear = nn.functional.one_hot(self.y, 5).float()
        self.x = torch.stack([clear, clear], 1)
        self.x += torch.tensor([0.3, 1.0])[:, None] * torch.randn(count, 2, 5, generator=stream)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i], i


class Seeded(SubsetRandomSampler):
    """A sampler of part of the rows, whose order is a function of the epoch."""

    def __init__(self, rows):
        super().__init__(rows, torch.Generator())

    def set_epoch(self, epoch):
        self.generator.manual_seed(epoch)


class Twice(BatchSampler):
    """Batches of one's own: neighbours in pairs, in order."""

    def __init__(self, count):
        super().__init__(range(count), BATCH, False)


class Mine(DataLoader):
    """A loader of one's own that hands on batches as they come."""

    def __iter__(self):
        for x, y, index in super().__iter__():
            yield x.clone(), y, index


def ordinary(sampler):
    return lambda rows: DataLoader(rows, BATCH, sampler=sampler(rows))


LOADERS = {
    "resampler": ordinary(lambda rows: evenly.Resampler(rows, seed=3)),
    "distributed": ordinary(lambda rows: DistributedSampler(rows, 1, 0, seed=3)),
    "part": ordinary(lambda rows: Seeded(range(2, len(rows)))),
    "batches of one's own": lambda rows: DataLoader(rows, batch_sampler=Twice(len(rows))),
    "a loader of one's own": lambda rows: Mine(rows, BATCH, sampler=Seeded(range(len(rows)))),
    "a list": lambda rows: list(DataLoader(rows, BATCH)),
}

# Data sets, and what numbers the samples.
DATA = {
    "positions": (lambda: Base(ROWS, 1), lambda i: i),
    "a fold": (lambda: Subset(Base(40, 1), range(39, 39 - ROWS, -1)), lambda i: i),
    "tensors": (lambda: TensorDataset(*(Base(ROWS, 1)[:])[:2], torch.arange(ROWS)), lambda i: i),
    "names of one's own": (lambda: Base(ROWS, 1), lambda i: 10_007 * (i + 1)),
}

# Precision: what the pass runs under, the factor of its loss, what the model is cast to.
PRECISION = {
    "single": (nullcontext, None, torch.float32),
    "double": (nullcontext, None, torch.float64),
    "bf16 autocast": (lambda: torch.autocast("cpu", torch.bfloat16), None, torch.float32),
    "fp16 with a scaler": (lambda: torch.autocast("cpu", torch.float16), 2.0**10, torch.float32),
    "bf16 weights": (nullcontext, None, torch.bfloat16),
}

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "sgd, plain": lambda p: torch.optim.SGD(p, 0.05),
    "sgd, scheduled": lambda p: torch.optim.SGD(p, 0.05, nesterov=True, momentum=0.8),
    "two groups": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.01}, {"params": p[1:]}], 0.05
    ),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}

# Where a run is stopped and taken up: epoch and batch, and whether `before_epoch` comes again.
STOPS = {
    "at an epoch's end": (1, 0, True),
    "within an epoch": (1, 2, False),
    "within an epoch, begun again": (1, 2, True),
    "within the first": (0, 3, False),
}

LOOPS = {
    "optimiser": OPTIMISERS,
    "loader": LOADERS,
    "data": DATA,
    "precision": PRECISION,
    "parameters": PARAMETERS,
    "stop": STOPS,
    "passes": {"one": 1, "three": 3},
}


COLUMNS = {"case": list(CASES)} | {name: list(choices) for name, choices in LOOPS.items()}


def possible(row):
    """Whether torch itself lets choices, by column, meet."""
    parameters, precision = row.get("parameters"), row.get("precision")
    own = {"complex", "sparse", "spectral_norm", "quantised"}
    if parameters == "sparse" and row.get("optimiser") not in (None, "sgd, plain", "adagrad"):
        return False
    return parameters not in own or precision in (None, "single", "bf16 autocast")


def possible_pairs():
    """Any two choices of two columns that can meet."""
    for one, other in combinations(COLUMNS, 2):
        for row in ({one: x, other: y} for x, y in product(COLUMNS[one], COLUMNS[other])):
            if possible(row):
                yield frozenset(row.items())


def covering():
    """Rows in which all these meet.

    Each begins with a pair that has not met, and takes from each column, the longest first, what
    meets for the first time most of what the row has.
    """
    left = dict.fromkeys(possible_pairs())
    longest_first = sorted(COLUMNS, key=lambda name: -len(COLUMNS[name]))
    rows = []
    while left:
        row = dict(next(iter(left)))
        for name in longest_first:
            if name not in row:
                choices = [choice for choice in COLUMNS[name] if possible(row | {name: choice})]
                new = [sum(frozenset({(name, x), y}) in left for y in row.items()) for x in choices]
                row[name] = choices[new.index(max(new))]
        rows.append(tuple(row[name] for name in COLUMNS))
        for pair in combinations(row.items(), 2):
            left.pop(frozenset(pair), None)
    return rows


ALL = covering()


def test_any_two_choices_that_can_meet_do_so():
    met = {
        pair
        for row in ALL
        for pair in map(frozenset, combinations(zip(COLUMNS, row, strict=True), 2))
    }
    assert met == set(possible_pairs())


class Loop:
    """A training in a row of the table."""

    def __init__(self, row):
        self.case, *choices = row
        found = {
            key: table[name] for (key, table), name in zip(LOOPS.items(), choices, strict=True)
        }
        self.autocast, scale, dtype = found["precision"]
        self.passes = found["passes"]
        self.dtype = dtype
        self.model = model_of(self.case, choices[4])
        if dtype != torch.float32:
            self.model.to(dtype)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = found["optimiser"](trained)
        self.schedule = None
        if choices[0] == "sgd, scheduled":
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.95**n)
        self.scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
        rows, self.number = found["data"]
        self.train_rows, val = rows(), Base(6, 2)
        self.loader = self._loader(found["loader"])
        self.method = make(self.case, self.model, self.optimizer, self._resampler())
        if self.method.repeats > 1:
            sampler = getattr(self.loader, "sampler", range(ROWS))
            batches = evenly.Repeated(sampler, BATCH, repeats=self.method.repeats)
            self.loader = DataLoader(self.train_rows, batch_sampler=batches)
        self.probe = evenly.Probe(self.model, self.forward, self.loader, DataLoader(val, BATCH))

    def _loader(self, made):
        """The loader of the row; a method with an order of its own comes with its sampler."""
        method = make(self.case, self.model, self.optimizer)
        if any(hasattr(one, "sampler") for one in parts(method)):
            made = LOADERS["resampler"]
        return made(self.train_rows)

    def _resampler(self):
        sampler = getattr(self.loader, "sampler", None)
        return sampler if isinstance(sampler, evenly.Resampler) else None

    def forward(self, model, batch):
        x, target, index = batch
        inputs = {name: x[:, n].to(self.dtype) for n, name in enumerate(NAMES)}
        with self.autocast():
            output = model(inputs)
        return replace(output, index=self.number(index)), target

    def epoch(self, epoch, begin=True, skip=0, save=None):
        """Trains from a batch on, and keeps in `file` what it saves after so many."""
        if save == 0:
            self.file = self.saved()
        sampler = getattr(self.loader, "batch_sampler", None)
        sampler = getattr(sampler, "sampler", None)
        for owner in (getattr(self.loader, "sampler", None), sampler):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)
        if begin:
            self.method.before_epoch(epoch, self.probe)
        for n, batch in enumerate(self.loader):
            if n >= skip:
                torch.default_generator.manual_seed(1000 * epoch + n)
                self.step(batch)
            if n + 1 == save:
                self.file = self.saved()
        if self.schedule is not None:
            self.schedule.step()

    def step(self, batch):
        for part in torch.arange(len(batch[1])).tensor_split(min(self.passes, len(batch[1]))):
            output, target = self.forward(self.model, [x[part] for x in batch])
            with self.autocast():
                loss = self.method.loss(output, target) * (len(part) / len(batch[1]))
            self.method.backward(self.scaler.scale(loss) if self.scaler else loss)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        self.method.before_step()
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def owners(self):
        found = {"model": self.model, "method": self.method, "optimizer": self.optimizer}
        found |= {"schedule": self.schedule, "scaler": self.scaler}
        return {name: owner for name, owner in found.items() if owner}

    def saved(self):
        file = io.BytesIO()
        torch.save({name: owner.state_dict() for name, owner in self.owners.items()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, state):
        for name, owner in self.owners.items():
            owner.load_state_dict(state[name])

    def weights(self):
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


# Methods that write to every number of a gradient, and so refuse sparse ones.
DENSE = {"ogm_ge", "mmpareto", "inforeg", "awc"}


@pytest.mark.filterwarnings("ignore:.*acts by the size of gradients")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
# Of an epoch whose last batch was the last before the save, the schedule's step is left.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize("row", ALL, ids=lambda row: "-".join(row))
def test_a_method_trains_in_an_odd_loop_and_goes_on_after_a_stop(row):
    epoch, batch, begin = STOPS[row[6]]
    whole = Loop(row)
    start = whole.weights()
    if row[5] == "sparse" and DENSE & set(row[0].split("+")):
        with pytest.raises(
            ValueError, match=r"every number of a gradient, but .* is sparse\. Build"
        ):
            whole.epoch(0)
        assert all(torch.equal(value, start[name]) for name, value in whole.weights().items())
        return
    for n in range(EPOCHS):
        whole.epoch(n, save=batch if n == epoch else None)
    found = whole.weights()
    assert all(value.isfinite().all() for value in found.values())
    assert any(not torch.equal(value, start[name]) for name, value in found.items())

    again = Loop(row)
    again.load(whole.file)
    again.epoch(epoch, begin=begin or not batch, skip=batch)
    for n in range(epoch + 1, EPOCHS):
        again.epoch(n)
    for name, value in again.weights().items():
        assert torch.equal(value, found[name]), name
