"""A comparison's ranking for papers and programs: Markdown, LaTeX, JSON and pictures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenly.files import write_text
from evenly.metrics import METRICS, Metric
from evenly.report.comparison import (
    OF_MEANS,
    OWN_LOGITS,
    PAPER,
    TOO_FEW,
    Comparison,
    Estimate,
    as_rows,
    is_significant,
    shown_p,
)
from evenly.report.folder import read_comparison
from evenly.report.picture import write_picture
from evenly.suggest import unknown

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def write_formats(directory: Path, formats: list[str]) -> list[Path]:
    """Writes the comparison of a folder in other formats, into the folder.

    Args:
        directory: The folder that `evenly compare --out` wrote.
        formats: Names in `FORMATS`.

    Returns:
        The written files.

    Raises:
        ValueError: If a format is unknown, or there is nothing to write yet.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    return [FORMATS[name](directory) for name in formats]


@dataclass(frozen=True)
class _Cell:
    """A cell of the ranking, in bold where it may be."""

    text: str
    bold: bool = False


def _ranking(comparison: Comparison) -> list[list[_Cell]]:
    """The head and a line for each method; significant differences are bold."""
    metric = comparison.metric
    others = [METRICS[name] for name in comparison.others]
    head = ["method", _headed(metric), "95 % interval", *map(_headed, others)]
    head += [_headed(metric, f"{name}'s own logits") for name in comparison.modalities]
    against = f"against {comparison.reference}{' (points)' if metric.is_share else ''}"
    head += [against, "p (Holm)"]
    lines = [[_Cell(text) for text in head]]
    for method in comparison.ranking:
        score = comparison.estimate(method, comparison.main)
        if score.mean is None:
            continue
        cells = [method, _spread(metric, score), _interval(metric, score.low, score.high)]
        cells += [
            _spread(other, comparison.estimate(method, name))
            for name, other in zip(comparison.others, others, strict=True)
        ]
        cells += [
            _spread(metric, comparison.estimate(method, f"{comparison.main}/{name}"))
            for name in comparison.modalities
        ]
        lines.append([*map(_Cell, cells), *_against(metric, score)])
    return lines


def _headed(metric: Metric, words: str = "") -> str:
    """The head of a column of a metric, with the unit of its values."""
    return f"{words or metric.words}{' (%)' if metric.is_share else ''}"


def _against(metric: Metric, score: Estimate) -> list[_Cell]:
    if score.difference is None:
        return [_Cell(""), _Cell("")]
    ends = _interval(metric, score.difference_low, score.difference_high, "+")
    difference = f"{metric.shown(score.difference, '+')} [{ends}]"
    bold = is_significant(score.p_holm)
    return [
        _Cell(difference, bold),
        _Cell("" if score.p_holm is None else shown_p(score.p_holm), bold),
    ]


def _spread(metric: Metric, estimate: Estimate) -> str:
    if estimate.mean is None:
        return ""
    spread = "" if estimate.std is None else f" ± {metric.shown(estimate.std, like=estimate.mean)}"
    return f"{metric.shown(estimate.mean)}{spread}"


def _interval(metric: Metric, low: float | None, high: float | None, form: str = "") -> str:
    if low is None or high is None:
        return TOO_FEW
    return f"{metric.shown(low, form)} to {metric.shown(high, form)}"


def _about(comparison: Comparison) -> str:
    """The sentences below a table."""
    found = [comparison.estimate(method, comparison.main) for method in comparison.methods]
    counts = {each.seeds for each in found if each.mean is not None} or {1}
    few, many = min(counts), max(counts)
    chosen = PAPER if comparison.selects_on_test else "The epoch is selected on validation."
    where = f"Test split of {comparison.data}"
    parts = [f"{where}, one seed. {chosen}", comparison.conditions]
    if many > 1:
        seeds = f"{few} to {many}" if few < many else f"{many}"
        parts[0] = f"{where}, mean ± standard deviation over {seeds} seeds. {chosen}"
    parts += [comparison.without_result, comparison.unequal_seeds]
    if comparison.modalities:
        parts.append(OWN_LOGITS)
    if comparison.has_intervals:
        parts.append(OF_MEANS)
    if any(each.difference_low is not None for each in found):
        parts.append(
            "Differences: interval and p are the more cautious of a paired t-test over seeds and a "
            "bootstrap over seeds and test samples; bold where p is below .05 after Holm's "
            "correction."
        )
    return " ".join(filter(None, parts))


def markdown(comparison: Comparison) -> str:
    """The ranking as a Markdown table, and the sentences below it."""
    head, *rows = [[_in_markdown(cell) for cell in line] for line in _ranking(comparison)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])
    return f"{table}\n\n{_about(comparison)}\n"


def _in_markdown(cell: _Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.bold else text


def latex(comparison: Comparison) -> str:
    """The same as a LaTeX table; needs booktabs."""
    ranking = _ranking(comparison)
    head, *rows = [" & ".join(map(_in_latex, line)) + r" \\" for line in ranking]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(_about(comparison))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(ranking[0]) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _in_latex(cell: _Cell) -> str:
    text = _escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


def _escaped(text: str) -> str:
    plain = "".join(_LATEX.get(character, character) for character in text)
    return plain.replace(" ± ", r" $\pm$ ").replace("< 0.001", "$<$ 0.001")


def _json(directory: Path) -> Path:
    comparison = read_comparison(directory)
    found: dict[str, Any] = {
        "settings": dict(comparison.config),
        "summary": as_rows(comparison.summary),
        "results": [
            {"method": method, "split": split, "metric": metric, "by_seed": values}
            for (method, split, metric), values in comparison.results.items()
        ],
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, default=str)
    return _written(directory / "comparison.json", text + "\n")


def _table(path: Path, form: Callable[[Comparison], str]) -> Path:
    return _written(path, form(read_comparison(path.parent)))


def _written(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "md": lambda directory: _table(directory / "table.md", markdown),
    "latex": lambda directory: _table(directory / "table.tex", latex),
    "csv": lambda directory: directory / "summary.csv",  # which every report writes
    "json": _json,
    "png": lambda directory: write_picture(directory, directory / "figure.png"),
    "svg": lambda directory: write_picture(directory, directory / "figure.svg"),
}
"""By name, the function that writes a comparison into its folder in that format."""
