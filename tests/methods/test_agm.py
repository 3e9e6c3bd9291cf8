import math
from itertools import permutations

import pytest
import torch
from torch import nn

from evenly import distributed
from evenly.diagnosis.contribution import subsets
from evenly.methods.agm import (
    AGM,
    clip_factor,
    coefficients,
    responses,
    scaled,
    shares,
    surprisals,
)
from support import NAMES, Run, Toy, forward, net


def values(names, n=5, c=3):
    return {subset: torch.randn(n, c, dtype=torch.float64) for subset in subsets(names)[1:]}


class TestFormulas:
    def test_two_modalities_as_in_the_paper(self):
        """With the term of each modality alone, which the subsets without it do not give."""
        f = values(("a", "v"))
        both, a, v = f[frozenset("av")], f[frozenset("a")], f[frozenset("v")]
        found = responses(f, ("a", "v"))
        torch.testing.assert_close(found[0], (both - v + a) / 2)
        torch.testing.assert_close(found[1], (both - a + v) / 2)

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_it_is_the_mean_over_all_orders_of_arrival(self, count):
        names = NAMES[:count]
        f = values(names) | {frozenset(): torch.zeros(5, 3, dtype=torch.float64)}
        wanted = dict.fromkeys(names, 0.0)
        orders = list(permutations(names))
        for order in orders:
            for place, name in enumerate(order):
                step = f[frozenset(order[: place + 1])] - f[frozenset(order[:place])]
                wanted[name] = wanted[name] + step / len(orders)
        del f[frozenset()]
        found = responses(f, names)
        torch.testing.assert_close(found, torch.stack([wanted[name] for name in names]))
        torch.testing.assert_close(found.sum(0), f[frozenset(names)])

    def test_surprisals_by_hand(self):
        sure = [[math.log(0.7), math.log(0.2), math.log(0.1)], [900.0, 0.0, 0.0]]
        found = surprisals(torch.tensor([sure]), torch.tensor([0, 1]))
        assert found.tolist() == [pytest.approx([-math.log(0.7), -math.log(1e-8)], rel=1e-5)]

    def test_shares_by_hand(self):
        assert shares(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([math.e**2, math.e**-2])
        three = shares(torch.tensor([1.0, 2.0, 6.0]))
        assert three.tolist() == pytest.approx([math.exp(1.5 * (3 - s)) for s in (1, 2, 6)])

    def test_one_that_does_better_than_it_usually_does_is_held_back(self):
        """Not the other way round, as with the sign of the ratio inverted."""
        k = coefficients(torch.tensor([0.5, 1.0]), torch.tensor([0.9, 1.0]), 1.0, 10.0)
        tau, r = math.exp(1.0 - 0.9), math.exp(1.0 - 0.5)
        assert k.tolist() == pytest.approx([math.exp(tau - r), math.exp(1 / tau - 1 / r)])
        assert k[0] < 1 < k[1]

    def test_the_cap_bounds_the_boost(self):
        k = coefficients(torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0]), 0.5, 7.0)
        assert k.tolist() == pytest.approx([math.exp(0.5 * 7), 0.0])

    def test_clipping_by_hand(self):
        number = torch.tensor
        assert float(clip_factor(number(0.9), number(7.0), 1.0)) == 1
        assert float(clip_factor(number(1.1), number(8.0), 1.0)) == 1 / 8
        assert float(clip_factor(number(1.1), number(8.0), 2.0)) == 1
        assert float(clip_factor(number(6.0), number(8.0), 2.0)) == 1 / 4

    def test_scaling_changes_gradients_and_no_value(self):
        x = torch.randn(2, 3, 4, requires_grad=True)
        k = torch.tensor([3e4, 1e-4])
        found = scaled(x, k)
        assert torch.equal(found, x)
        found.sum().backward()
        torch.testing.assert_close(x.grad, k[:, None, None].expand(2, 3, 4))


def batch_of(names, count=24):
    inputs, target, index = next(iter(torch.utils.data.DataLoader(Toy(count, names), count)))
    return {name: x.double() for name, x in inputs.items()}, target, index


def step(method, model, batch):
    model.zero_grad()
    loss = method.loss(*forward(model, batch))
    method.backward(loss)
    method.before_step()
    return loss.detach()


def ablated(model, batch, keep):
    inputs = {name: x if name in keep else torch.zeros_like(x) for name, x in batch[0].items()}
    return model(inputs).logits


@pytest.mark.parametrize("count", [2, 3])
def test_golden_steps(count):
    """Each modality's gradient by itself, times k_m; scores, running means and k_m by hand."""
    names, alpha = NAMES[:count], 0.8
    batch = batch_of(names)
    target = batch[1]
    model = net(names).double().eval()
    method = AGM(model.encoders, head=model.head, alpha=alpha)
    method.before_epoch(0)
    means, history = [0.0] * count, []

    def share(x):
        return [math.exp((sum(x) / count - one) * count / (count - 1)) for one in x]

    for turn in range(3):
        loss = step(method, model, batch)
        f = {s: ablated(model, batch, s) for s in subsets(names)[1:]}
        phi = responses(f, names)
        logits = phi.detach().sum(0).requires_grad_()
        wanted_loss = nn.functional.cross_entropy(logits, target)
        (error,) = torch.autograd.grad(wanted_loss, logits)
        torch.testing.assert_close(loss, wanted_loss.detach(), rtol=1e-12, atol=0)
        s = [float(nn.functional.cross_entropy(x, target)) for x in phi.detach()]
        tau, r = share(means), share(s)
        k = [math.exp(alpha * min(t - one, 10)) for t, one in zip(tau, r, strict=True)]
        assert [float(x) for x in method.coefficient] == pytest.approx(k, rel=1e-9)
        wanted = [torch.zeros_like(p) for p in model.parameters()]
        for m in range(count):
            parts = torch.autograd.grad(phi[m], model.parameters(), k[m] * error, retain_graph=True)
            wanted = [x + part for x, part in zip(wanted, parts, strict=True)]
        for parameter, grad in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)

        history.append(s)
        means = [sum(x) / len(history) for x in zip(*history, strict=True)]
        assert method.running.tolist() == pytest.approx(means, rel=1e-9)
        with torch.no_grad():  # on to other weights
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.2 * (turn + 1))
    assert max(k) > 1.01
    assert {name: float(x) for name, x in method.metrics.items()} == pytest.approx(
        {f"coefficient/{n}": x for n, x in zip(names, k, strict=True)}
        | {f"score/{n}": x for n, x in zip(names, s, strict=True)}
    )


def test_passes_without_some_inputs_carry_gradients(monkeypatch):
    """Without, φ_m = f(all) / 2 + a constant, and factors of 2 and 0 would change nothing."""
    batch = batch_of(NAMES[:2])
    model = net().double().eval()

    def norms(k):
        method = AGM(model.encoders, head=model.head, clip=math.inf)
        monkeypatch.setattr("evenly.methods.agm.coefficients", lambda *_: torch.tensor(k))
        step(method, model, batch)
        return [float(model.encoders[name][5].weight.grad.norm()) for name in NAMES[:2]]

    plain, first = norms([1.0, 1.0]), norms([2.0, 0.0])
    assert first[0] > 1.5 * plain[0]
    assert first[1] < 0.5 * plain[1]


def test_batchnorm_takes_no_notice_of_zeroed_inputs():
    model = net().double()
    other = net().double()
    other.load_state_dict(model.state_dict())
    batch = batch_of(NAMES[:2])
    torch.manual_seed(7)
    AGM(model.encoders, head=model.head).loss(*forward(model, batch))
    torch.manual_seed(7)
    forward(other, batch)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)
    assert all(module.training for module in model.modules())


def test_the_number_of_passes():
    model = net(NAMES[:3]).double()
    output, target = forward(model, batch_of(NAMES[:3]))
    kept, ablate = [], output.ablate

    def counted(keep):
        kept.append(frozenset(keep))
        return ablate(keep)

    object.__setattr__(output, "ablate", counted)
    AGM(model.encoders, head=model.head).loss(output, target)
    assert len(kept) == len(set(kept)) == 2**3 - 2

    kept.clear()
    some = {name: model.encoders[name] for name in NAMES[:2]}
    AGM(some, head=model.head).loss(output, target)
    assert set(kept) == {frozenset({"a", "b"}), frozenset({"aa", "b"})}, "'b' is always there"


@pytest.mark.parametrize(
    ("factor", "clip", "clipped"), [(0.1, 1.0, False), (1e4, 1.0, True), (1e4, math.inf, False)]
)
def test_gradients_are_clipped_where_a_number_in_the_heads_is_above(factor, clip, clipped):
    model = net().double().eval()
    method = AGM(model.encoders, head=model.head, clip=clip)
    output, target = forward(model, batch_of(NAMES[:2]))
    method.backward(method.loss(output, target) * factor)
    before = [p.grad.clone() for p in model.parameters()]
    method.before_step()
    norm = math.sqrt(sum(float(g.square().sum()) for g in before))
    assert max(float(p.grad.abs().max()) for p in model.head.parameters()) <= clip
    for parameter, grad in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, grad / norm if clipped else grad)


class TestMessages:
    @pytest.mark.parametrize("name", ["alpha", "cap"])
    def test_negative(self, name):
        with pytest.raises(ValueError, match=rf"AGM: '{name}' must be not negative; found -1\."):
            AGM(net().encoders, head=nn.Linear(2, 2), **{name: -1.0})

    def test_a_norm_of_nothing(self):
        with pytest.raises(ValueError, match=r"AGM: 'clip' must be above 0; found 0\."):
            AGM(net().encoders, head=nn.Linear(2, 2), clip=0.0)

    def test_too_many_modalities(self):
        encoders = {str(n): nn.Linear(2, 2) for n in range(7)}
        with pytest.raises(ValueError, match=r"7 encoders make 128 passes a step\. Pass at most 6"):
            AGM(encoders, head=nn.Linear(2, 2))

    def test_a_step_without_a_loss(self):
        with pytest.raises(RuntimeError, match=r"without a call of AGM\.loss"):
            AGM(net().encoders, head=nn.Linear(2, 2)).before_step()


def test_a_step_sums_its_scores_over_ranks_once(monkeypatch):
    run = Run("agm")
    shared, sum_ = [], distributed.sum_
    monkeypatch.setattr(
        distributed,
        "sum_",
        lambda x, *, sharded=True: (shared.append(x) if sharded else None, sum_(x))[1],
    )
    run.train(1, stop=1)
    assert len(shared) == 1
