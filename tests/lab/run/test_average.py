from dataclasses import replace

import pytest
import torch
from torch import nn

from evenly import Probe, Relearn
from evenly.lab.run.average import Average
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.method import Method
from support import forward, loaders

TRAINING = Training(
    data="synthetic(train=96,val=62,test=61,classes=3,information=2)",
    epochs=4, diagnose_every=0, width=8, lr=0.05, batch_size=32, precision="32",
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.BatchNorm1d(3)})


@pytest.fixture
def probe(model):
    return Probe(model, forward, *loaders())


def moved(model, to):
    """Sets all numbers of a model."""
    with torch.no_grad():
        for x in model.state_dict().values():
            x.fill_(to)


def test_the_first_steps_count_more(model):
    moved(model, 1.0)
    average = Average(model, 0.5)
    expected = 1.0
    for step in range(1, 12):
        moved(model, step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    found = average.weights()
    assert found["a.weight"].flatten().tolist() == pytest.approx([expected] * 6)
    assert found["b.running_mean"].tolist() == pytest.approx([expected] * 3)
    assert found["b.num_batches_tracked"] == 11


def test_tied_weights_are_averaged_once(model):
    model["c"] = nn.Sequential(model["a"])
    moved(model, 1.0)
    average = Average(model, 0.5)
    moved(model, 3.0)
    with average.applied():
        assert model["a"].weight.unique() == 1.0
    assert model["a"].weight.unique() == 3.0
    found = average.weights()
    assert found.keys() == model.state_dict().keys()
    assert found["a.weight"].unique() == found["c.0.weight"].unique() == 1.0


def test_it_stands_in_the_models_place_for_a_while(model):
    moved(model, 1.0)
    average = Average(model, 0.5)
    moved(model, 3.0)
    with average.applied():
        assert model["a"].weight.unique() == 1.0
        model["a"].weight.data.fill_(2.0)
    assert model["a"].weight.unique() == 3.0
    assert average.weights()["a.weight"].unique() == 2.0


def test_it_goes_on_from_its_state(model):
    average = Average(model, 0.9)
    moved(model, 2.0)
    average.update()
    state = average.state_dict()
    again = Average(model, 0.9)
    again.load_state_dict(state)
    for one in (average, again):
        moved(model, 4.0)
        one.update()
    assert torch.equal(average.weights()["a.weight"], again.weights()["a.weight"])


def test_a_re_learning_pulls_it_back_as_it_does_the_weights(model, probe):
    moved(model, 1.0)
    method = Relearn({"a": model["a"]})
    method._take_initial(0)
    average = Average(model, 0.5)
    moved(model, 5.0)
    average.update()  # of 1 and 5, at 2 / 11
    mean = 1 * 2 / 11 + 5 * 9 / 11

    def change(epoch, probe):
        for p in model["a"].parameters():
            p.data.lerp_(torch.ones_like(p), 0.25)
        model["b"].weight.data.fill_(7.0)  # by something else
        method.history[3] = {"a": {"strength": 0.25}}

    method.before_epoch = change
    average.before_epoch(method, 3, probe)
    found = average.weights()
    assert model["a"].weight.unique() == 4.0
    assert found["a.weight"].flatten().tolist() == pytest.approx([0.75 * mean + 0.25] * 6)
    assert found["b.weight"].unique() == 7.0
    assert found["b.bias"].tolist() == pytest.approx([mean] * 3)
    method.before_epoch = lambda epoch, probe: None  # as it has been done already
    average.before_epoch(method, 3, probe)
    assert average.weights()["a.weight"].equal(found["a.weight"])


def test_what_another_method_writes_begins_anew(model, probe):
    moved(model, 1.0)
    average = Average(model, 0.5)
    method = Method()
    method.before_epoch = lambda epoch, probe: moved(model, 3.0)
    average.before_epoch(method, 0, probe)
    assert average.weights()["a.weight"].unique() == 3.0


def test_the_average_is_judged_and_kept_and_training_goes_on_without_it(tmp_path):
    plain = run_cell(Cell(TRAINING, "joint", 0), tmp_path / "plain")
    cell = Cell(replace(TRAINING, ema=0.8), "joint", 0)
    result = run_cell(cell, tmp_path / "ema")
    last = [torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("plain", "ema")]
    for name, x in last[0]["state_dict"].items():
        assert torch.equal(x, last[1]["state_dict"][name])
    best = torch.load(tmp_path / "ema" / "best.ckpt", weights_only=True)["state_dict"]
    assert best.keys() == last[0]["state_dict"].keys()
    assert result.metrics["val"]["loss"] != plain.metrics["val"]["loss"]
    assert result.metrics["val"]["accuracy"] == pytest.approx(
        max(row["val_accuracy"] for row in last[1]["record"]["rows"])
    )
