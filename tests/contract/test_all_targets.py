"""Every method takes the targets that it declares, and refuses the others in a sentence."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, one_hot
from torch.utils.data import DataLoader, Dataset

import evenly
from evenly import METHODS
from evenly.data.tasks import Numbers
from evenly.lab.run.build import takes_task
from evenly.nn import LateFusion
from evenly.nn.heads import EnsembleHead
from evenly.targets import ANY, SINGLE
from support import NAMES, SETTINGS, Encoder

ROWS = 24
NUMBERS = torch.arange(ROWS) % 3

# By kind: the number of logits, the criterion that belongs to it, and the targets.
TARGETS = {
    "classes": (3, nn.CrossEntropyLoss(), NUMBERS),
    "ignored": (3, nn.CrossEntropyLoss(), torch.where(torch.arange(ROWS) % 5 == 1, -100, NUMBERS)),
    "soft": (3, nn.CrossEntropyLoss(), 0.9 * one_hot(NUMBERS, 3) + 0.1 / 3),
    "labels": (
        3,
        nn.BCEWithLogitsLoss(),
        (torch.arange(ROWS)[:, None] % torch.tensor([2, 3, 4]) > 0).float(),
    ),
    "logit": (1, lambda z, t: binary_cross_entropy_with_logits(z[:, 0], t.float()), NUMBERS % 2),
    "number": (1, lambda z, t: mse_loss(z[:, 0], t), NUMBERS / 3 + torch.arange(ROWS) / 100),
}
assert TARGETS.keys() == set(ANY)
COLUMN = 1, nn.L1Loss(), TARGETS["number"][2][:, None]
"""Numbers as the lab gives them, with its criterion."""
COLUMNS = 2, nn.L1Loss(), torch.stack([COLUMN[2][:, 0], COLUMN[2][:, 0].cos()], 1)
"""Two numbers a sample."""
RARE = torch.tensor([1.0, 2.0, 4.0])
"""Weights of having each label."""
UNBALANCED = {
    "weighted": (3, evenly.BinaryCrossEntropy(RARE), TARGETS["labels"][2]),
    "focal": (3, evenly.SigmoidFocal(2.0, RARE), TARGETS["labels"][2]),
}
"""Several labels with the criteria for unbalanced ones."""
OTHERS = {"column": COLUMN, "columns": COLUMNS, **UNBALANCED}


class Rows(Dataset):
    def __init__(self, target):
        stream = torch.Generator().manual_seed(0)
        self.x = torch.randn(len(NAMES[:2]), ROWS, 1, 5, generator=stream)
        self.target = target

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        n = i % ROWS
        return dict(zip(NAMES, self.x[:, n], strict=False)), self.target[n], i


def forward(model, batch):
    inputs, target, index = batch
    found = model(inputs)
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return evenly.Output(**{**fields, "index": index}), target


def training(name, kind, dtype=None):
    """A method, and two epochs of its training on targets of a kind."""
    width, criterion, target = {**TARGETS, **OTHERS}[kind]
    target = target if dtype is None else target.to(dtype)
    torch.manual_seed(0)
    method_kind = METHODS[name]
    head = method_kind.info.head
    if head == "ensemble" and kind not in SINGLE:
        task = "labels" if kind in ("labels", "logit", *UNBALANCED) else "number"
        head = lambda _, *shape: EnsembleHead(*shape, task)  # noqa: E731
    model = LateFusion({n: Encoder(6) for n in NAMES[:2]}, width, head)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    rows = Rows(target)
    takes = inspect.signature(method_kind).parameters
    sampler = evenly.Resampler(rows, seed=0)
    given = {
        "head": model.head,
        "optimizer": optimizer,
        "sampler": sampler,
        "modality": NAMES[0],
    }
    method = method_kind(
        model.encoders,
        criterion=criterion,
        **{key: value for key, value in given.items() if key in takes},
        **SETTINGS[name],
    )
    loader = DataLoader(rows, batch_sampler=evenly.Repeated(sampler, 8, repeats=method.repeats))
    probe = evenly.Probe(model, forward, loader, DataLoader(Rows(target), 8))

    def train(epochs=2):
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            method.before_epoch(epoch, probe)
            for batch in loader:
                method.backward(method.loss(*forward(model, batch)))
                method.before_step()
                optimizer.step()
                optimizer.zero_grad()
        return model

    return method, train


@pytest.mark.parametrize("kind", [*ANY, "column"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_what_it_declares_and_refuses_the_rest(name, kind):
    method, train = training(name, kind)
    if kind.replace("column", "number") in method.info.targets:
        assert all(p.isfinite().all() for p in train().parameters())
        return
    with pytest.raises(ValueError, match=f"^{type(method).__name__} takes class numbers.*; found"):
        train(epochs=1)


@pytest.mark.parametrize("name", [m for m in METHODS if takes_task(m, Numbers(("a", "b")))])
def test_of_several_numbers_each_counts(name):
    """Whatever logits the method compares with the target."""
    method, train = training(name, "columns")
    seen, criterion = [], method.criterion

    def watched(logits, target):
        assert logits.shape == target.shape
        if logits.requires_grad:
            logits.retain_grad()
            seen.append(logits)
        return criterion(logits, target)

    method.criterion = watched
    assert all(p.isfinite().all() for p in train().parameters())
    grads = [x.grad.abs().sum(0) for x in seen if x.grad is not None]
    assert torch.stack(grads).sum(0).gt(0).tolist() == [True, True]


@pytest.mark.parametrize("kind", UNBALANCED)
@pytest.mark.parametrize("name", [m for m, k in METHODS.items() if "labels" in k.info.targets])
def test_criteria_for_unbalanced_labels_count(name, kind):
    plain, other = (training(name, of)[1]().parameters() for of in ("labels", kind))
    pairs = list(zip(plain, other, strict=True))
    assert all(q.isfinite().all() for _, q in pairs)
    assert not all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_class_numbers_as_for_cross_entropy(name):
    plain, of_bytes = (training(name, "classes", dtype)[1]() for dtype in (None, torch.uint8))
    for one, other in zip(plain.parameters(), of_bytes.parameters(), strict=True):
        assert torch.equal(one, other)


def test_joint_training_takes_any():
    assert evenly.Method.info.targets == ANY


def test_an_ignored_row_counts_for_nothing_in_joint_training():
    """As torch's criterion does it: the mean is over the other rows."""
    logits = torch.tensor([[0.0, math.log(3)], [5.0, -5.0]])
    output = evenly.Output(logits, {"a": logits})
    found = evenly.Method().loss(output, torch.tensor([0, -100]))
    assert float(found) == pytest.approx(math.log(4), rel=1e-6)
