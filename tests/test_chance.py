import math

import pytest
import torch

from evenly.chance import orders, stream, uniform

COUNT = 100_000


def splitmix64(x):
    """The generator's output for state x, in plain integers (Steele, Lea, Flood, 2014)."""
    whole = 2**64
    z = (x + 0x9E3779B97F4A7C15) % whole
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % whole
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % whole
    return z ^ (z >> 31)


def reference(index, *salt):
    state = 0
    for number in salt:
        state = splitmix64(state ^ (number % 2**64))
    return (splitmix64((index + state) % 2**64) >> 40) / 2**24


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x, y]).double())[0, 1])


def test_the_reference_is_splitmix64():
    """The first numbers of the generator that starts at 0, as they are published."""
    gamma = 0x9E3779B97F4A7C15
    found = [splitmix64(n * gamma % 2**64) for n in range(3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("salt", [(), (0,), (7,), (0, 0), (3, 1, 4), (-1, 2**63), (2**64 + 5,)])
def test_equals_the_reference_bit_for_bit(salt):
    index = [0, 1, 2, 3, 36, 1000, 2**31, 2**40 + 1, 2**63 - 1]
    found = uniform(torch.tensor(index), *salt)
    assert found.dtype == torch.float32
    assert found.tolist() == [reference(i, *salt) for i in index]


def test_range_and_mean():
    x = uniform(torch.arange(COUNT), 0, 1).double()
    assert 0 <= float(x.min()) < 1e-4
    assert 1 - 1e-4 < float(x.max()) < 1
    assert float(x.mean()) == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / COUNT))
    assert float(x.var()) == pytest.approx(1 / 12, rel=0.02)


def test_every_tenth_is_equally_full():
    count = torch.histc(uniform(torch.arange(COUNT), 5), bins=10, min=0, max=1)
    # χ² with 9 degrees of freedom is above 28 once in a thousand
    assert float(((count - COUNT / 10).square() / (COUNT / 10)).sum()) < 28


@pytest.mark.parametrize("other", [(0, 2), (1, 1), (1, 0), (0, 1, 0), (0,), (), (-1, 1)])
def test_another_salt_gives_independent_numbers(other):
    index = torch.arange(COUNT)
    x, y = uniform(index, 0, 1), uniform(index, *other)
    assert abs(correlation(x, y)) < 5 / math.sqrt(COUNT)
    # nor are they the same numbers of other samples
    for shift in (1, 2, 64):
        assert abs(correlation(x[shift:], y[:-shift])) < 5 / math.sqrt(COUNT)


def test_neighbours_are_independent():
    x = uniform(torch.arange(COUNT), 0, 1)
    assert abs(correlation(x[1:], x[:-1])) < 5 / math.sqrt(COUNT)


def test_a_function_of_the_position_only():
    """Whatever the order, the batch and the integer type."""
    index = torch.arange(60)
    whole = uniform(index, 2, 9)
    order = torch.randperm(60)
    assert torch.equal(uniform(order, 2, 9), whole[order])
    parts = torch.cat([uniform(part, 2, 9) for part in index.split(7)])
    assert torch.equal(parts, whole)
    assert torch.equal(uniform(index.int(), 2, 9), whole)
    assert torch.equal(uniform(index[:0], 2, 9), whole[:0])


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0, 5), (3, 0), (3, 1_000_002), (-1, 2)])
def test_a_stream_is_that_of_seed_and_step(seed, step):
    """Numbers that runs of before were made with."""
    found = torch.rand(5, generator=stream(torch.device("cpu"), seed, step))
    expected = torch.Generator().manual_seed(seed * 1_000_003 + step)
    assert torch.equal(found, torch.rand(5, generator=expected))


def test_no_stream_is_that_of_another_seed_or_step():
    drawn = [
        tuple(torch.rand(3, generator=stream(torch.device("cpu"), seed, step)).tolist())
        for seed in range(5)
        for step in range(20)
    ]
    assert len(set(drawn)) == 100


def test_orders_are_permutations():
    found = orders(3, 50, stream(torch.device("cpu"), 1, 2))
    assert found.sort(1).values.tolist() == [list(range(50))] * 3
    assert len({tuple(order) for order in found.tolist()}) == 3


def test_no_random_stream_is_touched():
    torch.manual_seed(3)
    uniform(torch.arange(5), 1)
    torch.rand(5, generator=stream(torch.device("cpu"), 3, 1))
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
