"""Parts of the user's own through the commands, with real processes."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from evenly.cli import main

MODULE = """
import numpy as np
from torch import nn

from evenly import Info, Method
from evenly.metrics import Metric
from evenly.nn import Head


class Damped(Method):
    info = Info(title="Damped", writes="gradients", neutral={"damp": 0.0})

    def __init__(self, encoders, *, damp=0.5, criterion=None):
        super().__init__(encoders, criterion=criterion)
        self.damp = damp

    def before_step(self):
        for encoder in self.encoders.values():
            for parameter in encoder.parameters():
                parameter.grad.mul_(1 - self.damp)


class Net(nn.Sequential):
    def __init__(self, width=5):
        super().__init__(nn.LazyLinear(width), nn.Tanh())


class Late(Head):
    def __init__(self, widths, num_classes, scale=1.0):
        super().__init__(widths, num_classes)
        self.own, self.scale = self.unimodal_heads(), scale

    def logits(self, features):
        own = {name: self.own[name](x) for name, x in features.items()}
        return self.scale * sum(own.values()), own


def load(seed=0):
    stream = np.random.default_rng(seed)
    label = np.arange(90) % 3
    return {
        "labels": label,
        "split": np.repeat(["train", "val", "test"], 30),
        "a": (label[:, None] + stream.normal(size=(90, 4))).astype("float32"),
        "b": (label[:, None] + stream.normal(size=(90, 3))).astype("float32"),
    }


def as_dataset():
    from datasets import Dataset, DatasetDict

    given = load()
    parts = {
        name: Dataset.from_dict(
            {"label": given["labels"][at].tolist(), "a": given["a"][at], "b": given["b"][at]}
        )
        for name in ("train", "val", "test")
        for at in [given["split"] == name]
    }
    return DatasetDict(parts)


def surprise(probabilities, target, base=2):
    return -probabilities.gather(1, target[:, None]).log2().mean()


surprise.metric = Metric("surprise in bits", sign=-1, scale=1)
"""
SHORT = ["--epochs", "2", "--precision", "32", "--width", "8", "--jobs", "2"]
PARTS = [
    *("--data", "my_parts.load(seed=1)", "--encoders.a", "my_parts.Net(width=6)"),
    *("--fusion", "my_parts.Late(scale=2)", "--metrics", "my_parts.surprise(base=2)"),
    *("--select", "surprise"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    Path("my_parts.py").write_text(textwrap.dedent(MODULE))
    yield tmp_path
    sys.modules.pop("my_parts", None)


def evenly(*arguments):
    assert main([*map(str, arguments)]) == 0


def fails(capsys, message, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.xdist_group("own_parts")
def test_all_parts_together(here, capsys):
    compare = ["compare", *PARTS, *SHORT, "--seeds", 1, "--out", "out"]
    evenly(*compare, "--methods", "joint,my_parts.Damped(damp=0.3)")
    said = capsys.readouterr()
    assert "my_parts.Damped(damp=0.3): passes the contract checks" in said.err
    assert "surprise" in said.out
    run = Path("out/runs/my_parts.Damped_damp=0.3-0")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"] == "out/load.npz"
    assert [*settings["code"]] == ["my_parts"]

    # A trained run: nothing of it is imported unless it is trusted.
    np.savez("new.npz", a=np.ones((2, 4), np.float32), b=np.ones((2, 3), np.float32))
    predict = ["predict", run, "--data", "new.npz", "--out", "said.csv"]
    fails(capsys, "config.yaml asks for 'my_parts.Damped' as the method", *predict)
    evenly(*predict, "--trust")
    assert len(Path("said.csv").read_text().splitlines()) == 3
    evenly("export", run, "--out", "model.pt2", "--trust")

    # It goes on where nothing has changed, and says so where something has.
    evenly(*compare, "--methods", "joint,my_parts.Damped(damp=0.3)")
    Path("my_parts.py").write_text(textwrap.dedent(MODULE) + "\n# changed\n")
    fails(capsys, "the module my_parts as it was before", *compare, "--methods", "joint")

    # The report needs no module.
    Path("my_parts.py").unlink()
    sys.modules.pop("my_parts")
    evenly("report", "out")
    assert "surprise in bits" in Path("out/report.html").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("own_parts")
def test_a_changed_method_is_noticed_by_its_own_runs_alone(here, capsys):
    compare = ["compare", "--data", "my_parts.load", *SHORT, "--seeds", 1, "--out", "out"]
    evenly(*compare, "--methods", "joint,my_parts.Damped")
    Path("my_parts.py").write_text(textwrap.dedent(MODULE) + "\n# changed\n")
    evenly(*compare, "--methods", "joint")
    fails(capsys, "my_parts.Damped-0 holds runs with the module my_parts", *compare, "--methods",
          "joint,my_parts.Damped")  # fmt: skip


@pytest.mark.slow
@pytest.mark.xdist_group("own_parts")
def test_a_search(here, capsys):
    evenly("tune", *PARTS, *SHORT, "--methods", "my_parts.Damped(damp=0.3)", "--trials", 2, "--out",
           "out")  # fmt: skip
    assert "--trust" in capsys.readouterr().out.splitlines()[-1]
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["methods"] == "my_parts.Damped(damp=0.3)"


def test_a_dataset_is_prepared_into_a_store(here, capsys):
    pytest.importorskip("datasets")
    evenly(
        "train", "--data", "my_parts.as_dataset", *SHORT[:-2], "--method", "joint", "--out", "out"
    )
    assert Path("out/store/dataset.json").is_file()


def test_a_method_is_shown(here, capsys):
    evenly("methods", "my_parts.Damped")
    said = capsys.readouterr().out
    assert said.startswith("my_parts.Damped: Damped\n")
    assert "equals joint training with: damp=0.0" in said
    assert "  damp=0.5" in said
