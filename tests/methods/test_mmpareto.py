import copy
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import evenly
from evenly import distributed
from evenly.methods.mmpareto import MMPareto, enlargement, joint_share, min_norm_share
from many_ranks import on_ranks
from support import NAMES, Toy, forward, net


def share(j, o):
    j, o = torch.as_tensor(j).double(), torch.as_tensor(o).double()
    return joint_share(j @ j, j @ o, o @ o)


class TestFormulas:
    def test_gradients_that_agree_weigh_the_same(self):
        assert float(share([1.0, 0.0], [9.0, 1.0])) == 0.5

    def test_least_norm_by_search(self):
        for seed in range(20):
            torch.manual_seed(seed)
            j, o = torch.randn(2, 5, dtype=torch.float64)
            if j @ o > 0:
                o = -o
            steps = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
            best = steps[(steps * j + (1 - steps) * o).norm(dim=1).argmin()]
            assert float(share(j, o)) == pytest.approx(float(best), abs=1e-4)

    @given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
    def test_opposed_gradients_give_one_that_serves_both(self, numbers):
        j, o = torch.tensor(numbers).double().view(2, 2)
        a = share(j, o)
        combined = 2 * a * j + 2 * (1 - a) * o
        assert min(combined @ j, combined @ o) >= -1e-9 * (1 + j.norm() * o.norm())

    def test_a_share_is_never_all(self):
        """As for gradients of which one is the shorter projection of the other."""
        one, two, four = torch.tensor([1.0, 2.0, 4.0])
        assert float(min_norm_share(one, two, four)) == pytest.approx(0.999)
        assert float(min_norm_share(four, two, one)) == pytest.approx(0.001)
        assert 0 < float(share([0.0, 0.0], [1.0, 1.0])) < 1
        assert 0 < float(share([0.0, 0.0], [0.0, 0.0])) < 1

    def test_what_became_smaller_is_enlarged(self):
        norm, plain = torch.tensor([2.0, 4.0, 0.0, 0.0]), torch.tensor([6.0, 2.0, 0.0, 1.0])
        assert enlargement(norm, plain, 1.5).tolist() == [4.5, 1.5, 1.5, 1.5]


def model_of(count=2, opposed=()):
    """The fused logits ask for what a modality's own head does; in an opposed one, to undo it."""
    model = net(NAMES[:count], head="multi").double().eval()
    with torch.no_grad():
        for m, name in enumerate(NAMES[:count]):
            block = model.head.linear.weight[:, 6 * m : 6 * m + 6]
            block.copy_((-0.5 if name in opposed else 0.5) * model.head.heads[name].weight)
    return model


def batch_of(count=2, rows=24):
    inputs, target, index = next(iter(DataLoader(Toy(rows, NAMES[:count]), rows)))
    return {name: x.double() for name, x in inputs.items()}, target, index


def gradients(model, batch):
    """Of each loss, by a pass of its own."""
    found = {}
    for which in ("joint", *model.encoders):
        output, target = forward(model, batch)
        logits = output.logits if which == "joint" else output.unimodal[which]
        loss = nn.functional.cross_entropy(logits, target)
        grads = torch.autograd.grad(loss, model.parameters(), allow_unused=True)
        names = [name for name, _ in model.named_parameters()]
        found[which] = {
            name: torch.zeros_like(p) if g is None else g
            for name, p, g in zip(names, model.parameters(), grads, strict=True)
        }
    return found


def expected(model, batch, gamma=1.5):
    """The rule in plain loops, and which encoders had a conflict."""
    losses = gradients(model, batch)
    wanted = {
        name: sum(loss[name] for loss in losses.values()) for name, _ in model.named_parameters()
    }
    conflicts = []
    for modality in model.encoders:
        mine = [name for name in wanted if name.startswith(f"encoders.{modality}.")]
        j, o = (torch.cat([losses[k][n].flatten() for n in mine]) for k in ("joint", modality))
        a = 0.5
        if j @ o <= 0:
            conflicts.append(modality)
            a = float((o @ o - j @ o) / (j @ j + o @ o - 2 * j @ o))
        for name in mine:
            g = 2 * a * losses["joint"][name] + 2 * (1 - a) * losses[modality][name]
            g = g * max(1.0, float(wanted[name].norm() / g.norm()))
            wanted[name] = gamma * g
    return wanted, conflicts


def step(method, model, batch, split=1, scaler=None):
    model.zero_grad()
    for part in torch.arange(len(batch[1])).tensor_split(split):
        cut = {name: x[part] for name, x in batch[0].items()}, batch[1][part], batch[2][part]
        loss = method.loss(*forward(model, cut)) * (len(part) / len(batch[1]))
        method.backward(loss if scaler is None else scaler.scale(loss))


def assert_gradients(model, wanted, rtol=1e-10):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("opposed", [(), ("a",), ("a", "aa", "b")])
def test_golden_step(count, opposed):
    model, batch = model_of(count, opposed), batch_of(count)
    wanted, conflicts = expected(model, batch)
    assert set(conflicts) == set(opposed) & set(NAMES[:count])
    method = MMPareto(model.encoders)
    method.before_epoch(0)
    step(method, model, batch)
    method.before_step()
    assert_gradients(model, wanted)
    for name in NAMES[:count]:
        assert (method.metrics[f"cosine/{name}"] < 0) == (name in conflicts)
        assert (method.metrics[f"share/{name}"] != 0.5) == (name in conflicts)


def test_aligned_gradients_give_gamma_times_their_sum():
    model, batch = model_of(), batch_of()
    step(method := MMPareto(model.encoders, gamma=2.5), model, batch)
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.before_step()
    scaled = {n: g * (2.5 if n.startswith("encoders") else 1) for n, g in plain.items()}
    assert_gradients(model, scaled)


def test_each_loss_gives_a_gradient_of_its_own():
    """Not the accumulated sum twice, of which the cosine is always 1."""
    model, batch = model_of(), batch_of()
    step(method := MMPareto(model.encoders), model, batch)
    losses = gradients(model, batch)
    for name, parameter in model.named_parameters():
        if name.startswith("encoders.a."):
            torch.testing.assert_close(method._own[parameter], losses["a"][name])
            assert not torch.allclose(method._own[parameter], losses["joint"][name])
    method.before_step()
    assert method.metrics["cosine/a"] < 0.999


@pytest.mark.parametrize("opposed", [(), ("a", "aa")])
@pytest.mark.parametrize("split", [1, 3])
def test_gradient_scaling_and_accumulation_change_nothing(opposed, split):
    """With the scaler of AMP itself, which unscales the gradients and not what is kept aside."""
    model, batch = model_of(2, opposed), batch_of()
    wanted, _ = expected(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    method = MMPareto(model.encoders)
    method.before_epoch(0)
    step(method, model, batch, split, scaler)
    scaler.unscale_(optimizer)
    method.before_step()
    assert_gradients(model, wanted, rtol=1e-6)


def test_losses_of_several_passes_in_one_backward():
    model, batch = model_of(2, ("a",)), batch_of()
    wanted, _ = expected(model, batch)
    method = MMPareto(model.encoders)
    method.before_epoch(0)
    halves = [
        ({name: x[rows] for name, x in batch[0].items()}, batch[1][rows], batch[2][rows])
        for rows in (slice(0, 12), slice(12, 24))
    ]
    first, second = (method.loss(*forward(model, half)) for half in halves)
    method.backward((first + second) / 2)
    method.before_step()
    assert_gradients(model, wanted)


def test_a_loss_that_was_never_taken_back_does_not_count():
    model, batch = model_of(2, ("a",)), batch_of()
    wanted, _ = expected(model, batch)
    method = MMPareto(model.encoders)
    method.before_epoch(0)
    method.loss(*forward(model, batch_of(2, 5)))
    step(method, model, batch)
    method.before_step()
    assert_gradients(model, wanted)


def test_gradients_of_zero_stay_finite():
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        model.head.linear.weight.zero_()
        model.head.heads["a"].weight.zero_()
    step(method := MMPareto(model.encoders), model, batch)
    method.before_step()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all((p.grad == 0).all() for p in model.encoders["a"].parameters())


def test_a_unimodal_gradient_that_overflows_where_the_sum_does_not():
    """Half of it is undone by the fused loss, so a scaler finds the sum finite and takes a step."""
    encoder, scaler = nn.Linear(2, 2, bias=False), torch.amp.GradScaler("cpu", init_scale=512.0)
    optimizer = torch.optim.SGD(encoder.parameters(), 1.0)
    method = MMPareto({"a": encoder}, criterion=lambda z, _: z.float().sum())
    method.before_epoch(0)
    with torch.autocast("cpu", torch.float16):
        z = encoder(torch.full((2, 2), 100.0))
        # of the weights 512 · (1 - 0.5) · 2 · 100 = 51 200 in all, 102 400 of the unimodal loss
        loss = method.loss(evenly.Output(-0.5 * z, {"a": z}, {"a": z}), torch.zeros(2))
    method.backward(scaler.scale(loss))
    assert encoder.weight.grad.tolist() == [[51_200.0] * 2] * 2
    scaler.unscale_(optimizer)
    method.before_step()
    torch.testing.assert_close(encoder.weight.grad, torch.full((2, 2), 1.5 * 100))


def test_an_inner_product_beyond_float16():
    """j = g (-½, 0) and o = g (1, 1) by rows, with j · o = -10⁶: a = 10/13, enlarged by √65 / 4."""
    encoder = nn.Linear(2, 2, bias=False).half()
    method = MMPareto({"a": encoder}, criterion=lambda z, _: z.float().sum())
    method.before_epoch(0)
    z = encoder(torch.full((2, 2), 500.0).half())
    fused = z * torch.tensor([-0.5, 0.0]).half()
    method.backward(method.loss(evenly.Output(fused, {"a": z}, {"a": z}), torch.zeros(2)))
    method.before_step()
    assert float(method.metrics["share/a"]) == pytest.approx(10 / 13)
    wanted = 1.5 * 65**0.5 / 4 * torch.tensor([[-4.0] * 2, [6.0] * 2]) / 13 * 1000
    torch.testing.assert_close(encoder.weight.grad.float(), wanted, rtol=5e-3, atol=0)


def test_one_backward_pass_through_the_head_and_two_through_each_encoder():
    model, batch = model_of(), batch_of()
    counts = {"linear": 0, "a": 0, "aa": 0}

    def counted(key):
        def hook(*_):
            counts[key] += 1

        return hook

    model.head.linear.register_full_backward_hook(counted("linear"))
    for name, encoder in model.encoders.items():
        encoder[5].register_full_backward_hook(counted(name))
    step(MMPareto(model.encoders), model, batch)
    assert counts == {"linear": 1, "a": 2, "aa": 2}


def test_nothing_is_kept_from_step_to_step():
    model, batch = model_of(2, ("a",)), batch_of()
    method = MMPareto(model.encoders)
    method.before_epoch(0)
    for _ in range(2):
        wanted, _ = expected(copy.deepcopy(model), batch)
        step(method, model, batch)
        method.before_step()
        assert_gradients(model, wanted)


def sharded_gradients(rank, world, split, everywhere, scaled, sync=True):
    """Those of a step, brought together; without synchronisation the text of what is raised."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, batch = model_of(2, ("a",)), batch_of()
    mesh = init_device_mesh("cpu", (world,))
    for part in (*model.encoders.values(), model) if everywhere else (model,):
        fully_shard(part, mesh=mesh)
    method = MMPareto(model.encoders)
    inputs, target, index = ({n: x[rank::world] for n, x in batch[0].items()}, *batch[1:])
    mine = inputs, target[rank::world], index[rank::world]
    with torch.no_grad():
        forward(model, mine)  # a validation: the root's parameters stay whole after it
    loader = DataLoader(Toy(8, NAMES[:2]), 8)
    method.before_epoch(0, evenly.Probe(model, forward, loader, loader))
    if not sync:
        model.set_requires_gradient_sync(False)
        try:
            step(method, model, mine, split)
        except RuntimeError as error:
            return str(error)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0) if scaled else None
    step(method, model, mine, split, scaler)
    if scaler is not None:
        scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))
    method.before_step()
    shares = {name: float(method.metrics[f"share/{name}"]) for name in model.encoders}
    return {name: distributed.whole(p.grad) for name, p in model.named_parameters()}, shares


def lacking(rank, world, cut):
    """A step's gradients, the second half of whose samples, and so rank 1, lacks a modality."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    encoders = {name: nn.Linear(4, 6) for name in "ab"}
    model = evenly.nn.LateFusion(encoders, 3, "multi").double()
    inputs = {name: torch.randn(8, 4).double() for name in "ab"}
    target, here = torch.arange(8) % 3, torch.arange(8) < 4
    if cut:
        mesh = init_device_mesh("cpu", (world,))
        for part in (*encoders.values(), model):
            fully_shard(part, mesh=mesh)
    method = MMPareto(encoders)
    method.before_epoch(0)
    rows = slice(4 * rank, 4 * rank + 4) if cut else slice(None)
    mine = {name: x[rows] for name, x in inputs.items()}
    method.backward(method.loss(model(mine, {"a": here[rows]}), target[rows]))
    method.before_step()
    return {name: distributed.whole(p.grad) for name, p in model.named_parameters()}


# Passes of a step, whether each encoder is sharded by itself, and whether AMP scales the loss.
SHARDED = [(1, False, False), (3, False, False), (1, True, False), (3, True, True)]


def all_sharded(rank, world):
    return {
        "refused": sharded_gradients(rank, world, 1, True, False, sync=False),
        "lacking": lacking(rank, world, cut=True),
        **{way: sharded_gradients(rank, world, *way) for way in SHARDED},
    }


@cache
def on_two_ranks():
    with tempfile.TemporaryDirectory() as folder:
        return on_ranks(all_sharded, Path(folder))


@pytest.mark.distributed
@pytest.mark.xdist_group("sharded mmpareto")  # both processes are started once
class TestSharded:
    @pytest.mark.parametrize("way", SHARDED)
    def test_gradients_are_those_of_one_process(self, way):
        """A conflict in one encoder and none in the other, with and without accumulation."""
        wanted, _ = expected(model_of(2, ("a",)), batch_of())
        for rank in on_two_ranks():
            found, shares = rank[way]
            rtol = 1e-6 if way[-1] else 1e-10
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, wanted[name], rtol=rtol, atol=1e-12)
            assert shares["a"] != 0.5
            assert shares["aa"] == 0.5

    def test_a_rank_whose_samples_all_lack_a_modality_keeps_step(self):
        wanted = lacking(0, 1, cut=False)
        for rank in on_two_ranks():
            torch.testing.assert_close(rank["lacking"], wanted, rtol=1e-10, atol=1e-12)

    def test_an_accumulation_that_does_not_synchronise_is_refused(self):
        """The shards would have no gradients to take aside, as in `no_sync` of accelerate."""
        for rank in on_two_ranks():
            assert "set_requires_gradient_sync(True)" in rank["refused"]


class TestMessages:
    def test_gamma(self):
        with pytest.raises(ValueError, match=r"MMPareto: 'gamma' must be above 0; found 0\.0\."):
            MMPareto(net().encoders, gamma=0.0)

    def test_a_backward_of_the_loops_own(self):
        model = model_of()
        method = MMPareto(model.encoders)
        method.loss(*forward(model, batch_of())).backward()
        with pytest.raises(RuntimeError, match=r"method\.backward\(loss\) instead of"):
            method.before_step()

    def test_a_backward_without_a_loss(self):
        with pytest.raises(RuntimeError, match=r"called before MMPareto\.loss"):
            MMPareto(net().encoders).backward(torch.ones((), requires_grad=True))

    def test_encoders_that_are_sharded_in_part(self, monkeypatch):
        model = net()
        first = next(model.encoders["a"].parameters())
        monkeypatch.setattr(distributed, "is_sharded", lambda x: x is first)
        with pytest.raises(RuntimeError, match=r"1 of the encoders' \d+ parameters are sharded"):
            MMPareto(model.encoders).before_epoch(0)

    def test_encoders_that_are_cut_in_several_ways(self, monkeypatch):
        monkeypatch.setattr(distributed, "is_sharded", lambda x: True)
        monkeypatch.setattr(distributed, "cut", id)
        with pytest.raises(RuntimeError, match=r"are sharded in several ways"):
            MMPareto(net().encoders).before_epoch(0)

    def test_shards_that_came_after_the_epoch_began(self, monkeypatch):
        model = model_of()
        method = MMPareto(model.encoders)
        method.before_epoch(0)
        step(method, model, batch_of())
        monkeypatch.setattr(distributed, "is_sharded", lambda x: isinstance(x, nn.Parameter))
        with pytest.raises(RuntimeError, match=r"Call method\.before_epoch\(epoch, probe\)"):
            method.before_step()
