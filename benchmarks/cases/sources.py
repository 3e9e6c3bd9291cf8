"""Distributions of inputs given a class, with densities, so that the best accuracy is known.

A modality shows its own label, which is the sample's class in a known share of samples, so its
Bayes accuracy follows from the density. In most distributions, a linear reader of the input, or of
an untrained encoder, sees little: the class is not a direction but a sign, a distance, or an event
somewhere in a sequence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Inputs given labels; draws and densities are exact, so each can check the other."""

    shape: tuple[int, ...]

    def draw(self, label: Tensor, stream: torch.Generator) -> Tensor:
        """One input for each label."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        """(n, classes), up to a constant for each sample."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Each class is one or several Gaussian clusters, rotated among noise dimensions.

    One cluster per class is a linear problem; two at opposite points (`signs`), or several corners
    of a cube (`corners`), are not.
    """

    centers: Tensor
    """(classes, clusters, dimensions); all clusters of a class are equally likely."""
    rotation: Tensor
    """(d, d) with d at least the number of these dimensions; the rest are noise."""
    unit: float = field(init=False)
    """The spread of an input's entries, which divides it."""
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        d = len(self.rotation)
        spread = math.sqrt(1 + self.centers.square().sum(-1).mean().item() / d)
        object.__setattr__(self, "unit", spread)
        object.__setattr__(self, "shape", (d,))

    def draw(self, label: Tensor, stream: torch.Generator) -> Tensor:
        """See `Source`."""
        which = torch.randint(self.centers.shape[1], label.shape, generator=stream)
        x = torch.randn(len(label), len(self.rotation), generator=stream)
        x[:, : self.centers.shape[2]] += self.centers[label, which]
        return x @ self.rotation / self.unit

    def log_likelihood(self, x: Tensor) -> Tensor:
        """See `Source`."""
        latent = (x * self.unit @ self.rotation.T)[:, : self.centers.shape[2]]
        far = torch.cdist(latent, self.centers.flatten(0, 1)).square()
        return (-far / 2).unflatten(1, self.centers.shape[:2]).logsumexp(2)


@dataclass(frozen=True, eq=False)
class Rings:
    """The class is the distance from the origin, in some dimensions among noise."""

    radii: Tensor
    spread: float
    inner: int
    """Dimensions of the distance."""
    rotation: Tensor
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (len(self.rotation),))

    def draw(self, label: Tensor, stream: torch.Generator) -> Tensor:
        """See `Source`."""
        radius = self.radii[label] + self.spread * torch.randn(len(label), generator=stream)
        x = torch.randn(len(label), len(self.rotation), generator=stream)
        inner = x[:, : self.inner]
        x[:, : self.inner] = radius[:, None] * inner / inner.norm(dim=1, keepdim=True)
        return x @ self.rotation

    def log_likelihood(self, x: Tensor) -> Tensor:
        """See `Source`."""
        # A radius drawn below 0 points the other way, at the absolute distance.
        radius = (x @ self.rotation.T)[:, : self.inner].norm(dim=1, keepdim=True)
        both = torch.stack([radius - self.radii, radius + self.radii])
        return (-(both / self.spread).square() / 2).logsumexp(0)


@dataclass(frozen=True, eq=False)
class Patterns:
    """A pattern of the class, of either sign, somewhere in a sequence of noise."""

    patterns: Tensor
    """(classes, channels, length)."""
    steps: int
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (self.patterns.shape[1], self.steps))

    def draw(self, label: Tensor, stream: torch.Generator) -> Tensor:
        """See `Source`."""
        n, (channels, length) = len(label), self.patterns.shape[1:]
        start = torch.randint(self.steps - length + 1, (n,), generator=stream)
        sign = torch.randint(2, (n, 1, 1), generator=stream) * 2 - 1
        x = torch.randn(n, channels, self.steps, generator=stream)
        here = (start[:, None] + torch.arange(length))[:, None].expand(n, channels, length)
        return x.scatter_add(2, here, sign * self.patterns[label])

    def log_likelihood(self, x: Tensor) -> Tensor:
        """See `Source`."""
        match = torch.nn.functional.conv1d(x, self.patterns)
        energy = self.patterns.square().sum((1, 2))[:, None] / 2
        return torch.cat([match - energy, -match - energy], 2).logsumexp(2)


def rotation(size: int, stream: torch.Generator) -> Tensor:
    """A random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(size, size, generator=stream)).Q


def blobs(classes: int, inner: int, noise: int, scale: float, stream: torch.Generator) -> Clusters:
    """One cluster per class: a linear reader sees it, and a random encoder keeps much of it."""
    centers = scale * torch.randn(classes, 1, inner, generator=stream)
    return Clusters(centers, rotation(inner + noise, stream))


def signs(classes: int, inner: int, noise: int, scale: float, stream: torch.Generator) -> Clusters:
    """Two opposite clusters per class: the means of all classes coincide."""
    center = scale * torch.randn(classes, 1, inner, generator=stream)
    return Clusters(torch.cat([center, -center], 1), rotation(inner + noise, stream))


def corners(
    classes: int, inner: int, noise: int, scale: float, stream: torch.Generator
) -> Clusters:
    """Each class has an equal share of a cube's corners; XOR with two on a square."""
    cube = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * inner)
    each = min(4, len(cube) // classes)
    if classes == 2:  # parity: a corner's neighbours are of the other class
        odd = cube.prod(1) > 0
        centers = torch.stack([cube[odd], cube[~odd]])
    else:
        order = torch.randperm(len(cube), generator=stream)[: classes * each]
        centers = cube[order].unflatten(0, (classes, each))
    return Clusters(scale * centers, rotation(inner + noise, stream))


def rings(classes: int, inner: int, noise: int, scale: float, stream: torch.Generator) -> Rings:
    """Radii that grow with the scale; a random encoder keeps much of a distance."""
    radii = scale * torch.arange(1.0, classes + 1)
    return Rings(radii, 0.4, inner, rotation(inner + noise, stream))


def bayes(
    source: Source, agree: float, shares: Tensor, stream: torch.Generator, count: int = 20_000
) -> float:
    """The accuracy of the best reader of a source that shows the class in a share of samples.

    Args:
        source: The source that shows labels.
        agree: How often the label is the sample's class; otherwise it is drawn again by the shares.
        shares: Shares of the classes.
        stream: Random stream of the samples over which the largest posterior is averaged.
        count: Number of these samples.
    """
    label = shown(torch.multinomial(shares, count, True, generator=stream), agree, shares, stream)
    log = source.log_likelihood(source.draw(label, stream)) + shares.log()
    given_x = log.softmax(1)  # of the label, with the same shares as the classes
    posterior = agree * given_x + (1 - agree) * shares
    return posterior.amax(1).mean().item()


def shown(label: Tensor, agree: float, shares: Tensor, stream: torch.Generator) -> Tensor:
    """The label that a modality shows: the class, or a random one."""
    other = torch.multinomial(shares, len(label), True, generator=stream)
    keep = torch.rand(len(label), generator=stream) < agree
    return torch.where(keep, label, other)


MAKERS: dict[str, Callable[[int, int, int, float, torch.Generator], Source]] = {
    "blobs": blobs,
    "signs": signs,
    "corners": corners,
    "rings": rings,
}
