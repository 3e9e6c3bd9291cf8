"""The optimiser of a run: any in torch.optim by name, with its settings."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from evenly.errors import UserError
from evenly.spec import converted, parse
from evenly.suggest import unknown

_REFUSED = {
    "lbfgs": "evaluates the loss several times in a step, but a method acts on one backward pass",
    "sparseadam": "takes only sparse gradients, which no encoder or head here has",
}
_USUAL: Mapping[str, Mapping[str, Any]] = {"sgd": {"momentum": 0.9}}
"""Settings that differ from torch's own."""
_OPTIONS = ("lr", "weight_decay")
_NOT_OURS = ("params", *_OPTIONS, "maximize", "capturable", "differentiable")
"""Constructor parameters that are not settings: separate options, and what trains nothing."""


def optimizer_of(text: str, groups: Iterable[Any], lr: float, weight_decay: float) -> Optimizer:
    """An optimiser by name.

    Args:
        text: A name in torch.optim in lower case, optionally with settings:
            `adamw(betas=[0.9,0.98])`.
        groups: Parameters, or groups of them.
        lr: Learning rate of groups without their own.
        weight_decay: Weight decay as the optimiser defines it: `adam` adds it to the gradient,
            `adamw` shrinks the weights by it.

    Raises:
        ValueError: If the name or a setting is unknown, a setting is of another type or out of
            range, or the optimiser cannot train here.
    """
    spec, kinds = parse(text), _kinds()
    if spec.name in _REFUSED:
        raise UserError(
            f"--optimizer {spec.name} {_REFUSED[spec.name]}. Give another, such as adamw."
        )
    if spec.name not in kinds:
        raise unknown("optimiser", spec.name, kinds)
    kind = kinds[spec.name]
    takes, hints = inspect.signature(kind).parameters, get_type_hints(kind.__init__)
    settings = dict(_USUAL.get(spec.name, {}))
    for name, value in spec.settings.items():
        if name in _OPTIONS:
            raise UserError(
                f"--optimizer {text}: set '{name}' by its own option, --{name} {value}."
            )
        if name not in takes or name in _NOT_OURS:
            known = [known for known in takes if known not in _NOT_OURS]
            raise unknown(f"setting of {spec.name}", name, known)
        settings[name] = converted(f"{spec.name}: {name}", value, hints[name])
    if "weight_decay" in takes:
        settings["weight_decay"] = weight_decay
    elif weight_decay:
        raise UserError(f"--optimizer {spec.name} has no weight decay. Give --weight-decay 0.")
    try:
        return kind(groups, lr=lr, **settings)
    except (ValueError, RuntimeError) as error:
        said = str(error).rstrip(".")
        raise UserError(
            f"--optimizer {text} cannot be built: {said}. Change its settings."
        ) from error


def _kinds() -> dict[str, Callable[..., Optimizer]]:
    """The optimisers of this torch version that train a model here, by lower-case name."""
    found: dict[str, Callable[..., Optimizer]] = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    if "muon" in found:  # in torch from 2.9 on
        found["muon"] = MuonAdamW
    return {name: kind for name, kind in sorted(found.items()) if name not in _REFUSED}


class MuonAdamW(Optimizer):
    """torch.optim.Muon for matrices, and AdamW for all else.

    It is one optimiser rather than two, so that methods can train with another of its kind, or at
    rates by modality. Both share the learning rate and weight decay, which are AdamW's: Muon's
    steps are scaled to match, unless `adjust_lr_fn` says otherwise.

    Groups have a key `matrices`: if false, AdamW takes matrices, too.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Prepares it.

        Args:
            params: Parameters, or groups of them.
            lr: Learning rate.
            weight_decay: Decay of the weights themselves.
            momentum: Muon's momentum.
            nesterov: Whether Muon's momentum is Nesterov's.
            ns_coefficients: Coefficients of Muon's Newton-Schulz iteration.
            ns_steps: Steps of that iteration.
            adjust_lr_fn: How the size of a step depends on that of the matrix, see torch's Muon.
            betas: AdamW's betas.

        Raises:
            ValueError: If a setting is out of range.
        """
        for name, value in (("momentum", momentum), *zip(("beta 1", "beta 2"), betas, strict=True)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {value}")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps must be from 1 to 99, found {ns_steps}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "betas": betas,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds the matrices of a group as one, and the others as another."""
        fits = param_group.get("matrices", True)
        parameters = list(param_group["params"])
        for matrices in (True, False):
            mine = [p for p in parameters if (fits and p.ndim == 2) is matrices]
            if mine:
                super().add_param_group({**param_group, "params": mine, "matrices": matrices})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            (self._muon if group["matrices"] else self._adamw)(group, parameters, gradients)

    def _muon(
        self, group: Mapping[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        from torch.optim._muon import muon

        momenta = [self._remembered(p, "momentum_buffer") for p in parameters]
        names = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps")
        muon(
            parameters,
            gradients,
            momenta,
            **{name: group[name] for name in (*names, "adjust_lr_fn")},
            eps=1e-7,
            has_complex=False,
        )

    def _adamw(
        self, group: Mapping[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        for p in parameters:
            self.state[p].setdefault("step", torch.tensor(0.0))
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            [self._remembered(p, "exp_avg") for p in parameters],
            [self._remembered(p, "exp_avg_sq") for p in parameters],
            [],
            [self.state[p]["step"] for p in parameters],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _remembered(self, parameter: Tensor, name: str) -> Tensor:
        found: Tensor = self.state[parameter].setdefault(
            name, torch.zeros_like(parameter, memory_format=torch.preserve_format)
        )
        return found
