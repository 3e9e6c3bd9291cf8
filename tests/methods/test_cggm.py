import pytest
import torch
from torch import nn

import evenly
from evenly.methods.cggm import CGGM, TINY, adam, coefficients, cosine, direction_loss
from support import NAMES, Run, batch_of, forward, gradients, linear_of, loaders, net


class TestFormulas:
    def test_coefficients_as_in_the_paper_where_all_improve(self):
        found = coefficients(torch.tensor([0.3, 0.1], dtype=torch.float64))
        assert found.tolist() == pytest.approx([0.25, 0.75])
        found = coefficients(torch.tensor([0.3, 0.1, 0.6], dtype=torch.float64))
        assert found.tolist() == pytest.approx([0.7, 0.9, 0.4])

    def test_changes_that_cancel_do_not_blow_up(self):
        """The quotient of the paper would be -1e8 and 1e8, or 0 / 0."""
        assert coefficients(torch.tensor([0.1, -0.1])).tolist() == pytest.approx([0, 1], abs=1e-6)
        found = coefficients(torch.tensor([-0.1, 0.1 + 1e-7]))
        assert found.tolist() == pytest.approx([1, 0], abs=1e-6)
        assert coefficients(torch.zeros(2)).tolist() == [1.0, 1.0]
        assert coefficients(torch.tensor([-0.2, -0.1])).tolist() == [1.0, 1.0]

    def test_cosine(self):
        one, other = (torch.randn(3, 5, dtype=torch.float64) for _ in range(2))
        expected = nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        torch.testing.assert_close(cosine(one, other), expected, rtol=1e-12, atol=0)

    def test_no_cosine_and_no_gradient_where_one_vanishes(self):
        for one, other in ((0.0, 1.0), (1.0, 0.0)):
            x = torch.full((2, 2), other, requires_grad=True)
            found = cosine(torch.full((2, 2), one), x)
            found.backward()
            assert found.item() == 0
            assert x.grad.isfinite().all()

    def test_direction_loss_by_hand(self):
        share, cosines = torch.tensor([0.25, 0.75]), torch.tensor([0.5, -1.0])
        assert float(direction_loss(share, cosines)) == pytest.approx((0.125 + 1.5) / 2)

    def test_adam_is_pytorchs(self):
        theirs = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        ours = theirs.detach().clone()
        first, second = torch.zeros_like(ours), torch.zeros_like(ours)
        optimizer = torch.optim.Adam([theirs], lr=0.1)
        for step in range(1, 4):
            theirs.grad = torch.randn(4, 3, dtype=torch.float64)
            ours, first, second = adam(ours, theirs.grad, first, second, step, 0.1)
            optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_first_step(names):
    """No direction loss yet: the joint gradients, those of the encoders times ρ c_m."""
    model = net(names).double().eval()
    output, target = batch_of(model)
    joint = torch.autograd.grad(
        nn.functional.cross_entropy(output.logits, target), list(model.parameters())
    )
    expected = dict(zip(dict(model.named_parameters()), joint, strict=True))
    output, target = batch_of(model)
    method = CGGM(model.encoders, rho=1.5, rate=0.1)
    method.backward(method.loss(output, target))
    layers = {name: linear_of(weights) for name, weights in method.classifiers.items()}
    method.before_step()

    accuracy, cosine = {}, {}
    blocks = expected["head.linear.weight"].split(6, dim=1)
    for block, (name, layer) in zip(blocks, layers.items(), strict=True):
        logits = layer(output.features[name].detach())
        accuracy[name] = float((logits.argmax(1) == target).double().mean())
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        nn.functional.cross_entropy(logits, target).backward()
        # of the gradients, where the released code takes the parameters
        cosine[name] = float(
            nn.functional.cosine_similarity(layer.weight.grad.flatten(), block.flatten(), dim=0)
        )
        optimizer.step()
        learnt = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        torch.testing.assert_close(method.classifiers[name], learnt, rtol=1e-10, atol=1e-12)
    total = sum(accuracy.values())  # the accuracy before is 0
    share = {name: (total - gain + TINY) / (total + TINY) for name, gain in accuracy.items()}
    for name, p in model.named_parameters():
        factor = 1.5 * share[name.split(".")[1]] if name.startswith("encoders") else 1
        torch.testing.assert_close(p.grad, expected[name] * factor, rtol=1e-10, atol=1e-14)
    assert {n: float(v) for n, v in method.metrics.items()} == pytest.approx(
        {f"coefficient/{n}": 1.5 * v for n, v in share.items()}
        | {f"accuracy/{n}": v for n, v in accuracy.items()}
        | {f"cosine/{n}": v for n, v in cosine.items()},
        abs=1e-12,
    )


def test_the_direction_loss_has_the_gradient_of_the_cosine():
    """The second step against a double backward through the head's true gradient."""
    model = net().double().eval()
    method = CGGM(model.encoders, lam=0.7)
    method.before_epoch(0)
    output, target = batch_of(model)
    method.backward(method.loss(output, target))
    method.before_step()
    layers = {name: linear_of(weights) for name, weights in method.classifiers.items()}
    share = {name: method.metrics[f"coefficient/{name}"] / method.rho for name in layers}
    model.zero_grad()

    output, target = batch_of(model)
    value = method.loss(output, target)
    value.backward()
    found = gradients(model)

    model.zero_grad()
    output, target = batch_of(model)
    loss = nn.functional.cross_entropy(output.logits, target)
    (fused,) = torch.autograd.grad(loss, model.head.linear.weight, create_graph=True)
    term = sum(share.values())
    for block, (name, layer) in zip(fused.split(6, dim=1), layers.items(), strict=True):
        own = nn.functional.cross_entropy(layer(output.features[name].detach()), target)
        (g,) = torch.autograd.grad(own, layer.weight)
        term = term - share[name] * nn.functional.cosine_similarity(
            g.flatten(), block.flatten(), dim=0
        )
    whole = loss + 0.7 * term / 2
    torch.testing.assert_close(value, whole, rtol=1e-10, atol=0)
    whole.backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-13)


def test_a_solved_batch_does_not_blow_up():
    """Where the loss vanishes its gradient does, and the cosine's would be 0 / 0."""
    head = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b")})
    method = CGGM(head, lam=1.0)
    method.before_epoch(0)
    x = torch.randn(6, 2)
    target = torch.tensor([0, 1, 0, 1, 0, 1])
    for size in (1.0, 30.0, 1e4):
        features = {name: layer(x) for name, layer in head.items()}
        sure = size * nn.functional.one_hot(target, 2) + 1e-3 * sum(features.values())
        method.backward(method.loss(evenly.Output(sure, features), target))
        assert all(p.grad.abs().max() < 10 for p in head.parameters())
        method.before_step()
        head.zero_grad()


def test_lambda_of_zero_leaves_the_joint_loss():
    model = net().double().eval()
    method = CGGM(model.encoders, lam=0.0)
    method.before_epoch(0)
    for _ in range(2):
        output, target = batch_of(model)
        loss = method.loss(output, target)
        assert torch.equal(loss, evenly.Method().loss(output, target))
        method.backward(loss)
        method.before_step()
        model.zero_grad()


def test_improvement_is_that_since_the_last_step():
    model = net().double().eval()
    method = CGGM(model.encoders, rate=0.1)
    method.before_epoch(0)
    before = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        output, target = batch_of(model)
        method.backward(method.loss(output, target))
        method.before_step()
        now = torch.stack([method.metrics[f"accuracy/{n}"] for n in ("a", "aa")])
        found = torch.stack([method.metrics[f"coefficient/{n}"] for n in ("a", "aa")])
        torch.testing.assert_close(found, 1.3 * coefficients(now - before))
        before = now
        model.zero_grad()


@pytest.mark.parametrize("kind", [{"device": "meta"}, {"dtype": torch.float64}])
def test_a_state_is_used_where_the_gradients_are(kind):
    """Loaded on the CPU, as a checkpoint is, for a model elsewhere or of another precision."""
    model = net().eval()
    method = CGGM(model.encoders)
    output, target = forward(model, next(iter(loaders()[0])))
    method.backward(method.loss(output, target))
    method.before_step()
    state = method.state_dict()
    moved = net().eval().to(**kind)
    method = CGGM(moved.encoders)
    method.load_state_dict(state)
    for _ in range(2):
        x = torch.ones(8, 1, 5).to(**kind)
        features = {name: encoder(x) for name, encoder in moved.encoders.items()}
        output = evenly.Output(moved.head(features)[0], features)
        method.backward(method.loss(output, target.to(x.device)))
        method.before_step()
        moved.zero_grad()
    like = next(moved.parameters())
    tables = (method.classifiers, method.first, method.second)
    for found in (*(part for table in tables for part in table.values()), method.shares):
        assert (found.device, found.dtype) == (like.device, like.dtype)


def test_one_modality_is_left_alone():
    one, joint = Run("cggm", names=("a",)).train(2), Run("joint", names=("a",)).train(2)
    assert torch.equal(one.model.head.linear.weight, joint.model.head.linear.weight)


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"rho": 0.0}, r"CGGM: 'rho' must be finite and above 0; found 0\.0\."),
            ({"rate": -0.1}, r"CGGM: 'rate' must be finite and above 0; found -0\.1\."),
            ({"lam": -1.0}, r"CGGM: 'lam' must be finite and not negative; found -1\.0\."),
            ({"lam": float("inf")}, r"CGGM: 'lam' must be finite and not negative; found inf\."),
        ],
    )
    def test_settings(self, settings, text):
        with pytest.raises(ValueError, match=text):
            CGGM(net().encoders, **settings)

    def test_a_step_without_a_loss(self):
        with pytest.raises(RuntimeError, match=r"without a call of CGGM\.loss"):
            CGGM(net().encoders).before_step()
