import pytest

from evenly.report.folder import read_comparison, value_at


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


def test_a_row_cut_short_is_read_as_far_as_it_goes(tmp_path):
    found = _by_hand(tmp_path, "epoch,train_loss,val_accuracy\n0,1.5,0.5\n1,1.2")
    assert found.runs[0].points("train_loss") == {1: 1.5, 2: 1.2}
    assert found.runs[0].points("val_accuracy") == {1: 0.5}


def test_the_mean_is_taken_where_every_finished_seed_has_a_value(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=3, epochs=12, unfinished=[("joint", 2)])
    found = read_comparison(folder)
    first, second, _ = (run.points("train_loss") for run in found.runs_of("joint"))
    mean = found.mean_curve("joint", "train_loss")
    assert list(mean) == list(range(1, 13))
    assert mean[7] == pytest.approx((first[7] + second[7]) / 2)


def test_methods_are_ranked_by_test_accuracy_with_the_unfinished_last(tmp_path):
    (tmp_path / "config.yaml").write_text("methods: [a, b, c, d]\n")
    head = (
        "method,split,metric,mean,std,low,high,seeds,"
        "difference,difference_low,difference_high,p_value,p_holm\n"
    )
    rows = "".join(
        f"{start},,,,1,,,,,\n"
        for start in ("d,test,accuracy,0.0", "c,test,accuracy,0.9", "b,val,accuracy,1.0")
    )
    (tmp_path / "summary.csv").write_text(head + rows)
    found = read_comparison(tmp_path)
    assert found.methods == ["a", "b", "c", "d"]
    assert found.ranking == ["c", "d", "a", "b"]


def test_open_cells_say_why(tmp_path, write):
    folder = write(
        tmp_path, epochs=9, seeds=2, missing=[("joint", 1)], unfinished=[("relearn", 0)],
        failed=[("ogm_ge", 1)],
    )  # fmt: skip
    assert read_comparison(folder).open_cells() == [
        ("joint", 1, "not started"),
        ("relearn", 0, "unfinished, 3 epochs so far"),
        ("ogm_ge", 1, "failed: ValueError: the loss is <nan>."),
    ]


@pytest.mark.parametrize(("asked", "seeds"), [("3", [0, 1, 2]), ("[7, 3]", [3, 7])])
def test_seeds_are_a_number_or_a_list(tmp_path, asked, seeds):
    (tmp_path / "config.yaml").write_text(f"seeds: {asked}\n")
    assert read_comparison(tmp_path).seeds == seeds


def test_between_measurements_a_curve_is_straight():
    assert value_at({2: 1.0, 6: 3.0}, 3) == pytest.approx(1.5)


@pytest.mark.parametrize("text", [None, "", "- a", "{"])
def test_a_folder_without_a_comparison_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: there is no config\.yaml"):
        read_comparison(tmp_path)
