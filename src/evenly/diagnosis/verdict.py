"""From what is measured of a modality to a word for it, and to what may help.

The thresholds are set on the development cases of benchmarks/verdicts.py; docs/checkup.md has what
comes of them on the others.
"""

from dataclasses import dataclass
from typing import Literal

from evenly.diagnosis.estimate import Estimate, Z

Name = Literal["learnt", "suppressed", "unused", "scarce", "over-trained", "unclear"]

THERE = 0.05
"""Accuracy above chance from which on there is something in a modality."""
MISSED = 0.05
"""Accuracy that an encoder reaches by itself and lacks in the joint model, at which it is held
back."""
PART = 0.2
"""The same as a share of what it reaches above chance: where much is there, more may be missed."""
GAP = 0.1
"""Gap of purities from which on an encoder is over-trained."""
SURE = 1.0
"""Standard errors between a figure and a threshold that make it sure enough."""
MOVED = 0.03
"""Share of predictions that change when the modality is another sample's, below which the model
does not look at it."""


@dataclass(frozen=True)
class Advice:
    """Something to try.

    Attributes:
        methods: By name in `METHODS`; empty where it is no method.
        why: What it does about it.
    """

    methods: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Verdict:
    """What is the matter with a modality.

    Attributes:
        name: In a word.
        why: The figures that it rests on, in a sentence.
        samples: Validation samples that would settle it, where it is unclear.
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
    """What a verdict rests on.

    Attributes:
        gain: Accuracy of a linear probe on the encoder trained alone, less that of the same
            guesses dealt out to the samples at random.
        held: The same of the joint model's encoder.
        missed: The one less the other, sample by sample.
        gap: Of purities, beyond its error.
        lost: Accuracy of the joint model that is lost when the modality is another sample's.
        flipped: Share of predictions that change with it where the others are other samples', too.
    """

    gain: Estimate
    held: Estimate
    missed: Estimate
    gap: Estimate
    lost: Estimate
    flipped: Estimate


def judge(found: Figures) -> Verdict:
    """The verdict on a modality: the first of these that holds.

    - scarce: neither alone nor in the joint model does its encoder reach `THERE` above chance;
    - over-trained: its gap is above `GAP`;
    - suppressed: alone it reaches more than in the joint model, by `MISSED` and by `PART` of what
      is there;
    - unused: the predictions do not change when it is another sample's, but for `MOVED`;
    - learnt.

    Where an interval has the threshold within it, and the figure is near, the verdict is unclear.
    """
    there = max(found.gain, found.held, key=lambda one: one.value)
    is_there = _above(there, THERE)
    if is_there is None:
        return _unclear("whether there is anything in it", there, THERE)
    if not is_there:
        if _above(found.lost, THERE):
            why = f"it tells nothing alone, but without it {_points(found.lost)} are lost"
            return Verdict("learnt", why)
        return Verdict("scarce", f"alone it is {_points(found.gain)} above chance")
    if _above(found.gap, GAP):
        return Verdict("over-trained", f"its gap of purities is {found.gap}")
    least = max(MISSED, PART * found.gain.value)
    if found.missed.low > 0 and found.missed.value > least:
        return Verdict(
            "suppressed",
            f"alone its encoder reaches {_points(found.missed)} more than beside the others",
        )
    is_seen = _above(found.flipped, MOVED)
    if is_seen is False:
        return Verdict(
            "unused",
            f"{found.flipped.value:.1%} of the predictions change when it is another sample's",
        )
    if found.missed.value > least:
        return _unclear("whether it is held back", found.missed, 0.0)
    if is_seen is None:
        return _unclear("whether the model looks at it", found.flipped, MOVED)
    return Verdict("learnt", "the joint model's encoder holds what is there, and it is used")


def _above(found: Estimate, threshold: float) -> bool | None:
    """Whether a figure is above a threshold; None where that is not sure."""
    margin = SURE * found.error
    if abs(found.value - threshold) < margin:
        return None
    return found.value > threshold


def _unclear(what: str, found: Estimate, threshold: float) -> Verdict:
    away = max(abs(found.value - threshold), 0.01)
    return Verdict(
        "unclear",
        f"{what} cannot be told: {found}, where {threshold:.2f} is the border",
        found.samples_for(away * Z / SURE),
    )


def _points(found: Estimate) -> str:
    return f"{100 * found.value:.0f} points ({100 * found.low:.0f} to {100 * found.high:.0f})"


_ADVICE: dict[Name, tuple[Advice, ...]] = {
    "learnt": (),
    "suppressed": (
        Advice(
            ("multi_loss", "mla", "mmpareto", "dgl"),
            "a loss of its own, so that it goes on learning when the others have made the joint "
            "loss small",
        ),
        Advice(("ogm_ge", "pggb"), "slows the others down while it learns"),
    ),
    "unused": (
        Advice(
            ("modality_dropout", "multi_loss", "ensemble"),
            "has the prediction rest on it when others are missing, or by itself",
        ),
        Advice(("rolling_q",), "turns an attention that looks at others only"),
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
