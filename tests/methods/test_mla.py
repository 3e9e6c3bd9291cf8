import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import evenly
from evenly.methods.mla import MLA, damping, projected, updated
from evenly.nn import LateFusion
from many_ranks import on_ranks
from support import Run, forward, lacking, loaders, net, same, sgd, train, weights


def by_loops(p, r, alpha):
    """The update of P, element by element."""
    d = range(len(r))
    k = [sum(p[i][j] * r[j] for j in d) for i in d]
    down = alpha + sum(r[i] * k[i] for i in d)
    p = [[p[i][j] - k[i] * k[j] / down for j in d] for i in d]
    norm = math.sqrt(sum(x * x for row in p for x in row))
    return [[x / norm for x in row] for row in p]


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestFormulas:
    def test_update(self):
        torch.manual_seed(0)
        r, s = torch.randn(2, 4, dtype=torch.float64)
        once = updated(torch.eye(4, dtype=torch.float64), r, 0.1)
        expected = by_loops(torch.eye(4).tolist(), r.tolist(), 0.1)
        torch.testing.assert_close(once, double(expected), rtol=1e-12, atol=1e-14)
        twice = updated(once, s, 0.01)
        expected = by_loops(once.tolist(), s.tolist(), 0.01)
        torch.testing.assert_close(twice, double(expected), rtol=1e-12, atol=1e-14)

    def test_frobenius_norm_is_one(self):
        p = updated(torch.eye(5), torch.arange(5.0), 0.1)
        assert float(torch.linalg.matrix_norm(p)) == pytest.approx(1)

    def test_nothing_is_left_of_a_mean_feature_as_alpha_vanishes(self):
        torch.manual_seed(0)
        r, s = torch.randn(2, 6, dtype=torch.float64)
        p = updated(updated(torch.eye(6, dtype=torch.float64), r, 1e-13), s, 1e-13)
        grad = torch.randn(3, 6, dtype=torch.float64)
        left = projected(grad, p)
        assert float((left @ r).abs().max()) < 1e-11
        assert float((left @ s).abs().max()) < 1e-11
        assert float(left.norm()) > 0.1

    def test_alpha_falls_within_an_epoch(self):
        assert damping(0.0) == pytest.approx(0.1)
        assert damping(0.5) == pytest.approx(0.1**1.5)
        assert damping(1.0) == pytest.approx(0.01)

    def test_a_mean_feature_of_zero_gives_no_nan(self):
        assert updated(torch.eye(3), torch.zeros(3), 0.01).isfinite().all()


def tiny(names=("a", "b"), width=4):
    """Linear encoders with unequal inputs, in double precision."""
    torch.manual_seed(1)
    encoders = {name: nn.Linear(2 + n, width) for n, name in enumerate(names)}
    for encoder in encoders.values():
        encoder.out_features = width
    model = LateFusion(encoders, 3, "shared").double()
    target = torch.tensor([0, 1, 2, 1, 0])
    inputs = {name: torch.randn(5, 2 + n, dtype=torch.float64) for n, name in enumerate(names)}
    return model, inputs, target


def test_golden_steps():
    """The head's gradient is replaced by its projection, not added to, from the second step on."""
    model, inputs, target = tiny()
    method = MLA(model.encoders, head=model.head)
    method.before_epoch(0)
    p = None
    for name in ("a", "b", "a", "b"):
        assert method.turn == name
        f = model.encoders[name](inputs[name])
        plain = torch.autograd.grad(
            cross_entropy(model.head.linear(f), target),
            [*model.encoders[name].parameters(), *model.head.linear.parameters()],
        )
        model.zero_grad()
        method.backward(method.loss(model(inputs), target))
        method.before_step()
        expected = plain[2] if p is None else plain[2] @ double(p).T
        found = [p.grad for p in model.encoders[name].parameters()]
        found += [model.head.linear.weight.grad, model.head.linear.bias.grad]
        for got, want in zip(found, (*plain[:2], expected, plain[3]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        before = torch.eye(4).tolist() if p is None else p
        p = by_loops(before, f.detach().mean(0).tolist(), 0.1)
        torch.testing.assert_close(method.projection, double(p), rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)


@pytest.mark.parametrize("repeats", [1, 2])
def test_each_modality_gets_each_batch(repeats):
    """Also where the loop itself takes the batches of an ordinary loader several times."""
    run = Run("mla")
    run.train_loader.batch_sampler.repeats = 1
    run.method.before_epoch(0, run.probe)
    batches = iter(run.train_loader)
    with (
        pytest.raises(RuntimeError, match=r"batch_sampler=evenly\.Repeated")
        if repeats == 1
        else nullcontext()
    ):
        for batch in batches:
            for _ in range(repeats):
                run.step(batch)


def test_a_resumed_loop_is_looked_at_as_well():
    first = Run("mla").train(1)
    run = Run("mla")
    run.method.load_state_dict(first.method.state_dict())
    run.train_loader.batch_sampler.repeats = 1
    run.method.before_epoch(1, run.probe)
    first, second, *_ = run.train_loader
    run.step(first)
    with pytest.raises(RuntimeError, match=r"batch_sampler=evenly\.Repeated"):
        run.step(second)


def test_the_next_gradient_is_orthogonal_to_the_mean_feature_before(monkeypatch):
    monkeypatch.setattr("evenly.methods.mla.damping", lambda progress: 1e-13)
    model, inputs, target = tiny()
    method = MLA(model.encoders, head=model.head)
    method.before_epoch(0)
    weight = model.head.linear.weight
    means, slopes = [], []
    for _ in range(2):
        turn = method.turn
        model.zero_grad()
        output = model(inputs)
        means.append(output.features[turn].detach().mean(0))
        method.backward(method.loss(output, target))
        slopes.append(weight.grad @ means[0])
        method.before_step()
    assert float(slopes[1].abs().max()) > 1e-3
    assert float((weight.grad @ means[0]).abs().max()) < 1e-11
    assert float((weight.grad @ means[1]).abs().max()) > 1e-4


def test_the_head_is_found_wherever_its_layer_lies():
    """By identity: the released code projects only a parameter that is named module.weight."""
    model, inputs, target = tiny()
    wrapped = nn.ModuleDict({"norm": nn.Identity(), "deep": nn.Sequential(model.head)})
    method = MLA(model.encoders, head=wrapped)
    method.before_epoch(0)
    for _ in range(2):
        model.zero_grad()
        method.backward(method.loss(model(inputs), target))
        before = model.head.linear.weight.grad.clone()
        method.before_step()
    assert not torch.allclose(model.head.linear.weight.grad, before)


def test_what_is_remembered_holds_no_graph():
    run = Run("mla").train(1)
    assert not run.method.projection.requires_grad
    assert all(not value.requires_grad for value in run.method.metrics.values())


def test_each_batch_comes_for_each_modality_in_turn():
    assert "repeats" in vars(MLA)
    run = Run("mla", names=("a", "aa", "b"))
    assert run.method.repeats == 3
    run.method.before_epoch(0, run.probe)
    turns, batches = [], []
    for batch in run.train_loader:
        turns.append(run.method.turn)
        batches.append(batch[2].tolist())
        run.step(batch)
    assert turns == ["a", "aa", "b"] * 5
    assert batches[0] == batches[1] == batches[2] != batches[3]


def test_neither_momentum_nor_decay_moves_the_others():
    run = Run("mla").train(1)
    run.method.before_epoch(1, run.probe)
    for batch, name, other in zip(run.train_loader, ("a", "aa"), ("aa", "a"), strict=False):
        before = {key: list(run.model.encoders[key].parameters()) for key in (name, other)}
        before = {key: [p.detach().clone() for p in ps] for key, ps in before.items()}
        run.step(batch)
        after = {key: list(run.model.encoders[key].parameters()) for key in (name, other)}
        assert all(map(torch.equal, before[other], after[other]))
        assert not any(map(torch.equal, before[name], after[name]))


def test_feeding_only_the_modality_whose_turn_it_is_changes_nothing():
    def go(alone):
        run = Run("mla")
        run.model.eval()  # BatchNorm's running statistics see every input that is fed
        for epoch in range(2):
            run.method.before_epoch(epoch, run.probe)
            for inputs, target, index in run.train_loader:
                turn = run.method.turn
                run.step(({turn: inputs[turn]} if alone else inputs, target, index))
        return run.model

    assert same(go(alone=True), go(alone=False))


@pytest.mark.parametrize("split", [1, 2])
def test_a_turn_whose_modality_is_missing_teaches_nothing(split):
    """Not even by momentum and weight decay, which move what has a gradient of zeros."""
    run = Run("mla").train(1)
    run.method.before_epoch(1, run.probe)
    projection = run.method.projection
    before = [p.detach().clone() for p in run.model.parameters()]
    batch = next(iter(run.train_loader))
    with torch.no_grad():  # a validation in between holds the modality
        run.method.loss(*forward(run.model, batch))
    run.step(batch, split=split, lacking="a")
    assert all(map(torch.equal, run.model.parameters(), before))
    assert torch.equal(run.method.projection, projection)
    assert run.method.turn == "aa"
    run.step(batch, split=split, lacking="a")
    assert not all(map(torch.equal, run.model.head.parameters(), before[-2:]))


def test_a_turn_that_one_pass_of_a_step_holds_is_taken():
    run = Run("mla").train(1)
    run.method.before_epoch(1, run.probe)
    inputs, target, index = next(iter(run.train_loader))
    before = run.model.head.linear.weight.detach().clone()
    for fed in (inputs, {"aa": inputs["aa"]}):
        run.method.backward(run.method.loss(*forward(run.model, (fed, target, index))))
    run.method.before_step()
    run.optimizer.step()
    assert not torch.equal(run.model.head.linear.weight, before)


def test_progress_is_counted_in_batches_of_the_epoch_before():
    method = MLA(net(head="shared").encoders, head=net(head="shared").head)
    method.before_epoch(0)
    method.step = 6
    assert method.progress == 0  # nobody knows yet how long an epoch is
    method.before_epoch(1)
    found = []
    for step in range(8):
        method.step = step
        found.append(method.progress)
    assert found == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])


def test_a_run_resumed_within_an_epoch_goes_on_with_the_turn():
    run = Run("mla").train(1)
    run.method.before_epoch(1, run.probe)
    run.step(next(iter(run.train_loader)))
    fresh = Run("mla")
    fresh.method.load_state_dict(run.method.state_dict())
    fresh.method.before_epoch(1, fresh.probe)
    assert (fresh.method.turn, fresh.method.length, fresh.method.step) == ("aa", 10, 1)


def test_going_back_between_two_turns_of_a_batch():
    run = Run("mla")
    run.method.before_epoch(0, run.probe)
    batches = iter(run.train_loader)
    run.step(next(batches))
    state, second = run.method.state_dict(), next(batches)
    run.step(second)
    run.method.load_state_dict(state)
    run.step((second[0], second[1].flip(0), second[2]))
    assert run.method.step == 2


def test_a_pass_that_the_loop_skips_ends_the_turn_and_teaches_nothing():
    run = Run("mla")
    run.method.before_epoch(0, run.probe)
    batches = iter(run.train_loader)
    run.step(next(batches))
    projection = run.method.projection
    run.method.loss(*forward(run.model, next(batches)))
    run.method.before_step()
    assert run.method.turn == "a"
    assert torch.equal(run.method.projection, projection)
    for batch in batches:
        run.step(batch)


def test_without_that_call_each_later_batch_still_comes_for_each_modality():
    run = Run("mla")
    run.method.before_epoch(0, run.probe)
    turns = []
    for n, batch in enumerate(run.train_loader):
        turns.append(run.method.turn)
        if n == 2:
            run.method.loss(*forward(run.model, batch))
        else:
            run.step(batch)
    assert turns == ["a", "aa", "a", "a", "aa", "a", "aa", "a", "aa", "a"]


def test_one_modality_is_trained_plainly():
    model, plain = (net(("a",), head="shared") for _ in range(2))
    train(model, MLA(model.encoders, head=model.head), sgd(model), 2, names=("a",))
    train(plain, evenly.Method(), sgd(plain), 2, names=("a",))
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(model)[key], value)


def fed_in_turn(rank, world):
    """Under DistributedDataParallel, where an encoder may not even be run."""
    found = {}
    for alone in (True, False):
        model = net(head="shared").eval()
        trained = DistributedDataParallel(model, find_unused_parameters=True)
        method, optimizer = MLA(model.encoders, head=model.head), sgd(model)
        loader, _ = loaders(batch=4, world=world, rank=rank, repeats=2)
        method.before_epoch(0)
        for inputs, target, index in loader:
            fed = {method.turn: inputs[method.turn]} if alone else inputs
            method.backward(method.loss(*forward(trained, (fed, target, index))))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
        found[alone] = weights(model)
    return found


@pytest.mark.distributed
def test_feeding_only_the_modality_whose_turn_it_is_on_two_ranks(tmp_path):
    for found in on_ranks(fed_in_turn, tmp_path):
        for key, value in found[True].items():
            torch.testing.assert_close(found[False][key], value)


def lacking_in_turn(rank, world):
    """The first step's modality is missing on one rank, the third's on both."""
    model = net(head="shared").eval()
    trained = DistributedDataParallel(model, find_unused_parameters=True)
    method, optimizer = MLA(model.encoders, head=model.head), sgd(model)
    loader, _ = loaders(batch=4, world=world, rank=rank, repeats=2)
    method.before_epoch(0)
    heads = []
    for n, (inputs, target, index) in zip(range(4), loader, strict=False):
        lacking = "a" if n == 2 or (n == 0 and rank == 0) else None
        fed = {name: x for name, x in inputs.items() if name != lacking}
        method.backward(method.loss(*forward(trained, (fed, target, index))))
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
        heads.append(model.head.linear.weight.detach().clone())
    return heads, weights(model), method.projection


@pytest.mark.distributed
def test_a_turn_that_no_rank_holds_teaches_nothing(tmp_path):
    """All ranks decide alike, whatever their own batch holds."""
    (heads, one, projection), (_, two, other) = on_ranks(lacking_in_turn, tmp_path)
    assert [torch.equal(*pair) for pair in pairwise(heads)] == [False, True, False]
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert torch.equal(projection, other)
    untrained = net(head="shared").head.linear.weight
    assert not torch.allclose(heads[0], untrained, atol=1e-4), "the other rank's batch counts"


class TestMessages:
    def test_a_head_that_is_not_shared(self):
        model = net(head="multi")
        with pytest.raises(ValueError, match=r"one linear layer; found 3 in MultiHead\..*'shared'"):
            MLA(model.encoders, head=model.head)

    def test_a_step_without_a_loss(self):
        model = net(head="shared")
        with pytest.raises(RuntimeError, match=r"without a call of MLA\.loss"):
            MLA(model.encoders, head=model.head).before_step()


def test_what_is_kept_of_the_heads_gradient_is_told():
    """In float32, too, where the gradient is not copied to be projected."""
    model = net(head="shared")
    method = MLA(model.encoders, head=model.head)
    grad = torch.tensor([[3.0, 4.0, 0.0]])
    method._project(grad, torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    assert grad.tolist() == [[3.0, 0.0, 0.0]]
    assert float(method.metrics["kept/a"]) == pytest.approx(0.6)


def test_the_mean_feature_is_of_samples_that_have_the_modality():
    run = Run("mla")
    here = torch.arange(24) % 3 > 0
    output, target = lacking(run.model, {"a": here})
    run.method.loss(output, target)
    total, count = run.method._features_sum.take(run.method).tensor_split([-1])
    torch.testing.assert_close(total / count, output.features["a"][here].mean(0))


def test_a_turn_whose_modality_no_sample_has_teaches_nothing():
    run = Run("mla").train(1)
    run.method.before_epoch(1, run.probe)
    projection = run.method.projection
    before = [p.detach().clone() for p in run.model.parameters()]
    output, target = lacking(run.model, {"a": torch.zeros(24, dtype=torch.bool)})
    run.method.backward(run.method.loss(output, target))
    run.method.before_step()
    run.optimizer.step()
    assert all(map(torch.equal, run.model.parameters(), before))
    assert torch.equal(run.method.projection, projection)
