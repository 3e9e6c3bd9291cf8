"""Steps that a gradient scaler skips (AMP in float16): to a method, they have not been.

The scaler looks for gradients that are not finite when it unscales them, before `before_step`. So
what a method writes there must be finite by itself, and what it remembers must stay as it was.
"""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

import evenly
from evenly.methods.composed import parts
from evenly.modulation import StepSum
from many_ranks import on_ranks
from support import CASES, Run, forward, info, loaders, make, net, sgd, weights

EPOCHS, BATCHES = 3, 3
SCALE = 256.0
# What counts the loop's batches, skipped ones too: what is drawn for a step, whose turn it is.
CLOCKS = ("steps", "step", "batches")

# By epoch and batch, what overflows: the scaled loss, an input (of one pass, of one rank), or the
# gradient of the head alone.
PLANS = {
    "a whole epoch, then single ones": {
        **{(0, n): "input" for n in range(BATCHES)},
        (1, 1): "head",
        (1, 2): "scale",
        (2, 1): "input",
    },
    "one of two passes": {(0, 0): "pass", (1, 1): "pass", (2, 0): "head"},
}
ON_ONE_RANK = {(0, 0): "rank", (1, 1): "rank"}


class Scaled(Run):
    """A training in float16 under a gradient scaler, in which chosen batches overflow.

    The scale is set back after each, so that the others are the same whether or not these were.
    """

    def __init__(self, case, plan=None, are_there=True, world=1, rank=0):
        self.model = net(head=info(case).head)
        for encoder in self.model.encoders.values():  # BatchNorm itself would keep a NaN
            encoder[1] = encoder[3] = nn.Identity()
        self.trained = self.model
        if world > 1:
            self.trained = DistributedDataParallel(
                self.model, find_unused_parameters=info(case).partial
            )
        self.optimizer = sgd(self.model)
        self.train_loader, self.val_loader = loaders(
            count=8 * BATCHES, batch=8 // world, world=world, rank=rank
        )
        self.sampler = self.train_loader.batch_sampler.sampler
        self.method = make(case, self.model, self.optimizer, self.sampler)
        self.train_loader.batch_sampler.repeats = self.method.repeats
        self.plan, self.are_there, self.rank = plan or {}, are_there, rank
        self.split = 2 if "pass" in self.plan.values() else 1
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        self.scaler.scale(torch.zeros(()))  # before which it has no scale that could be set
        self.probe = evenly.Probe(self.trained, self.half, self.train_loader, self.val_loader)

    def half(self, model, batch):
        with torch.autocast("cpu", torch.float16):
            return forward(model, batch)

    def train(self):
        for epoch in range(EPOCHS):
            self.sampler.set_epoch(epoch)
            self.method.before_epoch(epoch, self.probe)
            for n, batch in enumerate(self.train_loader):
                how = self.plan.get((epoch, n // self.method.repeats))
                if how is None or self.are_there:
                    self.step(batch, how)
                else:
                    self.pass_over()
        return self

    def pass_over(self):
        for clock, method in product(CLOCKS, parts(self.method)):
            if isinstance(getattr(method, clock, None), int):
                setattr(method, clock, getattr(method, clock) + 1)

    def step(self, batch, how=None):
        self.scaler.update(2.0**40 if how == "scale" else SCALE)
        self.fill(batch, how)
        self.scaler.unscale_(self.optimizer)
        self.method.before_step()
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        assert (self.scaler.get_scale() < before) == (how is not None)
        self.optimizer.zero_grad()
        if how is not None:
            assert_finite(self)

    def fill(self, batch, how=None):
        """Fills the gradients, of which some are not finite."""
        inputs, target, index = batch
        for number, part in enumerate(torch.arange(len(target)).tensor_split(self.split)):
            cut = {name: x[part] for name, x in inputs.items()}
            if (how, number) in (("input", 0), ("pass", 0)) or (how, self.rank) == ("rank", 1):
                cut = {name: x * 1e6 for name, x in cut.items()}  # float16 ends at 65 504
            output, labels = self.half(self.trained, (cut, target[part], index[part]))
            loss = self.method.loss(output, labels) * len(part) / len(target)
            self.method.backward(self.scaler.scale(loss))
        if how == "head":
            next(p.grad for p in self.model.head.parameters() if p.grad is not None).fill_(math.inf)


def assert_finite(run):
    for method in parts(run.method):
        method.metrics = {}  # which tell of a step that is skipped, too
    for leaf in tree_leaves(run.state()):
        if isinstance(leaf, float | torch.Tensor):
            assert torch.as_tensor(leaf).isfinite().all()


def both(case, plan, **where):
    """The weights after a training with steps that overflow, and after one without these."""
    with_them, without = (Scaled(case, plan, there, **where).train() for there in (True, False))
    assert_finite(with_them)
    return weights(with_them.model), weights(without.model)


def assert_close(found, expected):
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES)
def test_a_skipped_step_has_not_been(case, plan):
    assert_close(*both(case, PLANS[plan]))


def sums(case):
    return [x for x in vars(Run(case).method).values() if isinstance(x, StepSum)]


@pytest.mark.parametrize("case", [case for case in CASES if sums(case)])
def test_findings_that_are_not_finite_write_nothing_that_is_not(case, monkeypatch):
    """As unimodal logits may overflow where the fused ones, and so all gradients, do not."""
    run = Scaled(case)
    found = StepSum.take
    monkeypatch.setattr(StepSum, "take", lambda *args, **how: found(*args, **how) * math.nan)
    for epoch in range(EPOCHS):
        run.method.before_epoch(epoch, run.probe)
        for batch in run.train_loader:
            run.step(batch)
    assert_finite(run)


def on_one_rank(rank, world, cases):
    return {case: both(case, ON_ONE_RANK, world=world, rank=rank) for case in cases}


@pytest.mark.slow
@pytest.mark.distributed
def test_a_step_that_overflows_on_one_rank_is_none_on_each(tmp_path):
    """Of the methods that remember something of a step."""
    cases = [case for case in CASES if sums(case) or case in ("qmf", "pggb")]
    one, other = on_ranks(on_one_rank, tmp_path, cases)
    for case in cases:
        found, expected = one[case]
        assert_close(found, expected)
        assert all(torch.equal(value, other[case][0][key]) for key, value in found.items())
