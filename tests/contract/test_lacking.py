"""What a method makes of samples that lack a modality: nothing, of that modality."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.data import DataLoader

from evenly import METHODS, chance
from evenly.nn import LateFusion
from evenly.presence import parts
from support import CASES, EXACT, NAMES, Run, Toy, each, info

THREE = NAMES[:3]
TAKERS = [case for case in CASES if info(case).missing]


def lacking(index):
    """Who has what; each sample keeps 'aa' or something else."""
    here = {name: chance.uniform(index, n) > 0.4 for n, name in enumerate(THREE)}
    here["aa"] |= ~torch.stack(list(here.values())).any(0)
    return here


def seen(model, batch):
    inputs, target, index = batch
    doubled = {name: x.double() for name, x in inputs.items()}
    output = LateFusion.forward(model, doubled, lacking(index))
    return replace(output, index=index), target


@cache
def trained(case):
    """Some epochs on such samples, after which each method does what it does."""
    run = Run(case, THREE, **EXACT.get(case, {})).seen_by(seen)
    run.model.double()
    run.train(3)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    run.model.eval()
    return run


def batch():
    return next(iter(DataLoader(Toy(24, THREE, seed=1), 24)))


@pytest.mark.parametrize("case", each(TAKERS))
def test_what_a_sample_lacks_cannot_matter(case):
    """Whatever stands in the place of its features, the loss is the same and sends it nothing."""
    run = trained(case)
    output, target = seen(run.model, batch())
    other = {name: torch.randn_like(x).requires_grad_() for name, x in output.features.items()}
    changed = {
        name: torch.where(output.present[name][:, None], x, other[name])
        for name, x in output.features.items()
    }
    one = run.method.loss(output, target)
    two = run.method.loss(replace(output, features=changed), target)
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    sent = torch.autograd.grad(two, list(other.values()), allow_unused=True)
    assert not any(grad.any() for grad in sent if grad is not None)


@pytest.mark.parametrize("case", each(case for case in TAKERS if not info(case).within_batch))
def test_a_batch_is_the_sum_of_its_parts(case):
    """Of those that have the same modalities, each part trains as a batch without the others."""
    run = trained(case)
    inputs, target, index = batch()
    whole, _ = seen(run.model, (inputs, target, index))
    mixed = slopes(run, whole, target)
    added = {name: torch.zeros_like(p) for name, p in run.model.named_parameters()}
    for rows, names, share in parts(whole, THREE):
        some = {name: inputs[name][rows].double() for name in names}
        part = replace(LateFusion.forward(run.model, some), index=index[rows])
        for name, slope in slopes(run, part, target[rows]).items():
            added[name] += share * slope
    torch.testing.assert_close(mixed, added, rtol=1e-6, atol=1e-9)


def slopes(run, output, target):
    """The gradients of a loss before any hook changes them."""
    names, parameters = zip(*run.model.named_parameters(), strict=True)
    loss = run.method.loss(output, target)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if slope is None else slope
        for name, p, slope in zip(names, parameters, found, strict=True)
    }


def learns_vectors(case, here):
    """Whether the vectors that a head fuses in place of missing features get a gradient."""
    run = Run(case, THREE, count=12)
    run.model.head.learn_missing()
    run.seen_by(lambda model, batch: seen_with(model, batch, here(batch[2])))
    run.train(2)  # the optimiser does not know the vectors, so their gradients stay
    grads = [vector.grad for vector in run.model.head.missing.values()]
    return any(grad is not None and bool(grad.any()) for grad in grads)


def seen_with(model, batch, here):
    inputs, target, index = batch
    return replace(LateFusion.forward(model, inputs, here), index=index), target


@pytest.mark.parametrize("case", each(METHODS))
def test_who_learns_vectors_for_what_is_missing(case):
    assert learns_vectors(case, lacking) == info(case).fused
    leaves_out = case in ("arl", "cml", "masked_transformer")
    assert learns_vectors(case, lambda _: {}) == leaves_out
