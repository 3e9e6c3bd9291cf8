"""The page of a comparison: one file that needs no network."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from evenly.diagnosis.contribution import EXACT, ORDERS
from evenly.files import write_text
from evenly.metrics import METRICS, Metric
from evenly.report.comparison import (
    ENOUGH,
    OF_MEANS,
    OWN_LOGITS,
    PAPER,
    REFERENCE,
    SIGNIFICANT,
    TOO_FEW,
    Comparison,
    Estimate,
    Projected,
    as_rows,
    doubtful,
    is_significant,
    shown_p,
)
from evenly.report.figures import SPOTS, all_figures
from evenly.report.finding import what_was_found
from evenly.report.folder import read_comparison
from evenly.report.marks import DASHES, OUTLINES, Mark, marks
from evenly.report.parts import modality_mark
from evenly.report.projection import NAMES, class_style, plane
from evenly.report.template import rendered

ABSENT = "–"
LINES = 8  # the most methods whose lines can be told apart
_OWN_PLACE = {"command", "versions", "hardware", "notes"}  # shown outside the list of settings


@dataclass(frozen=True)
class Cell:
    """A cell of the ranking.

    Attributes:
        text: The text that is shown.
        value: The value to sort by; None sorts last.
        small: The small text below it.
        significant: Whether it is set in bold.
    """

    text: str
    value: float | str | None = None
    small: str = ""
    significant: bool = False


@dataclass(frozen=True)
class Key:
    """A method in the legend."""

    method: str
    colour: str
    dash: str
    outline: str
    shown: bool


@dataclass(frozen=True)
class Plane:
    """What the page shows around the test samples in the plane.

    Attributes:
        kind: t-SNE or UMAP.
        count: The number of samples.
        methods: The methods to choose from, with their numbers, best first.
        chosen: The numbers of the methods that are shown first, two if there are two.
        modalities: The modalities that have places, with their positions.
        classes: The name, colour and outline of each class.
    """

    kind: str
    count: int
    methods: list[tuple[int, str]]
    chosen: list[int]
    modalities: list[tuple[int, str]]
    classes: list[tuple[str, str, str]]


def write_report(directory: Path, projection: Projected = "tsne") -> Path:
    """Writes `report.html` into the folder of a comparison, finished or not.

    The page holds everything it needs, Plotly included, and opens from the disk. Every name
    that comes from the data is escaped.

    Args:
        directory: The folder that `evenly compare --out` wrote.
        projection: The projection of test samples to show, if the runs have it.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
    """
    path = directory / "report.html"
    write_text(path, _page(read_comparison(directory), projection))
    return path


def _page(comparison: Comparison, projection: Projected) -> str:
    mark = marks(comparison.methods)
    config = comparison.config
    lines, figures = _shown_first(comparison), all_figures(comparison)
    samples = plane(comparison, projection)
    licence, library = _plotly()
    words = comparison.metric.words
    return rendered(
        "page.html.jinja",
        title=comparison.data,
        main=comparison.main,
        metric=comparison.metric,
        words=words,
        title_words=_begun(words),
        date=f"{comparison.changed.day} {comparison.changed:%B %Y, %H:%M} UTC",
        command=str(config.get("command", "")),
        methods=comparison.methods,
        seeds=comparison.seeds,
        notes=[str(note) for note in config.get("notes") or []],
        finding=what_was_found(as_rows(comparison.summary), comparison.reference),
        warning=PAPER if comparison.selects_on_test else "",
        conditions=comparison.conditions,
        open_cells=comparison.open_cells(),
        cells=len(comparison.methods) * len(comparison.seeds),
        columns=_columns(comparison),
        ranked=comparison.is_ranked,
        intervals=comparison.has_intervals,
        contents=_contents(figures, samples),
        rows=[_row(comparison, method) for method in comparison.ranking],
        remarks=_remarks(comparison),
        modality_keys=[
            (name, colour, OUTLINES[symbol])
            for number, name in enumerate(comparison.modalities)
            for colour, symbol in [modality_mark(number)]
        ],
        orders_drawn=f", estimated from {ORDERS} of them" * (len(comparison.modalities) > EXACT),
        map_title=partial(_map_title, comparison),
        legend=[Key(method, *_pen(mark[method]), method in lines) for method in comparison.ranking],
        numbers={method: number for number, method in enumerate(comparison.methods)},
        class_count=len(comparison.class_names),
        has_labels=comparison.has_labels,
        figures=figures,
        first_seed={
            number: found[0]
            for number, method in enumerate(comparison.methods)
            if (found := comparison.numbers(method)) is not None
        },
        samples_drawn=_samples_drawn(comparison),
        diagnosed=_modalities(comparison, figures, ("purity_train", "purity_val", "gap")),
        gap_errors=comparison.has_gap_errors,
        relearns=any(name.startswith("strength/") for name in figures),
        disturbed=_modalities(comparison, figures, ("noise",)),
        noised=list(config.get("noise") or {}),
        lacking=_modalities(comparison, figures, ("missing",)),
        plane=None if samples is None else _plane(comparison, projection, samples),
        packed={
            name: _packed(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
            for name, value in (("figures", figures), ("plane", samples))
            if value
        },
        settings=_settings(comparison),
        differing=comparison.differing,
        versions={str(key): str(value) for key, value in (config.get("versions") or {}).items()},
        hardware=str(config.get("hardware", "")),
        licence=licence,
        library=library,
    )


@cache
def _plotly() -> tuple[str, str]:
    """The licence of plotly.js in one line, and the packed library.

    Plotly's bundle has almost 5 MB. Packed it takes less than half, and every browser since 2023
    can unpack it.
    """
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    head = source[: source.index("*/")].splitlines()[1:]
    licence = ". ".join(line.strip(" *.") for line in head if line.strip(" *."))
    return licence, _packed(source)


def _packed(text: str) -> str:
    """A text in the form that the page's script unpacks; nothing in it can end a script."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode("ascii")


def _tested(comparison: Comparison) -> bool:
    """Whether any method could be tested against the reference."""
    main = comparison.main
    return any(comparison.estimate(m, main).p_holm is not None for m in comparison.methods)


_PARTS = {
    "training": ("Training", ("curve/",)),
    "learnt": ("Purity and gap", ("purity_train/", "purity_val/", "gap/", "strength/")),
    "noise": ("Noise", ("noise/",)),
    "missing": ("Missing", ("missing/",)),
    "probes": ("Probes", ("map/",)),
    "worth": ("Worth", ("contribution", "only")),
    "samples": ("Samples", ()),
    "agreement": ("Predictions", ("agreement",)),
    "confusion": ("Confusions", ("confusion",)),
}
"""By its anchor, the name of each part of the page in the contents, and the figures it holds."""


def _contents(figures: Mapping[str, Any], samples: Mapping[str, Any] | None) -> dict[str, str]:
    """The name of each part of the page by its anchor, from top to bottom."""
    parts = {
        anchor: name
        for anchor, (name, kinds) in _PARTS.items()
        if any(figure.startswith(kinds) for figure in figures) or (anchor == "samples" and samples)
    }
    return {"results": "Results"} | parts | {"settings": "Settings"}


def _modalities(
    comparison: Comparison, figures: Mapping[str, Any], kinds: Sequence[str]
) -> list[tuple[int, str]]:
    """The modalities that have a figure of one of these kinds, with their positions."""
    return [
        (place, name)
        for place, name in enumerate(comparison.modalities)
        if any(f"{kind}/{place}" in figures for kind in kinds)
    ]


def _shown_first(comparison: Comparison) -> list[str]:
    """The methods whose lines are visible at first: all, or `LINES` if there are over two more.

    These are joint training, the methods that re-learn and the first of the others.
    """
    if len(comparison.methods) <= LINES + 2:
        return comparison.methods
    relearning = [method for method in comparison.methods if comparison.moments(method)]
    wanted = [*comparison.pair(comparison.methods), *relearning, *comparison.ranking]
    return list(dict.fromkeys(wanted))[:LINES]


def _plane(comparison: Comparison, kind: Projected, data: Mapping[str, Any]) -> Plane:
    numbers = [method["number"] for method in data["methods"]]
    among = [m for number, m in enumerate(comparison.methods) if number in numbers]
    first = comparison.pair(among)
    # Joint training may be missing, or be all there is.
    first += [comparison.methods[number] for number in numbers]
    return Plane(
        kind=NAMES[kind],
        count=len(data["samples"][0]["target"]),
        methods=[(number, comparison.methods[number]) for number in numbers],
        chosen=[comparison.methods.index(method) for method in dict.fromkeys(first)][:2],
        modalities=[
            (place, name)
            for place, name in enumerate(comparison.modalities)
            if any(place in method["places"] for method in data["methods"])
        ],
        classes=[
            (name, colour, OUTLINES[shape])
            for number, name in enumerate(comparison.group_names)
            for colour, shape in [class_style(number)]
        ],
    )


def _samples_drawn(comparison: Comparison) -> str:
    """How many test samples the figure of true and predicted numbers shows, in words."""
    found = (comparison.numbers(method) for method in comparison.methods)
    count = max((len(each[1]) for each in found if each is not None), default=0)
    return f"{SPOTS:,} of {count:,}" if count > SPOTS else f"all {count:,}"


def _map_title(comparison: Comparison, name: str) -> str:
    """The title of a figure `map/I/J`: the modalities on its axes."""
    first, second = (comparison.modalities[int(place)] for place in name.split("/")[1:])
    return f"{first} × {second}"


def _columns(comparison: Comparison) -> list[tuple[str, str]]:
    """The head of the ranking: each column's title, and the small text below it."""
    chosen = "selected on test, " if comparison.selects_on_test else ""
    metric = comparison.metric
    others = [METRICS[name] for name in comparison.others]
    return [
        ("Method", "seeds finished"),
        (f"Test {metric.words}", f"{chosen}{_in(metric)}± std, 95 % interval"),
        *((_begun(other.words), f"{_in(other)}± std") for other in others),
        *((modality, f"own logits{', %' * metric.is_share}") for modality in comparison.modalities),
        ("Difference", f"to {REFERENCE},{metric.points}{',' * metric.is_share} 95 % interval"),
        ("p", ""),
        ("p", "Holm"),
        ("Time", "seconds"),
        ("Memory", "peak, MB"),
    ]


def _row(comparison: Comparison, method: str) -> list[Cell]:
    metric, score = comparison.metric, comparison.estimate(method, comparison.main)
    others = [(METRICS[name], comparison.estimate(method, name)) for name in comparison.others]
    results = [run.result for run in comparison.runs_of(method) if run.result]
    interval = ABSENT if score.mean is None else TOO_FEW
    of_difference = "" if score.difference is None else TOO_FEW
    if score.low is not None and score.high is not None:
        interval = f"[{_shown_value(metric, score.low)}, {_shown_value(metric, score.high)}]"
    if score.difference_low is not None and score.difference_high is not None:
        ends = _signed(metric, score.difference_low), _signed(metric, score.difference_high)
        of_difference = f"[{', '.join(ends)}]"
    own = [
        comparison.estimate(method, f"{comparison.main}/{name}") for name in comparison.modalities
    ]
    difference = "reference" if method == REFERENCE else _signed(metric, score.difference)
    return [
        Cell(method, method.casefold(), small=f"{len(results)} of {len(comparison.seeds)}"),
        Cell(_with_std(metric, score), score.mean, small=interval),
        *(Cell(_with_std(other, estimate), estimate.mean) for other, estimate in others),
        *(Cell(_shown_value(metric, estimate.mean), estimate.mean) for estimate in own),
        Cell(difference, 0.0 if method == REFERENCE else score.difference, small=of_difference,
             significant=is_significant(score.p_holm)),
        Cell(_p(score.p_value), score.p_value),
        Cell(_p(score.p_holm), score.p_holm, significant=is_significant(score.p_holm)),
        _mean_cell(results, "seconds"),
        _mean_cell(results, "peak_memory_mb"),
    ]  # fmt: skip


def _mean_cell(results: list[Any], name: str) -> Cell:
    values = [float(result[name]) for result in results if result.get(name) is not None]
    if not values:
        return Cell(ABSENT)
    mean = sum(values) / len(values)
    return Cell(f"{mean:,.1f}" if mean < 100 else f"{mean:,.0f}", mean)


def _remarks(comparison: Comparison) -> list[str]:
    """What the reader of the ranking should know, such as why a field is empty."""
    remarks = []
    if comparison.modalities:
        remarks.append(OWN_LOGITS)
    lengths = [int(run.result["epochs"]) for run in comparison.runs if run.result]
    if lengths and (patience := comparison.config.get("patience")) is not None:
        remarks.append(
            f"--patience {patience} ends a run so many epochs after its best: these trained for "
            f"{min(lengths)} to {max(lengths)} epochs."
        )
    if said := doubtful(comparison.runs):
        remarks.append(said)
    if any(run.result and run.result.get("peak_memory_mb") is None for run in comparison.runs):
        remarks.append(
            "Memory is unknown for runs on CPUs that torchrun or srun started, because one process "
            "does run after run."
        )
    finished = [m for m in comparison.methods if comparison.score(m) is not None]
    estimates = {method: comparison.estimate(method, comparison.main) for method in finished}
    if comparison.unequal_seeds:
        remarks.append(comparison.unequal_seeds)
    if comparison.has_intervals:
        remarks.append(OF_MEANS)
    if any(
        each.low is None or (each.difference is not None and each.difference_low is None)
        for each in estimates.values()
    ):
        remarks.append(
            f"“{TOO_FEW.capitalize()}”: an interval or a test needs at least {ENOUGH}, that of a "
            f"difference {ENOUGH} shared with {REFERENCE}. With fewer, chance can explain any "
            "difference."
        )
    if not comparison.is_ranked and len(finished) > 1:
        remarks.append(
            f"No method differs significantly from {REFERENCE}, so the rows stand in the order in "
            "which the methods were named, not by their means."
            if _tested(comparison)
            else "The rows stand in the order in which the methods were named."
        )
    if any(estimate.p_holm is not None for estimate in estimates.values()):
        remarks.append(
            "For each difference we run a paired t-test over seeds and a bootstrap over seeds "
            "and test samples, and report the interval and p of the more cautious of the two. p is "
            f"corrected for the number of methods (Holm). Bold: different from {REFERENCE} at "
            f"{SIGNIFICANT} after correction; nothing else is bold."
        )
    elif estimates and REFERENCE not in finished:
        remarks.append(f"Without a finished run of {REFERENCE} there is no difference to test.")
    return remarks


def _settings(comparison: Comparison) -> dict[str, str]:
    return {
        str(name): _shown(value)
        for name, value in comparison.config.items()
        if name not in _OWN_PLACE and value not in (None, [], {})
    }


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return str(yaml.safe_dump(value, allow_unicode=True, sort_keys=False)).strip()
    return str(value)


def _pen(mark: Mark) -> tuple[str, str, str]:
    """The colour, dash and outline of a mark, as SVG writes them."""
    return mark.colour, DASHES[mark.dash], OUTLINES[mark.symbol]


def _shown_value(metric: Metric, value: float | None) -> str:
    return ABSENT if value is None else metric.shown(value)


def _with_std(metric: Metric, found: Estimate) -> str:
    mean = _shown_value(metric, found.mean)
    return mean if found.std is None else f"{mean} ± {metric.shown(found.std, like=found.mean)}"


def _signed(metric: Metric, difference: float | None) -> str:
    return ABSENT if difference is None else metric.shown(difference, "+").replace("-", "−")


def _in(metric: Metric) -> str:
    """The unit in the head of a column."""
    return "% " if metric.is_share else ""


def _begun(words: str) -> str:
    """Words with a capital letter at the start."""
    return words[0].upper() + words[1:]


def _p(value: float | None) -> str:
    return ABSENT if value is None else shown_p(value)
