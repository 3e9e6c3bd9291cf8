"""Handwritten digits, divided into a clear upper and a noisy lower half; nothing to download."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly.data.dataset import Data, stratified
from evenly.errors import UserError


def digits(noise: float = 8.0, seed: int = 0) -> Data:
    """The 1,797 handwritten digits of scikit-learn (8×8), as `top` and `bottom`, 1×4×8 each.

    Without noise, both halves tell the digit equally well; at the default, the lower half tells
    little, but still something that the upper half does not. Test accuracy of scikit-learn's
    logistic regression (C = 0.1) on standardised pixels, seed 0, 360 test samples (standard error
    about 2 points):

    | noise | top | bottom | both |
    |---|---|---|---|
    | 0 | .822 | .833 | .961 |
    | 4 | .822 | .706 | .919 |
    | 8 (default) | .822 | .508 | .883 |
    | 16 | .822 | .283 | .836 |

    Args:
        noise: Standard deviation of the Gaussian noise on `bottom`, in grey levels (the pixels
            run from 0 to 16). Drawn once: every reader sees the same pixels.
        seed: Seed of the noise and of the stratified split: 60 % train, 20 % validation, 20 % test.

    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0).
    """
    if noise < 0:
        raise UserError(f"digits: noise is a standard deviation of at least 0; found {noise}.")
    images, target = _read()
    generator = torch.Generator().manual_seed(seed)
    bottom = images[:, :, 4:]
    bottom = bottom + noise * torch.randn(bottom.shape, generator=generator)
    train, val, test = stratified(target, (0.6, 0.2), seed)
    return Data(
        "digits",
        {"top": images[:, :, :4].contiguous(), "bottom": bottom},
        target,
        {"train": train, "val": val, "test": test},
        [str(number) for number in range(10)],
    )


def _read() -> tuple[Float[Tensor, "n 1 8 8"], Int[Tensor, " n"]]:
    """The images, and the digit of each.

    From scikit-learn's file: importing scikit-learn for it would cost every run half a second and
    80 MB.
    """
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed. Install it with pip "
            "install '.[lab]' in evenly's clone."
        )
    file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(file, "rt") as lines:
        rows = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    return rows[:, :64].reshape(-1, 1, 8, 8), rows[:, 64].long()
