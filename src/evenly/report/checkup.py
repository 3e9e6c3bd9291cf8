"""The page of a checkup: one file that needs neither network nor script.

Its pictures are few dots in their intervals. They are drawn as SVG at places in per cent, so that
they fill any width, on paper as well, and weigh nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evenly.files import write_text
from evenly.report.marks import NEUTRAL, OUTLINES
from evenly.report.parts import modality_mark
from evenly.report.template import rendered

ABSENT = "–"
GLYPHS = {
    "learnt": "M10,1.5a8.5,8.5 0 1,0 0,17a8.5,8.5 0 1,0 0,-17zM6,10.3l2.9,2.9L14,7.4",
    "suppressed": "M10,2v10.5M5.3,8l4.7,4.7L14.7,8M3,17.5h14",
    "unused": "M10,1.5a8.5,8.5 0 1,0 0,17a8.5,8.5 0 1,0 0,-17zM4,16L16,4",
    "scarce": "M2.5,2.5h15v15h-15zM6.5,10h7",
    "over-trained": "M10,2.2L18.6,17.8H1.4zM10,8v4.6M10,14.6v.9",
    "unclear": "M10,1.5a8.5,8.5 0 1,0 0,17a8.5,8.5 0 1,0 0,-17zM7.4,8a2.6,2.6 0 1,1 4,2.2"
    "c-1,.7-1.4,1.1-1.4,2M10,14.2v.6",
}
"""The drawing of each verdict, in a square of twenty units."""
LEVELS = {"chance": "chance", "raw": "its input", "learnt": "learnt", "there": "there"}
"""The labels of a modality's accuracies, by their names in a finding."""
ROWS = {
    "chance": "Chance: the commonest class",
    "raw": "Linear probe of its input",
    "untapped": "Its input less there, points",
    "there": "There: its encoder trained alone",
    "learnt": "Learnt: the joint model's encoder",
    "missed": "There less learnt, points",
    "contribution": "Used: its Shapley value, points",
    "without": "Joint model without it",
    "lost": "Lost without it, points",
    "flipped": "Predictions that change with it, others swapped",
    "followed": "Where it is of another class: its class wins",
    "outvoted": "Where it is of another class: the others' wins",
}
"""The labels of the table's rows, by their names in a finding; all values are in %."""
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_INTERVALS = 5  # the most between the ticks of an axis


@dataclass(frozen=True)
class Shown:
    """A figure with its 95 % interval, as numbers to place it by and as text."""

    value: float
    low: float
    high: float
    text: str
    interval: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis that begins and ends with a tick."""

    ticks: Sequence[float]
    labels: Sequence[str]

    def at(self, value: float) -> str:
        """The distance of a value from the left end, in per cent of the width."""
        return f"{100 * self._share(value):.2f}%"

    def anchor(self, value: float) -> str:
        """The `text-anchor` of a text at a value, so that the text stays within the axis."""
        share = self._share(value)
        return "start" if share < 0.3 else "end" if share > 0.7 else "middle"

    def _share(self, value: float) -> float:
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])


@dataclass(frozen=True)
class Row:
    """A line of a picture: a dot in its interval. `figure` is None where there is none."""

    label: str
    figure: Shown | None
    colour: str
    outline: str


@dataclass(frozen=True)
class Panel:
    """A picture of dots in their intervals.

    Attributes:
        axis: The axis that all rows share.
        groups: Rows by the modalities in their heading; under "" if each row is another modality's.
        line: Accuracy of the joint model, if it is marked.
    """

    axis: Axis
    groups: Mapping[str, Sequence[Row]]
    line: Shown | None = None


@dataclass(frozen=True)
class Advice:
    """Something to try: methods with the reason, or a sentence alone if there is no method."""

    methods: Sequence[str]
    why: str


@dataclass(frozen=True)
class Modality:
    """What the page says and shows about one modality.

    Attributes:
        name: Its name in the data.
        colour: The colour of its marks.
        symbol: The symbol of its marks, by Plotly's name.
        verdict: The verdict, one of `GLYPHS`.
        why: The reason for the verdict, a sentence.
        samples: The number of validation samples that would settle an unclear verdict; None if the
            verdict is clear or needs more seeds.
        advice: What to try.
        figures: Each figure by its name in a finding; None if it is not known.
        strength: How far `Relearn(gap="stable")` would pull its encoder back.
        is_rare: Whether some samples lack it, so that its figures leave those samples out.
    """

    name: str
    colour: str
    symbol: str
    verdict: str
    why: str
    samples: int | None
    advice: Sequence[Advice]
    figures: Mapping[str, Shown | None]
    strength: str
    is_rare: bool

    @property
    def outline(self) -> str:
        """The outline of its marks, in a square of ten units."""
        return OUTLINES[self.symbol]

    @property
    def won(self) -> tuple[float, float, float] | None:
        """The shares of swapped samples predicted as its class, as the others' and as neither."""
        followed, outvoted = self.figures["followed"], self.figures["outvoted"]
        if followed is None or outvoted is None:
            return None
        return followed.value, outvoted.value, max(1 - followed.value - outvoted.value, 0.0)


def meanings() -> dict[str, str]:
    """What each verdict means, with the thresholds of its rule."""
    # loads torch, which the report of a comparison does without
    from evenly.diagnosis.verdict import GAP, MISSED, MOVED, THERE

    return {
        "learnt": "The joint model's encoder holds what is there, and the predictions change with "
        f"it. Or it tells little alone, but over {100 * THERE:.0f} points are lost without it.",
        "suppressed": f"Alone, its encoder reaches over {100 * MISSED:.0f} points more than in the "
        "joint model, and the interval of this is above 0.",
        "unused": f"The joint model's encoder holds what is there, but under {MOVED:.0%} of the "
        "predictions change with it.",
        "scarce": f"Its encoder reaches under {100 * THERE:.0f} points above its guesses shuffled "
        "over the samples, alone and in the joint model, and less than that is lost without it.",
        "over-trained": f"The gap of purities is above {GAP:.2f}: its encoder tells the classes of "
        "training samples better than those of new ones.",
        "unclear": "A figure that decides is too near its threshold, or its interval too wide.",
    }


def write_checkup(
    found: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    about: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes the page of a checkup, which opens from the disk and needs no network.

    Every name that comes from the data is escaped.

    Args:
        found: `Checkup.as_dict()`, or what JSON made of it.
        path: Where to write the page.
        title: What was checked, such as the name of the data.
        about: The settings that the page lists, as pairs of name and value.

    Returns:
        `path`.
    """
    from evenly.diagnosis.findings import MORE_SEEDS  # loads torch, as in `meanings`

    modalities, accuracy = read_modalities(found), percent(found["accuracy"])
    other = {"chance": "Chance: the same of all samples"} if found["has_labels"] else {}
    page = rendered(
        "checkup.html.jinja",
        title=title,
        headline=headline(found),
        standing=standing(found),
        has_labels=found["has_labels"],
        measure=measure(found),
        best=found["best"],
        alone=percent(found["alone"]),
        some_lack=found["alone"]["count"] < found["accuracy"]["count"],
        accuracy=accuracy,
        together=percent(found["together"]),
        synergy=_known(found["synergy"], percent),
        modalities=modalities,
        more_seeds=MORE_SEEDS,
        meanings=meanings(),
        glyphs=GLYPHS,
        levels=_levels(modalities, accuracy),
        contribution=_by_modality(modalities, "contribution"),
        without=_by_modality(modalities, "without", accuracy),
        flipped=_by_modality(modalities, "flipped"),
        gap=_by_modality(modalities, "gap"),
        shared=_shared(modalities, found["shared"]),
        contested=[one for one in modalities if one.won],
        rare=[one.name for one in modalities if one.is_rare],
        rows=[
            (title, [one.figures[name] for one in modalities])
            for name, title in {**ROWS, **other, "gap": "Gap of purities"}.items()
            if any(one.figures[name] for one in modalities)
        ],
        absent=ABSENT,
        notes=found["notes"],
        about=about,
    )
    write_text(path, page)
    return path


def measure(found: Mapping[str, Any]) -> str:
    """The metric that figures in % show."""
    return "Balanced accuracy" if found["has_labels"] else "Accuracy"


def standing(found: Mapping[str, Any]) -> Literal["better", "worse", "open", "only"]:
    """Whether the joint model is better or worse than the best modality alone.

    It is "open" if the interval of the difference includes 0, and "only" if there is one modality.
    """
    if len(found["findings"]) == 1:
        return "only"
    together = found["together"]
    return "worse" if together["high"] < 0 else "better" if together["low"] > 0 else "open"


def headline(found: Mapping[str, Any]) -> str:
    """The sentence that a reader must see first: how the joint model compares."""
    best, by, all_right = found["best"], found["together"], percent(found["accuracy"])
    less = percent({"value": -by["value"], "low": -by["high"], "high": -by["low"]})
    more = percent(by)
    only = f"The model is right on {all_right.text} % of the validation samples "
    if found["has_labels"]:
        only = f"The model has a balanced accuracy of {all_right.text} % "
    return {
        "worse": f"The joint model is worse than {best} alone, by {less.text} points "
        f"({less.interval}).",
        "better": f"The joint model is better than the best modality alone, {best}, by "
        f"{more.text} points ({more.interval}).",
        "open": f"It is unclear whether the joint model is better than {best} alone: the "
        f"difference is {more.text} points ({more.interval}).",
        "only": f"{only}({all_right.interval}).",
    }[standing(found)]


def read_modalities(found: Mapping[str, Any]) -> list[Modality]:
    """The modalities of a checkup, in its order."""
    return [
        _read(name, finding, *modality_mark(number), found["accuracy"]["count"])
        for number, (name, finding) in enumerate(found["findings"].items())
    ]


def _read(name: str, finding: Mapping[str, Any], colour: str, symbol: str, count: int) -> Modality:
    verdict = finding["verdict"]
    figures = {key: _known(finding[key], percent) for key in ROWS}
    return Modality(
        name=name,
        colour=colour,
        symbol=symbol,
        verdict=verdict["name"],
        why=_sentence(verdict["why"]),
        samples=verdict["samples"],
        advice=[
            Advice(one["methods"], one["why"] if one["methods"] else _sentence(one["why"]))
            for one in verdict["advice"]
        ],
        figures={**figures, "gap": _known(finding["gap"], plain)},
        strength=_minus(f"{finding['strength']:.2f}"),
        is_rare=finding["there"]["count"] < count,
    )


def percent(estimate: Mapping[str, float]) -> Shown:
    """A share in %, or a difference of shares in points."""
    return _shown(estimate, lambda value: _minus(f"{100 * value:.1f}"))


def plain(estimate: Mapping[str, float]) -> Shown:
    """A figure in its own unit."""
    return _shown(estimate, lambda value: _minus(f"{value:.2f}"))


def axis(figures: Sequence[Shown | None], scale: int) -> Axis:
    """An axis with room for all intervals; `scale`, 1 or 100, multiplies its labels."""
    ends = [end for one in figures if one for end in (one.low, one.high)] or [0.0, 1.0]
    step = next((x for x in _STEPS if max(ends) - min(ends) <= _INTERVALS * x), 5.0)
    digits = max(-math.floor(math.log10(scale * step)), 0)
    first, last = math.floor(min(ends) / step), math.ceil(max(ends) / step)
    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    return Axis(ticks, [_minus(f"{scale * tick:.{digits}f}") for tick in ticks])


def _levels(modalities: Sequence[Modality], accuracy: Shown) -> Panel:
    """How much of each modality is there and how much is learnt, beside the joint model."""
    groups = {
        one.name: [
            Row(label, one.figures[name], NEUTRAL if name == "chance" else one.colour, one.outline)
            for name, label in LEVELS.items()
            if one.figures[name]
        ]
        for one in modalities
    }
    figures = [row.figure for rows in groups.values() for row in rows]
    return Panel(axis([*figures, accuracy], 100), groups, accuracy)


def _by_modality(modalities: Sequence[Modality], name: str, line: Shown | None = None) -> Panel:
    rows = [Row(one.name, one.figures[name], one.colour, one.outline) for one in modalities]
    beside = line or plain({"value": 0.0, "low": 0.0, "high": 0.0})
    figures = [*(row.figure for row in rows), beside]
    return Panel(axis(figures, 1 if name == "gap" else 100), {"": rows}, line)


def _shared(modalities: Sequence[Modality], pairs: Sequence[Mapping[str, Any]]) -> Panel:
    """The information of each pair of modalities about the class, in bits."""
    outlines = {one.name: (one.colour, one.outline) for one in modalities}
    grey = NEUTRAL, OUTLINES["circle"]
    groups = {
        " and ".join(pair["modalities"]): [
            Row("both", plain(pair["redundant"]), *grey),
            *(Row(f"only {x}", plain(pair["unique"][x]), *outlines[x]) for x in pair["modalities"]),
            Row("only together", plain(pair["synergy"]), *grey),
        ]
        for pair in pairs
    }
    return Panel(axis([row.figure for rows in groups.values() for row in rows], 1), groups)


def _shown(estimate: Mapping[str, float], form: Callable[[float], str]) -> Shown:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return Shown(value, low, high, form(value), f"{form(low)} to {form(high)}")


def _known(
    estimate: Mapping[str, float] | None, of: Callable[[Mapping[str, float]], Shown]
) -> Shown | None:
    """The figure to show; None if it was not measured, or there was no sample to measure it on."""
    if estimate is None or not math.isfinite(estimate["value"]):
        return None
    return of(estimate)


def _minus(number: str) -> str:
    """A number with a typographic minus sign, and without any before a zero."""
    return number.replace("-", "−" if float(number) else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
