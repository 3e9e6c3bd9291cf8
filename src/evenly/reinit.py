"""Pulls a module back to its initial weights, according to what it computes with them.

A layer's own parameters are pulled one by one. If a layer computes its weight from several
parameters (low-rank adapters, weight and spectral norm, torch's parametrizations), pulling each of
them would pull their product too far. Then the weight itself is pulled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from evenly import distributed
from evenly.errors import UserError

_FACTORS = (
    ("lora_A", "lora_B", "lora_E"),
    ("lora_a", "lora_b"),
    ("lora_down", "lora_up"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("vera_lambda_b", "vera_lambda_d"),
)
"""Names of an adapter's factors: LoRA's in four libraries, and those of its kin."""


@torch.no_grad()
def soft_reinit_(module: nn.Module, initial: Mapping[str, Tensor], weight: float) -> None:
    """Pulls every parameter of a module back to its initial value, in place.

    θ ← (1 - w) θ + w θ₀. Frozen parameters are included; buffers, such as BatchNorm's running
    statistics, are not. For sharded parameters (FSDP2), each rank changes its own part. If
    parameters have fewer bits than float32, the sum is computed in float32 and rounded once.

    If a layer computes its weight W from several parameters, W is pulled, and w = 1 restores each
    parameter:

    - Low-rank adapters (PEFT's LoRA, with DoRA on linear layers, and other libraries'): the product
      B A goes to (1 - w) B A + w B₀ A₀. Usually one of the initial factors is zero; then that
      factor is pulled, and the other stays. If neither is (PiSSA), the result is the nearest
      product of the same rank.
    - Weight norm and other parametrizations of torch: (1 - w) W + w W₀ if they can produce it. An
      orthogonal weight stays orthogonal: the parameter it is made from is pulled.
    - Spectral norm: as for any weight, after which the norm is 1 again. At w = 1, the vectors of
      its power iteration are restored if `initial` has them; otherwise they are recomputed.

    Frozen integers, such as a quantised base, stay as they are.

    Args:
        module: The encoder.
        initial: θ₀ by parameter name, as `named_parameters` writes it; other names, such as the
            buffers of a whole state dict, are ignored.
        weight: w, from 0 (nothing happens) to 1 (the initial weights, exactly).

    Raises:
        ValueError: If the weight is out of range, a parameter has no initial value of its
            shape, or one cannot be pulled; nothing is changed then.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"the weight of a re-initialisation is from 0 to 1; found {weight}.")
    check_initial(module, initial)
    check_kinds(module, initial)
    if weight == 0:
        return
    start = _Start(module, initial)
    done: set[Tensor] = set()
    for part in _parts(module):
        if done.isdisjoint(part.parameters):  # else they are tied to something already pulled
            part.pull_(start, weight)
            done.update(part.parameters)
    for parameter in start.parameters.values():
        if parameter not in done and not is_fixed(parameter):
            _lerp_(parameter, start.of(parameter), weight)


def initial_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy, by name, of what `soft_reinit_` can restore a module to."""
    kept = {buffer for part in _parts(module) for buffer in part.buffers}
    return {
        name: value.detach().clone()
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if (not is_fixed(value) if isinstance(value, nn.Parameter) else value in kept)
    }


def cut_like(initial: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Initial weights, sharded over ranks like the module's parameters."""
    named = {_plain(name): p for name, p in module.named_parameters(remove_duplicate=False)}
    return {
        # A part is a view of the whole, which only a copy can release.
        name: distributed.sharded_like(value, named[_plain(name)]).clone()
        if _plain(name) in named and distributed.is_sharded(named[_plain(name)])
        else value
        for name, value in initial.items()
    }


def check_initial(module: nn.Module, initial: Mapping[str, Tensor], what: str = "module") -> None:
    """Raises if a parameter of the module has no initial value of its shape."""
    start = _Start(module, initial)
    for name, parameter in start.parameters.items():
        value = start.find(parameter)
        if value is None:
            if is_fixed(parameter):
                continue
            raise UserError(
                f"the initial weights of the {what} lack '{name}'. Pass the state of the same "
                "architecture, for example {n: p.clone() for n, p in module.named_parameters()}."
            )
        if value.shape != parameter.shape:
            raise UserError(
                f"the initial weights of the {what} hold '{name}' of shape "
                f"{tuple(value.shape)}, but the parameter has {tuple(parameter.shape)}. "
                "Pass the state of the same architecture."
            )
        if value.is_complex() and not parameter.is_complex():
            raise UserError(
                f"the initial weights of the {what} hold complex numbers for '{name}', but the "
                "parameter is real. Pass the state of the same architecture."
            )


@torch.no_grad()
def check_kinds(module: nn.Module, initial: Mapping[str, Tensor], what: str = "module") -> None:
    """Raises if a parameter of the module is of a kind that cannot be pulled partway."""
    start = _Start(module, initial)
    for name, parameter in start.parameters.items():
        if reason := _unfit(parameter, start.find(parameter)):
            raise UserError(f"'{name}' of the {what} {reason}")
    for name, layer in module.named_modules():
        for adapter in _adapters(layer) if _is_merged(layer) else ():
            # Else weight and factors are pulled by the same share, and separate again correctly.
            if adapter.base is None or adapter.magnitude is not None or adapter.zero(start) is None:
                raise UserError(
                    f"the adapter of '{name}' of the {what} is merged into the weight below it, "
                    "from which it cannot be pulled apart. Unmerge it first (with PEFT, "
                    "encoder.unmerge_adapter())."
                )


def _unfit(parameter: Tensor, start: Tensor | None) -> str | None:
    """Why a parameter cannot be pulled, if it cannot."""
    if parameter.is_meta and parameter.requires_grad:
        return (
            "is trained on the device 'meta': its values are kept elsewhere (offloaded), where "
            "nothing can be done to them. Keep the encoder in memory."
        )
    if getattr(parameter, "ds_shape", parameter.shape) != parameter.shape:
        return (
            "is partitioned by DeepSpeed (ZeRO-3), whose parts cannot be reached. Train under "
            "FSDP2, or with ZeRO-2 or less."
        )
    if not (parameter.is_floating_point() or parameter.is_complex()):
        same_kind = start is not None and not start.is_meta and start.dtype == parameter.dtype
        if same_kind and not torch.equal(cast(Tensor, start).to(parameter.device), parameter):
            return (
                f"holds integers ({parameter.dtype}) other than its initial ones, and there is no "
                "way halfway between them. Pass the initial weights that belong to this model."
            )
    elif parameter.requires_grad and not _is_plain(parameter):
        kind = type(distributed.local(parameter.data))
        kind_name = "sparse" if kind is Tensor else f"of the type {kind.__name__}"
        return (
            f"is trained and {kind_name}, into which no number between two others can be written. "
            "Keep it as an ordinary tensor, or leave the encoder out."
        )
    return None


def _is_plain(parameter: Tensor) -> bool:
    """Whether memory holds the values as they are, unlike a quantised tensor's."""
    data = distributed.local(parameter.data)
    is_wrapped = data.is_meta or is_traceable_wrapper_subclass(data)
    return data.layout == torch.strided and not is_wrapped


def is_fixed(parameter: Tensor) -> bool:
    """Whether a parameter neither moves in training nor could be moved back."""
    is_number = parameter.is_floating_point() or parameter.is_complex()
    return not is_number or not (parameter.requires_grad or _is_plain(parameter))


def _plain(name: str) -> str:
    """A name without what torch.compile adds."""
    return name.replace("_orig_mod.", "")


class _Start:
    """The initial values of a module's parameters and buffers, by the tensors themselves.

    Attributes:
        parameters: The module's parameters, each once.
    """

    def __init__(self, module: nn.Module, initial: Mapping[str, Tensor]) -> None:
        self._initial = {_plain(name): value for name, value in initial.items()}
        self.parameters: dict[str, nn.Parameter] = {}
        # A tied parameter has several names, and a file may hold any of them.
        self._names: dict[Tensor, list[str]] = {}
        # Read once: PEFT's attention makes a new Parameter from its base each time.
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if parameter not in self._names:
                self.parameters[name] = parameter
            self._names.setdefault(parameter, []).append(_plain(name))
        for name, buffer in module.named_buffers(remove_duplicate=False):
            self._names.setdefault(buffer, []).append(_plain(name))

    def find(self, tensor: Tensor) -> Tensor | None:
        """The initial value, if known."""
        names = self._names[tensor]
        return next((self._initial[name] for name in names if name in self._initial), None)

    def of(self, tensor: Tensor) -> Tensor:
        """The initial value of a parameter, which was checked to exist."""
        found = self.find(tensor)
        assert found is not None
        return found

    def whole(self, tensor: Tensor) -> Tensor:
        """The same, gathered if sharded, in the precision of the pull."""
        found = distributed.whole(self.of(tensor))
        return found.to(tensor.device, _wide(tensor.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.itemsize > 1 else torch.float32


def _whole(parameter: Tensor) -> Tensor:
    return distributed.whole(parameter).to(_wide(parameter.dtype))


def _write_(parameter: Tensor, value: Tensor) -> None:
    """Writes a whole value into this rank's part of a parameter."""
    distributed.local(parameter).copy_(distributed.shard_like(value, parameter))


def _lerp_(parameter: Tensor, start: Tensor, weight: float) -> None:
    """θ ← (1 - w) θ + w θ₀, for one parameter."""
    part = distributed.local(parameter)
    start = distributed.shard_like(start, parameter).to(part.device)
    wide = _wide(part.dtype)
    if not parameter.requires_grad and torch.equal(part.to(wide), start.to(part.dtype).to(wide)):
        return  # it may be a view that cannot be written to
    if weight == 1:
        part.copy_(start)
    elif part.dtype == wide and bool(start.sum().isfinite()):
        # An infinity or NaN spreads to the sum, at a fifth of the cost of checking each number.
        # lerp leaves θ = θ₀ untouched to the last bit
        part.lerp_(start.to(part), weight)
    else:
        before, start = part.to(wide), start.to(wide)
        # An infinity that does not change, as in a mask, would become NaN.
        part.copy_(torch.where(before == start, before, torch.lerp(before, start, weight)))


def _parts(module: nn.Module) -> Iterator["_Adapter | _Computed | _Spectral"]:
    """The parts of a module that compute weights from several parameters."""
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):  # which compiles neither of them
            continue
        yield from _adapters(layer)
        yield from _hooked(layer)
        yield from _parametrized(layer)


# Low-rank adapters


@dataclass(frozen=True)
class _Adapter:
    """An adapter whose weight is the product of its factors."""

    layer: nn.Module
    name: str | None  # of the layer's adapter, if it can have several
    factors: tuple[nn.Parameter, ...]
    buffers: tuple[Tensor, ...] = ()

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return self.factors if self.magnitude is None else (*self.factors, self.magnitude)

    @property
    def magnitude(self) -> nn.Parameter | None:
        """DoRA's magnitude: the length of each row of the weight."""
        vectors = getattr(self.layer, "lora_magnitude_vector", None)
        return _weight_of(_child(vectors, self.name))

    @property
    def base(self) -> nn.Parameter | None:
        """The weight that the adapter changes, if it is a readable parameter."""
        found = _weight_of(self._below)
        return None if found is None or is_fixed(found) else found

    @property
    def _below(self) -> Any:
        return getattr(self.layer, "base_layer", self.layer)

    def pull_(self, start: _Start, weight: float) -> None:
        zero = self.zero(start)
        if weight == 1:
            pulled = self.parameters
        elif self.magnitude is not None and self.base is not None and self._is_matrix():
            self._pull_scaled_(start, weight, self.magnitude, self.base)
            return
        elif zero is not None:
            pulled = (zero,) if self.magnitude is None else (zero, self.magnitude)
        elif self.magnitude is None and self._is_matrix():
            self._write_(start, 1 - weight, weight, weight)
            return
        else:
            pulled = self.parameters
        for parameter in pulled:
            _lerp_(parameter, start.of(parameter), weight)

    def zero(self, start: _Start) -> nn.Parameter | None:
        """The factor that starts at zero, and with it the product."""
        return next((p for p in self.factors if not bool(start.whole(p).any())), None)

    def _is_matrix(self) -> bool:
        """Whether the factors are A and B, and B A is what changes the weight."""
        if len(self.factors) != 2 or getattr(self._below, "groups", 1) != 1:
            return False
        a, b = (p.flatten(1) for p in self.factors)
        size = len(b) * a.shape[1]
        if self.base is not None:
            return len(a) == b.shape[1] and size == self.base.numel()
        sizes = getattr(self._below, "out_features", 0), getattr(self._below, "in_features", 0)
        return len(a) == b.shape[1] and sizes == (len(b), a.shape[1])

    def _pull_scaled_(
        self, start: _Start, weight: float, magnitude: nn.Parameter, base: nn.Parameter
    ) -> None:
        """DoRA: W = diag(m / ‖V‖) V with V = base + s B A and the norm of each row."""
        scale = float(cast(Any, self.layer).scaling[self.name])
        is_turned = getattr(self.layer, "fan_in_fan_out", False) or isinstance(
            self._below, nn.Embedding
        )
        below = _whole(base).T if is_turned else _whole(base).flatten(1)
        a, b = self.factors
        now = (1 - weight) * _whole(magnitude).flatten()
        now = now / _norms(below + scale * _product(_whole(a), _whole(b)))
        then = weight * start.whole(magnitude).flatten()
        then = then / _norms(below + scale * _product(start.whole(a), start.whole(b)))
        both = now + then  # the base's coefficient, of which B A and B₀ A₀ have shares
        self._write_(start, (now / both)[:, None], (then / both)[:, None], weight)
        length = both * _norms(below + scale * _product(_whole(a), _whole(b)))
        _write_(magnitude, length.view(magnitude.shape))

    def _write_(
        self, start: _Start, now: Tensor | float, then: Tensor | float, weight: float
    ) -> None:
        """Makes the product now · B A + then · B₀ A₀, or the nearest one of its rank."""
        a, b = (_whole(p).flatten(1) for p in self.factors)
        a_0, b_0 = (start.whole(p).flatten(1) for p in self.factors)
        if self.zero(start) is not None:
            b = now * b
        else:
            near = torch.lerp(a, a_0, weight)
            a, b = nearest(torch.cat([now * b, then * b_0], 1), torch.cat([a, a_0]), near)
        for factor, value in zip(self.factors, (a, b), strict=True):
            _write_(factor, value.view(factor.shape))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return b.flatten(1) @ a.flatten(1)


def nearest(
    left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], like: Float[Tensor, "r n"]
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
    """Factors A and B of fewer columns whose product is nearest to `left @ right`.

    Among all factors with that product, A is as near as possible to `like`, so that an optimiser's
    momentum keeps its meaning.
    """
    r = len(like)
    (q, r_left), (p, r_right) = torch.linalg.qr(left), torch.linalg.qr(right.mH)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mH, full_matrices=False)
    root = s[:r].sqrt()
    short = r - len(root)  # columns of zeros, if the matrix has fewer than the factors
    b = nn.functional.pad(q @ u[:, :r] * root, (0, short))
    a = nn.functional.pad(root[:, None] * (vh[:r] @ p.mH), (0, 0, 0, short))
    turn = like @ torch.linalg.pinv(a)
    if torch.linalg.cond(turn) < 1e3:
        a, b = turn @ a, b @ torch.linalg.inv(turn)
    return a, b


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms


def _adapters(layer: nn.Module) -> Iterator[_Adapter]:
    for family in _FACTORS:
        held = [x for name in family if (x := _child(layer, name)) is not None]
        if all(isinstance(x, nn.ModuleDict | nn.ParameterDict) for x in held):
            names = dict.fromkeys(name for x in held for name in x)
            groups = [(name, [_child(x, name) for x in held]) for name in names]
        else:
            groups = [(None, held)]
        for name, group in groups:
            factors = tuple(p for x in group if (p := _weight_of(x)) is not None)
            if len(factors) > 1:
                yield _Adapter(layer, name, factors)


def _child(x: Any, name: str | None) -> Any:
    """A parameter or module that a module itself holds, if any."""
    if not isinstance(x, nn.Module) or name is None:
        return None
    return x._parameters.get(name, x._modules.get(name))


def _weight_of(x: Any) -> nn.Parameter | None:
    """A parameter itself, or the weight of a layer."""
    found = x if isinstance(x, nn.Parameter) else getattr(x, "weight", None)
    return found if isinstance(found, nn.Parameter) else None


def _is_merged(layer: nn.Module) -> bool:
    """Whether a layer's adapters are currently merged into the weight below."""
    return bool(getattr(layer, "merged", False))


# Weights that are computed


@dataclass(frozen=True)
class _Computed:
    """A weight that a layer computes from parameters in several steps.

    Attributes:
        parameters: What the first step takes.
        steps: The steps, from first to last.
        inverses: Inverses of the steps that have one, from last to first.
        buffers: Buffers of the steps.
    """

    parameters: tuple[nn.Parameter, ...]
    steps: tuple[Callable[..., Tensor], ...]
    inverses: tuple[Callable[[Tensor], Tensor | Sequence[Tensor]], ...]
    buffers: tuple[Tensor, ...] = ()

    def pull_(self, start: _Start, weight: float) -> None:
        if weight == 1:
            _restore_(self, start)
        elif not _stands_still(self, start):
            between = self._between(start, weight)
            for parameter, value in zip(self.parameters, between, strict=True):
                _write_(parameter, value)

    def _between(self, start: _Start, weight: float) -> Sequence[Tensor]:
        now, then = [_whole(p) for p in self.parameters], [start.whole(p) for p in self.parameters]
        each = [torch.lerp(*pair, weight) for pair in zip(now, then, strict=True)]
        if self.buffers:  # they belong to the current parameters
            return each
        wanted = torch.lerp(self._made(now), self._made(then), weight)
        other = self._inverted(wanted)
        if other is not None and self._off(other, wanted) < self._off(each, wanted):
            return other
        return each

    def _off(self, tensors: Sequence[Tensor], wanted: Tensor) -> Tensor:
        off: Tensor = torch.linalg.vector_norm(self._made(tensors) - wanted)
        return off

    def _made(self, tensors: Sequence[Tensor]) -> Tensor:
        first, *rest = self.steps
        value = first(*tensors)
        for step in rest:
            value = step(value)
        return value

    def _inverted(self, weight: Tensor) -> Sequence[Tensor] | None:
        value: Tensor | Sequence[Tensor] = weight
        try:
            for inverse in self.inverses:
                value = inverse(value)  # type: ignore[arg-type]
        except (RuntimeError, ValueError, AssertionError):  # a weight that they cannot produce
            return None
        return (value,) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _Spectral:
    """A weight divided by its largest singular value, uᵀ W v.

    Attributes:
        parameters: The weight before division.
        buffers: u and v, which each training pass of the layer updates.
        dim: The dimension of the rows.
    """

    parameters: tuple[nn.Parameter, ...]
    buffers: tuple[Tensor, Tensor]
    dim: int

    def pull_(self, start: _Start, weight: float) -> None:
        if weight == 1:
            if not _restore_(self, start):
                self._fit_(start.whole(self.parameters[0]))
        elif not _stands_still(self, start):
            now, then = _whole(self.parameters[0]), start.whole(self.parameters[0])
            sigma = self._sigma(now, *self.buffers), self._sigma_then(then, start)
            between = torch.lerp(now / sigma[0], then / sigma[1], weight)
            # Its length does not matter to the layer, but it does to the optimiser.
            between = between * torch.lerp(*sigma, weight)
            _write_(self.parameters[0], between)
            self._fit_(between)

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1)

    def _sigma(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.vdot(u.to(weight), self._rows(weight) @ v.to(weight))

    def _sigma_then(self, weight: Tensor, start: _Start) -> Tensor:
        u, v = map(start.find, self.buffers)
        if u is None or v is None:
            largest: Tensor = torch.linalg.matrix_norm(self._rows(weight), 2)
            return largest.to(weight)
        return self._sigma(weight, u, v)

    def _fit_(self, weight: Tensor) -> None:
        left, _, right = torch.linalg.svd(self._rows(weight), full_matrices=False)
        self.buffers[0].copy_(left[:, 0])
        self.buffers[1].copy_(right[0].conj())


def _restore_(part: _Computed | _Spectral, start: _Start) -> bool:
    """Restores parameters and buffers; False if the buffers' initial values are unknown."""
    for parameter in part.parameters:
        _lerp_(parameter, start.of(parameter), 1.0)
    known = [start.find(buffer) for buffer in part.buffers]
    for buffer, value in zip(part.buffers, known, strict=True):
        if value is not None:
            buffer.copy_(value)
    return all(value is not None for value in known)


def _stands_still(part: _Computed | _Spectral, start: _Start) -> bool:
    """Whether the parameters are the initial ones, to be left alone to the last bit."""
    return all(torch.equal(_whole(p), start.whole(p)) for p in part.parameters)


def _hooked(layer: nn.Module) -> Iterator[_Computed | _Spectral]:
    """The weights that torch's old, hook-based weight_norm and spectral_norm make."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            g, v = (layer.get_parameter(f"{hook.name}_{part}") for part in "gv")
            yield _Computed((g, v), (partial(_normed, hook.dim),), (partial(_cut, hook.dim),))
        elif isinstance(hook, SpectralNorm):
            weight = layer.get_parameter(f"{hook.name}_orig")
            vectors = layer.get_buffer(f"{hook.name}_u"), layer.get_buffer(f"{hook.name}_v")
            yield _Spectral((weight,), vectors, hook.dim)


def _normed(dim: int, g: Tensor, v: Tensor) -> Tensor:
    return torch._weight_norm(v, g, dim)


def _cut(dim: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.norm_except_dim(weight, 2, dim), weight


def _parametrized(layer: nn.Module) -> Iterator[_Computed | _Spectral]:
    """The weights that torch's parametrizations make, if these have no parameters themselves."""
    if not parametrize.is_parametrized(layer):
        return
    for chain in cast(nn.ModuleDict, layer.parametrizations).values():
        made_of = tuple(value for _, value in chain.named_parameters(recurse=False))
        steps: tuple[Any, ...] = tuple(cast(nn.ModuleList, chain))
        if not made_of or any(True for step in steps for _ in step.parameters()):
            continue
        if len(steps) == 1 and hasattr(steps[0], "_u") and hasattr(steps[0], "_v"):
            yield _Spectral(made_of, (steps[0]._u, steps[0]._v), steps[0].dim)
        else:
            inverses = [step.right_inverse for step in steps if hasattr(step, "right_inverse")]
            buffers = tuple(buffer for step in steps for buffer in step.buffers())
            yield _Computed(made_of, steps, tuple(reversed(inverses)), buffers)
