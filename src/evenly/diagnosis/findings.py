"""What a checkup found, from its measurements of each sample, and in words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from textwrap import fill
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from evenly.diagnosis.estimate import Estimate, difference, mean, share
from evenly.diagnosis.gap import Diagnosis
from evenly.diagnosis.interactions import Interaction
from evenly.diagnosis.use import Use
from evenly.diagnosis.verdict import Figures, Verdict, judge
from evenly.errors import UserError

COLUMNS = (
    "there: accuracy of a linear probe on its encoder trained alone; learnt: on the joint model's "
    "encoder;",
    "used: accuracy that it adds (Shapley value); gap: over-training. All on the validation split.",
)
"""What the columns of the text mean, in two lines."""
MORE_SEEDS = (
    "It varies too much between seeds for more validation samples to settle it: check up runs of "
    "more seeds."
)
"""What is said if an error comes mostly from the seeds."""


@dataclass(frozen=True)
class Measured:
    """What a checkup measures of one training, for each sample of the validation split.

    Values of a modality are NaN for samples that lack it. With several labels per sample, "right"
    is a value whose mean is the balanced accuracy.

    Attributes:
        chance: Whether the commonest class of the training split is right.
        right: Whether the joint model is right.
        raw: By modality, whether a linear probe on a summary of its input is right.
        there: By modality, whether a probe on the encoder trained alone is right.
        learnt: By modality, whether a probe on the joint model's encoder is right.
        luck: By modality, how often the last two would be right with shuffled guesses.
        use: How the joint model's predictions use each modality.
        diagnosis: Purities of the joint model's encoders.
        has_labels: Whether a sample has several labels.
        interactions: By pair of modalities, what the joint model's encoders tell in common, alone
            and together; empty unless requested, and without pairs that no sample has both of.
    """

    chance: Shaped[Tensor, " n"]
    right: Shaped[Tensor, " n"]
    raw: Mapping[str, Float[Tensor, " n"]]
    there: Mapping[str, Float[Tensor, " n"]]
    learnt: Mapping[str, Float[Tensor, " n"]]
    luck: Mapping[str, tuple[Float[Tensor, " n"], Float[Tensor, " n"]]]
    use: Use
    diagnosis: Diagnosis
    interactions: Mapping[tuple[str, str], Interaction] = field(default_factory=dict)
    has_labels: bool = False


@dataclass(frozen=True)
class Shared:
    """What two modalities tell about the class, in bits: the means of an `Interaction`.

    Attributes:
        modalities: The two.
        redundant: What both tell.
        unique: By modality, what it tells beyond that.
        synergy: What only both together tell.
    """

    modalities: tuple[str, str]
    redundant: Estimate
    unique: Mapping[str, Estimate]
    synergy: Estimate


@dataclass(frozen=True)
class Finding:
    """What is known about one modality; accuracies are on the validation split.

    Attributes:
        chance: Accuracy of always guessing the commonest class of the training split.
        raw: Accuracy of a linear probe on a summary of the encoder's input; None if there is none.
        untapped: `raw` minus the accuracy of a probe on the encoder trained alone, by sample.
        there: Accuracy of a probe on the encoder trained alone from the starting weights.
        learnt: Accuracy of a probe on the joint model's encoder.
        gain: `there` minus what its guesses would reach if shuffled over the samples.
        held: The same for `learnt`.
        missed: `there` minus `learnt`, sample by sample.
        contribution: Its Shapley value in the accuracy of the joint model.
        without: Accuracy of the joint model with this modality taken from another sample.
        lost: Accuracy lost by that.
        flipped: Share of predictions that change with this modality while the others also come from
            other samples.
        followed: If it comes from another class, the share of predictions of that class; None if
            samples have several labels.
        outvoted: The same for the class of all other modalities.
        gap: Gap of purities between training and validation split (`stable`); large if
            over-trained.
        strength: How far `Relearn(gap="stable")` would pull the encoder back at its default λ of 3:
            tanh(3 · gap · max(0, 1 - (3 · standard error / gap)²)), so 0 for a gap of up to three
            standard errors.
        verdict: What is wrong with it.
    """

    chance: Estimate
    raw: Estimate | None
    untapped: Estimate | None
    there: Estimate
    learnt: Estimate
    gain: Estimate
    held: Estimate
    missed: Estimate
    contribution: Estimate
    without: Estimate
    lost: Estimate
    flipped: Estimate
    followed: Estimate | None
    outvoted: Estimate | None
    gap: Estimate
    strength: float
    verdict: Verdict


@dataclass(frozen=True)
class Checkup:
    """What is wrong with each modality of a model. Its text is a readable page.

    Attributes:
        findings: Findings by modality.
        accuracy: Accuracy of the joint model on the validation split.
        best: The modality that is best alone.
        alone: Accuracy of a linear probe on its encoder, trained alone or jointly, whichever is
            higher.
        together: Accuracy of the joint model minus that, sample by sample.
        synergy: Share of samples that the joint model gets right but no modality alone; None if a
            sample has several labels.
        shared: What each pair of modalities shares, if requested.
        notes: What a reader must know about the numbers.
        has_labels: Whether a sample has several labels, with balanced accuracy.
        measured: The underlying measurements, for each training.
    """

    findings: Mapping[str, Finding]
    accuracy: Estimate
    best: str
    alone: Estimate
    together: Estimate
    synergy: Estimate | None
    shared: tuple[Shared, ...] = ()
    notes: tuple[str, ...] = ()
    has_labels: bool = False
    measured: tuple[Measured, ...] = field(default=(), repr=False, compare=False)

    @staticmethod
    def pooled(several: Sequence["Checkup"]) -> "Checkup":
        """One checkup from several trainings that differ in their seed, on the same splits.

        Raises:
            ValueError: If their splits or modalities differ.
        """
        measured = [one for checkup in several for one in checkup.measured]
        if not measured:
            raise UserError("no checkups to pool. Pass those of several trainings.")
        kinds = {(len(one.right), *one.there) for one in measured}
        if len(kinds) != 1:
            raise UserError(
                "checkups can be pooled if they have the same validation split and modalities; "
                f"found {' and '.join(map(str, sorted(kinds)))}."
            )
        return concluded(measured)

    @property
    def verdict(self) -> dict[str, str]:
        """The verdicts by modality, in a word each."""
        return {name: found.verdict.name for name, found in self.findings.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `json.dump`."""
        found = asdict(replace(self, measured=()))
        del found["measured"]
        for name, one in self.findings.items():
            found["findings"][name]["verdict"]["advice"] = [asdict(x) for x in one.verdict.advice]
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def concluded(several: Sequence[Measured]) -> Checkup:
    """The checkup of one training, or of several that differ in their seed."""
    names = list(several[0].there)
    findings = {name: _finding(several, name) for name in names}
    alone = {name: _alone(several, name) for name in names}
    best = max(names, key=lambda name: float(alone[name].nanmean()))
    right = _stacked(several, lambda one: one.right)
    by_any = (torch.stack(list(alone.values())) > 0).any(0).double()
    return Checkup(
        findings,
        share(right),
        best,
        share(alone[best]),
        difference(right - alone[best]),
        None if several[0].has_labels else share(right * (1 - by_any)),
        tuple(
            _shared(several, pair)
            for pair in several[0].interactions
            if all(pair in one.interactions for one in several)
        ),
        tuple(dict.fromkeys(note for one in several for note in one.diagnosis.notes)),
        several[0].has_labels,
        tuple(several),
    )


def _alone(several: Sequence[Measured], name: str) -> Float[Tensor, "s n"]:
    """Whether a probe of a modality alone is right, on the encoder that it reads better."""
    there = _stacked(several, lambda one: one.there[name])
    learnt = _stacked(several, lambda one: one.learnt[name])
    return max(there, learnt, key=lambda right: float(right.nanmean()))


def _finding(several: Sequence[Measured], name: str) -> Finding:
    there = _stacked(several, lambda one: one.there[name])
    learnt = _stacked(several, lambda one: one.learnt[name])
    chance = _stacked(several, lambda one: one.chance).where(~there.isnan(), math.nan)
    lucky = [_stacked(several, lambda one, i=i: one.luck[name][i]) for i in (0, 1)]  # type: ignore[misc]
    no_votes = len(several[0].there) == 1 or several[0].has_labels
    figures = Figures(
        gain=difference(there - lucky[0]),
        held=difference(learnt - lucky[1]),
        missed=difference(there - learnt),
        gap=_gap([one.diagnosis for one in several], name, share(there).count),
        lost=difference(_stacked(several, lambda one: one.use.lost[name])),
        flipped=share(_stacked(several, lambda one: one.use.flipped[name])),
        contribution=difference(_stacked(several, lambda one: one.use.contribution[name])),
    )
    raw = None
    if all(name in one.raw for one in several):
        raw = _stacked(several, lambda one: one.raw[name])
    return Finding(
        chance=share(chance),
        raw=None if raw is None else share(raw),
        untapped=None if raw is None else difference(raw - there),
        there=share(there),
        learnt=share(learnt),
        without=share(_stacked(several, lambda one: one.use.without[name])),
        followed=None if no_votes else share(_stacked(several, lambda one: one.use.followed[name])),
        outvoted=None if no_votes else share(_stacked(several, lambda one: one.use.outvoted[name])),
        strength=sum(one.diagnosis.strength()[name] for one in several) / len(several),
        verdict=judge(figures),
        **{one.name: getattr(figures, one.name) for one in fields(figures)},
    )


def _shared(several: Sequence[Measured], pair: tuple[str, str]) -> Shared:
    def of(part: Callable[[Interaction], Tensor]) -> Estimate:
        return mean(_stacked(several, lambda one: part(one.interactions[pair])))

    return Shared(
        pair,
        of(lambda x: x.redundant),
        {name: of(lambda x, name=name: x.unique[name]) for name in pair},  # type: ignore[misc]
        of(lambda x: x.synergy),
    )


def _stacked(several: Sequence[Measured], of: Callable[[Measured], Tensor]) -> Float[Tensor, "s n"]:
    """Something of each training, a row for each."""
    return torch.stack([of(one).double().cpu() for one in several])


def _gap(several: Sequence[Diagnosis], name: str, count: int) -> Estimate:
    """The mean gap; its variance combines that of each gap and that between trainings."""
    gaps = torch.tensor([one.gap[name] for one in several], dtype=torch.float64)
    errors = torch.tensor([one.standard_error[name] for one in several], dtype=torch.float64)
    return Estimate.over_seeds(gaps, errors, count)


def _lines(checkup: Checkup) -> Iterator[str]:
    """The text of a checkup."""
    yield _together(checkup)
    if checkup.synergy is not None and len(checkup.findings) > 1:
        yield f"Synergy: only all modalities together get {checkup.synergy} of the samples right."
    yield from (fill(note, 100) for note in checkup.notes)
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
    yield from COLUMNS
    yield ""
    for name, found in checkup.findings.items():
        is_beside = len(checkup.findings) > 1
        yield from _of_modality(name, found, checkup.accuracy.count, is_beside=is_beside)
    for pair in checkup.shared:
        alone = ", ".join(f"only {name} {x}" for name, x in pair.unique.items())
        yield f"Bits of the class that {' and '.join(pair.modalities)} give:"
        yield f"  both {pair.redundant}, {alone}, only together {pair.synergy}."


def _together(checkup: Checkup) -> str:
    found, best = checkup.together, checkup.alone
    if len(checkup.findings) == 1:
        return f"accuracy {checkup.accuracy}"
    some = "" if best.count == checkup.accuracy.count else f" of the {best.count} that have it"
    both = f"Joint model: {checkup.accuracy}; {checkup.best} alone: {best}{some}"
    if found.high < 0:
        less = f"{-100 * found.value:.0f} points"
        return f"The joint model is WORSE than {checkup.best} alone, by {less}. {both}."
    if found.low > 0:
        return f"{both}: the joint model is better by {100 * found.value:.0f} points."
    return f"{both}: cannot tell whether the joint model is better ({found})."


def _of_modality(name: str, found: Finding, count: int, *, is_beside: bool) -> Iterator[str]:
    of_input = "" if found.raw is None else f", a linear probe of its input {found.raw}"
    yield f"{name} is {found.verdict.name}: {found.verdict.why}."
    yield f"  Chance is {found.chance}{of_input}."
    yield f"  With {name} swapped, the joint model reaches {found.without}."
    too = "With the others swapped too, " if is_beside else ""
    yield f"  {too}{found.flipped} of the predictions change with {name}."
    if found.followed is not None:
        others = f"that of the others {found.outvoted}"
        yield f"  If {name} is of another class, its class wins {found.followed}, {others}."
    yield f"  relearn(gap=stable) would pull its encoder back by {found.strength:.2f} of the way."
    if found.untapped is not None and found.untapped.low > 0:
        more = f"{100 * found.untapped.value:.0f} points more than a probe of its encoder alone"
        yield f"  The probe of its input reads {more}: try another encoder, or train it longer."
    if found.verdict.samples:
        some = " that have it" if found.there.count < count else ""
        yield f"  About {found.verdict.samples} validation samples{some} would settle it."
    elif found.verdict.name == "unclear":
        yield fill(MORE_SEEDS, 100, initial_indent="  ", subsequent_indent="    ")
    for advice in found.verdict.advice:
        what = f"Try {', '.join(advice.methods)}: " if advice.methods else "Or "
        yield fill(f"{what}{advice.why}.", 100, initial_indent="  ", subsequent_indent="    ")
