import csv
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import yaml
from torch import nn

import forked
import trees
from evenly.cli import main
from evenly.data import save_npz
from evenly.files import held, write_csv
from evenly.lab.many.compare import Comparison, Failed, _prepare, circumstances, compare
from evenly.lab.many.local import Local
from evenly.lab.run.settings import Cell, Training, write_settings
from evenly.lab.statistics.tables import SUMMARY, Answers, summary, table, write_tables
from evenly.methods import METHODS
from evenly.metrics import METRICS
from evenly.report import write_formats, write_picture
from pools import local

pytestmark = pytest.mark.xdist_group("compare")  # most look at one comparison
DATA = "synthetic(train=120,val=60,test=90,classes=3,information=2)"
TRAINING = Training(data=DATA, epochs=3, width=8, diagnose_every=1)


class Breaks(nn.Module):
    """An encoder that fails once training has begun."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(4)

    def forward(self, x):
        if self.training and os.path.exists("broken"):
            raise RuntimeError("no such sound")
        return self.net(x.float())


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    compare("joint,relearn(every=1,times=1),ogm_ge", 2, TRAINING, out, local(2))
    return out


def test_joint_training_decides_the_precision_whichever_method_comes_first(tmp_path, monkeypatch):
    asked = []

    def faster(cell, data):
        asked.append((cell.method, cell.training.lr))
        return "32", "it is faster"

    monkeypatch.setattr("evenly.lab.run.precision.faster", faster)
    methods = ("unimodal(modality=m1)", "joint")
    plan = Comparison(replace(TRAINING, precision="auto"), methods, 1, tmp_path)
    assert {job.cell.training.precision for job in _prepare(plan, None)} == {"32"}
    assert asked == [("joint", TRAINING.lr)]


def test_the_folder(comparison):
    names = {path.name for path in comparison.iterdir()}
    assert names == {"config.yaml", "results.csv", "summary.csv", "report.html", "runs"}
    runs = {path.name for path in (comparison / "runs").iterdir()}
    methods = ("joint", "relearn_every=1_times=1", "ogm_ge")
    assert runs == {f"{method}-{seed}" for method in methods for seed in (0, 1)}
    config = yaml.safe_load((comparison / "config.yaml").read_text())
    assert config["modalities"] == ["m1", "m2"]
    assert "ogm_ge: end=2, its schedule of 100 epochs scaled to 3." in config["notes"]
    projected = {path.parent.name for path in comparison.glob("runs/*/projection.npz")}
    assert projected == {f"{method}-0" for method in methods}


def test_results_and_summary_agree(comparison):
    results = read(comparison / "results.csv")
    assert {row["method"] for row in results} == {"joint", "relearn(every=1,times=1)", "ogm_ge"}
    assert {row["split"] for row in results} == {"train", "val", "test"}
    for row in read(comparison / "summary.csv"):
        values = [
            float(found["value"])
            for found in results
            if all(found[key] == row[key] for key in ("method", "split", "metric"))
        ]
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values))
        assert row["seeds"] == str(len(values))
        if row["metric"] == "imbalance":  # of modalities that add nothing there is none
            continue
        assert len(values) == 2
        assert (row["low"], row["high"]) == ("", "")  # of two seeds there is no interval
        assert (row["difference"] == "") == (row["method"] == "joint")


def test_report_and_table_hold_every_method(comparison):
    page = (comparison / "report.html").read_text()
    text = table(comparison)
    for name in ("joint", "relearn(every=1,times=1)", "ogm_ge"):
        assert name in page
        assert name in text
    assert "against joint" in text.split("\n\n", 1)[1].splitlines()[0]


def test_a_model_of_one_modality_has_no_accuracy_of_the_others(tmp_path):
    def row(method, metric, value):
        return {"method": method, "seed": 0, "split": "test", "metric": metric, "value": value}

    rows = [row("joint", metric, 0.75) for metric in ("accuracy", "accuracy/a", "accuracy/b")]
    rows += [row("alone", metric, 0.5) for metric in ("accuracy", "accuracy/b")]
    protocol = {"protocol": "fair", "tuned_trials": ""}
    write_csv(tmp_path / "summary.csv", SUMMARY, [line | protocol for line in summary(rows)])
    (tmp_path / "config.yaml").write_text("protocol: fair\n")
    *_, head, joint, alone = table(tmp_path).splitlines()
    assert joint.split() == ["joint", "0.750", "0.750", "0.750"]
    assert alone.split() == ["alone", "0.500", "0.500", "-0.250"]
    assert alone.index("0.500", 15) == head.index("accuracy/b")


@pytest.mark.slow
def test_figures_do_not_depend_on_the_number_of_jobs(comparison, tmp_path):
    compare("joint,relearn(every=1,times=1),ogm_ge", 1, TRAINING, tmp_path, local(1))

    def figures(out):
        rows = [row for row in read(out / "results.csv") if row["seed"] == "0"]
        return [row for row in rows if row["metric"] not in ("seconds", "peak_memory_mb")]

    assert figures(tmp_path) == figures(comparison) != []


@pytest.mark.slow
def test_more_seeds_and_methods_repeat_nothing(comparison):
    finished = {p: p.stat().st_mtime_ns for p in comparison.glob("runs/*/result.json")}
    compare(
        "joint,relearn(every=1,times=1),ogm_ge,ogm_ge(noise=false)",
        2,
        TRAINING,
        comparison,
        local(2),
    )
    after = {p: p.stat().st_mtime_ns for p in comparison.glob("runs/*/result.json")}
    assert len(after) == 8
    assert all(after[path] == moment for path, moment in finished.items())


def test_fewer_methods_and_seeds_later(comparison):
    """Tables and report count all runs of the folder, so its settings go on naming them all."""
    before = yaml.safe_load((comparison / "config.yaml").read_text())
    compare("ogm_ge,joint", 1, TRAINING, comparison, local(1))
    after = yaml.safe_load((comparison / "config.yaml").read_text())
    for name in ("methods", "seeds", "notes"):
        assert after[name] == before[name]
    assert set(after["methods"]) == {row["method"] for row in read(comparison / "summary.csv")}


def test_data_that_have_changed_since(tmp_path):
    path, out = tmp_path / "a.npz", tmp_path / "out"
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(path, labels, split, {"x": np.ones((60, 3))})
    training = Training(data=str(path), epochs=1, width=4)
    compare("joint", 1, training, out, local(1))
    save_npz(path, labels, split, {"x": np.zeros((60, 3))})
    with pytest.raises(ValueError, match=r"a\.npz as it was before; the file has changed since"):
        compare("joint", 2, training, out, local(1))


def test_data_that_change_while_runs_are_made(tmp_path):
    """Here after the comparison began, and before its first run does."""
    path, out = tmp_path / "a.npz", tmp_path / "out"
    labels, split = np.arange(60) % 2, np.repeat([0, 1, 2], 20)
    save_npz(path, labels, split, {"x": np.ones((60, 3))})
    training = Training(data=str(path), epochs=1, width=4, precision="32")

    def pool(training):
        save_npz(path, labels, split, {"x": np.zeros((60, 3))})
        return Local(1)

    with pytest.raises(Failed, match=r"joint-0: Refused: .*a\.npz changed after this"):
        compare("joint", 1, training, out, pool)
    assert not (out / "runs" / "joint-0" / "config.yaml").exists()


def stop(training):
    raise KeyboardInterrupt


def test_runs_of_other_settings_in_the_folder(tmp_path):
    """As they are after `own` settings changed: the comparison's own settings need not tell."""
    training = replace(TRAINING, precision="32")
    cell = Cell(replace(training, epochs=5, task="classes", select="accuracy"), "joint", 1)
    write_settings(tmp_path / "runs" / "joint-1" / "config.yaml", cell.as_dict())
    with pytest.raises(ValueError, match=r"joint-1 holds runs with epochs = 5, but now 3 is asked"):
        compare("joint", 2, training, tmp_path, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_versions_are_those_of_the_runs(tmp_path, capsys):
    training = replace(TRAINING, precision="32", task="classes", select="accuracy")
    for method, torch in (("joint", "1.0"), ("ogm", "2.0")):
        run = tmp_path / "runs" / f"{method}-0"
        cell = Cell(training, method, 0)
        write_settings(run / "config.yaml", {**cell.as_dict(), "versions": {"torch": torch}})
        (run / "last.ckpt").touch()
    now = version("torch")
    for note in (f"1.0, then {now} in joint-0; 2.0 in ogm-0.",
                 f"1.0, then {now} in joint-0; 2.0, then {now} in ogm-0."):  # fmt: skip
        methods = "joint" if note.endswith(" 2.0 in ogm-0.") else "joint,ogm"
        with pytest.raises(KeyboardInterrupt):
            compare(methods, 1, training, tmp_path, stop)
        said = f"runs use several versions of torch, which may change results: {note}"
        assert said in capsys.readouterr().err
        config = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert [text for text in config["notes"] if "versions of" in text] == [said]
        assert said.replace("'", "&#39;") in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert config["versions"]["torch"] == f"1.0; {now}; 2.0"


def test_what_decoded_the_data_is_kept():
    found = {"versions": {"av": "14.0", "torch": "1.0", "python": "3.0"}}
    kept = circumstances(found, {"torch": "2.0"})["versions"]
    assert (kept["av"], kept["torch"]) == ("14.0", "2.0")
    assert kept["python"].startswith("3.0; ")
    assert circumstances(found, {"av": "15.0"})["versions"]["av"] == "14.0; 15.0"


def test_settings_of_another_program_are_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("title: mine\n")
    with pytest.raises(ValueError, match=r"config\.yaml was not written by this command"):
        compare("joint", 1, TRAINING, tmp_path, local(1))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "title: mine\n"


def test_other_settings_are_refused(comparison):
    with pytest.raises(ValueError, match=r"holds runs with epochs = 3, but now 4 is asked for"):
        compare("joint", 1, Training(data=DATA, epochs=4, width=8), comparison, local(1))


@pytest.mark.parametrize(
    ("methods", "seeds", "training", "message"),
    [
        ("jiont", 1, TRAINING, "unknown method 'jiont'. Did you mean joint?"),
        ("joint,,relearn", 1, TRAINING, "empty place in its list"),
        ("joint", 0, TRAINING, "--seeds must be at least 1; found 0"),
        ("joint", 1, Training(data="digit"), "unknown data set 'digit'. Did you mean digits?"),
        ("relearn(every=0)", 1, TRAINING, "'every' must be at least 1; found 0"),
        (
            "joint,tcmax",
            1,
            replace(TRAINING, focal=2.0),
            "TCMax replaces cross-entropy's partition",
        ),
    ],
)
def test_what_is_wrong_is_said_before_training(methods, seeds, training, message, tmp_path):
    with pytest.raises(ValueError, match=r".*") as error:
        compare(methods, seeds, training, tmp_path / "out", local(1))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_failure_leaves_the_others(tmp_path):
    def again():
        command = ("compare", "--data", DATA, "--epochs", 1, "--width", 8, "--out", tmp_path)
        command += ("--encoders.m1", "test_compare.Breaks", "--methods", "joint", "--seeds", 1)
        return forked.run(forked.evenly, *command, cwd=tmp_path)

    (tmp_path / "broken").touch()
    ran = again()
    assert ran.returncode == 1
    assert "1 of 1 runs failed" in ran.stderr
    assert "joint-0: RuntimeError: no such sound" in ran.stderr
    assert "Traceback" in (tmp_path / "runs" / "joint-0" / "error.txt").read_text()
    assert "no such sound" in (tmp_path / "report.html").read_text()
    (tmp_path / "broken").unlink()
    ran = again()
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "runs" / "joint-0" / "error.txt").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_folder_that_the_same_command_continues(tmp_path):
    command = ["compare", "--data", DATA, "--epochs", "20", "--seeds", "2", "--width", "8"]
    command += ["--methods", "joint,relearn", "--out", str(tmp_path), "--jobs", "2"]
    command += ["--checkpoint_every", "0", "--diagnose_every", "0"]
    with (tmp_path / "log").open("w") as log:
        line = [sys.executable, "-m", "evenly.cli", *command]
        process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    for _ in range(6000):
        if list(tmp_path.glob("runs/*/last.ckpt")) or process.poll() is not None:
            break
        time.sleep(0.01)
    # What a run leaves that is killed while it writes, whether or not it happens to this one.
    left = next(tmp_path.glob("runs/*/last.ckpt")).with_name(".last.0123abcd.ckpt")
    left.write_bytes(b"half")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    assert "Run the same command again to continue" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert (tmp_path / "report.html").exists()
    assert len(list(tmp_path.glob("runs/*/result.json"))) < 4
    ran = forked.run(forked.evenly, *command)
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 1.5])
def test_ctrl_c_in_the_first_seconds_is_answered_in_one_sentence(tmp_path, moment):
    """Before and while the process that runs are forked from imports what they need."""
    command = [sys.executable, "-m", "evenly.cli", "compare", "--data", DATA, "--epochs", "500"]
    command += ["--methods", "joint", "--out", str(tmp_path), "--width", "8", "--precision", "32"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    with process:
        assert process.stdout.readline().startswith("note: ")  # what comes next is that process
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()  # until the last process of the command has ended
    assert process.returncode == 130, said
    assert said.strip() == "evenly: stopped. Run the same command again to continue."


@pytest.mark.slow
def test_a_killed_run_is_told_and_taken_up(tmp_path):
    """As the system does when memory runs out: one process of the command is gone."""
    command = ["compare", "--data", DATA, "--epochs", 4, "--width", 8, "--out", tmp_path]
    command += ["--seeds", 1, "--methods", "joint", "--encoders.m1", "test_compare.Kills"]
    command += ["--precision", 32, "--checkpoint_every", 0]
    ran = forked.run(forked.evenly, *command)
    assert ran.returncode == 1
    assert "joint-0: its process ended with code -9 (killed, perhaps out of" in ran.stderr
    run = tmp_path / "runs" / "joint-0"
    before = (run / "metrics.csv").read_text()
    assert [row["epoch"] for row in read(run / "metrics.csv")] == ["0", "1"]
    # The same setting: the two epochs that are left have four batches.
    ran = forked.run(forked.evenly, *command)
    assert ran.returncode == 0, ran.stderr
    assert (run / "metrics.csv").read_text().startswith(before)
    assert json.loads((run / "result.json").read_text())["steps"] == 8


class Kills(Breaks):
    """An encoder that takes its process with it at the fifth batch: of two, in the third epoch."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def forward(self, x):
        self.batches += self.training
        if self.batches == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x.float())


@pytest.mark.slow
def test_runs_end_with_a_command_that_is_killed(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "evenly.cli", "compare", "--data", DATA, "--epochs", "60"]
    command += ["--seeds", "1", "--methods", "joint", "--out", str(tmp_path), "--width", "8"]
    command += ["--encoders.m1", "test_compare.Slow", "--checkpoint_every", "0"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    run = tmp_path / "runs" / "joint-0"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    while not (run / "metrics.csv").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(2)  # for longer than an epoch
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not (run / "error.txt").exists()
    assert len(read(run / "metrics.csv")) <= 2  # an epoch may end just then


class Slow(Breaks):
    """An encoder of which an epoch takes a while."""

    def forward(self, x):
        time.sleep(0.5)
        return self.net(x.float())


def test_two_comparisons_in_one_folder(tmp_path):
    with held(tmp_path / "out"):
        with pytest.raises(ValueError, match="another command is at work in this folder"):
            compare("joint", 1, TRAINING, tmp_path / "out", local(1))
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_full_disk_ends_a_comparison(tmp_path):
    """Every other run would fail, too; and of a search none has had its trial."""
    mark, run = tmp_path / "mark", tmp_path / "out" / "runs" / "joint-0"
    mark.touch()
    encoders = {"m1": f'test_compare.Fills(mark="{mark}")'}
    training = replace(TRAINING, epochs=1, diagnose_every=0, precision="32", encoders=encoders)
    with pytest.raises(OSError, match=r"File too large: '.*/runs/joint-0/best\.ckpt'"):
        compare("joint", 2, training, tmp_path / "out", local(1))
    assert not run.with_name("joint-1").exists()
    mark.unlink()
    compare("joint", 2, training, tmp_path / "out", local(1))
    assert not (run / "error.txt").exists()


class Fills(Breaks):
    """An encoder whose process finds no room on the disk as long as there is a mark."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def forward(self, x):
        if self.training and os.path.exists(self.mark):
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        return self.net(x.float())


def test_tables_of_no_comparison(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: there is no config\.yaml"):
        write_tables(tmp_path)


def test_summary_by_hand():
    def row(method, seed, value):
        base = {"split": "test", "metric": "accuracy"}
        return {"method": method, "seed": seed, "value": value, **base}

    rows = summary(
        [
            *(row("joint", seed, value) for seed, value in enumerate([0.5, 0.6, 0.7])),
            *(row("a", seed, value) for seed, value in enumerate([0.61, 0.70, 0.79])),
            *(row("b", seed, value) for seed, value in enumerate([0.5, 0.7, 0.6])),
            row("c", 7, 0.9),
        ]
    )
    by_method = {row["method"]: row for row in rows}
    assert by_method["a"]["difference"] == pytest.approx(0.1)
    # differences .11, .10, .09: t = .1 / (.01 / √3) = 17.32, two-sided p with 2 degrees: .00332
    assert by_method["a"]["p_value"] == pytest.approx(0.00332, abs=1e-5)
    assert by_method["a"]["p_holm"] == pytest.approx(0.00664, abs=2e-5)  # two methods are tested
    assert by_method["b"]["p_holm"] == 1.0
    assert "difference" not in by_method["c"]  # it shares no seed with joint
    assert {name: row["pairs"] for name, row in by_method.items()} == {
        "joint": 3, "a": 3, "b": 3, "c": 0
    }  # fmt: skip
    assert by_method["joint"]["std"] == pytest.approx(0.1)
    assert by_method["a"]["test"] == "paired t over seeds"
    assert by_method["a"]["p_permutation"] == 0.25  # two of the eight ways to flip the signs
    # t(0.975, 2) = 4.3027, and .01 / √3 is the standard error
    assert by_method["a"]["difference_low"] == pytest.approx(0.1 - 4.3027 * 0.01 / 3**0.5, rel=1e-3)


@pytest.mark.parametrize("answers", [False, True])
def test_two_seeds_have_neither_interval_nor_test(answers):
    """joint .5 and .75, a .75 and 1, on four samples: with a third seed there would be both."""
    guess = {"joint": ([1, 1, 0, 0], [1, 1, 1, 0]), "a": ([1, 1, 1, 0], [1, 1, 1, 1])}
    target = np.ones(4, dtype=np.int64)
    rows = [
        {"method": method, "seed": seed, "split": "test", "metric": "accuracy",
         "value": float(np.mean(one))}
        for method, several in guess.items()
        for seed, one in enumerate(several)
    ]  # fmt: skip
    of_seed = {method: dict(enumerate(map(np.array, several))) for method, several in guess.items()}
    joint, a = summary(rows, Answers(target, of_seed) if answers else None)
    assert (joint["mean"], joint["std"]) == (0.625, pytest.approx(0.125 * 2**0.5))
    assert (a["seeds"], a["pairs"], a["difference"]) == (2, 2, 0.25)
    fields = ("low", "high", "difference_low", "difference_high", "test")
    fields += ("p_value", "p_holm", "p_permutation")
    assert {line.get(name) for line in (joint, a) for name in fields} == {None}


def test_the_table_tests_no_two_shared_seeds(tmp_path):
    """joint has 0, 1, 2, a 1, 2, 3, and b all four: over the shared ones +.20, then +.10."""

    def row(method, seed, value):
        return {"method": method, "seed": seed, "split": "test", "metric": "accuracy",
                "value": value}  # fmt: skip

    rows = [row("joint", seed, value) for seed, value in enumerate([0.5, 0.6, 0.7])]
    rows += [row("a", seed + 1, value) for seed, value in enumerate([0.8, 0.9, 0.7])]
    rows += [row("b", seed, value) for seed, value in enumerate([0.6, 0.69, 0.81, 0.2])]
    write_csv(tmp_path / "summary.csv", SUMMARY, summary(rows))
    (tmp_path / "config.yaml").write_text("protocol: fair\n")
    *_, a, joint, b, _, said = table(tmp_path).splitlines()
    assert a.split() == ["a", "0.800", "±", "0.100", "+0.200"]
    assert joint.split() == ["joint", "0.600", "±", "0.100"]
    assert b.split()[4] == "+0.100"
    assert "(p " in b
    assert said == (
        "Methods finished different seeds: a mean is over a method's own seeds, a difference and "
        "its test over those that it shares with joint."
    )


def test_what_is_not_defined_does_not_count(capsys):
    """Such as the correlation of a constant, in one seed or in all."""

    def row(method, seed, value, metric="pearson"):
        base = {"split": "test", "metric": metric}
        return {"method": method, "seed": seed, "value": value, **base}

    nan = math.nan
    rows = summary(
        [
            *(row("joint", seed, value) for seed, value in enumerate([0.2, 0.4, 0.9])),
            *(row("a", seed, value) for seed, value in enumerate([0.5, 0.7, nan])),
            *(row("b", seed, nan) for seed in range(3)),
        ]
    )
    by_method = {row["method"]: row for row in rows}
    assert (by_method["a"]["mean"], by_method["a"]["seeds"]) == (pytest.approx(0.6), 2)
    assert by_method["a"]["difference"] == pytest.approx(0.3)  # of the seeds that both have
    assert math.isnan(by_method["b"]["mean"])
    assert by_method["b"]["seeds"] == 0
    assert "difference" not in by_method["b"]
    assert METRICS["pearson"].written(nan) == METRICS["accuracy"].written(nan) == "–"
    assert METRICS["pearson"].shown(nan) == METRICS["accuracy"].shown(nan) == "–"


TEN = [
    "joint", "multi_loss", "g_blending", "umt", "greedy", "relearn", "mmpareto", "dgl", "awc",
    "remedy",
]  # fmt: skip


@pytest.mark.slow
def test_ten_methods_on_the_genres_of_movies(tmp_path, capsys):
    """Several labels, from the files of MM-IMDb to the table, with no failed cell."""
    trees.mm_imdb(tmp_path / "movies")
    arguments = ("--source", "mm_imdb(size=[8,8])", "--folder", str(tmp_path / "movies"))
    quick = ("--epochs", "1", "--width", "8", "--batch_size", "23", "--seeds", "1")
    quick += ("--precision", "32")
    out = tmp_path / "out"
    assert main(["compare", *arguments, *quick, "--methods", ",".join(TEN), "--out", str(out)]) in (
        None,
        0,
    )
    said = capsys.readouterr().out.splitlines()
    ends = [line.split()[0] for line in said if line.split() and line.split()[0] in TEN]
    assert set(ends) == set(TEN)
    found = {(row["method"], row["metric"]): row["value"] for row in read(out / "results.csv")}
    for method in TEN:
        assert not (out / "runs" / f"{method}-0" / "error.txt").exists()
        assert 0 <= float(found[method, "mean_average_precision"]) <= 1


def test_runs_that_end_early_say_so(tmp_path):
    training = replace(TRAINING, epochs=9, patience=1, lr=1e-7, diagnose_every=0)
    page = compare("joint", 1, training, tmp_path, local(1)).read_text(encoding="utf-8")
    assert "--patience 1 ends a run so many epochs after its best: these trained for 2 to 2" in page
    found = {row["metric"]: row["value"] for row in read(tmp_path / "results.csv")}
    assert found["epochs"] == "2.0"


def test_every_output_of_the_paper_protocol_says_so(tmp_path):
    training = replace(TRAINING, protocol="paper", epochs=1, diagnose_every=0)
    page = compare("joint", 1, training, tmp_path, local(1)).read_text(encoding="utf-8")
    label = "The epoch is selected on the test split"
    assert label in page
    assert "selected on test, % ±" in page
    assert "read once, after that" not in page
    assert label in table(tmp_path)
    for name in ("results.csv", "summary.csv"):
        assert {row["protocol"] for row in read(tmp_path / name)} == {"paper"}
    picture = write_picture(tmp_path, tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "selected on test" in picture


def test_every_output_says_how_epochs_are_selected_and_by_what_loss_methods_train(tmp_path):
    training = replace(
        TRAINING, epochs=1, diagnose_every=0, class_weights="balanced", focal=2.0, select="loss"
    )
    page = compare("joint", 1, training, tmp_path, local(1)).read_text(encoding="utf-8")
    said = (
        "All methods train with the focal loss (gamma = 2) and balanced class weights. "
        "The epoch is selected by loss; methods are still ranked and tested by accuracy."
    )
    shown = table(tmp_path)
    for text in (page, shown, *(x.read_text() for x in write_formats(tmp_path, ["md", "latex"]))):
        assert said in text
    found, head = shown.split("\n\n", 1)
    assert found.startswith("Joint training reaches accuracy ")
    assert head.split()[:3] == ["method", "loss", "accuracy"]
    with pytest.raises(ValueError, match=r"runs with focal = 2\.0, but now 0\.0 is asked for"):
        compare("joint", 1, replace(training, focal=0.0), tmp_path, local(1))


def test_accuracy_is_tested_over_seeds_and_samples():
    stream = np.random.default_rng(0)
    target = np.arange(60) % 3
    guess = {
        method: {seed: np.where(stream.random(60) < right, target, 0) for seed in range(3)}
        for method, right in (("joint", 0.6), ("a", 0.8))
    }
    rows = [
        {"method": method, "seed": seed, "split": split, "metric": metric,
         "value": float(np.mean(found == target))}
        for method, by_seed in guess.items()
        for seed, found in by_seed.items()
        for split, metric in (("test", "accuracy"), ("test", "macro_f1"), ("test", "loss"),
                              ("val", "accuracy"))
    ]  # fmt: skip
    found = {
        (row["split"], row["metric"]): row
        for row in summary(rows, Answers(target, guess))
        if row["method"] == "a"
    }
    for metric in ("accuracy", "macro_f1"):
        row = found["test", metric]
        assert row["test"] == "paired t over seeds, bootstrap over seeds and samples"
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert 0 < row["p_value"] <= row["p_holm"] <= 1
    assert found["val", "accuracy"]["test"] == "paired t over seeds"
    assert found["test", "loss"]["test"] == "paired t over seeds"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_method_trains_on_three_modalities_and_is_reported(tmp_path):
    data = "synthetic(train=48,val=24,test=24,classes=3,modalities=3)"
    quick = {"epochs": 2, "width": 8, "batch_size": 24, "diagnose_every": 0, "precision": "32"}
    training = Training(data=data, **quick)
    page = compare("all", 1, training, tmp_path, local(2)).read_text(encoding="utf-8")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    found = {row["method"] for row in read(tmp_path / "results.csv") if row["split"] == "test"}
    assert found == set(config["methods"])
    assert {method.partition("(")[0] for method in found} == set(METHODS)
    assert {f"unimodal(modality=m{n})" for n in (1, 2, 3)} <= found
    assert all(method in page for method in found)
