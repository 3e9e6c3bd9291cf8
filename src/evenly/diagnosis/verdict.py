"""Turns measurements of a modality into a word for its state, and into advice.

The thresholds were set on the development cases of benchmarks/verdicts.py; docs/checkup.md shows
how they do on the others.
"""

from dataclasses import dataclass
from typing import Literal

from evenly.diagnosis.estimate import Estimate

Name = Literal["learnt", "suppressed", "unused", "scarce", "over-trained", "unclear"]

THERE = 0.07
"""Accuracy above that of the same guesses shuffled over the samples, at which a modality counts as
informative; also accuracy lost without it, for one that tells the class only together with
another."""
MISSED = 0.05
"""Accuracy that an encoder reaches alone but not in the joint model, at which it counts as held
back."""
GAP = 0.12
"""Gap of purities above which an encoder counts as over-trained."""
MOVED = 0.03
"""Share of predictions that change with a modality, below which the model ignores it."""
SURE = 1.0
"""Standard errors between a figure and a threshold that make a verdict sure enough."""


@dataclass(frozen=True)
class Advice:
    """Something to try.

    Attributes:
        methods: Names in `METHODS`; empty if it is not a method.
        why: How it helps.
    """

    methods: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a modality.

    Attributes:
        name: The verdict in a word.
        why: The figures behind it, in a sentence.
        samples: If it is unclear, how many validation samples would settle it; None if more seeds
            are needed.
    """

    name: Name
    why: str
    samples: int | None = None

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What to try."""
        return _ADVICE[self.name]


@dataclass(frozen=True)
class Figures:
    """The figures behind a verdict.

    Attributes:
        gain: Accuracy of a linear probe on the encoder trained alone, minus that of the same
            guesses shuffled over the samples.
        held: The same for the joint model's encoder.
        missed: The former minus the latter, sample by sample.
        gap: Gap of purities between training and validation split.
        lost: Accuracy that the joint model loses if the modality comes from another sample; None if
            not measured.
        flipped: Share of predictions that change with it while the others also come from other
            samples; None if not measured.
        contribution: Its Shapley value in the accuracy of the joint model; None if not measured.
    """

    gain: Estimate
    held: Estimate
    missed: Estimate
    gap: Estimate
    lost: Estimate | None = None
    flipped: Estimate | None = None
    contribution: Estimate | None = None


def judge(found: Figures) -> Verdict:
    """The verdict on a modality: the first of these that holds.

    - learnt: its encoder does not reach `THERE` above shuffled guesses for sure, alone or in the
      joint model, but more than `THERE` of accuracy is lost without it. Nothing else is asked of
      it;
    - scarce: neither its encoder nor what is lost reaches `THERE`;
    - over-trained: its gap is above `GAP`;
    - suppressed: alone it reaches over `MISSED` more than in the joint model, and the 95 % interval
      of this is above 0;
    - unused: less than `MOVED` of the predictions change with it;
    - learnt.

    What is there, what is lost and what changes count as above or below a threshold only by more
    than `SURE` standard errors. Nearer to it, the verdict is unclear when its turn comes. It is
    also unclear if over `MISSED` is missed, but the interval includes 0. A gap counts only if it is
    above `GAP` by more than `SURE` standard errors.
    """
    there = max(found.gain, found.held, key=lambda one: one.value)
    is_there = _above(there, THERE)
    if not is_there and found.lost is not None and _above(found.lost, THERE):
        why = f"it tells little alone, but without it {_points(found.lost)} of accuracy are lost"
        return Verdict("learnt", why)
    if is_there is None:
        return _unclear("there is anything in it", there, THERE)
    if not is_there and found.lost is not None and _above(found.lost, THERE) is None:
        return _unclear("accuracy is lost without it", found.lost, THERE)
    if not is_there:
        reached = f"only {_points(found.gain)} more than shuffled guesses"
        return Verdict("scarce", f"alone its encoder reaches {reached}")
    if _above(found.gap, GAP):
        why = "its features separate the classes of training samples better than those of new "
        return Verdict("over-trained", f"{why}ones: a gap of purities of {found.gap}")
    if found.missed.low > 0 and found.missed.value > MISSED:
        why = f"alone its encoder reaches {_points(found.missed)} more than beside the others"
        return Verdict("suppressed", why)
    is_seen = found.flipped is None or _above(found.flipped, MOVED)
    if found.flipped is not None and is_seen is False:
        why = f"only {found.flipped.value:.1%} of the predictions change with it"
        return Verdict("unused", why)
    if found.missed.value > MISSED:
        interval = (found.missed.high - found.missed.low) / (2 * found.missed.error)
        return _unclear("it is held back", found.missed, 0.0, interval)
    if found.flipped is not None and is_seen is None:
        return _unclear("the model looks at it", found.flipped, MOVED)
    follows = "and the predictions follow it"
    if found.contribution is not None and found.contribution.high < 0:
        follows = "but the predictions are no better for it"
    return Verdict("learnt", f"the joint model's encoder holds what is there, {follows}")


def _above(found: Estimate, threshold: float) -> bool | None:
    """Whether a figure is above a threshold; None if that is uncertain."""
    margin = SURE * found.error
    if abs(found.value - threshold) < margin:
        return None
    return found.value > threshold


def _unclear(what: str, found: Estimate, threshold: float, errors: float = SURE) -> Verdict:
    """An unclear verdict: a figure is too near its threshold; and what would settle it."""
    why = f"cannot tell whether {what}: {found} is too near {threshold:.2f}"
    return Verdict("unclear", why, found.samples_for(abs(found.value - threshold), errors))


def _points(found: Estimate) -> str:
    value, low, high = (round(100 * x) for x in (found.value, found.low, found.high))
    return f"{value} point{'' if value == 1 else 's'} ({low} to {high})"


_ADVICE: dict[Name, tuple[Advice, ...]] = {
    "learnt": (),
    "suppressed": (
        Advice(
            ("multi_loss", "mla", "mmpareto", "dgl"),
            "a loss of its own, so that it goes on learning when the others have made the joint "
            "loss small",
        ),
        Advice(("ogm_ge",), "slows the other modalities down while this one learns"),
        Advice(("pggb",), "a loss of its own, and larger gradients for its encoder"),
    ),
    "unused": (
        Advice(
            ("modality_dropout", "multi_loss", "ensemble"),
            "makes the model predict from this modality alone, or while others are missing",
        ),
        Advice(("rolling_q",), "turns an attention that looks only at other modalities"),
    ),
    "scarce": (
        Advice(
            ("relearn", "joint"),
            "leaves it nearly as it is; methods that push weak modalities would have it memorise "
            "noise",
        ),
        Advice((), "look at the data first: whether the samples of the modalities belong together"),
    ),
    "over-trained": (
        Advice(("relearn",), "pulls its encoder back to where it started"),
        Advice((), "fewer epochs, more weight decay, augmentation, a smaller encoder"),
    ),
    "unclear": (Advice((), "more validation samples, or several seeds"),),
}
