"""MMPareto.

Wei, Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024,
https://arxiv.org/abs/2405.17730.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserRuntimeError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import as_real, check_dense, full
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import ANY


def min_norm_share(
    jj: Float[Tensor, ""], jo: Float[Tensor, ""], oo: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The a that minimises ‖a j + (1 - a) o‖, from the three inner products of j and o.

    In place of 1 or 0 it is 0.999 or 0.001, so that no gradient is lost altogether.
    """
    between = (oo - jo) / (jj + oo - 2 * jo)
    return torch.where(jo >= jj, 0.999, torch.where(jo >= oo, 0.001, between))


def joint_share(
    jj: Float[Tensor, ""], jo: Float[Tensor, ""], oo: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The weight of the joint gradient j beside o: 1/2 if they agree, else that of least norm."""
    return torch.where(jo > 0, 0.5, min_norm_share(jj, jo, oo))


def enlargement(
    norm: Float[Tensor, " t"], plain: Float[Tensor, " t"], gamma: float
) -> Float[Tensor, " t"]:
    """The factor for each tensor of a gradient: γ max(1, ‖plain sum‖ / ‖gradient‖)."""
    return gamma * torch.where(norm > 0, plain / norm, 1.0).clamp_min(1.0)


class MMPareto(Method):
    """Trains the fused and each unimodal prediction in a direction that serves both.

    L = CE(z) + Σ_m CE(z_m). Encoder m receives two gradients, g of CE(z) and g_m of CE(z_m).
    If their inner product is positive, they are added. Otherwise they are combined into 2 a g + 2
    (1 - a) g_m with the a of least norm, whose inner product with neither is negative. Each tensor
    of the result is then multiplied by γ max(1, ‖g + g_m‖ / ‖result‖), since larger gradients find
    flatter minima. Everything but the encoders gets its plain gradient.
    """

    info = Info(
        title="MMPareto",
        paper="Wei, Hu. MMPareto: Boosting Multimodal Learning with Innocent Unimodal "
        "Assistance. ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2405.17730",
        category="optimisation",
        writes="gradients",
        targets=ANY,
        modalities="any number; an encoder has two losses however many there are",
        neutral="it always trains the unimodal losses, too, and combines conflicting "
        "gradients by a rule that has no setting to switch it off",
        epochs=50,
        needs=("unimodal",),
        unimodal="trains",
        head="multi",
        cost="a second backward pass through each encoder, which under FSDP2 gathers its "
        "parameters and cuts its gradients once more",
        budget=2.1,
        scales_gradients=True,
        missing=True,
        doubts="γ is part of what distinguishes the method from plain multi-loss training. "
        "Adam divides γ out, but not the direction. As in the released code, conflict "
        "is judged on a whole encoder and the size of the result tensor by tensor. The "
        "inner products are non-negative before the tensors are enlarged one by one. If "
        "FSDP2 shards the parameters, the unimodal losses have their own backward pass, "
        "and the rest follows; a unimodal prediction that also reads another modality's "
        "encoder would then add to that encoder's own gradient, and gradients must be "
        "synchronised in every pass of an accumulation.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        gamma: float = 1.5,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: The modules whose gradients are combined, by modality.
            gamma: γ, the factor on the result, above 0 (the paper: 1.5).
            criterion: See `Method`.

        Raises:
            ValueError: If gamma is not positive.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "above 0", gamma=gamma)
        self.gamma = gamma
        self._passes: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._own: dict[nn.Parameter, Tensor] = {}
        self._norm: Tensor | None = None
        self._shards: list[nn.Parameter] = []

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards an unfinished step, and checks whether parameters are sharded over ranks.

        Raises:
            RuntimeError: If the encoders are only partly sharded, or in several ways.
        """
        self._forget()
        if probe is not None:  # after the loop's own validation, FSDP2's root is still whole
            distributed.reshard(probe.model)
        parameters = [p for encoder in self.encoders.values() for p in _trainable(encoder)]
        self._shards = [p for p in parameters if distributed.is_sharded(p)]
        if 0 < len(self._shards) < len(parameters):
            raise UserRuntimeError(
                f"MMPareto: {len(self._shards)} of the encoders' {len(parameters)} parameters are "
                "sharded over ranks (FSDP2). Shard all of them or none."
            )
        if len(set(map(distributed.cut, self._shards))) > 1:
            raise UserRuntimeError(
                "MMPareto: the encoders' parameters are sharded in several ways. Shard all of "
                "them on one mesh."
            )

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m); keeps each CE(z_m) for its own gradient."""
        loss = super().loss(output, target)
        own = {name: self.criterion(z, target) for name, z in self._unimodal(output).items()}
        for value in own.values():
            loss = loss + value
        if torch.is_grad_enabled():
            self._passes.append((loss, own))
        return loss

    def backward(self, loss: Tensor) -> None:
        """Fills in the gradients of the sum, and separately those of each unimodal loss.

        Raises:
            RuntimeError: If the loss is not this method's, or FSDP2 was told not to synchronise.
        """
        passes, self._passes = self._passes, []
        if not passes:
            raise UserRuntimeError(
                "MMPareto.backward was called before MMPareto.loss. Compute the loss with "
                "method.loss(output, target)."
            )
        # The factor by which the loop scaled each pass, read from the graph itself.
        sums = [total for total, _ in passes]
        factors = torch.autograd.grad(loss, sums, retain_graph=True, allow_unused=True)
        weighted = [
            (own, factor)
            for factor, (_, own) in zip(factors, passes, strict=True)
            if factor is not None
        ]
        if self._shards:
            self._backward_by_turns(loss, weighted)
        else:
            for own, factor in weighted:
                self._add_own(own, factor)
            loss.backward()
        for encoder in self.encoders.values():
            check_dense(encoder, self)
        self._norm = _total(self._gradient_norms())

    def before_step(self) -> None:
        """Combines the two gradients of each encoder.

        Raises:
            RuntimeError: If the gradients were not filled by `backward`.
        """
        if self._norm is None:
            raise UserRuntimeError(
                "MMPareto.before_step was called without MMPareto.backward since the last "
                "step, so there are no unimodal gradients. Call method.backward(loss) instead "
                "of loss.backward()."
            )
        plain = self._gradient_norms()
        # AMP may have unscaled the gradients since the last backward pass, but not ours.
        scale = torch.where(self._norm > 0, _total(plain) / self._norm, 1.0)
        self.metrics = {}
        for name, encoder in self.encoders.items():
            parameters = _trainable(encoder)
            if not self._shards and any(map(distributed.is_sharded, parameters)):
                raise UserRuntimeError(
                    f"MMPareto: the parameters of encoder '{name}' are sharded over ranks (FSDP2), "
                    "and were not before the epoch. Call method.before_epoch(epoch, probe)."
                )
            own = [self._own_of(p) for p in parameters]
            if not self._shards:  # FSDP2 averages what it shards
                own = _averaged(own)
            pairs = [(p.grad, o) for p, o in zip(parameters, own, strict=True)]
            held = [(grad, o) for grad, o in pairs if grad is not None]
            if held:  # otherwise the whole step lacked the modality
                grads, others = ([pair[n] for pair in held] for n in (0, 1))
                self._combine(name, grads, others, scale, plain[name])
        self._forget()

    def _own_of(self, parameter: nn.Parameter) -> Tensor:
        found = self._own.get(parameter)
        return torch.zeros_like(parameter) if found is None else found

    def _add_own_of(self, parameter: nn.Parameter, grad: Tensor | None) -> None:
        if grad is not None:
            before = self._own.get(parameter)
            self._own[parameter] = grad if before is None else before + grad

    def _add_own(self, own: dict[str, Tensor], factor: Tensor) -> None:
        for name, value in own.items():
            parameters = _trainable(self.encoders[name])
            grads = torch.autograd.grad(
                value, parameters, factor.to(value), retain_graph=True, allow_unused=True
            )
            for parameter, grad in zip(parameters, grads, strict=True):
                self._add_own_of(parameter, grad)

    def _backward_by_turns(
        self, loss: Tensor, weighted: list[tuple[dict[str, Tensor], Tensor]]
    ) -> None:
        """Fills both gradients with two backward passes, since FSDP2 shards only what these fill.

        The first pass takes the unimodal losses and the second the rest, so everything outside the
        encoders ends with its plain gradient.
        """
        values = [value for own, _ in weighted for value in own.values()]
        factors = [factor.to(value) for own, factor in weighted for value in own.values()]
        before = [p.grad for p in self._shards]
        for parameter in self._shards:
            parameter.grad = None
        # The loss itself has weight 0 in the first, but reaches every parameter that the second
        # does: if some ranks lack a modality, all must still reduce the same gradients.
        alone = [*values, loss], [*factors, torch.zeros_like(loss)]
        torch.autograd.backward(*alone, retain_graph=True)
        found = [p.grad for p in self._shards]
        if all(grad is None for grad in found):
            raise UserRuntimeError(
                "MMPareto: a backward pass left no gradients in the encoders' shards (FSDP2). "
                "Under gradient accumulation call model.set_requires_gradient_sync(True) before "
                "each pass (accelerate: GradientAccumulationPlugin(sync_each_batch=True)), or "
                "accumulate under DistributedDataParallel."
            )
        for parameter, grad in zip(self._shards, before, strict=True):
            parameter.grad = grad
        for value, factor in zip(values, factors, strict=True):
            loss = loss - factor * value
        loss.backward()
        for parameter, grad in zip(self._shards, found, strict=True):
            self._add_own_of(parameter, grad)
            if grad is not None:
                parameter.grad = grad.clone() if parameter.grad is None else parameter.grad + grad

    @torch.no_grad()
    def _combine(
        self, name: str, grads: list[Tensor], own: list[Tensor], scale: Tensor, plain: Tensor
    ) -> None:
        """Writes the combined gradient of an encoder over the plain one, tensor by tensor.

        It works in place and leaves `own` alone, since autograd's tensors may share memory.

        Args:
            name: The encoder's modality.
            grads: The encoder's gradients of the sum.
            own: Those of its unimodal loss.
            scale: The factor by which the loop has scaled `grads` since.
            plain: Norms of `grads`.
        """
        reference = grads[0]
        grads = [as_real(distributed.local(grad)) for grad in grads]
        own = [as_real(distributed.local(grad)) for grad in own]
        scale = scale.to(grads[0].device)
        jj, jo, oo = distributed.sum_shards_(_products(grads, own, scale), reference)
        # In float16 the unimodal gradient may overflow although the sum, which a gradient scaler
        # has checked, does not. It is then dropped.
        is_whole = oo.isfinite()
        jj = torch.where(is_whole, jj, plain.square().sum())
        jo, oo = (torch.where(is_whole, x, 0.0) for x in (jo, oo))
        a = joint_share(jj, jo, oo)
        # 2 a j + 2 (1 - a) o, with o the scaled `own` and j = `grads` - o
        weights = 2 * a, (2 - 4 * a) * scale
        norms = _over_shards(_combine_(grads, own, *weights, is_whole), reference)
        factors = enlargement(norms, plain, self.gamma)
        torch._foreach_mul_(grads, list(factors.to(grads[0]).unbind()))
        self.metrics[f"share/{name}"] = a
        self.metrics[f"cosine/{name}"] = jo / (jj * oo).sqrt().clamp_min(1e-30)

    def _gradient_norms(self) -> dict[str, Float[Tensor, " t"]]:
        """The current norms of each encoder's existing gradients, by modality."""
        grads = {
            name: [p.grad for p in _trainable(encoder) if p.grad is not None]
            for name, encoder in self.encoders.items()
        }
        return {name: _norms(found) for name, found in grads.items() if found}

    def _forget(self) -> None:
        self._passes, self._own, self._norm = [], {}, None


def _trainable(encoder: nn.Module) -> list[nn.Parameter]:
    return [p for p in encoder.parameters() if p.requires_grad]


def _norms(tensors: list[Tensor]) -> Float[Tensor, " t"]:
    """The norm of each tensor, sharded or not."""
    return _over_shards(distributed.norms([distributed.local(x) for x in tensors]), tensors[0])


def _over_shards(norms: list[Tensor], reference: Tensor) -> Float[Tensor, " t"]:
    """The norms of whole tensors from this rank's parts, if the reference is sharded."""
    found = torch.stack(norms)
    if distributed.is_sharded(reference):
        return distributed.sum_shards_(found.square(), reference).sqrt()
    return found


def _total(norms: dict[str, Float[Tensor, " t"]]) -> Float[Tensor, ""]:
    """The norm of all gradients together, from those of each encoder's tensors."""
    device = next((found.device for found in norms.values()), torch.device("cpu"))
    squares = [found.square().sum().to(device) for found in norms.values()]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _products(grads: list[Tensor], own: list[Tensor], scale: Tensor) -> Float[Tensor, "3"]:
    """⟨j, j⟩, ⟨j, o⟩ and ⟨o, o⟩, with o the scaled `own` and j = `grads` - o."""
    own = [full(other) for other in own]  # in float16 a product of finite numbers may be infinite
    joint = [
        torch.addcmul(full(grad), other, -scale) for grad, other in zip(grads, own, strict=True)
    ]
    jj, oo = (torch.stack(distributed.norms(x)).square().sum() for x in (joint, own))
    # Not a product of vectors, which would copy the gradients of channels-last weights.
    inner = [j.mul_(o).sum() for j, o in zip(joint, own, strict=True)]
    return torch.stack([jj, torch.stack(inner).sum() * scale, oo * scale.square()])


def _combine_(
    grads: list[Tensor], own: list[Tensor], weight: Tensor, other: Tensor, is_whole: Tensor
) -> list[Tensor]:
    """Overwrites `grads` with the weighted sum, and returns its norms."""
    if is_whole.device.type != "cpu":
        own = [torch.where(is_whole, one, one.new_zeros(())) for one in own]
    elif not is_whole:  # on a CPU, this test waits for nothing
        own = [torch.zeros_like(one) for one in own]
    for grad, one in zip(grads, own, strict=True):
        grad.mul_(weight.to(grad)).addcmul_(one, other.to(grad))
    return distributed.norms(grads)


def _averaged(tensors: list[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all ranks, in one reduction."""
    if distributed.world_size() == 1:
        return tensors
    flat = distributed.mean_(torch.cat([x.flatten() for x in tensors]))
    parts = flat.split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]
