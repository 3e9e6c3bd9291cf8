"""A checkup: what is there of each modality, what of it is learnt, used and over-trained."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.diagnosis.alone import Alone, check_apart, optimizer_of
from evenly.diagnosis.classes import Classes
from evenly.diagnosis.estimate import Estimate, Z, difference, share
from evenly.diagnosis.gap import Diagnosis, diagnose
from evenly.diagnosis.linear_probe import Read, read
from evenly.diagnosis.raw import raw
from evenly.diagnosis.use import Use, use
from evenly.diagnosis.verdict import Figures, Verdict, judge
from evenly.errors import UserError
from evenly.features import Features
from evenly.method import Criterion, Encoders, Method
from evenly.output import Output
from evenly.probe import Forward, Probe
from evenly.ranges import check_range

LOGITS = ""  # beside the modalities, none of which a ModuleDict lets have this name


@dataclass(frozen=True)
class Finding:
    """What is known of one modality; accuracies are of the validation split.

    Attributes:
        chance: Accuracy of naming the commonest class of the training split.
        raw: Of a linear probe on a summary of the encoder's input; None where there is none.
        there: Of one on the encoder trained alone from the weights that training started from.
        learnt: Of one on the joint model's encoder.
        missed: `there` less `learnt`, sample by sample.
        contribution: Its Shapley value in the accuracy of the joint model.
        without: Accuracy of the joint model when this modality is another sample's.
        flipped: Share of its predictions that change by that.
        followed: Where it is of another class: share of predictions of that class.
        outvoted: The same, of the class of all other modalities.
        gap: Of purities between training and validation split (`stable`), over-trained where large.
        strength: How far re-learning would pull the encoder back, tanh(3 · gap).
        verdict: What is the matter with it.
    """

    chance: Estimate
    raw: Estimate | None
    there: Estimate
    learnt: Estimate
    missed: Estimate
    contribution: Estimate
    without: Estimate
    flipped: Estimate
    followed: Estimate | None
    outvoted: Estimate | None
    gap: Estimate
    strength: float
    verdict: Verdict


@dataclass(frozen=True)
class Checkup:
    """What is the matter with each modality of a model. Its text is a readable page.

    Attributes:
        findings: By modality.
        accuracy: Of the joint model, on the validation split.
        best: The modality that is best by itself, trained alone.
        together: Accuracy of the joint model less that of `best` alone, sample by sample.
        synergy: Share of the samples that the joint model gets right and no modality alone.
        notes: What a reader must know of the numbers.
    """

    findings: Mapping[str, Finding]
    accuracy: Estimate
    best: str
    together: Estimate
    synergy: Estimate
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> dict[str, str]:
        """By modality, in a word."""
        return {name: found.verdict.name for name, found in self.findings.items()}

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for `json.dump`."""
        found = asdict(self)
        for name, one in self.findings.items():
            found["findings"][name]["verdict"]["advice"] = [asdict(x) for x in one.verdict.advice]
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


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
    progress: bool = True,
) -> Checkup:
    """Finds out what is the matter with each modality of a model, and changes nothing.

    ```python
    initial = copy.deepcopy(model.state_dict())
    ...  # training
    print(evenly.checkup(model, forward, train_loader, val_loader, encoders,
                         initial=initial, optimizer=optimizer))
    ```

    Of each modality it says how much is there (its encoder is trained alone from the initial
    weights, for a few epochs), how much of that the joint model's encoder has learnt (a linear
    probe on it), how much of it the predictions use (samples change places in it), and how
    over-trained the encoder is (the gap of purities).

    It costs one short training for all modalities, a second one if some encoders train slower than
    others, and one of the joint model if `initial` is not given. In the end the model, the
    loaders and all random streams are as they were.

    Args:
        model: The model. If `initial` is given it is taken as trained; else as it is before
            training, and is trained for `epochs` epochs as well.
        forward: `forward(model, batch)` gives an `Output` and the target, as for `Probe`.
        train: Loader of the training split.
        val: Loader of the validation split, of more than one sample a batch. Never the test split.
        encoders: By modality, the modules whose outputs are the features.
        initial: The model's `state_dict()` from before training.
        optimizer: The one of the training; new ones of its kind and settings do the work. AdamW
            with a learning rate of 0.001 by default.
        epochs: Length of each short training.
        criterion: Of the joint training, cross-entropy by default.
        seed: Of the trainings, of swaps and clusterings.
        progress: Whether a bar is shown, on a terminal.

    Raises:
        ValueError: If the targets are no classes, encoders see each other before the features are
            taken, or several ranks call.
    """
    check_range(_Who(), "at least 1", epochs=epochs)
    if distributed.world_size() > 1:
        raise UserError(
            "checkup runs in one process. Call it after training, on one rank, with a loader of "
            "the whole split and the model without its DistributedDataParallel."
        )
    probe = Probe(model, forward, train, val)
    named = Method(encoders).encoders
    if not named:
        raise UserError("checkup needs the encoders by modality. Pass {'audio': model.audio, ...}.")
    trained = copy.deepcopy(probe.model.state_dict())
    check_apart(probe, named)
    work = _Work(probe, named, optimizer_of(probe.model, optimizer), epochs, criterion, seed)
    with _bar(work, joint=initial is None, shown=progress) as tell:
        if initial is None:
            joint = work.trained_jointly(tell)
        else:
            joint = work.looked_at(tell)
            _load(probe.model, initial)
        try:
            alone = work.trained_alone(tell)
        finally:
            probe.model.load_state_dict(trained)
    return work.found(joint, alone)


class _Who:
    """For messages about settings."""


_Who.__name__ = "checkup"


@dataclass(frozen=True)
class _Joint:
    """What is seen of the joint model.

    Attributes:
        train: Features of the training split.
        val: Of the validation split.
        right: Whether each sample of the validation split is predicted rightly.
        used: What the predictions make of each modality.
        raw: Summaries of the encoders' inputs, of both splits.
    """

    train: Features
    val: Features
    right: Bool[Tensor, " n"]
    used: Use
    raw: tuple[Features | None, Features | None]


class _Work:
    """The parts of a checkup, each of which leaves the model as it found it."""

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
        widths = {name: output.features[name].shape[1] for name in encoders}
        self.alone = Alone(probe, encoders, widths, self.classes, seed)

    @property
    def rates(self) -> tuple[bool, ...]:
        """Whether each training is at the highest rate of any encoder."""
        return (False, True) if self.alone.held_back(self.optimizer) else (False,)

    def trained_jointly(self, tell: Callable[[], None]) -> _Joint:
        """What is seen of the model after a short joint training."""
        criterion = self.criterion or nn.functional.cross_entropy

        def objective(output: Output, target: Tensor) -> Tensor:
            tell()
            return criterion(output.logits, target)

        with self.probe.trained(
            objective, epochs=self.epochs, optimizer=self.optimizer, seed=self.seed
        ):
            return self.looked_at(tell)

    def looked_at(self, tell: Callable[[], None]) -> _Joint:
        """What is seen of the model as it is."""

        def of(output: Output, target: Tensor) -> dict[str, Tensor]:
            found = {name: output.features[name] for name in self.encoders}
            return {**found, LOGITS: output.logits}

        train, val = self._features("train"), self.classes.among(self.probe.features("val", of))
        features = {name: x for name, x in val.features.items() if name != LOGITS}
        guess = self.classes.guess(val.features[LOGITS])
        inputs = raw(self.probe, self.encoders, "train"), raw(self.probe, self.encoders, "val")
        return _Joint(
            train,
            Features(features, val.target, val.index, present=val.present),
            guess == val.target.to(guess.device),
            use(
                self.probe,
                self.encoders,
                self.classes.guess,
                self.classes.labelled,
                seed=self.seed,
            ),
            tuple(x and self.classes.among(x) for x in inputs),  # type: ignore[arg-type]
        )

    def trained_alone(self, tell: Callable[[], None]) -> list[tuple[Features, Features]]:
        """The features of encoders trained alone, for each training."""
        found = []
        for fastest in self.rates:
            train, val = self.alone.trained(self.optimizer, self.epochs, tell, fastest=fastest)
            found.append((self._own(train), self._own(val)))
        return found

    def found(self, joint: _Joint, alone: list[tuple[Features, Features]]) -> Checkup:
        """What all of it comes to."""
        target = joint.val.target
        commonest = joint.train.target.mode().values
        chance = (target == commonest.to(target.device)).double()
        learnt = read(joint.train, joint.val)
        several = [read(*features) for features in alone]
        inputs = {} if None in joint.raw else read(*joint.raw)  # type: ignore[arg-type]
        diagnosis = diagnose(joint.train, joint.val, gap="shared", seed=self.seed)
        there = {name: self._best(name, several, target) for name in self.encoders}
        findings = {
            name: self._finding(
                name, target, chance, there[name], learnt[name], inputs.get(name), joint.used,
                diagnosis,
            )
            for name in self.encoders
        }  # fmt: skip
        right = {name: there[name].right(target).to(joint.right.device) for name in there}
        best = max(findings, key=lambda name: findings[name].there.value)
        by_any = torch.stack(list(right.values())).any(0)
        return Checkup(
            findings,
            share(joint.right),
            best,
            difference(joint.right.double() - right[best].double()),
            share(joint.right & ~by_any),
            diagnosis.notes,
        )

    def _best(self, name: str, several: list[dict[str, Read]], target: Tensor) -> Read:
        """Of the trainings, the one that a linear probe reads best."""
        return max((found[name] for found in several), key=lambda x: int(x.right(target).sum()))

    def _finding(
        self,
        name: str,
        target: Tensor,
        chance: Tensor,
        there: Read,
        learnt: Read,
        inputs: Read | None,
        used: Use,
        diagnosis: Diagnosis,
    ) -> Finding:
        rows = learnt.rows
        alone, joint = (x.right(target)[rows].double() for x in (there, learnt))
        gap, flipped = _gap(diagnosis, name, len(target)), share(used.flipped[name])
        several = len(self.encoders) > 1
        return Finding(
            chance=share(chance[rows]),
            raw=None if inputs is None else share(inputs.right(target)[rows]),
            there=share(alone),
            learnt=share(joint),
            missed=difference(alone - joint),
            contribution=difference(used.contribution[name]),
            without=share(used.without[name]),
            flipped=flipped,
            followed=share(used.followed[name]) if several else None,
            outvoted=share(used.outvoted[name]) if several else None,
            gap=gap,
            strength=diagnosis.strength()[name],
            verdict=judge(
                Figures(
                    gain=difference(alone - chance[rows]),
                    held=difference(joint - chance[rows]),
                    missed=difference(alone - joint),
                    gap=gap,
                    flipped=flipped,
                )
            ),
        )

    def _features(self, split: Any) -> Features:
        return self._own(self.probe.features(split))

    def _own(self, split: Features) -> Features:
        """Those of the encoders handed over, of samples with a label."""
        own = {name: split.features[name] for name in self.encoders}
        present = {name: here for name, here in split.present.items() if name in own}
        return self.classes.among(Features(own, split.target, split.index, present=present))


def _gap(diagnosis: Diagnosis, name: str, count: int) -> Estimate:
    gap, half = diagnosis.gap[name], Z * (diagnosis.standard_error or {}).get(name, 0.0)
    return Estimate(gap, gap - half, gap + half, count)


def _load(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Puts the model back to where training started."""
    try:
        model.load_state_dict(initial)
    except RuntimeError as error:
        said = str(error).strip().replace("\n", " ")[:300]
        raise UserError(
            f"'initial' is not the state of this model ({said}). Take it before training: "
            "initial = copy.deepcopy(model.state_dict())."
        ) from error


@contextmanager
def _bar(work: _Work, *, joint: bool, shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call for each batch of training, which moves a bar where one can be shown."""
    trainings = len(work.rates) + joint
    train = work.probe.loaders["train"]
    total = trainings * work.epochs * len(train) if isinstance(train, Sized) else None
    what = f"{work.epochs} epochs of {' and '.join(work.encoders)} alone"
    if find_spec("tqdm") is None or not shown:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="batch", disable=None, leave=False) as bar:
        yield lambda: bar.update()


def _lines(checkup: Checkup) -> Iterator[str]:
    """The text of a checkup."""
    yield _together(checkup)
    yield ""
    head = ("modality", "there", "learnt", "used", "gap", "verdict")
    rows = [
        (name, str(x.there), str(x.learnt), str(x.contribution), str(x.gap), x.verdict.name)
        for name, x in checkup.findings.items()
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
    yield ""
    for name, found in checkup.findings.items():
        yield from _of_modality(name, found)
    yield from checkup.notes


def _together(checkup: Checkup) -> str:
    found, best = checkup.together, checkup.findings[checkup.best].there
    if len(checkup.findings) == 1:
        return f"accuracy {checkup.accuracy}"
    both = f"All together: {checkup.accuracy}; {checkup.best} alone: {best}"
    if found.high < 0:
        less = f"{-100 * found.value:.0f} points"
        return f"All together are WORSE than {checkup.best} alone, by {less}. {both}."
    if found.low > 0:
        return f"{both}: {100 * found.value:.0f} points better together."
    return f"{both}: whether together they are better cannot be told ({found})."


def _of_modality(name: str, found: Finding) -> Iterator[str]:
    of_input = "" if found.raw is None else f", a linear probe of its input {found.raw.value:.2f}"
    yield f"{name} is {found.verdict.name}: {found.verdict.why}."
    yield f"  Chance is {found.chance.value:.2f}{of_input}; without it {found.without.value:.2f}."
    if found.verdict.samples:
        yield f"  About {found.verdict.samples} validation samples would settle it."
    for advice in found.verdict.advice:
        yield (
            f"  Try {', '.join(advice.methods)}: {advice.why}."
            if advice.methods
            else f"  Or {advice.why}."
        )
