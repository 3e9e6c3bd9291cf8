"""Remedy: by its verdict a modality is pulled back, given a loss of its own, or left alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenly
from evenly.diagnosis.estimate import Estimate
from evenly.diagnosis.gap import Diagnosis
from evenly.methods import Remedy
from evenly.methods.remedy import _figures

WIDTH = 8


def data(count, seed, scarce):
    """'plain' tells the class as it is; 'twisted' by the sign of a product, which takes longer.

    If 'twisted' is scarce, it is another sample's.
    """
    stream = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (count,), generator=stream)
    sign = 2 * target - 1
    other = 2 * torch.randint(2, (count,), generator=stream) - 1
    plain, twisted = torch.randn(2, count, WIDTH, generator=stream)
    plain[:, 0] += 3 * sign
    twisted[:, 0] += 2 * other
    twisted[:, 1] += 2 * other * sign
    return TensorDataset(plain, twisted.roll(1, 0) if scarce else twisted, target)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh()) for name in ("plain", "twisted")}
        )
        self.head = nn.Linear(32, 2)

    def forward(self, plain, twisted):
        features = {
            "plain": self.encoders["plain"](plain), "twisted": self.encoders["twisted"](twisted)
        }  # fmt: skip
        logits = self.head(torch.cat(list(features.values()), 1))
        return evenly.Output(logits, features, evenly.split_linear(self.head, features))


def forward(model, batch):
    return model(*batch[:2]), batch[2]


class Course:
    def __init__(self, *, scarce=False, **settings):
        torch.manual_seed(0)
        self.model = Net()
        self.initial = copy.deepcopy(self.model.state_dict())
        self.train = DataLoader(data(600, 1, scarce), 50, shuffle=True)
        val = DataLoader(data(500, 2, scarce), 100)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.method = Remedy(
            self.model.encoders, optimizer=self.optimizer, every=2, times=1, **settings
        )
        self.probe = evenly.Probe(self.model, forward, self.train, val)

    def run(self, epochs, first=0):
        for epoch in range(first, epochs):
            self.method.before_epoch(epoch, self.probe)
            for batch in self.train:
                output, target = forward(self.model, batch)
                self.method.backward(self.method.loss(output, target))
                self.method.before_step()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self


def test_what_is_there_has_a_loss_of_its_own_from_the_first_epoch():
    course = Course(alone_epochs=20)
    course.method.before_epoch(0, course.probe)
    assert set(course.method.helped) == {"plain", "twisted"}
    check_loss(course, ["plain", "twisted"])


def test_the_scarce_is_left_alone():
    course = Course(scarce=True, alone_epochs=20)
    course.method.before_epoch(0, course.probe)
    assert course.method.helped == ["plain"]
    check_loss(course, ["plain"])


def test_of_several_labels_what_is_there_is_told_by_balanced_accuracy():
    def with_labels(model, batch):
        output, target = forward(model, batch)
        return output, nn.functional.one_hot(target, 2).float()

    course = Course(scarce=True, alone_epochs=10, criterion=nn.BCEWithLogitsLoss())
    val = DataLoader(data(500, 2, scarce=True), 100)
    probe = evenly.Probe(course.model, with_labels, course.train, val)
    course.method.before_epoch(0, probe)
    assert course.method.helped == ["plain"]
    right, luck = course.method.there["plain"]
    assert right.mean() > 0.95
    assert (luck == 0.5).all()
    course.method.before_epoch(3, probe)
    assert course.method.verdicts[3]["twisted"] == "scarce"


def test_the_suppressed_is_given_a_loss_once_it_is_seen():
    course = Course(alone_epochs=20)
    course.method.before_epoch(0, course.probe)
    course.method.helped.clear()
    course.run(4, first=1)
    assert course.method.verdicts == {3: {"plain": "learnt", "twisted": "suppressed"}}
    assert course.method.history[3]["twisted"]["strength"] == 0
    check_loss(course, ["twisted"])


def check_loss(course, helped):
    assert course.method.helped == helped
    output, target = forward(course.model, next(iter(course.train)))
    criterion = nn.functional.cross_entropy
    expected = criterion(output.logits, target)
    for name in helped:
        expected = expected + criterion(output.unimodal[name], target)
    torch.testing.assert_close(course.method.loss(output, target), expected)


def test_nothing_is_changed_before_the_first_epoch():
    course = Course(alone_epochs=3)
    course.method.before_epoch(0, course.probe)
    assert set(course.method.there) == {"plain", "twisted"}
    for name, value in course.model.state_dict().items():
        assert torch.equal(value, course.initial[name])


def test_the_over_trained_is_pulled_back_by_the_stable_gap(monkeypatch):
    course = Course(alone_epochs=3).run(3)
    found = {name: 0.3 if name == "plain" else 0.0 for name in ("plain", "twisted")}
    error = dict.fromkeys(found, 0.02)
    diagnosis = Diagnosis(found, found, found, error, found, found, "stable")
    monkeypatch.setattr("evenly.methods.remedy.diagnose", lambda *_, **__: diagnosis)
    before = copy.deepcopy(course.model.encoders.state_dict())
    course.method.before_epoch(3, course.probe)
    assert course.method.verdicts[3]["plain"] == "over-trained"
    pull = math.tanh(3 * (0.3 - 0.06**2 / 0.3))
    assert course.method.history[3]["plain"]["strength"] == pytest.approx(pull)
    for name, value in course.model.encoders.state_dict().items():
        start = course.initial[f"encoders.{name}"]
        expected = before[name]
        if name.startswith("plain"):
            expected = (1 - pull) * expected + pull * start
        torch.testing.assert_close(value, expected)


def test_figures_are_those_of_the_checkup():
    right = torch.tensor([True, True, True, False]), torch.full((4,), 0.5).double()
    found = _figures(right, (~right[0], right[1]), Estimate.around(0.1, 0.01, 4))
    assert found.gain.value == 0.25
    assert found.held.value == -0.25
    assert found.missed.value == 0.5
    assert found.flipped is None


def test_when_it_is_due():
    """Encoders are trained alone before the first epoch, unless no verdict changes anything."""
    assert [epoch for epoch in range(9) if Course().method.is_due(epoch)] == [0, 3]
    neutral = Course(strength=0.0, weight=0.0).method
    assert [epoch for epoch in range(9) if neutral.is_due(epoch)] == [3]


def test_settings_out_of_range():
    course = Course()
    for setting in ({"weight": -1.0}, {"alone_epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Remedy(course.model.encoders, optimizer=course.optimizer, **setting)
