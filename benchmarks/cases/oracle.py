"""The truth of a case, from many samples unseen in training."""

import copy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cases.case import Built, Case
from cases.plan import BATCH
from evenly.diagnosis.linear_probe import linear_probe
from evenly.features import Features

NOTHING, SOMETHING = 0.01, 0.12
"""Accuracy above chance: maximum if a modality is scarce, and minimum if it is not."""
NEEDLESS = 0.05
"""Maximum accuracy lost without a scarce modality; if more, it tells together with another."""
READ = 0.10
"""Minimum above chance: of learnt modalities, and of what an encoder learns alone."""
SOUND, MEMORISED = 0.12, 0.25
"""How much better an encoder separates training rows than fresh ones: maximum and minimum."""
CAUGHT_UP, BEHIND = 0.04, 0.12
"""How far it falls short of itself trained alone: maximum and minimum."""
IGNORED, FOLLOWED = 0.02, 0.10
"""Share of predictions that change with the modality: maximum and minimum."""
FIT = 5_000
"""Fresh samples to fit a probe on; it is evaluated on the others."""


@dataclass(frozen=True)
class Measures:
    """Measures of one modality; accuracies on fresh samples."""

    chance: float
    """The share of the largest class."""
    there: float
    """Bayes accuracy; for real data, that of `alone`."""
    alone: float
    """A probe on its encoder trained alone."""
    learnt: float
    """A probe on the joint model's encoder."""
    memorised: float
    """Accuracy of probes among training rows, minus the same among as many fresh ones."""
    followed: float
    """Predictions that change when it comes from another sample, while every other modality also
    does, each from a different one: so a copy shows its effect when its twin tells another
    class."""
    fall: float
    """Accuracy lost when it alone comes from another sample."""

    @property
    def verdict(self) -> str | None:
        """The true verdict, with a margin; None if near a border."""
        if self.there - self.chance <= NOTHING:
            # Two that tell the class only together are each at chance, and cannot be left out.
            return "scarce" if self.fall <= NEEDLESS else "learnt" if self.fall >= READ else None
        if self.there - self.chance < SOMETHING or self.alone - self.chance < READ:
            return None
        if self.memorised >= MEMORISED:
            return "over-trained"
        if self.memorised > SOUND:
            return None
        if self.alone - self.learnt >= BEHIND:
            return "suppressed"
        if self.alone - self.learnt > CAUGHT_UP or self.learnt - self.chance < READ:
            return None
        if self.followed <= IGNORED:
            return "unused"
        return "learnt" if self.followed >= FOLLOWED else None


def measured(case: Case, built: Built) -> dict[str, Measures]:
    """The oracle's measures by modality."""
    with torch.random.fork_rng([]):
        torch.manual_seed(case.seed + 77)
        return _measured(case, built)


def _measured(case: Case, built: Built) -> dict[str, Measures]:
    model = built.model.eval()
    (train, seen), (fresh, y) = case.rows("train"), case.rows("fresh")
    best = case.bayes()
    chance = y.bincount().max().item() / len(y)
    start = copy.deepcopy(model)
    start.load_state_dict(built.initial)
    few = min(len(seen), len(y))
    with torch.no_grad():
        features = model.encode(fresh)
    mixed = {name: _elsewhere(x) for name, x in features.items()}
    found = {}
    for name, x, known in zip(model.encoders, fresh, train, strict=True):
        encoder, trained = model.encoders[name], alone(start.encoders[name], known, seen, built)
        reached = probed(trained, x, y)
        nothing = not case.plan.parts[name].agree
        other = {name: _elsewhere(features[name])}
        guess, changed, conflict, turned = (
            _guess(model, some)
            for some in (features, {**features, **other}, mixed, {**mixed, **other})
        )
        found[name] = Measures(
            chance,
            best.get(name, chance if nothing else reached),
            reached,
            probed(encoder, x, y),
            crossed(encoder, known[:few], seen[:few]) - crossed(encoder, x[:few], y[:few]),
            (conflict != turned).float().mean().item(),
            ((guess == y).float() - (changed == y).float()).mean().item(),
        )
    model.train()
    return found


def _elsewhere(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x))]


def _guess(model: nn.Module, features: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.fuse(features).argmax(1)


def alone(encoder: nn.Module, x: Tensor, y: Tensor, built: Built) -> nn.Module:
    """A copy of an encoder, trained alone like the joint model, at the full rate."""
    encoder = copy.deepcopy(encoder).requires_grad_(True)
    with torch.no_grad():
        width = encoder(x[:2]).shape[1]
    head = nn.Linear(width, int(y.max()) + 1)
    rate = max(group["lr"] for group in built.optimizer.param_groups)
    settings = {"momentum": 0.9} if isinstance(built.optimizer, torch.optim.SGD) else {}
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = type(built.optimizer)(parameters, lr=rate, fused=True, **settings)
    for _ in range(built.epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            if len(rows) == 1:
                continue
            optimizer.zero_grad()
            cross_entropy(head(encoder(x[rows])), y[rows]).backward()
            optimizer.step()
    return encoder.eval()


def probed(encoder: nn.Module, x: Tensor, y: Tensor) -> float:
    """The accuracy of a linear probe on fresh samples.

    It is fitted on some and evaluated on the others; with few samples, by cross-validation.
    """
    if len(y) < 2 * FIT:
        return crossed(encoder, x, y, folds=5)
    with torch.no_grad():
        features = encoder(x)
    return linear_probe(_of(features[:FIT], y[:FIT]), _of(features[FIT:], y[FIT:]))["it"]


def crossed(encoder: nn.Module, x: Tensor, y: Tensor, folds: int = 2) -> float:
    """The cross-validated accuracy of probes on a few samples."""
    with torch.no_grad():
        features = encoder(x)
    fold, right = torch.arange(len(y)) % folds, 0.0
    for one in range(folds):
        rest, part = fold != one, fold == one
        found = linear_probe(_of(features[rest], y[rest]), _of(features[part], y[part]))
        right += found["it"] * int(part.sum())
    return right / len(y)


def _of(features: Tensor, y: Tensor) -> Features:
    return Features({"it": features}, y)


def as_dict(found: dict[str, Measures]) -> dict[str, dict[str, float]]:
    """The form for a line of JSON."""
    return {name: asdict(measures) for name, measures in found.items()}


def margins() -> list[str]:
    """The oracle's criteria in words; cases in between are left out."""
    return [
        f"scarce: at most {NOTHING} above chance, and at most {NEEDLESS} of accuracy lost without;",
        f"there: at least {SOMETHING} above chance, and {READ} by its encoder alone;",
        f"over-trained: probes among training rows at least {MEMORISED} better than among fresh "
        f"ones (others: at most {SOUND});",
        f"suppressed: its encoder alone at least {BEHIND} better (others: at most {CAUGHT_UP});",
        f"unused: at most {IGNORED} of the predictions follow it (learnt: at least {FOLLOWED}).",
    ]
