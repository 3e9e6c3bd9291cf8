"""Performance-dominant modality prioritisation (PDMP): the opposite of balance.

Wei, Luo, Zhu, Luo, "PDMP: Rethinking Balanced Multimodal Learning via Performance-Dominant
Modality Prioritization", arXiv 2026, https://arxiv.org/abs/2604.05773.
"""

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly import distributed
from evenly.errors import UserError, UserRuntimeError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import scale_
from evenly.optimizers import check_trains, unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def best_of(performance: Mapping[str, float]) -> str:
    """The performance-dominant modality: that of the best unimodal model, the first in a tie.

    Args:
        performance: Accuracy of each modality's unimodal model.
    """
    return max(performance, key=performance.__getitem__)


def coefficients(
    names: Iterable[str], dominant: str, prioritised: float, rest: float
) -> dict[str, float]:
    """The factor for each encoder's gradient: γ_p for the dominant modality, γ_r for all others."""
    return {name: prioritised if name == dominant else rest for name in names}


class PDMP(Method):
    """Lets the modality with the best unimodal model lead: a control for balancing methods.

    The gradient of its encoder is multiplied by γ_p > 1, those of the others by γ_r < 1; the loss
    is joint training's. Before the first epoch, the unimodal models are trained by Σ_m CE(z_m), in
    which every modality learns by itself, and compared on the validation split. Then all weights
    are restored. If you know the ranking, name the modality in `dominant`, and nothing is trained
    beforehand.

    Attributes:
        ranked: The modality found to be dominant, if the method searched for it.
    """

    info = Info(
        title="Performance-dominant modality prioritisation (PDMP)",
        paper="Wei, Luo, Zhu, Luo. PDMP: Rethinking Balanced Multimodal Learning via "
        "Performance-Dominant Modality Prioritization. arXiv 2026",
        year=2026,
        url="https://arxiv.org/abs/2604.05773",
        category="optimisation",
        writes="gradients",
        modalities="any number; with one, training is joint training",
        neutral={"prioritised": 1.0, "rest": 1.0},
        epochs=100,
        in_epochs=("ranking_epochs",),
        needs=("unimodal",),
        separate=True,
        unimodal="tries",
        needs_probe=True,
        cost="none in a step; before the first epoch, the training of the unimodal models "
        "(`ranking_epochs` epochs) and a pass over the validation split, unless `dominant` is "
        "given",
        keeps_loss=True,
        multiplies=True,
        scales_gradients=True,
        missing=True,
        doubts="The full text could not be read and no released code was found: the ranking by "
        "unimodal performance, γ_p > 1 and γ_r < 1 come from the abstract and from "
        "summaries. The paper tunes their values per data set, and we do not know them; "
        "ours have a mean of 1 for two modalities, as in joint training. That they "
        "apply to the whole training and to all of an encoder's parameters is our "
        "reading. So is the training of the unimodal models: they are the encoders "
        "under the model's own unimodal logits, which share a bias if the head is "
        "linear, and more if it mixes features. By default they train as long as the "
        "lab trains the multimodal model (100 epochs in our schedule), before it, at "
        "its starting learning rate, and are compared after the last epoch.",
    )
    state: ClassVar[tuple[str, ...]] = ("ranked",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        prioritised: float = 1.5,
        rest: float = 0.5,
        dominant: str | None = None,
        ranking_epochs: int = 100,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the prioritisation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            optimizer: The training's optimiser; unimodal models use another of its kind with its
                settings.
            prioritised: γ_p, at least 1.
            rest: γ_r, from 0 to 1.
            dominant: The modality with the best unimodal model, if known.
            ranking_epochs: Epochs that unimodal models are trained for.
            seed: Seed of their training.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If a setting is out of range or the dominant modality has no encoder.
        """
        super().__init__(encoders, criterion=criterion)
        if not 1 <= prioritised < math.inf:
            raise UserError(
                f"PDMP: 'prioritised' must be finite and at least 1; found {prioritised}."
            )
        check_range(self, "from 0 to 1", rest=rest)
        if dominant is not None and dominant not in self.encoders:
            raise UserError(
                f"PDMP: 'dominant' must be one of {sorted(self.encoders)}; found '{dominant}'."
            )
        check_range(self, "at least 1", ranking_epochs=ranking_epochs)
        self.optimizer = unwrapped(optimizer)
        self.prioritised, self.rest, self.dominant = prioritised, rest, dominant
        self.ranking_epochs, self.seed = ranking_epochs, seed
        self.ranked: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether any gradient is changed."""
        return (self.prioritised, self.rest) != (1, 1) and len(self.encoders) > 1

    @property
    def ranks(self) -> bool:
        """Whether the method has to search for the dominant modality."""
        return self.is_active and self.dominant is None

    def is_due(self, epoch: int) -> bool:
        """Whether gradients are changed in this epoch (from 0): in each, if at all."""
        return self.is_active

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Ranks the modalities once, before the first epoch it is called for."""
        if not self.ranks or self.ranked is not None:
            return
        probe = self._probe(probe)
        check_trains(self.optimizer, self.encoders, "PDMP")
        # Encoders share nothing, so under the sum of their losses each learns by itself.
        with probe.trained(
            self._unimodal_loss,
            epochs=self.ranking_epochs,
            optimizer=self.optimizer,
            seed=self.seed,
            criterion=self.criterion,
        ):
            _, right, rows = self._right(probe)
        self.ranked = best_of(right)
        self.metrics = {f"accuracy/{name}": torch.tensor(x / rows) for name, x in right.items()}

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss, CE(z)."""
        loss = super().loss(output, target)
        unimodal = self._unimodal(output) if self.ranks else output.unimodal
        if self.is_active and unimodal:
            loss = loss + distributed.idle(unimodal.values())
        return loss

    def before_step(self) -> None:
        """Multiplies the gradients."""
        if not self.is_active:
            return
        dominant = self.dominant or self.ranked
        if dominant is None:
            raise UserRuntimeError(
                "PDMP.before_step was called before the modalities were ranked. Call "
                "before_epoch before the first batch of an epoch, load the method's state, or "
                "give 'dominant'."
            )
        found = coefficients(self.encoders, dominant, self.prioritised, self.rest)
        for name, encoder in self.encoders.items():
            scale_(encoder, found[name], least=0)
