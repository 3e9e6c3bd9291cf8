import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from evenly.methods.balm import BALM, alignment, divergence, progress
from evenly.nn import LateFusion
from evenly.nn.heads import BALMHead
from support import NAMES, Run, Toy, forward, net, same


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestFormulas:
    def test_divergence_by_hand(self):
        """From (¾, ¼) to (½, ½), and from a prediction to itself."""
        unimodal, fused = t((math.log(3), 0.0), (2.0, 1.0)), t((0.0, 0.0), (5.0, 4.0))
        expected = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0]
        assert divergence(unimodal, fused).tolist() == pytest.approx(expected, abs=1e-12)

    def test_progress_is_what_was_gained_since_the_step_before(self):
        assert progress(t(0.0, 2.0, 1.0), t(0.5, 1.5, 3.0)).tolist() == [0.5, 0.5, -2.0]

    def test_alignment_by_hand(self):
        assert float(alignment(t(0.5, 0.5), t(-1.0, 0.4))) == pytest.approx(0.35)


class TestHead:
    def head(self):
        torch.manual_seed(0)
        return BALMHead({"a": 3, "b": 5}, 4).double()

    def test_logits_by_hand(self):
        """A modality that is missing counts as zeros, and has no logits."""
        head = self.head()
        x = {"a": torch.randn(2, 3).double(), "b": torch.randn(2, 5).double()}
        assert head.context.out_features == 2
        for some in (x, {"b": x["b"]}):
            seen = torch.cat([some.get("a", torch.zeros(2, 3)), some["b"]], 1)
            context = head.context(seen).relu()
            calibrated = {
                name: torch.stack(
                    [
                        (1 + head.gates[name](h).sigmoid()) * f
                        for h, f in zip(context, value, strict=True)
                    ]
                )
                for name, value in some.items()
            }
            z, own = head(some)
            joined = torch.cat([calibrated.get("a", torch.zeros(2, 3)), calibrated["b"]], 1)
            torch.testing.assert_close(z, head.linear(joined))
            assert own.keys() == some.keys()
            for name, value in calibrated.items():
                torch.testing.assert_close(
                    own[name], head.heads[name](head.hidden[name](value).relu())
                )

    def test_encoders_learn_from_the_fused_prediction_and_by_their_own_features_alone(self):
        head = self.head()
        x = {name: torch.randn(1, width).double() for name, width in head.widths.items()}
        x = {name: value.requires_grad_() for name, value in x.items()}
        z, own = head(x)
        torch.stack(list(own.values())).sum().backward(retain_graph=True)
        assert x["a"].grad is x["b"].grad is None
        context = head.context(torch.cat(list(x.values()), 1).detach()).relu()
        weight = head.linear.weight[:, :3].sum(0) * (1 + head.gates["a"](context).sigmoid())
        torch.testing.assert_close(torch.autograd.grad(z.sum(), x["a"])[0], weight)

    def test_last_layers_are_of_one_shape(self):
        fused, own = self.head().last_layers()
        assert fused.shape == (4, 8)
        assert {name: tuple(weight.shape) for name, weight in own.items()} == {
            "a": (4, 8),
            "b": (4, 8),
        }


def straight(names=NAMES[:2], **settings):
    model = net(names, head="balm").double().eval()
    return model, BALM(model.encoders, head=model.head, **settings)


def batch_of(model, names, step):
    rows = torch.arange(step, step + 12)
    inputs = {name: x[rows].double() for name, x in Toy(36, names).inputs.items()}
    return forward(model, (inputs, Toy(36, names).target[rows], rows))


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_steps(names):
    """Against plain loops over modalities and samples; shares have 1e-8 above and below."""
    model, method = straight(names, rho=1.7, tau=0.9)
    method.before_epoch(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    before, shares, seen = {}, dict.fromkeys(names, 0.0), set()
    for step in range(8):
        output, target = batch_of(model, names, step)
        loss = cross_entropy(output.logits, target)
        for z in output.unimodal.values():
            loss = loss + cross_entropy(z, target)
        for name in names:
            own, fused = model.head.heads[name].weight.detach(), model.head.linear.weight
            cos = cosine_similarity(own.flatten(), fused.flatten(), dim=0)
            loss = loss + 0.9 / len(names) * abs(shares[name] * cos)
        found = method.loss(output, target)
        torch.testing.assert_close(found, loss, rtol=1e-10, atol=0)
        plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

        now, gained = {}, {}
        for name in names:
            p, q = output.unimodal[name].softmax(1), output.logits.softmax(1)
            each = [
                sum(a * math.log(a / b) for a, b in zip(*row, strict=True))
                for row in zip(p.tolist(), q.tolist(), strict=True)
            ]
            now[name] = sum(each) / len(each)
            gained[name] = max(before.get(name, 2 * now[name]) - now[name], 0)
        total = sum(gained.values())
        shares = {n: (total - gained[n] + 1e-8) / (total + 1e-8) for n in names}
        seen |= {round(share, 3) for share in shares.values()}
        before = now

        method.backward(found)
        method.before_step()
        for (key, p), grad in zip(model.named_parameters(), plain, strict=True):
            factor = 1.7 * shares[key.split(".")[1]] if key.startswith("encoders") else 1
            torch.testing.assert_close(p.grad, grad * factor, rtol=1e-8, atol=1e-11)
        assert method.distance.tolist() == pytest.approx(list(now.values()), rel=1e-9)
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) > 3


def test_samples_that_lack_a_modality_do_not_count_in_its_distance():
    model, method = straight()
    inputs = {name: x[:6].double() for name, x in Toy(6).inputs.items()}
    here = torch.tensor([True, False, True, True, False, False])
    output = LateFusion.forward(model, inputs, {"aa": here})
    method.loss(output, Toy(6).target)
    method.before_step()
    expected = divergence(output.unimodal["aa"][here], output.logits[here]).mean()
    assert float(method.distance[1]) == pytest.approx(expected.item(), rel=1e-9)


def test_a_modality_that_is_missing_keeps_its_distance():
    model, method = straight()
    method.before_epoch(0)
    for name in (None, "a"):
        inputs = {n: x[:6].double() for n, x in Toy(6).inputs.items() if n != name}
        output, target = forward(model, (inputs, Toy(6).target, torch.arange(6)))
        method.backward(method.loss(output, target))
        before = method.distance.clone()
        method.before_step()
        assert (method.distance[0] == before[0]) == (name == "a")
        model.zero_grad()


def test_one_modality_is_trained_jointly():
    run, joint = Run("balm", names=("a",)), Run("joint", names=("a",), head="balm")
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rho": 0.0}, r"BALM: 'rho' must be finite and above 0; found 0\.0"),
        ({"tau": -0.1}, r"BALM: 'tau' must be finite and not negative; found -0\.1"),
        ({"head": nn.Linear(2, 2)}, "BALM compares the head's last layers, but Linear has no"),
    ],
)
def test_messages(settings, text):
    model = net(head="balm")
    with pytest.raises(ValueError, match=text):
        BALM(model.encoders, **{"head": model.head, **settings})
