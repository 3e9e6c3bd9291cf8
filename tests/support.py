"""A small multimodal problem and a plain loop, for the tests of everything that trains."""

import copy
import inspect
import io
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import evenly
from evenly import METHODS, chance
from evenly.nn import LateFusion
from evenly.spec import Spec

CLASSES = 3
NAMES = ("a", "aa", "b", "sound", "text", "x")  # 'a' is part of 'aa': names are no substrings

# Settings under which a method acts within the few epochs of a test.
SETTINGS = {
    "unimodal": {},
    "joint": {},
    "relearn": {"every": 1, "times": 2, "restarts": 2},
    "remedy": {"every": 1, "times": 2, "alone_epochs": 2},
    "ogm_ge": {"alpha": 0.5, "end": 2},
    "ogm": {"alpha": 0.5, "end": 2},
    "multi_loss": {},
    "di_mml": {"start": 1, "temperature": 1.0},
    "mcr": {"samples": 4},
    "g_blending": {"trial_epochs": 1, "super_epoch": 2},
    "umt": {"teacher_epochs": 2},
    "pmr": {"end": 2, "fraction": 0.5},  # of few samples, a distance to itself is rounding
    "agm": {},
    "g2d": {"teacher_epochs": 2, "prioritise": 2},
    "cggm": {"rate": 0.05},
    "mmcosine": {},
    "cml": {},
    "mbsd": {},
    "amco": {},
    "dgl": {},
    "arl": {"start": 0},
    "mlb": {},
    "ensemble": {},
    "finetune": {"pretrain": 2},
    "modality_dropout": {},
    "masked_transformer": {},
    "qmf": {},
    "greedy": {},
    "remix": {"warmup": 1},
    "inforeg": {},
    "smv": {"warmup": 1},
    "mmpareto": {},
    "mla": {},
    "reconboost": {"alternation": 1, "rectification": 1},
    "lfm": {"rate": 0.1, "epochs": 4},
    "aug": {"every": 1},
    "bss": {"grow": 3},
    "opm": {"start": 1},
    "miles": {"threshold": 0.01},
    "rolling_q": {"beta": 0.0, "times": 2},
    "midas": {"warmup": 1},
    "mnl": {},
    "tcmax": {},
    "pggb": {"every": 2},
    "pdmp": {"ranking_epochs": 2},
    "balm": {},
    "awc": {"strong": 20.0, "weak": 10.0, "window": 3},  # the rate of a test is high
    "mslr": {"rates": {"a": 0.5}, "window": 2},
}
# Settings under which nothing depends on the last bits of a gradient.
EXACT = {"ogm_ge": {"noise": False}}  # the noise is scaled by the gradients' spread
assert SETTINGS.keys() == METHODS.keys(), "a new method needs a line here"

# Every method of every paper: 'name' or 'name(setting=value)'.
CASES = {
    Spec(name, dict(variant)).text: (name, dict(variant))
    for name, kind in METHODS.items()
    for variant in kind.info.variants
}
CASES["tcmax(pairs=16)"] = ("tcmax", {"pairs": 16})  # for heads whose logits are no sum
# Methods that go together.
CASES |= {
    f"{one}+{other}": None
    for one, other in (
        ("relearn", "ogm_ge"),
        ("relearn", "mmpareto"),
        ("pggb", "ogm_ge"),
        ("mslr", "agm"),
    )
}
CASES["lfm(schedule=learnt)"] = ("lfm", {"schedule": "learnt"})  # as its paper says, and no more
# Methods that write to every number of a gradient, and so refuse sparse ones.
DENSE = {"ogm_ge", "mmpareto", "inforeg", "awc"}


def each(cases):
    """Cases as parameters; one process has all tests of a case, as they share trainings."""
    return [pytest.param(x, marks=pytest.mark.xdist_group(x), id=x) for x in cases]


class Encoder(nn.Sequential):
    """Convolution, BatchNorm and dropout: all that a resume can get wrong."""

    def __init__(self, width):
        super().__init__(
            nn.Conv1d(1, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(4 * 5, width),
        )
        self.out_features = width


class Merging(nn.Linear):
    """Adds its adapter to the weight for evaluation, as loralib's layers do."""

    def __init__(self):
        super().__init__(2, 2)
        self.adapter = nn.Parameter(torch.ones(2, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.adapter.data if mode else self.adapter.data
            self.merged = not mode
        return self


class Net(LateFusion):
    """Late fusion of the small encoders, with the head that a method is made for."""

    def __init__(self, names=NAMES[:2], width=6, head="concat"):
        super().__init__({name: Encoder(width) for name in names}, CLASSES, head)

    def forward(self, inputs, index=None):
        return replace(super().forward(inputs), index=index)


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
        if not 0 <= i < len(self):
            raise IndexError(i)
        return {name: x[i] for name, x in self.inputs.items()}, self.target[i], i


def samples(count):
    """What a look finds of the training samples of `Toy`."""
    every = torch.arange(count)
    return {"number": every, "position": every, "target": Toy(count).target}


def forward(model, batch):
    inputs, target, index = batch
    return model(inputs, index), target


def batch_of(model, count=24):
    """A batch as a model sees it, in the precision of its weights, and the targets."""
    inputs, target, index = next(iter(loaders(tuple(model.encoders), count, count)[0]))
    dtype = next(model.parameters()).dtype
    return forward(model, ({name: x.to(dtype) for name, x in inputs.items()}, target, index))


def lacking(model, here, count=24):
    """The same of samples of which only those marked have a modality, by its name."""
    inputs, target, index = next(iter(loaders(tuple(model.encoders), count, count)[0]))
    dtype = next(model.parameters()).dtype
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    return replace(LateFusion.forward(model, inputs, here), index=index), target


def rows_of(output, target, rows):
    """Some samples of a batch, as a batch of samples that lack nothing."""
    features, unimodal = (
        {name: x[rows] for name, x in found.items()} for found in (output.features, output.unimodal)
    )
    return evenly.Output(output.logits[rows], features, unimodal, output.index[rows]), target[rows]


def net(names=NAMES[:2], seed=0, head="concat"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(names, head=head)


def loaders(names=NAMES[:2], count=36, batch=8, world=1, rank=0, repeats=1):
    """The order of the batches is a function of the epoch, as every resumable run needs."""
    train, val = Toy(count, names, seed=1), Toy(18, names, seed=2)
    sampler = evenly.Resampler(train, world, rank, seed=3)
    batches = evenly.Repeated(sampler, batch, repeats=repeats)
    return DataLoader(train, batch_sampler=batches), DataLoader(val, batch)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def parts(case):
    """The method and the settings of a case of CASES (or a name of METHODS)."""
    return CASES.get(case, (case, {}))


@cache
def info(case):
    """What the method of a case declares, which may depend on its settings."""
    heads = {METHODS[parts(one)[0]].info.head for one in case.split("+")}
    return make(case, net(head=next(iter(heads - {"concat"}), "concat"))).info


def make(case, model, optimizer=None, sampler=None, **settings):
    """The method of a case, given what it takes of the training."""
    if "+" in case:
        several = [make(one, model, optimizer, sampler) for one in case.split("+")]
        return evenly.Composed(*several)
    name, variant = parts(case)
    kind = METHODS[name]
    takes = inspect.signature(kind).parameters
    given = {**SETTINGS[name], **variant, **settings}
    given |= {
        key: part()
        for key, part in (
            ("optimizer", lambda: optimizer or sgd(model)),
            ("head", lambda: model.head),
            ("sampler", lambda: sampler or loaders()[0].batch_sampler.sampler),
        )
        if key in takes and key not in settings
    }
    if kind.info.alone:
        given["modality"] = next(iter(model.encoders))
    made = kind(model.encoders, **given)
    if name == "remedy":  # as if a modality had been found suppressed, of which few samples tell
        made.helped = [next(iter(model.encoders))]
    return made


class Run:
    """A training: everything that a loop holds, and the loop of the README."""

    def __init__(
        self, case, names=NAMES[:2], seed=0, optimizer=sgd, count=36, head=None, **settings
    ):
        self.model = net(names, seed, head or info(case).head)
        self.optimizer = optimizer(self.model)
        self.train_loader, self.val_loader = loaders(names, count)
        sampler = self.train_loader.batch_sampler.sampler
        self.method = make(case, self.model, self.optimizer, sampler, **settings)
        self.train_loader.batch_sampler.repeats = self.method.repeats
        self.seen_by(forward)

    def seen_by(self, forward):
        """Has the loop and the probe run the model by another function."""
        self.forward = forward
        self.probe = evenly.Probe(self.model, forward, self.train_loader, self.val_loader)
        return self

    def train(
        self,
        epochs,
        start=0,
        split=1,
        scale=1,
        clip=None,
        lacking=None,
        skip=0,
        stop=None,
        begin=True,
    ):
        """Trains.

        `split` passes make a step (gradient accumulation), the loss is scaled as by AMP, norms
        are clipped, and every third batch may lack a modality. Of each epoch, the batches from
        `skip` to before `stop` are taken; one that was begun before need not `begin` again.
        """
        for epoch in range(start, epochs):
            self.train_loader.batch_sampler.sampler.set_epoch(epoch)
            if begin:
                self.method.before_epoch(epoch, self.probe)
            for n, batch in enumerate(self.train_loader):
                if skip <= n and (stop is None or n < stop):
                    torch.default_generator.manual_seed(1000 * epoch + n)
                    self.step(batch, split, scale, clip, lacking if n % 3 == 1 else None)
        return self

    def step(self, batch, split=1, scale=1, clip=None, lacking=None):
        inputs, target, index = batch
        inputs = {name: x for name, x in inputs.items() if name != lacking}
        for part in torch.arange(len(target)).tensor_split(split):
            cut = {name: x[part] for name, x in inputs.items()}, target[part], index[part]
            output, labels = self.forward(self.model, cut)
            share = len(part) / len(target)
            self.method.backward(self.method.loss(output, labels) * share * scale)
        if scale != 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        self.method.before_step()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self):
        parts = {"model": self.model, "method": self.method, "optimizer": self.optimizer}
        return {key: part.state_dict() for key, part in parts.items()}

    def saved(self):
        """A file of the state."""
        file = io.BytesIO()
        torch.save(self.state(), file)
        return file

    def reloaded(self, case):
        """The training of a case, through a file, read with weights_only, in objects made anew."""
        return loaded(case, self.saved())

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        return self


def loaded(case, file):
    """The training of a case that a file holds."""
    file.seek(0)
    return Run(case, seed=99).load(torch.load(file, weights_only=True))


class Uninterrupted:
    """What a training leaves after each epoch, which many tests compare with and none changes.

    `state` is its method's after the second, as `state_dict` gave it; `snapshot` is its copy.
    """

    def __init__(self, case, head=None):
        run = Run(case, head=head)
        self.weights, self.files, self.metrics = {}, {}, {}
        for epochs in range(1, 5):
            run.train(epochs, start=epochs - 1)
            self.weights[epochs] = weights(run.model)
            self.files[epochs] = run.saved()
            self.metrics[epochs] = copy.deepcopy(run.method.metrics)
            if epochs == 2:
                self.state = run.method.state_dict()
                self.snapshot = copy.deepcopy(self.state)


# Who calls it has few clusterings (a fixture of tests/contract/conftest.py and of test_space).
uninterrupted = cache(Uninterrupted)


def train(model, method, optimizer, epochs, start=0, names=NAMES[:2], split=1, count=36):
    """The same loop around a model and a method that a test made itself."""
    run = Run.__new__(Run)
    run.model, run.method, run.optimizer = model, method, optimizer
    run.train_loader, run.val_loader = loaders(names, count, repeats=method.repeats)
    return run.seen_by(forward).train(epochs, start, split).model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def linear_of(weights):
    """A linear layer that autograd knows, of weights whose last column is the bias."""
    layer = nn.Linear(weights.shape[1] - 1, weights.shape[0]).double()
    layer.weight.data, layer.bias.data = weights[:, :-1].clone(), weights[:, -1].clone()
    return layer


def kept_by(p, seed, step, output):
    """The modalities that a mask leaves each sample: those drawn at p or above, or the highest."""
    found = []
    for i in range(len(output.logits)):
        drawn = {
            name: float(chance.uniform(output.index[i : i + 1], seed, step, m))
            for m, name in enumerate(output.features)
        }
        kept = [name for name, u in drawn.items() if u >= p]
        found.append(kept or [max(drawn, key=drawn.get)])
    return found


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one, other):
    """Whether two models are equal bit for bit."""
    return equal(weights(one), weights(other))


def equal(ours, theirs):
    """Whether the weights of two models are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
