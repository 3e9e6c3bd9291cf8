import pytest
import torch
from torch import nn

import evenly
from evenly.methods.umt import UMT
from support import Run, batch_of, net, samples, sgd, train


def seeded(model):
    torch.manual_seed(0)  # dropout
    return batch_of(model)


def known(model, gamma, count=24):
    stream = torch.Generator().manual_seed(7)
    method = UMT(model.encoders, optimizer=sgd(model), gamma=gamma)
    method.teachers = {
        f"features/{name}": torch.randn(count, 6, generator=stream, dtype=torch.float64)
        for name in model.encoders
    }
    method.samples = samples(count)
    method.before_epoch(0)
    return method


def test_golden_step():
    """CE(z) + γ Σ_m MSE(f_m, f_m'), sample by sample; each against its own teacher."""
    model = net(head="multi").double()
    method = known(model, gamma=3.0)
    output, target = seeded(model)
    expected = 0.0
    for i, row in enumerate(output.index.tolist()):
        expected += -output.logits[i].log_softmax(0)[target[i]] / 24
        for name, features in output.features.items():
            for column in range(6):
                teacher = method.teachers[f"features/{name}"][row, column]
                expected += 3.0 * (features[i, column] - teacher) ** 2 / 24 / 6
    parameters = [p for key, p in model.named_parameters() if "head.heads" not in key]
    wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
    loss = method.loss(output, target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    method.backward(loss)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    for parameter in model.head.heads.parameters():
        assert not parameter.grad.any()
    assert set(method.metrics) == {"error/a", "error/aa"}
    assert not any(value.requires_grad for value in method.metrics.values())


def test_the_error_does_not_grow_with_the_batch():
    """A mean over samples: twice the batch, the same loss."""
    model = net(head="multi").double().eval()
    method = known(model, gamma=1.0)
    output, target = seeded(model)
    twice = evenly.Output(
        output.logits.repeat(2, 1),
        {name: x.repeat(2, 1) for name, x in output.features.items()},
        {name: x.repeat(2, 1) for name, x in output.unimodal.items()},
        output.index.repeat(2),
    )
    one, two = method.loss(output, target), method.loss(twice, target.repeat(2))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_missing_modality_is_left_out():
    model = net(head="multi").double()
    method = known(model, gamma=1.0)
    output, target = seeded(model)
    parts = {"features": {"a": output.features["a"]}, "unimodal": {"a": output.unimodal["a"]}}
    found = method.loss(evenly.Output(output.logits, **parts, index=output.index), target)
    teacher = method.teachers["features/a"][output.index]
    error = (output.features["a"] - teacher).square().mean()
    torch.testing.assert_close(found, nn.functional.cross_entropy(output.logits, target) + error)


def test_a_validation_asks_no_teacher():
    """They know the training split, whose positions mean other samples in any other."""
    model = net(head="multi").double()
    method = known(model, gamma=1.0)
    output, target = seeded(model)
    with torch.no_grad():
        found = method.loss(output, target)
    assert torch.equal(found, nn.functional.cross_entropy(output.logits, target).detach())
    assert method.metrics == {}


def test_features_come_nearer_to_their_teachers():
    def error(gamma):
        run = Run("umt", gamma=gamma).train(8)
        teachers = run.method.teachers or Run("umt", gamma=1.0).train(1).method.teachers
        found = run.probe.features("train").features
        return sum(float((found[n] - teachers[f"features/{n}"]).square().mean()) for n in found)

    assert error(10.0) < 0.5 * error(0.0)


def test_without_a_distillation_no_teacher_is_trained():
    model = net(head="multi")
    method = UMT(model.encoders, optimizer=sgd(model), gamma=0.0)
    train(model, method, sgd(model), 2)
    assert method.teachers == {}
    assert not method.is_due(0)


def test_teachers_are_due_before_the_first_epoch_only():
    method = UMT(net().encoders, optimizer=sgd(net()))
    assert [method.is_due(epoch) for epoch in range(3)] == [True, False, False]


class TestMessages:
    @pytest.mark.parametrize("gamma", [-1.0, float("inf"), float("nan")])
    def test_gamma(self, gamma):
        with pytest.raises(ValueError, match=rf"UMT: 'gamma' must be finite and.*found {gamma}\."):
            UMT(net().encoders, optimizer=sgd(net()), gamma=gamma)

    def test_teacher_epochs(self):
        with pytest.raises(
            ValueError, match=r"UMT: 'teacher_epochs' must be at least 1; found 0\."
        ):
            UMT(net().encoders, optimizer=sgd(net()), teacher_epochs=0)
