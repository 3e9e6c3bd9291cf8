"""A checkup: how much each modality offers, and how much of it is learnt, used and over-trained."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.diagnosis.alone import Alone, check_apart, optimizer_of
from evenly.diagnosis.classes import Classes, Labels
from evenly.diagnosis.estimate import placed, share
from evenly.diagnosis.findings import Checkup, Measured, concluded
from evenly.diagnosis.gap import Diagnosis, check_finite, diagnose
from evenly.diagnosis.interactions import interactions as decomposed
from evenly.diagnosis.linear_probe import Read, read
from evenly.diagnosis.raw import raw
from evenly.diagnosis.use import Use, use
from evenly.errors import UserError
from evenly.features import Features
from evenly.method import Criterion, Encoders, Method
from evenly.optimizers import check_trains
from evenly.output import Output
from evenly.probe import SPLITS, Forward, Probe, Split
from evenly.ranges import check_range

KNOWN = 0.1
"""Accuracy above the commonest class's that an untrained model hardly reaches."""
LOGITS = ""  # a key beside the modalities': a ModuleDict allows no empty name


def checkup(
    model: nn.Module,
    forward: Forward,
    train: Iterable[Any],
    val: Iterable[Any],
    encoders: Encoders,
    *,
    initial: Mapping[str, Tensor] | None = None,
    optimizer: Any | None = None,
    epochs: int = 10,
    criterion: Criterion | None = None,
    seed: int = 0,
    interactions: bool = False,
    progress: bool = True,
) -> Checkup:
    """Finds out what is wrong with each modality of a model, and changes nothing.

    ```python
    initial = copy.deepcopy(model.state_dict())
    ...  # training
    print(evenly.checkup(model, forward, train_loader, val_loader, encoders,
                         initial=initial, optimizer=optimizer))
    ```

    For each modality it tells how much information it offers (by training its encoder alone from
    the initial weights, for a few epochs), how much of that the joint model's encoder has learnt
    (by a linear probe on it), how much of it the predictions use (by swapping it between samples),
    and how over-trained the encoder is (by the gap of purities).

    With several labels per sample, accuracy is balanced and averaged over labels: the mean of the
    share of samples with a label that get it and the share of samples without it that do not, so
    chance is ½. Plain accuracy would mostly count the absence of rare labels. The threshold of each
    label is halfway between the logits of training samples with it and without it, since a
    probability of ½ would hardly ever predict rare labels.

    It costs one short training for all modalities, a second one if some encoders train slower than
    others or are frozen, and one of the joint model if you do not pass `initial`. Then it predicts
    the validation split with modalities swapped, four times, and clusters the features of each
    modality 20 to 240 times, which for large splits can take longer than the trainings. At the end
    the model, the loaders and all random streams are restored.

    Args:
        model: The model. With `initial` it counts as trained; otherwise it counts as untrained, and
            is trained for `epochs` epochs as well.
        forward: `forward(model, batch)` returns an `Output` and the target, as for `Probe`.
        train: Loader of the training split.
        val: Loader of the validation split, with at least three samples per batch. If its rows are
            unknown, as those of an `IterableDataset` are, it must shuffle them. Never the test
            split.
        encoders: The modules whose outputs are the features, by modality.
        initial: The model's `state_dict()` from before training.
        optimizer: The training's optimiser; new ones of its kind with its settings do the work, at
            the learning rate before a schedule. AdamW with a learning rate of 0.001 by default. If
            several train the model, pass a new one of all parameters.
        epochs: Length of each short training. With `initial`, take no more than the joint model was
            trained for: encoders trained longer alone would make it look worse than it is.
        criterion: The joint training's; cross-entropy by default, the binary one for several labels
            per sample. Encoders alone also train by it, unless one logit tells two classes apart.
        seed: Seed of the trainings and clusterings.
        interactions: Whether to measure, for each pair of modalities, how many bits of the class
            they share, each has alone, and only both together give.
        progress: Whether to show a bar: on a terminal, if tqdm is installed.

    Raises:
        ValueError: If the targets are not classes or labels, encoders see each other before the
            features are taken, samples cannot be swapped within batches of the validation split,
            a process group of several ranks exists, or the optimiser leaves out trainable
            parameters of an encoder.
    """
    check_range(_Who(), "at least 1", epochs=epochs)
    if not isinstance(initial, Mapping | None):
        raise TypeError(
            f"checkup: 'initial' is a state, by name; found {type(initial).__name__}. Take it "
            "before training: initial = copy.deepcopy(model.state_dict())."
        )
    if distributed.world_size() > 1:
        raise UserError(
            "checkup runs in one process, but a process group of "
            f"{distributed.world_size()} ranks exists. After training, call "
            "torch.distributed.destroy_process_group() on all ranks, and then checkup on one, with "
            "loaders of the whole splits and the model inside its DistributedDataParallel."
        )
    probe = Probe(model, forward, train, val)
    named = Method(encoders).encoders
    if not named:
        raise UserError("checkup needs the encoders by modality. Pass {'audio': model.audio, ...}.")
    trained = copy.deepcopy(probe.model.state_dict())
    if initial is not None and _same(initial, trained):
        raise UserError(
            "'initial' equals the current model. Take a copy of it before training: initial = "
            "copy.deepcopy(model.state_dict()). If the model is not trained, leave it out."
        )
    check_apart(probe, named)
    trainer = optimizer_of(probe.model, optimizer)
    check_trains(trainer, named, "checkup")
    work = _Work(probe, named, trainer, epochs, criterion, seed)
    if interactions and isinstance(work.classes, Labels):
        raise UserError(
            "checkup: interactions of modalities are measured for one class per sample, but "
            "these samples have several labels. Leave interactions out."
        )
    with _progress(work, joint=initial is None, shown=progress) as shown:
        joint = work.looked_at(shown) if initial is not None else work.trained_jointly(shown)
        try:
            if initial is not None:
                _load(probe.model, initial)
            alone = work.trained_alone(shown)
        finally:
            probe.model.load_state_dict(trained)
        measured = work.measured(joint, alone, shown, interactions=interactions)
    return concluded([measured])


class _Who:
    """For messages about settings."""


_Who.__name__ = "checkup"


@dataclass(frozen=True)
class _Joint:
    """Observations of the joint model.

    Attributes:
        train: Features of the training split.
        val: Features of the validation split.
        right: Whether, or how far, the prediction of each validation sample is correct.
        used: How the predictions use each modality.
        raw: Summaries of the encoders' inputs on both splits, if there are any.
    """

    train: Features
    val: Features
    right: Shaped[Tensor, " n"]
    used: Use
    raw: tuple[Features, Features] | None


class _Progress:
    """What a checkup is doing, on a bar if there is one."""

    def __init__(self, bar: Any | None, trainings: int, epochs: int) -> None:
        self.bar, self.trainings, self.epochs = bar, trainings, epochs
        self.begun = 0

    def training(self, what: str) -> None:
        """Says that the next training begins."""
        self.begun += 1
        self.doing(f"training {self.begun} of {self.trainings} ({what}), {self.epochs} epochs")

    def doing(self, what: str) -> None:
        """Says what is done now."""
        if self.bar is not None:
            self.bar.set_description(what)

    def batch(self) -> None:
        """Advances the bar by a training batch."""
        if self.bar is not None:
            self.bar.update()


class _Work:
    """The parts of a checkup, each of which restores the model."""

    def __init__(
        self,
        probe: Probe,
        encoders: Mapping[str, nn.Module],
        optimizer: Optimizer,
        epochs: int,
        criterion: Criterion | None,
        seed: int,
    ) -> None:
        self.probe, self.encoders, self.optimizer = probe, encoders, optimizer
        self.epochs, self.criterion, self.seed = epochs, criterion, seed
        output, target = probe.sample("train", 256)
        self.classes = Classes.told(output, target, criterion)
        self.notes = [self.classes.note] if self.classes.note else []
        self.alone = Alone(probe, encoders, output, self.classes, seed)
        self.notes += self.alone.held_back(optimizer).values()
        if lowered := self.alone.lowered(optimizer):
            self.notes.append(lowered)

    @property
    def rates(self) -> tuple[bool, ...]:
        """For each training, whether it runs at the highest rate of any encoder."""
        own = set(self.alone.rates(self.optimizer).values())
        if own == {0.0}:  # all are frozen, and would not change
            return (True,)
        return (False, True) if len(own) > 1 else (False,)

    def trained_jointly(self, shown: _Progress) -> _Joint:
        """Observations of the model after a short joint training."""
        self._note_trained()
        shown.training("joint model")
        usual = self.classes.loss if self.criterion is None else self.criterion

        def objective(output: Output, target: Tensor) -> Tensor:
            shown.batch()
            return usual(output.logits, target)

        with self.probe.trained(
            objective,
            epochs=self.epochs,
            optimizer=self.optimizer,
            seed=self.seed,
            criterion=usual,
        ):
            return self.looked_at(shown)

    def looked_at(self, shown: _Progress) -> _Joint:
        """Observations of the model as it is."""
        shown.doing("what the joint model uses")
        train, val = self._features("train"), self._predicted("val")
        self._check(train, val, "Training has diverged")
        features = {name: x for name, x in val.features.items() if name != LOGITS}
        logits = val.features[LOGITS]
        classes = self._deciding()
        inputs = {split: raw(self.probe, self.encoders, split) for split in SPLITS}
        known = [self.classes.among(x) for x in inputs.values() if x is not None]
        return _Joint(
            train,
            Features(features, val.target, val.index, present=val.present),
            classes.values(classes.right(classes.guess(logits), val.target), val.target),
            use(self.probe, self.encoders, classes),
            (known[0], known[1]) if len(known) == len(SPLITS) else None,
        )

    def trained_alone(self, shown: _Progress) -> list[tuple[Features, Features]]:
        """The features of encoders trained alone, for each training."""
        found = []
        for fastest in self.rates:
            shown.training(f"{' and '.join(self.encoders)} alone")
            train, val = self.alone.trained(
                self.optimizer, self.epochs, shown.batch, fastest=fastest
            )
            found.append((self._own(train), self._own(val)))
            self._check(*found[-1], "Trained alone, its encoder diverges")
        return found

    def measured(
        self,
        joint: _Joint,
        alone: list[tuple[Features, Features]],
        shown: _Progress,
        *,
        interactions: bool,
    ) -> Measured:
        """The measurements from all of these."""
        shown.doing("linear probes")
        target = joint.val.target
        commonest = self.classes.commonest(joint.train.target)
        learnt, inputs = read(joint.train, joint.val), {}
        if joint.raw is not None:
            inputs = read(*joint.raw)
        several = [read(*features) for features in alone]
        shown.doing(f"gap of {' and '.join(self.encoders)}")
        diagnosis = self._diagnosis(joint.train, joint.val, has_bits=interactions)

        def how_right(found: Read) -> float:
            return float(found.right(target).double().sum())

        def right(found: Mapping[str, Read]) -> dict[str, Tensor]:
            """Whether each sample that has a modality is read correctly."""
            known = {}
            for name, one in found.items():
                here = torch.zeros(len(target), dtype=torch.bool, device=target.device)
                here[one.rows] = True
                known[name] = placed(one.right(target)[here], here).cpu()
            return known

        # the training that a linear probe reads best
        there = {
            name: max((found[name] for found in several), key=how_right) for name in self.encoders
        }
        return Measured(
            chance=self.classes.values(self.classes.right(commonest, target), target).cpu(),
            right=joint.right.cpu(),
            raw=right(inputs),
            there=right(there),
            learnt=right(learnt),
            luck={
                name: (there[name].luck(target).cpu(), learnt[name].luck(target).cpu())
                for name in there
            },
            use=joint.used,
            diagnosis=diagnosis,
            interactions=decomposed(joint.train, joint.val) if interactions else {},
            has_labels=isinstance(self.classes, Labels),
        )

    def _check(self, train: Features, val: Features, why: str) -> None:
        """Raises if features cannot be read, or a split has no sample with a modality."""
        for name in self.encoders:
            for split, where in ((train, "training"), (val, "validation")):
                check_finite(split, name, where, why)
                if name in split.present and not bool(split.present[name].any()):
                    raise UserError(
                        f"no sample of the {where} split has '{name}'. Leave that encoder out, or "
                        "pass a split that has some."
                    )

    def _deciding(self) -> Classes:
        """What targets mean, with thresholds for the model's guesses."""

        def train() -> tuple[Tensor, Tensor]:
            found = self._predicted("train")
            return found.features[LOGITS], found.target

        return self.classes.deciding(train)

    def _predicted(self, split: Split) -> Features:
        """The features of a split, including the logits."""

        def of(output: Output, target: Tensor) -> dict[str, Tensor]:
            found = {name: output.features[name] for name in self.encoders}
            return {**found, LOGITS: output.logits}

        return self.classes.among(self.probe.features(split, of))

    def _note_trained(self) -> None:
        """Adds a note if a model that counts as untrained knows the classes."""
        val = self._predicted("val")
        guess = self._deciding().guess(val.features[LOGITS])
        commonest = self.classes.commonest(val.target)
        right, chance = (
            self.classes.values(self.classes.right(x, val.target), val.target)
            for x in (guess, commonest)
        )
        known = share(right)
        if known.low > float(chance.double().mean()) + KNOWN:
            self.notes.append(
                f"The model was right in {known.value:.2f} before the checkup trained it. If it is "
                "trained already, give its first weights (initial=...), or what is there is what "
                "its encoders reach from where they stand now."
            )

    def _diagnosis(self, train: Features, val: Features, *, has_bits: bool) -> Diagnosis:
        """The stable gap over the classes that both splits have."""
        if isinstance(self.classes, Labels):
            found = diagnose(train, val, gap="stable", seed=self.seed)
            return replace(found, notes=(*self.notes, *found.notes))
        counts = [split.target.bincount(minlength=self.classes.count) for split in (train, val)]
        both = (counts[0] > 0) & (counts[1] > 0)
        if int(both.sum()) < 2:
            raise UserError(
                f"the validation split has {int((counts[1] > 0).sum())} of the training split's "
                f"{int((counts[0] > 0).sum())} classes, so nothing can be compared. Draw it "
                "stratified by class."
            )
        lacking = (counts[0] > 0) != (counts[1] > 0)
        note: tuple[str, ...] = ()
        if bool(lacking.any()):
            few = ", ".join(map(str, lacking.nonzero()[:, 0].tolist()))
            what = "neither a gap nor bits" if has_bits else "no gap"
            note = (f"Classes missing from one split have {what}: {few}.",)
            train, val = (split.where(both[split.target]) for split in (train, val))
        found = diagnose(train, val, gap="stable", seed=self.seed)
        return replace(found, notes=(*self.notes, *found.notes, *note))

    def _features(self, split: Any) -> Features:
        return self._own(self.probe.features(split))

    def _own(self, split: Features) -> Features:
        """The given encoders' features, for samples with a label."""
        own = {name: split.features[name] for name in self.encoders}
        present = {name: here for name, here in split.present.items() if name in own}
        return self.classes.among(Features(own, split.target, split.index, present=present))


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal."""
    return one.keys() == other.keys() and all(
        x.shape == other[name].shape and torch.equal(x.to(other[name].device), other[name])
        for name, x in one.items()
        if isinstance(x, Tensor)
    )


def _load(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Resets the model to where training started."""
    try:
        model.load_state_dict(initial)
    except RuntimeError as error:
        said = str(error).strip().replace("\n", " ")[:300]
        raise UserError(
            f"'initial' is not the state of this model ({said}). Take it before training: "
            "initial = copy.deepcopy(model.state_dict())."
        ) from error


@contextmanager
def _progress(work: _Work, *, joint: bool, shown: bool) -> Iterator[_Progress]:
    """Shows a bar over all training batches if it can."""
    trainings = len(work.rates) + joint
    try:
        each = len(work.probe.loaders["train"])  # type: ignore[arg-type]
    except TypeError:  # batches as they come, or a DataLoader of an IterableDataset
        each = None
    total = None if each is None else trainings * work.epochs * each
    if find_spec("tqdm") is None or not shown:
        yield _Progress(None, trainings, work.epochs)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="batch", disable=None, leave=False) as bar:
        yield _Progress(bar, trainings, work.epochs)
