"""Whether enough samples have each modality for the diagnoses that runs plan."""

import pytest
import torch

from evenly.data import Data
from evenly.data.tasks import Numbers
from evenly.lab.run.prepare import prepare
from evenly.lab.run.settings import Cell, Training

ROWS = {"train": torch.arange(60), "val": torch.arange(60, 90), "test": torch.arange(90, 120)}


def prepared(methods, having=(60, 30, 30), **more):
    """Prepares runs on six classes, with x in so many samples of each split."""
    here = torch.zeros(120, dtype=torch.bool)
    for rows, count in zip(ROWS.values(), having, strict=True):
        here[rows[:count]] = True
    inputs = {"x": torch.randn(120, 2), "y": torch.randn(120, 2)}
    data = Data("mine", inputs, torch.arange(120) % 6, ROWS, list("abcdef"), present={"x": here})
    return prepare([Cell(Training(**more), method, 0) for method in methods], data)


def refused(message, *arguments, **more):
    with pytest.raises(ValueError, match=f"^'x' is in {message}$"):
        prepared(*arguments, **more)


FEW = (60, 5, 30)
IN_VAL = "5 of 30 samples of the validation split, fewer than the 6 clusters of a diagnosis"


def test_every_run_of_a_comparison_counts():
    for methods in (["unimodal(modality=y)", "joint"], ["joint", "unimodal(modality=y)"]):
        refused(rf"{IN_VAL}\. Set --diagnose-every 0\.", methods, FEW)
    assert prepared(["unimodal(modality=y)"], FEW)
    assert prepared(["joint"], (6, 6, 0))
    both = r"Set --diagnose-every 0 and gap=stable in relearn\."
    refused(rf"{IN_VAL}\. {both}", ["joint", "relearn"], FEW)
    refused(
        rf"{IN_VAL}\. Lower --missing\.x 0\.84, or {both[0].lower()}{both[1:]}",
        ["unimodal(modality=y)", "relearn+ogm"], missing={"x": 0.84},
    )  # fmt: skip


def test_what_methods_look_at_by_themselves():
    refused(
        rf"{IN_VAL}\. Set gap=stable in relearn\.", ["joint", "relearn+ogm"], FEW,
        diagnose_every=0,
    )  # fmt: skip
    for method in ("joint", "remedy", "relearn(gap=stable)+ogm", "relearn(times=0)"):
        assert prepared([method], FEW, diagnose_every=0)


def test_the_estimator_says_how_many_it_needs():
    assert prepared(["relearn(gap=shared)"], (6, 1, 0), diagnose_every=0)
    refused(
        r"5 of 60 samples of the training split, fewer than the 6 clusters of a diagnosis\. Set "
        r"gap=stable in relearn\.",
        ["relearn(gap=shared)"], (5, 30, 30), diagnose_every=0,
    )  # fmt: skip
    assert prepared(["remedy"], (2, 1, 0), diagnose_every=0)
    refused(
        r"0 of 30 samples of the validation split, but remedy takes at least 1\. Leave out "
        r"remedy\.",
        ["remedy"], (60, 0, 30), diagnose_every=0,
    )  # fmt: skip
    refused(
        r"0 of 30 samples of the validation split, fewer than the 6 clusters of a diagnosis\. Set "
        r"--diagnose-every 0 and leave out relearn\.",
        ["relearn"], (60, 0, 30),
    )  # fmt: skip


def test_only_what_is_measured_looks_at_the_test_split():
    rare = {"protocol": "paper", "missing_test": {"x": 0.9}}
    assert prepared(["relearn"], diagnose_every=0, **rare)
    refused(
        r"3 of 30 samples of the test split, fewer than the 6 clusters of a diagnosis\. Lower "
        r"--missing-test\.x 0\.9, or set --diagnose-every 0\.",
        ["relearn"], **rare,
    )  # fmt: skip
    assert prepared(["joint"], missing_test={"x": 0.9})


def test_the_clusters_are_those_of_the_task():
    """Eight of the training and four of the validation samples have x."""
    inputs = {"x": torch.randn(120, 2), "y": torch.randn(120, 2)}
    here = {"x": torch.arange(120) % 30 < 4}
    numbers, labels = torch.rand(120, 1), (torch.arange(120)[:, None] % torch.arange(2, 8)) < 1
    of_numbers = numbers, Numbers(("size",)), ["size"], r"8 of 60 samples of the training .* 10 "
    several = torch.cat([numbers, numbers.square()], 1), Numbers(("a", "b")), ["a", "b"]
    of_labels = labels.float(), None, list("abcdef"), r"4 of 30 samples of the validation .* 6 "
    for target, task, names, said in (of_numbers, (*several, of_numbers[3]), of_labels):
        data = Data("mine", inputs, target, ROWS, names, present=here, task=task)
        with pytest.raises(ValueError, match=rf"'x' is in {said}clusters .*\. Set --d"):
            prepare([Cell(Training(), "joint", 0)], data)
        assert prepare([Cell(Training(), "unimodal(modality=y)", 0)], data)
        assert prepare([Cell(Training(diagnose_every=0), "joint", 0)], data)
