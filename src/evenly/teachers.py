"""What methods that learn from unimodal teachers share: the teachers, as tables.

A teacher does not change during training, so its outputs are computed once, for the whole training
split, and looked up from then on: no step runs a teacher.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from evenly import numbering
from evenly.errors import UserError, UserRuntimeError
from evenly.method import Criterion, Encoders, Method
from evenly.optimizers import check_trains, unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def squared_error(
    features: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Distance of features to a teacher's: MSE = mean over samples and columns of (f - f')²."""
    return (features - teacher).square().mean()


class Taught(Method):
    """A method with a teacher for each modality.

    Before the first epoch, encoders and unimodal heads are trained by Σ_m CE(z_m) alone, in which
    every modality learns by itself. Then they are reset, and the student starts from there. The
    teachers' outputs for the training split are kept.

    Attributes:
        teachers: By 'features/' or 'logits/' and modality, one row for each sample of the
            training split, in the order of `samples`.
        samples: The samples in the tables, by their `Output.index`.
    """

    state: ClassVar[tuple[str, ...]] = ("teachers", "samples")

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        teacher_epochs: int,
        seed: int,
        criterion: Criterion | None,
    ) -> None:
        """Prepares the teachers.

        Args:
            encoders: The modules to teach, by modality.
            optimizer: The training's optimiser; teachers use another of its kind with its settings.
            teacher_epochs: Epochs that teachers are trained for.
            seed: Seed of the teachers' training.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If teachers have no epoch.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "at least 1", teacher_epochs=teacher_epochs)
        self.optimizer = unwrapped(optimizer)
        self.teacher_epochs, self.seed = teacher_epochs, seed
        self.teachers: dict[str, Tensor] = {}
        self.samples: numbering.Samples = {}

    @property
    def needs_teachers(self) -> bool:
        """Whether the settings leave anything to learn from a teacher."""
        return True

    def is_due(self, epoch: int) -> bool:
        """Whether teachers are trained before this epoch (from 0): before the first."""
        return epoch == 0 and self.needs_teachers

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Trains the teachers once, before the first epoch it is called for."""
        if self.teachers or not self.needs_teachers:
            return
        probe = self._probe(probe)
        check_trains(self.optimizer, self.encoders, type(self).__name__)
        # Encoders share nothing, so under the sum of their losses each is trained by itself.
        with probe.trained(
            self._objective,
            epochs=self.teacher_epochs,
            optimizer=self.optimizer,
            seed=self.seed,
            criterion=self.criterion,
        ):
            found = probe.features("train", lambda output, _: self._given(output), every=True)
            samples, teachers = numbering.samples(found, type(self).__name__)
        for key, table in teachers.items():
            self._check_finite(key, table)
        self.samples, self.teachers = samples, teachers

    def _objective(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m); refuses a model that cannot be taught, before the training."""
        self._need(output, "index")
        return self._unimodal_loss(output, target)

    def _given(self, output: Output) -> dict[str, Tensor]:
        """What to keep from the teachers."""
        return {f"features/{name}": value for name, value in self._features(output).items()}

    def _check_finite(self, key: str, table: Float[Tensor, "n _"]) -> None:
        if len(bad := (~table.isfinite().all(1)).nonzero()):
            part, name = key.split("/", 1)
            raise UserError(
                f"{type(self).__name__}: the {part} of the teacher of '{name}' are NaN or infinite "
                f"for sample {int(bad[0])} of the training split, so nothing can be learnt from "
                "it. Lower the learning rate, clean the input, or use another precision than "
                "float16, which ends at 65,504."
            )

    def _rows(self, output: Output, target: Tensor) -> Int[Tensor, " n"]:
        """Where the samples of a batch are in the teachers' tables."""
        if not self.teachers:
            raise UserRuntimeError(
                f"{type(self).__name__}.loss came before any teacher was trained. Call "
                "before_epoch before the first batch of an epoch, or load the method's state."
            )
        index = self._need(output, "index")
        return numbering.rows(self.samples, index, target, type(self).__name__)

    def _taught(
        self, key: str, rows: Int[Tensor, " n"], device: torch.device
    ) -> Float[Tensor, "n _"]:
        """A teacher's outputs for the samples of a batch."""
        table = self.teachers[key]
        if table.device != device:  # after a checkpoint was loaded
            table = self.teachers[key] = table.to(device)
        return table[rows.to(device)]
