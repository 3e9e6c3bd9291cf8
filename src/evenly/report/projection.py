"""Test samples in the plane, for the page's script and for pictures."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from evenly.report.comparison import NONE, Comparison, Projected

NAMES: Mapping[Projected, str] = {"tsne": "t-SNE", "umap": "UMAP"}
# As distinct as possible, for colour-blind readers too, and legible on white and on black.
COLOURS = (
    "#186ddb", "#ff9231", "#008600", "#c23d6d", "#db92ff", "#3dc2aa",
    "#aa7924", "#00aaff", "#aa61ce", "#92b600", "#ff6d9e", "#00929e",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle-up", "diamond")
STEPS = 999  # places are rounded to a grid of so many steps, a third of a pixel each


def class_style(number: int) -> tuple[str, str]:
    """The colour and shape of a class; together they tell 48 classes apart."""
    return COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]


def plane(comparison: Comparison, kind: Projected) -> dict[str, Any] | None:
    """What the page's script draws; None if no run has this projection.

    - `classes`, with their `colours` and `shapes`.
    - `samples`: sets of samples, each with `target` and `label`.
    - `methods`, best first: of each its `number`, the number of its set in `samples`, `predicted`,
      and `places` by the position of each modality: x and y in whole numbers, None if a sample
      lacks the modality.
    - `said`, if samples have several labels: texts, whose numbers are in `predicted` and in `own`
      of the samples.
    """
    samples: list[dict[str, Any]] = []
    said: dict[str, int] = {}
    methods = []
    for method in comparison.ranking:
        found = comparison.projection(method, kind)
        if found is None:
            continue
        # Methods usually have the same samples, which are stored once.
        own = {
            "target": found.target.tolist(),
            "label": [escape(label, quote=False) for label in found.labels],
        }
        numbers = [said.setdefault(text or NONE, len(said)) for text in found.said]
        predicted = found.predicted.tolist()
        if found.said:
            own["own"] = [numbers[number] for number in found.own.tolist()]
            predicted = [numbers[number] for number in predicted]
        if own not in samples:
            samples.append(own)
        methods.append(
            {
                "number": comparison.methods.index(method),
                "samples": samples.index(own),
                "predicted": predicted,
                "places": {
                    comparison.modalities.index(name): _rounded(places)
                    for name, places in found.places.items()
                    if name in comparison.modalities
                },
            }
        )
    if not methods:
        return None
    count = len(comparison.group_names)
    return {
        "classes": [escape(name, quote=False) for name in comparison.group_names],
        "colours": [class_style(number)[0] for number in range(count)],
        "shapes": [class_style(number)[1] for number in range(count)],
        "samples": samples,
        "methods": methods,
    } | ({"said": [escape(text, quote=False) for text in said]} if said else {})


def fitted(places: np.ndarray) -> np.ndarray:
    """The places, (k, 2), scaled to between 0 and 1 along the longer side; NaN stays."""
    low, high = np.nanmin(places, axis=0), np.nanmax(places, axis=0)
    size = float((high - low).max()) or 1.0
    found: np.ndarray = 0.5 + (places - (low + high) / 2) / size
    return found


def _rounded(places: np.ndarray) -> list[list[int | None]]:
    if np.isnan(places).all():
        return [[None] * len(places)] * 2
    steps = STEPS * fitted(places)
    return [[None if np.isnan(step) else round(step) for step in axis.tolist()] for axis in steps.T]
