"""Total correlation maximisation (TCMax).

Yu, Wu, Yang, Lu, "Multimodal Classification via Total Correlation Maximization", ICLR 2026,
https://arxiv.org/abs/2602.13015.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from evenly import criteria
from evenly.chance import stream
from evenly.criteria import Focal
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import adds_up, full
from evenly.output import Output
from evenly.presence import Part, having, parts, those
from evenly.ranges import check_range


def partition(addends: Sequence[Float[Tensor, "_ c"]]) -> Float[Tensor, ""]:
    """Log of the mean, over all pairings (j, k, ...), of Σ_c exp(f_1j,c + f_2k,c + ...).

    The mean of a product over all pairings is the product of each factor's mean over samples.
    """
    means = torch.stack([z.logsumexp(0) - math.log(len(z)) for z in addends])
    return means.sum(0).logsumexp(0)


def sampled_partition(logits: Float[Tensor, "p c"]) -> Float[Tensor, ""]:
    """The same over p pairings with known fused logits: log of the mean of Σ_c exp(z_c)."""
    return logits.logsumexp((0, 1)) - math.log(len(logits))


class TCMax(Method):
    """Trains the model to tell real samples from mixtures of different samples' modalities.

    L = -mean_i log(exp z_i[y_i] / mean_{j,k,...} Σ_c exp f(x_1j, x_2k, ...)[c]), where z_i are the
    fused logits of sample i and the mean is over all pairings in the batch, with each modality's
    input from any sample. It is cross-entropy with the partition function of all pairings in place
    of each sample's own. Its negative is, up to a constant, a lower bound of the total correlation
    of modalities and label.

    If the logits are a sum over modalities, the mean over all n^M pairings is exact, at the cost of
    n M; otherwise `pairs` of them are drawn.
    """

    info = Info(
        title="Total Correlation Maximisation (TCMax)",
        paper="Yu, Wu, Yang, Lu. Multimodal Classification via Total Correlation Maximization. "
        "ICLR 2026",
        year=2026,
        url="https://arxiv.org/abs/2602.13015",
        category="objective",
        writes="loss",
        targets=("classes", "soft"),
        modalities="any number, each from a sample of its own; with one there are no pairings, and "
        "training is joint training",
        neutral="a batch of one sample apart, pairings always count",
        needs=("unimodal",),
        separate=True,
        sums=True,
        cost="a few sums over the logits; with `pairs`, the head once more on as many samples",
        budget=1.05,
        within_batch=True,
        missing=True,
        doubts="The partition is a mean over pairings, not a sum, which changes the loss by a "
        "constant and no gradient. The paper has two modalities. Parts of the logits "
        "that come from no encoder passed in, such as the bias of a missing modality, "
        "are paired as one more part. If the logits are not a sum, the released code "
        "can also fuse all n² pairings of two modalities; here only those drawn, with "
        "replacement as in that code. Its runs use batches of 32 or 64, on whose size "
        "the loss depends.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        pairs: int = 0,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which modalities are paired.
            pairs: Pairings drawn in each step, rounded up to a multiple of the batch, for a head
                whose logits are not a sum. 0 takes all of them, for a head whose logits are. The
                paper draws 1024 for CREMA-D and 256 for UCF-101.
            seed: Seed of the draw, which has its own random stream.
            criterion: A form of cross-entropy; see `Method`.

        Raises:
            ValueError: If the number of pairings is negative, or the criterion is `Focal`.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "not negative", pairs=pairs)
        if isinstance(criterion, Focal):
            raise UserError(
                "TCMax replaces cross-entropy's partition by one over all pairings, which the "
                "focal loss does not have. Leave out the criterion (--focal), or the method."
            )
        if pairs:
            self.info = replace(self.info, needs=("fuse",), sums=False)
        self.pairs, self.seed = pairs, seed
        self.steps = 0
        self._adds_up = False

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z), with the partition function of all pairings in place of each sample's own."""
        loss = super().loss(output, target)
        if len(self.encoders) < 2:
            return loss
        excess = self._excess(output, target)
        if torch.is_grad_enabled():
            self.metrics = {"excess": excess.detach()}
        return loss + excess

    def before_step(self) -> None:
        """Counts the steps, since each draws its own pairings."""
        self.steps += 1

    def _excess(self, output: Output, target: Tensor) -> Float[Tensor, ""]:
        """The weighted excess of the partition function of all pairings over each sample's own."""
        own = full(output.logits).logsumexp(1)
        factor = criteria.partitions(self.criterion, full(output.logits), target)
        found = [
            (part.share if factor is None else part.of(factor).sum()) * together
            for part, together in self._partitions(output)
        ]
        paired = torch.stack(found).sum()
        return paired - (own.mean() if factor is None else factor @ own)

    def _partitions(self, output: Output) -> list[tuple[Part, Float[Tensor, ""]]]:
        """The partition functions of pairings, by the modalities that their samples have."""
        if self.pairs:
            several = parts(output, self._features(output))
            paired = full(self._paired(output))  # the batch several times over
            cut = paired.unflatten(0, (-1, len(output.logits)))
            return [(part, sampled_partition(cut[:, part.rows].flatten(0, 1))) for part in several]
        self._adds_up = self._adds_up or adds_up(output, self, ", or pass pairs=1024")
        own = {name: full(z) for name, z in self._unimodal(output).items()}
        rest = full(output.logits) - torch.stack(list(own.values())).sum(0)
        held = {name: those(z, having(output, name)) for name, z in own.items()}
        return [
            (part, partition([*(held[name] for name in part.names), part.of(rest)]))
            for part in parts(output, own)
        ]

    def _paired(self, output: Output) -> Float[Tensor, "p c"]:
        """The fused logits of pairings; modalities without an encoder stay together.

        Each pairing has the modalities of the sample it replaces.
        """
        fuse = self._need(output, "fuse")
        mine = self._features(output)
        n, device = len(output.logits), output.logits.device
        numbers = stream(device, self.seed, self.steps)
        length = math.ceil(self.pairs / n) * n
        drawn = torch.randint(n, (1 + len(mine), length), generator=numbers, device=device)
        rows = dict(zip(mine, drawn[1:], strict=True))
        for name in mine:
            here = having(output, name)
            if here is not None and 0 < (count := int(here.sum())) < n:
                some = torch.randint(count, (length,), generator=numbers, device=device)
                rows[name] = here.nonzero().flatten()[some]
        together = drawn[0]
        if having(output, *(set(output.features) - set(mine))) is not None:
            together = torch.arange(length, device=device) % n
        logits: Tensor = fuse(
            {name: x[rows.get(name, together)] for name, x in output.features.items()}
        )
        return logits
