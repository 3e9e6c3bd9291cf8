"""White noise on a modality: to make it less informative, or to see how much a model tolerates."""

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
    """Inputs with normal noise that depends only on the seed and a sample's row.

    Args:
        values: One modality of a batch.
        spread: Standard deviation of the noise, in a shape to multiply samples by.
        row: Row of each sample in the data set.
        seed: Seed of the noise.
        length: Time steps of sequences: padding stays unchanged.
    """
    shape = values.shape[1:]
    steps = [None] * len(row) if length is None else length.tolist()
    noise = torch.zeros(values.shape)
    for place, (number, step) in enumerate(zip(row.tolist(), steps, strict=True)):
        wanted = shape if step is None else (step, *shape[1:])
        drawn = torch.randn(wanted, generator=chance.stream(_CPU, seed, number))
        noise[place, :step] = spread * drawn
    return values.float() + noise.to(values.device)
