import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenly.data.media.sampling import at_rate, segment_random, uniform

COUNTS = {"count": st.integers(1, 500), "frames": st.integers(1, 64)}


def test_uniform_by_hand():
    assert uniform(75, 3).tolist() == [12, 37, 62]
    assert uniform(4, 4).tolist() == [0, 1, 2, 3]
    assert uniform(2, 4).tolist() == [0, 0, 1, 1]
    assert uniform(1, 2).tolist() == [0, 0]


@given(**COUNTS)
def test_each_frame_lies_in_its_segment(count, frames):
    draws = np.random.default_rng(0)
    for found in (uniform(count, frames), segment_random(count, frames, draws)):
        assert len(found) == frames
        segment = np.arange(frames)
        assert (found >= np.floor(segment * count / frames)).all()
        assert (found <= np.ceil((segment + 1) * count / frames)).all()
        assert found.max() < count


def test_segments_are_drawn_from_evenly():
    draws = np.random.default_rng(0)
    found = np.stack([segment_random(30, 3, draws) for _ in range(3000)])
    for segment in range(3):
        counts = np.bincount(found[:, segment] - 10 * segment, minlength=10)
        assert counts.min() > 200  # of 300 expected
    assert len(counts) == 10


def test_at_rate_by_hand():
    shown = np.array([0.0, 0.1, 0.2, 0.9, 1.0])
    assert at_rate(shown, 2.0).tolist() == [0, 2, 4]
    assert at_rate(shown, 10.0).tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4]


def test_at_its_own_rate_every_frame_is_kept():
    for fps in (25.0, 30000 / 1001, 12.0):
        assert at_rate(np.arange(100) / fps, fps).tolist() == list(range(100))


def test_a_video_that_begins_late():
    assert at_rate(np.array([1.0, 1.5, 2.0]), 2.0).tolist() == [0, 0, 0, 1, 2]


def test_one_frame():
    assert at_rate(np.array([0.0]), 3.0).tolist() == [0]
    assert uniform(1, 1) == pytest.approx([0])
