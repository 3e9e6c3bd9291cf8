"""Every way to fuse serves every method that is made for no head of its own."""

from typing import get_args

import numpy as np
import pytest

from evenly import METHODS
from evenly.data import save_npz
from evenly.lab.many.compare import named
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Fusion, Training
from evenly.nn import FUSIONS
from evenly.nn.heads import TOKEN_FUSIONS, LateHead
from evenly.spec import parse, split

DATA = "synthetic(train=48,val=24,test=24,classes=3)"


class Mean(LateHead):
    """A fusion of one's own, whose logits are no sum."""


PLAIN = [name for name, kind in METHODS.items() if kind.info.head == "concat"]
SEPARATE = [name for name in PLAIN if METHODS[name].info.separate]


def cell(method, fusion, **settings):
    training = Training(DATA, epochs=2, width=8, fusion=fusion, diagnose_every=0, **settings)
    return Cell(training, method, 0)


@pytest.mark.parametrize(
    "method",
    [
        {"tcmax": "tcmax(pairs=16)"}.get(name, name)
        for name in PLAIN
        if not METHODS[name].info.alone
    ],
)
def test_a_method_trains_on_a_fusion_that_is_no_sum(method, tmp_path):
    result = run_cell(cell(method, "film"), tmp_path)
    assert 0 <= result.metrics["test"]["accuracy"] <= 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_trains(fusion, tmp_path):
    result = run_cell(cell("ogm_ge", fusion), tmp_path)
    assert {"accuracy/m1", "accuracy/m2"} <= set(result.metrics["test"])


def test_the_option_names_every_fusion():
    assert set(get_args(Fusion)) == {*FUSIONS, *TOKEN_FUSIONS}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Data of two sequences, whose transformers can see each other."""
    path = tmp_path_factory.mktemp("data") / "steps.npz"
    labels, part = np.arange(36) % 2, np.repeat([0, 1, 2], 12)
    inputs = {name: np.ones((36, 4, 3), np.float32) * labels[:, None, None] for name in "xy"}
    save_npz(path, labels, part, inputs, ["no", "yes"])
    return str(path)


def met(data, method, fusion, **settings):
    encoders = dict.fromkeys("xy", "transformer")
    return Cell(Training(data, epochs=2, width=8, fusion=fusion, encoders=encoders), method, 0)


@pytest.mark.parametrize("fusion", TOKEN_FUSIONS)
def test_encoders_that_see_each_other_are_refused_to_methods_that_need_them_apart(steps, fusion):
    for method in (*SEPARATE, "relearn+smv"):
        named = method.rpartition("+")[2]
        with pytest.raises(ValueError, match=f"^{named} needs encoders .* --fusion {fusion} they"):
            prepare([met(steps, method, fusion)])
    for method in ("joint", "relearn", "ogm_ge", "agm", "awc+mslr"):
        prepare([met(steps, method, fusion)])


def test_who_changes_features_or_tries_encoders_needs_them_apart():
    """Of methods that take any fusion: with a head of their own, encoders do not meet."""
    for name in PLAIN:
        info = METHODS[name].info
        changes = "fuse" in info.needs or name == "tcmax" or info.unimodal == "tries"
        assert info.separate == changes, name


@pytest.mark.parametrize("fusion", [*FUSIONS, "test_fusion.Mean"])
def test_who_takes_the_prediction_apart_needs_a_sum(fusion, capsys):
    training = cell("tcmax", fusion).training
    found, _ = named(split("all"), training)
    note = f"sum of the modalities' own, unlike --fusion {fusion}: tcmax."
    said = capsys.readouterr().err
    if fusion in ("concat", "sum"):
        assert "tcmax" in found
        assert note not in said
        prepare([cell("tcmax", fusion)])
        return
    assert "tcmax" not in found
    assert note in said
    for method in ("tcmax", "relearn+tcmax"):
        with pytest.raises(ValueError, match=rf"^tcmax needs .* --fusion {fusion} they are not\."):
            prepare([cell(method, fusion)])
    prepare([cell("tcmax(pairs=16)", fusion), cell("mcr", fusion)])


def test_a_head_of_another_method_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match=r"^tcmax needs .* with the head 'late' they are not\."):
        prepare([cell("tcmax+mslr", "concat")])


def test_blocks_between_encoders_are_refused_likewise():
    with pytest.raises(ValueError, match=r"^awc needs encoders .* with the head 'mmtm' they do\."):
        prepare([cell("greedy+awc", "concat")])


def test_all_leaves_them_out_and_says_so(steps, capsys):
    training = met(steps, "joint", "mbt").training
    found, _ = named(split("all"), training)
    assert not any(parse(text).name in SEPARATE for text in found)
    assert {"joint", "relearn", "mcr"} <= set(found)
    said = "need encoders that do not see each other, unlike --fusion mbt: modality_dropout, cml, "
    assert said in capsys.readouterr().err


def test_a_head_of_its_own_is_kept_and_said():
    _, notes = prepare([cell("qmf", "film"), cell("joint", "film")])
    assert "qmf: keeps its own head, 'energy'." in notes
    assert not any(note.startswith("joint") for note in notes)
