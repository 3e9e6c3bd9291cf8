"""Tests of optimisers as libraries hand them out."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

import evenly
from evenly.optimizers import (
    check_trains,
    divides_size,
    forget,
    lowered_from,
    rate_of,
    rebuilt,
    unscheduled,
    unwrapped,
)
from optimisers import SAM, wrappings
from support import Run, forward, loaders, make, net, same, sgd


class Lion(Optimizer):
    """A custom one without defaults for its settings, and one that is no setting of a group."""

    def __init__(self, parameters, lr, *, blend):
        super().__init__(parameters, {"lr": lr})
        self._blend = blend

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_((self._blend * m + p.grad).sign(), alpha=group["lr"])
                m.lerp_(p.grad, 0.01)


class Counting(Optimizer):
    """Keeps its state in its groups, as Prodigy and schedule-free ones do, and has two modes."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0, "is_training": False})

    def train(self):
        for group in self.param_groups:
            group["is_training"] = True

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["is_training"]
            group["k"] += 1
            for p in group["params"]:
                p.sub_(group["lr"] / group["k"] * p.grad)


class Handing(torch.optim.Adam):
    """Hands its settings on."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)


class Lars(Optimizer):
    def __init__(self, params, lr=0.1, late=0):
        super().__init__(params, {"lr": lr})
        self.late, self.steps = late, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"] if self.steps > self.late else ():
                ratio = p.norm() / p.grad.norm()
                p.sub_(p.grad * (ratio or 1.0) * group["lr"] * 1e-3)


class NeedsModel(Optimizer):
    def __init__(self, params, model, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.model = model


def weights(count: int = 1) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 3)) for _ in range(count)]


@pytest.mark.parametrize("wrap", ["accelerate", "lightning", "fabric", "twice"])
class TestWrapped:
    def test_the_real_one_is_found(self, wrap):
        real = torch.optim.SGD(weights(), 0.1)
        assert unwrapped(wrappings()[wrap](real)) is real

    def test_another_of_its_kind_is_made(self, wrap):
        real = torch.optim.SGD(weights(), 0.1, momentum=0.9)
        mine = weights()
        new = rebuilt(wrappings()[wrap](real), [{**real.param_groups[0], "params": mine}])
        assert type(new) is torch.optim.SGD
        assert new.param_groups[0]["params"] == mine
        assert new.param_groups[0]["momentum"] == 0.9

    def test_size_is_tried(self, wrap):
        assert divides_size(wrappings()[wrap](torch.optim.Adam(weights())))
        assert not divides_size(wrappings()[wrap](torch.optim.SGD(weights())))


class TestUnwrapped:
    def test_one_that_works_with_another_is_its_own(self):
        sam = SAM(weights(), torch.optim.SGD, lr=0.1)
        assert unwrapped(sam) is sam

    @pytest.mark.parametrize("found", [[torch.optim.SGD(weights(), 0.1)], None, nn.Linear(1, 1)])
    def test_what_is_no_optimiser_is_refused(self, found):
        with pytest.raises(TypeError, match=rf"found {type(found).__name__}\. Pass the one"):
            unwrapped(found)


class TestRebuilt:
    def test_groups_settings_and_names_are_kept_and_state_is_not(self):
        first, second = weights(2)
        names = [("a", first), ("b", second)]
        real = torch.optim.AdamW(
            [{"params": names[:1], "weight_decay": 0.5}, {"params": names[1:], "betas": (0, 0.1)}]
        )
        first.grad = second.grad = torch.ones(3, 3)
        real.step()
        before = copy.deepcopy(real.state_dict())
        new = rebuilt(real, real.param_groups)
        assert not new.state
        assert new.param_groups == real.param_groups
        assert new.param_groups[0] is not real.param_groups[0]
        assert str(real.state_dict()) == str(before)

    def test_settings_that_have_no_default_are_handed_over(self):
        new: Any = rebuilt(Lion(weights(), 0.3, blend=0.7), [{"params": weights(), "lr": 0.1}])
        assert new._blend == 0.7
        assert new.param_groups[0]["lr"] == 0.1

    def test_settings_that_are_handed_on_are_kept(self):
        real = Handing(weights(), lr=0.5, eps=0.1)
        (group,) = rebuilt(real, real.param_groups).param_groups
        assert (group["lr"], group["eps"]) == (0.5, 0.1)

    def test_state_in_groups_starts_anew_and_the_mode_is_training(self):
        real = Counting(weights(), lr=0.3)
        real.train()
        real.param_groups[0]["params"][0].grad = torch.ones(3, 3)
        real.step()
        (group,) = rebuilt(real, real.param_groups).param_groups
        assert (group["k"], group["lr"], group["is_training"]) == (0, 0.3, True)
        assert real.param_groups[0]["k"] == 1

    def test_a_schedule_leaves_nothing_in_it(self):
        real = torch.optim.SGD(weights(), 0.1)
        torch.optim.lr_scheduler.ExponentialLR(real, 0.9)
        assert "initial_lr" not in rebuilt(real, real.param_groups).param_groups[0]

    def test_neither_does_one_cycle(self):
        real = torch.optim.SGD(weights(), 0.1, momentum=0.9)
        torch.optim.lr_scheduler.OneCycleLR(real, 0.5, total_steps=9)
        made = rebuilt(real, map(unscheduled, real.param_groups))
        assert (made.param_groups[0]["lr"], made.param_groups[0]["momentum"]) == (0.5, 0.85)
        assert not {"max_lr", "base_momentum"} & set(made.param_groups[0])

    @pytest.mark.parametrize(
        ("optimizer", "reason"),
        [
            (SAM(weights(), torch.optim.SGD, lr=0.1), "works with another optimiser, SGD"),
            (torch.optim.LBFGS(weights()), "second LBFGS .* without a closure"),
            (NeedsModel(weights(), nn.Linear(1, 1)), "its 'model' is a module"),
        ],
    )
    def test_what_cannot_be_made_anew_is_refused(self, optimizer, reason):
        with pytest.raises(ValueError, match=f"{reason}.* Pass "):
            rebuilt(optimizer, optimizer.param_groups)


DIVIDING = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "fused": lambda p: torch.optim.Adam(p, fused=True),
    "tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": torch.optim.RMSprop,
    "Adafactor": torch.optim.Adafactor,
    "Rprop": torch.optim.Rprop,
    "Muon": torch.optim.Muon,
    "Lion": lambda p: Lion(p, 1e-4, blend=0.9),
    "LARS": Lars,
    "LARS that waits": lambda p: Lars(p, late=1),
    "SAM": lambda p: SAM(p, torch.optim.Adam, lr=0.1),
    "one group": lambda p: Lars([{"params": p, "lr": 0.0}]),
}
KEEPING = {
    "SGD": torch.optim.SGD,
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": lambda p: torch.optim.SGD(p, 0.1, maximize=True),
    "ASGD": torch.optim.ASGD,
    "SAM": lambda p: SAM(p, torch.optim.SGD, lr=0.1),
    "modes": Counting,
    "closure": torch.optim.LBFGS,
    "module": lambda p: NeedsModel(p, nn.Linear(1, 1)),
}


class TestDividesSize:
    @pytest.mark.parametrize("name", DIVIDING)
    def test_of_those_that_do(self, name):
        assert divides_size(DIVIDING[name](weights()))

    @pytest.mark.parametrize("name", KEEPING)
    def test_of_those_that_do_not(self, name):
        assert not divides_size(KEEPING[name](weights()))

    def test_a_rate_of_0_at_the_start_of_a_schedule_does_not_matter(self):
        optimizer = torch.optim.SGD(weights(), 0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
        assert not divides_size(optimizer)

    def test_leaves_parameters_state_and_random_streams_as_they_were(self):
        mine = weights()
        before = mine[0].detach().clone()
        optimizer = torch.optim.Adam(mine)
        stream = torch.get_rng_state()
        divides_size(optimizer)
        assert torch.equal(mine[0], before)
        assert mine[0].grad is None
        assert not optimizer.state
        assert torch.equal(torch.get_rng_state(), stream)


def test_forget_reaches_the_optimiser_within():
    mine, other = weights(2)
    sam = SAM([mine, other], torch.optim.SGD, lr=0.1, momentum=0.9)
    mine.grad = other.grad = torch.ones(3, 3)
    sam.step()
    forget(sam, [mine])
    assert set(sam.base_optimizer.state) == {other}


OWN = {
    "finetune": {"pretrain": 2},
    "g_blending": {"trial_epochs": 2},
    "umt": {"teacher_epochs": 2},
    "g2d": {"teacher_epochs": 2},
}


def begun(case, wrap=lambda optimizer: optimizer):
    """A model and its method before the first epoch, with an optimiser as it is handed out."""
    model = net(head=evenly.METHODS[case].info.head)
    method = make(case, model, wrap(sgd(model)), **OWN[case])
    method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
    return model, method


@pytest.mark.parametrize("wrap", ["accelerate", "lightning", "fabric"])
@pytest.mark.parametrize("case", OWN)
def test_methods_with_trainings_of_their_own(case, wrap):
    (plain, ours), (wrapped, theirs) = begun(case), begun(case, wrappings()[wrap])
    assert same(plain, wrapped)
    assert str(ours.state_dict()) == str(theirs.state_dict())


@pytest.mark.parametrize("case", OWN)
def test_methods_refuse_before_any_pass_of_the_model(case):
    model = net(head=evenly.METHODS[case].info.head)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"cannot make a second SAM .* another optimiser, SGD"):
        make(case, model, sam, **OWN[case]).before_epoch(
            0, evenly.Probe(model, forward, *loaders())
        )
    assert not passes


def test_relearn_clears_the_moments_of_the_optimiser_within():
    model = net()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    method = evenly.Relearn(model.encoders, every=1, times=1, optimizer=sam, moments="cleared")
    run = Run("joint").seen_by(forward)
    run.model, run.method, run.optimizer = model, method, sam
    run.probe = evenly.Probe(model, forward, run.train_loader, run.val_loader)
    run.train(1)
    assert set(model.parameters()) == set(sam.base_optimizer.state)
    method.before_epoch(2, run.probe)
    assert set(model.head.parameters()) == set(sam.base_optimizer.state)


class TestRates:
    """The rate of training, whatever a schedule has made of it since."""

    @staticmethod
    def scheduled(make, steps=8, *, settings=None):
        optimizer = torch.optim.SGD(settings or weights(), 0.1, momentum=0.9)
        schedule = make(optimizer)
        for _ in range(steps):
            optimizer.step()
            if schedule is not None:
                schedule.step(1.0) if "Plateau" in type(schedule).__name__ else schedule.step()
        return optimizer

    @pytest.mark.parametrize(
        "make",
        [
            lambda o: None,
            lambda o: schedules.LinearLR(o, 1e-3, total_iters=100),
            lambda o: schedules.CosineAnnealingLR(o, 9),
            lambda o: schedules.OneCycleLR(o, 0.1, total_steps=9),
        ],
    )
    def test_it_is_known(self, make):
        optimizer = self.scheduled(make)
        assert rate_of(optimizer.param_groups[0]) == pytest.approx(0.1)
        assert lowered_from(optimizer) is None

    def test_a_cycle_is_known_at_its_height_alone(self):
        """Which it reaches in 4 steps; after 6 it is half of the way down."""
        optimizer = self.scheduled(lambda o: schedules.CyclicLR(o, 0.01, 0.1, 4), 4)
        assert rate_of(optimizer.param_groups[0]) == pytest.approx(0.1)
        optimizer = self.scheduled(lambda o: schedules.CyclicLR(o, 0.01, 0.1, 4), 6)
        assert rate_of(optimizer.param_groups[0]) == pytest.approx(0.055)
        assert lowered_from(optimizer) == 0.1

    def test_a_plateau_has_lowered_it(self):
        optimizer = self.scheduled(lambda o: schedules.ReduceLROnPlateau(o, patience=0))
        assert rate_of(optimizer.param_groups[0]) < 1e-6
        assert lowered_from(optimizer) == 0.1

    def test_a_group_with_a_rate_of_its_own(self):
        """It may be low on purpose, as a backbone's, and a default may be nobody's choice."""
        one, other = weights(), weights()
        groups = [{"params": one, "lr": 1e-5}, {"params": other}]
        assert lowered_from(torch.optim.SGD(groups, 0.1)) is None
        groups = [{"params": one, "lr": 1e-4}, {"params": other, "lr": 2e-4}]
        assert lowered_from(torch.optim.AdamW(groups)) is None
        for group in (same := torch.optim.AdamW([{"params": one}, {"params": other}])).param_groups:
            group["lr"] = 1e-4
        assert lowered_from(same) == 1e-3


class TestCheckTrains:
    def test_a_part_that_it_leaves_out(self):
        """As one of several optimisers does."""
        layer = nn.Linear(2, 2)
        optimizer = torch.optim.SGD([layer.weight], 0.1)
        with pytest.raises(ValueError, match=r"Mine: the optimiser leaves out 1 of the 2 .* 'a'"):
            check_trains(optimizer, {"a": layer}, "Mine")
        layer.bias.requires_grad_(False)
        check_trains(optimizer, {"a": layer}, "Mine")

    @pytest.mark.parametrize("name", ["finetune", "g2d", "g_blending", "pdmp", "remedy", "umt"])
    def test_trials_of_encoders_that_it_does_not_train(self, name):
        run = Run(name)
        own = torch.optim.SGD(run.model.encoders["a"].parameters(), 0.1)
        method = make(name, run.model, own)
        with pytest.raises(ValueError, match=r"leaves out 6 of the 6 .* encoder 'aa'"):
            method.before_epoch(0, run.probe)
