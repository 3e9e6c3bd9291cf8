import pytest
import torch

from evenly.data import Modality
from evenly.lab.inspection import LEVELS, Subject, inspect
from evenly.output import Output


def subject(kind="vector", rows=4000):
    """Three classes of which `a` tells all and `b` two; the model adds up what it is given."""
    target = torch.arange(rows) % 3
    code = torch.eye(3)[target]
    blurred = code.clone()
    blurred[target == 2] = 0.2  # of the third class b knows nothing, and would name the first
    inputs = {"a": 2 * code, "b": blurred}

    def passed(batch):
        logits = torch.stack([x.float() for x in batch["inputs"].values()]).sum(0)
        return Output(logits, {})

    batches = [
        {"inputs": {name: x[rows] for name, x in inputs.items()}, "target": target[rows],
         "index": rows, "present": {}}
        for rows in torch.arange(rows).split(1000)
    ]  # fmt: skip
    modalities = {
        name: Modality(name, kind, (3,), torch.zeros(3), torch.ones(3)) for name in inputs
    }
    return Subject(passed, batches, modalities, commonest=1)


def test_what_each_modality_is_worth_by_hand():
    """Accuracies: none 1/3, a 1, b 2/3, both 1."""
    found = inspect(subject())
    assert found["only/a"] == found["without/b"] == 1
    assert found["only/b"] == found["without/a"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["contribution/a"] == pytest.approx((1 - 1 / 3 + 1 - 2 / 3) / 2, abs=1e-3)
    assert found["contribution/b"] == pytest.approx((2 / 3 - 1 / 3 + 1 - 1) / 2, abs=1e-3)
    assert found["imbalance"] == pytest.approx(2 * 0.5 / (2 / 3) - 1, abs=2e-3)


def test_accuracy_falls_with_noise_and_the_noise_is_always_the_same():
    found = inspect(subject())
    curve = [found[f"noise_{level:g}/a"] for level in LEVELS]
    assert curve[0] > 0.98
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 0.7
    assert inspect(subject()) == found


def test_a_small_deviation_gets_small_noise():
    quiet = subject()
    for modality in quiet.modalities.values():
        modality.std.mul_(1e-3)
    assert all(inspect(quiet)[f"noise_{level:g}/a"] == 1 for level in LEVELS)


def test_texts_get_no_noise_and_one_modality_has_no_share():
    assert not any(name.startswith("noise") for name in inspect(subject("text")))
    one = subject()
    found = inspect(Subject(one.passed, one.batches, {"a": one.modalities["a"]}, 1))
    assert {name.partition("/")[0].partition("_")[0] for name in found} == {"noise"}
