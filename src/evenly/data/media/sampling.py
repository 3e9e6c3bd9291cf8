"""Selection of a video's frames."""

import numpy as np
from jaxtyping import Float, Int


def uniform(count: int, frames: int) -> Int[np.ndarray, " k"]:
    """The middle frame of each of `frames` equal segments; with fewer frames, some repeat.

    Args:
        count: Number of frames in the video, 1 or more.
        frames: Number of frames to keep.

    Returns:
        Ascending positions, floor((i + ½) · count / frames).
    """
    return (2 * np.arange(frames) + 1) * count // (2 * frames)


def segment_random(
    count: int, frames: int, generator: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """One frame at random from each of `frames` equal segments (Wang et al., ECCV 2016).

    Args:
        count: Number of frames in the video, 1 or more.
        frames: Number of frames to keep.
        generator: Generator of the draws.

    Returns:
        Ascending positions, floor((i + r_i) · count / frames) with r_i in [0, 1).
    """
    place = (np.arange(frames) + generator.random(frames)) * count / frames
    # Rounding can push a draw just below 1 past the segment's end.
    return np.minimum(place.astype(np.int64), count - 1)


def at_rate(times: Float[np.ndarray, " t"], fps: float) -> Int[np.ndarray, " k"]:
    """The frames on screen at `fps` moments per second, whatever the video's own rate.

    Args:
        times: When each frame is shown, in seconds from the beginning of the file, ascending.
        fps: Frames to keep per second.

    Returns:
        Ascending positions: at each moment from 0 to the last frame's, the latest frame shown by
        then; before the first frame, the first.
    """
    moments = np.arange(0, max(times[-1], 0) + 1e-6, 1 / fps)
    return np.maximum(np.searchsorted(times, moments + 1e-6, side="right") - 1, 0)
