"""Uniform multi-loss training: the fused loss plus each modality's.

The plain baseline of Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification
Networks Hard?", CVPR 2020, https://arxiv.org/abs/1905.12681 (there "naive" blending, with all
weights equal), and of every method since that adds unimodal losses.
"""

from dataclasses import replace

from torch import Tensor

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.ranges import check_range
from evenly.targets import ANY


class MultiLoss(Method):
    """Trains the fused prediction and each modality's own at once.

    L = CE(z) + weight · Σ_m CE(z_m). Credit a method with unimodal losses only for what it gains
    beyond this.
    """

    info = Info(
        title="Uniform multi-loss",
        paper="Wang, Tran, Feiszli. What Makes Training Multi-Modal Classification Networks Hard? "
        "CVPR 2020",
        year=2020,
        url="https://arxiv.org/abs/1905.12681",
        category="objective",
        writes="loss",
        targets=ANY,
        neutral={"weight": 0.0},
        needs=("unimodal",),
        unimodal="trains",
        head="multi",
        cost="M unimodal heads",
        budget=1.05,
        missing=True,
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        weight: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            weight: Weight of each unimodal loss; 1 is uniform.
            criterion: See `Method`.

        Raises:
            ValueError: If the weight is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", weight=weight)
        if weight == 0:
            self.info = replace(self.info, partial=True, unimodal="leaves")
        self.weight = weight

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + weight · Σ_m CE(z_m)."""
        loss = super().loss(output, target)
        unimodal = self._unimodal(output)
        # Heads without a gradient stay as they are, decay included; but DDP waits for one.
        if self.weight == 0:
            is_alone = distributed.world_size() == 1
            return loss if is_alone else loss + distributed.idle(unimodal.values())
        for logits in unimodal.values():
            loss = loss + self.weight * self.criterion(logits, target)
        return loss
