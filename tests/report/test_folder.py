import os
from dataclasses import replace

import numpy as np
import pytest
import yaml

from evenly.files import read_sealed, write_sealed
from evenly.lab.run.result import checksums
from evenly.report import write_report
from evenly.report.comparison import doubtful, value_at
from evenly.report.folder import read_comparison, read_curves


def _by_hand(tmp_path, metrics, **config):
    cell = tmp_path / "runs" / "a-0"
    cell.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("methods: [a]\nseeds: 1\nmodalities: [u, v]\n")
    (cell / "config.yaml").write_text("method: a\nseed: 0\n")
    (cell / "metrics.csv").write_text(metrics)
    return read_comparison(tmp_path)


def test_points_are_at_epochs_completed_and_leave_out_what_was_not_measured(tmp_path):
    found = _by_hand(tmp_path, "epoch,gap/u\n0,0.5\n1,\n2,0.25\n3,nan\n")
    assert found.runs[0].points("gap/u") == {1: 0.5, 3: 0.25}
    assert found.runs[0].points("gap/none") == {}


def test_a_relearning_is_placed_before_the_epoch_of_its_row(tmp_path):
    metrics = "epoch,relearn_strength/u,relearn_strength/v\n0,,\n1,,\n2,0.4,0.1\n3,,\n"
    found = _by_hand(tmp_path, metrics)
    assert found.runs[0].moments() == {2: {"u": 0.4, "v": 0.1}}
    assert found.moments("a") == {2: {"u": 0.4, "v": 0.1}}


RELEARNT = "epoch,relearn_strength/u,relearn_gap/u,relearn_gap_error/u\n0,,,\n1,{}\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0.06,0.02,0.02", "a"),  # as large as its error
        ("0.06,0.02,0.019", ""),
        ("0.0,0.02,0.05", ""),  # of `stable`, which pulls back by none of it
    ],
)
def test_a_re_learning_that_may_be_chance_is_named(tmp_path, row, said):
    found = _by_hand(tmp_path, RELEARNT.format(row))
    assert read_curves(tmp_path / "runs" / "a-0").curves == found.runs[0].curves
    text = doubtful(found.runs)
    assert text.partition("chance: ")[2].partition(". Set gap=stable")[0] == said
    assert bool(text) == bool(said)
    assert text in write_report(tmp_path).read_text()


def test_of_many_methods_that_re_learnt_by_chance_three_are_named(tmp_path):
    (run,) = _by_hand(tmp_path, RELEARNT.format("0.06,0.02,0.05")).runs
    runs = [replace(run, method=method, seed=seed) for method in "abcde" for seed in range(2)]
    runs[1] = replace(runs[1], curves={**run.curves, "relearn_gap_error/u": [None, 0.01]})
    assert "chance: a (1 of 2 runs), b (2 of 2 runs), c (2 of 2 runs) and 2 more." in doubtful(runs)


def _with_checksums(run):
    """Writes down, as a run does, what its files are."""
    path = run / "result.json"
    write_sealed(path, {**read_sealed(path), "files": checksums(run)})


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ("epoch,train_loss,val_accuracy\n0,1.5,0.5\n1,1.2", "line 3 has other cells"),
        ("epoch,train_loss\n0,1.5\n1,1.2", "its last line is cut off"),
        ("epoch,train_loss\n0,1.5,0.5\n", "line 2 has other cells"),
        ("epoch,train_loss\n0,1.5\n2,1.2\n", "its epochs do not follow"),
        ("train_loss\n1.5\n", "'epoch'"),
        ("epoch,train_loss\n0,much\n", "could not convert"),
        ('epoch,train_loss\n0,"1', "unexpected end of data"),
    ],
)
def test_metrics_that_are_damaged_are_not_drawn(tmp_path, metrics, fault):
    with pytest.raises(ValueError, match=rf"metrics\.csv is damaged \(.*{fault}"):
        _by_hand(tmp_path, metrics)


def test_metrics_cut_at_a_line_are_not_those_that_a_finished_run_wrote(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=1, epochs=12)
    path = folder / "runs" / "joint-0" / "metrics.csv"
    _with_checksums(path.parent)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: it is not as the run wrote it"):
        read_comparison(folder)


def test_a_finished_run_is_known_by_its_result(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=1)
    (folder / "runs" / "joint-0" / "config.yaml").unlink()
    (run,) = read_comparison(folder).runs
    assert (run.method, run.seed) == ("joint", 0)
    assert run.points("train_loss")


def test_what_a_finished_run_wrote_is_missed(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=1)
    path = folder / "runs" / "joint-0" / "predictions.npz"
    _with_checksums(path.parent)
    path.unlink()
    with pytest.raises(ValueError, match=r"predictions\.npz is missing\. Bring back the file"):
        read_comparison(folder)


WRONG = (7, -1, 1.5, True, None, "", "word", [1], [["x"]], {"a": 1})


def said(call, *arguments):
    """The sentence that a call ends with; empty if it does not."""
    try:
        call(*arguments)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def test_settings_of_any_type_are_read_or_refused(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=2, epochs=4, unfinished=[("joint", 1)])
    for path in (folder / "config.yaml", folder / "runs" / "joint-1" / "config.yaml"):
        before = path.read_text()
        settings = yaml.safe_load(before)
        for name in settings:
            for value in WRONG:
                path.write_text(yaml.safe_dump({**settings, name: value}))
                error = said(read_comparison, folder)
                assert not error or str(path) in error
        path.write_text(before.replace("seed", "s: " + "[" * 3000, 1))
        assert f"{path} is damaged" in said(read_comparison, folder)
        path.write_text(before)
    kept = dict.fromkeys(("lr", "batch_size", "epochs", "own"), settings)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((folder / "config.yaml").read_text()) | kept)
    )
    assert write_report(folder).is_file()  # what is only shown may be anything


def test_a_projection_that_does_not_add_up_is_said(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=1)
    path = folder / "runs" / "joint-0" / "projection.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("target", "predicted", "tsne_1", "row"):
        for wrong in ({}, {name: arrays[name][:-1]}, {name: np.array("x")}):
            np.savez(path, **{k: x for k, x in arrays.items() if k != name}, **wrong)
            with pytest.raises(ValueError, match=r"projection\.npz is damaged \(.*Remove it"):
                read_comparison(folder)


def test_the_mean_is_taken_where_every_finished_seed_has_a_value(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=3, epochs=12, unfinished=[("joint", 2)])
    found = read_comparison(folder)
    first, second, _ = (run.points("train_loss") for run in found.runs_of("joint"))
    mean = found.mean_curve("joint", "train_loss")
    assert list(mean) == list(range(1, 13))
    assert mean[7] == pytest.approx((first[7] + second[7]) / 2)


def test_methods_are_ranked_where_one_differs_with_the_unfinished_last(tmp_path):
    (tmp_path / "config.yaml").write_text("methods: [a, b, c, d, joint]\n")
    head = (
        "method,split,metric,mean,std,low,high,seeds,pairs,"
        "difference,difference_low,difference_high,p_value,p_holm\n"
    )
    rows = "joint,test,accuracy,0.5,,,,3,3,,,,,\nb,val,accuracy,1.0,,,,3,3,,,,,\n"
    rows += "d,test,accuracy,0.0,,,,3,3,-0.5,,,0.3,0.3\n"
    for p, order in (("0.04", ["c", "joint", "d", "a", "b"]), ("0.06", [*"abcd", "joint"])):
        differs = f"c,test,accuracy,0.9,,,,3,3,0.4,,,0.02,{p}\n"
        (tmp_path / "summary.csv").write_text(head + rows + differs)
        assert read_comparison(tmp_path).ranking == order


def test_open_cells_say_why(tmp_path, write):
    folder = write(
        tmp_path, epochs=9, seeds=2, missing=[("joint", 1)], unfinished=[("relearn", 0)],
        failed=[("ogm_ge", 1)],
    )  # fmt: skip
    assert read_comparison(folder).open_cells() == [
        ("joint", 1, "not started"),
        ("relearn", 0, "unfinished, 3 epochs so far"),
        ("ogm_ge", 1, "failed: the loss is <nan>."),
    ]


def test_why_a_run_on_several_devices_failed(tmp_path):
    """What the first said, here the second process: the other then misses it."""
    _by_hand(tmp_path, "epoch,gap/u\n0,0.5\n")
    for moment, (rank, text) in enumerate(((1, "ValueError: the reason"), (0, "lost process 1"))):
        path = tmp_path / "runs" / "a-0" / f"error-{rank}.txt"
        path.write_text(f"Traceback …\n{text}\n")
        os.utime(path, (moment, moment))
    assert read_comparison(tmp_path).open_cells() == [("a", 0, "failed: ValueError: the reason")]


@pytest.mark.parametrize(("asked", "seeds"), [("3", [0, 1, 2]), ("[7, 3]", [3, 7])])
def test_seeds_are_a_number_or_a_list(tmp_path, asked, seeds):
    (tmp_path / "config.yaml").write_text(f"seeds: {asked}\n")
    assert read_comparison(tmp_path).seeds == seeds


def test_between_measurements_a_curve_is_straight():
    assert value_at({2: 1.0, 6: 3.0}, 3) == pytest.approx(1.5)


@pytest.mark.parametrize("text", [None, "", "- a"])
def test_a_folder_without_a_comparison_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: there is no config\.yaml"):
        read_comparison(tmp_path)
