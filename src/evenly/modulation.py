"""What methods that compare modalities in each step share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError, UserRuntimeError
from evenly.output import Output, lacking
from evenly.presence import having, those


def scores(unimodal: Float[Tensor, "m n c"], target: Int[Tensor, " n"]) -> Float[Tensor, " m"]:
    """The probability that each modality gives the true classes: s_m = Σ_i softmax(z_m,i)[y_i]."""
    probability = full(unimodal).softmax(-1)
    true = target.expand(len(unimodal), -1).unsqueeze(-1)
    return probability.gather(-1, true).sum((1, 2))


def discrepancy(score: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far each modality is ahead: ρ_m = s_m / mean of the other scores."""
    others = (score.sum() - score) / (len(score) - 1)
    return score / others.clamp_min(torch.finfo(score.dtype).tiny)


def full(x: Tensor) -> Tensor:
    """The tensor in at least single precision, since losses are computed outside autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def adds_up(output: Output, method: Any, instead: str = "") -> bool:
    """Raises if the logits are not the modalities' sum; returns whether a pass could tell.

    Args:
        output: Output of one pass. A pass in which no sample has all modalities, or that is not
            finite, cannot tell.
        method: The method that takes the prediction apart.
        instead: An alternative, for the error message.
    """
    own = output.unimodal
    if own is None:
        raise lacking("unimodal", type(method).__name__)
    if set(own) != set(output.features) or not set(method.encoders) <= set(own):
        return False
    here = having(output, *own)
    told = is_sum([those(z, here) for z in own.values()], those(output.logits, here))
    if told is False:
        raise UserError(
            f"{type(method).__name__} takes the prediction apart by modality, but "
            "`Output.unimodal` does not add up to `Output.logits`. Use a linear head on "
            "concatenated features, with evenly.split_linear, or a head of evenly.nn whose logits "
            f"are a sum: concat, sum, cosine{instead}."
        )
    return told is True


def is_sum(several: Sequence[Tensor], logits: Tensor) -> bool | None:
    """Whether the logits are this sum, to the precision of autocast.

    None if nothing tells: there are no samples, numbers that are not finite, or only zeros, as from
    a layer that begins with zeros.
    """
    found = torch.stack([full(z) for z in several])
    off = (found.sum(0) - full(logits)).abs()
    if not len(off) or not off.isfinite().all() or not (found.any() or off.any()):
        return None
    return bool(off.max() <= 0.05 * found.abs().max())


@torch.no_grad()
def scale_(encoder: nn.Module, coefficient: Tensor | float, *, least: int = 2) -> None:
    """Multiplies the gradients of an encoder's weights that have `least` or more dimensions.

    A coefficient tensor that is not finite changes nothing: a gradient scaler (AMP in float16) has
    already checked the gradients, and would let the optimiser use what is written here.
    """
    if isinstance(coefficient, Tensor):
        coefficient = coefficient.nan_to_num(1.0, 1.0, 1.0)
    for parameter in encoder.parameters():
        grad = parameter.grad
        if grad is not None and grad.ndim >= least:
            if isinstance(coefficient, Tensor):
                coefficient = coefficient.to(grad.device)
            distributed.local(grad).mul_(coefficient)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers in the same memory; any other as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def check_dense(encoder: nn.Module, method: object) -> None:
    """Raises if a gradient is sparse, before a method overwrites all of its numbers."""
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise UserError(
                f"{type(method).__name__} writes to every number of a gradient, but that of "
                f"'{name}' is sparse. Build its layer with sparse=False, or leave the encoder out."
            )


class Overflow:
    """Detects steps that a gradient scaler (AMP in float16) skips because they overflowed.

    The scaler skips a step if any gradient is not finite. This checks the gradients of the
    encoders, and of everything else that the logits of an epoch's first pass depend on. After a
    skipped step, a method must remember nothing of it; see `kept`. Nothing waits for the device.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        self.encoders = encoders
        self._parameters: list[nn.Parameter] | None = None

    def clear(self) -> None:
        """Forgets the parameters, so that they are looked up again."""
        self._parameters = None

    def watch(self, output: Output) -> None:
        """Looks up the parameters of a pass, if those of the epoch are unknown."""
        if self._parameters is None and output.logits.requires_grad:
            own = [p for encoder in self.encoders.values() for p in encoder.parameters()]
            seen = [output.logits, *(output.unimodal or {}).values()]
            leaves = (getattr(node, "variable", None) for node in nodes(seen))
            found = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
            self._parameters = list(dict.fromkeys([*own, *found]))

    def counts(self, found: Tensor) -> Bool[Tensor, ""]:
        """Whether a step counts: its gradients and all ranks' findings in it are finite."""
        squares = distributed.square_sums([self.gradients()], found.device)
        return squares.isfinite().all() & found.isfinite().all()

    def gradients(self) -> list[Tensor]:
        """The gradients to check."""
        grads = [p.grad for p in self._parameters or () if p.grad is not None]
        return [g._values() if g.is_sparse else g for g in grads]


def kept(counts: Bool[Tensor, ""], new: Tensor, old: Tensor) -> Tensor:
    """What a method remembers after a step: the new value if the step counts and it is finite."""
    return torch.where(counts & new.isfinite().all(), new, old.to(new))


class StepSum(Overflow):
    """Adds up what the passes of one step find, over gradient accumulation and ranks.

    Passes without gradients (a validation that computes the loss) are not training steps and do not
    count. Neither does a pass that overflowed beside others, since a loop may leave out its loss.
    """

    def __init__(self, encoders: Mapping[str, nn.Module] | None = None) -> None:
        """Starts empty.

        Args:
            encoders: Encoders of a method that remembers its findings and asks whether a step
                `counts`.
        """
        super().__init__(encoders or {})
        self.value: Tensor | None = None

    def clear(self) -> None:
        """Discards what an unfinished step left behind."""
        super().clear()
        self.value = None

    def add(self, x: Tensor, output: Output | None = None) -> None:
        """Adds the finding of one pass; its output is needed for `counts`."""
        if torch.is_grad_enabled():
            x = x.detach()
            self.value = x.clone() if self.value is None else _sum_of_finite(self.value, x)
            if output is not None:
                self.watch(output)

    def take(self, method: object, *, sharded: bool = True) -> Tensor:
        """The sum since the last step, over all ranks.

        Args:
            method: The calling method, for error messages.
            sharded: Whether each rank added its own findings; otherwise each added those of all.

        Raises:
            RuntimeError: If no loss was computed in this step.
        """
        name = type(method).__name__
        if self.value is None:
            raise UserRuntimeError(
                f"{name}.before_step came without a call of {name}.loss since the last step, so "
                "it knows no scores. Compute the loss with method.loss(output, target)."
            )
        found, self.value = distributed.sum_(self.value, sharded=sharded), None
        return found


def _sum_of_finite(one: Tensor, other: Tensor) -> Tensor:
    """The sum, without any part that is not finite."""
    total = one + other
    either = torch.where(one.isfinite().all(), one, other)
    return torch.where(total.isfinite().all(), total, either)


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    """The graph nodes that a backward pass from the roots would visit, each once."""
    todo, seen = [root.grad_fn for root in roots], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [parent for parent, _ in node.next_functions]
