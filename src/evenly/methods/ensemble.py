"""An ensemble of unimodal models: each modality learns alone, and the probabilities are averaged.

Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao, "On Uni-Modal Feature Learning in Supervised
Multi-Modal Learning", ICML 2023, https://arxiv.org/abs/2305.01233 (there "uni-modal ensemble",
UME), found that it often does better than joint training and methods on top of it.
"""

from torch import Tensor

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.targets import SINGLE


class Ensemble(Method):
    """Trains every modality alone, all in one run, and predicts with all of them.

    L = Σ_m CE(z_m). No parameter belongs to two modalities, so each encoder and its head get the
    same gradient as they would alone: the result equals separately trained unimodal models. The
    head makes the prediction, the mean of softmax(z_m).
    """

    info = Info(
        title="Uni-modal ensemble (UME)",
        paper="Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao. On Uni-Modal Feature Learning in "
        "Supervised Multi-Modal Learning. ICML 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.01233",
        category="objective",
        writes="loss",
        targets=SINGLE,
        neutral="nothing is trained jointly, whatever the settings",
        needs=("unimodal",),
        unimodal="trains",
        head="ensemble",
        fused=False,
        budget=1.05,
        missing=True,
        doubts="Clipping the norm of all gradients together couples the modalities; separately "
        "trained unimodal models would be clipped separately.",
    )

    def __init__(self, encoders: Encoders, *, criterion: Criterion | None = None) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            criterion: See `Method`.

        Raises:
            ValueError: If there is no encoder.
        """
        super().__init__(encoders, criterion=criterion)
        if not self.encoders:
            raise UserError("Ensemble: there is no encoder. Pass one for each modality.")

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m)."""
        return self._unimodal_loss(output, target)
