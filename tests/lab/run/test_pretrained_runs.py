"""Runs on encoders of Transformers: frozen, and loaded without the folder of their weights."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from evenly.data import load, save_npz
from evenly.lab.run.build import build_model, build_optimizer
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained.load import load_run

SIZE = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, numbers, and a tower for the pictures."""
    place = tmp_path_factory.mktemp("auto")
    torch.manual_seed(0)
    transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            image_size=16, patch_size=8,
        )
    ).save_pretrained(place / "weights")  # fmt: skip
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE).save_pretrained(
        place / "weights"
    )
    draws, labels = np.random.default_rng(0), np.arange(60) % 2
    eye = draws.integers(0, 156, (60, 3, 16, 16)) + 100 * labels[:, None, None, None]
    x = (labels[:, None] + draws.normal(size=(60, 3))).astype(np.float32)
    split = np.repeat([0, 1, 2], 20)
    save_npz(place / "a.npz", labels, split, {"eye": eye.astype(np.uint8), "x": x})
    return place


def cell(place, method="joint", **settings):
    given = "".join(f",{key}={value}" for key, value in settings.items())
    encoders = {"eye": f"auto(pretrained={place / 'weights'}{given})"}
    training = Training(
        str(place / "a.npz"), epochs=3, batch_size=10, encoders=encoders, width=8, precision="32"
    )
    return Cell(training, method, 0)


def test_a_run_needs_the_folder_no_more(place, tmp_path):
    shutil.copytree(place, tmp_path / "here")
    run_cell(cell(tmp_path / "here", freeze="true", width=4), tmp_path / "run")
    data = load(str(place / "a.npz"))
    before = load_run(tmp_path / "run").predict(data, "test")
    shutil.rmtree(tmp_path / "here")
    assert torch.equal(load_run(tmp_path / "run").predict(data, "test"), before)


def test_what_is_frozen_is_not_in_the_optimiser(place):
    asked = cell(place, freeze="true", width=4)
    model = build_model(load(asked.training.data), asked)
    known = {p for group in build_optimizer(model, asked.training).param_groups
             for p in group["params"]}  # fmt: skip
    assert known == {p for p in model.parameters() if p.requires_grad}
    assert not known & set(model.encoders["eye"].model.parameters())


def test_relearning_says_that_it_has_nothing_to_pull_back(place, tmp_path):
    asked = cell(place, "relearn(every=1,first=1)", freeze="true")
    notes = prepare([asked])[1]
    assert any("Auto, frozen; x, vector (3,): MLP" in note for note in notes)
    assert "has nothing to pull back in eye, whose encoder is frozen." in str(notes)
    run_cell(asked, tmp_path / "run")
    row = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert "relearn_strength/x" in row
    assert "relearn_strength/eye" not in row
    learns = prepare([cell(place, "relearn", freeze="true", width=4)])[1]
    assert "nothing to pull back" not in str(learns)


@pytest.mark.parametrize("method", ["ogm_ge", "multi_loss", "ogm_ge+relearn"])
def test_methods_that_act_on_an_encoder_refuse_one_that_is_frozen(method, place):
    with pytest.raises(ValueError, match=r"acts on what encoders learn, but that of 'eye' is fro"):
        prepare([cell(place, method, freeze="true")])
    prepare([cell(place, method, freeze="true", width=4)])
