"""Which frames of a video are kept."""

import numpy as np
from jaxtyping import Float, Int


def uniform(count: int, frames: int) -> Int[np.ndarray, " k"]:
    """The middle frame of each of `frames` equal segments; with fewer frames, some repeat.

    Args:
        count: How many frames the video has, 1 or more.
        frames: How many to keep.

    Returns:
        Ascending positions, floor((i + ½) · count / frames).
    """
    return (2 * np.arange(frames) + 1) * count // (2 * frames)


def segment_random(
    count: int, frames: int, generator: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """One frame at random from each of `frames` equal segments (Wang et al., ECCV 2016).

    Args:
        count: How many frames the video has, 1 or more.
        frames: How many to keep.
        generator: Of the draws.

    Returns:
        Ascending positions, floor((i + r_i) · count / frames) with r_i from [0, 1).
    """
    place = (np.arange(frames) + generator.random(frames)) * count / frames
    # Rounding can carry a draw just below 1 over the segment's end.
    return np.minimum(place.astype(np.int64), count - 1)


def at_rate(times: Float[np.ndarray, " t"], fps: float) -> Int[np.ndarray, " k"]:
    """The frames that are on the screen `fps` times a second, whatever the video's own rate.

    Args:
        times: When each frame is shown, in seconds from the beginning of the file, ascending.
        fps: Frames to keep for each second.

    Returns:
        Ascending positions: at each moment from 0 to the last frame's, the latest frame that has
        come by then; before the first one has come, the first.
    """
    moments = np.arange(0, max(times[-1], 0) + 1e-6, 1 / fps)
    return np.maximum(np.searchsorted(times, moments + 1e-6, side="right") - 1, 0)
