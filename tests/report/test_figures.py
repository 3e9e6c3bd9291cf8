import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import product

import numpy as np
import plotly.graph_objects as go
import pytest

from evenly.report.comparison import Comparison, Estimate, Run, conditions
from evenly.report.figures import all_figures
from evenly.report.folder import read_comparison
from evenly.report.formats import markdown
from evenly.report.marks import MARKERS, OUTLINES, marks
from evenly.report.page import _page
from evenly.report.parts import HOVER
from evenly.report.picture import _draw
from evenly.report.studies import _figure4


def _figures(folder):
    return all_figures(read_comparison(folder))


def _of(figure, method):
    return [trace for trace in figure["data"] if trace["name"] == method]


def _hovers(trace):
    """What the pointer shows of each point below the name, of texts and numbers of its own."""
    template = trace["hovertemplate"].removeprefix(HOVER)

    def value(at, field):
        found = trace[field[1]][at]
        return str(found[int(field[2])] if field[2] else found)

    return [
        re.sub(r"%{(\w+)(?:\[(\d)\])?}", partial(value, at), template)
        for at in range(len(trace["x"]))
    ]


@pytest.mark.parametrize("count", range(1, 7))
def test_plotly_accepts_every_figure(tmp_path, write, count):
    names = [f"m{i}" for i in range(count)]
    figures = _figures(write(tmp_path, modalities=names, seeds=2, epochs=9))
    kinds = ("purity_train", "purity_val", "gap", "strength", "noise", "missing")
    modal = {f"{kind}/{i}" for kind in kinds for i in range(count)}
    modal |= {f"map/{i}/{j}" for j in range(count) for i in range(j)}
    whole = {"accuracy", "curve/val_accuracy", "curve/train_loss", "contribution", "confusion"}
    whole |= {"only"} | ({"without"} if count > 2 else set())
    assert set(figures) == whole | modal
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


def _ends(figure, axis="y"):
    return [value for trace in figure["data"] for value in trace[axis] if value is not None]


def test_panels_of_a_kind_share_one_scale(tmp_path, write):
    figures = _figures(write(tmp_path, modalities=["a", "b", "c"], epochs=9))
    for kinds, axis in (
        (("purity_train", "purity_val"), "y"), (("gap",), "y"), (("noise",), "y"),
        (("missing",), "y"), (("only", "without"), "x"),
    ):  # fmt: skip
        some = [figure for name, figure in figures.items() if name.startswith(kinds)]
        assert len(some) >= 2
        scales = {tuple(figure["layout"][f"{axis}axis"]["range"]) for figure in some}
        ((low, high),) = scales
        values = [value for figure in some for value in _ends(figure, axis)]
        assert low <= min(values) < max(values) <= high
        assert high - low < 1.5 * (max(values) - min(values))


def test_accuracy_is_in_the_order_of_the_table(folder):
    found = read_comparison(folder)
    axis = all_figures(found)["accuracy"]["layout"]["yaxis"]
    assert axis["ticktext"] == found.ranking
    assert axis["tickvals"] == sorted(axis["tickvals"], reverse=True)


def test_one_seed_has_no_interval(tmp_path, write):
    figures = _figures(write(tmp_path, seeds=1, epochs=9))
    assert all("error_x" not in trace for trace in figures["accuracy"]["data"])
    # The seed is the mean: one line, and the marks of the re-learnings.
    assert len(_of(figures["curve/train_loss"], "joint")) == 1
    assert len(_of(figures["curve/train_loss"], "relearn")) == 2


def test_curves_are_means_on_bands_of_the_seeds(folder):
    found = read_comparison(folder)
    band, mean = _of(all_figures(found)["curve/val_accuracy"], "joint")
    curves = [run.points("val_accuracy") for run in found.runs_of("joint")]
    assert len(curves) == 3
    assert mean["x"] == list(range(1, 31))
    at = [100 * curve[5] for curve in curves]
    assert mean["y"][4] == pytest.approx(sum(at) / 3, abs=0.01)
    assert mean["customdata"][4] == pytest.approx([min(at), max(at)], abs=0.01)
    assert band["x"] == [*range(1, 31), *range(30, 0, -1)]
    assert band["y"][4] == pytest.approx(max(at), abs=0.01)
    assert band["y"][-5] == pytest.approx(min(at), abs=0.01)


def test_the_band_of_a_gap_has_its_standard_error():
    """Two seeds: .03 ± .05 and .10 ± .02 give 0 to .12; .20 ± .01 and .10 ± .03 give .07 to .21."""
    gaps, errors = ((0.03, 0.2), (0.1, 0.1)), ((0.05, 0.01), (0.02, 0.03))
    runs = [
        Run("joint", seed, {"epoch": [0.0, 1.0], "gap/x": gap, "gap_error/x": error})
        for seed, (gap, error) in enumerate(zip(gaps, errors, strict=True))
    ]
    config = {"methods": ["joint"], "modalities": ["x"]}
    two, one = (Comparison(config, some, {}, {}, datetime.now(UTC)) for some in (runs, runs[:1]))
    band, line = all_figures(two)["gap/0"]["data"]
    assert band["x"] == [1, 2, 2, 1]
    assert band["y"] == pytest.approx([0.12, 0.21, 0.07, 0])
    assert line["y"] == pytest.approx([0.065, 0.15])
    assert _hovers(line)[0].endswith("<br>seeds 0.03 to 0.1<br>standard error 0.035")
    band, line = all_figures(one)["gap/0"]["data"]
    assert band["y"] == pytest.approx([0.08, 0.21, 0.19, 0])
    assert _hovers(line)[0].endswith("<br>standard error 0.05")
    for figure in (_draw(two, ["joint"]), _figure4(two)):
        (area,) = next(axes for axes in figure.axes if axes.collections).collections
        (path,) = area.get_paths()
        assert {0.12, 0.21, 0.07, 0.0} <= set(path.vertices[:, 1].round(6).tolist())
        assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "± s.e."
    known = [{name: run.curves[name] for name in ("epoch", "gap/x")} for run in runs]
    bare = replace(two, runs=[Run("joint", seed, curves) for seed, curves in enumerate(known)])
    band, line = all_figures(bare)["gap/0"]["data"]
    assert band["y"] == pytest.approx([0.1, 0.2, 0.1, 0.03])
    assert "standard error" not in _hovers(line)[0]
    for figure in (_draw(bare, ["joint"]), _figure4(bare)):
        assert not any(axes.collections for axes in figure.axes)
        assert [text.get_text() for text in figure.legends[0].get_texts()][-1] != "± s.e."


def test_bands_lie_below_all_lines(folder):
    for name in ("curve/val_accuracy", "gap/0"):
        filled = ["fill" in trace for trace in _figures(folder)[name]["data"]]
        assert filled == sorted(filled, reverse=True)
        assert sum(filled) == 3


def test_a_long_curve_is_drawn_of_some_of_its_epochs(tmp_path, write):
    folder = write(tmp_path, methods=["joint"], seeds=2, epochs=400)
    (_, mean) = _figures(folder)["curve/val_accuracy"]["data"]
    assert len(mean["x"]) == 120
    assert mean["x"][0] == 1
    assert mean["x"][-1] == 400
    assert {b - a for a, b in zip(mean["x"], mean["x"][1:], strict=False)} == {3, 4}
    curves = [run.points("val_accuracy") for run in read_comparison(folder).runs]
    expected = [100 * sum(curve[x] for curve in curves) / 2 for x in mean["x"]]
    assert mean["y"] == pytest.approx(expected, abs=0.01)


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


def test_strengths_are_those_of_each_seed_and_their_mean(folder):
    found = read_comparison(folder)
    figures = all_figures(found)
    seeds, stems, mean = figures["strength/1"]["data"]
    moments = found.moments("relearn")
    assert mean["x"] == list(moments)
    assert mean["y"] == pytest.approx([moment["bottom"] for moment in moments.values()], abs=1e-4)
    assert mean["text"] == ["mean of 3 seeds"] * 3
    assert stems["x"][3:6] == [mean["x"][1], mean["x"][1], None]
    assert stems["y"][3:6] == [0, mean["y"][1], None]
    assert stems["hoverinfo"] == "skip"
    assert len(seeds["x"]) == 3 * len(moments)
    run = found.runs_of("relearn")[2]
    own = {
        (x, y) for x, y, text in zip(seeds["x"], seeds["y"], seeds["text"], strict=True)
        if text == f"seed {run.seed}"
    }  # fmt: skip
    assert own == {(epoch, value["bottom"]) for epoch, value in run.moments().items()}
    top, bottom = (figures[f"strength/{i}"]["layout"]["yaxis"]["range"] for i in (0, 1))
    assert top == bottom
    highest = max(max(moment.values()) for run in found.runs for moment in run.moments().values())
    assert highest < top[1] < 1.2 * highest


def test_a_method_that_never_relearns_has_no_strength(tmp_path, write):
    figures = _figures(write(tmp_path, methods=["joint", "ogm_ge"], epochs=9))
    assert "gap/0" in figures
    assert not any(name.startswith("strength") for name in figures)


def test_confusions_are_written_out_where_there_is_room(tmp_path, write):
    few = _figures(write(tmp_path / "few", seeds=2, epochs=6))["confusion"]
    for trace in few["data"]:
        for shares, texts in zip(trace["z"], trace["text"], strict=True):
            assert texts == [f"{share:.0f}" if share >= 0.5 else "" for share in shares]
    names = [f"a longer name {i}" for i in range(31)]
    many = _figures(write(tmp_path / "many", seeds=2, epochs=6, class_names=names))["confusion"]
    assert "text" not in many["data"][0]
    assert many["layout"]["xaxis"]["tickangle"] == -90
    assert many["layout"]["height"] > 15 * 31  # a line of text each
    assert many["layout"]["meta"] == names  # of which the page makes what the pointer says
    ticks = many["layout"]["yaxis"]["ticktext"]
    assert ticks[3] == "a long… name 3"
    assert len(set(ticks)) == 31


def test_a_method_has_one_colour_and_symbol_everywhere(tmp_path, write):
    found = read_comparison(write(tmp_path, modalities=["a", "b", "c"], seeds=2, epochs=9))
    mark = marks(found.methods)
    figures = all_figures(found)
    of_modalities = ("contribution", "confusion", "only", "without")
    for figure in (x for name, x in figures.items() if name not in of_modalities):
        for trace in figure["data"]:
            colour, _, symbol = mark[found.methods[trace["meta"]]]
            marker = trace.get("marker", trace.get("line", {}))
            assert marker["color"] == colour
            seen = marker.get("symbol")  # a triangle marks a re-learning on a curve
            assert seen in (None, "triangle-down", symbol)
    for name in ("noise/0", "map/0/1"):
        assert {trace["marker"]["symbol"] for trace in figures[name]["data"]} == {
            mark[method].symbol for method in found.methods
        }


def test_many_methods_can_be_told_apart():
    methods = ["joint", *(f"m{i}" for i in range(66))]
    found = marks(methods)
    assert len({found[method].colour for method in methods[:12]}) == 12
    assert len({(mark.colour, mark.symbol) for mark in found.values()}) == 67
    assert len({(mark.colour, mark.dash) for mark in list(found.values())[:50]}) == 50
    assert set(OUTLINES) == set(MARKERS) == {mark.symbol for mark in found.values()}


def test_rows_hold_their_whole_names(tmp_path, write):
    """Variants of a method may differ in their last setting."""
    variants = [f"relearn(batchnorm=reestimated,gap=shared,every={i})" for i in (3, 7)]
    methods = ["joint", "unimodal(modality=top)", *variants]
    figures = _figures(write(tmp_path, methods=methods, seeds=2, epochs=9))
    for name in ("accuracy", "contribution", "only"):
        layout = figures[name]["layout"]
        rows = [text.split("<br>") for text in layout["yaxis"]["ticktext"]]
        assert {"".join(lines) for lines in rows} == {"joint", "top alone", *variants}
        assert max(len(line) for lines in rows for line in lines) <= 22
        places = layout["yaxis"]["tickvals"]
        for upper, lower, lines, below in zip(places, places[1:], rows, rows[1:], strict=False):
            assert upper - lower >= 8 * (len(lines) + len(below))  # half of each
        low, high = layout["yaxis"]["range"]
        assert high - low < layout["height"]
        assert low < min(places) < max(places) < high
    assert ["relearn(", "batchnorm=reestimated,", "gap=shared,every=3)"] in rows


def test_shares_stay_between_nothing_and_all(folder):
    figures = _figures(folder)
    for name, axis, most in (
        ("accuracy", "xaxis", 100), ("map/0/1", "xaxis", 100), ("map/0/1", "yaxis", 100),
        ("curve/val_accuracy", "yaxis", 100),
    ):  # fmt: skip
        bounds = figures[name]["layout"][axis]["autorangeoptions"]
        assert bounds == {"clipmin": -0.02 * most, "clipmax": 1.02 * most}
    for name, axis, most in (
        ("only", "xaxis", 100), ("noise/0", "yaxis", 100), ("missing/1", "yaxis", 100),
        ("purity_val/0", "yaxis", 1), ("gap/1", "yaxis", 1),
    ):  # fmt: skip
        low, high = figures[name]["layout"][axis]["range"]
        assert -0.02 * most <= low < high <= 1.02 * most
    assert "autorangeoptions" not in figures["curve/train_loss"]["layout"]["yaxis"]


def test_a_name_is_no_markup_to_plotly(tmp_path, write):
    name = '<a href="https://x.org">b</a> & <b>'
    figure = _figures(write(tmp_path, methods=["joint", name], epochs=6))["accuracy"]
    shown = {trace["name"] for trace in figure["data"]}
    assert '&lt;a href="https://x.org"&gt;b&lt;/a&gt; &amp; &lt;b&gt;' in shown
    shown = [text.replace("<br>", "") for text in figure["layout"]["yaxis"]["ticktext"]]
    assert '&lt;a href="https://x.org"&gt;b&lt;/a&gt; &amp; &lt;b&gt;' in shown


def test_what_was_not_measured_has_no_figure(tmp_path, write):
    folder = write(tmp_path, seeds=1, epochs=6)
    for path in folder.glob("runs/*/metrics.csv"):
        path.write_text("epoch,train_loss\n0,1.0\n1,0.5\n")
    kept = [
        line
        for line in (folder / "summary.csv").read_text().splitlines(keepends=True)
        if not any(kind in line for kind in ("contribution", "only", "probe", "noise", "missing"))
    ]
    (folder / "summary.csv").write_text("".join(kept))
    assert set(_figures(folder)) == {"accuracy", "curve/train_loss", "confusion"}


def test_contributions_stand_end_to_end_and_losses_to_the_left(tmp_path, write):
    """.5, .25 and 1/6 - .6 of accuracy."""
    figures = _figures(write(tmp_path, modalities=["a", "b", "c"], seeds=2, epochs=9))
    first, second, third = _of(figures["contribution"], "joint")
    assert (first["base"], first["x"]) == ([0], [50])
    assert (second["base"], second["x"]) == ([50], [25])
    assert third["base"] == [0]
    assert third["x"] == pytest.approx([100 / 6 - 60], abs=0.01)
    assert len({trace["marker"]["color"] for trace in (first, second, third)}) == 3
    said = [_hovers(trace) for trace in (first, second, third)]
    assert said == [["a: 50.0 points"], ["b: 25.0 points"], ["c: -43.3 points"]]


def test_a_contribution_that_was_not_measured_has_no_bar(folder):
    found = read_comparison(folder)
    gone = ("joint", "test", "contribution/top")
    known = {key: each for key, each in found.summary.items() if key != gone}
    bars = _of(all_figures(replace(found, summary=known))["contribution"], "joint")
    assert [_hovers(bar) for bar in bars] == [["bottom: 25.0 points"]]


def test_accuracy_given_one_modality_only_and_without_it(tmp_path, write):
    """.7, .6 and .5 given it only, .3, .4 and .5 without; a line for all of them in each row."""
    found = read_comparison(write(tmp_path, modalities=["a", "b", "c"], seeds=2, epochs=9))
    figures = all_figures(found)
    for kind, shares, text in (
        ("only", [70, 60, 50], "given {} only"),
        ("without", [30, 40, 50], "without {}"),
    ):
        whole, *others = _of(figures[kind], "relearn")
        assert whole["x"] == pytest.approx([100 * found.score("relearn")], abs=0.01)
        assert whole["marker"]["symbol"] == "line-ns"
        assert [trace["x"] for trace in others] == [[share] for share in shares]
        assert [trace["text"] for trace in others] == [[text.format(name)] for name in "abc"]
        assert len({trace["y"][0] for trace in (whole, *others)}) == 1


def test_the_map_shows_probes_and_the_accuracy_of_both(folder):
    found = read_comparison(folder)
    figure = all_figures(found)["map/0/1"]
    sizes = {}
    for method in found.methods:
        seeds, mean = _of(figure, method)
        for axis, name in (("x", "top"), ("y", "bottom")):
            probes = [
                run.result["metrics"]["test"][f"probe/{name}"] for run in found.runs_of(method)
            ]
            assert seeds[axis] == pytest.approx([100 * value for value in probes], abs=0.01)
            assert mean[axis] == pytest.approx([100 * sum(probes) / 3], abs=0.01)
        sizes[method] = mean["marker"]["size"]
    assert sorted(found.methods, key=found.score) == sorted(found.methods, key=sizes.get)


def test_noise_goes_from_none_to_missing(folder):
    found = read_comparison(folder)
    (line,) = _of(all_figures(found)["noise/1"], "joint")
    assert line["x"] == ["none", "0.5", "1", "2", "4", "missing"]
    accuracy = 100 * found.score("joint")
    expected = [accuracy / (1 + level) for level in (0, 0.5, 1, 2, 4)] + [40]
    assert line["y"] == pytest.approx(expected, abs=0.01)


def test_no_number_under_the_pointer_has_two_units_or_an_error_bar(folder):
    """Plotly's %{x} and %{y} bring the ticks' suffix and, of a mean with a bar, "+1 / -1"."""
    for figure in _figures(folder).values():
        for trace, side in product(figure["data"], "xy"):
            template = trace.get("hovertemplate", "")
            if f"%{{{side}}}" in template:
                suffix = figure["layout"][f"{side}axis"].get("ticksuffix")
                assert not (suffix and f"%{{{side}}}{suffix}" in template)
                assert f"error_{side}" not in trace
                assert "base" not in trace


def test_metrics_of_ones_own_are_no_levels_or_rates(folder):
    found = read_comparison(folder)
    one = found.estimate("joint", "accuracy")
    own = ("noise_floor", "signal_noise_ratio", "missing_labels", "noise_3")
    more = {("joint", "test", name): one for name in own}
    found = replace(found, summary={**found.summary, **more})
    assert found.noise_levels == [0.5, 1, 2, 4]
    assert found.missing_rates == [0.25, 0.5, 0.75]


def test_a_curve_over_missing_rates_has_intervals(folder):
    found = read_comparison(folder)
    (line,) = _of(all_figures(found)["missing/1"], "joint")
    assert line["x"] == pytest.approx([0, 25, 50, 75, 100], abs=4)
    assert _hovers(line)[1] == f"taken from 25 %: {line['y'][1]:.2f} %"
    accuracy = 100 * found.score("joint")
    expected = [accuracy - rate * (accuracy - 40) for rate in (0, 0.25, 0.5, 0.75, 1)]
    assert line["y"] == pytest.approx(expected, abs=0.01)
    estimate = found.estimate("joint", "missing_0.25/bottom")
    assert line["error_y"]["array"][1] == pytest.approx(
        100 * (estimate.high - estimate.mean), abs=0.01
    )
    assert line["error_y"]["arrayminus"][1] == pytest.approx(
        100 * (estimate.mean - estimate.low), abs=0.01
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ""),
        ({"missing": {"a": 0.3, "b": 0}}, "Modalities are missing: a from 30 % of all samples."),
        ({"missing": {"a": 0}}, ""),
        (
            {"noise": {"a": 2.0, "b": 0.5}, "limit_samples": 1000},
            "At most 1,000 samples of each split are used. White noise is added to a (2 standard "
            "deviations) and b (0.5 standard deviations) in all splits.",
        ),
        ({"noise": {}, "limit_samples": None}, ""),
        (
            {"limit_samples": 3, "class_names": ["a", "b", "c"]},
            "At most 3 samples of each split are used.",
        ),
        (
            {"limit_samples": 2, "class_names": ["a", "b", "c"]},
            "At most 2 samples of each split are used, but at least one of each class.",
        ),
        (
            {"limit_samples": 20, "task": "labels"},
            "Samples have several labels: accuracy is the share of samples with all labels right. "
            "At most 20 samples of each split are used, but at least one with and one without each "
            "label.",
        ),
        (
            {"limit_samples": 5, "task": "number"},
            "Methods are ranked by the mean absolute error (MAE), in the data's units; lower is "
            "better. At most 5 samples of each split are used, but at least one in each tenth of "
            "the values.",
        ),
        (
            {"missing": {"a": 0.3, "b": 0.125}, "missing_test": {"a": 0, "b": 1}},
            "Modalities are missing: a from 30 % and b from 12.5 % of the training and validation "
            "samples; b from 100 % of the test samples.",
        ),
        (
            {"missing_test": {"a": 0.5}, "missing_token": True},
            "Modalities are missing: a from 50 % of the test samples, with learnt vectors in their "
            "place if a method has any.",
        ),
    ],
)
def test_what_the_data_lack_or_gain_is_a_condition(settings, said):
    assert conditions(settings) == said


def test_confusions_are_shares_of_each_class(folder):
    figure = all_figures(read_comparison(folder))["confusion"]
    assert [trace["name"] for trace in figure["data"]] == read_comparison(folder).ranking
    for row in figure["data"][0]["z"]:
        assert sum(row) == pytest.approx(100, abs=0.1)
    with np.load(folder / "runs" / "joint-0" / "predictions.npz") as file:
        target, guess = file["target"], file["probabilities"].argmax(1)
    run = next(
        run for run in read_comparison(folder).runs if (run.method, run.seed) == ("joint", 0)
    )
    for y, x in zip(target, guess, strict=True):
        assert run.confusion[y, x] == ((target == y) & (guess == x)).sum()


def _of_numbers():
    """A comparison of two methods by their errors, the second of which has the smaller one."""
    numbers = np.array([[1.0, 2.0], [3.0, 3.0], [2.0, 0.5]])
    summary = {}
    for method, mae, difference in (("joint", 250.4, None), ("awc", 12.3, -238.1)):
        summary[method, "test", "mae"] = Estimate(
            mae, 1.5, mae - 2, mae + 2, 3, 3, difference, -240.0, -236.0, 0.001, 0.002
        )
        summary[method, "test", "pearson"] = Estimate(0.5, 0.1, seeds=3)
        for kind, value in (("only", 300.0), ("contribution", 7.5), ("noise_1", 260.0)):
            summary[method, "test", f"{kind}/x"] = Estimate(value)
    return Comparison(
        {"task": "number", "methods": ["joint", "awc"], "modalities": ["x", "y"], "seeds": 3},
        [
            Run(
                method,
                0,
                {"epoch": [0.0, 1.0], "val_mae": [300.0, 200.0]},
                {"epochs": 2},
                "",
                None,
                x,
            )
            for method, x in (("joint", numbers), ("awc", numbers + 1))
        ],
        summary,
        {("joint", "test", "mae"): {0: 249.0, 1: 251.8}},
        datetime.now(UTC),
    )


def test_numbers_are_shown_in_the_units_of_the_data():
    found = _of_numbers()
    assert found.ranking == ["awc", "joint"]  # by the least error
    figures = all_figures(found)
    assert {"mae", "curve/val_mae", "contribution", "only", "noise/0", "agreement"} == {*figures}
    seeds, mean = _of(figures["mae"], "joint")
    assert (seeds["x"], mean["x"]) == ([249.0, 251.8], [250.4])
    assert mean["text"] == ["mean 250.4<br>95 % interval 248.4 to 252.4"]
    assert figures["mae"]["layout"]["xaxis"]["title"]["text"] == "test MAE"
    (bar, _) = figures["contribution"]["data"]
    assert (bar["x"], _hovers(bar)) == ([7.5], ["x: 7.500 of MAE"])
    for name in ("mae", "only"):
        assert "autorangeoptions" not in figures[name]["layout"]["xaxis"]
    assert "autorangeoptions" not in figures["curve/val_mae"]["layout"]["yaxis"]
    assert _of(figures["curve/val_mae"], "joint")[0]["y"] == [300, 200]
    line, spots = _of(figures["agreement"], "awc")
    assert _hovers(spots)[1] == "seed 0: true 4.0, said 4.0"
    assert (spots["x"], spots["y"]) == ([2, 4, 3], [3, 4, 1.5])
    assert line["x"] == line["y"] == [1.5, 4]
    for figure in figures.values():
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


def test_a_table_of_numbers_is_not_in_per_cent():
    head, _, first, *_ = markdown(_of_numbers()).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert head.startswith("| method | MAE | 95 % interval | Pearson correlation | x's own logits")
    assert cells[:4] == ["awc", "12.3 ± 1.5", "10.3 to 14.3", "0.500 ± 0.100"]
    assert cells[6] == "**-238.1 [-240.0 to -236.0]**"
    text = markdown(_of_numbers())
    assert "points" not in text
    assert "%)" not in text


def test_the_head_of_each_column_has_the_unit_of_its_values():
    """Acc-2 is a share beside an error, and a metric of the user's none beside an accuracy."""
    found = _of_numbers()
    summary = {**found.summary, ("awc", "test", "acc_2"): Estimate(0.75)}
    head, _, first, *_ = markdown(replace(found, summary=summary)).splitlines()
    assert "| Pearson correlation | Acc-2 (%) | x's own logits |" in head
    assert "| 0.500 ± 0.100 | 75.0 |" in first


def test_the_page_of_numbers_names_their_metric():
    text = _page(_of_numbers(), "tsne")
    assert (
        "awc is better than joint training: MAE 12.3, lower is better, joint training 250.4."
        in text
    )
    assert 'aria-sort="ascending"' in text
    assert "accuracy" not in text[: text.index("<script")]
    assert "at most ten bins" not in text  # nothing is diagnosed
    assert "the first seed that has finished, and all 3 test samples" in text
    assert '<option value="1">awc, seed 0</option>' in text


def test_of_many_numbers_the_page_says_how_many_are_drawn():
    """joint has none of seed 0, which failed."""
    found = _of_numbers()
    pairs = np.linspace(0, 1, 2 * 1234).reshape(1234, 2)
    joint, awc = (replace(run, numbers=pairs) for run in found.runs)
    runs = [replace(joint, numbers=None), replace(joint, seed=1), awc]
    found = replace(found, runs=runs)
    _, spots = _of(all_figures(found)["agreement"], "joint")
    assert len(spots["x"]) == 1000
    assert _hovers(spots)[0].startswith("seed 1: true 0.0, ")
    text = _page(found, "tsne")
    assert "and 1,000 of 1,234 test samples" in text
    assert '<option value="0">joint, seed 1</option>' in text
    assert '<option value="1">awc, seed 0</option>' in text


def test_no_relearning_is_marked_beyond_what_every_seed_reached():
    """Seed 0 stops after 3 epochs, seed 1 after 5: of the re-learnings after 2 and 4, the first."""
    curves = {
        "epoch": [0.0, 1.0, 2.0, 3.0, 4.0],
        "val_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5],
        "gap/x": [0.1, 0.2, 0.3, 0.4, 0.5],
        "relearn_strength/x": [None, None, 0.5, None, 0.25],
    }
    short = {name: values[:3] for name, values in curves.items()}
    runs = [Run("relearn", seed, each, {"epochs": 5}) for seed, each in enumerate((short, curves))]
    config = {"methods": ["relearn"], "modalities": ["x"], "seeds": 2}
    found = Comparison(config, runs, {}, {}, datetime.now(UTC))
    figures = all_figures(found)
    _, line, triangles = figures["curve/val_accuracy"]["data"]
    assert (line["x"], triangles["x"], triangles["y"]) == ([1, 2, 3], [2], [20])
    assert [shape["x0"] for shape in figures["curve/val_accuracy"]["layout"]["shapes"]] == [2]
    *_, means = figures["strength/0"]["data"]
    assert (means["x"], means["text"]) == ([2, 4], ["mean of 2 seeds", "seed 1"])
    for figure in (_draw(found, ["relearn"]), _figure4(found)):
        marked = [
            tuple(line.get_xdata())
            for axes in figure.axes
            for line in axes.lines
            if line.get_marker() == "v"
        ]
        assert set(marked) == {(2,)}
