"""Places the labels of a picture's spots, so that they cover neither spots nor each other."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

GAPS = (3, 7, 12, 18, 25, 33, 42, 52, 63, 75, 88, 102, 120, 140, 165, 195, 230)
ANGLES = 24


Line = tuple[np.ndarray, np.ndarray]
"""The two ends of a line, (2,) each."""


class Spot(NamedTuple):
    """A spot's centre and radius, and the width and height of its label."""

    x: float
    y: float
    radius: float
    width: float
    height: float


class Box(NamedTuple):
    """The edges of a rectangle."""

    left: float
    bottom: float
    right: float
    top: float


def label_boxes(spots: Sequence[Spot], within: Box) -> list[Box]:
    """A place for each spot's label, in the unit of length of the spots, such as points.

    A label takes the nearest free place, and of these one that faces away from other spots. If it
    is not beside its spot, a line leads to it, which crosses neither labels nor other lines. If
    there is too little room, lines may cross; if that is not enough, labels may cover spots, and
    only then each other.
    """
    covered = [Box(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in spots]
    found: dict[int, Box] = {}
    lines: list[Line] = []
    pushes = [_push(spot, spots) for spot in spots]
    # Those at the edge of a crowd first: their labels go outwards.
    for number in sorted(range(len(spots)), key=lambda i: -float(np.hypot(*pushes[i]))):
        spot = spots[number]
        labels = list(found.values())
        free = [
            box
            for box in _candidates(spot, pushes[number])
            if _inside(box, within) and not any(_overlap(box, other) for other in labels)
        ]
        beside = [box for box in free if not any(_overlap(box, other) for other in covered)]
        clear = (
            box
            for box in beside
            if not any(_crosses(line, box) for line in lines)
            and not any(_crosses(leader(spot, box), other) for other in labels)
            and not any(_meet(leader(spot, box), line) for line in lines)
        )
        at_worst = Box(spot.x, spot.y, spot.x + spot.width, spot.y + spot.height)
        box = next(clear, None) or next(iter([*beside, *free]), at_worst)
        found[number] = box
        lines.append(leader(spot, box))
    return [found[number] for number in range(len(spots))]


def leader(spot: Spot, box: Box) -> Line:
    """The ends of a line from the centre of a spot to its label."""
    centre = np.array([spot.x, spot.y])
    return centre, np.clip(centre, box[:2], box[2:])


def needs_line(spot: Spot, box: Box, spots: Sequence[Spot]) -> bool:
    """Whether a reader could take the label for another spot's."""
    own, *others = (
        float(np.hypot(*np.subtract(*leader(each, box)))) - each.radius
        for each in (spot, *(other for other in spots if other is not spot))
    )
    return own > 6 or any(other < own + 3 for other in others)


def _push(spot: Spot, spots: Sequence[Spot]) -> np.ndarray:
    """The direction away from the other spots; near ones weigh most."""
    away = np.array([(spot.x - other.x, spot.y - other.y) for other in spots if other is not spot])
    if not len(away):
        return np.array([1.0, 0.0])
    push: np.ndarray = (away / (1 + (away**2).sum(1, keepdims=True))).sum(0)
    return push


def _candidates(spot: Spot, push: np.ndarray) -> Iterator[Box]:
    outwards = float(np.arctan2(push[1], push[0]))
    turns = sorted(np.linspace(-np.pi, np.pi, ANGLES, endpoint=False), key=abs)
    for gap in GAPS:
        for turn in turns:
            along = np.array([np.cos(outwards + turn), np.sin(outwards + turn)])
            centre = np.array([spot.x, spot.y]) + along * (spot.radius + gap)
            # The label stands on the far side of that point.
            size = np.array([spot.width, spot.height])
            corner = centre + (along - 1) * size / 2
            yield Box(*corner.tolist(), *(corner + size).tolist())


def _inside(box: Box, within: Box) -> bool:
    return (
        box.left >= within.left
        and box.bottom >= within.bottom
        and box.right <= within.right
        and box.top <= within.top
    )


def _overlap(box: Box, other: Box) -> bool:
    return (
        box.left < other.right
        and other.left < box.right
        and box.bottom < other.top
        and other.bottom < box.top
    )


def _crosses(line: Line, box: Box) -> bool:
    points = line[0] + np.linspace(0, 1, 24)[:, None] * (line[1] - line[0])
    return bool(((points > box[:2]) & (points < box[2:])).all(1).any())


def _meet(line: Line, other: Line) -> bool:
    """Whether two lines cross: the ends of each lie on both sides of the other."""
    return _sides(line, other) < 0 and _sides(other, line) < 0


def _sides(line: Line, other: Line) -> float:
    """Below 0 where the ends of the other one lie on different sides of a line."""
    (x, y), start = line[1] - line[0], line[0]
    first, second = (x * (end - start)[1] - y * (end - start)[0] for end in other)
    return float(first * second)
