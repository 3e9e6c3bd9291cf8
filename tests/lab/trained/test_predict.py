import csv
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evenly.cli import main
from evenly.data import load, load_npz, save_npz
from evenly.files import write_text
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained.export import export
from evenly.lab.trained.load import load_run
from evenly.lab.trained.predict import predictions
from hubs import dataset, on_the_hub

CLASSES = ["no", "yes"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Vectors, images, and sequences of unequal lengths, that tell two classes."""
    draws = np.random.default_rng(0)
    n = 90
    labels = np.arange(n) % 2
    sign = 2.0 * labels - 1
    length = 1 + np.arange(n) % 4
    steps = np.repeat(sign, length)[:, None] + 0.3 * draws.normal(size=(length.sum(), 2))
    arrays = {
        "x": (sign[:, None] + 0.3 * draws.normal(size=(n, 3))).astype(np.float32),
        "eye": (sign[:, None, None] + draws.normal(size=(n, 6, 6))).astype(np.float32),
        "eye_kind": np.array("image"),
        "steps": steps.astype(np.float32),
        "steps_offset": np.concatenate([[0], length.cumsum()]),
    }
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    save_npz(path, labels, np.repeat([0, 1, 2], 30), arrays, CLASSES)
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "joint-0"
    run_cell(Cell(Training(str(data), epochs=6, batch_size=10, width=8), "joint", 0), folder)
    return folder


def rows(run, *arguments, trust=False):
    return list(predictions(load_run(run, trust=trust), *arguments))


def test_the_predictions_are_those_of_the_run(run, data):
    with np.load(run / "predictions.npz") as file:
        expected, target = file["probabilities"], file["target"]
    found = rows(run, str(data))
    np.testing.assert_allclose([r.answers for r in found], expected, atol=0.02)  # bf16
    assert [r.label for r in found] == [CLASSES[n] for n in target]
    assert [r.sample for r in found] == [str(n) for n in range(60, 90)]  # rows of the file
    assert [r.sample for r in rows(run, str(data), "val")] == [str(n) for n in range(30, 60)]


@pytest.mark.slow
def test_several_labels_are_trained_compared_and_predicted(tmp_path, capsys):
    draws = np.random.default_rng(0)
    labels = np.stack([np.arange(90) % 2, np.arange(90) % 3 == 0, draws.random(90) < 0.3], 1)
    x = (4.0 * labels[:, :2] + draws.normal(size=(90, 2))).astype(np.float32)
    noise = draws.normal(size=(90, 3)).astype(np.float32)
    path, names = tmp_path / "mine.npz", ["odd", "third", "rare"]
    save_npz(path, labels, np.repeat([0, 1, 2], 30), {"x": x, "noise": noise}, names)
    common = ("--data", str(path), "--epochs", "8", "--batch_size", "10", "--out", str(tmp_path))
    more = ("--methods", "joint,unimodal,relearn", "--seeds", "3", "--lr", "0.05")
    weighed = ("--class_weights", "balanced", "--select", "macro_f1")
    main(["compare", *common, *more, *weighed])
    text = capsys.readouterr().out
    assert "mean_average_precision" in text
    assert "accuracy is the share of samples with all labels right" in text
    with (tmp_path / "summary.csv").open() as file:
        tested = {row["metric"]: row["test"] for row in csv.DictReader(file) if row["test"]}
    for metric in ("accuracy", "macro_f1", "micro_f1"):
        assert "bootstrap" in tested[metric]
    folder = tmp_path / "runs" / "joint-0"
    metrics = Result.read(folder).metrics["test"]
    assert metrics["recall/odd"] > 0.8
    assert metrics["recall/third"] > 0.8
    assert metrics["probe/x"] > metrics["probe/noise"] + 0.2
    with (tmp_path / "runs" / "relearn-0" / "metrics.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert 0.5 < float(measured[-1]["purity_val/x"]) <= 1
    assert any(row["relearn_strength/x"] for row in measured)
    with np.load(folder / "features.npz") as file:
        assert set(file["target"]) <= {0, 1, 2, 3}
        assert "odd;third" in file["said"][file["own"]]
    page = (tmp_path / "report.html").read_text()
    assert "Purity of the labels in k-means clusters" in page
    assert "of a hollow point not all labels are right" in page
    with np.load(folder / "predictions.npz") as file:
        said, target = file["probabilities"] > 0.5, file["target"]
    assert metrics["accuracy"] == (said == target).all(1).mean()
    found = rows(folder, str(path))
    assert [r.label for r in found] == [
        ";".join(name for name, here in zip(names, row, strict=True) if here) for row in target
    ]
    main(["predict", str(folder), "--data", str(path)])
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "sample,label,predicted,odd,third,rare"
    assert first.split(",")[2] == ";".join(n for n, s in zip(names, said[0], strict=True) if s)


@pytest.mark.slow
def test_numbers_are_trained_compared_predicted_and_exported(tmp_path, capsys):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(90, 2)).astype(np.float32)
    degrees = (300 + 20 * x[:, 0]).round(1)
    path = tmp_path / "mine.npz"
    arrays = {"x": x, "noise": draws.normal(size=(90, 2)).astype(np.float32)}
    save_npz(path, degrees, np.repeat([0, 1, 2], 30), arrays, ["degrees"])
    common = ("--data", str(path), "--epochs", "20", "--batch_size", "10", "--out", str(tmp_path))
    main(["compare", *common, "--methods", "joint,unimodal", "--seeds", "3", "--lr", "0.1"])
    text = capsys.readouterr().out
    assert "ranked by the mean absolute error (MAE), in the data's units" in text
    assert "Test MAE as one modality is taken" in (tmp_path / "report.html").read_text()
    table = text[text.index("\nmethod ") :].splitlines()
    ranked = [line.partition(" ")[0] for line in table[2:5]]
    assert ranked[-1] == "unimodal(modality=noise)"  # the largest error
    with (tmp_path / "summary.csv").open() as file:
        tested = {row["metric"]: row["test"] for row in csv.DictReader(file) if row["test"]}
    for metric in ("mae", "rmse", "pearson", "concordance"):
        assert "bootstrap" in tested[metric]
    folder = tmp_path / "runs" / "joint-0"
    metrics = Result.read(folder).metrics["test"]
    with np.load(folder / "predictions.npz") as file:
        said, target = file["numbers"], file["target"]
    assert target[:, 0].tolist() == degrees[60:].tolist()
    assert metrics["mae"] == pytest.approx(np.abs(said - target).mean(), rel=1e-5)
    assert metrics["mae"] < 5
    assert metrics["contribution/x"] > 5 > abs(metrics["contribution/noise"])
    with (folder / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))
    best = min(epochs, key=lambda row: float(row["val_mae"]))
    assert int(best["epoch"]) == Result.read(folder).best_epoch  # the least error selects
    assert float(best["train_mae"]) < 10
    assert 0 < float(epochs[-1]["purity_val/x"]) <= 1
    main(["predict", str(folder), "--data", str(path)])
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "sample,label,predicted"
    assert first.split(",") == ["60", str(degrees[60]), str(said[0, 0])]
    export(load_run(folder), tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    found = program({name: torch.from_numpy(values[60:]) for name, values in arrays.items()})
    np.testing.assert_allclose(found.detach(), said, rtol=1e-4)


def test_several_numbers_are_trained_predicted_and_exported(tmp_path, capsys):
    draws = np.random.default_rng(0)
    arrays = {name: draws.normal(size=(60, 2)).astype(np.float32) for name in ("x", "y")}
    target = np.stack([300 + 20 * arrays["x"][:, 0], 0.1 * arrays["y"][:, 1]], 1)
    path, folder = tmp_path / "mine.npz", tmp_path / "run"
    save_npz(path, target, np.repeat([0, 1, 2], 20), arrays, ["degrees", "metres"])
    common = ("--data", str(path), "--epochs", "20", "--batch_size", "10", "--lr", "0.1")
    main(["train", *common, "--method", "joint", "--precision", "32", "--out", str(folder)])
    metrics = Result.read(folder).metrics["test"]
    with np.load(folder / "predictions.npz") as file:
        said = file["numbers"]
    assert said.shape == (20, 2)
    error = np.abs(said - target[40:]).mean(0)
    for name, own in zip(("degrees", "metres"), error, strict=True):
        assert metrics[f"error/{name}"] == pytest.approx(own, rel=1e-4)
    assert (error < 0.5 * target[40:].std(0)).all()  # both are learnt, whatever their size
    with (folder / "metrics.csv").open() as file:
        assert 0 < float(list(csv.DictReader(file))[-1]["purity_val/x"]) <= 1
    capsys.readouterr()
    main(["predict", str(folder), "--data", str(path)])
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "sample,label,predicted,degrees,metres"
    sample, label, predicted, *columns = first.split(",")
    assert sample == "40"
    for cells, wanted in (label.split(";"), target[40]), (predicted.split(";"), said[0]):
        assert [float(cell) for cell in cells] == pytest.approx(wanted, rel=1e-4)
    assert [float(cell) for cell in columns] == pytest.approx(said[0], rel=1e-4)
    export(load_run(folder), tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    found = program({name: torch.from_numpy(values[40:]) for name, values in arrays.items()})
    np.testing.assert_allclose(found.detach(), said, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--methods", "joint,ogm_ge"),
            "ogm_ge takes class numbers.*, but mine has regression targets",
        ),
        (("--methods", "joint", "--focal", "2"), "so --class-weights, --focal and"),
        (
            ("--methods", "joint", "--select", "accuracy"),
            "does not apply to mine. Choose from: loss, mae",
        ),
        (("--methods", "joint", "--task", "classes"), "which are not classes"),
    ],
)
def test_what_numbers_do_not_go_with_is_said_before_training(options, message, tmp_path, capsys):
    path = tmp_path / "mine.npz"
    save_npz(path, np.arange(30) / 4, np.repeat([0, 1, 2], 10), {"x": np.ones((30, 2))})
    assert main(["compare", "--data", str(path), "--out", str(tmp_path / "out"), *options]) != 0
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--methods", "joint,ogm_ge"),
            "ogm_ge takes class numbers.*, but mine has several labels per",
        ),
        (
            ("--methods", "joint", "--select", "balanced_accuracy"),
            "--select balanced_accuracy does not apply to mine. Choose from: loss, accuracy",
        ),
    ],
)
def test_what_several_labels_do_not_go_with_is_said_before_training(
    options, message, tmp_path, capsys
):
    labels = np.stack([np.arange(30) % 2, np.arange(30) % 3 == 0], 1)
    path, x = tmp_path / "mine.npz", np.arange(60.0).reshape(30, 2)
    save_npz(path, labels, np.repeat([0, 1, 2], 10), {"x": x, "y": x})
    out = tmp_path / "out"
    assert main(["compare", "--data", str(path), "--out", str(out), *options]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (out / "runs").exists()


def test_a_run_loads_anywhere(run, data, tmp_path, monkeypatch):
    """In another folder, without its data."""
    shutil.copytree(run, tmp_path / "moved")
    trained = load_run(tmp_path / "moved")
    assert list(trained.modalities) == ["x", "eye", "steps"]
    assert trained.task.names == tuple(CLASSES)
    before = load_run(run).predict(load(str(data)), "test")
    assert torch.equal(trained.predict(load(str(data)), "test"), before)


def test_a_modality_that_the_data_lack_is_told(run, data, tmp_path, capsys):
    with np.load(data) as file:
        np.savez(tmp_path / "few.npz", **{k: file[k] for k in file.files if k[:3] != "eye"})
    assert len(rows(run, str(tmp_path / "few.npz"), "test")) == 30
    assert (
        "few.npz lacks eye, which counts as missing from every sample." in capsys.readouterr().err
    )


@pytest.mark.parametrize("without", [["x"], ["steps"], ["eye", "steps"]])
def test_modalities_left_out_are_as_if_they_were_not_there(run, data, tmp_path, without):
    found = [r.answers for r in rows(run, str(data), "test", without)]
    assert found != [r.answers for r in rows(run, str(data))]
    assert np.isfinite(found).all()
    with np.load(data) as file:
        left = {k: file[k] for k in file.files if k.partition("_")[0] not in without}
    np.savez(tmp_path / "fewer.npz", **left)
    assert [r.answers for r in rows(run, str(tmp_path / "fewer.npz"))] == found


def test_a_sample_with_nothing_that_the_run_reads_is_refused_or_skipped(
    run, data, tmp_path, capsys
):
    """The steps of its twelfth sample are left out; the other modalities are never there."""
    with np.load(data) as file:
        left = {k: file[k] for k in file.files if k not in ("labels", "split", "class_names")}
    offset = left["steps_offset"]
    gone = np.arange(offset[11], offset[12])
    left["steps"] = np.delete(left["steps"], gone, 0)
    left["steps_offset"] = offset - len(gone) * (np.arange(91) > 11)
    path = tmp_path / "empty.npz"
    np.savez(path, **left)
    assert len(rows(run, str(path), "test", ["x"])) == 90
    said = "sample 11 has none of the modalities steps"
    with pytest.raises(ValueError, match=f"{said}. Leave out such samples with --skip"):
        rows(run, str(path), "test", ["x", "eye"])
    known = load_run(run)
    found = list(predictions(known, str(path), "test", ["x", "eye"], skip_broken=True))
    assert [r.sample for r in found] == [str(n) for n in range(90) if n != 11]
    assert said in capsys.readouterr().err
    part = load_npz(path, labelled=False)
    with pytest.raises(ValueError, match=said):
        known.predict(part, "test", ["x", "eye"])
    steps = {"steps": part.split("test").__getitems__([10, 11])["inputs"]["steps"]}
    with pytest.raises(ValueError, match="sample 1 has none of the modalities steps"):
        known.answers(steps, {"steps": torch.tensor([True, False])})


def test_without_labels_every_sample_is_predicted(run, data, tmp_path):
    whole = [p for split in ("train", "val", "test") for p in rows(run, str(data), split)]
    with np.load(data) as file:
        left = {k: file[k] for k in file.files if k not in ("labels", "split", "class_names")}
    np.savez(tmp_path / "new.npz", **left)
    found = rows(run, str(tmp_path / "new.npz"))
    expected = [r.answers for r in whole]
    np.testing.assert_allclose([r.answers for r in found], expected, atol=1e-6)
    assert {r.label for r in found} == {""}


def test_labels_and_splits_are_taken_one_without_the_other(run, data, tmp_path):
    with np.load(data) as file:
        whole = {k: file[k] for k in file.files}
    split = whole.pop("split")
    np.savez(tmp_path / "labels.npz", **whole)
    assert [r.label for r in rows(run, str(tmp_path / "labels.npz"))] == [
        CLASSES[n] for n in whole["labels"]
    ]
    np.savez(tmp_path / "all_test.npz", **whole, split=np.full(90, "test"))
    assert len(rows(run, str(tmp_path / "all_test.npz"))) == 90
    del whole["labels"]
    np.savez(tmp_path / "splits.npz", **whole, split=split)
    assert {r.label for r in rows(run, str(tmp_path / "splits.npz"), "val")} == {""}
    with pytest.raises(ValueError, match="its val split is empty"):
        rows(run, str(tmp_path / "all_test.npz"), "val")


def with_arrays(data, path, **arrays):
    """A copy of a file with other arrays."""
    with np.load(data) as file:
        np.savez(path, **{k: file[k] for k in file.files} | arrays)
    return str(path)


def test_labels_are_read_by_the_run_s_task(run, data, tmp_path):
    path = with_arrays(data, tmp_path / "floats.npz", labels=np.arange(90) % 2 / 1.0)
    assert [r.label for r in rows(run, path)] == CLASSES * 15


def test_samples_are_called_as_the_file_calls_them(run, data, tmp_path):
    names = np.array([f"clip{n}" for n in range(90)])
    path = with_arrays(data, tmp_path / "named.npz", id=names)
    assert [r.sample for r in rows(run, path)] == names[60:].tolist()


def test_a_modality_whose_values_all_differ_in_the_new_file(tmp_path, capsys):
    """A column of identities that recur in training, but number the few new samples."""
    shop, labels, split = np.arange(60) % 10, np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(tmp_path / "shops.npz", labels, split, {"x": shop[::-1] / 9, "shop_id": shop})
    training = Training(str(tmp_path / "shops.npz"), epochs=1, width=4)
    run_cell(Cell(training, "joint", 0), tmp_path / "run")
    np.savez(tmp_path / "new.npz", x=np.ones(3), shop_id=np.arange(3))
    found = rows(tmp_path / "run", str(tmp_path / "new.npz"))
    inputs = {"x": torch.ones(3, 1), "shop_id": torch.arange(3).unsqueeze(1)}
    expected = load_run(tmp_path / "run").answers(inputs).tolist()
    np.testing.assert_allclose([r.answers for r in found], expected, atol=1e-6)
    assert "lacks" not in capsys.readouterr().err


def test_the_splits_are_those_of_a_training(run, data, tmp_path, capsys):
    """Of a file without a validation split, whose training draws one."""
    split = np.repeat(["train", "test"], [60, 30])
    path = with_arrays(data, tmp_path / "two.npz", split=split)
    wanted = load_npz(tmp_path / "two.npz")
    assert len(rows(run, path)) == 30
    assert "validation split" not in capsys.readouterr().err
    for name in ("train", "val"):
        found = [int(r.sample) for r in rows(run, path, name)]
        assert found == wanted.split(name).rows.tolist()
        assert "two.npz has no validation split: 8 of the 60 training" in capsys.readouterr().err


def test_a_run_that_has_not_finished_is_told(run, data, tmp_path, capsys):
    unfinished = Path(shutil.copytree(run, tmp_path / "run"))
    (unfinished / "result.json").unlink()
    assert rows(unfinished, str(data)) == rows(run, str(data))
    epoch = Result.read(run).best_epoch
    said = f"{unfinished} has no result.json: its training continues, was stopped, or failed."
    assert capsys.readouterr().err.count(f"{said} These are the weights of epoch {epoch} (") == 1


def test_what_the_test_of_the_run_had_to_bear_is_told(run, data, capsys):
    trained = replace(load_run(run), noise={"eye": 2.0}, missing={"x": 0.3, "steps": 0.5})
    list(predictions(trained, str(data), without=["steps"]))
    said = capsys.readouterr().err
    assert "'eye' of" in said
    taken = f"'x' was taken from 30 % of the test samples of {run} (--missing or --missing-test);"
    assert taken in said
    assert "'steps'" not in said


@pytest.mark.slow
def test_a_table_without_labels(tmp_path, capsys):
    lines = [f"{k % 2 * 4 - 2 + 0.01 * k},{k},{CLASSES[k % 2]}" for k in range(40)]
    (tmp_path / "t.csv").write_text("x,y,label\n" + "\n".join(lines))
    training = ["--data", str(tmp_path / "t.csv"), "--epochs", "20", "--width", "8", "--lr", "0.1"]
    training += ["--batch_size", "8"]
    assert main(["train", *training, "--method", "joint", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "new.csv").write_text("name,x\nfirst,-2\nsecond,2\nthird,\nfourth,1.5\n")
    new = str(tmp_path / "new.csv")
    with pytest.raises(ValueError, match=r"1 of 4 rows .*:\n  third: has no modality"):
        rows(tmp_path / "run", new)
    (tmp_path / "new.csv").write_text("name,x,y\nfirst,-2,\nsecond,2,\nthird,,3\n")
    found = rows(tmp_path / "run", new)
    assert [r.sample for r in found] == ["first", "second", "third"]
    assert found[0].answers[0] > 0.5 > found[1].answers[0]
    alone = load_run(tmp_path / "run").answers({"y": torch.tensor([[3.0]])})
    assert found[2].answers == pytest.approx(alone[0].tolist(), abs=1e-6)
    with pytest.raises(ValueError, match=r"new\.csv is a table.* Leave --split out"):
        rows(tmp_path / "run", new, "test")
    assert "all rows" not in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("x,y,split\n-2,1,train\n2,3,test\n")
    assert len(rows(tmp_path / "run", new)) == 2
    assert "new.csv: all rows are predicted, whatever their split." in capsys.readouterr().err
    capsys.readouterr()
    (tmp_path / "new.csv").write_text("x,Y\n-2,1\n2,3\n,\n,\n")
    assert len(rows(tmp_path / "run", new)) == 2
    said = capsys.readouterr().err
    assert "new.csv lacks y, which counts as missing from every sample." in said
    assert "new.csv: the run does not use Y: ignored." in said
    assert "new.csv: 2 rows empty at the end: left out." in said


@pytest.mark.parametrize(
    ("trained_on", "options", "new", "labels"),
    [
        ("x,label,mood", ["--label", "mood"], "x,label,mood\n-2,rain,no\n2,sun,yes", ["no", "yes"]),
        ("x,label,mood", ["--label", "mood"], "x,label\n-2,rain\n2,sun", ["", ""]),
        ("x,mood,label", [], "x,mood,label\n-2,rain,no\n2,sun,yes", ["no", "yes"]),
        ("x,mood,label", [], "x\n-2\n2", ["", ""]),
        ("x,label_a,label_b", [], "x,label,label_a,label_b\n-2,c,1,0\n2,d,1,1", ["a", "a;b"]),
        ("x,label_a,label_b", [], "x,label\n-2,c\n2,d", ["", ""]),
    ],
)
def test_only_the_column_of_the_run_s_labels_is_read_as_such(
    trained_on, options, new, labels, tmp_path, capsys
):
    several = "label_a" in trained_on
    cells = [("1", "0"), ("0", "1")] if several else [("sun", "no"), ("rain", "yes")]
    lines = [",".join((str(k % 2 * 4 - 2 + 0.01 * k), *cells[k % 2])) for k in range(40)]
    (tmp_path / "t.csv").write_text(f"{trained_on}\n" + "\n".join(lines))
    common = ["--data", str(tmp_path / "t.csv"), "--modalities", "x", "--epochs", "1"]
    out = ["--method", "joint", "--width", "8", "--out", str(tmp_path / "run")]
    assert main(["train", *common, *options, *out]) == 0
    (tmp_path / "new.csv").write_text(new)
    capsys.readouterr()
    assert [r.label for r in rows(tmp_path / "run", str(tmp_path / "new.csv"))] == labels
    kept = "new.csv: has no column" in (said := capsys.readouterr().err)
    assert kept == (labels == ["", ""] and "label" in new)
    assert "If 'label' holds the same, rename it." in said or not kept


def test_a_run_that_knows_no_column_of_labels_takes_label(run, tmp_path):
    (tmp_path / "new.csv").write_text('x,label\n"[1,1,1]",yes\n"[-1,-1,-1]",no')
    assert [r.label for r in rows(run, str(tmp_path / "new.csv"))] == ["yes", "no"]


def test_a_folder_as_the_hub_has_it(tmp_path):
    train, test = dataset(range(24)), dataset(range(24, 32))
    hub = on_the_hub(tmp_path / "hub", train=train, validation=test, test=test)
    training = ["--data", str(hub), "--epochs", "1", "--width", "8", "--modalities", "photo,age"]
    training += ["--readers.photo", "image(size=[16,16])"]
    assert main(["train", *training, "--method", "joint", "--out", str(tmp_path / "run")]) == 0
    found = rows(tmp_path / "run", str(hub))
    assert [r.label for r in found] == ["cat", "dog"] * 20
    saved = tmp_path / "saved"
    test.remove_columns("label").save_to_disk(saved)
    alone = rows(tmp_path / "run", str(saved))
    assert {r.label for r in alone} == {""}
    for one, two in zip(alone, found[:8], strict=True):  # test comes first
        assert one.answers == pytest.approx(two.answers, abs=1e-6)


def test_rows_of_other_shapes_and_files_read_otherwise_are_refused(tmp_path, capsys):
    for k in range(40):
        np.save(tmp_path / f"{k}.npy", np.full((2, 3), k % 2, np.float32))
    lines = "".join(f"{k}.npy,{CLASSES[k % 2]}\n" for k in range(40))
    (tmp_path / "t.csv").write_text("x,label\n" + lines)
    training = ["--data", str(tmp_path / "t.csv"), "--epochs", "1", "--width", "8"]
    assert main(["train", *training, "--method", "joint", "--out", str(tmp_path / "run")]) == 0
    np.save(tmp_path / "odd.npy", np.ones((2, 1), np.float32))
    new = tmp_path / "new.csv"
    new.write_text("name,x\none,0.npy\ntwo,odd.npy\ngone,gone.npy\none,1.npy\n")
    with pytest.raises(ValueError, match=r"2 of 4 rows .*\n  two: x: has the .*\n  gone: x: "):
        rows(tmp_path / "run", str(new))
    command = ["predict", str(tmp_path / "run"), "--data", str(new), "--skip-broken"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr()
    assert "2 broken rows were left out:\n  two: x: has the shape (2, 1)" in said.err
    assert [row["sample"] for row in csv.DictReader(io.StringIO(said.out))] == ["one", "one"]
    trained = load_run(tmp_path / "run")
    official = replace(trained, read={"x": "steps(units=GloVe)"})
    with pytest.raises(ValueError, match=r"'x' of .* was read as steps\(units=GloVe\), from"):
        list(predictions(official, str(new)))
    store = ["prepare", str(tmp_path / "t.csv"), "--out", str(tmp_path / "store")]
    assert main([*store, "--readers.x", "array(kind=sequence)"]) == 0
    with pytest.raises(ValueError, match=r"'x' was read as array.* but .* was trained on array"):
        rows(tmp_path / "run", str(tmp_path / "store"))


def test_the_command(run, data, tmp_path, capsys):
    assert main(["predict", str(run), "--data", str(data), "--without", "eye"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == 30
    assert list(table[0]) == ["sample", "label", "predicted", "no", "yes"]
    for row in table:
        assert float(row["no"]) + float(row["yes"]) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(CLASSES, key=lambda name: float(row[name]))
    out = tmp_path / "found" / "p.csv"
    assert main(["predict", str(run), "--data", str(data), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 31


@pytest.mark.parametrize("method", ["qmf", "unimodal(modality=x)", "greedy"])
def test_every_head_and_encoders_of_ones_own(data, tmp_path, method, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "run")
    encoders = {"x": "test_run.Lazy"}
    training = Training(str(data), epochs=1, batch_size=10, width=8, encoders=encoders)
    run_cell(Cell(training, method, 0), tmp_path)
    with np.load(tmp_path / "predictions.npz") as file:
        expected = file["probabilities"]
    found = [r.answers for r in rows(tmp_path, str(data), trust=True)]
    np.testing.assert_allclose(found, expected, atol=0.02)


WRONG = (7, -1, 1.5, float("nan"), True, None, "", "word", "a(", [1], [["x"]], {"a": 1}, {"x": 1})


def said(call, *arguments):
    """The sentence that a call ends with; empty if it does not."""
    try:
        call(*arguments)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


class TestEditedRuns:
    @pytest.fixture
    def copy(self, run, tmp_path):
        return Path(shutil.copytree(run, tmp_path / "run"))

    @pytest.mark.slow
    def test_every_setting_in_every_type(self, copy):
        path = copy / "config.yaml"
        before = yaml.safe_load(path.read_text())
        free = {"data_sha256", "versions"}  # say where a run comes from, and change nothing
        refused = set()
        for name in before:
            for value in WRONG:
                path.write_text(yaml.safe_dump({**before, name: value}))
                if error := said(load_run, copy):
                    refused.add(name)
                    assert str(copy) in error
        assert refused == before.keys() - free
        for name in before.keys() - free:
            path.write_text(yaml.safe_dump({k: v for k, v in before.items() if k != name}))
            assert str(path) in said(load_run, copy)
        path.write_text("data: 1\nepochs: 1\nmethod: " + "[" * 5000 + "]" * 5000)
        assert f"{path}: is damaged" in said(load_run, copy)
        assert "--out" not in said(load_run, copy)

    def test_every_entry_of_a_checkpoint_in_every_type(self, copy):
        path = copy / "best.ckpt"
        before = torch.load(path, weights_only=True)
        (copy / "result.json").unlink()  # it knows the checksum
        for name in before:
            for value in WRONG[2:] if name == "epoch" else WRONG[1:]:
                torch.save({**before, name: value}, path)
                assert str(copy) in said(load_run, copy)
        for name in before["modalities"]["x"].keys() - {"low", "high", "ragged"}:
            for value in (*WRONG[1:], "nn"):
                entry = {**before["modalities"]["x"], name: value}
                torch.save({**before, "modalities": {**before["modalities"], "x": entry}}, path)
                assert str(copy) in said(load_run, copy)

    def test_a_checkpoint_leads_to_no_other_weights(self, copy):
        before = torch.load(copy / "best.ckpt", weights_only=True)
        (copy / "result.json").unlink()
        config = yaml.safe_load((copy / "config.yaml").read_text())
        config["encoders"] = {"eye": "vit(pretrained=here)"}
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({**before, "configurations": {"eye": "/elsewhere"}}, copy / "best.ckpt")
        assert "configurations takes a mapping" in said(load_run, copy)

    def test_a_checkpoint_is_the_one_that_the_run_wrote(self, copy):
        path = copy / "best.ckpt"
        best = torch.load(path, weights_only=True)
        for value in best["state_dict"].values():
            value.mul_(2)
        torch.save(best, path)
        with pytest.raises(ValueError, match=r"best\.ckpt is damaged: it is not as the run wrote"):
            load_run(copy)

    @pytest.mark.parametrize("change", ["0.", "}", '"method"', "1"])
    def test_a_result_is_the_one_that_the_run_wrote(self, copy, change):
        path = copy / "result.json"
        path.write_text(path.read_text().replace(change, "2", 1))
        with pytest.raises(ValueError, match=r"result\.json is damaged \("):
            Result.read(copy)

    def test_a_result_in_every_type(self, copy):
        path = copy / "result.json"
        before = asdict(Result.read(copy))
        values = (*WRONG[1:], {"val": {}}, {"val": {"accuracy": "x"}})
        for name in before:
            for value in values:
                if name in ("seconds", "peak_memory_mb") and isinstance(value, float):
                    continue
                if name == "peak_memory_mb" and value is None:  # unknown
                    continue
                write_text(path, json.dumps({**before, name: value}))
                if error := said(Result.read, copy):
                    assert str(path) in error
                else:
                    assert type(getattr(Result.read(copy), name)) is type(before[name])
            write_text(path, json.dumps({k: v for k, v in before.items() if k != name}))
            assert name == "files" or str(path) in said(Result.read, copy)
        for text in ("", "[]", "{", "[" * 5000, "7", '{"a": 1}'):
            write_text(path, text)
            assert f"{path} is damaged" in said(Result.read, copy)


class TestMessages:
    def test_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a run"):
            load_run(tmp_path)

    def test_a_damaged_checkpoint(self, run, tmp_path):
        shutil.copytree(run, tmp_path / "run")
        (tmp_path / "run" / "best.ckpt").write_bytes(b"half")
        (tmp_path / "run" / "result.json").unlink()
        with pytest.raises(ValueError, match=r"best\.ckpt is damaged"):
            load_run(tmp_path / "run")

    def test_other_modalities(self, run, tmp_path):
        (tmp_path / "t.csv").write_text("z\n1\n2\n")
        with pytest.raises(ValueError, match="has none of the columns x, eye, steps"):
            rows(run, str(tmp_path / "t.csv"))
        with pytest.raises(ValueError, match="was trained on x, eye, steps; the data has top"):
            rows(run, "digits")

    def test_another_shape(self, run, tmp_path):
        np.savez(tmp_path / "n.npz", x=np.zeros((5, 4), np.float32))
        with pytest.raises(ValueError, match=r"'x' has the shape \(4,\), but .* on \(3,\)"):
            rows(run, str(tmp_path / "n.npz"))

    def test_a_modality_that_is_not_there(self, run, data, capsys):
        assert main(["predict", str(run), "--data", str(data), "--without", "ey"]) == 1
        assert "Did you mean eye?" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["joint", "unimodal(modality=eye)"])
def test_a_run_needs_the_folder_of_its_first_weights_no_more(method, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    sizes = {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1]}
    ResNetModel(ResNetConfig(**sizes, layer_type="basic")).save_pretrained(tmp_path / "weights")
    draws = np.random.default_rng(0)
    eye = draws.normal(size=(60, 1, 16, 16)).astype(np.float32)
    arrays = {"ear": eye, "eye": eye}
    save_npz(tmp_path / "a.npz", np.arange(60) % 2, np.repeat([0, 1, 2], 20), arrays)
    encoders = dict.fromkeys(arrays, f"resnet18(pretrained={tmp_path / 'weights'})")
    training = Training(str(tmp_path / "a.npz"), epochs=1, batch_size=10, encoders=encoders)
    run_cell(Cell(training, method, 0), tmp_path / "run")
    before = load_run(tmp_path / "run").predict(load(training.data), "test")
    shutil.rmtree(tmp_path / "weights")
    assert torch.equal(load_run(tmp_path / "run").predict(load(training.data), "test"), before)


def test_noise_is_of_the_training_and_not_of_what_is_stored(tmp_path):
    n = 24
    eye = np.random.default_rng(0).integers(0, 255, (n, 8, 8)).astype(np.uint8)
    save_npz(tmp_path / "d.npz", np.arange(n) % 2, np.repeat([0, 1, 2], 8), {"eye": eye}, CLASSES)
    training = Training(
        str(tmp_path / "d.npz"), epochs=1, batch_size=8, width=8, noise={"eye": 1.0}
    )
    run_cell(Cell(training, "joint", 0), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert (run.modalities["eye"].dtype, run.noise) == ("uint8", {"eye": 1.0})


def test_what_was_learnt_for_a_missing_modality_comes_back(data, tmp_path):
    training = Training(
        str(data), epochs=2, batch_size=10, width=8, missing={"x": 0.5}, missing_token=True
    )
    run_cell(Cell(training, "joint", 0), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.missing == {"x": 0.5}
    assert run.model.head.missing["x"].any()
    assert not run.model.head.missing["eye"].any()  # which no sample lacks
    found = run.predict(load(str(data)), "test", ["x"])
    run.model.head.missing["x"].data.zero_()
    assert not torch.equal(run.predict(load(str(data)), "test", ["x"]), found)


def test_an_odd_first_row_does_not_condemn_the_others(tmp_path):
    for k in range(20):
        np.save(tmp_path / f"{k}.npy", np.full((1 + k % 3, 4), k % 2, np.float32))
    rows_of = "".join(f"{k}.npy,{CLASSES[k % 2]}\n" for k in range(20))
    (tmp_path / "t.csv").write_text("x,label\n" + rows_of)
    training = ["--data", str(tmp_path / "t.csv"), "--epochs", "1", "--width", "8"]
    assert main(["train", *training, "--method", "joint", "--out", str(tmp_path / "run")]) == 0
    np.save(tmp_path / "odd.npy", np.ones((2, 9), np.int64))
    (tmp_path / "new.csv").write_text("name,x\nodd,odd.npy\nfine,1.npy\n")
    with pytest.raises(
        ValueError, match=r"1 of 2 rows .*\n  odd: x: .* but all samples must have \(any, 4\)\n"
    ):
        rows(tmp_path / "run", str(tmp_path / "new.csv"))
    trained = load_run(tmp_path / "run")
    found = list(predictions(trained, str(tmp_path / "new.csv"), skip_broken=True))
    assert [row.sample for row in found] == ["fine"]


def test_a_comparison_is_not_a_run_and_files_of_two_runs_are_none(run, tmp_path):
    shutil.copytree(run, tmp_path / "out" / "runs" / "joint-0")
    with pytest.raises(FileNotFoundError, match=r"is a comparison.*runs/joint-0"):
        load_run(tmp_path / "out")
    mixed = tmp_path / "out" / "runs" / "joint-0"
    text = (mixed / "config.yaml").read_text().replace("width: 8", "width: 16")
    (mixed / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="cannot build a model from its config"):
        load_run(mixed)
