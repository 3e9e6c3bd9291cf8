"""Classifier-guided gradient modulation (CGGM).

Guo, Jin, Chen, Zhao, "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning",
NeurIPS 2024, https://arxiv.org/abs/2411.01409.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, scale_
from evenly.output import Output
from evenly.probe import Probe


def coefficients(improvement: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The share of the other modalities in what was gained: (Σ_j Δ_j - Δ_m) / Σ_j Δ_j.

    A modality that lost counts as one that gained nothing, and where none gained all get the
    share that they have at equal gains, (M - 1) / M. So the shares stay between 0 and 1, where
    the plain quotient grows without bound as the sum comes near 0.
    """
    gain = improvement.clamp_min(0)
    total = gain.sum()
    equal = (len(gain) - 1) / len(gain)
    return torch.where(total > 0, (total - gain) / total.clamp_min(1e-12), equal)


def direction(
    classifier: Float[Tensor, "c d"], fused: Float[Tensor, "c d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "c d"]]:
    """The cosine of two gradients, and its derivative with respect to the second.

    With units a and b of the two: ∂cos/∂fused = (a - cos · b) / ‖fused‖; 0 where one vanishes.
    """
    tiny = torch.finfo(fused.dtype).tiny ** 0.5
    lengths = classifier.norm(), fused.norm()
    a, b = classifier / lengths[0].clamp_min(tiny), fused / lengths[1].clamp_min(tiny)
    cosine = (a * b).sum()
    known = (lengths[0] > tiny) & (lengths[1] > tiny)
    return cosine, torch.where(known, (a - cosine * b) / lengths[1].clamp_min(tiny), 0.0)


def adam(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, step: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (Kingma, Ba, ICLR 2015): the new weight and its two moments."""
    first = first.lerp(grad, 0.1)
    second = second.lerp(grad.square(), 0.001)
    spread = (second / (1 - 0.999**step)).sqrt()
    return weight - rate * first / (1 - 0.9**step) / (spread + 1e-8), first, second


class CGGM(Method):
    """Guides encoders by how fast classifiers of single modalities improve, and to where.

    A linear classifier for each modality, of the method's own, learns from the features, to
    which it sends nothing back. In each step, with Δ_m the change of its accuracy on the batch
    since the last step, the gradient of encoder m is multiplied by ρ c_m, where
    c_m = (Σ_j Δ_j - Δ_m) / Σ_j Δ_j, see `coefficients`.

    The direction loss (Σ_m |c_m| - Σ_m c_m cos(g_m, h_m)) / M of one step is added to the next
    step's loss with weight λ. There g_m is the gradient of the classifier's weights and
    h_m = Σ_i ∂CE(z_i)/∂z_i ⊗ f_m,i that of the fused head's, for a linear one; both are known
    from logits and features alone, so the head may be any. What was computed in the last step is
    a constant for the next; so that the term has a gradient there, it enters to first order:
    -λ/M · Σ_m c_m ⟨∂cos/∂h_m, h_m(θ)⟩ with c_m and ∂cos/∂h_m of the last step and h_m(θ) of this
    batch, through which gradients reach head and encoders. That is a sum over samples, hence the
    same however a step is cut into passes and ranks.

    Attributes:
        classifiers: By modality, the weights of the classifiers, the bias being the last column.
    """

    info = Info(
        title="Classifier-guided gradient modulation (CGGM)",
        paper="Guo, Jin, Chen, Zhao. Classifier-guided Gradient Modulation for Enhanced Multimodal "
        "Learning. NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2411.01409",
        category="optimisation",
        writes="gradients",
        modalities="two or more as in the paper; with one, nothing is changed",
        neutral="none: the coefficients of all encoders add up to ρ (M - 1), so for more than two "
        "modalities or unequal progress no setting makes each of them 1",
        epochs=60,
        cost="M linear classifiers and the second derivative of the loss by the logits",
        budget=1.1,
        scales_gradients=True,
        doubts="The released code takes the cosine of parameters where the paper speaks of "
        "gradients; here it is that of the gradients, and how the term of the last step acts in "
        "the next (to first order) is this library's reading. Its classifiers are small "
        "transformers on sequences of features; here linear layers on vectors. It lets the "
        "coefficients grow without bound, and change sign, as the accuracies' changes cancel; "
        "here losses of accuracy count as 0. Its AdamW decays the classifiers' weights; here "
        "plain Adam.",
    )
    state: ClassVar[tuple[str, ...]] = (
        "classifiers",
        "first",
        "second",
        "pull",
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
            encoders: By modality, the modules whose gradients are changed.
            rho: ρ, which all coefficients are multiplied by; above 0, 1.3 in the paper.
            lam: λ, weight of the direction loss; not negative, 0.2 in the paper.
            rate: Learning rate of the classifiers (Adam); above 0, 0.0005 in the released code.
            seed: Of the classifiers' initial weights, which come from a stream of their own.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        for name, value in (("rho", rho), ("rate", rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"CGGM: '{name}' is above 0; found {value}.")
        if not 0 <= lam < math.inf:
            raise ValueError(f"CGGM: 'lam' is not negative; found {lam}.")
        self.rho, self.lam, self.rate, self.seed = rho, lam, rate, seed
        self.classifiers: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.pull: dict[str, Tensor] = {}
        self.accuracy: Tensor | None = None
        self.steps = 0
        self._found = StepSum()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Forgets what an unfinished step left."""
        self._found.clear()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) and the direction loss of the last step; the classifiers take note."""
        loss = super().loss(output, target)
        if len(self.encoders) == 1 or not torch.is_grad_enabled():
            return loss
        features = {name: full(value) for name, value in self._features(output).items()}
        slope = self._slope(output.logits, target)
        self._note(features, slope.detach(), target)
        for name, pull in self.pull.items():
            loss = loss - self.lam * (pull.to(slope) * (slope.T @ features[name])).sum()
        return loss

    def before_step(self) -> None:
        """Changes the encoders' gradients, and trains the classifiers."""
        if len(self.encoders) == 1:
            return
        found = self._found.take(self)
        names = list(self.encoders)
        sizes = [self.classifiers[name].numel() for name in names]
        parts = found.split([1, len(names), *sizes, *(self._fused(name) for name in names)])
        count = parts[0]
        accuracy = parts[1] / count
        before = 0.0 if self.accuracy is None else self.accuracy.to(accuracy)
        shares = coefficients(accuracy - before)
        cosines = []
        self.steps += 1
        pull = {}
        for n, name in enumerate(names):
            scale_(self.encoders[name], self.rho * shares[n], least=0)
            weight = self.classifiers[name]
            grad = parts[2 + n].view_as(weight) / count
            fused = parts[2 + len(names) + n].view_as(weight[:, :-1]) / count
            cosine, slope = direction(grad[:, :-1], fused)
            pull[name] = shares[n] / len(names) * slope
            cosines.append(cosine)
            self.classifiers[name], self.first[name], self.second[name] = adam(
                weight, grad, self.first[name], self.second[name], self.steps, self.rate
            )
        self.pull = pull if self.lam else {}
        self.accuracy = accuracy
        self.metrics = {
            f"{what}/{name}": values[n]
            for what, values in (
                ("coefficient", self.rho * shares),
                ("accuracy", accuracy),
                ("cosine", cosines),
            )
            for n, name in enumerate(names)
        }

    def _slope(self, logits: Tensor, target: Tensor) -> Float[Tensor, "n c"]:
        """∂CE/∂z of the batch's mean loss, of which gradients can be taken again."""
        logits = full(logits)
        loss = self.criterion(logits, target)
        slope: Tensor = torch.autograd.grad(loss, logits, create_graph=True)[0]
        return slope

    def _note(
        self, features: dict[str, Tensor], slope: Float[Tensor, "n c"], target: Tensor
    ) -> None:
        """Sums what `before_step` needs: samples, right answers, gradients of both kinds."""
        count = len(target)
        right, own, fused = [], [], []
        for name, value in features.items():
            x = nn.functional.pad(value.detach(), (0, 1), value=1.0)
            logits = (x @ self._classifier(name, x, slope.shape[1]).T).requires_grad_()
            error = torch.autograd.grad(self.criterion(logits, target), logits)[0]
            right.append((logits.argmax(1) == target).to(slope).sum())
            own.append(count * (error.T @ x).flatten())
            fused.append(count * (slope.T @ x[:, :-1]).flatten())
        counted = slope.new_tensor([count])
        self._found.add(torch.cat([counted, torch.stack(right), *own, *fused]))

    def _classifier(self, name: str, x: Float[Tensor, "n d"], classes: int) -> Float[Tensor, "c d"]:
        """The weights of a modality's classifier, which begin as a linear layer's do."""
        if name not in self.classifiers:
            stream = torch.Generator()
            stream.manual_seed(self.seed * 1_000_003 + list(self.encoders).index(name))
            bound = (x.shape[1] - 1) ** -0.5
            weight = torch.empty(classes, x.shape[1]).uniform_(-bound, bound, generator=stream)
            self.classifiers[name] = weight.to(x)
            self.first[name] = torch.zeros_like(x[:1]).expand(classes, -1).clone()
            self.second[name] = self.first[name].clone()
        return self.classifiers[name].to(x)

    def _fused(self, name: str) -> int:
        return self.classifiers[name][:, :-1].numel()
