import json

import plotly.graph_objects as go
import pytest

from evenly.report.figures import all_figures, styles
from evenly.report.folder import read_comparison


def _figures(folder):
    return all_figures(read_comparison(folder))


def _of(figure, method):
    return [trace for trace in figure["data"] if trace["name"] == method]


@pytest.mark.parametrize("count", range(1, 7))
def test_plotly_accepts_every_figure(tmp_path, write, count):
    names = [f"m{i}" for i in range(count)]
    figures = _figures(write(tmp_path, modalities=names, seeds=2, epochs=9))
    kinds = ("purity_train", "purity_val", "gap")
    modal = {f"{kind}/{i}" for kind in kinds for i in range(count)}
    assert set(figures) == {"accuracy", "curve/val_accuracy", "curve/train_loss"} | modal
    for figure in figures.values():
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_accuracy_shows_each_seed_the_mean_and_the_interval(folder):
    found = read_comparison(folder)
    seeds, mean = _of(all_figures(found)["accuracy"], "relearn")
    runs = [run.result["metrics"]["test"]["accuracy"] for run in found.runs_of("relearn")]
    assert seeds["x"] == pytest.approx([100 * value for value in runs], abs=0.01)
    estimate = found.estimate("relearn", "accuracy")
    assert mean["x"] == pytest.approx([100 * estimate.mean], abs=0.01)
    high = mean["x"][0] + mean["error_x"]["array"][0]
    low = mean["x"][0] - mean["error_x"]["arrayminus"][0]
    assert (low, high) == pytest.approx((100 * estimate.low, 100 * estimate.high), abs=0.01)


def test_accuracy_lists_the_best_on_top(folder):
    found = read_comparison(folder)
    axis = all_figures(found)["accuracy"]["layout"]["yaxis"]
    assert axis["ticktext"] == found.ranking[::-1]


def test_one_seed_has_no_interval(tmp_path, write):
    figures = _figures(write(tmp_path, seeds=1, epochs=9))
    assert all("error_x" not in trace for trace in figures["accuracy"]["data"])
    # The seed is the mean: one line, and the marks of the re-learnings.
    assert len(_of(figures["curve/train_loss"], "joint")) == 1
    assert len(_of(figures["curve/train_loss"], "relearn")) == 2


def test_curves_have_a_line_for_each_seed_and_their_mean(folder):
    found = read_comparison(folder)
    *seeds, mean = _of(all_figures(found)["curve/val_accuracy"], "joint")
    for run, trace in zip(found.runs_of("joint"), seeds, strict=True):
        values = run.points("val_accuracy")
        assert trace["x"] == list(values)
        assert trace["y"] == pytest.approx([100 * value for value in values.values()], abs=0.01)
    assert mean["y"][4] == pytest.approx(sum(t["y"][4] for t in seeds) / 3, abs=0.01)
    assert mean["line"]["width"] > max(trace["line"]["width"] for trace in seeds)


def test_relearnings_are_marked_on_the_curve(folder):
    found = read_comparison(folder)
    moments = list(found.moments("relearn"))
    assert len(moments) == 3
    for name in ("curve/val_accuracy", "gap/1"):
        figure = all_figures(found)[name]
        marks = _of(figure, "relearn")[-1]
        assert marks["x"] == moments
        assert "strength top 0." in marks["text"][0]
        assert [shape["x0"] for shape in figure["layout"]["shapes"]] == moments
        assert {shape["name"] for shape in figure["layout"]["shapes"]} == {"1"}


def test_a_method_has_one_colour_everywhere(folder):
    found = read_comparison(folder)
    style = styles(found.methods)
    for figure in all_figures(found).values():
        for trace in figure["data"]:
            assert trace["marker"]["color"] == style[found.methods[trace["meta"]]][0]


def test_thirty_methods_can_be_told_apart():
    methods = ["joint", *(f"m{i}" for i in range(29))]
    assert len(set(styles(methods).values())) == 30


def test_a_name_is_no_markup_to_plotly(tmp_path, write):
    name = '<a href="https://x.org">b</a> & <b>'
    figure = _figures(write(tmp_path, methods=["joint", name], epochs=6))["accuracy"]
    shown = {trace["name"] for trace in figure["data"]}
    assert '&lt;a href="https://x.org"&gt;b&lt;/a&gt; &amp; &lt;b&gt;' in shown
    assert not any("<" in text for text in figure["layout"]["yaxis"]["ticktext"])


def test_what_was_not_measured_has_no_figure(tmp_path, write):
    folder = write(tmp_path, seeds=1, epochs=6)
    for path in folder.glob("runs/*/metrics.csv"):
        path.write_text("epoch,train_loss\n0,1.0\n1,0.5\n")
    assert set(_figures(folder)) == {"accuracy", "curve/train_loss"}
