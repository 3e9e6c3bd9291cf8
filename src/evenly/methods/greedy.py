"""Balanced multi-modal learning against greedy learning, by conditional learning speed.

Wu, Jastrzebski, Cho, Geras, "Characterizing and Overcoming the Greedy Nature of Learning in
Multi-modal Deep Neural Networks", ICML 2022, https://arxiv.org/abs/2202.05306.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import ANY


def speed(
    gradient: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """How fast a set of parameters learns in a step: μ = ‖g‖² / ‖w‖², given both squares."""
    return gradient / weight.clamp_min(torch.finfo(weight.dtype).tiny)


def dependence(bypass: Float[Tensor, " m"], main: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How much faster a modality learns from the others: BDR_m = log10(Σ μ_bypass / Σ μ_main)."""
    tiny = torch.finfo(main.dtype).tiny
    return bypass.clamp_min(tiny).log10() - main.clamp_min(tiny).log10()


def difference(ratio: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """d_m = BDR_m - mean of the other modalities' BDR."""
    return ratio - (ratio.sum() - ratio) / (len(ratio) - 1)


class Greedy(Method):
    """Isolates, for some steps, a modality that is learnt through the others.

    The model has cross-modal blocks (`evenly.nn.MMTM`), and each modality has its own logits: the
    loss is L = Σ_m CE(z_m), the prediction the mean of z_m. In each regular step t, with main
    parameters (encoder and linear layer of m) and by-pass parameters (of the blocks, those that
    make m's gate),

        BDR_m = log10(Σ_t μ_bypass,m / Σ_t μ_main,m),   μ = ‖g‖² / ‖w‖²
        d_m = BDR_m - mean of the other modalities' BDR

    From epoch `start` on, a modality with d_m > ε is curated in the next `window` steps: its gates
    are set to their running averages, so that it must learn from its own input. The step after
    these is regular again.

    Attributes:
        main: By modality, Σ μ over the regular steps, of the main parameters.
        bypass: The same of the by-pass parameters.
        curated: Which modalities are curated in the next step.
        left: For how many steps, including the next.
    """

    info = Info(
        title="Greedy (balanced multi-modal learning)",
        paper="Wu, Jastrzebski, Cho, Geras. Characterizing and Overcoming the Greedy Nature of "
        "Learning in Multi-modal Deep Neural Networks. ICML 2022",
        year=2022,
        url="https://arxiv.org/abs/2202.05306",
        category="forward",
        writes="loss",
        targets=ANY,
        modalities="the paper uses two; with more, a modality is compared with the mean of the "
        "others, which for two is the paper's rule; with one, it is joint training",
        neutral="its objective is the sum of the modalities' losses, while joint training's is "
        "the loss of their mean; with window=0 nothing but this objective is left",
        epochs=300,
        in_epochs=("start",),
        needs=("unimodal",),
        unimodal="trains",
        head="mmtm",
        fused=False,
        cost="cross-modal blocks; norms of all weights and gradients",
        budget=1.15,
        missing=True,
        doubts="As in the released code, the modality cut off is the one whose by-pass learns "
        "faster, the main parameters include its linear layer, what squeezes all "
        "modalities counts in each by-pass, and the step that ends a curation decides "
        "nothing. Differences: in the code, the second modality's running average is "
        "updated from the first one's gates, here each has its own. The code averages "
        "over all passes, including validation and the present batch; here over the "
        "training samples before this step. In the code, evaluation during a curation uses "
        "the averaged gates; here it always uses the computed ones. A step whose gradients "
        "overflow counts for nothing. Gates are 2σ as in the MMTM paper; in the code "
        "they are σ. More than two modalities are not in the paper. For images, the "
        "paper uses a pair of ResNet-18s with blocks after their last three stages. The "
        "lab puts them between the stages of its own, smaller encoders and on their "
        "features; for its ResNet this is the same as after its last stage, for the "
        "other two kinds it is after their normalisation and pooling. An encoder of "
        "your own that does not name its stages has only the block on the features. "
        "Encoders that run in lockstep must be sharded (FSDP2) together with the whole "
        "model, not one by one.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "main", "bypass", "curated", "left")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        epsilon: float = 0.01,
        window: int = 5,
        start: int = 1,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the comparison; the defaults are the authors'.

        Args:
            encoders: By modality, the modules whose learning speeds are compared.
            head: The module with the cross-modal blocks; with the models of `evenly.nn`,
                `model.head`. If it has `heads`, layers by modality, these count among the main
                parameters.
            epsilon: ε, how many orders of magnitude one speed must be ahead of the others.
            window: Q, length of a curation in steps; 0 for none.
            start: First epoch in which one may begin, from 0 (the authors' code has 2, from 1).
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is negative, or the head has no cross-modal blocks for the
                encoders.
        """
        from evenly.nn.mmtm import blocks_of  # half of the time `import evenly` would take

        super().__init__(encoders, criterion=criterion)
        check_range(self, "not negative", epsilon=epsilon, window=window, start=start)
        self.epsilon, self.window, self.start = epsilon, window, start
        self.head = head
        self.blocks = blocks_of(head)
        self._check_blocks()
        self.epoch = -1
        self.main = torch.zeros(len(self.encoders))
        self.bypass = torch.zeros(len(self.encoders))
        self.curated = torch.zeros(len(self.encoders), dtype=torch.bool)
        self.left = torch.zeros((), dtype=torch.int64)
        self._gates = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch
        self._gates.clear()

    def is_due(self, epoch: int) -> bool:
        """Whether a curation may begin in an epoch, from 0."""
        return self.is_active and epoch >= self.start

    @property
    def is_active(self) -> bool:
        """Whether there is anything to compare and to curate."""
        return self.window > 0 and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m CE(z_m); also records the gates."""
        own = self._unimodal(output).values()
        losses = [self.criterion(full(logits), target) for logits in own]
        if self.is_active:
            self._gates.add(torch.cat([block.observed() for block in self.blocks]), output)
        return torch.stack(losses).sum()

    @torch.no_grad()
    def before_step(self) -> None:
        """Updates the running averages, then decides on the next step's curation."""
        if not self.is_active:
            return
        gates = self._gates.take(self)
        gradients, weights = self._squares(gates.device)
        counts = gradients.isfinite().all() & gates.isfinite().all()
        gates = kept(counts, gates, torch.zeros_like(gates))
        sizes = [sum(block.widths.values()) + len(block.widths) for block in self.blocks]
        for block, observed in zip(self.blocks, gates.split(sizes), strict=True):
            block.update(observed)
        regular = self.left.to(gates.device) == 0
        self._remember(counts & regular, gradients, weights)
        ratio = dependence(self.bypass, self.main)
        self._decide(counts, regular, difference(ratio))
        self.metrics = self._per_modality(dependence=ratio, curated=self.curated.float())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, including whether curation is on."""
        super().load_state_dict(state)
        self._switch()

    def _remember(
        self, counts: Tensor, gradients: Float[Tensor, " g"], weights: Float[Tensor, " g"]
    ) -> None:
        """Adds the speeds of a regular step to the sums, from what `_squares` returns."""
        several = len(self.encoders)
        both = torch.stack([gradients, weights])
        main, gate, squeeze, _ = both.split([several, several, 1, 1], dim=1)
        speeds = torch.stack([speed(*main), speed(*(gate + squeeze))])
        before = torch.stack([self.main, self.bypass]).to(speeds)
        self.main, self.bypass = kept(counts, before + speeds, before)

    def _decide(self, counts: Tensor, regular: Tensor, ahead: Float[Tensor, " m"]) -> None:
        """Which modality is curated next: decided after a regular step, then kept until the end."""
        left, curated = self.left.to(counts.device), self.curated.to(counts.device)
        chosen = (ahead > self.epsilon) & self.is_due(self.epoch)
        begun = torch.where(chosen.any(), self.window, 0)
        self.left = torch.where(counts, torch.where(regular, begun, left - 1), left)
        after = torch.where(regular, chosen, curated & (self.left > 0))
        self.curated = torch.where(counts, after, curated)
        self._switch()

    def _switch(self) -> None:
        for block in self.blocks:
            block.curate(dict(zip(self.encoders, self.curated, strict=True)))

    def _squares(self, device: torch.device) -> Float[Tensor, "2 g"]:
        """‖g‖² and ‖w‖² of what learns in this step, each parameter once.

        They cover the main parameters of each modality, the parameters that make its gates, those
        that squeeze all modalities, and the other gradients in which an overflow would show.
        """
        groups = [self._main(name) for name in self.encoders]
        groups += [
            [p for b in self.blocks for p in b.excite[name].parameters()] for name in self.encoders
        ]
        groups.append([p for b in self.blocks for p in b.squeeze.parameters()])
        weights = [[p for p in group if p.requires_grad] for group in groups]
        gradients = [[p.grad for p in group if p.grad is not None] for group in weights]
        known = {id(grad) for group in gradients for grad in group}
        gradients.append([grad for grad in self._gates.gradients() if id(grad) not in known])
        return distributed.square_sums([*gradients, *weights, []], device).view(2, -1)

    def _main(self, name: str) -> list[nn.Parameter]:
        heads = getattr(self.head, "heads", {})
        layer = heads[name].parameters() if name in heads else ()
        return [*self.encoders[name].parameters(), *layer]

    def _check_blocks(self) -> None:
        if not self.blocks:
            raise UserError(
                f"Greedy: 'head' holds cross-modal blocks (evenly.nn.MMTM); found none in "
                f"{type(self.head).__name__}. Give the model the head 'mmtm'."
            )
        for block in self.blocks:
            if lacking := set(self.encoders) - set(block.widths):
                raise UserError(
                    f"Greedy: a cross-modal block knows the modalities {sorted(block.widths)}, but "
                    f"not {sorted(lacking)}. Use the same names in blocks and encoders."
                )
