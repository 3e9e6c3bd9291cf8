import csv
import json
import logging
import math
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from evenly.data import Data, Ragged, load, save_npz
from evenly.lab.run import precision, run
from evenly.lab.run.build import build_model, with_missing
from evenly.lab.run.hold import TakenOver
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Refused, Training
from full import no_file_above

DATA = "synthetic(train=120,val=60,test=90,classes=3,information=2)"
TRAINING = Training(data=DATA, epochs=4, diagnose_every=2, width=8, precision="32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "relearn-0"
    told = []
    result = run_cell(
        Cell(TRAINING, "relearn(every=1,times=2)", 0), folder, lambda *news: told.append(news)
    )
    return folder, result, told


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_all_of_it(finished):
    folder, result, told = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "last.ckpt",
        "best.ckpt",
        "predictions.npz",
        "features.npz",
        "result.json",
    }
    assert any("tfevents" in path.name for path in folder.iterdir())
    assert Result.read(folder) == result
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 0
    assert [epoch for epoch, _ in told] == [0, 1, 2, 3]


def test_metrics_along_training(finished):
    folder, _, told = finished
    found = rows(folder)
    assert [row["epoch"] for row in found] == ["0", "1", "2", "3"]
    measured = [bool(row["gap/m1"]) for row in found]
    assert measured == [True, False, True, True]  # every other epoch, and the last
    for row in found:
        if row["gap/m2"]:
            gap = abs(float(row["purity_train/m2"]) - float(row["purity_val/m2"]))
            assert float(row["gap/m2"]) == pytest.approx(gap)
            assert 0 < float(row["gap_error/m2"]) < 0.5
    # every=1 re-learns before the 0-based epochs 2 and 3
    assert [bool(row["relearn_strength/m1"]) for row in found] == [False, False, True, True]
    for row in found[2:]:
        strength = math.tanh(3 * float(row["relearn_gap/m1"]))
        assert float(row["relearn_strength/m1"]) == pytest.approx(strength)
        assert 0 < float(row["relearn_gap_error/m1"]) < 0.5
    # The command says at its end, once for all runs, what the method would log in each.
    assert not logging.getLogger("evenly.methods.relearn").isEnabledFor(logging.WARNING)
    assert [float(row["val_accuracy"]) for row in found] == [accuracy for _, accuracy in told]


def test_selected_by_validation_and_tested_with_those_weights(finished):
    folder, result, told = finished
    accuracies = [accuracy for _, accuracy in told]
    assert result.best_epoch == accuracies.index(max(accuracies))
    data = load(DATA)
    model = build_model(data, Cell(TRAINING, "joint", 0))
    model.load_state_dict(torch.load(folder / "best.ckpt", weights_only=True)["state_dict"])
    test = data.split("test")
    batch = test.__getitems__(range(len(test)))
    with torch.no_grad():
        logits = model.eval()(batch["inputs"]).logits
    accuracy = float((logits.argmax(1) == test.target).float().mean())
    assert result.metrics["test"]["accuracy"] == pytest.approx(accuracy)
    with np.load(folder / "predictions.npz") as saved:
        assert np.allclose(saved["probabilities"], logits.softmax(1), atol=1e-5)
        assert np.array_equal(saved["target"], test.target)
        assert np.array_equal(saved["index"], np.arange(90))
    assert result.metrics["val"]["accuracy"] == pytest.approx(max(accuracies))


@pytest.mark.parametrize(("select", "best"), [("loss", min), ("balanced_accuracy", max)])
def test_selected_by_another_metric_also_by_a_run_taken_up(select, best, tmp_path):
    training = replace(TRAINING, select=select, diagnose_every=0, checkpoint_every=0.0)
    result = run_cell(Cell(training, "joint", 0), tmp_path / "whole")
    values = [float(row[f"val_{select}"]) for row in rows(tmp_path / "whole")]
    assert result.best_epoch == values.index(best(values))
    assert result.metrics["val"][select] == pytest.approx(best(values), rel=1e-5)

    def stopped(epoch, value):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(Cell(training, "joint", 0), tmp_path / "stopped", stopped)
    again = run_cell(Cell(training, "joint", 0), tmp_path / "stopped")
    assert (again.best_epoch, again.metrics) == (result.best_epoch, result.metrics)


@pytest.mark.parametrize("select", ["loss", "accuracy"])
def test_a_run_that_diverges_fails(select, tmp_path):
    """By accuracy alone, it would seem to predict the first class."""
    training = replace(TRAINING, select=select, diagnose_every=0, lr=1e30)
    with pytest.raises(ValueError, match=r"validation split are NaN .* Training has diverged"):
        run_cell(Cell(training, "joint", 0), tmp_path, tests=False)


def test_a_finished_run_is_not_repeated(finished, monkeypatch):
    folder, result, _ = finished
    monkeypatch.setattr(run, "load_data", lambda training: pytest.fail("it trains again"))
    assert run_cell(Cell(TRAINING, "relearn(every=1,times=2)", 0), folder) == result


def test_the_test_split_is_read_after_selection_and_only_then(tmp_path, monkeypatch):
    """A poisoned split: asked for before training has ended, it raises."""
    split, asked = Data.split, []

    def poisoned(self, name):
        if name == "test":
            assert (tmp_path / "last.ckpt").exists(), "test read before training has ended"
            last = torch.load(tmp_path / "last.ckpt", weights_only=True)
            assert last["record"]["epoch"] == TRAINING.epochs, "test read before training has ended"
            asked.append(name)
        return split(self, name)

    monkeypatch.setattr(Data, "split", poisoned)
    run_cell(Cell(TRAINING, "relearn(every=1,times=2)", 0), tmp_path)
    assert asked == ["test"]
    assert (tmp_path / "features.npz").is_file()


def test_the_paper_protocol_selects_on_the_test_split(tmp_path):
    """Each epoch is judged on it, and nothing of the training itself changes."""
    paper, fair = tmp_path / "paper", tmp_path / "fair"
    found = run_cell(Cell(replace(TRAINING, protocol="paper"), "relearn(every=1)", 0), paper)
    run_cell(Cell(TRAINING, "relearn(every=1)", 0), fair)
    judged = [float(row["test_accuracy"]) for row in rows(paper)]
    assert found.best_epoch == judged.index(max(judged))
    assert found.metrics["test"]["accuracy"] == pytest.approx(max(judged))
    assert [row["train_loss"] for row in rows(paper)] == [row["train_loss"] for row in rows(fair)]
    assert [row["val_loss"] for row in rows(paper)] == [row["val_loss"] for row in rows(fair)]
    assert "test_accuracy" not in rows(fair)[0]


def test_the_selected_model_is_looked_at(finished):
    _, result, _ = finished
    found = result.metrics["test"]
    for name in ("m1", "m2"):
        for metric in ("only", "without", "contribution", "probe", "noise_0.5", "noise_4"):
            assert f"{metric}/{name}" in found
    total = found["contribution/m1"] + found["contribution/m2"]
    commonest = load(DATA).split("test").target.eq(0).float().mean()
    assert total == pytest.approx(found["accuracy"] - float(commonest), abs=1e-6)
    assert found["only/m1"] == found["without/m2"]
    assert {"calibration_error", "brier"} <= set(found)
    assert result.flops > 0
    assert result.flops % TRAINING.epochs == 0  # each epoch's first step is of 64 samples


def test_features_of_the_selected_model_are_kept(finished):
    folder, _, _ = finished
    data = load(DATA)
    model = build_model(data, Cell(TRAINING, "joint", 0))
    model.load_state_dict(torch.load(folder / "best.ckpt", weights_only=True)["state_dict"])
    test = data.split("test")
    with torch.no_grad():
        output = model.eval()(test.__getitems__(range(len(test)))["inputs"])
    with np.load(folder / "features.npz") as kept:
        assert list(kept["modalities"]) == ["m1", "m2"]
        assert np.array_equal(kept["row"], np.arange(90))  # fewer than are chosen
        assert np.array_equal(kept["target"], test.target)
        assert np.array_equal(kept["predicted"], output.logits.argmax(1))
        for place, x in enumerate(output.features.values()):
            assert kept[f"features_{place}"].dtype == np.float16
            expected = (x / x.abs().max()).numpy()
            assert kept[f"features_{place}"] == pytest.approx(expected, abs=1e-3)


def test_methods_start_from_the_same_weights_and_batches(tmp_path):
    """Until the first re-learning D&R is joint training, to the last bit."""
    joint, relearn = tmp_path / "joint", tmp_path / "relearn"
    run_cell(Cell(TRAINING, "joint", 0), joint)
    run_cell(Cell(TRAINING, "relearn(every=1,times=1)", 0), relearn)
    for epoch in (0, 1):
        ours, theirs = rows(joint)[epoch], rows(relearn)[epoch]
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["val_loss"] == theirs["val_loss"]
    assert rows(joint)[3]["train_loss"] != rows(relearn)[3]["train_loss"]


def in_part(seed=None):
    """Vectors, images and sequences; drawn anew where they are missing, if there is a seed."""
    n = 180
    draws = torch.Generator().manual_seed(0)
    target = torch.arange(n) % 3
    length = 1 + torch.arange(n) % 4
    inputs = {
        "x": torch.randn(n, 4, generator=draws) + target[:, None],
        "eye": torch.randn(n, 1, 6, 6, generator=draws),
        "steps": torch.randn(int(length.sum()), 2, generator=draws),
    }
    rows = {"train": torch.arange(90), "val": torch.arange(90, 130), "test": torch.arange(130, n)}

    def made(inputs, modalities=None):
        steps = Ragged(inputs["steps"], length.cumsum(0) - length, length)
        whole = {**inputs, "steps": steps}
        return Data("mine", whole, target, rows, ["a", "b", "c"], modalities=modalities)

    whole = made(inputs)
    if seed is None:
        return whole
    for name, gone in with_missing(whole, Cell(IN_PART, "joint", 0))._taken.items():
        where = gone.repeat_interleave(length) if name == "steps" else gone
        inputs[name][where] = 1e3 * torch.randn(inputs[name][where].shape)
    return made(inputs, whole.modalities)


IN_PART = replace(
    TRAINING,
    epochs=2,
    missing={"x": 0.5, "eye": 0.4, "steps": 0.7},
    missing_test={"eye": 0.8},
    missing_token=True,
)


@pytest.mark.parametrize("method", ["relearn(every=1,times=1)", "balm"])
def test_what_stands_where_a_modality_is_missing_cannot_matter(method, tmp_path):
    """Numbers of any size in its place: all that a run measures and learns is the same."""
    found = []
    for seed in (None, 0):
        folder = tmp_path / str(seed)
        result = run_cell(Cell(IN_PART, method, 0), folder, data=in_part(seed))
        found.append((result.metrics, torch.load(folder / "best.ckpt", weights_only=True)))
    (metrics, best), (other_metrics, other_best) = found
    assert metrics == other_metrics
    weights, others = best.pop("state_dict"), other_best.pop("state_dict")
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert best == other_best
    assert any(weights[name].any() for name in weights if name.startswith("head.missing"))


def test_every_method_lacks_the_same_and_another_seed_lacks_other(tmp_path):
    data = in_part()
    here = [
        Parts.of(Cell(IN_PART, method, seed), data, Place(torch.device("cpu"), "32"))
        .split("train")
        .__getitems__(range(90))["present"]["x"]
        for method, seed in (("joint", 0), ("balm", 0), ("joint", 1))
    ]
    assert torch.equal(here[0], here[1])
    assert not torch.equal(here[0], here[2])
    assert int(here[2].sum()) == 45


def test_measuring_changes_nothing(tmp_path):
    losses = []
    for every in (0, 1):
        folder = tmp_path / str(every)
        training = Training(data=DATA, epochs=3, width=8, diagnose_every=every)
        run_cell(Cell(training, "joint", 0), folder)
        losses.append([row["train_loss"] for row in rows(folder)])
    assert losses[0] == losses[1]


def test_other_settings_in_the_folder(finished):
    folder, _, _ = finished
    (folder / "result.json").rename(folder / "kept.json")
    try:
        with pytest.raises(ValueError, match="holds runs with seed = 0, but now 1 is asked for"):
            run_cell(Cell(TRAINING, "relearn(every=1,times=2)", 1), folder)
    finally:
        (folder / "kept.json").rename(folder / "result.json")


def test_other_settings_in_the_folder_of_a_finished_run(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match="holds runs with seed = 0, but now 1 is asked for"):
        run_cell(Cell(TRAINING, "relearn(every=1,times=2)", 1), folder)


def test_data_that_have_changed_since(tmp_path):
    path = tmp_path / "a.npz"
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(path, labels, split, {"x": np.ones((60, 3))})
    cell = Cell(Training(data=str(path), epochs=1, width=4), "joint", 0)
    run_cell(cell, tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data_sha256"]
    save_npz(path, labels, split, {"x": np.zeros((60, 3))})
    with pytest.raises(ValueError, match=r"a\.npz as it was before; the file has changed since"):
        run_cell(cell, tmp_path / "run")


def test_data_that_have_changed_since_the_command_began(tmp_path):
    path = tmp_path / "a.npz"
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(path, labels, split, {"x": np.ones((60, 3))})
    cell = Cell(replace(TRAINING, data=str(path)), "joint", 0)
    began = {**cell.as_dict(), "data_sha256": "0"}
    with pytest.raises(Refused, match=r"a\.npz changed after this command began"):
        run_cell(cell, tmp_path / "run", began=began)
    assert not (tmp_path / "run").exists()


def test_a_run_names_its_versions_also_those_before_it_was_stopped(tmp_path, monkeypatch):
    def stop(epoch, value):
        raise KeyboardInterrupt

    def used():
        return yaml.safe_load((tmp_path / "config.yaml").read_text())["versions"]

    cell = Cell(replace(TRAINING, epochs=2, diagnose_every=0, checkpoint_every=0.0), "joint", 0)
    monkeypatch.setattr("evenly.lab.run.versions.version", lambda name: f"1 of {name}")
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path, stop)
    assert used().items() >= {("evenly", "1 of evenly"), ("torch", "1 of torch")}
    monkeypatch.setattr("evenly.lab.run.versions.version", lambda name: "2")
    run_cell(cell, tmp_path)
    assert used().items() >= {("evenly", "1 of evenly; 2"), ("torch", "1 of torch; 2")}


def test_what_cannot_be_built_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="unknown method 'jint'"):
        run_cell(Cell(TRAINING, "jint", 0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".last.0123abcd.ckpt").write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"whole")
    training = Training(data=DATA, epochs=1, width=8)
    run_cell(Cell(training, "joint", 0), tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".mine"]


class Lazy(nn.Module):
    """A user's encoder that learns its input's width from the first batch."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x):
        return self.layer(x)


def test_lazy_encoders_start_from_the_same_weights_whatever_the_method(tmp_path):
    training = Training(data=DATA, epochs=2, width=8, encoders={"m1": "test_run.Lazy"})
    for method in ("joint", "relearn"):
        run_cell(Cell(training, method, 0), tmp_path / method)
    losses = [[row["train_loss"] for row in rows(tmp_path / m)] for m in ("joint", "relearn")]
    assert losses[0] == losses[1]  # relearn acts from the third epoch on


def test_a_damaged_checkpoint_is_named(tmp_path):
    run_cell(Cell(TRAINING, "joint", 0), tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged \(.*\)\. Remove it"):
        run_cell(Cell(TRAINING, "joint", 0), tmp_path)


def test_precision(tmp_path):
    training = Training(data=DATA, epochs=2, width=8, precision="bf16")
    result = run_cell(Cell(training, "relearn(every=1)", 0), tmp_path)
    assert result.precision == "bf16"
    assert json.loads((tmp_path / "result.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("faster", ["bf16", "32"])
def test_the_faster_precision_is_written_down_and_stays(faster, tmp_path, monkeypatch):
    asked = []

    def decide(cell, data):
        asked.append(cell.method)
        return faster, ""

    def stop(epoch, accuracy):
        raise KeyboardInterrupt

    monkeypatch.setattr(precision, "faster", decide)
    cell = Cell(replace(TRAINING, precision="auto"), "joint", 0)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path, stop)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["precision"] == faster
    assert run_cell(cell, tmp_path).precision == faster
    assert asked == ["joint"]


def test_the_faster_precision_is_found_by_steps_of_the_model(monkeypatch):
    """bf16 must be faster by a margin, as a tie would fall either way."""
    cell = Cell(TRAINING, "joint", 0)
    data = load(DATA)
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    before = torch.random.get_rng_state()
    assert precision.faster(cell, data)[0] in ("bf16", "32")
    assert torch.equal(torch.random.get_rng_state(), before)
    for half, found in ((0.5, "bf16"), (0.9, "32"), (2.0, "32")):
        monkeypatch.setattr(precision, "_shortest", lambda _, half=half: [half, 1.0])
        assert precision.faster(cell, data)[0] == found
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert precision.faster(cell, data)[0] == "32"


def test_the_first_steps_do_not_decide_the_precision(monkeypatch):
    """They are slow, and a clock would leave it at them where other programs have the processor."""
    monkeypatch.setattr("time.perf_counter", count(step=10).__next__)
    assert precision._shortest([iter([0.04] + [0.025] * 9), iter([0.06] + [0.018] * 9)]) == [
        0.025,
        0.018,
    ]
    assert precision._shortest([iter([1.5, 0.1]), iter([1.5, 0.1])]) == [1.5, 1.5]  # long enough


def test_a_last_batch_of_one_is_left_out(tmp_path):
    """BatchNorm can make nothing of it."""
    training = Training(data=DATA, epochs=1, width=8, batch_size=119)
    assert run_cell(Cell(training, "joint", 0), tmp_path).steps == 1


def test_a_process_that_was_thought_to_be_gone_writes_nothing_when_it_wakes(tmp_path):
    """Its older weights would be those that the finished run is known by."""
    cell = Cell(replace(TRAINING, diagnose_every=0), "joint", 0)
    alone = run_cell(cell, tmp_path / "alone")
    files = ("metrics.csv", "best.ckpt", "last.ckpt", "predictions.npz", "result.json")

    def content():
        return [(tmp_path / "run" / name).read_bytes() for name in files]

    found = []

    def freeze(epoch, accuracy):
        if epoch == 1:  # and meanwhile another worker does the run to its end
            assert run_cell(cell, tmp_path / "run").metrics == alone.metrics
            found.append(content())

    with pytest.raises(TakenOver, match="another process has taken over this run"):
        run_cell(cell, tmp_path / "run", freeze)
    assert [content()] == found
    assert rows(tmp_path / "run") == rows(tmp_path / "alone")
    assert not (tmp_path / "run" / "process.txt").exists()


def test_a_full_disk_is_said_and_what_was_there_is_taken_up(tmp_path):
    cell = Cell(replace(TRAINING, diagnose_every=0, width=64), "joint", 0)
    alone = run_cell(cell, tmp_path / "alone")
    with no_file_above(20_000), pytest.raises(OSError, match=r"too large: '.*/best\.ckpt'"):
        run_cell(cell, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))
    assert not (tmp_path / "run" / "best.ckpt").exists()
    assert run_cell(cell, tmp_path / "run").metrics == alone.metrics
    assert rows(tmp_path / "run") == rows(tmp_path / "alone")


def test_a_run_is_one_process_whatever_a_cluster_says(tmp_path, monkeypatch):
    """As one of several tasks of SLURM's it would log nothing."""
    for name, value in {
        "JOB_NAME": "x",
        "NTASKS": "4",
        "NTASKS_PER_NODE": "4",
        "PROCID": "1",
        "LOCALID": "1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run_cell(Cell(replace(TRAINING, epochs=1), "joint", 0), tmp_path)
    assert list(tmp_path.glob("*tfevents*"))
