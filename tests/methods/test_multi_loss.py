import math

import pytest
import torch

from evenly.methods import MultiLoss
from support import NAMES, batch_of, forward, loaders, net


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:2], NAMES[:3]])
def test_golden_loss(names):
    """By loops: the fused loss, and 0.3 of each head's own on its own features."""
    model = net(names, head="multi").double().eval()
    output, target = batch_of(model)

    def cross_entropy(z):
        return sum(z[i].exp().sum().log() - z[i, target[i]] for i in range(24)) / 24

    expected = cross_entropy(output.logits)
    for name in names:
        layer = model.head.heads[name]
        own = output.features[name] @ layer.weight.T + layer.bias
        expected = expected + 0.3 * cross_entropy(own)
    loss = MultiLoss(model.encoders, weight=0.3).loss(output, target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_weight_of_zero_leaves_the_unimodal_heads_without_a_gradient():
    """So weight decay does not reach them either."""
    model = net(head="multi")
    output, target = forward(model, next(iter(loaders()[0])))
    MultiLoss(model.encoders, weight=0.0).loss(output, target).backward()
    assert all(p.grad is None for p in model.head.heads.parameters())
    assert model.head.linear.weight.grad.any()


def test_a_modality_missing_from_a_batch_has_no_loss():
    model = net(head="multi").eval()
    inputs, target, index = next(iter(loaders()[0]))
    output, _ = forward(model, ({"aa": inputs["aa"]}, target, index))
    logits = (output.logits, output.unimodal["aa"])
    expected = sum(torch.nn.functional.cross_entropy(z, target) for z in logits)
    torch.testing.assert_close(MultiLoss(model.encoders).loss(output, target), expected)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_out_of_range(weight):
    text = rf"MultiLoss: 'weight' must be finite and not negative; found {weight}\."
    with pytest.raises(ValueError, match=text):
        MultiLoss(net(head="multi").encoders, weight=weight)
