"""Numbers that are written as texts."""

import numpy as np
import pytest

from evenly.data.raw.figures import is_cut, is_of_figures, is_unclear, numbers_of

WRITTEN = {
    "a Python list": ("[0.5, -1e3, 2]", [0.5, -1000, 2]),
    "a tuple": ("(1, 2.)", [1, 2]),
    "a tuple of one": ("(1,)", [1]),
    "commas": ("0.5,1,2", [0.5, 1, 2]),
    "blanks": ("0.5 1  2", [0.5, 1, 2]),
    "semicolons": ("0.5;1;2", [0.5, 1, 2]),
    "NumPy": (str(np.arange(30.0)), list(range(30))),
    "NumPy's repr": (repr(np.arange(40, dtype=np.float32)), list(range(40))),
    "NumPy 2's scalars": (str([np.float64(0.5), np.int64(2)]), [0.5, 2]),
    "PyTorch": ("tensor([0.5000, 1.0000], device='cuda:0')", [0.5, 1]),
    "lists of lists": ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
    "NumPy's matrix": ("[[1. 2.]\n [3. 4.]]", [[1, 2], [3, 4]]),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_lists_and_arrays_are_numbers(form):
    text, values = WRITTEN[form]
    (found,) = numbers_of([text])
    assert found.dtype == np.float64
    assert found.tolist() == values


def test_numbers_alone():
    assert numbers_of(["1", None, "-2"]) == [1, None, -2]
    assert numbers_of(["1", "+.5", "1e3"]) == [1, 0.5, 1000]
    assert numbers_of(["True", "false", None]) == [True, False, None]
    assert numbers_of([str(2**64)]) == [2**64]


def test_an_empty_list_is_nothing():
    assert numbers_of(["[]", "[ ]", "array([], dtype=float64)", None]) == [None] * 4


@pytest.mark.parametrize(
    "texts",
    [
        ["0,5", "1,25"],  # decimal commas, or pairs
        ["1,234", "12,345,678"],  # thousands, or several
        ["[1,,2]"], ["[,1]"], ["[1, 2"], ["1, 2]"], ["[[1, 2], [3]]"], ["1 2; 3 4"], ["0,5;1,5"],
        ["[1 2 ... 9]"], ["1_0"], ["0x1"], ["12%"], ["2024-01-02"], ["10:20"], ["٣"],
        ["1.234,50", "89,90"], ["1 234,50"], ["1 234", "89,90"],  # thousands, or pairs
        ["yes"], ["1", "yes"], ["[1, 2]", "no"], ["True", "1"],
    ],
)  # fmt: skip
def test_what_is_no_number_or_may_be_two_things(texts):
    assert numbers_of(texts) is None


def test_decimal_commas_where_commas_part_no_cells():
    assert numbers_of(["0,5", "1", "-2,25"], comma=True) == [0.5, 1, -2.25]
    assert numbers_of(["1,234", "567"], comma=True) is None  # or 1234
    assert numbers_of(["0,123", "1,234"], comma=True) == [0.123, 1.234]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1.234,50", "89,90", "7"], [1234.5, 89.9, 7]),
        (["-1.234", "1,234", "0,5"], [-1234, 1.234, 0.5]),
        (["1.234.567", "1,234"], [1234567, 1.234]),
        (["1 234,50", "89,90"], [1234.5, 89.9]),
        (["1\u202f234", "0,5"], [1234, 0.5]),
        (["1.234", "1500"], [1.234, 1500]),
    ],
)
def test_marks_between_thousands_beside_decimal_commas(texts, values):
    assert numbers_of(texts, comma=True) == values


@pytest.mark.parametrize(
    "texts", [["999", "1.234"], ["1 234"], ["12", "1 234 567"], ["1.5", "0,5"]]
)
def test_nothing_tells_thousands_from_fractions_or_lists(texts):
    assert is_unclear(texts, comma=True)
    assert numbers_of(texts, comma=True) is None


@pytest.mark.parametrize("text", ["0,5 1,5", "[0,5, 1,5]"])
def test_decimal_commas_in_lists_do_not_part_numbers(text):
    assert numbers_of([text], comma=True) is None


def test_figures_without_words():
    figures = ["5", "1,234.5", "12%", "$5", "2024-01-02T10:00:00Z", "(1+2j)", "[1 ... 2]", "1 nan"]
    assert all(map(is_of_figures, figures))
    words = ["", "...", "5 kg", "a1", "👍 10", "x" * 10**6, "e", "nan"]
    assert not any(map(is_of_figures, words))
    assert is_cut("[0.1 0.2 ...\n 0.9]")
    assert not is_cut("well ... 5 of them")
