"""Uni-Modal Teacher (UMT).

Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao, "On Uni-Modal Feature Learning in Supervised Multi-Modal
Learning", ICML 2023, https://arxiv.org/abs/2305.01233.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly import distributed
from evenly.method import Criterion, Encoders, Info
from evenly.output import Output
from evenly.presence import having, only
from evenly.ranges import check_range
from evenly.targets import ANY
from evenly.teachers import Taught, squared_error


class UMT(Taught):
    """Keeps each encoder's features near those of an encoder trained alone.

    L = CE(z) + γ Σ_m MSE(f_m, f_m'), with f_m' the features of a teacher, a unimodal model of
    modality m. Joint training alone leaves some of a modality's features unlearnt; the teachers
    have learnt them.

    Without gradients, as in a validation, the loss is CE(z) alone, since teachers know only the
    training split.
    """

    info = Info(
        title="Uni-Modal Teacher (UMT)",
        paper="Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao. On Uni-Modal Feature Learning in "
        "Supervised Multi-Modal Learning. ICML 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.01233",
        category="objective",
        writes="loss",
        targets=ANY,
        modalities="any number; each has its teacher",
        neutral={"gamma": 0.0},
        epochs=100,
        in_epochs=("teacher_epochs",),
        needs=("unimodal", "index"),
        unimodal="leaves",
        needs_probe=True,
        head="multi",
        cost="a squared error for each modality; before the first epoch, the training of the "
        "teachers (`teacher_epochs` epochs) and one pass over the training split",
        budget=1.05,
        missing=True,
        doubts="No released code was found. γ is that of a later re-implementation, and the "
        "mean over columns in the squared error is our reading. How long teachers and "
        "student train is not verified: by default, teachers train as long as the lab "
        "trains the student, at its starting learning rate. Teachers are evaluated "
        "once, without augmentation, and the student starts from the weights that the "
        "teachers started from; with augmented inputs, the paper's teachers would see "
        "what the student sees. What the teachers give for each sample is part of every "
        "checkpoint. It comes from one pass over the training split in which no batch may "
        "lack a modality, though training batches may. The student's loss leaves the "
        "unimodal heads unchanged except for weight decay.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        gamma: float = 10.0,
        teacher_epochs: int = 100,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the distillation.

        Args:
            encoders: The modules whose features have teachers, by modality.
            optimizer: The training's optimiser; teachers use another of its kind with its settings.
            gamma: γ, weight of the squared errors; 0 is joint training (the paper's value is not
                verified).
            teacher_epochs: Epochs that teachers are trained for.
            seed: Seed of the teachers' training.
            criterion: See `Method`.

        Raises:
            ValueError: If gamma is negative or not finite, or teachers have no epoch.
        """
        super().__init__(
            encoders,
            optimizer=optimizer,
            teacher_epochs=teacher_epochs,
            seed=seed,
            criterion=criterion,
        )
        check_range(self, "finite and not negative", gamma=gamma)
        if gamma == 0:
            self.info = replace(self.info, partial=True)
        self.gamma = gamma

    @property
    def needs_teachers(self) -> bool:
        """Whether there is any distillation."""
        return self.gamma > 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + γ Σ_m MSE(f_m, f_m')."""
        loss = super().loss(output, target)
        if not self.needs_teachers or not torch.is_grad_enabled():
            return loss
        rows = self._rows(output, target)
        loss = loss + distributed.idle(self._unimodal(output).values())
        self.metrics = {}
        for name, features in self._features(output).items():
            teacher = self._taught(f"features/{name}", rows, features.device)
            here = having(output, name)
            error = squared_error(only(features, here), only(teacher, here))
            self.metrics[f"error/{name}"] = error.detach()
            loss = loss + self.gamma * error
        return loss
