"""Odd but valid loops: every method trains in them, to the end of a resumed run.

A row is a choice for each column of `LOOPS` and a method; any two choices that can meet do so in
some row. What is asked of a row: training ends with finite weights of the same dtype, some of which
have moved, and what is saved in its midst, loaded into objects made anew and taken up, ends as the
training itself, bit for bit.
"""

import io
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
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
from support import CASES, DENSE, info, make

ROWS, EPOCHS, BATCH = 11, 3, 4  # three batches, the last of three or of two samples
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
    # BatchNorm over all numbers of a batch, which are enough in a pass of one sample, too.
    normed = nn.Unflatten(1, (1, 5)), nn.BatchNorm1d(1), nn.Flatten()
    return nn.Sequential(first, *normed, nn.Dropout(0.1), nn.Linear(5, 6))


# A kind for each encoder.
PARAMETERS = {
    "partly frozen, tied": (partly_frozen, Tied),
    "weight_norm": (weight_norm, weight_norm),
    "complex, quantised": (Complex, Quantised),
    "spectral_norm, sparse": (spectral, Sparse),
}


def model_of(case, parameters):
    torch.manual_seed(0)
    first, second = PARAMETERS[parameters]
    if second is Sparse and DENSE & set(case.split("+")):
        second = weight_norm
    encoders = {name: kind() for name, kind in zip(NAMES, (first, second), strict=True)}
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


LOADERS = {
    "resampler": lambda rows: DataLoader(rows, BATCH, sampler=evenly.Resampler(rows, seed=3)),
    "distributed": lambda rows: DataLoader(
        rows, BATCH, sampler=DistributedSampler(rows, 1, 0, seed=3)
    ),
    "batches of one's own": lambda rows: DataLoader(rows, batch_sampler=Twice(len(rows))),
    "a loader of one's own, part": lambda rows: Mine(
        rows, BATCH, sampler=Seeded(range(1, len(rows)))
    ),
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
    "double": (nullcontext, None, torch.float64),
    "fp16 with a scaler": (lambda: torch.autocast("cpu", torch.float16), 2.0**10, torch.float32),
    "bf16 weights": (nullcontext, None, torch.bfloat16),
    "single": (nullcontext, None, torch.float32),
    "bf16 autocast": (lambda: torch.autocast("cpu", torch.bfloat16), None, torch.float32),
}

OPTIMISERS = {
    "two groups, scheduled": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.01}, {"params": p[1:]}],
        0.05,
        momentum=0.8,
        weight_decay=1e-3,
        nesterov=True,
    ),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003),
    "sgd, plain": lambda p: torch.optim.SGD(p, 0.05),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}

# Where a run is stopped and taken up: epoch and batch, and whether `before_epoch` comes again.
STOPS = {
    "at an epoch's end": (1, 0, True),
    "within an epoch": (1, 2, False),
    "within an epoch, begun again": (1, 2, True),
    "within the first": (0, 2, False),
}

# Long columns come first, and in each the choices that can meet only some of another (see
# `possible`) come last, so that few rows do.
LOOPS = {
    "precision": PRECISION,
    "parameters": PARAMETERS,
    "optimiser": OPTIMISERS,
    "loader": LOADERS,
    "data": DATA,
    "stop": STOPS,
    "passes": {"one": 1, "three": 3},
}


SPARSE = "spectral_norm, sparse"
COLUMNS = {"case": list(CASES)} | {name: list(choices) for name, choices in LOOPS.items()}


def possible(row):
    """Whether torch itself lets choices, by column, meet."""
    parameters, precision = row.get("parameters"), row.get("precision")
    if parameters == SPARSE and row.get("optimiser") not in (None, "sgd, plain", "adagrad"):
        return False
    own = {"complex, quantised", SPARSE}
    return parameters not in own or precision in (None, "single", "bf16 autocast")


def possible_pairs():
    """Any two choices of two columns that can meet."""
    for one, other in combinations(COLUMNS, 2):
        for row in ({one: x, other: y} for x, y in product(COLUMNS[one], COLUMNS[other])):
            if possible(row):
                yield frozenset(row.items())


def covering():
    """Rows in which all these meet.

    First as many of each case as its pairs need, then what the other pairs need.
    """
    left = set(possible_pairs())
    rows = []

    def take(start):
        row = filled(start, left)
        rows.append(row)
        left.difference_update(map(frozenset, combinations(row.items(), 2)))

    for case in CASES:
        while any(("case", case) in pair for pair in left):
            take({"case": case})
    while left:
        take(dict(min(left, key=sorted)))
    return rows


def filled(row, left):
    """A row that takes from each column what its case still has to meet, then what meets most."""
    row = dict(row)
    for name in COLUMNS:
        if name in row:
            continue

        def gain(choice, name=name):
            meets = {key: frozenset({(name, choice), (key, x)}) in left for key, x in row.items()}
            # Adagrad is one of the two that sparse gradients can meet, and so is left to them.
            wasted = choice == "adagrad" and row["parameters"] != SPARSE
            return meets.get("case", False), not wasted, sum(meets.values())

        row[name] = max((x for x in COLUMNS[name] if possible(row | {name: x})), key=gain)
    return {name: row[name] for name in COLUMNS}


ALL = covering()
FIRST = [next(row for row in ALL if row["case"] == case) for case in CASES]


def test_any_two_choices_that_can_meet_do_so():
    met = {pair for row in ALL for pair in map(frozenset, combinations(row.items(), 2))}
    assert met == set(possible_pairs())


@cache
def orders(case):
    """Whether a method has an order of the samples of its own, and so comes with its sampler."""
    method = make(case, model_of(case, "weight_norm"))
    return any(hasattr(one, "sampler") for one in parts(method))


class Loop:
    """A training in a row of the table."""

    def __init__(self, row):
        self.case = row["case"]
        found = {name: choices[row[name]] for name, choices in LOOPS.items()}
        self.autocast, scale, dtype = found["precision"]
        self.passes = found["passes"]
        self.dtype = dtype
        self.model = model_of(self.case, row["parameters"])
        if dtype != torch.float32:
            self.model.to(dtype)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = found["optimiser"](trained)
        self.schedule = None
        if row["optimiser"] == "two groups, scheduled":
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.95**n)
        self.scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
        rows, self.number = found["data"]
        self.train_rows, val = rows(), Base(6, 2)
        make_loader = LOADERS["resampler"] if orders(self.case) else found["loader"]
        self.loader = make_loader(self.train_rows)
        self.method = make(self.case, self.model, self.optimizer, self._resampler())
        if self.method.repeats > 1:
            sampler = getattr(self.loader, "sampler", range(ROWS))
            batches = evenly.Repeated(sampler, BATCH, repeats=self.method.repeats)
            self.loader = DataLoader(self.train_rows, batch_sampler=batches)
        self.probe = evenly.Probe(self.model, self.forward, self.loader, DataLoader(val, BATCH))

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


@pytest.mark.filterwarnings("ignore:.*acts by the size of gradients")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
# Of an epoch whose last batch was the last before the save, the schedule's step is left.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id="-".join(row.values()), marks=[pytest.mark.slow] * (row not in FIRST))
        for row in ALL
    ],
)
def test_a_method_trains_in_an_odd_loop_and_goes_on_after_a_stop(row):
    epoch, batch, begin = STOPS[row["stop"]]
    whole = Loop(row)
    start = whole.weights()
    for n in range(EPOCHS):
        whole.epoch(n, save=batch if n == epoch else None)
    found = whole.weights()
    for name, value in found.items():
        assert value.dtype == start[name].dtype
        assert value.isfinite().all()
    trained = dict(whole.model.named_parameters())
    assert any(not torch.equal(found[name], start[name]) for name in trained)

    again = Loop(row)
    again.load(whole.file)
    again.epoch(epoch, begin=begin or not batch, skip=batch)
    for n in range(epoch + 1, EPOCHS):
        again.epoch(n)
    for name, value in again.weights().items():
        assert torch.equal(value, found[name]), name
