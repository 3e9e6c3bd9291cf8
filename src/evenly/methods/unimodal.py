"""One modality alone: the reference that every multimodal model must beat.

Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020,
https://arxiv.org/abs/1905.12681, found that the best unimodal model often beats joint training;
balancing methods have been measured against it since.
"""

from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.targets import ANY


class Unimodal(Method):
    """Trains one modality and nothing else.

    L = CE(z_m). For a model of one modality, this is plain training. In a model of several, the
    encoder of m and its part of the head learn. The other encoders stay unchanged, except for what
    a forward pass writes (BatchNorm's statistics).
    """

    info = Info(
        title="One modality alone",
        paper="Wang, Tran, Feiszli. What Makes Training Multi-Modal Classification Networks Hard? "
        "CVPR 2020",
        year=2020,
        url="https://arxiv.org/abs/1905.12681",
        category="objective",
        writes="loss",
        targets=ANY,
        modalities="trains one of any number",
        neutral="it trains one modality, which joint training of several never does",
        needs=("unimodal",),
        unimodal="trains",
        budget=1.05,
        alone=True,
        fused=False,
        missing=True,
        doubts="In a model of several modalities, the head's weights for the others are part "
        "of the same tensor: their gradient is zero, but weight decay still moves them. "
        "A head with one layer per modality leaves layers without a gradient, which "
        "DistributedDataParallel does not allow: use a model of the one modality.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        modality: str,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; only that of `modality` is trained.
            modality: The modality to train.
            criterion: See `Method`.

        Raises:
            ValueError: If the modality has no encoder.
        """
        super().__init__(encoders, criterion=criterion)
        if modality not in self.encoders:
            raise UserError(
                f"Unimodal: 'modality' must be one of {sorted(self.encoders)}; found '{modality}'."
            )
        self.modality = modality

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z_m) of the one modality; 0 for a batch that lacks it."""
        logits = self._unimodal(output).get(self.modality)
        loss = output.logits[:0].sum() if logits is None else self.criterion(logits, target)
        return distributed.joined(loss, self._others())

    def before_step(self) -> None:
        """Removes the other encoders' zero gradients, with which weight decay would move them."""
        for parameter in self._others():
            parameter.grad = None

    def _others(self) -> list[nn.Parameter]:
        return [
            parameter
            for name, encoder in self.encoders.items()
            for parameter in encoder.parameters()
            if name != self.modality and parameter.requires_grad
        ]
