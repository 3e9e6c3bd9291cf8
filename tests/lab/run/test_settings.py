import hashlib

import pytest
import yaml

from evenly.errors import UserError
from evenly.lab.run.settings import (
    Cell,
    Refused,
    Training,
    check_apart,
    check_folder,
    check_same,
    check_trusted,
    check_unchanged,
    own_parts,
    read_settings,
    write_settings,
)


def test_measures_ten_times_in_a_run():
    assert Training(epochs=90).measure_every == 9
    assert Training(epochs=5).measure_every == 1
    assert Training(diagnose_every=0).measure_every == 0
    assert Training(diagnose_every=4).measure_every == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1; found 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1; found 0"),
        ({"lr": 0.0}, r"--lr must be above 0; found 0\.0"),
        ({"lr": float("nan")}, "--lr must be above 0; found nan"),
        ({"ema": 1.0}, r"--ema must be between 0 and 1; found 1\.0"),
        ({"accumulate": 0}, "--accumulate must be at least 1; found 0"),
        ({"patience": 0}, "--patience must be at least 1; found 0"),
        ({"lr_scale": {"m1": 0.0}}, r"--lr-scale\.m1 must be above 0; found 0\.0"),
        ({"clip": 0.0}, r"--clip must be above 0; found 0\.0"),
        ({"clip": float("nan")}, "--clip must be above 0; found nan"),
        ({"weight_decay": -1.0}, r"--weight-decay must be at least 0; found -1\.0"),
        ({"diagnose_every": -1}, "--diagnose-every must be at least 0; found -1"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        Training(**setting)


@pytest.mark.parametrize(
    ("method", "folder"),
    [
        ("joint", "joint-3"),
        ("relearn(gap=shared, every=4)", "relearn_every=4_gap=shared-3"),
        ("relearn(initial='a/b.pt')", "relearn_initial=a-b.pt-3"),
        # Modalities of almost one name: each has a folder of its own.
        ('unimodal(modality="a b")', "unimodal_modality=a~20b-3"),
        ('unimodal(modality="a  b")', "unimodal_modality=a~20~20b-3"),
        ('unimodal(modality="a, b")', "unimodal_modality=a~2c~20b-3"),
        ("unimodal(modality=ab)", "unimodal_modality=ab-3"),
    ],
)
def test_folder_of_a_run(method, folder):
    assert Cell(Training(), method, 3).folder == folder


def test_methods_of_one_folder_are_refused():
    check_apart(["relearn(initial=a/b)", "relearn(initial=a/b,times=1)", "joint"])
    with pytest.raises(ValueError, match=r"\(initial=a/b\) and relearn\(initial=a-b\) would both"):
        check_apart(["relearn(initial=a/b)", "joint", "relearn(initial=a-b)"])


def test_settings_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    assert read_settings(path, "method") == {}  # nothing there yet
    settings = {"data": "x", "epochs": 3, "method": "joint"}
    write_settings(path, settings)
    assert yaml.safe_load(path.read_text()) == settings
    assert read_settings(path, "method") == settings


@pytest.mark.parametrize("text", ["title: mine", "- a", "{", "data: a\nepochs: 1\nmethod: joint"])
def test_the_settings_of_another_program(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml was not written by this command.*--out"):
        read_settings(path, "methods")


def test_the_same_file_by_another_path(tmp_path):
    here = {"data": "a.npz", "data_sha256": "1"}
    check_same(tmp_path, here, {"data": "./a.npz", "data_sha256": "1"})
    with pytest.raises(ValueError, match=r"data = 'a\.npz', but now 'b\.npz' is asked for"):
        check_same(tmp_path, here, {"data": "b.npz", "data_sha256": "2"})


def test_other_settings_do_not_mix(tmp_path):
    check_same(tmp_path, {}, {"lr": 0.1})
    check_same(tmp_path, {"lr": 0.1, "seeds": 3}, {"lr": 0.1, "new": 1})
    with pytest.raises(
        ValueError, match=r"holds runs with lr = 0\.1, but now 0\.2 is asked.*--out"
    ):
        check_same(tmp_path, {"lr": 0.1}, {"lr": 0.2})


def test_settings_younger_than_a_folder_were_as_by_default(tmp_path):
    now = Training(task="classes", select="accuracy").as_dict()
    before = {name: value for name, value in now.items() if name not in ("select", "task")}
    check_same(tmp_path, before, now)
    with pytest.raises(ValueError, match="runs with select = 'accuracy', but now 'loss' is asked"):
        check_same(tmp_path, before, Training(task="classes", select="loss").as_dict())
    del before["missing"]
    check_same(tmp_path, before, now)
    with pytest.raises(ValueError, match=r"runs with missing = \{\}, but now \{'top': 0\.5\} is"):
        check_same(tmp_path, before, {**now, "missing": {"top": 0.5}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "--label-smoothing must be at least 0 and below 1"),
        ({"focal": -1.0}, "--focal must be at least 0"),
        ({"focal": 2.0, "label_smoothing": 0.1}, "exclude each other"),
    ],
)
def test_criteria_that_there_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing": {"a": -0.1}}, "--missing.a must be at least 0 and below 1; found -0.1"),
        ({"missing": {"a": 1.0}}, "--missing.a must be at least 0 and below 1"),
        ({"missing_test": {"a": 1.5}}, "--missing-test.a must be from 0 to 1; found 1.5"),
    ],
)
def test_rates_that_there_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_validation_lacks_what_training_lacks_and_test_too_unless_it_is_said():
    found = Training(missing={"a": 0.3, "b": 0.2}, missing_test={"a": 0.0, "c": 1.0}).lacking
    assert found["train"] == found["val"] == {"a": 0.3, "b": 0.2}
    assert found["test"] == {"a": 0.0, "b": 0.2, "c": 1.0}


def test_the_fingerprint_of_a_file_stands_beside_its_path(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"one")
    settings = Cell(Training(data=str(path)), "joint", 0).as_dict()
    assert list(settings)[2:4] == ["data", "data_sha256"]
    assert settings["data_sha256"] == hashlib.sha256(b"one").hexdigest()
    assert "data_sha256" not in Training().as_dict()
    path.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"a\.npz as it was before; the file has changed since\."):
        check_same(tmp_path, settings, Training(data=str(path)).as_dict())


def test_files_that_changed_after_a_command_began():
    now = {"data": "a.npz", "data_sha256": "1", "code": {"mine": "2", "yours": "3"}}
    check_unchanged({}, now)
    check_unchanged({"data": "digits"}, {"data": "digits"})
    check_unchanged({**now, "data": "/else/a.npz"}, now)
    with pytest.raises(Refused, match=r"^a\.npz changed after this command began.*--out\.$"):
        check_unchanged({**now, "data_sha256": "0"}, now)
    with pytest.raises(Refused, match=r"^a\.npz and the module mine and the module theirs changed"):
        check_unchanged({"data_sha256": "0", "code": {"mine": "0", "theirs": "0"}}, now)


def test_what_cannot_be_a_folder(tmp_path):
    check_folder(tmp_path / "not" / "there" / "yet")
    check_folder(tmp_path)
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below" / "it"):
        with pytest.raises(UserError, match=r"cannot be a folder, because .*/file is a file"):
            check_folder(path)


def test_a_folder_that_would_be_taken_for_two(tmp_path):
    check_folder(tmp_path / "a%20b{c}?#&:é")
    with pytest.raises(
        ValueError, match=r"a::b/c: checkpoints cannot be written to a path with '::'"
    ):
        check_folder(tmp_path / "a::b" / "c")


def test_built_in_encoders_need_no_trust():
    encoders = {"a": "ast(pretrained=x/y.z)", "b": "mlp"}
    check_trusted({"encoders": encoders, "data": "my.npz", "method": "ogm"}, "file", "do so")
    with pytest.raises(
        ValueError, match=r"^file asks for 'my.Net' as the encoder of 'b'.* do so\.$"
    ):
        check_trusted({"encoders": {"a": "mlp", "b": "my.Net(depth=3)"}}, "file", "do so")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"method": "joint+my.Mine(damp=0.3)"}, "method"),
        ({"methods": "joint,my.Mine"}, "method"),
        ({"methods": ["joint", "my.Mine+relearn"]}, "method"),
        ({"fusion": "my.Mine(rank=2)"}, "fusion"),
        ({"data": "my.Mine(seed=2)"}, "data set"),
        ({"metrics": "my.Mine(k=2)"}, "metric"),
    ],
)
def test_what_is_named_by_import_path_is_found(settings, what):
    assert own_parts(settings) == {"my.Mine": what}


def test_a_changed_module_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing.py").write_text("class Part: pass\n")
    cell = Cell(Training(fusion="changing.Part"), "joint", 0)
    before = cell.as_dict()
    assert [*before["code"]] == ["changing"]
    check_same(tmp_path, before, cell.as_dict())
    (tmp_path / "changing.py").write_text("class Part: changed = True\n")
    with pytest.raises(ValueError, match="the module changing as it was before; it has changed"):
        check_same(tmp_path, before, cell.as_dict())
    assert "code" not in Cell(Training(), "joint", 0).as_dict()
