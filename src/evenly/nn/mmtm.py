"""Cross-modal blocks: all modalities together rescale each modality's channels.

Joze, Shaban, Iuzzolino, Koishida, "MMTM: Multimodal Transfer Module for CNN Fusion", CVPR 2020,
https://arxiv.org/abs/1911.08670. The running averages and curation follow Wu, Jastrzebski, Cho,
Geras, ICML 2022; see `evenly.methods.Greedy`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.nn.presence import taken
from evenly.ranges import check_range


class MMTM(nn.Module):
    """A squeeze-and-excitation block across modalities (multimodal transfer module).

    With s_m the mean of modality m's map x_m over its positions,

        h = relu(W [s_1 .. s_M] + b),   g_m = 2 σ(V_m h + c_m),   y_m = g_m ⊙ x_m

    W is shared; V_m makes the gate g_m of one modality. A missing modality is squeezed to zeros.
    While a modality is curated, training replaces its gate with its running average, a constant;
    evaluation always uses the computed gates.

    Attributes:
        squeeze: W and b.
        excite: By modality, V_m and c_m.
        average: Mean gates of the modalities, one after another, over all samples seen.
        seen: Number of samples in each modality's average.
        curated: Which modalities are curated.
        latest: By modality, the computed gates of the last forward pass, for samples that have it.
    """

    average: Tensor
    seen: Tensor
    curated: Tensor

    def __init__(self, widths: Mapping[str, int], ratio: int = 4) -> None:
        """Makes the layers.

        Args:
            widths: Number of channels by modality.
            ratio: r; h has 2 Σ widths / r elements (the authors' code: 4, half of all channels).

        Raises:
            ValueError: If the ratio is below 1.
        """
        super().__init__()
        check_range(self, "at least 1", ratio=ratio)
        self.widths = dict(widths)
        total = sum(self.widths.values())
        hidden = max(2 * total // ratio, 1)
        self.squeeze = nn.Linear(total, hidden)
        self.excite = nn.ModuleDict(
            {name: nn.Linear(hidden, width) for name, width in self.widths.items()}
        )
        self.register_buffer("average", torch.ones(total))  # the gate of an input of zero
        self.register_buffer("seen", torch.zeros(len(self.widths), dtype=torch.int64))
        # not saved: a model loaded from the middle of a curation trains without it
        curated = torch.zeros(len(self.widths), dtype=torch.bool)
        self.register_buffer("curated", curated, persistent=False)
        self.latest: dict[str, Tensor] = {}

    def forward(
        self,
        maps: Mapping[str, Float[Tensor, "n _ ..."]],
        here: Mapping[str, Bool[Tensor, " n"]] | None = None,
    ) -> dict[str, Tensor]:
        """Rescales the channels of each modality.

        Args:
            maps: By modality, (n, channels, *positions), with any number of dimensions for
                positions, or none.
            here: By modality, which samples have it; modalities not named are complete.
        """
        gates = self.gates(
            {name: x.flatten(2).mean(2) if x.ndim > 2 else x for name, x in maps.items()}, here
        )
        return {
            name: x * gates[name].reshape(*gates[name].shape, *[1] * (x.ndim - 2))
            for name, x in maps.items()
        }

    def gates(
        self,
        squeezed: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]] | None = None,
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The factor for each channel of each sample, from the channels' means."""
        here = here or {}
        seen = {
            name: x.masked_fill(~here[name].to(x.device)[:, None], 0) if name in here else x
            for name, x in squeezed.items()
        }
        hidden = torch.relu(self.squeeze(torch.cat(self._filled(seen), dim=1)))
        gates = {name: 2 * torch.sigmoid(self.excite[name](hidden)) for name in squeezed}
        self.latest = {
            name: taken(gate, here[name].nonzero().flatten()) if name in here else gate
            for name, gate in ((name, gate.detach()) for name, gate in gates.items())
        }
        return self._with_curation(gates) if self.training else gates

    def averages(self) -> dict[str, Float[Tensor, " _"]]:
        """The running average of each gate, by modality."""
        parts = self.average.split(list(self.widths.values()))
        return dict(zip(self.widths, parts, strict=True))

    def observed(self) -> Float[Tensor, " k"]:
        """What `update` needs from the last forward pass: sums of the gates, then their numbers.

        Results of passes and ranks may be added up.
        """
        sums = [
            self.latest[name].to(self.average.dtype).sum(0)
            if name in self.latest
            else self.average.new_zeros(width)
            for name, width in self.widths.items()
        ]
        # filled, since a tensor made from a list waits for the device
        counts = [
            self.average.new_full((1,), len(self.latest.get(name, ()))) for name in self.widths
        ]
        return torch.cat([*sums, *counts])

    @torch.no_grad()
    def update(self, observed: Float[Tensor, " k"]) -> None:
        """Adds the samples of a training step to the running averages.

        The forward pass does not do this: a step may have several passes, and a rank sees only a
        share, so curated gates would differ between passes and ranks.
        """
        *sums, counts = observed.split([*self.widths.values(), len(self.widths)])
        self.seen += counts.round().to(self.seen.dtype)
        share = self.seen.clamp_min(1).to(self.average.dtype).reciprocal()
        for m, (mean, total) in enumerate(zip(self.averages().values(), sums, strict=True)):
            mean += (total - counts[m] * mean) * share[m]

    def curate(self, modalities: Mapping[str, Bool[Tensor, ""]]) -> None:
        """Switches curation of some modalities on or off, without waiting for the device."""
        for m, name in enumerate(self.widths):
            if name in modalities:
                self.curated[m] = modalities[name]

    def _with_curation(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # a copy, since DistributedDataParallel overwrites buffers before each pass
        switch = dict(zip(self.widths, self.curated.clone().unbind(), strict=True))
        averages = self.averages()
        return {
            name: torch.where(switch[name], averages[name].to(gate.dtype), gate)
            for name, gate in gates.items()
        }

    def _filled(self, squeezed: Mapping[str, Float[Tensor, "n _"]]) -> list[Tensor]:
        if not squeezed:
            raise UserError(f"a batch holds none of the modalities {sorted(self.widths)}.")
        some = next(iter(squeezed.values()))
        return [
            squeezed[name] if name in squeezed else some.new_zeros(len(some), width)
            for name, width in self.widths.items()
        ]


def blocks_of(module: nn.Module) -> list[MMTM]:
    """The cross-modal blocks within a module."""
    return [part for part in module.modules() if isinstance(part, MMTM)]
