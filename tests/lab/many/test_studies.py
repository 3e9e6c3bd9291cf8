"""The paper's experiments as commands."""

import csv
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

from evenly.cli import main
from evenly.data import Modality, save_npz
from evenly.lab.many.studies import STUDIES, TABLE, VARIANTS, _transformer, planned, write_study
from evenly.lab.run.build import build_model, load_data, method_settings
from evenly.lab.run.settings import Cell, Training
from evenly.lab.statistics.paired import holm
from evenly.methods import METHODS
from evenly.report.folder import read_comparison
from evenly.spec import parse, split

DATA = "synthetic(train=60,val=30,test=60,classes=3,information=2)"
SMALL = ("--data", DATA, "--epochs", "4", "--width", "8", "--jobs", "2")

pytestmark = pytest.mark.xdist_group("studies")  # several look at one comparison

SOME = ("joint", "relearn", VARIANTS[1])


def texts(path):
    return {"".join(node.itertext()) for node in ET.parse(path).iter() if node.tag.endswith("text")}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder that holds a comparison."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = ["compare", *SMALL, "--methods", ",".join(SOME), "--seeds", "3", "--out", str(out)]
    assert main(command) == 0
    return out


@pytest.mark.slow
def test_differences_are_to_the_studys_reference(out):
    write_study("diagnosis", out, SOME)
    lines = {
        row["method"]: row for row in rows(out / "study-diagnosis.csv") if row["metric"] == "loss"
    }
    assert set(lines) == set(SOME)
    values = {}
    for row in rows(out / "results.csv"):
        if row["split"] == "test" and row["metric"] == "loss":
            values.setdefault(row["method"], []).append(float(row["value"]))
    for method, line in lines.items():
        if method == "relearn":
            assert line["difference"] == ""
            continue
        wanted = np.mean(values[method]) - np.mean(values["relearn"])
        assert float(line["difference"]) == pytest.approx(wanted)
    tested = [row for row in rows(out / "study-diagnosis.csv") if row["metric"] == "accuracy"]
    tested = [line for line in tested if line["p_value"]]
    corrected = holm([float(line["p_value"]) for line in tested])
    assert len(tested) == 2
    assert [float(line["p_holm"]) for line in tested] == pytest.approx(corrected)
    table = (out / "study-diagnosis.md").read_text()
    assert "| against relearn (points) | p (Holm) |" in table
    assert r"\begin{tabular}" in (out / "study-diagnosis.tex").read_text()
    assert {"joint", "relearn", "relearn(gap=shared)"} <= texts(out / "study-diagnosis.svg")


def test_studies_of_one_folder_share_runs_and_correct_by_themselves(out, capsys):
    before = {path: path.stat().st_mtime for path in out.glob("runs/*/result.json")}
    for name in ("figure4", "figure3"):
        assert main(["study", name, *SMALL, "--seeds", "3", "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime for path in out.glob("runs/*/result.json")} == before
    said = capsys.readouterr().out
    assert "Figure 4: gap, purity and accuracy along training: " in said
    own = [row for row in rows(out / "study-figure4.csv") if row["metric"] == "accuracy"]
    assert [row["method"] for row in own] == ["joint", "relearn"]
    assert own[1]["p_holm"] == own[1]["p_value"] != ""  # of one method there is nothing to correct
    assert {"m1", "m2", "gap", "re-learning", "val accuracy, %"} <= texts(out / "study-figure4.svg")
    assert {"m1", "joint", "relearn", "taken for another"} <= texts(out / "study-figure3.svg")
    assert set(read_comparison(out).methods) == set(SOME)


@pytest.mark.slow
def test_strengths_and_periods(tmp_path):
    command = ["study", "figure5", *SMALL, "--seeds", "1", "--epochs", "9"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    shown = texts(tmp_path / "study-figure5.svg")
    assert {"0", "0.5", "1", "2", "3", "5", "10"} <= shown  # the strengths, 0 is joint training
    assert "epochs between re-learnings" in shown
    found = {row["method"] for row in rows(tmp_path / "study-figure5.csv")}
    assert found == {
        "joint", "relearn", *(f"relearn(strength={v})" for v in ("0.5", "1", "2", "5", "10")),
        "relearn(every=1)", "relearn(every=3)",
    }  # fmt: skip


@pytest.mark.slow
def test_probes_of_encoders_and_models_of_one(tmp_path):
    """Figure 1 from a part of its methods."""
    methods = ["unimodal(modality=m1)", "unimodal(modality=m2)", "joint", "relearn"]
    command = ["compare", *SMALL, "--seeds", "1", "--methods", ",".join(methods)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    write_study("figure1", tmp_path, methods)
    shown = texts(tmp_path / "study-figure1.svg")
    assert {"m1 alone", "m2 alone", "m1 (dotted: trained alone)", "m2"} <= shown
    probed = {r["method"]: float(r["mean"]) for r in rows(tmp_path / "study-figure1.csv")
              if r["metric"] == "accuracy"}  # fmt: skip
    assert f"joint {100 * probed['joint']:.1f}" in shown  # a spot says its model's accuracy


@pytest.mark.parametrize("name", STUDIES)
def test_every_method_of_a_study_is_there(name):
    training = Training(data=DATA, noise={"m1": 1.0})
    for spec in split(STUDIES[name].methods(training)):
        assert spec.name in METHODS
        if spec.name != "unimodal":
            method_settings(Cell(training, spec.text, 0))
    assert STUDIES[name].reference in STUDIES[name].methods(training).split(",")


def test_the_tables_have_the_papers_methods_and_the_reference_rows():
    paper = {"joint", "g_blending", "ogm_ge", "greedy", "pmr", "agm", "mslr", "relearn"}
    references = {"unimodal", "multi_loss", "ensemble", "finetune", "modality_dropout"}
    assert set(TABLE.split(",")) == paper | references


def modality(kind, *shape):
    return Modality("m", kind, shape, torch.zeros(1), torch.ones(1))


def test_a_transformer_for_each_kind_of_input():
    assert _transformer(modality("vector", 5)) == ""
    assert _transformer(modality("sequence", 9, 5)) == "transformer"
    assert parse(_transformer(modality("image", 1, 128, 300))).name == "ast"
    for shape, patch in (
        ((1, 28, 28), 7),
        ((3, 224, 224), 16),
        ((1, 8, 8), 2),
        ((1, 4, 8), 1),
        ((3, 30, 20), 5),
    ):
        spec = parse(_transformer(modality("image", *shape)))
        assert (spec.name, spec.settings["config"]["patch_size"]) == ("vit", patch)
    assert parse(_transformer(modality("video", 2, 3, 64, 64))).name == "vit"


def test_transformers_meet_in_bottlenecks_where_all_modalities_have_steps(tmp_path, capsys):
    n = 24
    labels, part = np.arange(n) % 2, np.repeat([0, 1, 2], 8)
    steps = np.ones((n, 6, 3), np.float32) * labels[:, None, None]
    eye = np.random.default_rng(0).integers(0, 255, (n, 8, 8)).astype(np.uint8)
    save_npz(tmp_path / "t.npz", labels, part, {"steps": steps, "eye": eye}, ["no", "yes"])
    asked = Training(data=str(tmp_path / "t.npz"))
    training, methods = planned(STUDIES["transformers"], asked)
    assert (training.fusion, training.optimizer, training.lr) == ("mbt", "adamw", 3e-4)
    assert "unimodal(modality=eye)" in methods
    assert {"relearn", "pmr", "agm"} < set(methods)
    assert "modality_dropout" not in methods
    said = "encoders that do not see each other, unlike --fusion mbt: modality_dropout."
    assert f"left out, as they need {said}" in capsys.readouterr().err
    model = build_model(load_data(training), Cell(training, "joint", 0))
    assert type(model.head).__name__ == "BottleneckHead"
    mine, _ = planned(STUDIES["transformers"], replace(asked, encoders={"eye": "vit"}))
    assert mine.encoders == {"eye": "vit", "steps": "transformer"}
    assert (mine.fusion, mine.optimizer, mine.lr) == ("concat", "adamw", 3e-4)
    said = capsys.readouterr().err
    assert "the study leaves as given: --encoders.eye vit." in said
    assert "the encoders meet by --fusion concat, as some are given." in said
    with pytest.raises(ValueError, match="has only vectors"):
        planned(STUDIES["transformers"], Training(data=DATA))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": 1e-3}, ("adamw", 1e-3, "mbt")),
        ({"optimizer": "adamw(betas=[0.9,0.98])"}, ("adamw(betas=[0.9,0.98])", 3e-4, "mbt")),
        ({"optimizer": "sgd"}, ("sgd", Training().lr, "mbt")),  # 3e-4 is AdamW's
        ({"optimizer": "sgd", "lr": 0.01, "fusion": "concat"}, ("sgd", 0.01, "concat")),
    ],
)
def test_a_study_changes_only_what_is_not_given(changes, expected, tmp_path, capsys):
    labels, part = np.arange(24) % 2, np.repeat([0, 1, 2], 8)
    steps = {name: np.ones((24, 6, 3), np.float32) for name in ("a", "b")}
    save_npz(tmp_path / "t.npz", labels, part, steps, ["no", "yes"])
    asked = Training(data=str(tmp_path / "t.npz"), **changes)
    found, _ = planned(STUDIES["transformers"], asked, changes.keys())
    assert (found.optimizer, found.lr, found.fusion) == expected
    said = capsys.readouterr().err
    assert "the study leaves as given: " in said
    assert all(f"--{name} {value}" in said for name, value in changes.items())


def test_what_a_study_needs_is_said():
    with pytest.raises(ValueError, match=r"--noise\.m1 2\. .*has the modalities m1, m2"):
        planned(STUDIES["scarce"], Training(data=DATA))
    with pytest.raises(ValueError, match="three or more"):
        planned(STUDIES["modalities"], Training(data=DATA))
    training, _ = planned(STUDIES["scarce"], Training(data=DATA, noise={"m2": 2.0}))
    assert training.noise == {"m2": 2.0}


def test_a_study_of_several_labels_leaves_out_the_methods_that_cannot_take_them(tmp_path, capsys):
    stream, part = np.random.default_rng(0), np.repeat([0, 1, 2], 20)
    labels = stream.integers(0, 2, (60, 3))
    inputs = {name: stream.normal(size=(60, 4)).astype(np.float32) for name in ("x", "z")}
    save_npz(tmp_path / "l.npz", labels, part, inputs, ["a", "b", "c"])
    _, methods = planned(STUDIES["figure1"], Training(data=str(tmp_path / "l.npz")))
    alone = [f"unimodal(modality={name})" for name in "xz"]
    assert methods == [*alone, "joint", "g_blending", "greedy", "relearn"]
    assert "left out, as they do not take several labels per sample: ogm_ge, pmr, agm." in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_studies_of_numbers(tmp_path, capsys):
    stream, part = np.random.default_rng(0), np.repeat([0, 1, 2], 40)
    number = stream.normal(size=(120, 2))
    inputs = {name: number + stream.normal(size=(120, 2)) for name in ("x", "z")}
    for name, columns in (("one", number[:, 0]), ("two", number)):
        named = [*"ab"][: np.ndim(columns)]
        save_npz(tmp_path / f"{name}.npz", columns, part, inputs, named)
    one, two = (Training(data=str(tmp_path / f"{name}.npz")) for name in ("one", "two"))
    for study in ("figure1", "figure3"):
        with pytest.raises(ValueError, match="separate classes, but one has numbers"):
            planned(STUDIES[study], one)
    assert planned(STUDIES["figure5"], two)[1] == planned(STUDIES["figure5"], one)[1]
    assert "relearn" in planned(STUDIES["table"], two)[1]
    assert "do not take regression targets: ogm_ge," in capsys.readouterr().err

    out = tmp_path / "out"
    small = ("--data", one.data, "--epochs", "4", "--width", "8", "--jobs", "2")
    for study, seeds, title in (
        ("table", "1", "Test MAE"),
        ("figure4", "3", "val MAE"),
        ("figure5", "1", "Test MAE"),
    ):
        command = ["study", study, *small, "--seeds", seeds, "--precision", "32"]
        assert main([*command, "--out", str(out / study)]) == 0
        assert title in texts(out / study / f"study-{study}.svg")
    with (out / "table" / "study-table.csv").open() as file:
        assert {"mae", "pearson"} < {row["metric"] for row in csv.DictReader(file)}


def test_the_command_lists_and_knows_its_studies(capsys):
    assert main(["study"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said and study.title in said for name, study in STUDIES.items())
    assert main(["study", "figure9", "--data", DATA]) == 1
    assert "unknown study 'figure9'" in capsys.readouterr().err
