"""Floating-point operations of a piece of training, by torch's own formulas and a few more."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop, sdpa_flop


class Flops(TorchDispatchMode):
    """Counts matrix products and convolutions within the block, forward and backward.

    A multiplication and the addition after it are two operations. Attention and recurrent layers
    count by their products, whichever kernel computes them. Embedding look-ups and element-wise
    products do not count.

    `torch.utils.flop_counter.FlopCounterMode` also counts by module and therefore hooks into every
    module, which methods with several backward passes upset. It also ignores the kernels of
    `FORMULAS`, and counts the gradients of a grouped convolution as if it had no groups.

    Attributes:
        total: The count so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation and counts it."""
        kwargs = kwargs or {}
        operation = _operation(func)
        if operation.is_composite:
            with self, _autocast():
                return func.decompose(*args, **kwargs)
        with _autocast() if operation.calls else nullcontext():
            out = func(*args, **kwargs)
        if operation.own is not None:
            self.total += operation.own(*args)
        elif operation.theirs is not None:
            self.total += operation.theirs(*args, **kwargs, out_val=out)
        return out


class _Operation(NamedTuple):
    """Facts about an operation.

    Attributes:
        own: Its formula among `FORMULAS`.
        theirs: Its formula among torch's.
        is_composite: Whether it has no formula and must be decomposed into operations that may have
            one: such as `linear`, which stays whole only in inference mode.
        calls: Whether its kernel calls operations that autocast knows.
    """

    own: Callable[..., int] | None
    theirs: Callable[..., int] | None
    is_composite: bool
    calls: bool


@cache
def _operation(func: Any) -> _Operation:
    packet = getattr(func, "overloadpacket", func)
    name = str(packet)
    own, theirs = FORMULAS.get(name), flop_registry.get(packet)
    is_composite = (
        own is None
        and theirs is None
        and isinstance(func, OpOverload)
        and func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    )
    return _Operation(own, theirs, is_composite, name in _CALLERS)


@contextmanager
def _autocast() -> Iterator[None]:
    """Autocast as at the operation's call: within a dispatch mode it is off."""
    outside: Any = torch._C
    with outside._RestorePythonTLSSnapshot():
        kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as entered:
        for kind in kinds:
            entered.enter_context(torch.autocast(kind, torch.get_autocast_dtype(kind)))
        yield


def _product(a: Tensor, b: Tensor, *_: Any) -> int:
    """Operations of a @ b: two for each number of a and column of b."""
    return 2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _added_product(_: Tensor, a: Tensor, b: Tensor, *__: Any) -> int:
    return _product(a, b)


def _grouped_product(a: Tensor, b: Tensor, *_: Any) -> int:
    """Products of several matrices each; a tensor with two axes holds them end to end."""
    groups = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return 2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _trilinear(a: Tensor, b: Tensor, c: Tensor, *axes: Sequence[int]) -> int:
    """Operations of Σ a b c over some axes: those of the larger product, with all axes."""
    shapes: list[list[int]] = []
    for x, expanded in zip((a, b, c), axes, strict=False):
        shapes.append(list(x.shape))
        for axis in expanded:
            shapes[-1].insert(axis, 1)
    products: int = prod(max(sizes) for sizes in zip(*shapes, strict=True))
    return 2 * products


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> int:
    """As much as the convolution, for each requested gradient of input and weight."""
    *_, transposed, _, _, (of_input, of_weight, _) = settings
    forward = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed)
    return int(forward * (of_input + of_weight))


def _rnn(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Every step of every sample goes through all matrices."""
    steps = x.numel() // x.shape[-1]  # (t, n, d), (n, t, d), or packed: (steps, d)
    return 2 * steps * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _mkldnn_rnn(x: Tensor, weight: Tensor, recurrent: Tensor, *_: Any) -> int:
    return _rnn(x, (weight, recurrent))


def _mkldnn_rnn_backward(*args: Any) -> int:
    return 2 * _mkldnn_rnn(*args)


def _cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any) -> int:
    return _rnn(x, weights)


def _cudnn_rnn_backward(x: Tensor, weights: Sequence[Tensor], *rest: Any) -> int:
    of_weights = bool(rest[-1][3])
    return (1 + of_weights) * _rnn(x, weights)


def _self_attention(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Every step goes through all matrices, and attends to every step of its sample."""
    samples = [sample.shape for sample in x.unbind()]  # those of a nested tensor differ
    attended = 4 * sum(steps**2 * width for steps, width in samples)
    through = 2 * sum(steps for steps, _ in samples)
    return attended + through * sum(weight.numel() for weight in weights)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    """Attention in inference mode, before a kernel is chosen."""
    scores = query[..., 0].numel() * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1])


def _attention_layer(x: Tensor, *rest: Any) -> int:
    return _self_attention(x, [rest[at] for at in (4, 6)])


def _transformer_layer(x: Tensor, *rest: Any) -> int:
    return _self_attention(x, [rest[at] for at in (2, 4, 13, 15)])


FORMULAS: Mapping[str, Callable[..., int]] = {
    "aten.convolution_backward": _convolution_backward,
    "aten.mv": _product,
    "aten.dot": _product,
    "aten.vdot": _product,
    "aten.addmv": _added_product,
    "aten.addmv_": _added_product,
    "aten.addmm_": _added_product,
    "aten._addmm_activation": _added_product,
    "aten.addbmm": _added_product,
    "aten.addbmm_": _added_product,
    "aten.baddbmm_": _added_product,
    "aten._int_mm": _product,
    "aten._grouped_mm": _grouped_product,
    "aten._trilinear": _trilinear,
    "aten.mkldnn_rnn_layer": _mkldnn_rnn,
    "aten.mkldnn_rnn_layer_backward": _mkldnn_rnn_backward,
    "aten._cudnn_rnn": _cudnn_rnn,
    "aten._cudnn_rnn_backward": _cudnn_rnn_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu": sdpa_flop,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": sdpa_backward_flop,
    "aten._scaled_dot_product_fused_attention_overrideable": sdpa_flop,
    "aten._scaled_dot_product_fused_attention_overrideable_backward": sdpa_backward_flop,
    "aten.scaled_dot_product_attention": _attention,
    "aten._native_multi_head_attention": _attention_layer,
    "aten._transformer_encoder_layer_fwd": _transformer_layer,
}
"""Formulas of operations that torch's registry lacks or counts differently."""

_CALLERS = (
    "aten._trilinear",
    "aten._native_multi_head_attention",
    "aten._transformer_encoder_layer_fwd",
)
"""Operations whose kernels call operations that autocast knows."""
