"""Random numbers as a function of seed and step, or of a sample: a resumed run repeats them.

A sample's numbers are the same in any batch, on any rank, in any order.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = (1 << 64) - 1


def uniform(index: Int[Tensor, " n"], *salt: int) -> Float[Tensor, " n"]:
    """A number in [0, 1) for each sample, as a function of its position and the salt.

    It is a multiple of 2⁻²⁴, which a float holds exactly: the upper bits of a hash.

    Methods that mask samples use it, so that a mask neither depends on how samples are split into
    batches, passes and ranks, nor touches a random stream.

    Args:
        index: Position of each sample in its data set.
        salt: Anything else the number depends on, such as seed and step; other salts give
            independent numbers.
    """
    state = 0
    for number in salt:
        state = _mix_int(state ^ (number & _MASK))
    bits = _mix(index.long() + _signed(state))
    return _shifted(bits, 40).float() * 2.0**-24


def mixed(seed: int, step: int) -> int:
    """A seed for one step (or epoch) of a run; runs with other seeds get other ones."""
    return seed * 1_000_003 + step


def stream(device: torch.device, seed: int, step: int) -> torch.Generator:
    """The random stream of one step, the same on all ranks and separate from the global one.

    Args:
        device: Where numbers are drawn.
        seed: Seed of the run.
        step: The step (or part of a model), below 1 000 003, where the streams of the next seed
            begin.
    """
    return torch.Generator(device).manual_seed(mixed(seed, step))


def orders(count: int, length: int, numbers: torch.Generator) -> Int[Tensor, "s n"]:
    """Several permutations of `length` rows, on the device of the stream that draws them."""
    drawn = torch.rand(count, length, generator=numbers, device=numbers.device, dtype=torch.float64)
    return drawn.argsort(1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), on wrapping int64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _mix_int(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """A logical shift to the right; int64's own keeps the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
