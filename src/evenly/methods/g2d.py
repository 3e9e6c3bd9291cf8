"""Gradient-Guided Distillation (G2D).

Rakib, Bagavathi, "G2D: Boosting Multimodal Learning with Gradient-Guided Distillation", ICCV 2025,
https://arxiv.org/abs/2506.21514.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from evenly import distributed
from evenly.method import Criterion, Encoders, Info
from evenly.modulation import StepSum, full, scale_, scores
from evenly.output import Output
from evenly.presence import having, only, those
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.teachers import Taught, squared_error


def divergence(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], temperature: float
) -> Float[Tensor, ""]:
    """Distance of logits to a teacher's: T² KL(softmax(z' / T) ‖ softmax(z / T)), mean over n."""
    ours = (full(student) / temperature).log_softmax(-1)
    theirs = (full(teacher) / temperature).log_softmax(-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()


def leading(epoch: int, prioritise: int, modalities: int) -> int:
    """How many modalities are trained in an epoch: first one, then one more at a time.

    The first `prioritise` epochs are divided into M - 1 equal parts; in part j = 1 .. M - 1, j
    modalities lead.
    """
    if epoch >= prioritise:
        return modalities
    return 1 + epoch * (modalities - 1) // prioritise


def coefficients(score: Float[Tensor, " m"], lead: int) -> Float[Tensor, " m"]:
    """The factor for each encoder's gradient: 1 for the `lead` weakest teachers', else 0.

    A modality is held back if `lead` or more others score strictly below it, so ties hold none
    back.
    """
    weaker = (score.unsqueeze(0) < score.unsqueeze(1)).sum(1)
    return (weaker < lead).to(score.dtype)


class G2D(Taught):
    """Distils unimodal teachers into the fused model, and trains the weak modalities first.

    L = CE(z) + β Σ_m T² KL(softmax(z_m' / T) ‖ softmax(z / T)) + α Σ_m MSE(f_m, f_m'), with logits
    z_m' and features f_m' from a teacher, a unimodal model of modality m.

    Sequential modality prioritisation: in the first epochs, if a modality's teacher gives the true
    classes more probability than the others' teachers (s_m = Σ_i softmax(z_m,i')[y_i] over the
    batch), its encoder's gradient is multiplied by 0, so that the weaker modality leads. After
    that, all are trained.

    Without gradients, as in a validation, the loss is CE(z) alone, since teachers know only the
    training split.
    """

    info = Info(
        title="Gradient-Guided Distillation (G2D)",
        paper="Rakib, Bagavathi. G2D: Boosting Multimodal Learning with Gradient-Guided "
        "Distillation. ICCV 2025",
        year=2025,
        url="https://arxiv.org/abs/2506.21514",
        category="optimisation",
        writes="gradients",
        modalities="the released code has two: in the prioritised epochs only the weaker is "
        "trained; with more, the weakest alone, then the two weakest, and so on, for equal shares "
        "of these epochs; with one, it is distilled and nothing else",
        neutral={"feature_weight": 0.0, "logit_weight": 0.0, "prioritise": 0},
        epochs=300,
        in_epochs=("prioritise", "teacher_epochs"),
        needs=("unimodal", "index"),
        unimodal="tries",
        needs_probe=True,
        head="late",
        cost="a divergence and a squared error for each modality; before the first epoch, the "
        "training of the teachers (`teacher_epochs` epochs) and one pass over the training split",
        budget=1.05,
        missing=True,
        doubts="The released code has two modalities; the order of three or more is our "
        "reading. As in that code, teachers are compared in each batch; in a tie it "
        "fails, while here none is held back. It prioritises from epoch 0 to 150 "
        "inclusive, here for 150 epochs. It changes only four-dimensional tensors (the "
        "convolutions of its ResNets); here all weights of two or more dimensions. Its "
        "teachers come from the epoch with the best test accuracy; here from the last "
        "one, so that no split decides, at the student's starting learning rate. "
        "Teachers are evaluated once, without augmentation, and the student starts from "
        "the weights that the teachers started from. What the teachers give for each "
        "sample is part of every checkpoint. It comes from one pass over the training "
        "split in which no batch may lack a modality, though training batches may.",
    )
    state: ClassVar[tuple[str, ...]] = ("teachers", "samples", "epoch")

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        feature_weight: float = 1.0,
        logit_weight: float = 1.0,
        temperature: float = 1.0,
        prioritise: int = 150,
        teacher_epochs: int = 300,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares distillation and prioritisation.

        Args:
            encoders: The modules that are taught and whose gradients are changed, by modality.
            optimizer: The training's optimiser; teachers use another of its kind with its settings.
            feature_weight: α, weight of the squared errors of the features.
            logit_weight: β, weight of the divergences of the logits.
            temperature: T, by which logits are divided, above 0.
            prioritise: The number of first epochs in which the weaker modalities lead (the authors:
                half of the training); 0 for none.
            teacher_epochs: Epochs that teachers are trained for.
            seed: Seed of the teachers' training.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(
            encoders,
            optimizer=optimizer,
            teacher_epochs=teacher_epochs,
            seed=seed,
            criterion=criterion,
        )
        check_range(
            self,
            "finite and not negative",
            feature_weight=feature_weight,
            logit_weight=logit_weight,
        )
        check_range(self, "finite and above 0", temperature=temperature)
        check_range(self, "not negative", prioritise=prioritise)
        self.feature_weight, self.logit_weight = feature_weight, logit_weight
        self.temperature, self.prioritise = temperature, prioritise
        self.epoch = -1
        self._score = StepSum()

    @property
    def needs_teachers(self) -> bool:
        """Whether there is any distillation or prioritisation."""
        prioritises = self.prioritise > 0 and len(self.encoders) > 1
        return self.feature_weight > 0 or self.logit_weight > 0 or prioritises

    @property
    def is_prioritising(self) -> bool:
        """Whether an encoder may be held back in this epoch."""
        return 0 <= self.epoch < self.prioritise and len(self.encoders) > 1

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Trains the teachers before the first epoch; notes the epoch."""
        super().before_epoch(epoch, probe)
        self.epoch = epoch
        self._score.clear()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + β Σ_m T² KL(z_m' ‖ z) + α Σ_m MSE(f_m, f_m'); also takes the scores."""
        loss = super().loss(output, target)
        if not self.needs_teachers or not torch.is_grad_enabled():
            return loss
        rows = self._rows(output, target)
        loss = loss + distributed.idle(self._unimodal(output).values())
        device = output.logits.device
        logits = {name: self._taught(f"logits/{name}", rows, device) for name in self.encoders}
        if self.is_prioritising:
            here = having(output, *self.encoders)
            known = torch.stack([those(z, here) for z in logits.values()])
            self._score.add(scores(known, those(target, here)))
        for name, features in self._features(output).items():
            here = having(output, name)
            if self.logit_weight > 0:
                student, teacher = (only(z, here) for z in (output.logits, logits[name]))
                kl = divergence(student, teacher, self.temperature)
                loss = loss + self.logit_weight * kl
            if self.feature_weight > 0:
                teacher = self._taught(f"features/{name}", rows, features.device)
                error = squared_error(only(features, here), only(teacher, here))
                loss = loss + self.feature_weight * error
        return loss

    def before_step(self) -> None:
        """Holds the encoders of the strongest teachers back."""
        if not self.is_prioritising:
            return
        lead = leading(self.epoch, self.prioritise, len(self.encoders))
        found = coefficients(self._score.take(self), lead)
        for coefficient, encoder in zip(found, self.encoders.values(), strict=True):
            scale_(encoder, coefficient)
        self.metrics = self._per_modality(coefficient=found)

    def _given(self, output: Output) -> dict[str, Tensor]:
        logits = {f"logits/{name}": value for name, value in self._unimodal(output).items()}
        return super()._given(output) | logits
