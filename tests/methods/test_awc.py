import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from evenly import Probe
from evenly.methods.awc import AWC, accuracy, constrain_, correlation, strong
from evenly.nn import LateFusion
from support import NAMES, Run, Toy, forward, loaders, net, same


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestFormulas:
    @pytest.mark.parametrize(
        ("contribution", "expected"),
        [
            ([0.2, 0.6], [False, True]),
            ([0.6, 0.2], [True, False]),
            ([0.5, 0.5], [False, False]),
            ([0.1], [False]),
            ([0.5, 0.05, 0.55, 0.1], [True, False, True, False]),
            ([0.1, 0.9, 0.2], [False, True, False]),
            ([0.1, 0.9, 0.9], [False, True, True]),
        ],
    )
    def test_who_is_strong(self, contribution, expected):
        assert strong(contribution) == expected

    def test_correlation_by_hand(self):
        """3 / √(2 · 14/3) of the first output, -1 of the second."""
        prediction = t([1, 3], [2, 2], [3, 1])
        target = t([1, 10], [2, 20], [4, 30])
        expected = 3 / math.sqrt(2 * 14 / 3) - 1
        assert float(correlation(prediction, target)) == pytest.approx(expected, rel=1e-12)
        assert float(correlation(5 - 2 * prediction, target)) == pytest.approx(-expected, rel=1e-12)

    def test_a_constant_output_tells_nothing(self):
        """Also where its last digits differ, as those of other batches do."""
        constant = 0.7 + 1e-8 * torch.randn(9, 1, dtype=torch.float64)
        assert correlation(constant, torch.arange(9.0)[:, None]) == 0
        assert correlation(torch.zeros(9, 1), torch.arange(9.0)[:, None]) == 0

    def test_accuracy_is_of_labelled_samples(self):
        right, here = t([1], [0], [0]), t([1], [1], [0])
        assert accuracy(right, here) == 0.5
        assert accuracy(0 * here, 0 * here) == 0

    def test_the_terms_gradient(self):
        layer = nn.Linear(2, 2).double()
        start = {name: p.detach() + 0.1 for name, p in layer.named_parameters()}
        fisher = {"weight": torch.rand(2, 2, dtype=torch.float64)}
        layer.weight.grad, layer.bias.grad = torch.ones(2, 2).double(), torch.ones(2).double()
        term = 30 * (fisher["weight"] * (layer.weight - start["weight"]) ** 2).sum() / 2
        (slope,) = torch.autograd.grad(term, layer.weight)
        constrain_(layer, start, fisher, 30.0)
        torch.testing.assert_close(layer.weight.grad, 1 + slope, rtol=1e-12, atol=0)
        assert layer.bias.grad.tolist() == [1, 1]


def straight(names=NAMES[:2], **settings):
    model = net(names).double().eval()
    return model, AWC(model.encoders, **settings), Probe(model, as_double, *loaders(names))


def as_double(model, batch):
    inputs, target, index = batch
    return forward(model, ({name: x.double() for name, x in inputs.items()}, target, index))


def slow_contributions(model, names):
    """Mean gain in accuracy over all orders of arrival, a modality that is absent being zeros."""
    from itertools import permutations

    rows = Toy(36, names, seed=1)
    x = {name: value.double() for name, value in rows.inputs.items()}
    features = {name: model.encoders[name](x[name]) for name in names}

    def right(some):
        if not some:
            return 0.0
        shown = {n: f if n in some else torch.zeros_like(f) for n, f in features.items()}
        guesses = model.head(shown)[0].argmax(1).tolist()
        return sum(a == b for a, b in zip(guesses, rows.target.tolist(), strict=True)) / 36

    orders = list(permutations(names))
    found = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            gain = right(set(order[: place + 1])) - right(set(order[:place]))
            found[name] += gain / len(orders)
    return found


def slow_information(model, names):
    """Batch by batch in the order of the data set, number by number."""
    rows = Toy(36, names, seed=1)
    batches = list(DataLoader(rows, 8))
    found = {key: torch.zeros_like(p) for key, p in model.encoders.named_parameters()}
    for batch in batches:
        output, target = as_double(model, batch)
        loss = nn.functional.cross_entropy(output.logits, target)
        grads = torch.autograd.grad(loss, list(model.encoders.parameters()))
        for key, grad in zip(found, grads, strict=True):
            found[key] += grad**2 / len(batches)
    return found


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:4]])
def test_golden_epochs(names):
    """Two constrained epochs and one free, with the term in the loss."""
    model, method, probe = straight(names, strong=400.0, weak=100.0, window=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = set()
    for epoch in range(3):
        expected = slow_contributions(model, names)
        information = slow_information(model, names)
        start = {key: p.detach().clone() for key, p in model.encoders.named_parameters()}
        method.before_epoch(epoch, probe)
        if epoch < 2:
            assert method.contribution == pytest.approx(expected, rel=1e-9)
            are_strong = strong(list(expected.values()))
            assert list(method.strength.values()) == [400 if x else 100 for x in are_strong]
            found.update(method.strength.values())
        for batch in probe.loaders["train"]:
            output, target = as_double(model, batch)
            loss = nn.functional.cross_entropy(output.logits, target)
            for key, p in model.encoders.named_parameters():
                alpha = method.strength[key.split(".")[0]] if epoch < 2 else 0
                loss = loss + alpha * (information[key] * (p - start[key]) ** 2).sum() / 2
            plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            method.backward(method.loss(output, target))
            method.before_step()
            for p, grad in zip(model.parameters(), plain, strict=True):
                torch.testing.assert_close(p.grad, grad, rtol=1e-8, atol=1e-12)
            optimizer.step()
            optimizer.zero_grad()
    assert found == {400, 100}


def test_an_implicit_step_has_the_terms_gradient_where_it_ends():
    """θ' = θ - lr (g + α F (θ' - θ_0)), each with its own rate; α as large as one likes."""
    model = net().double().eval()
    rates = {"a": 0.1, "aa": 0.3}
    groups = [{"params": list(model.encoders[n].parameters()), "lr": lr} for n, lr in rates.items()]
    optimizer = torch.optim.SGD(groups)
    method = AWC(model.encoders, strong=1e6, weak=1e5, implicit=True, optimizer=optimizer)
    probe = Probe(model, as_double, *loaders())
    method.before_epoch(0, probe)
    for batch in probe.loaders["train"]:
        output, target = as_double(model, batch)
        loss = method.loss(output, target)
        before = {key: p.detach().clone() for key, p in model.encoders.named_parameters()}
        plain = torch.autograd.grad(loss, list(model.encoders.parameters()), retain_graph=True)
        method.backward(loss)
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
        for (key, p), grad in zip(model.encoders.named_parameters(), plain, strict=True):
            name, own = key.split(".", 1)
            weight = method.strength[name] * method.fisher[name][own]
            slope = grad + weight * (p - method.start[name][own])
            torch.testing.assert_close(p, before[key] - rates[name] * slope, rtol=1e-8, atol=1e-9)


def test_of_numbers_the_worth_is_correlation():
    """The second modality's features are nothing: the first has all of the correlation."""
    model = LateFusion(dict(net().encoders), 1).eval()
    for p in model.encoders["aa"][-1].parameters():
        p.data.zero_()

    def numbers(model, batch):
        inputs, target, _ = batch
        return model(inputs), 0.5 * target

    probe = Probe(model, numbers, *loaders())
    method = AWC(model.encoders, criterion=lambda z, y: nn.functional.mse_loss(z[:, 0], y))
    method.before_epoch(0, probe)
    rows = Toy(36, seed=1)
    logits = model(rows.inputs).logits[:, 0].detach()
    expected = torch.corrcoef(torch.stack([logits, rows.target.float()]))[0, 1]
    assert method.contribution["a"] == pytest.approx(float(expected), rel=1e-5)
    assert method.contribution["aa"] == 0


def test_outside_of_the_window_nothing_is_kept_or_looked_up():
    run = Run("awc", window=1).train(1)
    assert run.method.fisher
    run.probe = None
    run.train(2, start=1)
    assert run.method.fisher == run.method.start == run.method.strength == {}


def test_one_modality_is_trained_jointly():
    assert same(*(Run(name, names=("a",)).train(2).model for name in ("awc", "joint")))


def test_a_sum_that_overflows_constrains_nothing():
    model, method, probe = straight()
    model.encoders["a"][0].weight.register_hook(lambda grad: grad * 1e200)
    method.before_epoch(0, probe)
    assert not method.fisher["a"]["0.weight"].any()
    assert method.fisher["aa"]["0.weight"].any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"strong": -1.0}, r"AWC: 'strong' must be finite and not negative; found -1\.0"),
        ({"weak": math.inf}, "AWC: 'weak' must be finite and not negative; found inf"),
        ({"window": -1}, "AWC: 'window' must be not negative; found -1"),
        ({"implicit": True}, "AWC: 'implicit' needs the learning rate; found no optimizer"),
        (
            {"implicit": True, "optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())},
            "AWC: the optimiser leaves out 6 of the 6 trainable parameters of encoder 'a'",
        ),
    ],
)
def test_messages(settings, text):
    with pytest.raises(ValueError, match=text):
        AWC(net().encoders, **settings)
