import inspect

import numpy as np
import pytest

from evenly.data import DATASETS, load, save_npz


def _save(path):
    labels = np.arange(12) % 2
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    save_npz(path, labels, split, {"x": np.random.default_rng(0).normal(size=(12, 3))})


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_built_in_loads_and_explains_its_settings(name):
    info = DATASETS[name]
    assert list(info.settings) == list(inspect.signature(info.build).parameters)
    assert list(info.defaults) == list(info.settings)
    assert info.licence
    assert info.source
    data = load(name)
    assert data.name == name
    assert data.notes == []
    assert all(modality in info.modalities for modality in data.modalities)


def test_settings_reach_the_data():
    data = load("synthetic(modalities=3,information=[1,2,3],classes=2,train=10,val=4,test=4)")
    assert list(data.modalities) == ["m1", "m2", "m3"]
    assert len(data.split("train")) == 10
    assert data.bayes["m1"] < data.bayes["m2"] < data.bayes["m3"] < data.bayes["all"]


def test_whole_numbers_pass_for_numbers():
    assert load("digits(noise=0)").modalities["bottom"].std < 8


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (
            "digit",
            ValueError,
            "unknown data set 'digit'. Did you mean digits? "
            "Choose from: digits, synthetic, cremad, kinetics_sounds, ave, vggsound, food101, "
            "mvsa, mm_imdb, ucf101, mosi, mosei, sims, av_mnist, or the path of an .npz file, a "
            "table, a folder or a store.",
        ),
        ("qqq", ValueError, "unknown data set 'qqq'. Choose from: digits, synthetic, cremad,"),
        (
            "cremad",
            ValueError,
            "cremad: prepare its files first: evenly prepare 'cremad' --folder",
        ),
        (
            "digits(nois=1)",
            ValueError,
            "unknown setting 'nois' of digits. Did you mean noise? Choose from: noise, seed.",
        ),
        ("digits(noise=loud)", ValueError, "digits: noise takes a number, found 'loud'."),
        ("digits(noise=true)", ValueError, "digits: noise takes a number, found True."),
        ("digits(seed=1.5)", ValueError, "digits: seed takes a whole number, found 1.5."),
        (
            "synthetic(speed=fast)",
            ValueError,
            "synthetic: speed takes a number or a list of numbers, found 'fast'.",
        ),
        ("synthetic(speed=[1,x])", ValueError, "synthetic: speed takes a number, found 'x'."),
        ("nowhere.npz", FileNotFoundError, "nowhere.npz: there is no such file. Check the path."),
        ("a/b", FileNotFoundError, "a/b: there is no such file. Check the path."),
        ("x.npz(a=1)", ValueError, "'x.npz' is a file and takes no settings; found ['a']."),
        ("", ValueError, "has no name before its settings"),
    ],
)
def test_what_does_not_exist(spec, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        load(spec)
    assert message in str(caught.value)


def test_a_path_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "runs(1)"
    folder.mkdir()
    _save(folder / "a,b.npz")
    data = load(str(folder / "a,b.npz"))
    assert data.name == "a,b"
    assert data.modalities["x"].kind == "vector"


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _save(tmp_path / "x.npz")
    assert len(load("~/x.npz").split("test")) == 4


def test_a_file_of_the_same_name_does_not_hide_a_built_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("notes")
    assert len(load("digits").class_names) == 10


def test_endings_in_any_letters(tmp_path):
    _save(tmp_path / "X.NPZ")
    assert list(load(str(tmp_path / "X.NPZ")).modalities) == ["x"]
    for name in ("T.CSV", "t.Parquet", "t.tsv"):
        with pytest.raises(ValueError, match="prepare a table first: evenly prepare"):
            load(str(tmp_path / name))
