import math

import pytest
import torch

from evenly.methods.arl import ARL, findings, weights
from support import NAMES, Run, batch_of, gradients, net


class TestFormulas:
    def test_findings_by_hand(self):
        flat, sure = [[0.0, 0.0], [0.0, 0.0]], [[3.0, -1.0], [-2.0, 1.0]]
        p = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(3))
        entropy = -sum(q * math.log(q) + (1 - q) * math.log(1 - q) for q in p)
        found = findings(torch.tensor([flat, sure], dtype=torch.float64))
        assert found[0].tolist() == pytest.approx([0, 7])
        assert found[1].tolist() == pytest.approx([2 * math.log(2), entropy])

    def test_two_modalities_as_in_the_released_code(self):
        d, t = (0.8, 0.2), 8.0
        inverse = [1 / 0.6, 1 / 0.4]
        u = [x / sum(inverse) for x in inverse]
        scores = [math.exp(t * d[1] * u[0]), math.exp(t * d[0] * u[1])]
        found = weights(torch.tensor([8.0, 2.0]), torch.tensor([3.0, 2.0]), t)
        assert found.tolist() == pytest.approx([s / sum(scores) for s in scores])

    def test_shares_of_entropy_have_a_floor(self):
        u = [1 / 0.999, 1 / 0.3]
        ahead = 8 * 0.5 * (u[1] - u[0]) / sum(u)
        found = weights(torch.ones(2), torch.tensor([0.999, 0.001]), 8.0)
        assert float(found[1]) == pytest.approx(1 / (1 + math.exp(-ahead)))

    def test_the_certain_one_and_the_one_depended_on_least_learn_most(self):
        assert weights(torch.ones(3), torch.tensor([3.0, 2.0, 3.0]), 8.0).argmax() == 1
        assert weights(torch.tensor([3.0, 2.0, 1.0]), torch.ones(3), 8.0).argmax() == 2

    def test_weights_are_finite_and_add_up_to_one(self):
        found = weights(torch.zeros(3), torch.zeros(3), 8.0)
        assert found.tolist() == pytest.approx([1 / 3] * 3)


def test_golden_step():
    """Against the formula in plain loops; scaled are all of an encoder's gradients."""
    torch.manual_seed(0)  # dropout
    model = net(NAMES[:3]).double()
    method = ARL(model.encoders, gamma=4.0, start=0)
    method.before_epoch(1)
    output, target = batch_of(model)
    loss = method.loss(output, target)

    alone = {}
    for name in NAMES[:3]:  # the fusion itself, with zeros in place of the others
        kept = [x if n == name else torch.zeros_like(x) for n, x in output.features.items()]
        alone[name] = model.head.linear(torch.cat(kept, 1))
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(output.logits, target)
    expected = expected + 4 * sum(cross_entropy(z, target) for z in alone.values())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)

    method.backward(loss)
    alone = {name: z.detach() for name, z in alone.items()}
    before = gradients(model)
    method.before_step()
    d = {n: float(z.abs().sum(1).mean()) for n, z in alone.items()}
    h = {
        n: float(torch.distributions.Categorical(logits=z).entropy().mean())
        for n, z in alone.items()
    }
    inverse = {n: 1 / max(h[n] / sum(h.values()), 0.2) for n in h}
    score = {
        n: math.exp(8 * (1 - d[n] / sum(d.values())) / 2 * inverse[n] / sum(inverse.values()))
        for n in d
    }
    for name, p in model.named_parameters():
        m = name.split(".")[1]
        factor = 1 + score[m] / sum(score.values()) if name.startswith("encoders") else 1
        torch.testing.assert_close(p.grad, before[name] * factor, rtol=1e-10, atol=1e-14)


def test_scaled_after_start_only():
    method = ARL(net().encoders, start=2)
    assert [method.is_due(epoch) for epoch in range(5)] == [False, False, False, True, True]


def test_a_run_resumed_within_an_epoch_is_still_scaled():
    method, fresh = ARL(net().encoders), ARL(net().encoders)
    method.before_epoch(7)
    fresh.load_state_dict(method.state_dict())
    assert fresh.is_due(fresh.epoch)


def test_one_modality_is_not_scaled():
    run = Run("arl", names=("a",)).train(2)
    assert run.method.metrics == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("gamma", -0.5),
        ("gamma", math.inf),
        ("start", -1),
    ],
)
def test_settings_out_of_range(name, value):
    text = rf"ARL: '{name}' must be finite and not negative; found {value}\."
    with pytest.raises(ValueError, match=text):
        ARL(net().encoders, **{name: value})
