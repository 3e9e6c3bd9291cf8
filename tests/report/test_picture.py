import csv
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from evenly.files import write_csv
from evenly.lab.many.studies import STUDIES
from evenly.report import figure1, scores, write_picture, write_projection_picture
from evenly.report.drawing import row_height, row_labels
from evenly.report.folder import read_comparison
from evenly.report.picture import _draw, _draw_planes
from evenly.report.studies import _figure1, _figure4, _figure5


def _texts(path):
    return ["".join(node.itertext()) for node in ET.parse(path).iter() if node.tag.endswith("text")]


def test_holds_methods_means_and_modalities_as_text(folder, tmp_path):
    path = tmp_path / "picture.svg"
    assert write_picture(folder, path) == path
    texts = _texts(path)
    assert {"joint", "relearn", "ogm_ge", "top", "bottom", "re-learning"} <= set(texts)
    row = next(
        line.split(",")
        for line in (folder / "summary.csv").read_text().splitlines()
        if line.startswith("relearn,test,accuracy,")
    )
    assert f"{100 * float(row[3]):.1f}" in texts


def test_settings_of_authors_are_no_search(folder, tmp_path):
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["settings"] = "published for CREMA-D"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    texts = _texts(write_picture(folder, tmp_path / "picture.svg"))
    assert not any("trials" in text for text in texts)


def test_same_folder_same_file(folder, tmp_path, monkeypatch):
    first = write_picture(folder, tmp_path / "a.svg").read_bytes()
    monkeypatch.setitem(mpl.rcParams, "font.size", 30.0)
    assert write_picture(folder, tmp_path / "b.svg").read_bytes() == first
    assert mpl.rcParams["font.size"] == 30.0
    assert b"<dc:date>" not in first


@pytest.mark.parametrize("count", [1, 3, 6])
def test_any_number_of_modalities_stays_small(tmp_path, write, count):
    names = [f"modality {i}" for i in range(count)]
    write(tmp_path, modalities=names, methods=[f"m{i}" for i in range(30)], seeds=2, epochs=100)
    path = write_picture(tmp_path, tmp_path / "picture.svg")
    assert path.stat().st_size < 200_000
    assert set(names) <= set(_texts(path))


def test_of_many_methods_the_picture_says_how_many_it_draws(tmp_path, write):
    """Twelve rows fit; the reference is among them wherever it was named."""
    names = [*(f"m{i}" for i in range(14)), "joint"]
    folder = write(tmp_path, methods=names, modalities=[], seeds=2, epochs=6)
    texts = _texts(write_picture(folder, tmp_path / "picture.svg"))
    assert "mean, every seed; 12 of 15 methods" in texts
    shown = [name for name in texts if name in names]
    assert shown == ["joint", *(f"m{i}" for i in reversed(range(11)))]  # from below
    comparison = read_comparison(folder)
    gone = {key: each for key, each in comparison.summary.items() if key[0] != "m3"}
    texts = _texts(scores(replace(comparison, summary=gone), folder, tmp_path / "picture.svg"))
    assert "mean, every seed; line: joint; 14 of 15 methods" in texts


def test_draws_without_gaps_and_without_joint(tmp_path, write):
    folder = write(tmp_path, methods=["relearn", "other"], modalities=[], seeds=1, epochs=6)
    texts = _texts(write_picture(folder, tmp_path / "picture.svg"))
    assert "relearn" in texts
    assert not any("gap" in text for text in texts)


def test_hostile_names_stay_text(tmp_path, write):
    names = ["</text><script>", "$\\frac{1}$", "a&b"]
    write(tmp_path, methods=names, modalities=["<svg>"], seeds=1, epochs=6)
    assert {*names, "<svg>"} <= set(_texts(write_picture(tmp_path, tmp_path / "picture.svg")))


def test_nothing_finished_is_said(tmp_path, write):
    write(tmp_path, methods=["joint"], seeds=1, epochs=6, unfinished=[("joint", 0)])
    with pytest.raises(ValueError, match=r"no run of the comparison in .* has finished"):
        write_picture(tmp_path, tmp_path / "picture.svg")


def test_every_seed_is_within_the_panels(folder):
    """They share an axis: what the last one draws must not be cut by the limits of the first."""
    for path in folder.glob("runs/*/metrics.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["gap/bottom"] = row["gap/bottom"] and float(row["gap/bottom"]) + 0.5
        with path.open("w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    comparison = read_comparison(folder)
    shown = [run for run in comparison.runs if run.method in ("joint", "relearn")]
    highest = max(max(run.points("gap/bottom").values()) for run in shown)
    assert highest > 0.5
    panels = [
        axes for axes in _draw(comparison, comparison.methods).axes if axes.get_ylim()[0] == 0
    ]
    assert len(panels) == 2
    assert all(axes.get_ylim()[1] >= highest for axes in panels)


def test_the_plane_has_a_panel_for_each_modality_and_method(folder, tmp_path):
    path = write_projection_picture(folder, tmp_path / "plane.svg")
    texts = _texts(path)
    assert {"joint", "relearn", "top", "bottom", *"0123456789", "taken for another"} <= set(texts)
    assert "ogm_ge" not in texts
    assert "ogm_ge" in _texts(write_projection_picture(folder, path, ["ogm_ge"]))
    first = path.read_bytes()
    assert write_projection_picture(folder, path, ["ogm_ge"]).read_bytes() == first


def test_every_sample_of_the_plane_is_drawn(folder):
    """Once in each panel; hollow if it is taken for another class."""
    comparison = read_comparison(folder)
    found = comparison.projection("joint", "tsne")
    panels = _draw_planes(comparison, {"joint": found}).axes
    assert len(panels) == 2
    for axes in panels:
        drawn = [(len(of.get_offsets()), len(of.get_facecolors())) for of in axes.collections]
        assert sum(count for count, _ in drawn) == 40
        hollow = sum(count for count, filled in drawn if not filled)
        assert hollow == (found.target != found.predicted).sum() > 0


def test_long_names_are_told_apart_in_every_picture(tmp_path, write):
    """Methods, modalities and classes that begin alike."""
    methods = [f"relearn(batchnorm=reestimated,every={i})" for i in (3, 7)]
    names = [f"a microphone in the room, number {i}" for i in (1, 2)]
    classes = [f"an instrument that is played, {i}" for i in range(3)]
    folder = write(tmp_path, methods=methods, modalities=names, class_names=classes, seeds=1,
                   epochs=9)  # fmt: skip
    texts = _texts(write_picture(folder, tmp_path / "picture.svg"))
    assert {"relearn(ba…ed,every=3)", "a micropho…m, number 1", "a micropho…m, number 2"} < {*texts}
    texts = _texts(write_projection_picture(folder, tmp_path / "picture.svg", methods))
    assert {"relearn(batc…ated,every=3)", "relearn(batc…ated,every=7)"} < {*texts}
    assert {"a microphone…oom, number 1", "a microphone…oom, number 2"} < {*texts}
    assert {"an instr…played, 0", "an instr…played, 1", "an instr…played, 2"} < {*texts}


def test_a_plane_of_many_classes_and_modalities(tmp_path, write):
    names = [f"class number {i}" for i in range(31)]
    write(tmp_path, modalities=["a", "b", "c"], class_names=names, seeds=1, epochs=6, samples=500)
    path = write_projection_picture(tmp_path, tmp_path / "plane.svg")
    assert path.stat().st_size < 1_000_000
    assert set(names) <= set(_texts(path))
    png = write_projection_picture(tmp_path, tmp_path / "plane.png")
    assert png.stat().st_size > 10_000


def test_what_has_no_place_in_the_plane_is_said(folder, tmp_path):
    path = tmp_path / "plane.svg"
    with pytest.raises(ValueError, match=r"unknown method 'jont' of '.*'\. Did you mean joint"):
        write_projection_picture(folder, path, ["jont"])
    with pytest.raises(ValueError, match=r"holds no UMAP of any method\. 'evenly report .* umap'"):
        write_projection_picture(folder, path, projection="umap")
    (folder / "runs" / "ogm_ge-0" / "projection.npz").unlink()
    with pytest.raises(ValueError, match="holds no t-SNE of ogm_ge"):
        write_projection_picture(folder, path, ["joint", "ogm_ge"])
    with pytest.raises(ValueError, match=r"plane\.pdf: cannot be drawn"):
        write_projection_picture(folder, tmp_path / "plane.pdf")
    assert not path.exists()


PICTURES = {
    "comparison": lambda comparison, folder, path: write_picture(folder, path),
    "plane": lambda comparison, folder, path: write_projection_picture(folder, path),
    **{name: study.draw for name, study in STUDIES.items()},
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_says_what_it_was_selected_on(folder, tmp_path, name):
    path = tmp_path / "picture.svg"
    settings = (folder / "config.yaml").read_text()
    for protocol, said in (("fair", False), ("paper", True)):
        (folder / "config.yaml").write_text(f"{settings}protocol: {protocol}\n")
        PICTURES[name](read_comparison(folder), folder, path)
        assert any("selected on test" in text for text in _texts(path)) == said


def test_rows_of_variants_hold_their_whole_names_over_the_references_band(tmp_path, write):
    variants = [f"relearn(batchnorm=reestimated,gap=shared,every={i})" for i in (3, 7)]
    folder = write(tmp_path, methods=["joint", "relearn", *variants], seeds=3, epochs=6)
    comparison = replace(read_comparison(folder), reference="relearn")
    texts = _texts(scores(comparison, folder, tmp_path / "picture.svg"))
    assert texts.count("relearn(batchnorm=reestimated,") == 2
    assert {"gap=shared,every=3)", "gap=shared,every=7)"} < set(texts)
    assert "mean, 95 % interval, every seed; band: relearn" in texts
    labels = row_labels(comparison.methods)
    assert row_height(labels) * 72 > 2 * 9 * 1.15  # two lines of 9 points
    assert {*variants} == {label.replace("\n", "") for label in labels[2:]}


def test_a_strength_without_a_result_has_no_point(tmp_path, write):
    """λ 0, 1 and 3, of which 1 has not finished: it is not drawn at 0."""
    methods = ["joint", "relearn", "relearn(strength=1)"]
    folder = write(tmp_path, methods=methods, seeds=1, epochs=6,
                   unfinished=[("relearn(strength=1)", 0)])  # fmt: skip
    comparison = read_comparison(folder)
    left, _ = _figure5(comparison).axes
    (line,) = [line for line in left.lines if line.get_marker() == "D"]
    joint, none, relearn = line.get_ydata()
    assert np.isnan(none)
    assert [joint, relearn] == [100 * comparison.score(m) for m in ("joint", "relearn")]
    assert left.get_ylim()[0] > 50


@pytest.mark.parametrize(
    ("task", "words"), [("classes", "accuracy"), ("labels", "mean average precision")]
)
def test_the_map_says_what_its_probes_measure(folder, tmp_path, task, words):
    comparison = read_comparison(folder)
    comparison = replace(comparison, config={**comparison.config, "task": task})
    texts = _texts(figure1(comparison, folder, tmp_path / "picture.svg"))
    assert f"test {words}, %; a larger spot is a better model" in texts


def test_the_purities_below_a_gap_are_those_of_its_splits(folder):
    """Under --protocol paper, too, which evaluates the test split, besides, during training."""
    for path in folder.glob("runs/*/metrics.csv"):
        with path.open() as file:
            rows = [row | {"purity_test/top": "0.111"} for row in csv.DictReader(file)]
        write_csv(path, list(rows[0]), rows)
    comparison = read_comparison(folder)
    comparison = replace(comparison, config={**comparison.config, "protocol": "paper"})
    of_gap, of_purity, *_ = _figure4(comparison).axes
    mean = comparison.mean_curve("joint", "purity_val/top")
    assert any(np.array_equal(line.get_ydata(), [*mean.values()]) for line in of_purity.lines)
    assert (of_gap.get_ylabel(), of_purity.get_ylabel()) == ("gap", "purity: val, dotted train")


def test_one_seed_has_a_line_for_a_band(tmp_path, write):
    folder = write(tmp_path, seeds=1, epochs=6)
    texts = _texts(scores(read_comparison(folder), folder, tmp_path / "picture.svg"))
    assert "mean, every seed; line: joint" in texts


def test_labels_of_the_map_do_not_overlap(tmp_path, write):
    methods = ["joint", "relearn", *(f"method_{i}" for i in range(12))]
    folder = write(tmp_path, methods=methods, seeds=2, epochs=6)
    comparison = read_comparison(folder)
    figure = _figure1(comparison)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    _, axes = figure.axes
    found = {text.get_text(): text.get_window_extent(canvas.get_renderer()) for text in axes.texts}
    shown = {f"{method} {100 * comparison.score(method):.1f}" for method in methods}
    assert set(found) == shown
    boxes = list(found.values())
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
    assert shown <= set(_texts(figure1(comparison, folder, tmp_path / "picture.svg")))
