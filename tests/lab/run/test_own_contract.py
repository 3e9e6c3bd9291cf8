import sys

import pytest
import torch

from evenly import Info, Method
from evenly.data import load
from evenly.lab.run.contract import contract_notes
from evenly.lab.run.settings import Cell, Training

DATA = "synthetic(train=60,val=30,test=30,classes=3)"


class Damped(Method):
    info = Info(title="Damped", writes="gradients", neutral={"damp": 0.0})

    def __init__(self, encoders, *, damp=0.5, criterion=None):
        super().__init__(encoders, criterion=criterion)
        self.damp = damp

    def factor(self):
        return 1 - self.damp

    def before_step(self):
        for encoder in self.encoders.values():
            for parameter in encoder.parameters():
                parameter.grad.mul_(self.factor())


class Biased(Damped):
    info = Info(title="Biased", writes="gradients", neutral={"damp": 0.0})

    def factor(self):
        return 0.9 - self.damp


class Forgetful(Damped):
    info = Info(title="Forgetful", writes="gradients")
    steps = 0

    def factor(self):
        self.steps += 1
        return 1 / self.steps


class Remembers(Forgetful):
    state = ("steps",)


class Noisy(Damped):
    info = Info(title="Noisy", writes="gradients")

    def factor(self):
        return float(torch.rand(()))


class Early(Damped):
    info = Info(title="Early", writes="gradients")

    def before_epoch(self, epoch, probe=None):
        torch.rand(1)


class Odd(Remembers):
    state = ("steps", "odd")
    odd = sys


class Fails(Damped):
    info = Info(title="Fails", writes="gradients")

    def loss(self, output, target):
        return 1 / 0


class Diverges(Damped):
    info = Info(title="Diverges", writes="gradients")

    def factor(self):
        return float("nan")


@pytest.fixture(scope="module")
def data():
    return load(DATA)


def found(data, name, **training):
    cell = Cell(Training(**training), f"test_own_contract.{name}", 0)
    return contract_notes(cell, data)


def test_what_is_kept_is_said(data):
    (said,) = found(data, "Damped(damp=0.3)")
    assert said == (
        "test_own_contract.Damped(damp=0.3): passes the contract checks on made-up vectors: it "
        "leaves the global random stream alone; damp=0.0 is joint training; a resumed run equals "
        "an uninterrupted one."
    )
    assert found(data, "Remembers")


def test_each_of_several_and_none_of_our_own(data):
    cell = Cell(Training(), "relearn+test_own_contract.Damped", 0)
    (said,) = contract_notes(cell, data)
    assert said.startswith("test_own_contract.Damped: passes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Biased", r"Biased breaks the contract .* neutral settings, damp=0\.0, it is not joint"),
        ("Forgetful", r"resumed after an epoch, .* Name in `state` all that it remembers"),
        ("Noisy", r"a step draws from torch's global random stream, .* `evenly\.chance`"),
        ("Early", r"before_epoch draws from torch's global random stream"),
        ("Odd", r"its `state` cannot be written to a checkpoint and read back"),
        ("Diverges", r"weights are no finite numbers"),
    ],
)
def test_what_is_broken_is_refused(data, name, message):
    with pytest.raises(ValueError, match=message):
        found(data, name)


def test_what_fails_on_made_up_vectors_is_told_with_its_place(data):
    (said,) = found(data, "Fails")
    assert (
        "could not be checked, as it fails on made-up vectors (ZeroDivisionError: division by"
        in said
    )
    assert "test_own_contract.py, line " in said


def test_the_global_random_stream_is_left_as_found(data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found(data, "Damped")
    assert torch.rand(1) == expected
