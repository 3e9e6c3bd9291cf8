"""Runs on encoders of Transformers: frozen, and loaded without the folder of their weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from evenly.data import load, save_npz
from evenly.lab.run.build import build_model, build_optimizer, load_data
from evenly.lab.run.kept import with_features
from evenly.lab.run.place import Place
from evenly.lab.run.precision import _steps
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained.load import load_run
from evenly.nn.auto import Auto

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
    assert "does nothing to eye, whose encoder is frozen." in str(notes)
    run_cell(asked, tmp_path / "run")
    row = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert "relearn_strength/x" in row
    assert "relearn_strength/eye" not in row
    learns = prepare([cell(place, "relearn", freeze="true", width=4)])[1]
    assert "does nothing to" not in str(learns)


def test_adapters_re_learn_and_are_loaded(place, tmp_path):
    asked = cell(place, "relearn(every=1,first=1)", lora=2, checkpointing="true")
    run_cell(asked, tmp_path / "run")
    row = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert "relearn_strength/eye" in row
    assert not files(tmp_path / "run")
    data = load(str(place / "a.npz"))
    probabilities = np.load(tmp_path / "run" / "predictions.npz")["probabilities"]
    found = load_run(tmp_path / "run").predict(data, "test")
    torch.testing.assert_close(found, torch.tensor(probabilities), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ogm_ge", "multi_loss", "ogm_ge+relearn"])
def test_methods_that_act_on_an_encoder_refuse_one_that_is_frozen(method, place):
    with pytest.raises(
        ValueError, match=r"acts on what encoders learn, but the encoder of 'eye' is fro"
    ):
        prepare([cell(place, method, freeze="true")])
    prepare([cell(place, method, freeze="true", width=4)])


FROZEN = {"freeze": "true", "width": 4}


def weights(run):
    return torch.load(run / "best.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def files(place):
    return sorted(path.name for path in (place / "features").glob("*.pt"))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_features_are_made_once_and_runs_are_the_same_to_the_last_bit(
    place, tmp_path, precision, monkeypatch
):
    def go(method, out):
        asked = cell(place, method, **FROZEN)
        asked = replace(asked, training=replace(asked.training, precision=precision))
        return run_cell(asked, tmp_path / out / method, features=tmp_path / out / "features")

    calls = []
    real = Auto._made
    monkeypatch.setattr(Auto, "_made", lambda self, x: calls.append(len(x)) or real(self, x))
    go("joint", "a")
    assert len(files(tmp_path / "a")) == 3 + 4  # splits, and the noise that is inspected
    calls.clear()
    first = go("ogm_ge", "a")
    assert sum(calls) < 10  # two samples on which the encoder is tried, and a blank
    again = go("ogm_ge", "b")
    assert same(weights(tmp_path / "a/ogm_ge"), weights(tmp_path / "b/ogm_ge"))
    assert first.metrics == again.metrics
    assert files(tmp_path / "a") == files(tmp_path / "b")
    lacking = replace(cell(place, **FROZEN).training, precision=precision, missing={"eye": 0.3})
    features = tmp_path / "a" / "features"
    run_cell(Cell(lacking, "joint", 1), tmp_path / "a" / "lacking", features=features)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("missing", [{}, {"eye": 0.3}])
def test_features_are_those_that_a_forward_pass_makes(place, tmp_path, monkeypatch, missing):
    """Training, inspection with noise and without modalities, and a method that blanks inputs."""
    asked = cell(place, "g2d", **FROZEN)
    asked = replace(asked, training=replace(asked.training, missing=missing))
    found = run_cell(asked, tmp_path / "kept")
    monkeypatch.setattr("evenly.lab.run.kept.keeps", lambda *_: [])
    each_time = run_cell(asked, tmp_path / "not")
    assert not files(tmp_path / "not")
    one, other = weights(tmp_path / "kept"), weights(tmp_path / "not")
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-4)
    assert found.metrics["test"].keys() == each_time.metrics["test"].keys()
    for key, value in found.metrics["test"].items():
        assert value == pytest.approx(each_time.metrics["test"][key], abs=0.051), key


def test_the_blank_of_features_is_that_of_inputs(place, tmp_path):
    asked = cell(place, **FROZEN)
    data = load(asked.training.data)
    model, other = build_model(data, asked).eval(), build_model(data, asked).eval()
    kept, noised = with_features(
        model, data, asked.training, Place(torch.device("cpu"), "32"), tmp_path
    )
    assert kept.modalities["eye"].shape == (8,)
    assert set(noised["eye"]) == {0.5, 1.0, 2.0, 4.0}
    rows = list(range(20))
    with torch.no_grad():
        one = model(kept.split("test").__getitems__(rows)["inputs"])
        two = other(data.split("test").__getitems__(rows)["inputs"])
        torch.testing.assert_close(one.logits, two.logits)
        for keep in ([], ["eye"], ["x"]):
            torch.testing.assert_close(one.ablate(keep), two.ablate(keep))


def test_what_features_depend_on_has_files_of_its_own(place, tmp_path):
    def made(training=None, change=lambda model: None, precision="32", **settings):
        asked = cell(place, **{**FROZEN, **settings})
        training = replace(asked.training, **(training or {}))
        data = load_data(training)
        model = build_model(data, replace(asked, training=training))
        change(model)
        with_features(model, data, training, Place(torch.device("cpu"), precision), tmp_path / "a"
                      / "features")  # fmt: skip
        return set(files(tmp_path / "a"))

    first = made()
    assert made() == first
    assert made(change=lambda model: model.encoders["eye"].behind[1].weight.data.zero_()) == first
    assert made(width=6) == first
    known = first
    for other in (
        {"pool": "cls"},
        {"precision": "bf16"},
        {"training": {"noise": {"eye": 1.0}}},
        {"training": {"limit_samples": 10}},
        {"change": lambda model: next(model.encoders["eye"].model.parameters()).data.mul_(2)},
    ):
        found = made(**other)
        assert len(found) > len(known), other
        known = found
    for other in ({"training": {"augment": {"eye": "picture"}}}, {"freeze": 1}, {"freeze": 0}):
        assert made(**other) == known


def test_a_damaged_file_is_made_anew(place, tmp_path):
    asked = cell(place, **FROZEN)
    run_cell(asked, tmp_path / "one", features=tmp_path / "features")
    assert files(tmp_path)
    for path in (tmp_path / "features").glob("*.pt"):
        path.write_bytes(b"half")
    run_cell(asked, tmp_path / "two", features=tmp_path / "features")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_noise_that_differs_has_files_of_its_own(place, tmp_path):
    """It differs by modality, and is in units of the training split's deviation."""
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    eye = load(str(place / "a.npz")).split("train").__getitems__(range(20))["inputs"]["eye"].numpy()
    encoders = dict.fromkeys(("left", "right"), cell(place, **FROZEN).training.encoders["eye"])
    training = replace(cell(place).training, encoders=encoders)
    counts = []
    for scale in (1, 2):  # of the training split alone
        both = np.concatenate([eye // scale, eye[::-1], 255 - eye])
        save_npz(tmp_path / "b.npz", labels, split, {"left": both, "right": both})
        data = load(str(tmp_path / "b.npz"))
        model = build_model(data, Cell(training, "joint", 0))
        with_features(model, data, training, Place(torch.device("cpu"), "32"), tmp_path
                      / "features")  # fmt: skip
        counts.append(len(files(tmp_path)))
    assert counts == [3 + 2 * 4, 3 + 2 * 4 + 1 + 2 * 4]


def test_precision_is_timed_on_the_features_that_a_run_steps_on(place, monkeypatch):
    """A step then passes nothing through the frozen tower, which took the batch once, before."""
    asked = cell(place, freeze="true", width=4)
    data, counts = load_data(asked.training), []
    pooled = Auto.pooled
    monkeypatch.setattr(
        Auto, "pooled", lambda self, x: (counts.append(tuple(x.shape)), pooled(self, x))[1]
    )
    steps = _steps(asked, data, "32", torch.device("cpu"))
    assert next(steps) >= 0
    tried, *counted = counts
    assert tried == (2, 3, 16, 16)  # as the model is built
    assert counted[0] == (10, 3, 16, 16)
    assert counted[2:] == [(10, 8)]  # after the blank
    next(steps)
    assert counts[4:] == [(10, 8)]


def test_features_of_a_run_alone_are_in_its_folder(place, tmp_path, monkeypatch):
    """Whatever its folder is called."""
    monkeypatch.chdir(tmp_path)
    run_cell(cell(place, **FROZEN), Path("runs/digits/joint-0"))
    assert files(tmp_path / "runs" / "digits" / "joint-0")
    assert not (tmp_path / "features").exists()


def test_a_note_says_what_is_made_once(place):
    notes = str(prepare([cell(place, **FROZEN)])[1])
    assert "the encoder of eye is frozen, so its features are computed once" in notes
    assert "computed once" not in str(prepare([cell(place, freeze=1)])[1])
