import pytest
import torch

import evenly
from evenly.methods import Unimodal
from support import forward, loaders, net, same, sgd, train, weights


def doubled(names=("a", "aa"), head="concat"):
    """A model without chance, and one batch."""
    model = net(names, head=head).double().eval()
    inputs, target, index = next(iter(loaders(names, count=12, batch=12)[0]))
    return model, ({name: x.double() for name, x in inputs.items()}, target, index)


def test_golden_gradients_of_the_head():
    """dCE/dW_m = (softmax(z_m) - y)ᵀ f_m / n, of the block of that modality and no other."""
    model, batch = doubled()
    output, target = forward(model, batch)
    method = Unimodal(model.encoders, modality="aa")
    method.backward(method.loss(output, target))
    method.before_step()
    weight, bias = model.head.linear.weight.detach(), model.head.linear.bias.detach()
    f = output.features["aa"].detach()
    error = (f @ weight[:, 6:].T + bias / 2).softmax(1)
    error[range(12), target] -= 1
    found = model.head.linear.weight.grad
    torch.testing.assert_close(found[:, 6:], error.T @ f / 12, rtol=1e-12, atol=1e-14)
    assert torch.equal(found[:, :6], torch.zeros(3, 6, dtype=torch.float64))
    torch.testing.assert_close(
        model.head.linear.bias.grad, error.sum(0) / 12 / 2, rtol=1e-12, atol=1e-14
    )


def test_only_its_encoder_is_trained_decay_and_momentum_included():
    model = net()
    before = weights(model.encoders)
    train(model, Unimodal(model.encoders, modality="aa"), sgd(model), 2)
    moved = {
        name for name, p in model.encoders.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved == {f"aa.{name}" for name, _ in model.encoders["aa"].named_parameters()}


def test_a_model_of_one_modality_is_trained_plainly():
    model, plain = net(("a",)), net(("a",))
    train(model, Unimodal(model.encoders, modality="a"), sgd(model), 2, names=("a",))
    train(plain, evenly.Method(), sgd(plain), 2, names=("a",))
    assert same(model, plain)


def test_a_batch_may_lack_a_modality():
    """Another changes nothing; one without its own teaches nothing."""
    model, (inputs, target, index) = doubled()
    method = Unimodal(model.encoders, modality="a")
    whole = method.loss(*forward(model, (inputs, target, index)))
    alone = method.loss(*forward(model, ({"a": inputs["a"]}, target, index)))
    assert torch.equal(whole, alone)
    method.backward(method.loss(*forward(model, ({"aa": inputs["aa"]}, target, index))))
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_unknown_modality():
    with pytest.raises(ValueError, match=r"'modality' must be one of \['a', 'aa'\]; found 'b'"):
        Unimodal(net().encoders, modality="b")
