import math

import pytest
import torch

import evenly
from evenly.methods.mlb import MLB, lag, modulation
from support import batch_of, gradients, net, sgd, train


class TestFormulas:
    def test_two_modalities_as_in_the_paper(self):
        ratio = lag(torch.tensor([40.0, 20.0]))
        assert ratio.tolist() == [0.5, 2.0]
        k = modulation(ratio, 0.8, 2.0)
        assert k.tolist() == pytest.approx([1 - math.tanh(0.4), 1 + math.tanh(0.8)])

    def test_three_modalities_compare_with_the_mean_of_the_others(self):
        assert lag(torch.tensor([6.0, 3.0, 1.0])).tolist() == pytest.approx([2 / 6, 3.5 / 3, 4.5])

    def test_beta_caps_who_is_behind_and_no_other(self):
        k = modulation(torch.tensor([0.5, 1.0, 3.0, 1e9]), 1.0, 5.0)
        assert k.tolist() == pytest.approx([1 - math.tanh(0.5), 1, 1 + 4 * math.tanh(2), 5])
        assert modulation(torch.tensor([1e9]), 1.0, 1.0).tolist() == [1.0]

    def test_beta_below_1_damps_who_is_behind_too(self):
        """As the released script for UCF has it: 0.5."""
        k = modulation(torch.tensor([0.5, 3.0, 1e9]), 1.0, 0.5)
        assert k.tolist() == pytest.approx([1 - math.tanh(0.5), 1 - 0.5 * math.tanh(2), 0.5])

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_a_score_of_zero_gives_no_nan(self, alpha):
        k = modulation(lag(torch.tensor([20.0, 0.0])), alpha, 2.0)
        assert k.tolist() == pytest.approx([1 - math.tanh(alpha), 2.0 if alpha else 1.0])


def test_golden_step():
    """All of an encoder's gradients are scaled, biases too; the heads' are not."""
    torch.manual_seed(0)  # dropout
    model = net(head="multi").double()
    method = MLB(model.encoders, alpha=0.8, beta=3.0)
    output, target = batch_of(model)
    loss = method.loss(output, target)
    found = [torch.log_softmax(z, 1) for z in (output.logits, *output.unimodal.values())]
    expected = -sum(z[range(24), target].mean() for z in found)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    method.backward(loss)
    before = gradients(model)
    method.before_step()
    s = [
        float(output.unimodal[n].detach().softmax(1)[range(24), target].sum()) for n in ("a", "aa")
    ]
    k = {}
    for m, name in enumerate(("a", "aa")):
        change = math.tanh(0.8 * (s[1 - m] / s[m] - 1))
        k[name] = 1 + (2 * change if change > 0 else change)
    assert min(k.values()) < 1 < max(k.values())
    for name, p in model.named_parameters():
        factor = k[name.split(".")[1]] if name.startswith("encoders") else 1.0
        # the scores are of single precision
        torch.testing.assert_close(p.grad, before[name] * factor, rtol=1e-6, atol=0)
    assert {n: float(v) for n, v in method.metrics.items()} == pytest.approx(
        {f"coefficient/{n}": v for n, v in k.items()}
    )


def test_one_modality_is_trained_with_both_losses_and_no_more():
    model, plain = net(("a",), head="multi"), net(("a",), head="multi")
    train(model, MLB(model.encoders), sgd(model), 2, names=("a",))
    uniform = evenly.METHODS["multi_loss"](plain.encoders)
    train(plain, uniform, sgd(plain), 2, names=("a",))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"alpha": -0.1}, r"MLB: 'alpha' must be finite and not negative; found -0\.1\."),
            ({"alpha": math.inf}, r"MLB: 'alpha' must be finite and not negative; found inf\."),
            ({"beta": 0.0}, r"MLB: 'beta' must be finite and above 0; found 0\.0\."),
            ({"beta": math.inf}, r"MLB: 'beta' must be finite and above 0; found inf\."),
            ({"weight": -1.0}, r"MLB: 'weight' must be finite and not negative; found -1\.0\."),
        ],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            MLB(net(head="multi").encoders, **settings)

    def test_a_step_without_a_loss(self):
        with pytest.raises(RuntimeError, match=r"without a call of MLB\.loss"):
            MLB(net(head="multi").encoders).before_step()


def test_scores_that_nothing_trains_are_refused():
    with pytest.raises(ValueError, match=r"MLB: 'weight' is 0, .* or alpha=0 as well\."):
        MLB(net(head="multi").encoders, weight=0.0)
    assert MLB(net(head="multi").encoders, weight=0.0, alpha=0.0).info.unimodal == "leaves"
