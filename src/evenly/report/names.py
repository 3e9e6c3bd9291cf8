"""Names as figures show them: no longer than their place allows."""

import re

from evenly.metrics import METRICS


def shortened(name: str, length: int = 22) -> str:
    """A name that fits; a modality alone is called so."""
    name = called(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def wrapped(name: str, width: int = 22) -> list[str]:
    """The whole of a method's name in lines of at most `width`, broken between its settings.

    Nothing is left out: methods may differ in their last setting only.
    """
    lines = [""]
    for part in re.findall(r"[^(,]*[(,]|[^(,]+", called(name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [line[i : i + width] for line in lines for i in range(0, max(len(line), 1), width)]


def called(method: str) -> str:
    """What a method is called in figures: by its name, or by the modality that it takes alone."""
    alone = re.fullmatch(r"unimodal\(modality=(.+)\)", method)
    return f"{alone[1]} alone" if alone else method


def in_words(metric: str) -> str:
    """What a metric is called in a sentence."""
    return METRICS[metric].words if metric in METRICS else metric.replace("_", " ")
