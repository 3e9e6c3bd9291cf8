import math

import pytest
import torch
from torch import nn

from evenly import Output
from evenly.methods.midas import MIDAS, misaligned_loss, swapped, weights
from support import NAMES, Run, batch_of, make, net, same


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


class TestFormulas:
    def test_swapped_by_hand(self):
        x = torch.tensor([[1, 2, 3], [4, 5, 6]])
        found = swapped(x, torch.tensor([2, 0, 1]))
        assert found.tolist() == [
            [[3, 1, 2], [1, 2, 3]],  # the first modality, where it or the second is exchanged
            [[4, 5, 6], [6, 4, 5]],
        ]

    def test_misaligned_loss_by_hand(self):
        log_p, confidence = t(0.2, 0.5).log().view(2, 1, 1), t(0.75, 0.25).view(2, 1, 1)
        found = misaligned_loss(log_p, confidence, t(1.0, 1.5), t(0.4).view(1, 1))
        expected = -1.7 * (0.75 * math.log(0.2) + 1.5 * 0.25 * math.log(0.5))
        assert found.item() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("confidence", "predicted", "expected"),
        [
            ((0.7, 0.3), (0.9, 0.1), [1.2, 1.55]),  # followed too little
            ((0.7, 0.3), (0.1, 0.9), [1.2, 1.45]),  # too much
            ((0.3, 0.7), (0.3, 0.1), [1.2, 1.5]),
            ((0.3, 0.7), (0.9, 0.1), [1.15, 1.5]),
        ],
    )
    def test_weights_of_the_least_confident(self, confidence, predicted, expected):
        found = weights(t(1.2, 1.5), t(*confidence), t(*predicted), 0.05)
        assert found.tolist() == pytest.approx(expected)

    def test_weights_never_fall_below_one(self):
        assert weights(t(1.01, 1.0), t(0.1, 0.9), t(0.5, 0.5), 0.05).tolist() == [1, 1]


def golden(model, output, target, partner, alpha):
    """L_mis and the means that move α, sample by sample, in plain loops."""
    names = list(output.features)
    p = {name: z.softmax(1).detach() for name, z in output.unimodal.items()}
    losses, c, q = [], [], []
    for moved in names:
        for i, j in enumerate(partner.tolist()):
            if target[i] == target[j]:
                continue
            rows = {name: j if name == moved else i for name in names}
            mixed = torch.cat([output.features[name][row] for name, row in rows.items()])
            prediction = model.head.linear(mixed).softmax(0)
            sure = [float(p[name][row, target[row]]) for name, row in rows.items()]
            share = [x / sum(sure) for x in sure]
            own, came = output.features[moved][i], output.features[moved][j]
            s = float((own @ came / (own.norm() * came.norm())).detach())
            loss = 0.0
            for m, row in enumerate(rows.values()):
                loss = loss - alpha[m] * share[m] * prediction[target[row]].log()
            losses.append((1 + (s + 1) / 2) * loss)
            c.append(share)
            q.append([float(prediction[target[row]].detach()) for row in rows.values()])
    return sum(losses) / len(losses), *(t(*x).mean(0).tolist() for x in (c, q))


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_step(names):
    model = net(names, head="multi").double().eval()
    output, target = batch_of(model)
    method = MIDAS(model.encoders, weight=0.7, rate=0.1, warmup=0, seed=3)
    method.before_epoch(0)
    method.steps, method.alpha = 5, torch.linspace(1.2, 1.6, len(names)).double()
    alpha = method.alpha.tolist()
    partner = method._partners(output.logits)
    assert sorted(partner.tolist()) == list(range(24))
    misaligned, c, q = golden(model, output, target, partner, alpha)
    ce = nn.functional.cross_entropy
    aligned = ce(output.logits, target) + sum(ce(z, target) for z in output.unimodal.values())
    loss = method.loss(output, target)
    torch.testing.assert_close(loss, aligned + 0.7 * misaligned, rtol=1e-12, atol=0)
    learns = list(model.parameters())
    expected = torch.autograd.grad(aligned + 0.7 * misaligned, learns, retain_graph=True)
    method.backward(loss)
    for p, slope in zip(learns, expected, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-9, atol=1e-14)
    method.before_step()
    weakest = c.index(min(c))
    alpha[weakest] = max(1, alpha[weakest] + math.copysign(0.1, c[weakest] - q[weakest]))
    assert method.alpha.tolist() == pytest.approx(alpha)
    found = {name: float(x) for name, x in method.metrics.items()}
    values = zip(names, alpha, c, q, strict=True)
    assert found == pytest.approx(
        {
            f"{what}/{name}": x
            for name, *row in values
            for what, x in zip(("alpha", "confidence", "predicted"), row, strict=True)
        }
    )


def test_partners_change_from_step_to_step_and_not_by_a_look():
    method = make("midas", net(head="multi"))
    logits = torch.zeros(24, 3)
    first, again = method._partners(logits), method._partners(logits)
    method.before_step()
    assert torch.equal(first, again)
    assert not torch.equal(first, method._partners(logits))


def test_the_warm_up_is_of_unimodal_losses_alone():
    model = net(head="multi").double().eval()
    method = MIDAS(model.encoders, warmup=2)
    output, target = batch_of(model)
    expected = sum(nn.functional.cross_entropy(z, target) for z in output.unimodal.values())
    for epoch in range(2):
        method.before_epoch(epoch)
        loss = method.loss(output, target)
        torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not model.head.linear.weight.grad.any()
    method.before_epoch(2)
    assert float(method.loss(output, target).detach()) > float(expected.detach())


def due(count=2):
    model = net(NAMES[:count], head="multi").double().eval()
    method = MIDAS(model.encoders, warmup=0)
    method.before_epoch(0)
    return model, method


def test_partners_of_one_class_are_left_out_and_leave_alpha():
    model, method = due()
    output, _ = batch_of(model)
    target = torch.zeros(24, dtype=torch.int64)
    ce = nn.functional.cross_entropy
    expected = ce(output.logits, target) + sum(ce(z, target) for z in output.unimodal.values())
    loss = method.loss(output, target)
    torch.testing.assert_close(loss, expected)
    method.backward(loss)
    method.before_step()
    assert method.alpha.tolist() == [1, 1]


def test_a_step_without_misaligned_samples_leaves_the_metrics():
    model, method = due()
    output, target = batch_of(model)
    for labels in (target, torch.zeros_like(target)):
        before = method.metrics
        method.loss(output, labels)
        method.before_step()
    torch.testing.assert_close(method.metrics, before, rtol=0, atol=0)
    assert all(value.isfinite() for value in before.values())


def test_samples_that_lack_a_modality_have_no_part():
    """Neither with a partner that has it, nor as the partner of one that has."""
    model, method = due()
    output, target = batch_of(model)
    present = {"a": torch.arange(24) != 5}
    partner = method._partners(output.logits)
    lacking = Output(output.logits, output.features, present=present)
    found = method._differ(lacking, target, partner)
    whole = target != target[partner]
    assert not found[5]
    assert not found[partner == 5].any()
    others = (torch.arange(24) != 5) & (partner != 5)
    assert torch.equal(found[others], whole[others])


def test_a_batch_that_lacks_a_modality_has_no_misaligned_samples():
    model, method = due(3)
    output, target = batch_of(model)
    features = {name: output.features[name] for name in NAMES[:2]}
    logits, unimodal = model.head(features)
    output = Output(logits, features, unimodal, fuse=output.fuse)
    ce = nn.functional.cross_entropy
    expected = ce(logits, target) + sum(ce(z, target) for z in unimodal.values())
    torch.testing.assert_close(method.loss(output, target), expected)


def test_one_modality_is_trained_jointly():
    run, joint = Run("midas", names=("a",)), Run("joint", names=("a",), head="multi")
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize("given", [{"weight": -1.0}, {"rate": math.inf}, {"warmup": -1}])
def test_message(given):
    ((name, value),) = given.items()
    text = f"MIDAS: '{name}' must be finite and not negative; found {value}"
    with pytest.raises(ValueError, match=text):
        MIDAS(net().encoders, **given)
