"""Classifier-guided gradient modulation (CGGM).

Guo, Jin, Chen, Zhao, "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning",
NeurIPS 2024, https://arxiv.org/abs/2411.01409.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.chance import stream
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept, scale_
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range

TINY = 1e-8
"""A tiny number added to the total gain, and to each share of it."""


def coefficients(improvement: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The other modalities' share of the total gain: (Σ_j Δ_j - Δ_m) / Σ_j Δ_j.

    A modality that lost accuracy counts as one that gained nothing. If none gained, all get 1: as
    in the released code, a tiny number is added to numerator and denominator. The shares thus stay
    between 0 and 1, while the plain quotient grows without bound as the sum nears 0.
    """
    gain = improvement.clamp_min(0)
    total = gain.sum()
    return (total - gain + TINY) / (total + TINY)


def cosine(one: Float[Tensor, "c d"], other: Float[Tensor, "c d"]) -> Float[Tensor, ""]:
    """The cosine of two gradients; a constant 0 if either of them is zero."""
    tiny = torch.finfo(other.dtype).tiny ** 0.5
    units = one / one.norm().clamp_min(tiny), other / other.norm().clamp_min(tiny)
    product: Tensor = (units[0] * units[1]).sum()
    return product


def direction_loss(share: Float[Tensor, " m"], cosines: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """(Σ_m |c_m| - Σ_m c_m cos_m) / M; 0 if all gradients agree."""
    return (share.abs() - share * cosines).mean()


def adam(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, step: int | Tensor, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (Kingma, Ba, ICLR 2015): the new weight and its two moments."""
    first = first.lerp(grad, 0.1)
    second = second.lerp(grad.square(), 0.001)
    spread = (second / (1 - 0.999**step)).sqrt()
    return weight - rate * first / (1 - 0.9**step) / (spread + 1e-8), first, second


def untrained(classes: int, width: int, seed: int, number: int) -> Float[Tensor, "c w"]:
    """The initial weights of a linear layer as torch draws them, bias last, on the CPU."""
    bound = (width - 1) ** -0.5
    drawn = stream(torch.device("cpu"), seed, number)
    return torch.empty(classes, width).uniform_(-bound, bound, generator=drawn)


class CGGM(Method):
    """Guides encoders by how fast, and in which direction, unimodal classifiers improve.

    The method has its own linear classifier for each modality, which learns from the detached
    features. In each step, with Δ_m the change of its accuracy on the batch since the last step,
    the gradient of encoder m is multiplied by ρ c_m, where c_m = (Σ_j Δ_j - Δ_m) / Σ_j Δ_j; see
    `coefficients`.

    The direction loss (Σ_m |c_m| - Σ_m c_m cos(g_m, h_m)) / M, with the shares c_m of the last
    step, is added with weight λ. Here g_m is the gradient of the classifier's weights on this
    batch, and h_m = Σ_i ∂CE(z_i)/∂z_i ⊗ f_m,i that of the fused head's if it is linear. Both follow
    from logits and features alone, so any head will do. h_m is differentiated again, so the term
    reaches head and encoders.

    Attributes:
        classifiers: By modality, the weights of the classifiers, with the bias in the last column.
    """

    info = Info(
        title="Classifier-guided gradient modulation (CGGM)",
        paper="Guo, Jin, Chen, Zhao. Classifier-guided Gradient Modulation for Enhanced Multimodal "
        "Learning. NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2411.01409",
        category="optimisation",
        writes="gradients",
        modalities="two or more as in the paper; with one, it does nothing",
        neutral="the coefficients of all encoders add up to ρ (M - 1), so for more than two "
        "modalities or unequal progress no setting makes each of them 1",
        epochs=30,
        cost="M linear classifiers and the second derivative of the loss by the logits",
        budget=1.1,
        scales_gradients=True,
        multiplies=True,
        within_batch=True,
        doubts="The released code takes the cosine of parameters where the paper speaks of "
        "gradients; here it is that of the gradients. The code adds the last step's "
        "term to the next step's loss, so only the layer of the fused logits gets a "
        "gradient from it. Here the shares come from the last step and the cosines from "
        "this batch, which is our reading, and head and encoders learn from it. Its "
        "classifiers are small transformers on sequences of features; here they are "
        "linear layers on vectors. The code lets the coefficients grow without bound "
        "and change sign as the changes of accuracy cancel; here losses of accuracy "
        "count as 0. As in the code, all get 1 if none gained or lost. Its scripts clip "
        "gradients to the norm 0.8 afterwards, which is left to the loop. The settings "
        "are those of its scripts for IEMOCAP and MOSI (30 epochs, Adam for the "
        "classifiers, too); the script for Food-101 uses lam = 0.05, 60 epochs and "
        "AdamW, which decays the classifiers' weights; here it is plain Adam. The "
        "direction loss uses the cosine of the gradients of one pass's batch, on its "
        "own rank, and the cosine of summed gradients is not their mean: with gradient "
        "accumulation or on several ranks, the result is not that of one large batch.",
    )
    state: ClassVar[tuple[str, ...]] = (
        "classifiers",
        "first",
        "second",
        "shares",
        "accuracy",
        "steps",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        rho: float = 1.3,
        lam: float = 0.2,
        rate: float = 5e-4,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            rho: ρ, the factor on all coefficients; above 0, 1.3 in the released code.
            lam: λ, weight of the direction loss; not negative, 0.2 for IEMOCAP and MOSI and 0.05
                for Food-101 in the released code.
            rate: Learning rate of the classifiers (Adam); above 0, 0.0005 in the released code.
            seed: Seed of the classifiers' initial weights, drawn from a separate stream.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and above 0", rho=rho, rate=rate)
        check_range(self, "finite and not negative", lam=lam)
        self.rho, self.lam, self.rate, self.seed = rho, lam, rate, seed
        self.classifiers: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.shares: Tensor | None = None
        self.accuracy: Tensor | None = None
        self.steps = torch.zeros((), dtype=torch.float64)  # of the classifiers
        self._found = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards what an unfinished step left behind."""
        self._found.clear()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) and the direction loss; also records what the classifiers need."""
        loss = super().loss(output, target)
        if len(self.encoders) == 1 or not torch.is_grad_enabled():
            return loss
        features = {name: full(value) for name, value in self._features(output).items()}
        cosines = self._note(output, features, target)
        if self.shares is not None and self.lam:
            loss = loss + self.lam * direction_loss(self.shares.to(cosines), cosines)
        return loss

    def before_step(self) -> None:
        """Changes the encoders' gradients, and trains the classifiers."""
        if len(self.encoders) == 1:
            return
        found = self._found.take(self)
        names = list(self.encoders)
        sizes = [self.classifiers[name].numel() for name in names]
        parts = found.split([1, len(names), len(names), *sizes])
        count, accuracy, cosines = parts[0], parts[1] / parts[0], parts[2] / parts[0]
        counts = self._found.counts(found)
        none = torch.zeros_like(accuracy)
        before = none if self.accuracy is None else self.accuracy.to(accuracy)
        shares = coefficients(accuracy - before)
        self.shares = kept(counts, shares, none if self.shares is None else self.shares)
        self.accuracy = kept(counts, accuracy, before)
        self.steps = self.steps.to(found.device) + counts
        tables = (self.classifiers, self.first, self.second)
        for n, name in enumerate(names):
            scale_(self.encoders[name], self.rho * shares[n], least=0)
            # a state may have been loaded onto another device
            weight, first, second = old = [table[name].to(found) for table in tables]
            grad = parts[3 + n].view_as(weight) / count
            new = adam(weight, grad, first, second, self.steps, self.rate)
            for table, x, before_it in zip(tables, new, old, strict=True):
                table[name] = kept(counts, x, before_it)
        self.metrics = self._per_modality(
            coefficient=self.rho * self.shares, accuracy=accuracy, cosine=cosines
        )

    def _slope(self, logits: Tensor, target: Tensor) -> Float[Tensor, "n c"]:
        """∂CE/∂z of the batch's mean loss, itself differentiable."""
        logits = full(logits)
        loss = self.criterion(logits, target)
        slope: Tensor = torch.autograd.grad(loss, logits, create_graph=True)[0]
        return slope

    def _note(
        self, output: Output, features: dict[str, Tensor], target: Tensor
    ) -> Float[Tensor, " m"]:
        """Sums what `before_step` needs; the cosines of classifiers' and fused gradients."""
        count, slope = len(target), self._slope(output.logits, target)
        right, own, cosines = [], [], []
        for name, value in features.items():
            x = nn.functional.pad(value.detach(), (0, 1), value=1.0)
            logits = (x @ self._classifier(name, x, slope.shape[1]).T).requires_grad_()
            error = torch.autograd.grad(self.criterion(logits, target), logits)[0]
            right.append((logits.argmax(1) == target).to(slope).sum())
            own.append(error.T @ x)
            cosines.append(cosine(own[-1][:, :-1], slope.T @ value))
        found = torch.stack(cosines)
        sums = (slope.new_full((1,), count), torch.stack(right), count * found)
        self._found.add(torch.cat([*sums, *(count * grad.flatten() for grad in own)]), output)
        return found

    def _classifier(self, name: str, x: Float[Tensor, "n d"], classes: int) -> Float[Tensor, "c d"]:
        """The weights of a modality's classifier, initialised like a linear layer's."""
        if name not in self.classifiers:
            number = list(self.encoders).index(name)
            self.classifiers[name] = untrained(classes, x.shape[1], self.seed, number).to(x)
            self.first[name] = torch.zeros_like(self.classifiers[name])
            self.second[name] = torch.zeros_like(self.classifiers[name])
        return self.classifiers[name].to(x)
