"""White noise on a modality: to make it say less, or to see how much of it a model bears."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from evenly import chance

_CPU = torch.device("cpu")


def noisy(
    values: Shaped[Tensor, "n ..."],
    spread: Float[Tensor, "..."],
    row: Int[Tensor, " n"],
    *,
    seed: int = 0,
    length: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n ..."]:
    """Inputs with normal noise, that of a sample a function of seed and row alone.

    Args:
        values: One modality of a batch.
        spread: Standard deviation of the noise, as it is multiplied with a sample.
        row: Which sample of the data set each is.
        seed: Of the noise.
        length: Of sequences, their time steps: padding stays as it is.
    """
    shape = values.shape[1:]
    steps = [None] * len(row) if length is None else length.tolist()
    noise = torch.zeros(values.shape)
    for place, (number, step) in enumerate(zip(row.tolist(), steps, strict=True)):
        wanted = shape if step is None else (step, *shape[1:])
        drawn = torch.randn(wanted, generator=chance.stream(_CPU, seed, number))
        noise[place, :step] = spread * drawn
    return values.float() + noise.to(values.device)
