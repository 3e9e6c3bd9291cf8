"""Every recipe on a miniature of its data set's official tree."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml

import trees
from evenly.cli import main
from evenly.cli.options import parsed
from evenly.cli.sources import prepared
from evenly.cli.training import RECIPES, training_of
from evenly.data import load, save_npz
from evenly.data.raw.sets import SETS
from evenly.errors import UserError
from evenly.lab.run.build import build_criterion
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.spec import parse
from pools import Here

# Pictures are as large as in the recipes, so there are few: of each split a sample of each class.
TREES = {
    "cremad-": trees.cremad,
    "kinetics-sounds-": partial(trees.kinetics_sounds, classes=2),
    "ucf101-": trees.ucf101,
    "mosi-": trees.mosi,
    "av-mnist-": trees.av_mnist,
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_from_the_tree_to_a_report(recipe, tmp_path, capsys, monkeypatch):
    # In this process, so that the run, too, passes the test split fewer times through the model.
    monkeypatch.setattr("evenly.cli.compare.pool_of", lambda options: lambda training: Here())
    monkeypatch.setattr("evenly.lab.run.inspection.LEVELS", (1.0,))
    tree = next(made for start, made in TREES.items() if recipe.startswith(start))
    folder = tree(tmp_path / "tree")
    arguments = ["compare", "--recipe", recipe, "--folder", str(folder), "--limit-samples", "2"]
    arguments += ["--epochs", "1", "--seeds", "1", "--methods", "joint", "--jobs", "1"]
    arguments += ["--diagnose-every", "0", "--precision", "32"]
    written = yaml.safe_load(RECIPES[recipe].read_text())
    # Transformers are as wide as in the recipe, but not as deep: half a minute less.
    encoders = {
        name: text.replace("config={", "config={num_hidden_layers: 3, ")
        for name, text in written.get("encoders", {}).items()
    }
    arguments += ["--encoders", json.dumps(encoders)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["lr"] == written["lr"]
    assert settings["encoders"] == encoders
    assert settings["fusion"] == written.get("fusion", "concat")
    assert settings["epochs"] == 1
    with (tmp_path / "out" / "results.csv").open() as file:
        assert any(row["metric"] == "accuracy" for row in csv.DictReader(file))
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_names_a_data_set_and_its_modalities(recipe):
    written = yaml.safe_load(RECIPES[recipe].read_text())
    spec = parse(written.pop("source"))
    assert spec.name in SETS
    assert set(spec.settings) <= set(SETS[spec.name].settings)
    Training(**written)


class TestMessages:
    def test_an_unknown_recipe(self, capsys):
        assert main(["compare", "--recipe", "cremad-resnet"]) == 1
        assert "Did you mean cremad-resnet18" in capsys.readouterr().err

    def test_without_its_files(self, capsys, tmp_path):
        assert main(["compare", "--recipe=cremad-resnet18", "--out", str(tmp_path / "o")]) == 1
        assert "needs its files: give their folder with --folder" in capsys.readouterr().err

    def test_a_store_that_was_prepared_otherwise(self, capsys, tmp_path):
        """The recipe's source is mosi(classes=2)."""
        tree, two, scores = str(trees.mosi(tmp_path / "tree")), tmp_path / "2", tmp_path / "s"
        for source, out in (("mosi", two), ("mosi(task=number)", scores)):
            assert main(["prepare", source, "--folder", tree, "--out", str(out)]) == 0
        capsys.readouterr()

        def taken(store, *more):
            arguments = ["compare", "--recipe", "mosi-transformer", "--data", str(store), *more]
            options = parsed(arguments)
            return prepared(training_of(options), tmp_path / "out", options, lambda _: ["joint"])

        assert taken(two).data == str(two)
        assert taken(scores, "--source", "mosi(task=number)").data == str(scores)
        assert taken(scores, "--task", "number").data == str(scores)
        with pytest.raises(UserError) as refused:
            taken(scores)
        assert str(refused.value) == (
            f"{scores} holds mosi(task=number), but mosi(task=classes) is asked for, by --source "
            "or a recipe. Prepare that with 'evenly prepare', or train on what the store holds "
            "with --source 'mosi(classes=2,task=number)'."
        )
        with pytest.raises(UserError, match="/2 holds mosi, but mosei is asked for, by"):
            taken(two, "--source", "mosei")
        (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{k},{k % 2}\n" for k in range(30)))
        own = tmp_path / "own"
        assert main(["prepare", str(tmp_path / "t.csv"), "--out", str(own)]) == 0
        assert taken(own).data == str(own)

    def test_a_folder_without_a_source(self, capsys, tmp_path):
        assert main(["train", "--folder", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
        assert "--folder needs --source" in capsys.readouterr().err


def test_limited_data_keep_every_class():
    data = load("digits")
    few = data.limited(25)
    for name in ("train", "val", "test"):
        counts = few.split(name).target.bincount(minlength=10)
        assert counts.sum() == 25
        assert counts.min() == 2
        assert counts.max() == 3
        whole = data.split(name)
        assert set(few.split(name).rows.tolist()) <= set(whole.rows.tolist())
    assert torch.equal(few.modalities["top"].mean, data.modalities["top"].mean)


def test_limited_data_have_one_sample_of_each_class_at_least():
    few = load("digits").limited(3)
    assert few.split("train").target.bincount(minlength=10).tolist() == [1] * 10


def test_limited_data_keep_every_label(tmp_path):
    """Label 'a' is the rarest of no sample, and first comes with the fourth."""
    target = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]])
    target = np.tile(target, (3, 1))
    names = ["a", "b", "c"]
    x = np.random.default_rng(0).normal(size=(21, 4)).astype("f4")
    save_npz(tmp_path / "a.npz", target, np.repeat([0, 1, 2], 7), {"x": x, "y": x[::-1]}, names)
    few = load(str(tmp_path / "a.npz")).limited(3)
    assert few.split("train").rows.tolist() == [0, 1, 2, 3]
    training = Training(str(tmp_path / "a.npz"), class_weights="balanced")
    assert build_criterion(few, training).pos_weight.tolist() == [3, 1, 3]


def test_the_learning_rate_steps(tmp_path):
    """As two runs of half the length: the second at a tenth of the rate changes little."""
    training = Training("digits", epochs=4, lr_step=2, width=8, limit_samples=40, diagnose_every=0)
    run_cell(Cell(training, "joint", 0), tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.0001)
