import math

import pytest
import torch
from torch import nn

from evenly.lab.run.schedule import Schedule
from evenly.lab.run.settings import Training


def made(**training):
    """A schedule on two groups, of the rates 0.5 and 0.05."""
    training = Training(lr=0.5, **training)
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": factor * 0.5} for factor in (1, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    return Schedule.of(optimizer, training), optimizer


def rates(schedule, optimizer, epochs, steps=4, losses=None):
    """The rate of the first group in each step, by epoch."""
    found = []
    for epoch in range(epochs):
        found.append([])
        for number in range(steps):
            schedule.step(epoch, number, steps)
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(0.1 * first)
            found[-1].append(first)
        schedule.end(epoch, 1.0 if losses is None else losses[epoch])
    return found


def test_a_rate_that_stays_has_none():
    assert made()[0] is None


def test_step_is_torchs():
    found = rates(*made(lr_step=2), epochs=7)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for epoch in found:
        assert set(epoch) == {optimizer.param_groups[0]["lr"]}
        optimizer.step()
        theirs.step()


def test_warm_up_rises_with_each_step_and_the_schedule_follows():
    found = rates(*made(lr_step=2, warmup=2), epochs=5, steps=2)
    assert found == [[0.125, 0.25], [0.375, 0.5], [0.5, 0.5], [0.5, 0.5], [0.05, 0.05]]


def test_cosine_falls_with_each_step_to_nearly_nothing():
    found = rates(*made(schedule="cosine", epochs=5, warmup=1), epochs=5)
    assert found[0] == [0.125, 0.25, 0.375, 0.5]
    after = [rate for epoch in found[1:] for rate in epoch]
    assert after == [0.25 * (1 + math.cos(math.pi * k / 16)) for k in range(16)]


def test_a_plateau_is_so_many_epochs_without_a_lower_loss():
    losses = [9.0, 1.0, 2.0, 0.5, 0.6, 0.5, 0.4]
    found = rates(*made(schedule="plateau", lr_step=2, warmup=1), epochs=7, losses=losses)
    assert [epoch[-1] for epoch in found] == pytest.approx([0.5] * 6 + [0.05])


def test_plateaus_are_remembered():
    schedule, optimizer = made(schedule="plateau", lr_step=2)
    rates(schedule, optimizer, 2, losses=[1.0, 1.0])
    again, other = made(schedule="plateau", lr_step=2)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    again.end(2, 1.0)
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "lr_step": 3}, "--lr-step applies to --schedule step and plateau"),
        ({"schedule": "plateau"}, "--schedule plateau needs --lr-step"),
        ({"warmup": 30}, "--warmup must be at least 0 and below --epochs, 30; found 30"),
        ({"warmup": -1}, "--warmup must be at least 0 and below"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)
