import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evenly.lab.flops import Flops


def test_a_linear_layer_by_hand():
    """Forward 2·n·d·c; backward as much for the weight, and as much again for the input."""
    layer, x = nn.Linear(20, 3), torch.randn(5, 20, requires_grad=True)
    with Flops() as found:
        layer(x).sum().backward()
    assert found.total == 3 * 2 * 5 * 20 * 3


def test_agrees_with_torch_on_a_convolution():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        net(x).sum().backward()
    with Flops() as ours:
        net(x).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_changes_no_bit(dtype):
    layer, x = nn.Linear(20, 3), torch.randn(5, 20)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        plain = layer(x)
        with Flops():
            counted = layer(x)
    assert torch.equal(plain, counted)
