"""Self-distillation between modalities (MBSD).

Liu, Li, Song, Yang, Zeng, "Multimodal Pre-Training with Self-Distillation for Product
Understanding in E-Commerce", WSDM 2023, https://doi.org/10.1145/3539597.3570423.
"""

from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.presence import parts
from evenly.ranges import check_range


def lead(
    teacher: Float[Tensor, "n c"], student: Float[Tensor, "n c"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """How far ahead a teacher that is right is, from log-probabilities.

    w_i = relu(p_i[y_i] - q_i[y_i]), with p the teacher's and q the student's probabilities; 0
    where the teacher's most probable class is not the true one.
    """
    true = target.unsqueeze(1)
    ahead = (teacher.gather(1, true).exp() - student.gather(1, true).exp()).relu().squeeze(1)
    return ahead * (teacher.argmax(1) == target)


def divergence(teacher: Float[Tensor, "n c"], student: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """KL(p ‖ q) = Σ_c p_c (log p_c - log q_c) of each sample, from log-probabilities."""
    return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


class MBSD(Method):
    """Lets the modality that knows a sample best teach the others.

    L = CE(z) + Σ_m CE(z_m) + λ / P · Σ_{t ≠ s} mean_i w_i KL(p_t,i ‖ p_s,i), over all ordered pairs
    of a teacher t and a student s, with P = M (M - 1) / 2. For each sample, w_i is the teacher's
    lead in the probability of the true class, if the teacher is right (`lead`). Only the student
    gets a gradient.
    """

    info = Info(
        title="Multimodal self-distillation (MBSD)",
        paper="Liu, Li, Song, Yang, Zeng. Multimodal Pre-Training with Self-Distillation for "
        "Product Understanding in E-Commerce. WSDM 2023",
        year=2023,
        url="https://doi.org/10.1145/3539597.3570423",
        category="objective",
        writes="loss",
        modalities="any number; the mean over pairs, in each of which every sample has at most "
        "one teacher; with one modality, its own loss is added and nothing is taught",
        neutral="without distillation the losses of the modalities remain, as in multi_loss",
        needs=("unimodal",),
        unimodal="trains",
        head="multi",
        cost="M unimodal heads",
        budget=1.05,
        missing=True,
        doubts="Unverified: no code was released. Only the paper's idea is built, that the "
        "dominant modality passes its knowledge on to the weaker one, for "
        "classification and not for the paper's pre-training tasks. That this happens "
        "sample by sample, with this weight and the unit λ, follows re-implementations. "
        "They also pull logits together by their squared distance, and let a wrong "
        "teacher teach if the student is right; neither is done here.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        distillation: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            distillation: λ ≥ 0, weight of what the modalities learn from one another.
            criterion: See `Method`.

        Raises:
            ValueError: If the weight is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", distillation=distillation)
        self.distillation = distillation

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The fused and unimodal losses, and what modalities learn from one another."""
        loss = super().loss(output, target)
        unimodal = self._unimodal(output)
        for logits in unimodal.values():
            loss = loss + self.criterion(logits, target)
        if self.distillation == 0:
            return loss
        log_probability = {name: full(logits).log_softmax(-1) for name, logits in unimodal.items()}
        taught: dict[str, list[Tensor]] = {name: [] for name in unimodal}
        for part in parts(output, unimodal):
            pairs = max(len(part.names) * (len(part.names) - 1) // 2, 1)
            for one, other in permutations(part.names, 2):
                teacher, student = (part.of(log_probability[name]) for name in (one, other))
                teacher = teacher.detach()
                weight = lead(teacher, student.detach(), part.of(target))
                term = (weight * divergence(teacher, student)).mean()
                loss = loss + self.distillation / pairs * part.share * term
                taught[other].append(part.share * weight.mean())
        if torch.is_grad_enabled():
            self.metrics = {
                f"taught/{name}": torch.stack(w).sum() for name, w in taught.items() if w
            }
        return loss
