import numpy as np
import pytest

from evenly.data.media import frames_of
from evenly.data.media.flow import as_images, flow, quantised, stacked


@pytest.fixture
def moving():
    """A smooth texture that moves by 2 to the right and 1 down from frame to frame."""
    draws = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:80]
    waves = draws.uniform(-0.5, 0.5, (12, 2))
    frames = []
    for step in range(3):
        texture = sum(np.sin(a * (x - 2 * step) + b * (y - step)) for a, b in waves)
        grey = ((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)
        frames.append(np.stack([grey] * 3))
    return np.stack(frames)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_the_movement_is_found(moving, method):
    found = flow(moving, method)
    assert found.shape == (2, 2, 64, 80)
    inner = found[:, :, 16:-16, 16:-16]
    assert np.median(inner[:, 0]) == pytest.approx(2, abs=0.3)
    assert np.median(inner[:, 1]) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_no_movement(moving, method):
    still = np.repeat(moving[:1], 2, 0)
    assert np.abs(flow(still, method)).max() < 0.2


def test_quantised_by_hand():
    found = np.array([-30, -20, -10, 0, 10, 20, 30], np.float32).reshape(1, 1, 1, 7)
    pair = np.concatenate([found, found], 1)
    assert quantised(pair)[0, 0, 0].tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_layouts():
    found = np.arange(2 * 2 * 1 * 3).reshape(2, 2, 1, 3).astype(np.float32)
    u, v = found[:, 0], found[:, 1]
    assert np.array_equal(stacked(found), np.stack([u[0], v[0], u[1], v[1]]))
    assert np.array_equal(as_images(found), np.stack([u, v, u], 1))


def test_one_frame_has_no_flow(moving):
    with pytest.raises(ValueError, match="two frames or more; found 1"):
        flow(moving[:1])


@pytest.mark.data
def test_of_real_frames(shared_data):
    folder = shared_data / "media_clips" / "ucf101_frames" / "ApplyEyeMakeup_v_000001"
    frames = frames_of(folder).read(np.arange(4))
    found = flow(frames)
    assert found.shape == (3, 2, 256, 340)
    assert 0.05 < np.abs(found).mean() < 20
