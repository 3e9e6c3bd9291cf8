import math

import pytest
import torch
from torch import nn

import evenly
from evenly import OGMGE
from evenly.methods.ogm import modulation
from evenly.modulation import discrepancy, scores
from support import batch_of, forward, gradients, loaders, net, sgd, train


class TestFormulas:
    def test_scores_by_hand(self):
        log = math.log
        sure = [[log(0.7), log(0.2), log(0.1)], [log(0.5), log(0.25), log(0.25)]]
        flat = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        found = scores(torch.tensor([sure, flat]), torch.tensor([0, 2]))
        torch.testing.assert_close(found, torch.tensor([0.7 + 0.25, 2 / 3]))

    def test_two_modalities_as_in_the_paper(self):
        ratio = discrepancy(torch.tensor([40.0, 20.0]))
        assert ratio.tolist() == [2.0, 0.5]
        k = modulation(ratio, 0.8)
        assert float(k[0]) == pytest.approx(1 - math.tanh(0.8 * 2))
        assert float(k[1]) == 1.0

    def test_three_modalities_compare_with_the_mean_of_the_others(self):
        ratio = discrepancy(torch.tensor([6.0, 3.0, 1.0]))
        assert ratio.tolist() == pytest.approx([6 / 2, 3 / 3.5, 1 / 4.5])
        k = modulation(ratio, 0.1)
        assert k[1:].tolist() == [1.0, 1.0]

    def test_scores_are_not_changed_in_place(self):
        score = torch.tensor([40.0, 20.0])
        modulation(discrepancy(score), 0.8)
        assert score.tolist() == [40.0, 20.0]

    def test_a_score_of_zero_gives_no_nan(self):
        k = modulation(discrepancy(torch.tensor([1.0, 0.0])), 0.0)
        assert k.tolist() == [1.0, 1.0]


def one_step(**settings):
    """Gradients of one batch before and after modulation, and the coefficients expected."""
    torch.manual_seed(0)  # dropout
    model = net().double()
    method = OGMGE(model.encoders, **settings)
    method.before_epoch(0)
    output, target = batch_of(model)
    method.backward(method.loss(output, target))
    before = gradients(model)
    method.before_step()
    s = [
        float(output.unimodal[n].detach().softmax(1)[range(24), target].sum()) for n in ("a", "aa")
    ]
    alpha = settings["alpha"]
    k = [1 - math.tanh(alpha * s[m] / s[1 - m]) if s[m] > s[1 - m] else 1.0 for m in (0, 1)]
    return model, before, dict(zip(("a", "aa"), k, strict=True)), method


def test_golden_step_without_noise():
    """Weights of the encoder ahead are damped; biases, norms, the other and the head are not."""
    model, before, k, method = one_step(alpha=0.8, noise=False)
    assert min(k.values()) < 1
    for name, p in model.named_parameters():
        modality = name.split(".")[1] if name.startswith("encoders") else None
        factor = k[modality] if modality and p.ndim > 1 else 1.0
        torch.testing.assert_close(p.grad, before[name] * factor, rtol=1e-6, atol=1e-9)
    assert {n: float(v) for n, v in method.metrics.items()} == pytest.approx(
        {f"coefficient/{n}": v for n, v in k.items()}
    )


def test_noise_has_the_spread_of_each_gradient():
    """GE: N(0, std(g)²), with the spread before damping, for both modalities."""
    model = nn.ModuleDict({n: nn.Linear(300, 300, bias=False) for n in ("a", "b")})
    method = OGMGE(model, alpha=0.8)
    method.before_epoch(0)
    logits = {"a": torch.tensor([[9.0, 0.0]]), "b": torch.tensor([[0.0, 0.0]])}
    features = {name: torch.zeros(1, 1) for name in logits}
    method.loss(evenly.Output(logits["a"], features, logits), torch.tensor([0]))
    before = {}
    for name, layer in model.items():
        layer.weight.grad = torch.randn(300, 300) * 3.0
        before[name] = layer.weight.grad.clone()
    method.before_step()
    ratio = float(logits["a"].softmax(1)[0, 0]) / 0.5
    for name, k in (("a", 1 - math.tanh(0.8 * ratio)), ("b", 1.0)):
        noise = model[name].weight.grad - k * before[name]
        assert float(noise.std()) == pytest.approx(3.0, rel=0.02)
        assert abs(float(noise.mean())) < 0.05


def test_noise_differs_from_step_to_step_but_not_from_run_to_run():
    def two_steps():
        model = nn.ModuleDict({n: nn.Linear(5, 5) for n in ("a", "b")})
        method = OGMGE(model, alpha=0.5)
        method.before_epoch(0)
        logits = {"a": torch.tensor([[9.0, 0.0]]), "b": torch.tensor([[0.0, 0.0]])}
        features = {name: torch.zeros(1, 1) for name in logits}
        found = []
        for _ in range(2):
            method.loss(evenly.Output(logits["a"], features, logits), torch.tensor([0]))
            for layer in model.values():
                layer.weight.grad = torch.arange(25.0).view(5, 5)
            method.before_step()
            found.append(torch.stack([layer.weight.grad for layer in model.values()]))
        return found

    (one, other), again = two_steps(), two_steps()
    assert not (one == other).any()
    assert torch.equal(one, again[0])
    assert torch.equal(other, again[1])


def test_only_in_its_epochs():
    method = OGMGE(net().encoders, start=2, end=4)
    assert [method.is_due(epoch) for epoch in range(7)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_run_resumed_within_an_epoch_is_still_modulated():
    """A loop need not call before_epoch again for the epoch in which it was saved."""
    method = OGMGE(net().encoders)
    method.before_epoch(3)
    fresh = OGMGE(net().encoders)
    fresh.load_state_dict(method.state_dict())
    assert fresh.is_due(fresh.epoch)


def test_one_modality_is_left_alone():
    model, plain = net(("a",)), net(("a",))
    train(model, OGMGE(model.encoders), sgd(model), 2, names=("a",))
    train(plain, evenly.Method(), sgd(plain), 2, names=("a",))
    assert torch.equal(model.head.linear.weight, plain.head.linear.weight)


def test_a_validation_that_asks_for_the_loss_does_not_count():
    def coefficients(validate):
        torch.manual_seed(0)
        model = net()
        method = OGMGE(model.encoders, alpha=0.8)
        method.before_epoch(0)
        train_loader, val_loader = loaders()
        output, target = forward(model, next(iter(train_loader)))
        method.backward(method.loss(output, target))
        if validate:
            with torch.no_grad():
                for batch in val_loader:
                    method.loss(*forward(model, batch))
        method.before_step()
        return {name: float(k) for name, k in method.metrics.items()}

    assert coefficients(validate=True) == coefficients(validate=False)


class TestMessages:
    def test_no_unimodal_logits(self):
        method = OGMGE(net().encoders)
        method.before_epoch(0)
        features = {name: torch.zeros(2, 1) for name in ("a", "aa")}
        output = evenly.Output(torch.zeros(2, 3), features)
        with pytest.raises(ValueError, match=r"needs `Output.unimodal`; found None.*split_linear"):
            method.loss(output, torch.zeros(2, dtype=torch.int64))

    def test_a_modality_without_logits(self):
        method = OGMGE(net().encoders)
        method.before_epoch(0)
        z = torch.zeros(2, 3)
        output = evenly.Output(z, {"a": torch.zeros(2, 1)}, {"a": z})
        with pytest.raises(ValueError, match=r"`Output.unimodal` lacks \['aa'\]"):
            method.loss(output, torch.zeros(2, dtype=torch.int64))

    def test_a_step_without_a_loss(self):
        method = OGMGE(net().encoders)
        method.before_epoch(0)
        with pytest.raises(RuntimeError, match=r"without a call of OGMGE\.loss"):
            method.before_step()

    def test_an_end_before_the_start(self):
        with pytest.raises(ValueError, match="'end' must not be before 'start' = 5; found 4"):
            OGMGE(net().encoders, start=5, end=4)

    @pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
    def test_alpha_out_of_range(self, alpha):
        text = rf"OGMGE: 'alpha' must be finite and not negative; found {alpha}\."
        with pytest.raises(ValueError, match=text):
            OGMGE(net().encoders, alpha=alpha)
