import csv
import math
import os
import shlex
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from evenly.cli import main
from evenly.data import Data, load, save_npz
from evenly.files import file_address
from evenly.lab.many.compare import compare
from evenly.lab.many.database import reached
from evenly.lab.many.local import Local
from evenly.lab.many.trials import Search, Studies
from evenly.lab.many.tune import Trials, _decided, _prepare, _versions, tune
from evenly.lab.many.tuned import Tuned, Tuning
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training, write_settings
from evenly.lab.run.versions import mixed
from evenly.lab.statistics.tables import table
from evenly.report import write_formats
from pools import local

DATA = "synthetic(train=90,val=60,test=30,classes=3,information=4)"
TRAINING = Training(data=DATA, epochs=2, width=8, lr=0.05, batch_size=10, precision="32")
SEARCH = Search(TRAINING, ("joint", "ogm_ge"), 3, 1, 0, Path())

pytestmark = pytest.mark.xdist_group("tune")  # several look at one search


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def tried(folder):
    """The trials without what differs from machine to machine."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "worker")}
        for row in read(folder / "tune.csv")
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("tune")
    return out, tune(replace(SEARCH, out=out), local(1))


def test_every_method_has_its_trials(finished):
    out, _ = finished
    rows = read(out / "tune.csv")
    assert [(row["method"], row["place"]) for row in rows] == [
        (method, str(place)) for method in SEARCH.methods for place in range(3)
    ]
    assert {row["state"] for row in rows} == {"finished"}
    assert {row["lr"] for row in rows if row["place"] == "0"} == {"0.05"}  # as it was given
    for place in ("1", "2"):  # as long as nothing is known, all methods try the same
        shared = [(row["lr"], row["weight_decay"]) for row in rows if row["place"] == place]
        assert shared[0] == shared[1]
    assert len({row["settings"] for row in rows if row["method"] == "ogm_ge"}) == 3


def test_a_trial_holds_metrics_and_nothing_of_the_test_split(finished):
    out, _ = finished
    folders = [path.parent for path in out.glob("trials/*/0/config.yaml")]
    assert len(folders) == 6
    for folder in folders:
        assert set(Result.read(folder).metrics) == {"val"}
        names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
        assert names - {"hparams.yaml"} == {"config.yaml", "metrics.csv", "result.json"}
    config = yaml.safe_load((out / "trials" / "joint-1" / "0" / "config.yaml").read_text())
    row = read(out / "tune.csv")[1]
    assert (config["lr"], config["weight_decay"]) == (float(row["lr"]), float(row["weight_decay"]))
    assert config["seed"] == 0


def test_the_best_by_validation_accuracy(finished):
    out, text = finished
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["methods"] == "joint,ogm_ge"
    assert best["tuned"]["trials"] == 3
    assert "lr" not in best
    for method, found in best["tuned"]["methods"].items():
        rows = [row for row in read(out / "tune.csv") if row["method"] == method]
        accuracies = [float(row["val_accuracy"]) for row in rows]
        top = rows[accuracies.index(max(accuracies))]  # the first of equals
        assert found["method"] == top["settings"]
        assert found["lr"] == float(top["lr"])
        assert f"{max(accuracies):.3f}" in text
        assert top["settings"] in text


def test_the_best_by_the_lowest_loss(tmp_path):
    training = replace(TRAINING, select="loss")
    text = tune(replace(SEARCH, training=training, methods=("joint",), out=tmp_path), local(1))
    rows = read(tmp_path / "tune.csv")
    losses = [float(row["val_loss"]) for row in rows]
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best["select"] == "loss"
    top = rows[losses.index(min(losses))]
    assert best["tuned"]["methods"]["joint"]["lr"] == float(top["lr"])
    assert text.startswith("method  validation loss")
    assert "validation loss; line: the best so far" in (tmp_path / "tune.html").read_text()


def test_a_trial_without_a_finite_loss_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Trials, "_value", lambda self, result: math.nan)
    training = replace(TRAINING, select="loss")
    search = replace(SEARCH, training=training, methods=("joint",), trials=1, out=tmp_path)
    with pytest.raises(RuntimeError, match="its validation loss is not finite"):
        tune(search, local(1))


def test_the_command_ends_with_one_that_compares_the_best(finished, capsys):
    out, text = finished
    training = ("--data", DATA, "--epochs", 2, "--width", 8, "--lr", 0.05, "--batch_size", 10)
    line = ["tune", *training, "--precision", 32, "--jobs", 1, "--trials", 3, "--out", out]
    assert main([*map(str, line), "--methods", "joint,ogm_ge"]) == 0  # nothing is left to do
    said = capsys.readouterr().out
    assert said.startswith(text)
    command = shlex.split(said.splitlines()[-1])
    assert command[:2] == ["evenly", "compare"]
    assert main([*command[1:-1], "1", "--jobs", "1"]) == 0
    assert "were tuned, with 3 trials for each method" in capsys.readouterr().out
    config = yaml.safe_load((out / "compare" / "config.yaml").read_text())
    best = yaml.safe_load((out / "best.yaml").read_text())["tuned"]["methods"]
    assert config["methods"] == [found["method"] for found in best.values()]
    assert config["epochs"] == 2
    assert config["diagnose_every"] is None  # as it was asked for, though trials measure nothing


@pytest.mark.parametrize("encoder", ["test_build.Own", "mlp"])
def test_the_last_command_trusts_encoders_of_ones_own(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evenly.lab.many.tune.tune", lambda *_: "")
    asked = ["tune", "--encoders.top", encoder, "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    trusted = "--trust " in capsys.readouterr().out.splitlines()[-1]
    assert trusted == ("." in encoder)


def test_the_page_of_a_search(finished):
    page = (finished[0] / "tune.html").read_text(encoding="utf-8")
    assert f"{DATA}: 3 trials of each method" in page
    for row in read(finished[0] / "tune.csv"):
        assert row["settings"] in page
    assert 'src="http' not in page


def test_the_same_command_repeats_nothing_and_goes_on_as_if_it_had_not_stopped(finished, tmp_path):
    out, text = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/0/result.json")}
    assert tune(replace(SEARCH, out=out), local(1)) == text
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("trials/*/0/result.json")}

    stopped = replace(SEARCH, out=tmp_path / out.name, trials=1)
    tune(stopped, local(1))
    tune(replace(stopped, trials=3), local(1))
    assert tried(stopped.out) == tried(out)
    # A smaller budget counts the first trials only.
    tune(replace(SEARCH, out=out, trials=1), local(1))
    assert yaml.safe_load((out / "best.yaml").read_text())["tuned"]["methods"] == {
        "joint": {"method": "joint", "lr": 0.05, "weight_decay": 0.0001},
        "ogm_ge": {"method": "ogm_ge(alpha=0.8,end=1)", "lr": 0.05, "weight_decay": 0.0001},
    }


def test_no_trial_depends_on_the_test_split(tmp_path):
    """The same data but for the test split, of which one has noise and labels in disorder."""
    stream = np.random.default_rng(0)
    labels, split = np.arange(90) % 3, np.repeat([0, 1, 2], 30)
    clear = np.eye(3)[labels] + stream.normal(0, 0.7, (90, 3))
    other, wrong = clear.copy(), labels.copy()
    other[split == 2] = stream.normal(0, 100, (30, 3))
    wrong[split == 2] = stream.permutation(labels[split == 2])
    found = []
    for name, inputs, target in (("one", clear, labels), ("two", other, wrong)):
        save_npz(tmp_path / f"{name}.npz", target, split, {"x": inputs, "y": -inputs})
        training = replace(TRAINING, data=str(tmp_path / f"{name}.npz"))
        search = Search(training, ("joint", "relearn"), 2, 1, 0, tmp_path / name)
        tune(search, local(1))
        found.append(tried(search.out))
    assert found[0] == found[1]
    assert any(float(row["val_accuracy"]) > 0.4 for row in found[0])


def test_a_run_of_a_trial_asks_for_no_test_split(tmp_path, monkeypatch):
    split, asked = Data.split, set()

    def noted(self, name):
        asked.add(name)
        return split(self, name)

    monkeypatch.setattr(Data, "split", noted)
    result = run_cell(Cell(TRAINING, "relearn(every=1)", 0), tmp_path, tests=False)
    assert asked == {"train", "val"}
    assert result.metrics.keys() == {"val"}
    assert not (tmp_path / "predictions.npz").exists()


class Fails(nn.Module):
    """An encoder whose training fails as long as there is a mark; it may remove that."""

    out_features = 4

    def __init__(self, mark, once):
        super().__init__()
        self.net = nn.LazyLinear(4)
        self.mark, self.once = Path(mark), once

    def forward(self, x):
        if self.training and self.mark.exists():
            if self.once:
                self.mark.unlink()
            raise RuntimeError("no such sound")
        return self.net(x.float())


class Quits(Fails):
    """An encoder whose training ends its process, as if all were well."""

    def forward(self, x):
        if self.training:
            os._exit(0)
        return self.net(x.float())


def failing(tmp_path, once, kind="Fails"):
    (tmp_path / "mark").touch()
    encoder = f'test_tune.{kind}(mark="{tmp_path / "mark"}",once={str(once).lower()})'
    return replace(TRAINING, encoders={"m1": encoder})


def test_a_trial_that_fails_has_had_its_place(tmp_path):
    search = Search(failing(tmp_path, once=True), ("joint",), 2, 2, 0, tmp_path / "out")
    text = tune(search, local(1))
    rows = read(search.out / "tune.csv")
    assert [row["state"] for row in rows] == ["failed", "finished"]
    assert rows[0]["reason"] == "RuntimeError: no such sound"
    assert "Traceback" in (search.out / "trials" / "joint-0" / "0" / "error.txt").read_text()
    assert len(rows[1]["values"].split()) == 2
    assert "failed" in text.splitlines()[1]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Fails", "RuntimeError: no such sound"), ("Quits", "its process ended without a result")],
)
def test_a_method_of_which_every_trial_fails(kind, reason, tmp_path):
    search = Search(failing(tmp_path, False, kind), ("joint",), 1, 1, 0, tmp_path / "out")
    with pytest.raises(RuntimeError, match=f"joint: all 1 trials failed, the last .*: {reason}"):
        tune(search, local(1))
    assert read(search.out / "tune.csv")[0]["state"] == "failed"
    assert not (search.out / "best.yaml").exists()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (replace(SEARCH, trials=0), "--trials must be at least 1; found 0"),
        (replace(SEARCH, seeds=0), "--seeds must be at least 1; found 0"),
        (
            replace(SEARCH, training=replace(TRAINING, protocol="paper")),
            "--protocol must be 'fair'; found 'paper'",
        ),
        (replace(SEARCH, methods=("jiont",)), "unknown method 'jiont'. Did you mean joint?"),
        (replace(SEARCH, training=Training(data="digit")), "unknown data set 'digit'"),
    ],
)
def test_what_is_wrong_is_said_before_any_trial(search, message, tmp_path):
    with pytest.raises(ValueError, match=r".*") as error:
        tune(replace(search, out=tmp_path / "out"), local(1))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_trials_of_other_settings_are_refused(finished):
    out, _ = finished
    other = replace(SEARCH, out=out, training=replace(TRAINING, epochs=3))
    with pytest.raises(ValueError, match="holds runs with epochs = 2, but now 3 is asked for"):
        tune(other, local(1))
    with pytest.raises(ValueError, match="holds runs with seeds = 1, but now 2 is asked for"):
        tune(replace(SEARCH, out=out, seeds=2), local(1))


def test_data_that_change_while_trials_are_made(tmp_path):
    """Here after the search began, and before its first trial does."""
    path, out = tmp_path / "a.npz", tmp_path / "out"
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(path, labels, split, {"x": np.ones((60, 3))})
    training = replace(TRAINING, data=str(path))
    search = Search(training, ("joint",), 1, 1, 0, out)

    def pool(training):
        save_npz(path, labels, split, {"x": np.zeros((60, 3))})
        return Local(1)

    with pytest.raises(ValueError, match=r"a\.npz changed after this command began"):
        tune(search, pool)
    assert [row["state"] for row in read(out / "tune.csv")] == ["lost"]


def test_versions_of_all_commands_are_told(tmp_path, capsys):
    def stop(training):
        raise KeyboardInterrupt

    search = replace(SEARCH, training=replace(TRAINING, task="classes", select="accuracy"))
    search = replace(search, out=tmp_path)
    used = {"torch": "1.0", "python": "3.0"}
    before = {**search.settings(), "precision": "32", "trials": 3, "versions": used}
    write_settings(tmp_path / "tune.yaml", before)
    assert not mixed(_versions(search, before))  # no trial has run
    (tmp_path / "trials").mkdir()
    with pytest.raises(KeyboardInterrupt):
        tune(search, stop)
    now = version("torch")
    said = f"which may change results: 1.0 in earlier trials; {now} in trials from now on."
    assert f"note: runs use several versions of torch, {said}" in capsys.readouterr().err
    found = yaml.safe_load((tmp_path / "tune.yaml").read_text())["versions"]
    assert found["torch"] == f"1.0; {now}"
    assert found["python"].startswith("3.0; ")


def test_a_search_does_without_samples_for_what_no_trial_measures(tmp_path):
    """Two of thirty validation samples have x, fewer than the three clusters of a diagnosis."""
    rows = {"train": torch.arange(60), "val": torch.arange(60, 90)}
    inputs = {"x": torch.randn(90, 2), "y": torch.randn(90, 2)}
    here = (torch.arange(90) < 60) | (torch.arange(90) > 87)
    data = Data("mine", inputs, torch.arange(90) % 3, rows, list("abc"), present={"x": here})
    training = replace(TRAINING, task="classes", select="accuracy")
    search = replace(SEARCH, training=training, out=tmp_path)
    assert _prepare(search, {}, data)
    with pytest.raises(ValueError, match=r"'x' is in 2 of 30 .* 3 clusters .*\. Set gap=stable"):
        _prepare(replace(search, methods=("joint", "relearn")), {}, data)


def test_all_trials_train_in_the_precision_that_was_found_first(tmp_path, monkeypatch):
    """On whatever machine: here of two, on which another one is faster."""
    found = iter(("bf16", "32"))
    monkeypatch.setattr("evenly.lab.run.precision.faster", lambda *_: (next(found), "it is faster"))
    auto = replace(TRAINING, precision="auto", epochs=1)
    search = Search(auto, ("joint",), 1, 1, 0, tmp_path / "one" / "search")
    storage = f"sqlite:///{tmp_path / 'a.db'}"
    tune(search, local(1), storage)
    other = replace(search, out=tmp_path / "two" / "search", trials=2)
    tune(other, local(1), storage)
    assert next(found) == "32"  # it did not look
    assert [row["place"] for row in read(other.out / "tune.csv")] == ["0", "1"]
    for place in (search.out, other.out):
        for name in ("tune.yaml", "best.yaml"):
            assert yaml.safe_load((place / name).read_text())["precision"] == "bf16"
    notes = [
        yaml.safe_load((each.out / "tune.yaml").read_text())["notes"] for each in (search, other)
    ]
    assert ["precision: bf16, because it is faster." in each for each in notes] == [True, False]
    assert Result.read(other.out / "trials" / "joint-1" / "0").precision == "bf16"

    asked = replace(other, training=replace(auto, precision="bf16"))
    tune(asked, local(1), storage)
    plain = replace(asked, training=replace(auto, precision="32"))
    with pytest.raises(
        ValueError, match="holds runs with precision = 'bf16', but now '32' is asked"
    ):
        tune(plain, local(1), storage)
    with pytest.raises(ValueError, match="'search' in this database uses --precision bf16"):
        tune(replace(plain, out=tmp_path / "three" / "search"), local(1), storage)


def test_joint_training_decides_the_precision_of_a_search(tmp_path, monkeypatch):
    asked = []

    def faster(cell, data):
        asked.append(cell.method)
        return "32", "it is faster"

    monkeypatch.setattr("evenly.lab.run.precision.faster", faster)
    auto = replace(TRAINING, task="classes", select="accuracy", precision="auto")
    search = replace(SEARCH, training=auto, methods=("unimodal(modality=m1)",), out=tmp_path)
    studies = Studies(search, reached(file_address(tmp_path / "tune.db")))
    with closing(studies):
        training, notes = _decided(studies, {}, load(DATA))
    assert (training.precision, asked) == ("32", ["joint"])
    assert notes == ["precision: 32-bit floats, because it is faster."]


def best(lr=0.02):
    return Tuning(
        4,
        2,
        {
            "joint": Tuned("joint", lr, 1e-5),
            "ogm_ge": Tuned("ogm_ge(alpha=0.5,end=1)", 0.03, 1e-3),
        },
    )


def test_a_comparison_at_tuned_settings_says_so(tmp_path):
    page = compare("joint,ogm_ge", 1, TRAINING, tmp_path, local(1), best()).read_text(
        encoding="utf-8"
    )
    configs = {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in tmp_path.glob("runs/*/config.yaml")
    }
    assert configs.keys() == {"joint-0", "ogm_ge_alpha=0.5_end=1-0"}
    assert (configs["joint-0"]["lr"], configs["joint-0"]["weight_decay"]) == (0.02, 1e-5)
    assert configs["ogm_ge_alpha=0.5_end=1-0"]["lr"] == 0.03
    said = "were tuned, with 4 trials for each method, by validation accuracy (the mean of seeds 0"
    assert said in page
    assert said in table(tmp_path)
    for name in ("results.csv", "summary.csv"):
        assert {row["tuned_trials"] for row in read(tmp_path / name)} == {"4"}
    md, latex, svg = write_formats(tmp_path, ["md", "latex", "svg"])
    assert said in md.read_text(encoding="utf-8")
    assert said in latex.read_text(encoding="utf-8")
    assert "tuned, 4 trials each" in svg.read_text(encoding="utf-8")

    with pytest.raises(
        ValueError, match=r"unknown tuned method 'relearn'. Choose from: joint, ogm_ge"
    ):
        compare("joint,relearn", 1, TRAINING, tmp_path, local(1), best())
    with pytest.raises(
        ValueError, match=r"holds runs with lr = 'tuned', but now 0\.05 is asked for"
    ):
        compare("joint", 1, TRAINING, tmp_path, local(1))
    with pytest.raises(ValueError, match=r"holds runs with joint = \{'lr': 0.02, .*'lr': 0.5"):
        compare("joint", 1, TRAINING, tmp_path, local(1), best(lr=0.5))
    with pytest.raises(ValueError, match="holds runs with tuned_trials = 4, but now 5"):
        compare("joint", 1, TRAINING, tmp_path, local(1), replace(best(), trials=5))


def test_a_tuning_is_read_as_it_was_written():
    assert Tuning.read(best().as_dict()) == best()
    for broken in ({}, {"methods": []}, {"trials": 1, "seeds": 1, "methods": {"a": {"lr": 1.0}}}):
        with pytest.raises(ValueError, match=r"^the tuned settings were not written by 'evenly"):
            Tuning.read(broken)


def test_values_of_other_types_are_no_tuning():
    good = best().as_dict()
    for key, value in (("lr", "fast"), ("method", 5), ("weight_decay", [1])):
        broken = {**good, "methods": {"joint": {**good["methods"]["joint"], key: value}}}
        with pytest.raises(ValueError, match=rf"were not written by 'evenly tune'.*{key} takes"):
            Tuning.read(broken)
    with pytest.raises(ValueError, match=r"trials takes a whole number, found 'many'"):
        Tuning.read({**good, "trials": "many"})


def test_passwords_stay_out_of_settings(tmp_path, monkeypatch):
    address, query = "postgresql://me:sec/ret@host/db", "mysql://host/db?password=sec"
    given = ["evenly", "compare", "--storage", address, f"--a={address}", query]
    monkeypatch.setattr("sys.argv", given)
    compare("joint", 1, replace(TRAINING, epochs=1, diagnose_every=0), tmp_path, local(1))
    command = yaml.safe_load((tmp_path / "config.yaml").read_text())["command"]
    assert command.count("postgresql://me:***@host/db") == 2
    assert "mysql://host/db?***" in command
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"sec/ret" not in path.read_bytes(), path
        assert b"=sec" not in path.read_bytes(), path
