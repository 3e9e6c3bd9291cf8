"""examples/serve.py as a process of its own, asked over HTTP."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from evenly.cli import main
from evenly.data import load
from evenly.lab.trained.load import load_run

SERVE = Path(__file__).parents[1] / "examples" / "serve.py"
pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, with programs for both modalities and for the upper half alone."""
    folder = tmp_path_factory.mktemp("served")
    run = str(folder / "run")
    main(["train", "--data", "digits", "--method", "joint", "--epochs", "2", "--precision", "32",
          "--limit_samples", "200", "--out", run])  # fmt: skip
    main(["export", run, "--out", str(folder / "model.pt2")])
    main(["export", run, "--without", "bottom", "--out", str(folder / "top.pt2")])
    return folder


@pytest.fixture(scope="module")
def client(folder):
    said = folder / "log"
    with said.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, SERVE, "model.pt2", "top.pt2", "--port", "0"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        while not (found := re.search(r"running on (http://[\d.:]+)", said.read_text())):
            assert server.poll() is None, said.read_text()
        with httpx.Client(base_url=found[1], timeout=60) as client:
            yield client
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def samples():
    part = load("digits").split("test")
    inputs = part.__getitems__(range(5))["inputs"]
    return {name: x.tolist() for name, x in inputs.items()}


def answered(client, request):
    answer = client.post("/predict", json=request)
    assert answer.status_code == 200, answer.text
    return np.array([list(each.values()) for each in answer.json()])


def predicted(folder, capsys, *options):
    main(["predict", str(folder / "run"), "--data", "digits", *options])
    lines = capsys.readouterr().out.splitlines()[1:6]
    return np.array([[float(x) for x in line.split(",")[3:]] for line in lines])


@pytest.mark.slow
def test_it_answers_as_evenly_predict_does(client, folder, samples, capsys):
    found = answered(client, samples)
    assert np.allclose(found, predicted(folder, capsys), atol=1e-5)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    alone = {name: x[:1] for name, x in samples.items()}
    assert np.allclose(answered(client, alone), found[:1], atol=1e-5)


@pytest.mark.parametrize("lacking", [{}, {"bottom": None}])
def test_a_modality_may_be_missing(client, folder, samples, capsys, lacking):
    found = answered(client, {"top": samples["top"], **lacking})
    wanted = predicted(folder, capsys, "--without", "bottom")
    assert np.allclose(found, wanted, atol=1e-5)
    assert not np.allclose(found, answered(client, samples), atol=1e-2)


def test_it_says_what_it_takes(client, folder):
    both, top = client.get("/").json()
    known = load_run(folder / "run").modalities
    assert both["modalities"].keys() == {"top", "bottom"}
    assert both["modalities"]["top"]["shape"] == known["top"].shape
    assert top["modalities"].keys() == {"top"}
    assert top["names"] == both["names"] == [str(digit) for digit in range(10)]


def changed(samples, **to):
    return {**samples, **to}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sound": [[1.0]]}, "There is no modality 'sound', only top, bottom."),
        ({"top": None}, "No program takes bottom. There is one for each of: bottom, top; top."),
        ({"top": [[1.0, 2.0]]}, "A sample of 'top' has the shape [2], not [1, 4, 8]."),
        ({"top": 3}, "'top' must be a list of samples."),
        ({"top": []}, "'top' must be a list of samples."),
        ({"top": [[["a"]]]}, "Each sample of 'top' must be numbers, in even rows."),
        ({"top": [[[1], [1, 2]]]}, "Each sample of 'top' must be numbers, in even rows."),
        (
            {"top": [np.zeros((1, 4, 8)).tolist()]},
            "The modalities differ in their number of samples. Make them equal.",
        ),
        (
            {"top": [np.full((1, 4, 8), np.inf).tolist()] * 5},
            "A sample of 'top' holds what is no float32.",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, samples, change, said):
    body = json.dumps(changed(samples, **change))  # httpx refuses infinity
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == said


def test_what_is_longer_than_its_encoder_takes_is_refused():
    """A program may cut it off and answer for the rest."""
    kind = runpy.run_path(str(SERVE))["Program"]
    program = kind.__new__(kind)
    wave = {"shape": [None, 1], "dtype": "float32", "ragged": False, "longest": 3}
    program.modalities = {"wave": wave}
    assert program.taken("wave", [[[0.5]] * 3]).shape == (1, 3, 1)
    with pytest.raises(ValueError, match="'wave' has 4 steps, but its encoder takes at most 3"):
        program.taken("wave", [[[0.5]] * 4])


@pytest.mark.parametrize("body", ["[1]", "{", ""])
def test_what_is_no_object_is_refused(client, body):
    headers = {"Content-Type": "application/json"}
    assert client.post("/predict", content=body, headers=headers).status_code == 422
