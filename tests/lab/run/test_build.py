import sys

import numpy as np
import pytest
import torch
from torch import nn

from evenly import Info, Method
from evenly.criteria import BinaryCrossEntropy, CrossEntropy, Focal, SigmoidFocal
from evenly.data import load, load_npz, save_npz
from evenly.data.tasks import Classes, Labels, Numbers
from evenly.lab.run.build import (
    build_criterion,
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    expanded,
    fused,
    info_of,
    left_out,
    method_settings,
)
from evenly.lab.run.settings import Cell, Training
from evenly.methods import METHODS
from evenly.nn import Head
from evenly.spec import split


@pytest.fixture(scope="module")
def data():
    return load("synthetic(train=60,val=30,test=30,classes=3)")


def build(data, method="joint", seed=0, **training):
    return build_model(data, Cell(Training(**training), method, seed))


class Mine(nn.Module):
    """A user's encoder, found by import path."""

    out_features = 5

    def __init__(self, factor=1.0):
        super().__init__()
        self.net = nn.LazyLinear(5)
        self.factor = factor

    def forward(self, x):
        return self.net(x.float()) * self.factor


def test_initial_weights_are_a_function_of_the_seed(data):
    torch.manual_seed(1)
    one = build(data, seed=4)
    torch.manual_seed(2)
    two, other = (build(data, seed=seed) for seed in (4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head.linear.weight, other.head.linear.weight)


def test_an_encoder_by_import_path(data):
    model = build(data, encoders={"m1": "test_build.Mine(factor=2)"})
    assert isinstance(model.encoders["m1"], Mine)
    assert model.encoders["m1"].factor == 2
    assert model.head.linear.in_features == 5 + 64


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ({"sound": "test_build.Mine"}, r"--encoders names \['sound'\].*modalities \['m1', 'm2'\]"),
        ({"m1": "no.such.Net"}, "there is no module 'no'"),
        ({"m1": "test_build.Nobody"}, "the module test_build has no 'Nobody' to be the encoder"),
        ({"m1": "Mine"}, "unknown encoder 'Mine'"),
    ],
)
def test_encoders_that_cannot_be(data, encoders, message):
    with pytest.raises(ValueError, match=message):
        build(data, encoders=encoders)


def settings(method, epochs):
    return method_settings(Cell(Training(epochs=epochs), method, 0))


def test_schedules_are_scaled_to_the_length_of_training():
    assert settings("relearn", 90)["every"] == 20
    assert settings("relearn", 30)["every"] == 7  # 20 of 90, so 6.67
    assert settings("relearn", 2)["every"] == 1
    assert settings("ogm_ge", 30) == {"start": 0, "end": 15}


def test_what_the_user_wrote_is_taken_as_it_is():
    assert settings("relearn(every=20,gap=shared)", 30) == {"every": 20, "gap": "shared"}
    assert settings("relearn(every=9,strength=2,initial=a.pt)", 30)["initial"] == "a.pt"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("relern", r"unknown method 'relern'\. Did you mean relearn\?"),
        ("relearn(evry=2)", r"unknown setting 'evry' of relearn\. Did you mean every\?"),
        ("relearn(encoders=1)", "unknown setting 'encoders' of relearn"),
        ("relearn(every=x)", "relearn: every takes a whole number, found 'x'"),
        ("relearn(every=1.5)", r"relearn: every takes a whole number, found 1\.5"),
        (
            "relearn(gap=large)",
            "gap takes 'paper' or 'matched' or 'shared' or 'stable', found 'large'",
        ),
        ("relearn(initial=[1])", r"relearn: initial takes a text, found \[1\]"),
        ("ogm_ge(start=x)", "ogm_ge: start takes a whole number, found 'x'"),
        ("ogm_ge(noise=0)", "ogm_ge: noise takes true or false, found 0"),
    ],
)
def test_names_and_values_that_cannot_be(method, message):
    with pytest.raises(ValueError, match=message):
        settings(method, 30)


def test_a_method_that_needs_the_optimiser_gets_it(data):
    training = Training()
    cell = Cell(training, "relearn(moments=cleared)", 0)
    model = build_model(data, cell)
    optimizer = build_optimizer(model, training)
    method = build_method(cell, model, optimizer, build_sampler(data, cell))
    assert method.optimizer is optimizer


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_a_method_has_the_criterion_of_the_training(data, focal):
    """Weights are those of the training split: n / (k n_c), whose mean over it is 1."""
    assert build_criterion(data, Training()) is None
    found = build_criterion(data, Training(class_weights="balanced", focal=focal))
    target = data.split("train").target
    torch.testing.assert_close(found.weight, len(target) / (3 * target.bincount().float()))
    assert isinstance(found, Focal if focal else CrossEntropy)


@pytest.mark.parametrize(("focal", "smoothing"), [(0.0, 0.0), (2.0, 0.0), (0.0, 0.2)])
def test_of_several_labels_too(focal, smoothing, tmp_path):
    labels = np.stack([np.arange(30) % 2, np.arange(30) % 5 == 0], 1)
    x = np.zeros((30, 2), np.float32)
    save_npz(tmp_path / "a.npz", labels, np.repeat([0, 1, 2], 10), {"x": x})
    more = {"focal": focal, "label_smoothing": smoothing}
    found = build_criterion(
        load_npz(tmp_path / "a.npz"), Training(class_weights="balanced", **more)
    )
    kind = SigmoidFocal if focal else BinaryCrossEntropy if smoothing else nn.BCEWithLogitsLoss
    assert type(found) is kind
    assert found.pos_weight.tolist() == [1, 4]


def test_optimisers(data):
    model = build(data)
    assert build_optimizer(model, Training()).defaults["momentum"] == 0.9
    adam = build_optimizer(model, Training(optimizer="adamw", lr=0.5, weight_decay=0.25))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.5, 0.25)


def test_muon_takes_the_matrices_of_hidden_layers(data):
    model = build(data)
    optimizer = build_optimizer(model, Training(optimizer="muon", lr=0.1))
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert {p.ndim for p in matrices} == {2}
    assert {*model.head.parameters()} <= {*others}
    assert {*matrices, *others} == {*model.parameters()}


def test_muon_without_a_matrix():
    pictures = load("digits")
    model = build(pictures, encoders=dict.fromkeys(pictures.modalities, "test_build.Convolution"))
    with pytest.raises(ValueError, match=r"trains the matrices of hidden layers, .* have none"):
        build_optimizer(model, Training(optimizer="muon"))


class Convolution(nn.Sequential):
    """An encoder whose weights are no matrices."""

    out_features = 2

    def __init__(self):
        super().__init__(nn.LazyConv2d(2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_model_is_ready_to_train(data):
    """Trying the user's encoders leaves none of it in evaluation mode."""
    model = build(data, encoders={"m1": "test_build.Mine"})
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("encoders", [{}, {"m2": "test_build.Mine", "m1": "test_build.Mine"}])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_from_the_same_encoders(data, name, encoders):
    """Lazy ones too, whatever its head; each modality alone has that one only."""
    alone = METHODS[name].info.alone
    model = build(data, f"{name}(modality=m2)" if alone else name, encoders=encoders)
    joint = build(data, encoders=encoders)
    assert list(model.encoders) == (["m2"] if alone else ["m1", "m2"])
    for modality, encoder in model.encoders.items():
        theirs = joint.encoders[modality].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in encoder.state_dict().items())


def test_all_is_every_method_of_every_paper():
    found = expanded(split("all"), ["sound", "text"])
    names = [text.partition("(")[0] for text in found]
    assert set(names) == set(METHODS)
    assert len(set(found)) == len(found)
    assert found[:2] == ["unimodal(modality=sound)", "unimodal(modality=text)"]


def test_all_is_every_method_that_takes_the_targets():
    for task in (Numbers(("a",)), Numbers(("a", "b"))):
        assert {"joint", "relearn", "awc"} <= {*expanded(split("all"), ["x"], task)}
        assert {"ogm_ge", "mslr"} <= {*left_out(task)}
        assert "mslr(strategy=keep)" in expanded(split("all"), ["x"], task)
        assert "mslr" not in expanded(split("all"), ["x"], task)
    assert left_out() == []


def test_names_are_taken_once_and_as_they_are():
    assert expanded(split("joint,relearn(every=3),joint"), []) == ["joint", "relearn(every=3)"]
    alone = expanded(split("unimodal,unimodal(modality=a)"), ["a", "b"])
    assert alone == ["unimodal(modality=a)", "unimodal(modality=b)"]


def test_a_modality_alone_that_the_data_lack(data):
    with pytest.raises(ValueError, match=r"unknown modality 'm3'\. Choose from: m1, m2\."):
        build(data, "unimodal(modality=m3)")


@pytest.mark.parametrize("method", ["joint", "ensemble", "unimodal(modality=m1)"])
def test_only_a_method_of_the_fused_loss_gets_vectors_for_what_is_missing(data, method):
    model = build(data, method, missing_token=True)
    assert (model.head.missing is not None) == (method == "joint")


def test_an_ensemble_predicts_for_the_task():
    cell = Cell(Training(), "relearn+ensemble", 0)
    for task in (Classes(("x", "y")), Labels(("x", "y")), Numbers(("x",))):
        head = fused({"a": nn.Linear(2, 3)}, task, cell).head
        assert (head.task, head.num_classes) == (task.name, len(task.names))


def made(wide=5):
    return nn.Sequential(nn.LazyLinear(wide))


def nothing():
    return None


class Steps(Mine):
    out_features = None

    def forward(self, x):
        return super().forward(x)[:, None]


class Knowing(nn.Module):
    """An encoder that is told what its input is."""

    def __init__(self, modality):
        super().__init__()
        self.net = nn.Linear(*modality.shape, 3)

    def forward(self, x):
        return self.net(x)


class Half(Head):
    """A head with a setting, of which a modality may be missing."""

    def __init__(self, widths, num_classes, share=0.5):
        super().__init__(widths, num_classes)
        self.own, self.share = self.unimodal_heads(), share

    def logits(self, features):
        own = {name: self.own[name](x) for name, x in features.items()}
        return self.share * sum(own.values()), own


class Needy(Half):
    def logits(self, features):
        features["m1"]
        return super().logits(features)


class Narrow(Half):
    def logits(self, features):
        fused, own = super().logits(features)
        return fused[:, :2], {name: z[:, :2] for name, z in own.items()}


THREE = [1, 2, 3]


@pytest.mark.parametrize(("name", "width"), [("made(wide=7)", 7), ("made", 5), ("Knowing", 3)])
def test_the_width_of_an_encoder_is_found(data, name, width):
    model = build(data, encoders={"m1": f"test_build.{name}"})
    assert model.encoders["m1"].out_features == width
    assert model.head.widths["m1"] == width


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "encoder 'test_build.nothing' is of the type NoneType. Give a class"),
        ("THREE", "'test_build.THREE' is of the type list. An encoder is a class"),
        ("Steps", r"returns \(2, 1, 5\) for 2 samples, which does not say how wide"),
        ("Miine", r"the module test_build has no 'Miine' .*\. Did you mean Mine( or \w+)*\?"),
    ],
)
def test_what_is_no_encoder(data, name, message):
    with pytest.raises(ValueError, match=message):
        build(data, encoders={"m1": f"test_build.{name}"})


@pytest.mark.parametrize("name", ["..x.Net", ".x.Net", "a..b", "a."])
def test_what_is_no_import_path(data, name):
    with pytest.raises(ValueError, match="unknown encoder"):
        build(data, encoders={"m1": name})


def test_a_head_by_import_path(data):
    model = build(data, fusion="test_build.Half(share=0.25)")
    assert (type(model.head), model.head.share) == (Half, 0.25)
    assert model.training
    assert type(build(data, fusion="test_build.Half").head) is Half
    assert not isinstance(build(data, "ogm_ge", fusion="sum").head, Half)
    kept = build(data, "mmcosine", fusion="test_build.Half")  # it is made for a head of its own
    assert not isinstance(kept.head, Half)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mine", "is of the type type, and a fusion is a class that derives from evenly.nn.Head"),
        ("Half(rank=3)", r"fusion 'test_build.Half\(rank=3\)' cannot be built .*'rank'"),
        ("Needy", r"fusion 'test_build.Needy' without 'm1' fails \(KeyError"),
        ("Narrow", r"returns logits \(2, 2\) .* for 2 samples and 3 classes"),
    ],
)
def test_what_is_no_head(data, name, message):
    with pytest.raises(ValueError, match=message):
        build(data, fusion=f"test_build.{name}")


class Own(Method):
    info = Info(title="Own", writes="nothing")

    def __init__(self, encoders, *, rate=0.5, criterion=None):
        super().__init__(encoders, criterion=criterion)
        if rate > 1:
            raise ValueError("too fast")


class Mute(Method):
    pass


def test_an_own_method(data):
    assert info_of("test_build.Own(rate=1)").title == "Own"
    assert info_of("relearn+test_build.Own").writes == "weights"
    assert method_settings(Cell(Training(), "test_build.Own(rate=1)", 0)) == {"rate": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mine", "is of the type type, and a method is a class that derives from evenly.Method"),
        ("Mute", "declares no `info`"),
        ("Own(speed=3)", "unknown setting 'speed' of test_build.Own. Choose from: rate"),
        ("Own(rate=3)", r"method 'test_build.Own\(rate=3\)' cannot be built \(too fast\)"),
    ],
)
def test_what_is_no_method(data, name, message):
    cell = Cell(Training(), f"test_build.{name}", 0)
    model = build_model(data, Cell(Training(), "joint", 0))
    optimizer, sampler = build_optimizer(model, cell.training), build_sampler(data, cell)
    with pytest.raises(ValueError, match=message):
        build_method(cell, model, optimizer, sampler)


def test_the_folder_where_one_stands_is_looked_into_last(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    (tmp_path / "beside_data.py").write_text("from test_build import Mine as Net")
    with pytest.raises(ValueError, match="cannot take its input"):
        build(data, encoders={"m1": "torch.nn.Linear(in_features=3,out_features=2)"})
    assert str(tmp_path) not in sys.path  # nothing else is imported from there
    assert isinstance(build(data, encoders={"m1": "beside_data.Net"}).encoders["m1"], Mine)
    assert sys.path[-1] == str(tmp_path)
