import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import evenly
from evenly import METHODS
from evenly.methods.greedy import dependence, difference, speed
from evenly.nn import MMTM, LateFusion
from support import NAMES, Run, forward, loaders, net, same, sgd, train

Greedy = METHODS["greedy"]
WIDTHS = {"a": (2, 3), "aa": (4, 2), "b": (3, 5)}  # input, features


class TestFormulas:
    def test_speed_is_a_ratio_of_squares(self):
        found = speed(torch.tensor([9.0, 2.0]), torch.tensor([4.0, 8.0]))
        assert found.tolist() == [2.25, 0.25]

    def test_two_modalities_as_in_the_paper(self):
        ratio = dependence(torch.tensor([10.0, 3.0]), torch.tensor([1000.0, 0.3]))
        assert ratio.tolist() == pytest.approx([-2.0, 1.0])
        assert difference(ratio).tolist() == pytest.approx([-3.0, 3.0])

    def test_three_modalities_compare_with_the_mean_of_the_others(self):
        found = difference(torch.tensor([1.0, 2.0, 6.0]))
        assert found.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])

    def test_nothing_learnt_gives_no_nan(self):
        zero = torch.zeros(2)
        assert speed(zero, zero).tolist() == [0.0, 0.0]
        assert difference(dependence(zero, torch.tensor([1.0, 0.0]))).isfinite().all()


def linear(names=("a", "aa"), seed=0):
    torch.manual_seed(seed)
    encoders = {name: nn.Linear(*WIDTHS[name]) for name in names}
    return LateFusion(encoders, 3, "mmtm").double()


def batches(sizes, names=("a", "aa")):
    stream = torch.Generator().manual_seed(1)
    for n in sizes:
        inputs = {
            name: torch.randn(n, WIDTHS[name][0], generator=stream).double() * (1 + k)
            for k, name in enumerate(names)
        }
        yield inputs, torch.randint(0, 3, (n,), generator=stream)


def step(model, method, inputs, target, split=1):
    for rows in torch.arange(len(target)).tensor_split(split):
        output = model({name: x[rows] for name, x in inputs.items()})
        method.backward(method.loss(output, target[rows]) * len(rows) / len(target))
    method.before_step()
    descend(model)


@torch.no_grad()
def descend(model):
    for p in model.parameters():
        if p.grad is not None:
            p -= 0.1 * p.grad
            p.grad = None


class ByHand:
    """The paper's algorithm for one block, with numbers and `if` in place of tensors."""

    def __init__(self, model, epsilon, window, start):
        self.encoders, self.head = model.encoders, model.head
        self.epsilon, self.window, self.start = epsilon, window, start
        self.names = list(model.encoders)
        self.main = dict.fromkeys(self.names, 0.0)
        self.bypass = dict.fromkeys(self.names, 0.0)
        self.gates = {name: [] for name in self.names}
        self.curated, self.left = [], 0

    def loss(self, inputs, target):
        block, total, gates = self.head.block, 0, {}
        f = {name: self.encoders[name](x) for name, x in inputs.items()}
        hidden = block.squeeze(torch.cat(list(f.values()), 1)).clamp_min(0)
        for name in self.names:
            gates[name] = 2 / (1 + torch.exp(-block.excite[name](hidden)))
            gate = gates[name]
            if name in self.curated:
                gate = torch.stack(self.gates[name]).mean(0)
            z = self.head.heads[name](gate * f[name])
            true = z[range(len(target)), target]
            total = total + (torch.log(torch.exp(z).sum(1)) - true).mean()
        for name in self.names:
            self.gates[name] += list(gates[name].detach())
        return total

    def decide(self, epoch):
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.curated = []
            return
        ratio = {}
        for name in self.names:
            block = self.head.block
            own = [*self.encoders[name].parameters(), *self.head.heads[name].parameters()]
            way = [*block.squeeze.parameters(), *block.excite[name].parameters()]
            self.main[name] += learning(own)
            self.bypass[name] += learning(way)
            ratio[name] = math.log10(self.bypass[name] / self.main[name])
        for name in self.names:
            others = [ratio[other] for other in self.names if other != name]
            if epoch >= self.start and ratio[name] - sum(others) / len(others) > self.epsilon:
                self.curated = [*self.curated, name]
                self.left = self.window


def learning(parameters):
    gradient = weight = 0.0
    for p in parameters:
        gradient += sum(g * g for g in p.grad.flatten().tolist())
        weight += sum(w * w for w in p.flatten().tolist())
    return gradient / weight


@pytest.mark.parametrize("names", [("a", "aa"), ("a", "aa", "b")])
def test_golden_steps(names):
    """Four epochs of five steps, with batches of many sizes."""
    model = linear(names)
    reference = copy.deepcopy(model)
    method = Greedy(model.encoders, head=model.head, epsilon=0.05, window=3, start=1)
    hand = ByHand(reference, 0.05, 3, 1)
    switched = []
    for n, (inputs, target) in enumerate(batches([7, 4, 1, 8, 6] * 4, names)):
        if n % 5 == 0:
            method.before_epoch(n // 5)
        step(model, method, inputs, target)
        hand.loss(inputs, target).backward()
        hand.decide(n // 5)
        descend(reference)
        for own, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)
        for name, average in model.head.block.averages().items():
            expected = torch.stack(hand.gates[name]).mean(0)
            torch.testing.assert_close(average, expected, rtol=1e-10, atol=1e-12)
        curated = [name for name, on in zip(names, method.curated.tolist(), strict=True) if on]
        assert (curated, int(method.left)) == (hand.curated, hand.left)
        switched.append((tuple(curated), hand.left))
    assert {left for _, left in switched} == {0, 1, 2, 3}
    assert not any(left for _, left in switched[:5])  # the first epoch is before the start
    assert method.main.tolist() == pytest.approx(list(hand.main.values()), rel=1e-10)
    assert method.bypass.tolist() == pytest.approx(list(hand.bypass.values()), rel=1e-10)


def test_the_modality_that_learns_through_the_other_is_cut_off():
    """The gate of 'aa' has the large gradients: in the next steps it is a constant."""
    model = linear()
    method = Greedy(model.encoders, head=model.head, window=2, start=0)
    method.before_epoch(0)
    block = model.head.block
    ((inputs, target),) = batches([6])
    method.loss(model(inputs), target).backward()
    for p in block.excite["aa"].parameters():
        p.grad *= 1e3
    for expected in (True, True, False):
        method.before_step()
        assert method.curated.tolist() == block.curated.tolist() == [False, expected]
        model.zero_grad()
        output = model(inputs)
        (reach,) = torch.autograd.grad(
            output.unimodal["aa"].sum(), output.features["a"], retain_graph=True
        )
        assert bool(reach.eq(0).all()) is expected
        method.loss(output, target).backward()


def test_accumulated_passes_equal_one_while_a_modality_is_curated():
    def go(split):
        model = linear()
        method = Greedy(model.encoders, head=model.head, window=4, start=0)
        method.before_epoch(0)
        curated = []
        for inputs, target in batches([8] * 12):
            step(model, method, inputs, target, split=split)
            curated.append(method.curated.tolist())
        return model.state_dict(), curated

    (one, curated), (three, again) = go(1), go(3)
    assert curated == again
    assert any(map(any, curated))
    for key in one:
        torch.testing.assert_close(one[key], three[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_the_starting_epoch(start):
    """The speeds before it count, but nobody is curated."""
    method = (run := Run("greedy", start=start)).method
    switched = []
    decided = method.before_step

    def before_step():
        decided()
        switched.append(bool(method.curated.any()))

    method.before_step = before_step
    run.train(start + 1)
    assert not any(switched[: 5 * start])
    assert any(switched)
    assert method.main.gt(0).all()


def test_without_a_window_only_the_objective_is_left():
    def go(make):
        model = net(head="mmtm")
        return train(model, make(model), sgd(model), 3)

    class Sum(evenly.Method):
        def loss(self, output, target):
            return sum(self.criterion(z, target) for z in output.unimodal.values())

    never = go(lambda model: Greedy(model.encoders, head=model.head, window=0))
    assert same(never, go(lambda model: Sum()))
    acts = go(lambda model: Greedy(model.encoders, head=model.head))
    assert not same(never, acts)


def test_one_modality_is_joint_training():
    model, plain = net(("a",), head="mmtm"), net(("a",), head="mmtm")
    method = Greedy(model.encoders, head=model.head, start=0)
    train(model, method, sgd(model), 2, names=("a",))
    train(plain, evenly.Method(), sgd(plain), 2, names=("a",))
    assert same(model, plain)


def test_a_curation_under_way_is_resumed():
    model, fresh = linear(), linear()
    method = Greedy(model.encoders, head=model.head, start=0)
    method.before_epoch(0)
    for inputs, target in batches([6] * 4):
        step(model, method, inputs, target)
    assert method.curated.any()
    again = Greedy(fresh.encoders, head=fresh.head, start=0)
    again.load_state_dict(method.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.head.block.curated, model.head.block.curated)
    assert torch.equal(fresh(inputs).logits, model(inputs).logits)
    assert not torch.equal(fresh.eval()(inputs).logits, model(inputs).logits)


def test_a_step_that_overflows_counts_for_nothing():
    model = linear()
    method = Greedy(model.encoders, head=model.head, start=0)
    method.before_epoch(0)
    for n, (inputs, target) in enumerate(batches([6, 6])):
        method.loss(model(inputs), target).backward()
        if n == 0:
            model.encoders["a"].weight.grad[0, 0] = math.inf
        method.before_step()
        assert [bool(method.main.gt(0).all()), bool(method.main.isfinite().all())] == [n > 0, True]
        model.zero_grad()


def test_frozen_parameters_have_no_part():
    model = linear()
    model.encoders["a"].bias.requires_grad_(False)
    method = Greedy(model.encoders, head=model.head)
    method.before_epoch(0)
    ((inputs, target),) = batches([6])
    method.loss(model(inputs), target).backward()
    method.before_step()
    learnt = [model.encoders["a"].weight, *model.head.heads["a"].parameters()]
    assert float(method.main[0]) == pytest.approx(learning(learnt), rel=1e-10)


def test_a_model_of_ones_own_with_blocks_between_its_stages():
    """Two blocks; a modality's layer may be part of its encoder."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.ModuleDict({n: nn.Conv1d(1, 4, 3) for n in ("a", "aa")})
            self.then = nn.ModuleDict({n: nn.Conv1d(4, 3, 3) for n in ("a", "aa")})
            self.blocks = nn.ModuleList([MMTM({"a": 4, "aa": 4}), MMTM({"a": 3, "aa": 3})])

        def forward(self, inputs):
            x = self.blocks[0]({n: self.first[n](v) for n, v in inputs.items()})
            x = self.blocks[1]({n: self.then[n](torch.relu(v)) for n, v in x.items()})
            z = {n: v.mean(2) for n, v in x.items()}
            return evenly.Output((z["a"] + z["aa"]) / 2, z, z)

    torch.manual_seed(0)
    model = Own()
    encoders = {n: nn.ModuleList([model.first[n], model.then[n]]) for n in ("a", "aa")}
    method = Greedy(encoders, head=model, start=0)
    method.before_epoch(0)
    for _ in range(8):
        inputs = {n: torch.randn(5, 1, 9) for n in ("a", "aa")}
        step(model, method, inputs, torch.tensor([0, 1, 2, 0, 1]))
        assert all(torch.equal(block.curated, method.curated) for block in model.blocks)
    assert all(block.seen.tolist() == [40, 40] for block in model.blocks)
    assert method.main.shape == (2,)
    assert "curated/aa" in method.metrics
    assert "dependence/a" in method.metrics


def test_a_validation_that_asks_for_the_loss_does_not_count():
    model = linear()
    method = Greedy(model.encoders, head=model.head)
    method.before_epoch(0)
    one, two = batches([6, 9])
    method.loss(model(one[0]), one[1]).backward()
    with torch.no_grad():
        method.loss(model(two[0]), two[1])
    method.before_step()
    assert model.head.block.seen.tolist() == [6, 6]


def test_a_batch_that_lacks_a_modality_adds_to_the_others_speed_only():
    model = linear(("a", "aa", "b"))
    method = Greedy(model.encoders, head=model.head)
    method.before_epoch(0)
    ((inputs, target),) = batches([6], ("a", "aa", "b"))
    step(model, method, {name: inputs[name] for name in ("a", "b")}, target)
    assert method.main.gt(0).tolist() == [True, False, True]
    assert model.head.block.seen.tolist() == [6, 0, 6]
    assert all(value.isfinite() for value in method.metrics.values())


def test_no_step_waits_for_the_device():
    """Tensors without values: whoever asks for one, to decide something, is told that it cannot."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = net(head="mmtm")
        method = Greedy(model.encoders, head=model.head, start=0)
        method.before_epoch(0)
        for _ in range(2):
            output = model({name: torch.randn(4, 1, 5) for name in ("a", "aa")})
            method.backward(method.loss(output, torch.zeros(4, dtype=torch.int64)))
            method.before_step()
            model.zero_grad()
        with pytest.raises(DataDependentOutputException):
            bool(method.left)


class TestMessages:
    @pytest.mark.parametrize(("name", "value"), [("epsilon", -0.5), ("window", -1), ("start", -2)])
    def test_negative_settings(self, name, value):
        model = linear()
        with pytest.raises(
            ValueError, match=rf"Greedy: '{name}' must be not negative; found {value}"
        ):
            Greedy(model.encoders, head=model.head, **{name: value})

    def test_a_head_without_blocks(self):
        model = net()
        with pytest.raises(ValueError, match=r"found none in ConcatHead\. Give.* head 'mmtm'"):
            Greedy(model.encoders, head=model.head)

    def test_blocks_of_other_modalities(self):
        model = net(NAMES[:2], head="mmtm")
        encoders = {**model.encoders, "video": nn.Linear(2, 2)}
        with pytest.raises(ValueError, match=r"knows the modalities \['a', 'aa'\], but not \['vid"):
            Greedy(encoders, head=model.head)

    def test_a_step_without_a_loss(self):
        method = Run("greedy").method
        method.before_epoch(0)
        with pytest.raises(RuntimeError, match=r"without a call of Greedy\.loss"):
            method.before_step()

    def test_no_unimodal_logits(self):
        run = Run("greedy")
        run.method.before_epoch(0)
        output, target = forward(run.model, next(iter(loaders()[0])))
        with pytest.raises(ValueError, match=r"needs `Output.unimodal`; found None"):
            run.method.loss(evenly.Output(output.logits, output.features), target)
