import numpy as np
import pytest

from evenly.report.places import Box, Spot, label_boxes, leader, needs_line

FRAME = Box(0, 0, 270, 300)


def _spots(count, spread, seed):
    rng = np.random.default_rng(seed)
    places = np.array([135, 150]) + rng.normal(0, spread, (count, 2))
    places = np.clip(places, 10, 260)
    return [Spot(x, y, 5.0, rng.uniform(30, 80), 10.0) for x, y in places.tolist()]


def _overlap(box, other):
    return (
        box.left < other.right and other.left < box.right
        and box.bottom < other.top and other.bottom < box.top
    )  # fmt: skip


@pytest.mark.parametrize("spread", [0, 4, 15, 60])
@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_labels_cover_nothing(count, spread):
    spots = _spots(count, spread, seed=count)
    boxes = label_boxes(spots, FRAME)
    assert label_boxes(spots, FRAME) == boxes
    for number, (spot, box) in enumerate(zip(spots, boxes, strict=True)):
        assert (box.right - box.left, box.top - box.bottom) == pytest.approx(spot[3:])
        assert 0 <= box.left < box.right <= FRAME.right
        assert 0 <= box.bottom < box.top <= FRAME.top
        assert not any(_overlap(box, other) for other in boxes[number + 1 :])
        for each in spots:
            end = leader(each, box)[1]
            assert np.hypot(*(end - [each.x, each.y])) >= each.radius


def test_a_lonely_spot_has_its_label_beside_it():
    spots = [Spot(50, 50, 5, 40, 10), Spot(200, 200, 8, 40, 10)]
    for spot, box in zip(spots, label_boxes(spots, FRAME), strict=True):
        assert not needs_line(spot, box, spots)
        end = leader(spot, box)[1]
        assert np.hypot(*(end - [spot.x, spot.y])) == pytest.approx(spot.radius + 3, abs=3)


def test_a_label_that_could_be_anothers_has_a_line():
    spots = [Spot(100, 100, 5, 40, 10), Spot(108, 100, 5, 40, 10)]
    beside = Box(116, 95, 156, 105)
    assert needs_line(spots[0], beside, spots)
    assert not needs_line(spots[1], beside, spots)


def test_where_nothing_is_free_labels_are_written_all_the_same():
    spots = [Spot(10, 10, 9, 18, 18), Spot(10, 10, 9, 18, 18)]
    assert len(label_boxes(spots, Box(0, 0, 20, 20))) == 2
