import gc
import math

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import evenly
from evenly.methods import MSLR
from evenly.methods.mslr import growth, smoothed
from optimisers import SAM, wrappings
from support import NAMES, Run, forward, loaders, net, same, sgd


class TestFormulas:
    def test_growth_by_hand(self):
        assert growth([0.5], 5) == 1.0
        assert growth([0.2, 0.4], 2) == 1.0
        assert growth([0.9, 0.2, 0.4, 0.3], 3) == pytest.approx(0.3 / 0.5)
        assert growth([0.9, 0.2, 0.4], 1) == pytest.approx(2.0)

    def test_smoothed_is_half_way_in_orders_of_magnitude(self):
        assert smoothed(0.01) == pytest.approx(0.1)
        assert smoothed(1.0) == 1.0


@pytest.mark.parametrize("strategy", ["keep", "smooth", "dynamic"])
def test_rates_that_are_given_go_with_any_target(strategy):
    model = net(NAMES, head="late")
    settings = {"strategy": strategy, "rates": {"a": 0.5}}
    method = MSLR(model.encoders, optimizer=sgd(model), criterion=torch.nn.L1Loss(), **settings)
    inputs, target, index = next(iter(loaders(NAMES)[0]))
    output = model(inputs, index)
    numbers = torch.stack([target + 0.5] * output.logits.shape[1], 1)
    assert MSLR.accepts(**settings) == method.info.targets
    if strategy == "dynamic":
        with pytest.raises(ValueError, match="MSLR takes class numbers; found regression targets"):
            method.loss(output, numbers)
    else:
        expected = (output.logits - numbers).abs().mean()
        assert torch.equal(method.loss(output, numbers), expected)


def in_a_step(optimizer):
    """The groups that the optimiser sees in a step, here one without gradients."""
    seen = []
    hook = optimizer.register_step_pre_hook(lambda one, *_: seen.extend(one.param_groups))
    optimizer.step()
    hook.remove()
    return seen


def rates(optimizer, model):
    """The learning rate of each modality, found by its parameters, and of the head."""
    found, groups_seen = {}, in_a_step(optimizer)
    for name, module in (*model.encoders.items(), ("head", model.head)):
        own = {id(p) for p in module.parameters()}
        groups = [g for g in groups_seen if own & {id(p) for p in g["params"]}]
        (found[name],) = {float(group["lr"]) for group in groups}
    return found


def made(optimizer=None, names=NAMES[:2], **settings):
    model = net(names, head="late")
    optimizer = optimizer(model) if optimizer else SGD(model.parameters(), lr=0.1)
    return model, optimizer, MSLR(model.encoders, optimizer=optimizer, **settings)


class TestGroups:
    def test_each_parameter_is_in_one_group_with_its_options(self):
        model, optimizer, _ = made(
            lambda model: AdamW(
                [
                    {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.3},
                    {"params": [p for p in model.parameters() if p.ndim < 2], "lr": 0.2},
                ],
                lr=0.1,
                weight_decay=0.0,
            ),
            rates={"a": 0.5, "aa": 2.0},
        )
        groups = in_a_step(optimizer)
        seen = [p for group in groups for p in group["params"]]
        assert {id(p) for p in seen} == {id(p) for p in model.parameters()}
        assert len(seen) == len(list(model.parameters()))
        factor = {"a": 0.5, "aa": 2.0, "head": 1.0}
        for name, module in (*model.encoders.items(), ("head", model.head)):
            own = {id(p): p for p in module.parameters()}
            for group in groups:
                for p in (own[id(p)] for p in group["params"] if id(p) in own):
                    assert group["weight_decay"] == (0.3 if p.ndim > 1 else 0.0)
                    expected = (0.1 if p.ndim > 1 else 0.2) * factor[name]
                    assert group["lr"] == pytest.approx(expected)

    def test_names_of_parameters_go_with_them(self):
        model, optimizer, _ = made(lambda model: SGD(model.named_parameters(), lr=0.1))
        places = {id(p): name for name, p in model.named_parameters()}
        assert len(in_a_step(optimizer)) == 3
        for group in in_a_step(optimizer):
            assert [places[id(p)] for p in group["params"]] == group["param_names"]

    def test_the_state_of_the_optimiser_survives(self):
        model = net(head="late")
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        inputs, *_ = next(iter(loaders()[0]))
        model(inputs).logits.sum().backward()
        optimizer.step()
        before = {p: optimizer.state[p]["momentum_buffer"] for p in model.parameters()}
        MSLR(model.encoders, optimizer=optimizer)
        assert all(optimizer.state[p]["momentum_buffer"] is x for p, x in before.items())

    def test_an_encoder_that_is_not_trained(self):
        model = net(head="late")
        optimizer = SGD(model.encoders["a"].parameters(), lr=0.1)
        with pytest.raises(
            ValueError, match=r"leaves out 6 of the 6 trainable parameters of encoder 'aa'"
        ):
            MSLR(model.encoders, optimizer=optimizer)


class TestStrategies:
    def test_golden_step(self):
        """Two encoders, one step of plain SGD: φ_m ← φ_m - r_m η g."""
        model, optimizer, method = made(strategy="keep", rates={"a": 0.25})
        inputs, target, index = next(iter(loaders()[0]))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        method.before_epoch(0, probe_of(model))
        method.backward(method.loss(model(inputs, index), target))
        method.before_step()
        optimizer.step()
        for name, p in model.named_parameters():
            factor = 0.25 if name.startswith("encoders.a.") else 1.0
            expected = before[name] - factor * 0.1 * p.grad
            torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-8)

    def test_keep_and_smooth(self):
        for strategy, factor in (("keep", 0.04), ("smooth", 0.2)):
            model, optimizer, method = made(strategy=strategy, rates={"aa": 0.04})
            for epoch in range(3):
                method.before_epoch(epoch, probe_of(model))
                method.before_step()
                expected = {"a": 0.1, "aa": 0.1 * factor, "head": 0.1}
                assert rates(optimizer, model) == pytest.approx(expected)

    def test_dynamic_by_hand(self):
        """r_m is what is given times accuracy over its mean in the two epochs before."""
        model, optimizer, method = made(rates={"a": 0.5}, window=2)
        probe = probe_of(model)
        history = {name: [] for name in NAMES[:2]}
        expected = given = {"a": 0.5, "aa": 1.0}
        for epoch in range(6):
            change(model, epoch)
            method.before_epoch(epoch, probe)
            method.before_step()
            if epoch > 0:
                for name in history:
                    history[name].append(accuracy_by_hand(model, name))
            if epoch > 2:
                expected = {
                    name: rate * history[name][-1] / (sum(history[name][-3:-1]) / 2)
                    for name, rate in given.items()
                }
            found = rates(optimizer, model)
            for name, factor in expected.items():
                assert found[name] == pytest.approx(0.1 * factor, rel=1e-9)
                assert float(method.metrics[f"rate/{name}"]) == pytest.approx(factor)
            assert found["head"] == 0.1
        assert expected["a"] != pytest.approx(0.5)
        for name in history:
            assert float(method.metrics[f"accuracy/{name}"]) == pytest.approx(history[name][-1])

    def test_none_right_does_not_end_training(self):
        """Nothing would bring a rate back from zero."""
        model, optimizer, method = made(window=1)
        probe = probe_of(model)
        with torch.no_grad():
            for target in (0, 1, 2):
                model.head.heads["a"].bias[target] = -100.0 if target != 1 else 100.0
        method.before_epoch(1, probe)
        # a validation split without the class that is predicted
        method.before_epoch(2, evenly.Probe(model, without_ones, *loaders()))
        assert rates(optimizer, model)["a"] > 0
        assert method.history[2]["a"] == pytest.approx(0.5 / 18)

    def test_once_for_an_epoch(self):
        model, _, method = made(window=2)
        probe = probe_of(model)
        for epoch in (1, 2, 3):
            change(model, epoch)
            method.before_epoch(epoch, probe)
        factor = dict(method.factor)
        assert factor != {"a": 1.0, "aa": 1.0}
        method.before_epoch(3, probe)
        assert method.factor == factor

    def test_one_modality(self):
        model, optimizer, method = made(names=("a",), rates={"a": 0.3})
        for epoch in range(3):
            method.before_epoch(epoch, probe_of(model, ("a",)))
        assert 0 < rates(optimizer, model)["a"] < math.inf


def probe_of(model, names=NAMES[:2]):
    return evenly.Probe(model, forward, *loaders(names))


def without_ones(model, batch):
    inputs, target, index = batch
    return forward(model, (inputs, target * 0, index))


def change(model, epoch):
    """Other weights for every epoch, without training."""
    torch.manual_seed(epoch)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))


def accuracy_by_hand(model, name):
    data = loaders()[1].dataset
    model.eval()
    right = 0
    for i in range(len(data)):
        z = model.head.heads[name](model.encoders[name](data.inputs[name][i : i + 1]))
        right += int(z.argmax()) == int(data.target[i])
    return max(right, 0.5) / len(data)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: StepLR(optimizer, 2, 0.1),  # multiplies what it finds
        lambda optimizer: CosineAnnealingLR(optimizer, 8),  # so, too, from step to step
        lambda optimizer: LambdaLR(optimizer, lambda n: 1 / (n + 1)),  # writes anew
        lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=8, cycle_momentum=False),
    ],
)
def test_a_scheduler_moves_the_common_rate(scheduler):
    """The encoders' rates follow it, whether it multiplies rates or writes them anew."""
    model, optimizer, method = made(strategy="keep", rates={"a": 0.25, "aa": 3.0})
    plain = SGD(net(head="late").parameters(), lr=0.1)
    ours, theirs = scheduler(optimizer), scheduler(plain)
    seen = set()
    for _ in range(6):
        method.before_step()
        common = plain.param_groups[0]["lr"]
        expected = {"a": 0.25 * common, "aa": 3.0 * common, "head": common}
        assert rates(optimizer, model) == pytest.approx(expected, rel=1e-12)
        seen.add(round(common, 9))
        for part in (optimizer, ours, plain, theirs):
            part.step()
    assert len(seen) > 1


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: LambdaLR(optimizer, lambda n: 1 / (n + 1)),
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 2),
        lambda optimizer: SequentialLR(
            optimizer, [LinearLR(optimizer), ExponentialLR(optimizer, 0.9)], [1]
        ),
        lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=8, cycle_momentum=False),
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
    ],
)
def test_a_scheduler_that_was_made_before(scheduler):
    """The usual order: none of them bears groups that come later."""
    model = net(head="late")
    optimizer, plain = (SGD(part.parameters(), lr=0.1) for part in (model, net(head="late")))
    ours, theirs = scheduler(optimizer), scheduler(plain)
    _method = MSLR(model.encoders, optimizer=optimizer, strategy="keep", rates={"a": 0.25})
    seen = set()
    for _ in range(4):
        common = plain.param_groups[0]["lr"]
        seen.add(common)
        expected = {"a": 0.25 * common, "aa": common, "head": common}
        assert rates(optimizer, model) == pytest.approx(expected, rel=1e-12)
        plain.step()
        for part in (ours, theirs):
            part.step(*[1.0] * isinstance(part, ReduceLROnPlateau))
    assert len(seen) > 1


def test_the_groups_and_state_of_the_optimiser_are_as_without_the_method():
    model, optimizer, _ = made(rates={"a": 0.5})
    plain = SGD(net(head="late").parameters(), lr=0.1)
    optimizer.step()
    assert optimizer.state_dict() == plain.state_dict()
    optimizer.load_state_dict(plain.state_dict())
    optimizer.param_groups[0]["lr"] = 0.7
    assert rates(optimizer, model) == pytest.approx({"a": 0.35, "aa": 0.7, "head": 0.7})


def test_a_step_that_fails_leaves_the_next_as_it_should_be():
    model, optimizer, _method = made(rates={"a": 0.5})

    def fails():
        raise ArithmeticError

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            optimizer.step(fails)
    assert rates(optimizer, model) == pytest.approx({"a": 0.05, "aa": 0.1, "head": 0.1})
    assert len(optimizer.param_groups) == 1


def test_a_step_that_fails_leaves_the_state_as_it_should_be():
    _, optimizer, _method = made(rates={"a": 0.5})

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fails)
    assert len(optimizer.state_dict()["param_groups"]) == 1


def test_a_method_that_is_gone_does_nothing():
    model, optimizer, method = made(rates={"a": 0.5})
    del method
    gc.collect()
    assert rates(optimizer, model) == pytest.approx({"a": 0.1, "aa": 0.1, "head": 0.1})


def test_the_last_of_several_methods_acts():
    """A notebook's cell that is run again does not multiply the rates twice."""
    model, optimizer, _ = made(rates={"a": 0.5})
    _last = MSLR(model.encoders, optimizer=optimizer, rates={"a": 0.3})
    assert rates(optimizer, model) == pytest.approx({"a": 0.03, "aa": 0.1, "head": 0.1})


def test_state_that_an_optimiser_keeps_in_its_groups_goes_on():
    class Counting(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1

    _, optimizer, _ = made(lambda model: Counting(model.parameters(), lr=0.1), rates={"a": 0.5})
    for _ in range(3):
        optimizer.step()
    assert optimizer.param_groups[0]["steps"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("wrap", ["accelerate", "lightning", "fabric", "sam"])
def test_an_optimiser_that_is_wrapped(wrap):
    model = net(head="late")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = SGD(model.parameters(), lr=0.1)
    sam = SAM(model.parameters(), SGD, lr=0.1)
    wrapped = sam if wrap == "sam" else wrappings()[wrap](optimizer)
    _method = MSLR(model.encoders, optimizer=wrapped, rates={"a": 0.25})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    (wrapped if wrap in ("accelerate", "sam") else optimizer).step()
    for name, p in model.named_parameters():
        rate = 0.025 if name.startswith("encoders.a.") else 0.1
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, rate))


def test_an_optimiser_without_rates_by_group():
    with pytest.raises(
        ValueError, match=r"MSLR multiplies .* this LBFGS has a step that needs a closure"
    ):
        made(lambda model: torch.optim.LBFGS(model.parameters()))


def test_adam_does_not_divide_the_rate_out():
    """Which it would do to gradients of another size."""
    model, optimizer, method = made(
        lambda model: AdamW(model.parameters(), lr=0.1, weight_decay=0.0),
        strategy="keep",
        rates={"a": 0.01},
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs, target, index = next(iter(loaders()[0]))
    method.backward(method.loss(model(inputs, index), target))
    method.before_step()
    optimizer.step()
    for name, rate in (("a", 0.001), ("aa", 0.1)):
        key = f"encoders.{name}.5.weight"
        moved = (dict(model.named_parameters())[key].detach() - before[key]).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"window": 3}, [4, 5]),
        ({"strategy": "keep"}, []),
        ({"strategy": "smooth", "rates": {"a": 1.0}}, []),
        ({"strategy": "smooth", "rates": {"a": 0.5}}, [0, 1, 2, 3, 4, 5]),
        ({"window": 3, "rates": {"a": 0.5}}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_when_it_is_due(settings, due):
    method = made(**settings)[2]
    assert [epoch for epoch in range(6) if method.is_due(epoch)] == due


def test_all_rates_at_one_equal_joint_training():
    for strategy in ("keep", "smooth"):
        run = Run("mslr", strategy=strategy, rates=None).train(3)
        assert same(run.model, Run("joint", head="late").train(3).model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"window": 0}, r"MSLR: 'window' must be at least 1; found 0"),
        ({"rates": {"b": 1.0}}, r"'rates' names \['b'\], but the encoders are \['a', 'aa'\]"),
        ({"rates": {"a": 0.0}}, r"MSLR: the rate of 'a' must be finite and above 0; found 0\.0"),
        (
            {"rates": {"a": math.inf}},
            r"MSLR: the rate of 'a' must be finite and above 0; found inf",
        ),
    ],
)
def test_settings_out_of_range(settings, text):
    model = net(head="late")
    with pytest.raises(ValueError, match=text):
        MSLR(model.encoders, optimizer=sgd(model), **settings)
