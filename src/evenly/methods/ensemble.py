"""An ensemble of unimodal models: each modality learns alone, and predictions are averaged.

Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao, "On Uni-Modal Feature Learning in Supervised
Multi-Modal Learning", ICML 2023, https://arxiv.org/abs/2305.01233 (there "uni-modal ensemble",
UME), found that it often does better than joint training and methods on top of it.
"""

import torch
from torch import Tensor

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.targets import ANY, SINGLE, in_words, kinds


class Ensemble(Method):
    """Trains every modality alone, all in one run, and predicts with all of them.

    L = Σ_m CE(z_m). No parameter belongs to two modalities, so each encoder and its head get the
    same gradient as they would alone: the result equals separately trained unimodal models. The
    head makes the prediction, the mean of softmax(z_m).

    The paper has classes. For several labels, the prediction is the mean of sigmoid(z_m), and for
    numbers the mean of z_m. The head has to know: `evenly.nn.heads.EnsembleHead` takes the `task`.
    """

    info = Info(
        title="Uni-modal ensemble (UME)",
        paper="Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao. On Uni-Modal Feature Learning in "
        "Supervised Multi-Modal Learning. ICML 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.01233",
        category="objective",
        writes="loss",
        targets=ANY,
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
        self._suits = False  # whether a pass has shown that the head suits the target

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m)."""
        if not self._suits:
            self._check_head(output, target)
            self._suits = True
        return self._unimodal_loss(output, target)

    def _check_head(self, output: Output, target: Tensor) -> None:
        """Raises if the prediction is the log of class probabilities, but the target no class.

        No label would ever be predicted, and one logit would always be 0.
        """
        found = kinds(output.logits, target, self.criterion)
        if not found or set(found) & set(SINGLE):
            return
        sums = full(output.logits).logsumexp(-1)
        some = torch.stack([z.any() for z in self._unimodal(output).values()]).any()
        if bool(some & (sums.abs() < 1e-4).all()):
            raise UserError(
                "Ensemble: `Output.logits` are the log of class probabilities, but the target is "
                f"of {' or '.join(in_words([kind]) for kind in found)}. Make the head with "
                "evenly.nn.heads.EnsembleHead(widths, count, task), where task is 'labels' or "
                "'number'."
            )
