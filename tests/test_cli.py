"""The command as a user types it: every run is a process of its own."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest

from evenly import METHODS
from evenly.data import DATASETS

DATA = "synthetic(train=60,val=30,test=30,classes=3)"


def evenly(*arguments, check=True):
    command = [sys.executable, "-m", "evenly.cli", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if check:
        assert ran.returncode == 0, ran.stderr
    return ran


def fails(message, *arguments):
    """One sentence, no traceback, and an exit status that a script can see."""
    ran = evenly(*arguments, check=False)
    assert ran.returncode not in (0, None)
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_answers_within_a_second():
    evenly("--help")  # once, so that the byte code is there
    started = time.perf_counter()
    text = evenly("--help").stdout
    assert time.perf_counter() - started < 1
    for command in ("compare", "train", "diagnose", "report", "methods", "datasets"):
        assert command in text


@pytest.mark.parametrize("command", ["compare", "train", "diagnose", "report", "methods"])
def test_every_command_teaches(command):
    text = evenly(command, "--help").stdout
    options = re.findall(r"^  (--\w+)", text, re.MULTILINE)
    assert all(len(re.findall(rf"^  {option}[ \n]", text, re.MULTILINE)) == 1 for option in options)
    assert "None" not in text


def test_import_costs_next_to_nothing():
    """At most 0.3 s over torch, and none of the heavy parts."""
    code = (
        "import time, torch; start = time.perf_counter(); import evenly; evenly.Relearn, "
        "evenly.Probe, evenly.OGMGE, evenly.diagnose, evenly.capture; "
        "print(time.perf_counter() - start); import sys; "
        "heavy = {'lightning', 'transformers', 'sklearn', 'plotly', 'matplotlib', 'pandas'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = ran.stdout.splitlines()
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_version():
    assert re.fullmatch(r"evenly \d+\.\d+\.\d+\n", evenly("--version").stdout)


def test_train_then_resume(tmp_path):
    out = tmp_path / "run"
    command = ["train", "--data", DATA, "--epochs", 2, "--width", 8, "--out", out]
    text = evenly(*command).stdout
    assert "chosen by validation accuracy" in text
    assert re.search(r"^test .*accuracy \d\.\d{3}.*accuracy/m1 \d\.\d{3}", text, re.MULTILINE)
    fails("is not empty. Continue the run in it with --resume", *command)
    assert evenly(*command, "--resume").stdout == text


def test_compare_then_report(tmp_path):
    out = tmp_path / "out"
    command = ["compare", "--data", DATA, "--epochs", 2, "--width", 8, "--seeds", 1, "--out", out]
    ran = evenly(*command)
    assert f"report: {out / 'report.html'}" in ran.stdout
    assert "against joint" in ran.stdout
    assert "note: relearn: every=1, the paper's schedule of 90 epochs" in ran.stderr
    (out / "report.html").unlink()
    picture = tmp_path / "picture.svg"
    text = evenly("report", out, "--figure", picture).stdout
    assert (out / "report.html").exists()
    assert picture.read_text().startswith("<?xml")
    assert str(picture) in text


def test_a_settings_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"data: '{DATA}'\nepochs: 1\nwidth: 8\nseeds: 1\n")
    out = tmp_path / "out"
    evenly("compare", "--config", tmp_path / "mine.yaml", "--methods", "joint", "--out", out)
    assert (out / "runs" / "joint-0" / "result.json").exists()


@pytest.fixture
def features(tmp_path):
    """Two clear clusters; one of each four validation labels is wrong in `audio`."""
    path = tmp_path / "features.npz"
    labels = np.tile([0, 1], 24)
    x = (labels[:, None] * 9.0 + np.linspace(0, 1, 48)[:, None]).astype(np.float32)
    noisy = x.copy()
    noisy[24::4] = 9.0 - noisy[24::4] % 9
    split = np.repeat(["train", "val", "test"], [24, 16, 8])
    np.savez(path, labels=labels, split=split, audio=noisy, text=x)
    return path


def test_diagnose(features):
    lines = evenly("diagnose", features).stdout.splitlines()
    assert lines[0].split()[0] == "modality"
    rows = {line.split()[0]: [float(x) for x in line.split()[1:4]] for line in lines[1:3]}
    assert rows["text"] == [1.0, 1.0, 0.0]
    assert rows["audio"] == [1.0, 0.75, 0.25]
    assert "s.e." in evenly("diagnose", features, "--gap", "matched").stdout


def test_methods_lists_and_shows():
    text = evenly("methods").stdout
    assert all(name in text for name in METHODS)
    for name, kind in METHODS.items():
        text = evenly("methods", name).stdout
        assert kind.info.title in text
        assert kind.info.url in text
    assert "every=20" in evenly("methods", "relearn").stdout
    fails("'relern' is no method. Did you mean relearn?", "methods", "relern")


def test_datasets_lists_and_shows():
    text = evenly("datasets").stdout
    assert all(name in text for name in DATASETS)
    assert "'labels' (N)" in text
    assert "noise=" in evenly("datasets", "digits").stdout
    fails("'digit' is no data set. Did you mean digits?", "datasets", "digit")


def test_wrong_input_gets_a_sentence(tmp_path, features):
    fails("'jiont' is no method. Did you mean joint?", "compare", "--methods", "jiont")
    fails("nothing.npz", "compare", "--data", tmp_path / "nothing.npz")
    fails("holds no comparison", "report", tmp_path)
    fails("--seeds is at least 1", "compare", "--seeds", 0)
    fails("unrecognized arguments: --dta", "compare", "--dta", "digits")
    fails("epochs", "compare", "--epochs", "many")
    images = tmp_path / "images.npz"
    labels = np.tile([0, 1], 12)
    split = np.repeat([0, 1, 2], 8)
    np.savez(images, labels=labels, split=split, eye=np.zeros((24, 4, 4), np.uint8))
    fails("a diagnosis is of features, one vector per sample", "diagnose", images)


def test_our_own_mistakes_keep_their_traceback(tmp_path):
    """Errors from deeper than this package are not dressed up as the user's."""
    code = (
        "import sys, evenly.cli as cli, json; cli.COMMANDS['methods'] = lambda o: json.loads('{'); "
        "sys.exit(cli.main(['methods']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr


def test_a_reader_that_has_enough(features):
    command = f"{sys.executable} -m evenly.cli compare --help | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
