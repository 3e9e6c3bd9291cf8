"""What the tests' check of annotations finds where they import evenly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from checked import checked
from evenly.diagnosis.kmeans import kmeans

check = checked(typechecker=beartype)


@check
def product(x: Float[Tensor, "n d"], y: Mapping[str, Float[Tensor, "n k"]], wide: bool = True):
    return product({"y": x}["y"], y, wide=False) if wide else x.T @ y["y"]


@check
def first(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return x[0]


@check
def zeros(n: int) -> Float[Tensor, "{n}"]:
    return torch.zeros(2)


@check
def each(x: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, " d"]]:
    yield from x


@check
def name(number: int, of: "Nothing | int" = 0) -> str:
    return str(number) if number else number


@check
@dataclass
class Pair:
    x: Float[Tensor, " n"]
    y: Float[Tensor, " n"]


def test_what_fits_passes():
    x = torch.ones(3, 2)
    assert product(x, {"y": torch.ones(3, 4)}).shape == (2, 4)
    assert first(x[:2]).shape == zeros(2).shape == (2,)
    assert len(list(each(x))) == 3
    assert name(5, of="any") == "5"
    assert Pair(x[0], x[1]).x is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda: product(torch.ones(3, 2), {"y": torch.ones(4, 4)}),
        lambda: product(torch.ones(3, 2), {"y": torch.ones(3)}),
        lambda: product(torch.ones(3, 2, dtype=torch.int), {"y": torch.ones(3, 4)}),
        lambda: first(torch.ones(3, 2)),
        lambda: zeros(3),
        lambda: each(torch.ones(3)),
        lambda: name("5"),
        lambda: name(0),
        lambda: Pair(torch.ones(2), torch.ones(3)),
    ],
)
def test_what_does_not_fit_is_found(call):
    with pytest.raises(Exception, match=r"violates type hint|Type-check error"):
        call()


def test_it_is_what_evenly_is_imported_with():
    with pytest.raises(Exception, match="violates type hint"):
        kmeans(torch.ones(3), 2)
