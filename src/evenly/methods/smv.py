"""Sample-level modality valuation (SMV) and re-sampling based on it.

Wei, Feng, Wang, Hu, "Enhancing Multimodal Cooperation via Sample-level Modality Valuation",
CVPR 2024, https://arxiv.org/abs/2309.06255.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly import chance, distributed, numbering
from evenly.diagnosis.contribution import shapley, subsets
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_choice, check_range
from evenly.resampling import Resampler, kept_alone


def values(output: Output, target: Int[Tensor, " n"], names: Sequence[str]) -> Float[Tensor, "n s"]:
    """What each set S of modalities is worth to each sample: v(S) = |S| if z_S is right, else 0.

    z_S are the fused logits with the features of all other modalities zeroed. The columns follow
    the order of `subsets`.
    """
    assert output.fuse is not None
    absent = {name: torch.zeros_like(output.features[name]) for name in names}
    columns = [torch.zeros_like(target)]
    for chosen in subsets(names)[1:]:
        dropped = {name: absent[name] for name in names if name not in chosen}
        logits = output.fuse({**output.features, **dropped}) if dropped else output.logits
        columns.append(len(chosen) * (logits.argmax(1) == target))
    return torch.stack(columns, dim=1).float()


def copies(contribution: Float[Tensor, "m n"]) -> Int[Tensor, "m n"]:
    """How many extra copies of a sample have one modality alone: 2 (1 - φ), rounded, never < 0.

    With two modalities φ is -½, 0, ½, 1 or 1½, and there are 3, 2, 1, 0 or 0 copies.
    """
    # a little above ½: φ = ¾ with rounding errors must fall on the same side for all
    return (2 * (1 - contribution) + 0.5 + 1e-9).floor().clamp_min(0).long()


def shares(contribution: Float[Tensor, " m"], alpha: float) -> Float[Tensor, " m"]:
    """The share of samples that get an extra copy with one modality alone: ⅔ α (φ_best - φ_m)."""
    return 2 / 3 * alpha * (contribution.max() - contribution)


def options(
    pool: Int[Tensor, " p"], count: int
) -> tuple[Int[Tensor, " p"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The variants in a pool, sample by sample; where each sample's begin, and how many it has."""
    order = (pool % count).argsort(stable=True)
    times = torch.bincount(pool % count, minlength=count)
    return pool[order] // count, times.cumsum(0) - times, times


class SMV(Method):
    """Repeats samples with only the modalities that contribute little to them.

    Before each epoch after the warm-up, the Shapley value φ_m measures each modality's contribution
    to the correct prediction of each sample. With `level="sample"`, the epoch's pool has 2
    (1 - φ_m) extra copies (rounded) of each sample for each modality, with the features of all
    others zeroed. With `level="modality"`, ⅔ α (φ_best - φ_m) of all samples, drawn at random, get
    an extra copy, where φ are means over a part of the samples. An epoch draws as many positions
    from the pool as there are samples; the loss is joint training's.

    The loader must draw from the sampler that you pass; see `evenly.Resampler`. In its pool, the
    v-th variant of a sample keeps only the v-th encoder's modality. When a sample comes up, step
    and sample draw one of its entries in the pool. With `level="sample"`, the draw does not depend
    on how `Output.index` numbers the samples; with "modality", it uses that number.
    """

    info = Info(
        title="Sample-level modality valuation (SMV)",
        paper="Wei, Feng, Wang, Hu. Enhancing Multimodal Cooperation via Sample-level Modality "
        "Valuation. CVPR 2024",
        year=2024,
        url="https://arxiv.org/abs/2309.06255",
        category="data",
        writes="loss",
        modalities="Shapley values over all 2^M sets; a sample comes 2 (1 - φ) times more, "
        "rounded, for each modality, or a share of all samples for each modality behind the "
        "best; for two this is the paper's rule; with one, it does nothing",
        neutral={"warmup": 1000},
        variants=({}, {"level": "modality"}),
        epochs=60,
        in_epochs=("warmup",),
        needs=("index", "fuse"),
        separate=True,
        needs_probe=True,
        cost="the head once more; before each epoch a pass over the training split, with the head "
        "run 2^M - 1 times",
        budget=1.05,
        doubts="Epochs keep their length: as many samples are drawn from the enlarged pool as "
        "there are in the split. The paper trains on the whole pool, which makes its "
        "epochs up to several times longer. Which copy of a sample comes is drawn anew "
        "each time. The released code repeats a sample once for φ between 0.4 and 0.9, "
        "twice between -0.1 and 0.4, and three times below; rounding gives the same for "
        "all values that two modalities can have, and extends to more. How the paper "
        "would treat three modalities is unverified.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "pool", "samples", "steps")

    def __init__(
        self,
        encoders: Encoders,
        *,
        sampler: Resampler,
        level: Literal["sample", "modality"] = "sample",
        warmup: int = 5,
        alpha: float = 1.0,
        part_ratio: float = 0.2,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the re-sampling.

        Args:
            encoders: By modality; their names say which modalities are valued.
            sampler: The sampler that the training loader draws from.
            level: Whether to value each sample, or each modality as a whole.
            warmup: The number of first epochs of plain joint training (the paper: 5 of 60).
            alpha: α, how much is re-sampled with `level="modality"`; 1 in the paper.
            part_ratio: Share of the samples that modalities are valued on with `level="modality"`,
                from 0 to 1; 0.2 in the paper.
            seed: Seed of the samples drawn with `level="modality"`.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_choice(self, ("sample", "modality"), level=level)
        check_range(self, "not negative", warmup=warmup, alpha=alpha)
        check_range(self, "above 0 and at most 1", part_ratio=part_ratio)
        self.sampler, self.level, self.warmup = sampler, level, warmup
        self.alpha, self.part_ratio, self.seed = alpha, part_ratio, seed
        self.samples: numbering.Samples = {}
        self.epoch, self.steps = -1, 0
        self._options: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def pool(self) -> Int[Tensor, " p"] | None:
        """The sampler's pool, which a resumed epoch draws from."""
        return self.sampler.pool

    @pool.setter
    def pool(self, pool: Int[Tensor, " p"] | None) -> None:
        self.sampler.pool = pool
        self._options = None

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is re-sampled."""
        return epoch >= self.warmup and len(self.encoders) > 1

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Values the modalities, and sets the pool of the epoch."""
        probe = self._probe(probe)
        self._check_sampler(probe, self.sampler)
        self.sampler.set_epoch(epoch)
        if epoch == self.epoch:  # a run resumed mid-epoch draws from the pool it had
            return
        self.pool, self.samples = None, {}
        if self.is_due(epoch):
            self._write_pool(epoch, probe)
        self.epoch = epoch

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss, with the modalities that each sample's position selects."""
        index, fuse = self._need(output, "index"), self._need(output, "fuse")
        # In a validation, positions belong to another split.
        if self.pool is None or not torch.is_grad_enabled():
            return super().loss(output, target)
        variant = self._variant(index, target)
        masked = kept_alone(output.features, list(self.encoders), variant)
        return self.criterion(fuse(masked), target)

    def before_step(self) -> None:
        """Counts the steps, since a sample may be another of its copies in the next."""
        self.steps += 1

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and with it the sampler's order."""
        super().load_state_dict(state)
        self.sampler.set_epoch(max(self.epoch, 0))

    def _variant(self, index: Int[Tensor, " n"], target: Tensor) -> Int[Tensor, " n"]:
        """Which of its copies each sample of a batch is, drawn from all it has."""
        if self._options is None:
            self._options = options(cast(Tensor, self.pool), self.sampler.count)
        variant, start, times = (x.to(index.device) for x in self._options)
        self._options = variant, start, times
        if self.level == "modality":  # copied samples were drawn at random, so any will do
            drawn = chance.uniform(index, self.seed, self.steps).double()
            return variant[(drawn * len(variant)).long()]
        rows = numbering.rows(self.samples, index, target, "SMV")
        position = self.samples["position"][rows]
        drawn = chance.uniform(position, self.seed, self.steps).double()
        return variant[start[position] + (drawn * times[position]).long()]

    def _write_pool(self, epoch: int, probe: Probe) -> None:
        seed = chance.mixed(self.seed, epoch)
        index, contribution = self._valuation(
            probe, 1.0 if self.level == "sample" else self.part_ratio, seed
        )
        once_more = (
            self._by_sample(index, contribution)
            if self.level == "sample"
            else self._by_modality(contribution, seed)
        )
        count = self.sampler.count
        again = [rows + number * count for number, rows in enumerate(once_more, start=1)]
        if any(len(rows) for rows in again):
            self.pool = torch.cat([torch.arange(count), *again])
        self.metrics = self._per_modality(
            contribution=contribution.mean(1),
            resampled=torch.tensor([len(rows) / count for rows in again]),
        )

    def _valuation(
        self, probe: Probe, fraction: float, seed: int
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, "m n"]]:
        """Positions and contributions of some training samples, the same on all ranks."""
        names = list(self.encoders)

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            self.watch.check_target(self, output, target)
            self._need(output, "fuse")
            self._features(output)
            return {"value": values(output, target, names)}

        found = probe.features("train", of, fraction=fraction, seed=seed)
        if self.level == "sample":
            self.samples, values_of = numbering.samples(found, "SMV")
            numbering.check_positions(
                self.samples, self.sampler.count, "SMV", probe.loaders["train"]
            )
            index, value = self.samples["position"].cpu(), values_of["value"].cpu()
        else:
            assert found.index is not None
            value, index = (
                torch.cat(distributed.gather(part, sharded=found.sharded)).cpu()
                for part in (found.features["value"], found.index)
            )
        order = index.argsort()
        columns = value[order].double().T
        contribution = shapley(dict(zip(subsets(names), columns, strict=True)), names)
        return index[order], torch.stack(list(contribution.values()))

    def _by_sample(
        self, index: Int[Tensor, " n"], contribution: Float[Tensor, "m n"]
    ) -> list[Int[Tensor, " _"]]:
        return [index.repeat_interleave(times) for times in copies(contribution)]

    def _by_modality(
        self, contribution: Float[Tensor, "m n"], seed: int
    ) -> list[Int[Tensor, " _"]]:
        stream = torch.Generator().manual_seed(seed)
        count = self.sampler.count
        return [
            torch.randint(count, (int(share * count),), generator=stream)
            for share in shares(contribution.mean(1), self.alpha).tolist()
        ]
