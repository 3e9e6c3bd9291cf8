import pytest
import yaml

from evenly.lab.settings import Cell, Training, check_same, write_settings


def test_measures_ten_times_in_a_run():
    assert Training(epochs=90).measure_every == 9
    assert Training(epochs=5).measure_every == 1
    assert Training(diagnose_every=0).measure_every == 0
    assert Training(diagnose_every=4).measure_every == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "--epochs is at least 1; found 0"),
        ({"batch_size": 0}, "--batch_size is at least 1; found 0"),
        ({"lr": 0.0}, r"--lr is above 0; found 0\.0"),
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
    ],
)
def test_folder_of_a_run(method, folder):
    assert Cell(Training(), method, 3).folder == folder


def test_other_settings_do_not_mix(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    check_same(path, {"lr": 0.1})  # nothing there yet
    write_settings(path, {"lr": 0.1, "seeds": 3})
    assert yaml.safe_load(path.read_text()) == {"lr": 0.1, "seeds": 3}
    check_same(path, {"lr": 0.1})
    with pytest.raises(
        ValueError, match=r"run holds runs with lr = 0\.1, but 0\.2 is asked.*--out"
    ):
        check_same(path, {"lr": 0.2})
