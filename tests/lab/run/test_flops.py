from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from evenly.lab.run.flops import Flops


def counted(passed):
    with Flops() as found:
        passed()
    return found.total


def forward(module, *inputs):
    with torch.no_grad():
        return counted(lambda: module(*inputs))


def both(module, *inputs):
    """Forward and backward, of a module whose first result is a tensor or the only one."""

    def run():
        out = module(*inputs)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    return counted(run)


def bf16_lstms():
    """Whether this processor has them: torch leaves them to oneDNN, which needs AVX-512."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(4, 4)(torch.randn(3, 2, 4))
    except RuntimeError:
        return False
    return True


needs_bf16_lstms = pytest.mark.skipif(not bf16_lstms(), reason="no LSTM in bf16 on this processor")


def test_a_linear_layer_by_hand():
    """Forward 2·n·d·c; backward as much for the weight, and as much again for the input."""
    layer, x = nn.Linear(20, 3), torch.randn(5, 20, requires_grad=True)
    assert both(layer, x) == 3 * 2 * 5 * 20 * 3


def test_agrees_with_torch_on_a_convolution():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        net(x).sum().backward()
    assert both(net, x) == theirs.get_total_flops() > 0


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_in_groups_by_hand(kind, groups):
    """Each position of the smaller map: 3·3 taps, 4 channels in and 8 / groups out for each."""
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    by_hand = 2 * 2 * (25 if kind is nn.Conv2d else 49) * 9 * 4 * 8 // groups
    layer = kind(4, 8, 3, groups=groups)
    assert forward(layer, x) == by_hand
    assert both(layer, x) == 3 * by_hand
    assert both(layer, x.detach()) == 2 * by_hand


N, H, T, U, D = 2, 3, 5, 7, 4
SCORES = 2 * N * H * T * U * D
"""Of q kᵀ, for T queries and U keys of width D; the product with the values costs as much."""


def qkv(dtype=torch.float32):
    return [torch.randn(N, H, t, D, dtype=dtype, requires_grad=True) for t in (T, U, U)]


class TestAttention:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("masked", [False, True])
    def test_the_kernel_of_cpus(self, dtype, masked):
        """Two products forward; backward the scores anew, and four gradients."""
        mask = torch.rand(T, U) > 0.1 if masked else None
        assert both(scaled_dot_product_attention, *qkv(dtype), mask) == (2 + 5) * SCORES
        assert forward(scaled_dot_product_attention, *qkv(dtype), mask) == 2 * SCORES

    @pytest.mark.parametrize("why", ["dropout", "a mask that learns", "three axes"])
    def test_the_plain_products(self, why):
        """They keep the scores."""
        inputs, settings = qkv(), {}
        if why == "dropout":
            settings = {"dropout_p": 0.1}
        elif why == "three axes":
            inputs = [x.detach().flatten(0, 1).requires_grad_() for x in inputs]
        else:
            settings = {"attn_mask": torch.zeros(T, U, requires_grad=True)}
        found = both(lambda *x: scaled_dot_product_attention(*x, **settings), *inputs)
        assert found == (2 + 4) * SCORES

    def test_fewer_heads_of_keys(self):
        q, k, v = (torch.randn(N, h, T, D) for h in (4, 2, 2))
        found = forward(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True))
        assert found == 2 * 2 * N * 4 * T * T * D

    @pytest.mark.parametrize("weights", [False, True])
    def test_a_layer_of_it(self, weights):
        """Four square matrices, whose outputs have gradients, and then their inputs."""
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        x = torch.randn(N, T, 8, requires_grad=True)
        linear, scores = 2 * N * T * 4 * 8 * 8, 2 * N * T * T * 8
        backward = 4 if weights else 5  # with weights, the scores are kept
        found = both(lambda: layer(x, x, x, need_weights=weights))
        assert found == 3 * linear + (2 + backward) * scores

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("lengths", [[5, 5], [5, 2]])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_layers_in_evaluation(self, mode, lengths):
        """One kernel for all of a layer; padding is left out of it where it is told of some."""
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        net = nn.TransformerEncoder(layer, 2).eval()
        x = torch.randn(2, 5, 8)
        mask = torch.arange(5) >= torch.tensor(lengths)[:, None]
        by_hand = 2 * sum(
            2 * t * (4 * 8 * 8 + 2 * 8 * 12) + 2 * 2 * t * t * 8 for t in lengths
        )  # fmt: skip
        with mode():
            assert counted(lambda: net(x, src_key_padding_mask=mask)) == by_hand
            attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
            found = counted(lambda: attention(x, x, x))
        assert found == 2 * 10 * 4 * 8 * 8 + 2 * 2 * 2 * 5 * 5 * 8


class TestRecurrent:
    @pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
    @pytest.mark.parametrize("bias", [False, True])
    def test_a_layer(self, kind, gates, bias):
        """Each step, of 6 steps and 2 samples: gates·7 from 5 inputs and 7 that are fed back."""
        x = torch.randn(6, 2, 5)
        net = kind(5, 7, bias=bias)
        by_hand = 2 * 6 * 2 * gates * 7 * (5 + 7)
        assert forward(net, x) == by_hand
        with torch.inference_mode():
            assert counted(lambda: net(x)) == by_hand
        # For matrices and inputs; kernels differ in whether the first state has a gradient.
        state = 2 * 2 * gates * 7 * 7
        found = both(net, x.requires_grad_())
        assert found in (3 * by_hand, 3 * by_hand - state)

    def test_layers_in_both_directions(self):
        net = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
        x = torch.randn(2, 6, 5, requires_grad=True)
        by_hand = 2 * 6 * 2 * 2 * 4 * 7 * ((5 + 7) + (14 + 7))
        assert forward(net, x) == by_hand
        assert both(net, x) == 3 * by_hand

    @needs_bf16_lstms
    def test_under_autocast(self):
        net, x = nn.LSTM(5, 7), torch.randn(6, 2, 5, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert both(net, x) == 3 * 2 * 6 * 2 * 4 * 7 * (5 + 7)

    def test_packed_sequences_have_no_padding(self):
        net = nn.LSTM(5, 7)
        x = nn.utils.rnn.pack_padded_sequence(torch.randn(6, 2, 5), torch.tensor([6, 3]))
        assert forward(net, x) == 2 * (6 + 3) * 4 * 7 * (5 + 7)

    @pytest.mark.filterwarnings("ignore:LSTM with projections")
    def test_a_projection(self):
        net = nn.LSTM(5, 7, proj_size=3)
        by_hand = 2 * 6 * 2 * (4 * 7 * (5 + 3) + 7 * 3)
        assert forward(net, torch.randn(6, 2, 5)) == by_hand

    def test_the_kernel_of_gpus(self):
        """By its arguments alone: two layers in two directions, packed."""
        from evenly.lab.run.flops import FORMULAS

        net = nn.LSTM(5, 7, 2, bidirectional=True)
        arguments = (torch.randn(9, 5), list(net.parameters()), 4)
        by_hand = 2 * 9 * 2 * 4 * 7 * ((5 + 7) + (14 + 7))
        assert FORMULAS["aten._cudnn_rnn"](*arguments) == by_hand
        backward = FORMULAS["aten._cudnn_rnn_backward"]
        assert backward(*arguments, [True, False, False, True]) == 2 * by_hand
        assert backward(*arguments, [True, False, False, False]) == by_hand


def matrix(*shape):
    return torch.randn(shape)


@pytest.mark.parametrize(
    ("product", "by_hand"),
    [
        (lambda: matrix(3, 4) @ matrix(4), 2 * 3 * 4),
        (lambda: matrix(4) @ matrix(4), 2 * 4),
        (lambda: torch.vdot(matrix(4), matrix(4)), 2 * 4),
        (lambda: torch.addmv(matrix(3), matrix(3, 4), matrix(4)), 2 * 3 * 4),
        (lambda: matrix(3).addmv_(matrix(3, 4), matrix(4)), 2 * 3 * 4),
        (lambda: matrix(3, 5).addmm_(matrix(3, 4), matrix(4, 5)), 2 * 3 * 4 * 5),
        (lambda: torch.addbmm(matrix(3, 5), matrix(2, 3, 4), matrix(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: matrix(3, 5).addbmm_(matrix(2, 3, 4), matrix(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: matrix(2, 3, 5).baddbmm_(matrix(2, 3, 4), matrix(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.einsum("nrc,r->nc", matrix(2, 3, 4), matrix(3)), 2 * 2 * 3 * 4),
        (lambda: torch._addmm_activation(matrix(4), matrix(3, 4), matrix(4, 4)), 2 * 3 * 4 * 4),
        (lambda: nn.Bilinear(5, 6, 7)(matrix(3, 5), matrix(3, 6)), 2 * 3 * 5 * 6 * 7),
        (lambda: nn.EmbeddingBag(10, 4, mode="sum")(torch.ones(3, 5).long()), 0),
        (lambda: nn.Embedding(10, 4)(torch.ones(3, 5).long()), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_products_of_other_shapes_by_hand(product, by_hand, mode):
    with mode():
        assert counted(product) == by_hand


def test_a_bilinear_layer_backward():
    """One product of all axes for each of its three inputs."""
    layer, x, y = nn.Bilinear(5, 6, 7), matrix(3, 5).requires_grad_(), matrix(3, 6).requires_grad_()
    assert both(layer, x, y) == 4 * 2 * 3 * 5 * 6 * 7


def test_matrices_in_groups():
    a, b = torch.randn(4, 16, 8).bfloat16(), torch.randn(4, 8, 24).bfloat16()
    assert counted(lambda: torch._grouped_mm(a, b)) == 2 * 4 * 16 * 8 * 24
    rows, ends = torch.randn(32, 8).bfloat16(), torch.tensor([8, 8, 24, 32], dtype=torch.int32)
    assert counted(lambda: torch._grouped_mm(rows, b, ends)) == 2 * 32 * 8 * 24


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16_lstms)]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_counting_changes_no_bit(dtype, mode):
    torch.manual_seed(0)
    x, steps = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    bilinear = nn.Bilinear(4, 4, 3)
    layers = [
        nn.Linear(4, 3),
        nn.LSTM(4, 4),
        nn.GRU(4, 4),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
        lambda x: attention(x, x, x)[0],
        lambda x: bilinear(x, steps),
        lambda x: scaled_dot_product_attention(x, x, x, torch.eye(2).bool()),
    ]
    if mode is torch.enable_grad:  # in inference mode, any dispatch mode changes the last bits
        layers.append(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True))

    def found(layer, counting):
        torch.manual_seed(0)
        own = x.clone().requires_grad_(mode is torch.enable_grad)
        with mode(), counting:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                out = layer(own)
            out = out[0] if isinstance(out, tuple) else out
            if own.requires_grad:
                out.float().square().sum().backward()
        return out, own.grad

    for layer in layers:
        (plain, slope), (counted, same) = found(layer, nullcontext()), found(layer, Flops())
        assert counted.dtype == plain.dtype
        assert torch.equal(counted, plain)
        assert slope is None or torch.equal(same, slope)
