"""Names as figures show them: no longer than there is room for."""

import re
from collections import Counter
from collections.abc import Iterable

from evenly.metrics import METRICS


def shortened(names: Iterable[str], length: int = 22) -> dict[str, str]:
    """By name, a form of at most `length` characters that differs from the others' forms.

    A name is cut at its end, or in its middle if names differ only at their ends. If no cut makes
    it differ, it stays whole. A unimodal method is called by its modality, followed by "alone".
    """
    whole = {name: called(name) for name in names}
    forms = [{name: cut(text, length) for name, text in whole.items()} for cut in (_begun, _ends)]
    counts = [Counter(form.values()) for form in forms]
    return {
        name: next(
            (
                form[name]
                for form, count in zip(forms, counts, strict=True)
                if count[form[name]] == 1
            ),
            text,
        )
        for name, text in whole.items()
    }


def _begun(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _ends(text: str, length: int) -> str:
    before, after = (length - 1) // 2, length // 2
    return text if len(text) <= length else f"{text[:before]}…{text[-after:]}"


def wrapped(name: str, width: int = 22) -> list[str]:
    """The whole of a method's name in lines of at most `width`, broken between its settings.

    A setting that is longer is broken between its words, and only a longer word within.
    Nothing is left out: methods may differ in their last setting only.
    """
    settings = _filled(re.findall(r"[^(,]*[(,]|[^(,]+", called(name)), width)
    words = [_filled(re.findall(r"[^\W_]+[\W_]*|[\W_]+", line), width) for line in settings]
    lines = [line for broken in words for line in broken]
    return [line[i : i + width] for line in lines for i in range(0, max(len(line), 1), width)]


def _filled(parts: Iterable[str], width: int) -> list[str]:
    """Lines that hold as many parts as fit; a longer part has a line of its own."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def called(method: str) -> str:
    """The name of a method in figures; a unimodal method is called by its modality."""
    alone = re.fullmatch(r"unimodal\(modality=(.+)\)", method)
    return f"{alone[1]} alone" if alone else method


def in_words(metric: str) -> str:
    """The name of a metric in a sentence."""
    return METRICS[metric].words if metric in METRICS else metric.replace("_", " ")
