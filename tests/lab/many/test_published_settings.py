"""A comparison in which each method trains as its authors publish."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from evenly.data import save_npz
from evenly.lab.many.compare import compare
from evenly.lab.many.published import FILE, Published
from evenly.lab.run.build import method_settings
from evenly.lab.run.settings import Cell, Training
from evenly.lab.statistics.tables import table
from evenly.methods import METHODS
from evenly.spec import parse
from pools import local

TRAINING = Training(epochs=2, lr=0.05, batch_size=16, width=8)
KNOWN = yaml.safe_load((Path(__file__).parents[3] / "src/evenly/lab/many" / FILE).read_text())


@pytest.mark.parametrize("data", KNOWN)
def test_everything_published_can_be_run(data):
    published = Published.of_data(data, TRAINING)
    for name, found in KNOWN[data].items():
        assert set(found) <= {"settings", "training", "source"}
        own = published.of(name)
        assert own.source
        training = own.of(TRAINING)
        settings = method_settings(Cell(training, own.method, 0))
        for key, value in found.get("settings", {}).items():
            info = METHODS[parse(name).name].info
            scales = key in info.in_epochs and training.epochs == TRAINING.epochs
            assert settings[key] == value or scales
        assert found.get("training", {}).keys() <= own.training.keys()
        assert {key: getattr(training, key) for key in own.training} == own.training


def test_epochs_of_a_training_of_unknown_length_scale_as_defaults_do():
    """ReconBoost's schedule is made for 800 epochs, and its rate falls every 240."""
    short = replace(TRAINING, epochs=30)
    cremad = Published.of_data("cremad", short)
    assert cremad.of("reconboost").of(short).lr_step == 9
    assert cremad.of("ogm").of(short).lr_step == 70  # of the 100 that it is given
    assert cremad.of("pmr").method == "pmr(alpha=2.0,end=70,entropy=0.0,momentum=0.0)"


def test_what_counts_epochs_has_the_published_schedule():
    cosine = replace(TRAINING, schedule="cosine")
    cremad = Published.of_data("cremad", cosine)
    dgl, relearn, agm = (cremad.of(name).of(cosine) for name in ("dgl", "relearn", "agm"))
    assert (dgl.schedule, dgl.lr_step, dgl.clip) == ("step", 70, 40.0)
    assert (relearn.schedule, relearn.lr_step) == ("step", 0)  # a constant rate
    assert agm.schedule == "cosine"  # of which we have found none


def test_a_variant_has_settings_of_its_own():
    kinetics = Published.of_data("kinetics_sounds", TRAINING)
    sample, modality = kinetics.of("smv"), kinetics.of("smv(level=modality,alpha=0.5)")
    assert (sample.method, sample.training["optimizer"]) == ("smv(warmup=5)", "adam")
    assert modality.method == "smv(alpha=0.5,level=modality,part_ratio=0.2,warmup=5)"
    assert (modality.training["optimizer"], modality.training["lr"]) == ("sgd", 0.001)
    assert kinetics.of("bss(pace=curriculum)").training["epochs"] == 120
    assert kinetics.of("bss").training["epochs"] == 100


def test_several_methods_in_one_keep_their_own_settings():
    short = replace(TRAINING, epochs=30)
    cremad = Published.of_data("cremad", short)
    apart = cremad.of("relearn+ogm_ge")  # 90 epochs at 0.002 and 100 at 0.001
    assert apart.method == "ogm_ge(alpha=0.8,end=15)+relearn(every=7,strength=3.0,times=3)"
    assert apart.of(short) == short
    assert apart.changes == {
        "source": "ogm_ge: README and defaults of GeWu-Lab/OGM-GE_CVPR2022; relearn: script of "
        "GeWu-Lab/Diagnosing_Relearning_ECCV2024; no training is published for all of them, so the "
        "common one"
    }
    alike = cremad.of("pggb(alpha=0.75)+ogm_ge")
    assert alike.method == "ogm_ge(alpha=0.8,end=50)+pggb(alpha=0.75)"
    assert alike.training == cremad.of("ogm_ge").training == cremad.of("pggb").training
    assert "common" not in alike.source
    one = cremad.of("relearn+multi_loss")
    assert (one.method, one.training) == ("multi_loss+relearn(every=7,strength=3.0,times=3)", {})
    assert one.source.startswith("multi_loss: no published settings found; relearn: script of ")
    none = cremad.of("multi_loss+modality_dropout")
    assert none.changes == {"source": "no published settings found; common settings"}


def test_by_hand():
    own = Published.of_data("cremad", TRAINING).of("ogm_ge(alpha=0.1)")
    assert own.method == "ogm_ge(alpha=0.1,end=50)"  # what the user gives, stays
    assert own.of(TRAINING) == replace(
        TRAINING, lr=1e-3, weight_decay=1e-4, lr_step=70, batch_size=64, epochs=100
    )
    nothing = Published.of_data("kinetics_sounds", TRAINING).of("joint")
    assert (nothing.method, nothing.of(TRAINING)) == ("joint", TRAINING)
    assert nothing.changes == {"source": "no published settings found; common settings"}


def test_a_data_set_of_which_nothing_is_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"no published settings are known for 'digits', only for cremad and"
    ):
        compare("joint", 1, TRAINING, tmp_path, local(1), "published")
    assert not any(tmp_path.iterdir())


def test_a_comparison_says_so(tmp_path, monkeypatch):
    draws = np.random.default_rng(0)
    target = np.arange(60) % 2
    split = np.repeat([0, 1, 2], [30, 15, 15])
    arrays = {name: draws.normal(size=(60, 3)).astype("f4") for name in ("audio", "visual")}
    save_npz(tmp_path / "cremad.npz", target, split, arrays)
    short = {"dgl": {"settings": {"alpha": 2.0}, "training": {"epochs": 1}, "source": "here"}}
    monkeypatch.setattr(
        Published, "of_data", staticmethod(lambda name, common: Published(name, short, common))
    )
    training = replace(TRAINING, data=str(tmp_path / "cremad.npz"))
    out = tmp_path / "out"
    page = compare("joint,dgl", 1, training, out, local(1), "published").read_text(encoding="utf-8")
    said = "Each method uses the settings that its authors published for cremad"
    assert said in page
    assert said in table(out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["own"]["dgl(alpha=2.0)"] == {"epochs": 1, "source": "here"}
    assert config["own"]["joint"] == {"source": "no published settings found; common settings"}
    runs = {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in out.glob("runs/*/config.yaml")
    }
    assert {name: run["epochs"] for name, run in runs.items()} == {
        "joint-0": 2,
        "dgl_alpha=2.0-0": 1,
    }
    assert config["common"] == {"epochs": 2}
    with pytest.raises(ValueError, match="holds runs with"):
        compare("joint", 1, training, out, local(1))
    for methods in ("joint", "multi_loss"):  # those that keep the common settings, old and new
        with pytest.raises(ValueError, match=r"common = \{'epochs': 2\}, but now \{'epochs': 3\}"):
            compare(methods, 2, replace(training, epochs=3), out, local(1), "published")
