"""Multi-modal cosine loss (MMCosine).

Xu, Feng, Zhang, Hu, "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained
Learning", ICASSP 2023, https://arxiv.org/abs/2303.05338.
"""

from torch import nn

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method


class MMCosine(Method):
    """Joint training with a head that sums cosines instead of inner products.

    z = Σ_m s ⟨f_m / ‖f_m‖, W_m / ‖W_m‖⟩ and L = CE(z), so no modality gets ahead through the norm
    of its features or weights. The head, `evenly.nn.heads.CosineHead`, does all of this. Training
    is joint training, so this class only checks that the head fits.
    """

    info = Info(
        title="Multi-Modal Cosine loss (MMCosine)",
        paper="Xu, Feng, Zhang, Hu. MMCosine: Multi-Modal Cosine Loss Towards Balanced "
        "Audio-Visual Fine-Grained Learning. ICASSP 2023",
        year=2023,
        url="https://arxiv.org/abs/2303.05338",
        category="forward",
        writes="nothing",
        targets=("classes", "ignored", "soft", "labels", "logit"),
        modalities="any number; the cosines of all are summed",
        neutral="the method is its head, on which it trains as joint training does",
        epochs=200,
        head="cosine",
        cost="norms of features and class weights",
        budget=1.05,
        missing=True,
        doubts="The released code adds a noise-contrastive term with weight 0 by default, "
        "which is left out. It validates with the plain linear head, which was trained "
        "only through the cosines; here the cosines predict. The scale is 10 for all "
        "data; the paper tunes it from 5 to 20, for which the head takes `scale`.",
    )

    def __init__(
        self, encoders: Encoders, *, head: nn.Module, criterion: Criterion | None = None
    ) -> None:
        """Checks the head.

        Args:
            encoders: By modality.
            head: The model's head: `evenly.nn.heads.CosineHead`, or your own that normalises
                features and class weights and has the factor s as its attribute `scale`.
            criterion: See `Method`.

        Raises:
            ValueError: If the head has no `scale`, so it does not use cosines.
        """
        super().__init__(encoders, criterion=criterion)
        if not isinstance(getattr(head, "scale", None), int | float):
            raise UserError(
                "MMCosine needs a head that sums scaled cosines, with a number `scale`; found "
                f"{type(head).__name__}. Build the model with LateFusion(..., head='cosine'), "
                "or set `scale` on a cosine head of your own."
            )
