"""Modalities that are taken from samples, at rates that are asked for."""

import pytest
import torch

from evenly.data import Data, Ragged
from evenly.data.missing import lost, unconditional


@pytest.mark.parametrize(
    "rates",
    [
        (0.3, 0.0),
        (0.3, 0.3),
        (0.5, 0.5),
        (1.0, 0.0),
        (0.3, 0.3, 0.3),
        (0.9, 0.9, 0.2),
        (1.0, 0.5, 0.0),
    ],
)
def test_each_rate_is_kept_and_each_sample_keeps_one(rates):
    here = torch.ones(len(rates), 1001, dtype=torch.bool)
    gone = lost(rates, here, torch.arange(1001), 0)
    assert gone.sum(1).tolist() == pytest.approx([1001 * rate for rate in rates], abs=1.5)
    assert not gone.all(0).any()
    assert torch.equal(gone, lost(rates, here, torch.arange(1001), 0))
    again = lost(rates, here, torch.arange(1001), 1)
    assert torch.equal(gone, again) == (rates == (1.0, 0.0))


def test_losses_are_independent_but_for_the_last_modality():
    gone = lost((0.4, 0.4, 0.0), torch.ones(3, 10_000, dtype=torch.bool), torch.arange(10_000), 0)
    assert int((gone[0] & gone[1]).sum()) == pytest.approx(1600, abs=2)
    p = unconditional([0.6, 0.6, 0.6])[0]
    assert (p - p**3) / (1 - p**3) == pytest.approx(0.6)
    assert unconditional([0.5, 0.2, 0.0]) == [0.5, 0.2, 0.0]


def test_what_samples_lack_already_leaves_them_less_to_lose():
    here = torch.ones(3, 900, dtype=torch.bool)
    here[:2, :300], here[0, 300:600] = False, False  # one modality, two, and all
    gone = lost((0.0, 0.6, 0.6), here, torch.arange(900), 0)
    assert not (gone & ~here).any()
    assert (here & ~gone).any(0).all()
    assert not gone[:, :300].any()
    assert gone[1:, 300:600].sum(1).tolist() == [150, 150]  # 0.6 of each is more than all but one
    assert gone[1:, 600:].sum(1).tolist() == pytest.approx([180, 180], abs=1)


def data():
    n = 40
    length = 1 + torch.arange(n) % 3
    steps = Ragged(torch.ones(int(length.sum()), 2), length.cumsum(0) - length, length)
    rows = {"train": torch.arange(20), "val": torch.arange(20, 30), "test": torch.arange(30, 40)}
    inputs = {"x": torch.ones(n, 3), "steps": steps}
    return Data("mine", inputs, torch.arange(n) % 2, rows, ["no", "yes"])


RATES = {"train": {"x": 0.5}, "val": {"x": 0.5}, "test": {"steps": 0.3, "x": 0.2}}


def test_inputs_are_zeros_where_a_modality_is_taken():
    found = data().missing(RATES, 0)
    assert found.lacks("train") == {"x": 10}
    assert found.lacks("val") == {"x": 5}
    assert found.lacks("test") == {"x": 2, "steps": 3}
    assert data().lacks("train") == {}
    whole = found.split("test").__getitems__(range(10))
    here = whole["present"]
    assert torch.equal(whole["inputs"]["x"].any(1), here["x"])
    steps = whole["inputs"]["steps"]
    assert torch.equal(steps.length > 0, here["steps"])
    assert torch.equal(steps.values.any(2).sum(1), steps.length)
    one = found.split("test").__getitems__([7])
    assert torch.equal(one["present"]["steps"], here["steps"][[7]])
    noisy = data().noisy({"x": 1.0}).missing(RATES, 0).split("test").__getitems__(range(10))
    assert torch.equal(noisy["inputs"]["x"].any(1), here["x"])


def test_nothing_is_taken_where_nothing_is_asked_for():
    whole = data()
    assert whole.missing({"train": {}, "test": {"x": 0.0}}, 0) is whole


def test_rates_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match=r"add up to 1\.2 in the val split; with 2 modalities"):
        data().missing({"val": {"x": 0.6, "steps": 0.6}}, 0)
    with pytest.raises(ValueError, match="unknown modality 'ear'"):
        data().missing({"train": {"ear": 0.5}}, 0)
