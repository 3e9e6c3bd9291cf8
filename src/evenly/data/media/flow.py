"""Optical flow between the frames of a video, by OpenCV."""

from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from evenly.errors import UserError

FlowMethod = Literal["farneback", "dis"]
Flow = Float[np.ndarray, "t 2 h w"]


def flow(frames: UInt8[np.ndarray, "k 3 h w"], method: FlowMethod = "dis") -> Flow:
    """Where each pixel moves from one frame to the next.

    Args:
        frames: RGB, two or more.
        method: `farneback` (Farnebäck, SCIA 2003) or `dis` (Kroeger et al., ECCV 2016; its
            'medium' preset), which is faster and follows larger movements.

    Returns:
        One flow fewer than frames: u, to the right, and v, down, in pixels.

    Raises:
        ValueError: If there are fewer than two frames.
    """
    if len(frames) < 2:
        raise UserError(f"flow: it takes two frames or more; found {len(frames)}.")
    gray = [cv2.cvtColor(frame.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY) for frame in frames]
    pairs = pairwise(gray)
    start = np.zeros((*gray[0].shape, 2), np.float32)
    if method == "dis":
        solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        found = [solver.calc(one, two, start.copy()) for one, two in pairs]
    else:
        found = [
            cv2.calcOpticalFlowFarneback(one, two, start.copy(), 0.5, 3, 15, 3, 5, 1.2, 0)
            for one, two in pairs
        ]
    return np.stack(found).transpose(0, 3, 1, 2)


def quantised(found: Flow, bound: float = 20.0) -> UInt8[np.ndarray, "t 2 h w"]:
    """Flow as 8-bit integers, as flow images are stored: -bound is 0, no movement 127.5.

    Args:
        found: Flow in pixels.
        bound: Movements beyond ±bound pixels are clipped; 20 as in Wang et al., ECCV 2016.
    """
    return np.rint((found.clip(-bound, bound) + bound) * (255 / (2 * bound))).astype(np.uint8)


def stacked(found: Flow | UInt8[np.ndarray, "t 2 h w"]) -> np.ndarray:
    """U and v of consecutive frames as the channels of one image: (2t, h, w)."""
    return found.reshape(-1, *found.shape[2:])


def as_images(found: Flow | UInt8[np.ndarray, "t 2 h w"]) -> np.ndarray:
    """Each flow as an image [u, v, u] for a network that takes three channels: (t, 3, h, w)."""
    return found[:, [0, 1, 0]]
