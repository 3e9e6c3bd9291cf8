"""Generated classes for which the best possible accuracy is known exactly."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from evenly.data.dataset import Data, SplitName
from evenly.errors import UserError


def synthetic(
    modalities: int = 2,
    classes: int = 6,
    train: int = 1200,
    val: int = 300,
    test: int = 1200,
    dim: int = 32,
    information: float | list[float] = 2.0,
    speed: float | list[float] = 1.0,
    noise: float | list[float] = 1.0,
    seed: int = 0,
) -> Data:
    """Vectors `m1`, `m2`, ... with one Gaussian cloud per class and modality.

    In modality m, a sample of class y is

        x = R · [ speed · (information · e_y + noise · ε) ,  noise · ε′ ]

    with e_y the y-th of `classes` unit vectors, ε and ε′ standard normal, and R a random
    rotation. The first part holds all information about y. Given y, modalities are independent.

    Clouds are equally far apart, so the Bayes accuracy depends only on d = information / noise: it
    is the chance that a standard normal shifted by d exceeds `classes` − 1 others. For all
    modalities together, d is the root of the sum of squares. Integrated numerically, to 1e-9.

    `speed` is an invertible scaling of that first part. It does not change the achievable accuracy,
    only how fast it is reached: the variance of the inputs along the directions that tell the class
    is speed² times as large, and gradient descent learns along a direction at a rate proportional
    to its variance. Standardising each feature does not undo it, since R mixes the parts.

    A setting by modality is one number for all, or a list with one for each.

    Args:
        modalities: Number of modalities.
        classes: Number of classes, equally frequent in each split.
        train: Samples of the training split.
        val: Samples of the validation split.
        test: Samples of the test split.
        dim: Width of each modality's vectors; what exceeds `classes` is the part without
            information.
        information: By modality, length of the class vectors; 0 carries none.
        speed: By modality, above 0; 1 is even, smaller learns more slowly.
        noise: By modality, standard deviation, above 0.
        seed: Seed of everything random.
    """
    sizes: dict[SplitName, int] = {"train": train, "val": val, "test": test}
    _check(modalities, classes, dim, sizes)
    lengths = _each("information", information, modalities, positive=False)
    speeds = _each("speed", speed, modalities)
    noises = _each("noise", noise, modalities)
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat(
        [
            torch.randperm(size, generator=generator) % classes  # every class in every split
            for size in sizes.values()
        ]
    )
    names = [f"m{number}" for number in range(1, modalities + 1)]
    inputs: dict[str, Tensor] = {}
    for name, length, rate, deviation in zip(names, lengths, speeds, noises, strict=True):
        x = deviation * torch.randn(len(target), dim, generator=generator, dtype=torch.float64)
        x[torch.arange(len(target)), target] += length
        x[:, :classes] *= rate
        inputs[name] = (x @ _rotation(dim, generator)).float()
    distances = [length / deviation for length, deviation in zip(lengths, noises, strict=True)]
    bayes = {
        name: bayes_accuracy(distance, classes)
        for name, distance in zip(names, distances, strict=True)
    }
    first, second, third = torch.arange(len(target)).split(list(sizes.values()))
    return Data(
        "synthetic",
        inputs,
        target,
        {"train": first, "val": second, "test": third},
        [f"class {number}" for number in range(classes)],
        bayes={**bayes, "all": bayes_accuracy(math.hypot(*distances), classes)},
    )


def bayes_accuracy(distance: float, classes: int) -> float:
    """The best accuracy for equally frequent classes at `distance` · e_y in white unit noise.

    ∫ φ(z − distance) Φ(z)^(classes − 1) dz: the projection on the true class's vector is the
    largest. (Error probability of orthogonal signals, Proakis, Digital Communications, §4.4.)
    """
    z = torch.linspace(-10.0, distance + 10.0, 20_001, dtype=torch.float64)
    density = torch.exp(-((z - distance) ** 2) / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(density * torch.special.ndtr(z) ** (classes - 1), z))


def _rotation(dim: int, generator: torch.Generator) -> Float[Tensor, "d d"]:
    gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    # Uniform among rotations once the signs are fixed (Mezzadri, Notices of the AMS, 2007).
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def _each(
    setting: str, value: float | list[float], modalities: int, positive: bool = True
) -> list[float]:
    values = value if isinstance(value, list) else [value] * modalities
    if len(values) != modalities:
        raise UserError(
            f"synthetic: {setting} lists {len(values)} values for {modalities} modalities. "
            "Give one for each, or a single number for all."
        )
    if not all(math.isfinite(v) and (v > 0 if positive else v >= 0) for v in values):
        least = "numbers above 0" if positive else "numbers of 0 or more"
        raise UserError(f"synthetic: {setting} needs {least}, found {value}.")
    return values


def _check(modalities: int, classes: int, dim: int, sizes: dict[SplitName, int]) -> None:
    if modalities < 1:
        raise UserError(f"synthetic: found {modalities} modalities. Give 1 or more.")
    if classes < 2:
        raise UserError(f"synthetic: found {classes} classes. Give 2 or more.")
    if dim < classes:
        raise UserError(
            f"synthetic: vectors of width {dim} cannot hold {classes} classes at equal distances. "
            f"Give dim={classes} or more."
        )
    for name, size in sizes.items():
        if size < classes:
            raise UserError(
                f"synthetic: {name}={size} is fewer samples than the {classes} classes. "
                f"Give {classes} or more."
            )
