import pytest
import torch
from torch import nn

from evenly.data.dataset import SPLITS, Data
from evenly.lab.run.prepare import prepare, say
from evenly.lab.run.settings import Cell, Training

DATA = "synthetic(train=60,val=30,test=30,classes=3)"


class Narrow(nn.Module):
    """An encoder for vectors of another width."""

    out_features = 4

    def __init__(self, inputs=7):
        super().__init__()
        self.layer = nn.Linear(inputs, 4)

    def forward(self, x):
        return self.layer(x)


class Wide(Narrow):
    out_features = 9


class Lazy(Narrow):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.5))


def function():
    return len


def notes(method, epochs=30, **more):
    return prepare([Cell(Training(data=DATA, epochs=epochs, **more), method, 0)])[1]


def test_what_is_missing_and_who_is_not_made_for_it_are_told():
    said = notes("ogm", missing={"m1": 0.5}, missing_test={"m1": 0.2, "m2": 0.1})
    assert (
        "'m1' is missing from 30 of 60 training, 15 of 30 validation and 6 of 30 test samples "
        "(drawn with seed 0; other seeds draw others)." in said
    )
    odd = "is not designed for missing modalities; it treats their zeros as features."
    assert f"ogm: {odd}" in said
    for method in ("relearn", "balm", "multi_loss"):
        assert f"{method}: {odd}" not in notes(method, missing={"m1": 0.5})
    assert f"ogm: {odd}" not in notes("ogm", missing_test={"m1": 0.5})
    only = "no training sample lacks a modality, so only methods that leave some out learn"
    assert any(only in note for note in notes("joint", missing_token=True))
    learns_none = "its loss does not reach the fused logits, so it learns no vector"
    for method in ("ensemble", "relearn+ensemble", "joint"):
        said = any(learns_none in note for note in notes(method, missing_token=True))
        assert said == (method != "joint")
    assert notes("joint", missing={"m1": 0.0}, missing_test={"m2": 0.0}) == notes("joint")


def unequal(large, small):
    """Three classes in each split, the second one small."""
    target = torch.tensor([0] * large + [1] * small + [2] * large)
    rows = torch.arange(len(target))
    inputs = {name: torch.randn(len(target), 3) for name in ("a", "b")}
    return Data("mine", inputs, target, dict.fromkeys(SPLITS, rows), ["cat", "newt", "dog"])


def test_where_classes_are_unequal_macro_f1_is_proposed():
    def said(data, **more):
        training = Training(data="mine", diagnose_every=0, **more)
        found = prepare([Cell(training, name, 0) for name in ("joint", "multi_loss")], data)[1]
        return [note for note in found if "macro_f1" in note]

    assert said(unequal(40, 4)) == [
        "class 'cat' has 40 training samples and 'newt' has 4, so accuracy hardly counts rare "
        "classes: --select macro_f1 selects the epoch by all classes alike (docs/tasks.md)."
    ]
    assert said(unequal(39, 4)) == []
    assert said(unequal(40, 4), select="accuracy") == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"missing": {"m3": 0.5}}, "unknown modality 'm3' of --missing"),
        ({"missing_test": {"m3": 0.5}}, "unknown modality 'm3' of --missing-test"),
        ({"missing": {"m1": 0.6, "m2": 0.6}}, r"add up to 1\.2 in the train split"),
        ({"missing": {"m1": 0.97}}, r"'m1' is in 2 of 60 samples of the training split, fewer than "
         r"the 3 clusters of a diagnosis\. Lower --missing\.m1 0\.97, or set --diagnose-every 0\."),
    ],
)  # fmt: skip
def test_rates_that_cannot_be(more, message):
    with pytest.raises(ValueError, match=message):
        notes("joint", **more)


@pytest.mark.parametrize(
    ("method", "epochs", "more"),
    [
        ("relearn", 2, " (first before epoch 2, counted from 0)"),
        ("relearn(every=20)", 3, " (first before epoch 21, counted from 0)"),
        ("relearn(every=2,times=0)", 9, ""),
        ("ogm_ge(start=4,end=9)", 4, " (first before epoch 4, counted from 0)"),
        ("greedy(start=50)", 20, " (first before epoch 50, counted from 0)"),
        ("greedy(window=0)", 20, ""),
        ("di_mml(start=30)", 20, " (first before epoch 30, counted from 0)"),
        ("inforeg(strength=0)", 20, ""),
        ("inforeg(threshold=1)", 20, ""),
        ("bss(grow=1,pace=curriculum)", 3, ""),  # though it has losses of its own in all
        ("mslr", 6, " (first before epoch 6, counted from 0)"),
        ("mslr(strategy=smooth)", 20, ""),
    ],
)
def test_a_method_that_never_acts_is_told(method, epochs, more):
    assert f"{method}: its schedule does nothing in these {epochs} epochs{more}." in notes(
        method, epochs
    )


@pytest.mark.parametrize(
    ("method", "epochs"),
    [
        ("relearn", 3),
        ("relearn(every=20)", 22),
        ("ogm_ge(start=4,end=9)", 5),
        ("joint", 1),
        ("greedy(start=4)", 5),
        ("di_mml(start=4)", 5),
        ("inforeg", 1),
        ("mslr", 7),
        ('mslr(strategy=keep,rates={"m1":0.5})', 1),
        ("remedy", 1),  # trains encoders alone before the first
    ],
)
def test_a_method_that_acts_is_not(method, epochs):
    assert not any("its schedule does nothing" in note for note in notes(method, epochs))


def test_each_method_is_noted_with_its_own_optimiser():
    cells = [
        Cell(Training(data=DATA, optimizer=optimizer), method, 0)
        for method, optimizer in (("joint", "adamw"), ("ogm", "sgd"), ("ogm_ge", "adam"))
    ]
    for order in (cells, cells[::-1]):
        said = [note for note in prepare(order)[1] if "acts through the size" in note]
        assert [note.split()[0] for note in said] == ["ogm_ge"]
        assert "which adam divides out" in said[0]


def test_what_each_modality_was_taken_for():
    found = notes("joint", encoders={"m2": "test_prepare.Narrow(inputs=32)"})
    assert "encoders: m1, vector (32,): MLP; m2, vector (32,): Narrow." in found


def test_statistics_that_no_encoder_has():
    cell = Cell(Training(data=DATA), "relearn(batchnorm=reestimated)", 0)
    said = "no encoder trains a BatchNorm"
    assert any(said in note for note in prepare([cell])[1])
    pictures = Cell(Training(), cell.method, 0)  # the digits, by small residual networks
    assert not any(said in note for note in prepare([pictures])[1])


def test_notes_stand_beside_the_output(capsys):
    say(["one", "two"])
    assert capsys.readouterr() == ("", "note: one\nnote: two\n")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("Narrow", r"encoder 'm2' \(Narrow\) cannot take its input, of shape \(32,\) per sample"),
        ("Wide(inputs=32)", r"returns \(2, 4\) for 2 samples, but `out_features` promises \(2, 9"),
        (
            "Narrow(depth=3)",
            r"encoder 'test_prepare.Narrow\(depth=3\)' cannot be built \(.*'depth'",
        ),
        ("function", "is of the type builtin_function_or_method. Give a class that derives from"),
    ],
)
def test_an_encoder_that_does_not_fit(encoder, message):
    with pytest.raises(ValueError, match=message):
        notes("joint", encoders={"m2": f"test_prepare.{encoder}"})


def test_preparing_draws_nothing():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    notes("relearn", encoders={"m1": "test_prepare.Lazy"})
    assert torch.rand(1) == expected
