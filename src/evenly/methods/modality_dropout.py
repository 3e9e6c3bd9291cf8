"""Modality dropout (ModDrop).

Neverova, Wolf, Taylor, Nebout, "ModDrop: Adaptive Multi-Modal Gesture Recognition", IEEE
Transactions on Pattern Analysis and Machine Intelligence 38(8), 2016,
https://arxiv.org/abs/1501.00102.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evenly import chance
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.ranges import check_range
from evenly.targets import ANY


def kept(drawn: Float[Tensor, "m n"], p: float) -> Bool[Tensor, "m n"]:
    """Which modalities of each sample stay, from numbers drawn uniformly from [0, 1).

    Each is dropped with probability p. If that would drop all, the one with the largest number
    stays; each is equally likely to be it.
    """
    return (drawn >= p) | (drawn == drawn.amax(0))


class ModalityDropout(Method):
    """Trains the fusion on samples from which modalities are dropped at random.

    In each step, for each sample, the features of each modality are zeroed with probability p, but
    never all of them. The rest are fused again for the loss, L = CE(fuse(δ_m f_m)). So the fusion
    cannot rely on one modality, and each encoder learns from the samples in which it is alone.
    Predictions are made with all modalities.
    """

    info = Info(
        title="Modality dropout (ModDrop)",
        paper="Neverova, Wolf, Taylor, Nebout. ModDrop: Adaptive Multi-Modal Gesture Recognition. "
        "IEEE TPAMI 2016",
        year=2016,
        url="https://arxiv.org/abs/1501.00102",
        category="forward",
        writes="loss",
        targets=ANY,
        modalities="any number; with one, it drops nothing",
        neutral={"p": 0.0},
        needs=("index", "fuse"),
        separate=True,
        cost="a second pass of the head",
        budget=1.05,
        missing=True,
        doubts="The paper drops input channels of a network pre-trained by modality; here, "
        "features are dropped as they enter the fusion of any network. The probability "
        "could not be verified: 0.5 is a guess. The paper may drop all modalities of a "
        "sample; here one always stays, as in later uses of the method. What stays is "
        "not scaled up.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        p: float = 0.5,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the dropout.

        Args:
            encoders: By modality; their names say which modalities may be dropped.
            p: Probability that a modality is dropped from a sample, from 0 to 1; at 1 each
                sample keeps one modality.
            seed: Seed of the masks. A mask depends on seed, step and the sample's index.
            criterion: See `Method`.

        Raises:
            ValueError: If the probability is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "from 0 to 1", p=p)
        self.p, self.seed = p, seed
        self.steps = 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE of the fusion without dropped modalities; without gradients, nothing is dropped."""
        if self.p == 0 or not torch.is_grad_enabled():
            return super().loss(output, target)
        mask = self._drawn(output)
        self.metrics = {f"kept/{name}": stays.float().mean() for name, stays in mask.items()}
        return self.criterion(self._masked(output, mask), target)

    def before_step(self) -> None:
        """Counts the steps, since each draws its own masks."""
        self.steps += 1

    def _drawn(self, output: Output) -> dict[str, Bool[Tensor, " n"]]:
        """Which modalities of each sample stay in this step."""
        index, present = self._need(output, "index"), output.present or {}
        features = self._features(output)
        drawn = []
        for m, name in enumerate(self.encoders):
            if name in features:
                number = chance.uniform(index, self.seed, self.steps, m)
                if name in present:  # a missing modality cannot be the one to keep
                    number = number.masked_fill(~present[name].to(number.device), -1.0)
                drawn.append(number)
        return dict(zip(features, kept(torch.stack(drawn), self.p), strict=True))

    def _masked(self, output: Output, mask: Mapping[str, Bool[Tensor, " n"]]) -> Tensor:
        """The logits without dropped modalities."""
        fuse = self._need(output, "fuse")
        masked = {
            name: value.where(mask[name].to(value.device).unsqueeze(1), value.new_zeros(()))
            for name, value in self._features(output).items()
        }
        logits: Tensor = fuse({**output.features, **masked})
        return logits
