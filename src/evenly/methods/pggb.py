"""Probe-guided gradient boosting (PGGB).

Vo, Fayek, Nguyen, "Probe-Guided Gradient Balancing for Multimodal Learning", NeurIPS 2026,
https://github.com/VuVoCodes/AsynchronousFunction.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly import chance, distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.methods.cggm import adam, untrained
from evenly.modulation import Overflow, full, kept, scale_
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range

MOST = 2.0
"""The paper's bound of the scales."""

STEPS = 10
"""Steps of Adam on which a probe learns half a batch, as in the released code."""


def slope(
    weight: Float[Tensor, "c w"], x: Float[Tensor, "n w"], target: Int[Tensor, " n"]
) -> Float[Tensor, "c w"]:
    """The gradient of the mean cross-entropy of a linear probe with logits x Wᵀ."""
    error = (x @ weight.T).softmax(1) - nn.functional.one_hot(target, len(weight))
    return error.T @ x / len(x)


def scales(accuracy: Float[Tensor, " m"], alpha: float) -> Float[Tensor, " m"]:
    """s_m = min(1 + α w_m, 2), w_m = (max P - P_m) / (max P - min P + ε); 1 for the best probe."""
    behind = accuracy.max() - accuracy
    return (1 + alpha * behind / (behind.max() + 1e-8)).clamp_max(MOST)


class PGGB(Method):
    """Boosts the gradients of encoders whose features tell less about the label.

    L = CE(z) + unimodal · Σ_m CE(z_m). The method has its own linear probe for each modality, which
    learns from the detached features. Every `every` steps each probe is trained on one half of the
    batch, by ten steps of Adam, and scored on the other half. P_m is a running mean of its
    accuracies, P ← β P_now + (1 - β) P, and the gradient of encoder m is multiplied by the running
    mean of

        s_m = min(1 + α w_m, 2),   w_m = (max P - P_m) / (max P - min P + ε),

    s̄ ← μ s + (1 - μ) s̄, which begins at 1 and stays until the probes are scored again. P begins
    at 0, which cancels in w_m. A sample's index and the step draw its half.

    Attributes:
        probes: By modality, the weights of the probes, with the bias in the last column.
        accuracy: P, in the encoders' order.
        scale: s̄, in the encoders' order.
    """

    info = Info(
        title="Probe-guided gradient boosting (PGGB)",
        paper="Vo, Fayek, Nguyen. Probe-Guided Gradient Balancing for Multimodal Learning. "
        "NeurIPS 2026",
        year=2026,
        url="https://github.com/VuVoCodes/AsynchronousFunction",
        category="optimisation",
        writes="gradients",
        modalities="any number, between the best and the worst probe; with one, training is joint "
        "training",
        neutral={"alpha": 0.0, "unimodal": 0.0},
        needs=("unimodal", "index"),
        unimodal="trains",
        head="multi",
        cost="M unimodal heads; every `every` steps a gather of the features and M linear probes, "
        "trained by ten steps of Adam on half a batch",
        budget=1.05,
        scales_gradients=True,
        multiplies=True,
        doubts="Read in the manuscript and code of the authors' repository; a published "
        "version could not be checked. w_m is normalised, so the worst probe's encoder "
        "is boosted by 1 + α however small its distance from the best. The paper says "
        "that the boost fades as modalities draw level, which happens only at distances "
        "of about ε. A modality of pure noise is boosted as well. The paper leaves ε "
        "and the starting P open. In the code, the halves are the first and second half "
        "of a batch; here they are drawn by sample, independent of ranks and passes. "
        "Its best results use α = 0.75 on top of OGM-GE: here `pggb(alpha=0.75)+ogm_ge` "
        "in one training.",
    )
    state: ClassVar[tuple[str, ...]] = (
        "probes",
        "first",
        "second",
        "learnt",
        "accuracy",
        "scale",
        "steps",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        alpha: float = 0.5,
        unimodal: float = 1.0,
        every: int = 20,
        beta: float = 0.1,
        mu: float = 0.3,
        rate: float = 1e-3,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the boost.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            alpha: α, strength of the boost, not negative; from 1 on, the bound limits it. The
                paper: 0.5, and 0.75 on top of OGM-GE.
            unimodal: Weight of the unimodal losses, not negative; 1 in the runs of the paper, which
                calls them optional.
            every: Steps between two looks of the probes; 20 in the paper.
            beta: β, share of a new score in its running mean, above 0 and at most 1; 0.1.
            mu: μ, share of new scales in theirs, likewise; 0.3.
            rate: Learning rate of the probes (Adam), above 0; 0.001.
            seed: Seed of the probes' initial weights, drawn from a separate stream, and of the
                halves.
            criterion: See `Method`. The probes learn by cross-entropy in any case.

        Raises:
            ValueError: If a setting is out of range or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", alpha=alpha, unimodal=unimodal)
        check_range(self, "at least 1", every=every)
        check_range(self, "above 0 and at most 1", beta=beta, mu=mu)
        check_range(self, "finite and above 0", rate=rate)
        if unimodal == 0:
            self.info = replace(self.info, partial=True, unimodal="leaves")
        elif len(self.encoders) < 2:
            self.info = replace(self.info, partial=True)
        self.alpha, self.unimodal, self.every = alpha, unimodal, every
        self.beta, self.mu, self.rate, self.seed = beta, mu, rate, seed
        self.probes: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.learnt = torch.zeros((), dtype=torch.float64)  # the probes' steps
        self.accuracy: Float[Tensor, " m"] = torch.zeros(len(self.encoders))
        self.scale: Float[Tensor, " m"] = torch.ones(len(self.encoders))
        self.steps = 0
        self._passes: list[list[Tensor]] = []
        self._overflow = Overflow(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards what an unfinished step left behind."""
        self._passes = []
        self._overflow.clear()

    @property
    def is_active(self) -> bool:
        """Whether there is anything to boost."""
        return self.alpha > 0 and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + unimodal · Σ_m CE(z_m); also keeps the features if a look is due."""
        loss = super().loss(output, target)
        if len(self.encoders) < 2:
            return loss
        unimodal, index = self._unimodal(output), self._need(output, "index")
        if self.unimodal:
            for logits in unimodal.values():
                loss = loss + self.unimodal * self.criterion(logits, target)
        elif distributed.world_size() > 1:
            loss = loss + distributed.idle(unimodal.values())
        if self.is_active and torch.is_grad_enabled():
            self._overflow.watch(output)
            self.scale = self.scale.to(loss.device)
            if (self.steps + 1) % self.every == 0:
                self._note(output, target, index)
        return loss

    def before_step(self) -> None:
        """Changes the encoders' gradients, with the scales from before this step's look."""
        self.steps += 1
        if not self.is_active:
            return
        scale = self.scale
        if self._passes:
            self._look()
        for factor, encoder in zip(scale, self.encoders.values(), strict=True):
            scale_(encoder, factor, least=0)
        self.metrics = self._per_modality(scale=scale, accuracy=self.accuracy)

    def _note(self, output: Output, target: Tensor, index: Int[Tensor, " n"]) -> None:
        """Keeps what the probes look at: labels, the draw of the halves, and features."""
        features = {name: full(x.detach()) for name, x in self._features(output).items()}
        for name, x in features.items():
            if name not in self.probes:
                self._make(name, x, output.logits.shape[1])
        drawn = chance.uniform(index, self.seed, self.steps)
        self._passes.append([target, drawn, *features.values()])

    def _make(self, name: str, x: Float[Tensor, "n d"], classes: int) -> None:
        """A probe, initialised like a linear layer."""
        number = list(self.encoders).index(name)
        self.probes[name] = untrained(classes, x.shape[1] + 1, self.seed, number).to(x)
        self.first[name] = torch.zeros_like(self.probes[name])
        self.second[name] = torch.zeros_like(self.probes[name])

    @torch.no_grad()
    def _look(self) -> None:
        """Trains the probes on half of the step's samples over all ranks, and scores the others."""
        parts = [torch.cat(part) for part in zip(*self._passes, strict=True)]
        self._passes = []
        target, drawn, *features = (torch.cat(distributed.gather(part)) for part in parts)
        half = len(target) // 2
        if half == 0:
            return
        counts = self._overflow.counts(torch.cat([x.flatten() for x in features]))
        train, score = drawn.argsort(stable=True).tensor_split([half])
        found = []
        for name, value in zip(self.encoders, features, strict=True):
            x = nn.functional.pad(value, (0, 1), value=1.0)
            self._learn(name, x[train], target[train], counts)
            right = (x[score] @ self.probes[name].T).argmax(1) == target[score]
            found.append(right.to(x).mean())
        self.learnt = self.learnt.to(counts.device) + STEPS * counts
        accuracy = self.accuracy.to(found[0])
        now = accuracy.lerp(torch.stack(found), self.beta)
        self.accuracy = kept(counts, now, accuracy)
        scale = self.scale.to(now)
        self.scale = kept(counts, scale.lerp(scales(now, self.alpha), self.mu), scale)

    def _learn(
        self, name: str, x: Float[Tensor, "n w"], target: Int[Tensor, " n"], counts: Tensor
    ) -> None:
        """Trains a probe by ten steps of Adam on the given samples, as one batch."""
        tables = (self.probes, self.first, self.second)
        old = [table[name].to(x) for table in tables]  # a state may come from another device
        weight, first, second = old
        for step in range(1, STEPS + 1):
            grad = slope(weight, x, target)
            at = self.learnt.to(x.device) + step
            weight, first, second = adam(weight, grad, first, second, at, self.rate)
        for table, new, before in zip(tables, (weight, first, second), old, strict=True):
            table[name] = kept(counts, new, before)
