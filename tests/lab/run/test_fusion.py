"""Every way to fuse serves every method that is made for no head of its own."""

from typing import get_args

import pytest

from evenly import METHODS
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Fusion, Training
from evenly.nn import FUSIONS
from evenly.nn.heads import TOKEN_FUSIONS

DATA = "synthetic(train=48,val=24,test=24,classes=3)"
PLAIN = [name for name, kind in METHODS.items() if kind.info.head == "concat"]


def cell(method, fusion, **settings):
    training = Training(DATA, epochs=2, width=8, fusion=fusion, diagnose_every=0, **settings)
    return Cell(training, method, 0)


@pytest.mark.parametrize("method", [name for name in PLAIN if not METHODS[name].info.alone])
def test_a_method_trains_on_a_fusion_that_is_no_sum(method, tmp_path):
    result = run_cell(cell(method, "film"), tmp_path)
    assert 0 <= result.metrics["test"]["accuracy"] <= 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_trains(fusion, tmp_path):
    result = run_cell(cell("ogm_ge", fusion), tmp_path)
    assert {"accuracy/m1", "accuracy/m2"} <= set(result.metrics["test"])


def test_the_option_names_every_fusion():
    assert set(get_args(Fusion)) == {*FUSIONS, *TOKEN_FUSIONS}


def test_a_head_of_its_own_is_kept_and_said():
    _, notes = prepare([cell("qmf", "film"), cell("joint", "film")])
    assert "qmf: keeps its own head, 'energy'." in notes
    assert not any(note.startswith("joint") for note in notes)
