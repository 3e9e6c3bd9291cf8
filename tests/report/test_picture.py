import csv
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from evenly.report import write_picture
from evenly.report.folder import read_comparison
from evenly.report.picture import _draw


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
