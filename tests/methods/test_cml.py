from itertools import pairwise

import pytest
import torch
from torch import nn

from evenly import METHODS
from evenly.methods.cml import penalties
from evenly.nn import LateFusion
from support import Run, same

CML = METHODS["cml"]
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


def output_of(names, seed=0):
    torch.manual_seed(seed)
    net = LateFusion({name: nn.Linear(3, 4) for name in names}, 3).double()
    inputs = {name: torch.randn(6, 3, dtype=torch.float64) for name in names}
    return net, net(inputs)


def logits(*rows):
    """Logits with these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_penalty_is_a_relu_of_each_sample():
    """Summed before the relu, the fall of the second would hide the rise of the first."""
    full = logits([0.5, 0.3, 0.2], [0.9, 0.05, 0.05])
    left = logits([0.7, 0.2, 0.1], [0.4, 0.3, 0.3])
    found = penalties(full, left, torch.tensor([0, 0]))
    torch.testing.assert_close(found, torch.tensor([0.2, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("full_right", "left_right", "pays"),
    [(True, True, 1), (True, False, 1), (False, False, 1), (False, True, 0)],
)
def test_a_rise_is_free_where_only_the_subset_is_right(full_right, left_right, pays):
    full = logits([0.5, 0.3, 0.2] if full_right else [0.3, 0.5, 0.2])
    left = logits([0.8, 0.1, 0.1] if left_right else [0.1, 0.8, 0.1])
    found = penalties(full, left, torch.tensor([0]))
    assert found.tolist() == pytest.approx([0.3 * pays], abs=1e-12)


@pytest.mark.parametrize("names", [("a", "aa"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_golden_loss(names, steps):
    """The chain by hand: a linear head without a modality gives z - W_m f_m."""
    net, output = output_of(names)
    method = CML(net.encoders, penalty=3.0)
    method.steps = steps
    order = method.order()
    assert sorted(order) == sorted(names)
    weight = net.head.linear.weight
    blocks = dict(zip(names, weight.split(4, dim=1), strict=True))
    chain = [output.logits]
    for name in order[:-1]:
        chain.append(chain[-1] - output.features[name] @ blocks[name].T)
    expected = sum(nn.functional.cross_entropy(z, TARGET) for z in chain) / len(names)
    for larger, smaller in pairwise(chain):
        for i in range(6):
            p, q = larger[i].softmax(0), smaller[i].softmax(0)
            better = q.argmax() == TARGET[i] and p.argmax() != TARGET[i]
            if q.max() > p.max() and not better:
                expected = expected + 3.0 * (q.max() - p.max()) / 6
    loss = method.loss(output, TARGET)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert list(method.metrics) == [f"penalty/{name}" for name in order[:-1]]


def test_the_penalty_does_something():
    """In the golden step, too: without it the loss is less."""
    net, output = output_of(("a", "aa"))
    without, with_it = (CML(net.encoders, penalty=p).loss(output, TARGET) for p in (0.0, 3.0))
    assert with_it.item() > without.item() + 1e-3


def test_the_order_is_drawn_anew_in_each_step():
    """And not once for an epoch or a run; another seed draws others."""
    method, other = (CML({n: nn.Linear(1, 1) for n in "abc"}, seed=seed) for seed in (0, 1))
    orders = []
    for _ in range(60):
        assert method.order() == method.order()
        orders.append((tuple(method.order()), tuple(other.order())))
        method.before_step()
        other.before_step()
    assert len({mine for mine, _ in orders}) == 6
    assert any(mine != theirs for mine, theirs in orders)


def test_one_modality_is_joint_training():
    assert same(Run("cml", ("a",)).train(2).model, Run("joint", ("a",)).train(2).model)


def test_a_batch_that_lacks_modalities():
    net, output = output_of(("a", "b", "c"))
    features = {"a": output.features["a"], "c": output.features["c"]}
    lacking = type(output)(net.head(features)[0], features, fuse=output.fuse)
    method = CML(net.encoders)
    method.loss(lacking, TARGET)
    (removed,) = (key.split("/")[1] for key in method.metrics)
    assert removed == next(name for name in method.order() if name != "b")


def test_modalities_without_an_encoder_stay():
    net, output = output_of(("a", "b", "c"))
    method = CML({name: net.encoders[name] for name in ("a", "b")}, penalty=0.0)
    removed = method.order()[0]
    kept = {name: x for name, x in output.features.items() if name != removed}
    expected = sum(
        nn.functional.cross_entropy(z, TARGET) for z in (output.logits, output.fuse(kept))
    )
    assert torch.equal(method.loss(output, TARGET), expected / 2)


@pytest.mark.parametrize("penalty", [-0.5, float("inf"), float("nan")])
def test_a_penalty_out_of_range(penalty):
    with pytest.raises(ValueError, match=r"CML: 'penalty' must be finite and not negative; found "):
        CML({"a": nn.Linear(1, 1)}, penalty=penalty)
