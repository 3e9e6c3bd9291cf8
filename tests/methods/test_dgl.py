import pytest
import torch
from torch import nn

import evenly
from evenly import METHODS
from support import Run, gradients

DGL = METHODS["dgl"]
TARGET = torch.tensor([0, 1, 2, 0, 1])


class Gated(nn.Module):
    """Encoders and a fusion that is neither linear nor free of interactions."""

    def __init__(self, names):
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(3, 4) for name in names})
        self.fusion = nn.Sequential(nn.Linear(4 * len(names), 5), nn.Tanh(), nn.Linear(5, 3))

    def fuse(self, features):
        some = next(iter(features.values()))
        parts = [features.get(name, torch.zeros_like(some)) for name in self.encoders]
        return self.fusion(torch.cat(parts, 1) * parts[0].sigmoid().repeat(1, len(parts)))

    def forward(self, inputs):
        features = {name: self.encoders[name](x) for name, x in inputs.items()}
        return evenly.Output(self.fuse(features), features, fuse=self.fuse)


def model_and_inputs(names):
    torch.manual_seed(0)
    inputs = {name: torch.randn(5, 3, dtype=torch.float64) for name in names}
    return Gated(names).double(), inputs


def two_backwards(model, inputs, alpha):
    """The paper's procedure: unimodal backward, the fusion's gradients dropped, fused backward."""
    model.zero_grad()
    features = {name: model.encoders[name](x) for name, x in inputs.items()}
    unimodal = alpha * sum(
        nn.functional.cross_entropy(model.fuse({name: x}), TARGET) for name, x in features.items()
    )
    unimodal.backward()
    model.fusion.zero_grad()
    detached = {name: x.detach() for name, x in features.items()}
    fused = nn.functional.cross_entropy(model.fuse(detached), TARGET)
    fused.backward()
    return gradients(model), (fused + unimodal).item()


@pytest.mark.parametrize("names", [("a",), ("a", "aa"), ("a", "b", "c")])
@pytest.mark.parametrize("alpha", [4.0, 0.5])
def test_golden_step(names, alpha):
    model, inputs = model_and_inputs(names)
    expected, value = two_backwards(model, inputs, alpha)
    model.zero_grad()
    method = DGL(model.encoders, alpha=alpha)
    loss = method.loss(model(inputs), TARGET)
    assert loss.item() == pytest.approx(value, abs=1e-12)
    assert all(p.grad is None for p in model.parameters())  # the loss itself writes nothing
    method.backward(loss)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-10, atol=1e-13)
    with torch.no_grad():
        assert float(method.loss(model(inputs), TARGET)) == pytest.approx(value, abs=1e-12)


def test_the_fusion_learns_from_the_fused_loss_alone():
    """Bit for bit the same whatever the unimodal losses weigh; encoders in proportion to α."""

    def found(alpha):
        model, inputs = model_and_inputs(("a", "b"))
        method = DGL(model.encoders, alpha=alpha)
        method.backward(method.loss(model(inputs), TARGET))
        return gradients(model)

    none, one, three = found(0.0), found(1.0), found(3.0)
    for name in one:
        if name.startswith("fusion"):
            assert torch.equal(none[name], three[name])
        else:
            assert not none[name].any()
            assert one[name].any()
            torch.testing.assert_close(three[name], 3 * one[name], rtol=1e-10, atol=1e-13)


def test_scaled_and_accumulated():
    """AMP's scale and the share of a pass reach both halves of the gradient."""
    model, inputs = model_and_inputs(("a", "b"))
    expected, _ = two_backwards(model, inputs, 4.0)
    model.zero_grad()
    method = DGL(model.encoders)
    for rows in (slice(0, 2), slice(2, 5)):
        output = model({name: x[rows] for name, x in inputs.items()})
        share = len(TARGET[rows]) / 5
        method.backward(method.loss(output, TARGET[rows]) * share * 1024)
    found = {name: g / 1024 for name, g in gradients(model).items()}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_small_gradients_are_not_lost_in_half_precision():
    """Unscaled gradients of a mean over many samples are below what 16 bits can hold."""
    torch.manual_seed(0)
    n = 4096
    head = nn.Linear(4, 3).half()
    with torch.no_grad():
        head.weight.mul_(1e-3)
    features = torch.randn(n, 4).half().requires_grad_()

    def fuse(features):
        return head(features["a"])

    output = evenly.Output(fuse({"a": features}), {"a": features}, fuse=fuse)
    method = DGL(
        {"a": nn.Linear(1, 4)}, criterion=lambda z, y: nn.functional.cross_entropy(z.float(), y)
    )
    (method.loss(output, torch.zeros(n, dtype=torch.int64)) * 65536).backward()
    exact = features.detach().double().requires_grad_()
    logits = exact @ head.weight.double().T + head.bias.double()
    (4 * 65536 * nn.functional.cross_entropy(logits, torch.zeros(n, dtype=torch.int64))).backward()
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=0.02, atol=2e-4)


def test_frozen_encoders_need_no_gradient():
    """The fusion learns on; the unimodal losses have no one to teach."""
    run = Run("dgl")
    run.model.encoders.requires_grad_(False)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.train(1)
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("encoders"), name


@pytest.mark.parametrize("alpha", [-1.0, float("inf"), float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"DGL: 'alpha' must be finite and not negative; found "):
        DGL({"a": nn.Linear(1, 1)}, alpha=alpha)
