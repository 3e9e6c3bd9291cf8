import pytest
import torch
from torch import nn

from evenly import split_linear
from unchecked import error_of


def test_split_linear_by_hand():
    head = nn.Linear(3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        head.bias.copy_(torch.tensor([10.0, 20.0]))
    features = {"one": torch.tensor([[1.0, 1.0]]), "two": torch.tensor([[2.0]])}
    parts = split_linear(head, features)
    assert parts["one"].tolist() == [[1 + 2 + 5, 4 + 5 + 10]]
    assert parts["two"].tolist() == [[3 * 2 + 5, 6 * 2 + 10]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [[4], [2, 3], [1, 2, 3, 4]])
def test_the_parts_add_up_to_the_fused_logits(widths, bias):
    head = nn.Linear(sum(widths), 5, bias=bias).double()
    features = {str(w): torch.randn(7, w, dtype=torch.float64) for w in widths}
    total = torch.stack(list(split_linear(head, features).values())).sum(0)
    torch.testing.assert_close(total, head(torch.cat(list(features.values()), 1)))


def test_widths_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"takes 3 inputs, but the features have 4"):
        split_linear(nn.Linear(3, 2), {"a": torch.zeros(1, 4)})


def test_numbers_that_are_none():
    """As a user meets it: annotations are not checked."""
    code = (
        "import torch, evenly\nfor index in {}: evenly.Output(torch.zeros(2, 3), {{}}, index=index)"
    )
    found = error_of(code.format("[torch.arange(2), None, torch.tensor([0.0, 1.0])]"))
    assert "whole numbers, one for each sample; found float32. Pass them as int64" in found
    assert "found list" in error_of(code.format("[[0, 1]]"))
    found = error_of(code.format("[torch.arange(3)]"))
    assert "UserError: Output.index has shape (3,) for logits of shape (2, 3)" in found
