"""Test samples in the plane, on the page."""

import base64
import gzip
import json
import re
from html import unescape

import numpy as np
import pytest

from evenly.report import write_report
from evenly.report.folder import read_comparison
from evenly.report.projection import class_style, fitted, plane


def _change(folder, method, **arrays):
    path = folder / "runs" / f"{method}-0" / "projection.npz"
    with np.load(path) as file:
        np.savez(path, **{**file, **arrays})


def _plane(folder):
    return plane(read_comparison(folder), "tsne")


def test_places_are_whole_numbers_in_the_shape_of_the_projection(folder):
    data = _plane(folder)
    found = read_comparison(folder)
    assert [found.methods[each["number"]] for each in data["methods"]] == found.ranking
    for each in data["methods"]:
        projection = found.projection(found.methods[each["number"]], "tsne")
        for place, name in enumerate(found.modalities):
            exact = projection.places[name]
            drawn = np.array(each["places"][place], dtype=float).T
            assert drawn.min() >= 0
            assert drawn.max() <= 999
            assert np.ptp(drawn, axis=0).max() == 999
            scale = 999 / np.ptp(exact, axis=0).max()
            assert np.ptp(drawn, axis=0) == pytest.approx(scale * np.ptp(exact, axis=0), abs=1)
            moved = drawn - drawn[0]
            assert moved == pytest.approx(scale * (exact - exact[0]), abs=1)


def test_samples_that_all_share_are_stored_once(folder):
    data = _plane(folder)
    assert [each["samples"] for each in data["methods"]] == [0, 0, 0]
    (samples,) = data["samples"]
    assert samples["label"][:3] == ["sample 0", "sample 2", "sample 4"]
    assert samples["target"] == [i % 10 for i in range(40)]
    _change(folder, "ogm_ge", row=np.arange(40))
    data = _plane(folder)
    assert sorted(each["samples"] for each in data["methods"]) == [0, 0, 1]


def test_a_sample_without_the_modality_has_no_place(folder):
    places = read_comparison(folder).projection("joint", "tsne").places["bottom"].copy()
    places[3:] = np.nan
    _change(folder, "joint", tsne_1=places)
    (joint,) = (each for each in _plane(folder)["methods"] if each["number"] == 0)
    assert [None if x is None else 0 for x in joint["places"][1][0]] == [0] * 3 + [None] * 37
    _change(folder, "joint", tsne_1=np.full((40, 2), np.nan, dtype=np.float32))
    (joint,) = (each for each in _plane(folder)["methods"] if each["number"] == 0)
    assert joint["places"][1] == [[None] * 40] * 2
    json.dumps(_plane(folder), allow_nan=False)
    write_report(folder)


def test_of_several_labels_a_sample_has_its_rarest_and_all_in_words(tmp_path, write):
    folder = write(tmp_path, class_names=["a", "b"], seeds=1, epochs=6, samples=4)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "task: labels\n")
    said = np.array(["", "a", "a;b"])
    own, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    for method in ("joint", "ogm_ge", "relearn"):
        if (folder / "runs" / f"{method}-0" / "projection.npz").is_file():
            target = np.array([2, 0, 1, 1])
            _change(folder, method, target=target, own=own, predicted=predicted, said=said)
    data = _plane(folder)
    assert data["classes"] == ["a", "b", "no label"]
    assert data["said"] == ["no label", "a", "a;b"]
    assert data["samples"][0]["own"] == [0, 1, 2, 2]
    assert data["methods"][0]["predicted"] == [0, 2, 2, 1]
    assert "in the colour of the rarest label it has" in write_report(folder).read_text()


def test_names_are_no_markup_to_the_script(tmp_path, write):
    hostile = "</script><b>&amp;"
    folder = write(tmp_path, class_names=[hostile, "b"], seeds=1, epochs=6, samples=4)
    _change(folder, "joint", name=np.array([hostile, "b", "c", "d"]))
    text = write_report(folder).read_text()
    stored = re.search(r'<script type="application/gzip" id="plane">(.*?)</script>', text)[1]
    data = json.loads(gzip.decompress(base64.b64decode(stored)))
    assert unescape(data["classes"][0]) == hostile
    assert "<" not in data["classes"][0]
    assert hostile in {unescape(each["label"][0]) for each in data["samples"]}
    assert "<b>" not in text


def test_joint_training_and_the_first_that_relearns_are_shown_first(tmp_path, write):
    methods = ["ogm_ge", "relearn(gap=shared)", "joint", "relearn"]
    text = write_report(write(tmp_path, methods=methods, seeds=1, epochs=9)).read_text()
    sides = re.findall(r"<select data-side.*?</select>", text, re.DOTALL)
    assert [re.search(r"selected>(.*?)<", side)[1] for side in sides] == ["joint", methods[1]]


def test_one_method_stands_alone(tmp_path, write):
    text = write_report(write(tmp_path, methods=["ogm_ge"], seeds=1, epochs=9)).read_text()
    assert text.count("<select data-side") == 1
    assert text.count("data-place=") == 2


def test_what_is_not_computed_is_not_shown(folder):
    assert "What the encoders see" in write_report(folder).read_text()
    assert "What the encoders see" not in write_report(folder, "umap").read_text()


def test_many_classes_are_a_list_that_is_searched(tmp_path, write):
    few = write(tmp_path / "few", seeds=1, epochs=6)
    assert "Find a class" not in write_report(few).read_text()
    names = [f"c{i}" for i in range(13)]
    many = write(tmp_path / "many", seeds=1, epochs=6, class_names=names)
    assert "Find a class" in write_report(many).read_text()


def test_forty_eight_classes_can_be_told_apart():
    assert len({class_style(number) for number in range(48)}) == 48
    assert len({class_style(number)[1] for number in range(12)}) == 1  # by colour alone


def test_a_single_place_is_the_middle():
    assert fitted(np.array([[3.0, 4.0], [3.0, 4.0]])) == pytest.approx(np.full((2, 2), 0.5))
