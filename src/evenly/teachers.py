"""What methods that learn from unimodal teachers have in common: the teachers, as tables.

A teacher does not change during training, so what it gives for a sample is computed once, for the
whole training split, and looked up from then on: no step runs a teacher.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from evenly import numbering
from evenly.errors import UserError, UserRuntimeError
from evenly.method import Criterion, Encoders, Method
from evenly.optimizers import unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def squared_error(
    features: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """How far features are from a teacher's: MSE = mean over samples and columns of (f - f')²."""
    return (features - teacher).square().mean()


class Taught(Method):
    """A method with a teacher for each modality.

    Before the first epoch encoders and unimodal heads are trained for Σ_m CE(z_m) alone, in
    which every modality learns by itself, and are then set back to where they stood: the
    student starts from there. What the teachers gave for the training split stays.

    Attributes:
        teachers: By 'features/' or 'logits/' and modality, one row for each sample of the
            training split, in the order of `samples`.
        samples: Which they are, by the number that `Output.index` gives each.
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
            encoders: By modality, what is taught.
            optimizer: The one of the training; the teachers' is of its kind and settings.
            teacher_epochs: How long teachers are trained, in epochs.
            seed: Of the teachers' training.
            criterion: See `Method`.

        Raises:
            TypeError: If the optimizer is none.
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
        """Whether the settings leave anything to be learnt from a teacher."""
        return True

    def is_due(self, epoch: int) -> bool:
        """Whether teachers are trained before this epoch, from 0: before the first."""
        return epoch == 0 and self.needs_teachers

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Trains the teachers once, before the first epoch that this is called for."""
        if self.teachers or not self.needs_teachers:
            return
        probe = self._probe(probe)
        # Encoders share nothing, so under the sum of their losses each is trained by itself.
        with probe.trained(
            self._objective,
            epochs=self.teacher_epochs,
            optimizer=self.optimizer,
            seed=self.seed,
        ):
            found = probe.features("train", lambda output, _: self._given(output), every=True)
            samples, teachers = numbering.samples(found, type(self).__name__)
        for key, table in teachers.items():
            self._check_finite(key, table)
        self.samples, self.teachers = samples, teachers

    def _objective(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m); a model that cannot be taught is refused before the training."""
        self._need(output, "index")
        return self._unimodal_loss(output, target)

    def _given(self, output: Output) -> dict[str, Tensor]:
        """What to keep of the teachers."""
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
        """What a teacher gave for the samples of a batch."""
        table = self.teachers[key]
        if table.device != device:  # after a checkpoint was loaded
            table = self.teachers[key] = table.to(device)
        return table[rows.to(device)]
