"""Diagnosing & Re-learning (D&R).

Wei, Li, Feng, Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024,
https://arxiv.org/abs/2407.09705.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from evenly import distributed
from evenly.diagnosis.gap import (
    Diagnosis,
    Gap,
    check_finite,
    check_gap,
    check_rows,
    diagnose,
    doubts,
    in_classes,
)
from evenly.diagnosis.kmeans import check_sample
from evenly.diagnosis.purity import are_labels
from evenly.errors import UserError, UserRuntimeError
from evenly.features import Features
from evenly.method import Criterion, Encoders, Info, Method
from evenly.optimizers import check_trains, forget, unwrapped
from evenly.output import Output
from evenly.probe import Probe, Split
from evenly.ranges import check_choice, check_range
from evenly.reinit import check_initial, check_kinds, cut_like, initial_of, soft_reinit_
from evenly.targets import Kind, counted, in_words, kinds

Initial = Mapping[str, Mapping[str, Tensor]]
_log = logging.getLogger(__name__)


class Relearn(Method):
    """Softly pulls each encoder back to its initial weights, as far as it is over-trained.

    Every `every` epochs, `times` times, each encoder is diagnosed (`diagnose`) and re-learns:
    θ ← (1 - α) θ + α θ₀ with α = tanh(strength · gap). A large gap of purities means that an
    encoder is well-learnt and over-trained, so it is pulled back strongly. A small gap means that
    it is under-fitted or its modality scarcely informative; it is left almost unchanged, so that it
    neither forgets nor memorises noise. Training itself is joint training.

    Re-learning takes place before epoch `first` (`every` + 1 by default), and then every `every`
    epochs, counted from 0. With the defaults those are epochs 21, 41 and 61, the paper's "after
    epochs 20, 40, 60"; with every=4 they are 5, 9 and 13. `schedule` lists them. If it came right
    after an epoch's validation, a checkpoint chosen by that validation would hold weights that were
    never validated.

    Re-learning pulls back what an encoder computes, however it is parametrised: see `soft_reinit_`
    for low-rank adapters, weight norms and quantised bases. Diagnoses skip samples whose target is
    the criterion's `ignore_index`. The paper has one class for each sample; for numbers and for
    several labels, evenly has its own purity (`diagnose`).

    The first time that a gap may not be real, the first rank logs a warning that says so (logger
    `evenly.methods.relearn`).

    Attributes:
        initial: By modality, θ₀ of each parameter, with whatever else a weight is computed from;
            None until the first epoch, when all ranks hold the same weights.
        history: Purities, gap, its standard error and strength, by the epoch before which it
            happened and by modality.
        diagnosis: The latest diagnosis; its notes say which gaps may not be real.
    """

    info = Info(
        title="Diagnosing & Re-learning (D&R)",
        paper="Wei, Li, Feng, Hu. Diagnosing and Re-learning for Balanced Multimodal Learning. "
        "ECCV 2024",
        year=2024,
        url="https://arxiv.org/abs/2407.09705",
        category="optimisation",
        writes="weights",
        targets=("classes", "ignored", "labels", "logit", "number"),
        modalities="any number; each is diagnosed separately",
        neutral={"strength": 0.0},
        epochs=90,
        in_epochs=("every",),
        needs_probe=True,
        cost="none in a step; `times` times, a pass over both splits and a clustering of each "
        "(`gap=stable`: 20 to 240 clusterings)",
        missing=True,
        doubts="k-means uses 10 restarts, scikit-learn's default when the paper was written; "
        "the released code leaves the number to the installed version. It is not "
        "scikit-learn's k-means: in a large split, restarts see a random part of the "
        "rows, the best of them is improved by jumps of its centres, and only that one "
        "goes over all rows. Its inertia is on average no higher than that of ten restarts "
        "on all rows, so purity can differ from the published one (docs/performance.md).",
    )
    state: ClassVar[tuple[str, ...]] = ("initial", "history")

    def __init__(
        self,
        encoders: Encoders,
        *,
        every: int = 20,
        first: int | None = None,
        times: int = 3,
        strength: float = 3.0,
        gap: Gap = "paper",
        restarts: int = 10,
        sample: int | None = None,
        seed: int = 0,
        batchnorm: Literal["kept", "reestimated"] = "kept",
        moments: Literal["kept", "cleared"] = "kept",
        optimizer: Optimizer | None = None,
        initial: Initial | str | PathLike[str] | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares re-learning; the defaults are the paper's.

        Args:
            encoders: The modules to diagnose and pull back, by modality. A modality left out is
                only trained jointly.
            every: Period in epochs. With every=4, re-learning comes before epochs 5, 9 and 13,
                counted from 0: an epoch later than you might expect, as in the released code.
            first: The first of these epochs, counted from 0; every + 1 by default. With first=4
                and every=4 they are 4, 8 and 12.
            times: The total number of re-learnings.
            strength: λ in α = tanh(λ · gap); 0 is plain joint training.
            gap: The estimator; see `diagnose`. `paper` has a strong size bias; `shared` has almost
                none and is cheaper; `stable` has none, and pulls only by the part beyond three
                standard errors.
            restarts: Restarts of each k-means.
            sample: For splits with more rows, the number that k-means searches in, at least 20 per
                class; see `diagnose`. All by default, though in a large split the restarts then
                see a part of them, unlike the published ones.
            seed: Seed of the clusterings.
            batchnorm: Whether running statistics are kept, as in the paper, or recomputed on the
                training split after the weights have moved.
            moments: Whether the optimiser's momentum and moments are kept, as in the paper, or
                cleared for the encoders' parameters with each re-learning.
            optimizer: The optimiser, for `moments="cleared"`.
            initial: θ₀, if not the run's own starting weights: by modality, the parameters by name,
                or a file of these written by `torch.save`.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or the initial weights do not fit.
        """
        super().__init__(encoders, criterion=criterion)
        first = every + 1 if first is None else first
        check_range(self, "at least 1", every=every, first=first, restarts=restarts)
        check_range(self, "not negative", times=times)
        check_range(self, "finite and not negative", strength=strength)
        check_gap(gap)
        check_choice(self, ("kept", "reestimated"), batchnorm=batchnorm)
        check_choice(self, ("kept", "cleared"), moments=moments)
        if moments == "cleared" and optimizer is None:
            raise UserError("Relearn: moments='cleared' needs the optimizer; pass optimizer=... .")
        self.every, self.first, self.times, self.strength = every, first, times, strength
        self.gap: Gap = gap
        self.restarts, self.sample, self.seed = restarts, sample, seed
        self.batchnorm = batchnorm
        self.moments = moments
        self.optimizer = unwrapped(optimizer) if moments == "cleared" else None
        if self.optimizer is not None:
            check_trains(self.optimizer, self.encoders, "Relearn")
        self.initial: Initial | None = self._given(initial)
        self.history: dict[int, dict[str, dict[str, float]]] = {}
        self.diagnosis: Diagnosis | None = None
        self._is_doubted = False  # whether the log has said so

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Copies the initial weights in the first epoch; re-learns when it is due."""
        if epoch == 0 and self.history:
            raise UserRuntimeError(
                f"this Relearn belongs to a training that has reached epoch {max(self.history)} "
                "and keeps its initial weights. Make a new one for a new training."
            )
        if self.initial is None:
            self._take_initial(epoch)
        if epoch == 0:
            self._check(probe)
        if epoch in self.schedule and epoch not in self.history:
            self._relearn(epoch, self._probe(probe))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; each rank keeps its part of sharded encoders.

        Raises:
            ValueError: If it belongs to another method, or to encoders of another shape.
        """
        super().load_state_dict(state)
        if self.initial is not None:
            self._check_initial(self.initial)
            self.initial = {
                name: cut_like(self.initial[name], encoder)
                for name, encoder in self.encoders.items()
            }

    @property
    def schedule(self) -> range:
        """The epochs, counted from 0, before which encoders re-learn."""
        return range(self.first, self.first + self.times * self.every, self.every)

    def is_due(self, epoch: int) -> bool:
        """Whether encoders re-learn before this epoch (from 0); see `schedule`."""
        return epoch in self.schedule

    def _relearn(self, epoch: int, probe: Probe) -> None:
        assert self.initial is not None
        self.diagnosis = diagnose(
            self._look(probe, "train"),
            self._look(probe, "val"),
            gap=self.gap,
            seed=self.seed,
            restarts=self.restarts,
            sample=self.sample,
        )
        strength = self.diagnosis.strength(self.strength)
        for name, encoder in self.encoders.items():
            soft_reinit_(encoder, self.initial[name], strength[name])
        if self.batchnorm == "reestimated":
            probe.reestimate_batchnorm(self.encoders.values())
        if self.optimizer is not None:
            for encoder in self.encoders.values():
                forget(self.optimizer, encoder.parameters())
        self._note(epoch, strength)
        self._doubt(epoch)

    def _doubt(self, epoch: int) -> None:
        """Logs, once for a training, that a gap by which encoders re-learn may not be real."""
        assert self.diagnosis is not None
        found = doubts(self.diagnosis) if self.strength else ()
        if not found or self._is_doubted:
            return
        self._is_doubted = True
        if distributed.rank() == 0:
            _log.warning(
                "%s, before epoch %d: %s Later re-learnings are not reported; see `history`.",
                type(self).__name__,
                epoch,
                " ".join(found),
            )

    def _note(self, epoch: int, strength: Mapping[str, float]) -> None:
        """Records what was found and done before an epoch."""
        assert self.diagnosis is not None
        self.history[epoch] = {
            name: {
                "train": self.diagnosis.train[name],
                "val": self.diagnosis.val[name],
                "gap": self.diagnosis.gap[name],
                "error": self.diagnosis.standard_error[name],
                "strength": strength[name],
            }
            for name in self.encoders
        }
        self.metrics = {
            f"{key}/{name}": torch.tensor(values[key], dtype=torch.float32, device="cpu")
            for name, values in self.history[epoch].items()
            for key in ("gap", "strength")
        }

    def _take_initial(self, epoch: int) -> None:
        if epoch > 0:
            raise UserRuntimeError(
                f"{type(self).__name__}'s first epoch is {epoch}, so the weights that training "
                "started from are gone. Resume with method.load_state_dict(checkpoint), call "
                "before_epoch from epoch 0 on, or pass `initial`."
            )
        for name, encoder in self.encoders.items():
            if any(is_lazy(parameter) for parameter in encoder.parameters()):
                raise UserRuntimeError(
                    f"encoder '{name}' has lazy layers, which have no weights yet. Pass one batch "
                    "through the model before the first epoch."
                )
        self.initial = {name: initial_of(encoder) for name, encoder in self.encoders.items()}

    def _check(self, probe: Probe | None) -> None:
        """Checks, before any training is spent, what would fail at the first re-learning."""
        if not self.times:
            return
        for name, encoder in self.encoders.items():
            assert self.initial is not None
            check_kinds(encoder, self.initial[name], f"encoder '{name}'")
        probe = self._probe(probe)
        train, val = self._look(probe, "train"), self._look(probe, "val")
        several = train.target.ndim > 1 and not are_labels(train.target, sharded=train.sharded)
        if several and not self._takes_numbers(train):
            raise UserError(
                f"{type(self).__name__} takes {in_words(self.info.targets)}; found targets of "
                f"shape {tuple(train.target.shape)} that are not 0 or 1 for each label. Pass one "
                "class for each sample, such as target.argmax(1) of soft labels, or labels of 0 "
                "and 1."
            )
        columns = in_classes(train, val)
        check_sample(self.sample, max(column.k for column in columns))
        check_rows(columns, self.gap)
        for name in self.encoders:
            check_finite(train, name, "training")
            check_finite(val, name, "validation")

    def _takes_numbers(self, split: Features) -> bool:
        """Whether targets in columns may be numbers to regress on, and the method takes these."""
        may_be = split.target.new_tensor("number" in self._columns(split), dtype=torch.long)
        # A rank without rows cannot tell them from soft labels.
        may_be = distributed.max_(may_be, sharded=split.sharded)
        return bool(may_be) and "number" in self.info.targets

    def _columns(self, split: Features) -> tuple[Kind, ...]:
        """What targets in columns may be; logits have the same shape."""
        return kinds(split.target, split.target, self.criterion)

    def _look(self, probe: Probe, split: Split) -> Features:
        """The features of the given encoders only, for samples with a label."""
        width = 1

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            nonlocal width
            width = output.logits.shape[-1]
            return output.features

        features = probe.features(split, of)
        for name in self.encoders:
            if name not in features.features:
                raise UserError(
                    f"there is an encoder '{name}', but the forward pass gives features of "
                    f"{sorted(features.features)} only. Use the same names in both."
                )
        own = {name: features.features[name] for name in self.encoders}
        if features.target.ndim == 2 and features.target.shape[1] == 1:  # as for one logit
            features = replace(features, target=features.target[:, 0])
        features = replace(features, features=own)
        if features.target.is_floating_point():
            return features
        several = features.target.ndim > 1
        # Whole numbers to regress on, or the 0 and 1 of one logit.
        if width == 1 or (several and "number" in self._columns(features)):
            return replace(features, target=features.target.float())
        if several:
            return features
        here = counted(features.target, width, self.criterion)
        return features if bool(here.all()) else features.where(here)

    def _given(self, initial: Initial | str | PathLike[str] | None) -> Initial | None:
        if initial is None:
            return None
        loaded: Any = initial
        if isinstance(initial, str | PathLike):
            loaded = torch.load(initial, map_location="cpu", weights_only=True)
        self._check_initial(loaded)
        return {name: loaded[name] for name in self.encoders}

    def _check_initial(self, initial: Initial) -> None:
        for name, encoder in self.encoders.items():
            if name not in initial:
                raise UserError(
                    f"the initial weights hold {sorted(initial)}, but not '{name}'. Give one "
                    "state per modality."
                )
            check_initial(encoder, initial[name], f"encoder '{name}'")
