"""evenly checkup: of runs, and of data."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from evenly.cli import main
from evenly.cli.checkup import WITHOUT
from evenly.cli.options import parsed
from evenly.cli.parser import dashed
from evenly.cli.training import training_of
from evenly.data import Data
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained import checkup
from evenly.lab.trained.checkup import runs_opened

DATA = "synthetic(train=240,val=120,test=60,classes=3,information=2)"
SMALL = ("--width", "8", "--precision", "32", "--batch_size", "40")

pytestmark = pytest.mark.xdist_group("checkup runs")  # most look at one comparison


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    asked = ["compare", "--data", DATA, "--methods", "joint,multi_loss,unimodal", "--seeds", "2"]
    assert main([*asked, *SMALL, "--epochs", "6", "--jobs", "1", "--out", str(folder)]) == 0
    return folder


def said(capsys, *arguments):
    status = main(["checkup", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_of_a_run(compared, capsys):
    run = compared / "runs" / "joint-0"
    before = {path: path.read_bytes() for path in run.glob("*.ckpt")}
    status, out, err = said(capsys, run)
    assert status == 0
    assert "note: training each modality alone for 6 epochs; alone once more if " in err
    assert "clustered 20 to 240 times." in err
    assert "m1 is " in out
    found = json.loads((run / "checkup.json").read_text())
    assert set(found["findings"]) == {"m1", "m2"}
    assert found["accuracy"]["count"] == 120
    page = (run / "checkup.html").read_text()
    assert "joint on synthetic" in page
    assert all(path.read_bytes() == kept for path, kept in before.items())
    # The accuracy is that of the run's own best epoch.
    kept = json.loads((run / "result.json").read_text())["metrics"]["val"]["accuracy"]
    assert found["accuracy"]["value"] == pytest.approx(kept)
    said(capsys, run)
    assert json.loads((run / "checkup.json").read_text()) == found  # a seed gives the same again


@pytest.mark.slow
def test_of_several_seeds(compared, capsys, tmp_path):
    runs = sorted((compared / "runs").glob("multi_loss-*"))
    assert len(runs) == 2
    status, _, err = said(capsys, *runs, "--budget", 2, "--out", tmp_path / "both")
    assert status == 0
    assert "for 2 epochs for each of 2 runs" in err
    found = json.loads((tmp_path / "both" / "checkup.json").read_text())
    kept = [json.loads((run / "result.json").read_text())["metrics"]["val"] for run in runs]
    mean = sum(one["accuracy"] for one in kept) / 2
    assert found["accuracy"]["value"] == pytest.approx(mean)


@pytest.mark.slow
def test_of_data(capsys, tmp_path):
    status, out, err = said(
        capsys, "--data", DATA, *SMALL, "--epochs", 3, "--interactions", "--out", tmp_path / "new"
    )
    assert status == 0
    assert "training jointly and each modality alone, for 3 epochs each" in err
    assert "only together" in out
    assert (tmp_path / "new" / "checkup.html").is_file()


def test_of_data_with_a_modality_too_rare_for_a_diagnosis(monkeypatch):
    """Two of thirty samples have x, fewer than the three clusters of a diagnosis."""
    rows = {"train": torch.arange(30), "val": torch.arange(30, 60), "test": torch.arange(60, 90)}
    inputs = {"x": torch.randn(90, 2), "y": torch.randn(90, 2)}
    data = Data("mine", inputs, torch.arange(90) % 3, rows, list("abc"),
                present={"x": torch.arange(90) % 30 < 2})  # fmt: skip

    def reached(parts, *_):
        raise RuntimeError(f"trains {sorted(parts.model.encoders)}")

    monkeypatch.setattr(checkup, "load_data", lambda training: data)
    monkeypatch.setattr(checkup, "_checked", reached)
    with pytest.raises(RuntimeError, match=r"trains \['x', 'y'\]"):
        checkup.of_data(Cell(Training(precision="32"), "joint", 0), 1)


@pytest.mark.parametrize(
    ("method", "fusion", "why"),
    [
        ("joint", "mbt", r"^--fusion mbt mixes .* separate them\. Use a fusion of features"),
        (
            "greedy",
            "concat",
            r"^the head 'mmtm' of greedy mixes .*\. Check a run of another method",
        ),
    ],
)
def test_encoders_that_see_each_other_cannot_be_separated(method, fusion, why, monkeypatch):
    rows = {"train": torch.arange(30), "val": torch.arange(30, 60), "test": torch.arange(60, 90)}
    shape = (90, 4, 2) if fusion == "mbt" else (90, 1, 8, 8)
    inputs = {"x": torch.randn(shape), "y": torch.randn(shape)}
    data = Data("mine", inputs, torch.arange(90) % 3, rows, list("abc"))
    encoders = dict.fromkeys("xy", "transformer") if fusion == "mbt" else {}
    training = Training(precision="32", width=8, fusion=fusion, encoders=encoders)
    monkeypatch.setattr(checkup, "load_data", lambda training: data)
    with pytest.raises(ValueError, match=why):
        checkup.of_data(Cell(training, method, 0), 1)


def test_refusals(compared, capsys, tmp_path):
    runs = compared / "runs"
    for arguments, why in (
        ([compared], "is a comparison. Give one of its runs"),
        ([tmp_path], "is not a run"),
        ([next(runs.glob("unimodal*m1-0"))], "uses only one modality"),
        ([runs / "joint-0", runs / "multi_loss-0"], "differs from"),
        ([runs / "joint-0", runs / "joint-0"], "are the same run"),
        ([runs / "joint-0", "--budget", 0], "--budget must be at least 1"),
        ([runs / "joint-0", "--epochs", 5, "--lr", 1], "--epochs, --lr would have no effect"),
        (
            [runs / "joint-0", "--modalities", "m1", "--skip-broken", "--stream", "--seed", 1],
            "--seed, --modalities, --skip-broken, --stream would have no effect",
        ),
        ([runs / "joint-0", "--recipe", "av-mnist-resnet"], "--recipe, --source would have no e"),
        ([runs / "joint-0", "--figure", "x.pdf"], "ends in .svg or .png"),
        ([runs / "joint-0", "--out", runs / "joint-0" / "config.yaml"], "cannot be a folder"),
        ([runs / "joint-0" / "config.yaml"], "Give data as --data"),
    ):
        status, _, err = said(capsys, *arguments)
        assert status == 1
        assert why in err


@pytest.mark.parametrize("name", WITHOUT)
def test_what_would_have_no_effect_is_no_option(name, capsys):
    with pytest.raises(SystemExit):
        main(["checkup", "--data", DATA, dashed(name), "1"])
    assert f"unknown option {dashed(name)}." in capsys.readouterr().err


def test_of_a_recipe_it_takes_what_has_an_effect(capsys):
    options = parsed(["checkup", "--recipe", "ucf101-resnet18"])
    note = "note: the recipe ucf101-resnet18 also sets --lr-step, which evenly checkup does not "
    assert capsys.readouterr().err == f"{note}have.\n"
    training = training_of(options)
    assert (training.lr, training.lr_step) == (0.0001, 0)  # the recipe's lr_step is 40
    assert parsed(["train", "--recipe", "ucf101-resnet18"]).lr_step == 40
    assert capsys.readouterr().err == ""


def test_a_run_that_has_not_finished_is_told(compared, capsys, tmp_path):
    run = tmp_path / "joint-0"
    shutil.copytree(compared / "runs" / "joint-0", run)
    assert runs_opened([run], None, trust=False)
    assert not capsys.readouterr().err
    (run / "result.json").unlink()
    assert runs_opened([run], None, trust=False)
    assert f"note: {run} has no result.json: its training" in capsys.readouterr().err


def test_numbers_are_refused(capsys, tmp_path):
    import numpy as np

    from evenly.data import save_npz

    path, run = tmp_path / "mine.npz", tmp_path / "run"
    save_npz(path, np.arange(60) / 4, np.repeat([0, 1, 2], 20), {"x": np.eye(60), "y": np.eye(60)})
    training = ["--data", str(path), "--method", "joint", "--epochs", "1", *SMALL]
    assert main(["train", *training, "--out", str(run)]) == 0
    for arguments, who in (([run], "run predicts numbers"), (["--data", path], "mine has numbers")):
        status, _, err = said(capsys, *arguments, "--out", tmp_path / "out")
        assert status == 1
        assert f"{who}" in err
        assert "a checkup needs classes or labels." in err


@pytest.mark.slow
def test_data_that_have_changed_are_refused(capsys, tmp_path):
    import numpy as np

    from evenly.data import save_npz

    def write(path, seed):
        rng = np.random.default_rng(seed)
        label = np.arange(90) % 3
        split = np.array(["train", "val", "test"])[np.arange(90) // 30]
        inputs = {name: (label[:, None] + rng.normal(size=(90, 4))).astype("f4") for name in "ab"}
        save_npz(path, label, split, inputs)

    write(tmp_path / "mine.npz", 0)
    run = tmp_path / "run"
    asked = ["train", "--data", str(tmp_path / "mine.npz"), "--method", "joint", "--epochs", "2"]
    assert main([*asked, *SMALL, "--out", str(run)]) == 0
    shutil.move(tmp_path / "mine.npz", tmp_path / "moved.npz")
    capsys.readouterr()
    status, _, _ = said(capsys, run)
    assert status == 1
    status, _, _ = said(capsys, run, "--data", tmp_path / "moved.npz")
    assert status == 0
    write(tmp_path / "mine.npz", 1)
    status, _, err = said(capsys, run)
    assert status == 1
    assert "is not what" in err
    assert "was trained on" in err


@pytest.mark.parametrize(("epochs", "alone"), [(6, 6), (10, 10), (20, 10), (30, 10), (90, 30)])
def test_nothing_is_trained_longer_alone_than_the_run(epochs, alone):
    assert checkup.short(epochs) == alone


def test_a_run_that_its_patience_ended_counts_the_epochs_that_it_took(compared):
    ((folder, cell, _),) = runs_opened([compared / "runs" / "joint-0"], None, trust=False)
    longer = replace(cell, training=replace(cell.training, epochs=60))
    assert checkup.trained_for(folder, longer) == 6
