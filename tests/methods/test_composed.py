"""Methods that go together, and those that do not."""

import pytest
import torch
from torch import nn

import evenly
from evenly import OGMGE, Composed, Relearn
from evenly.lab.run.build import (
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    expanded,
    load_data,
)
from evenly.lab.run.prepare import prepare
from evenly.lab.run.settings import Cell, Training
from evenly.methods import AGM, MSLR, OGM, SMV, Finetune, MMPareto
from evenly.methods.composed import combined
from evenly.methods.pggb import PGGB
from evenly.spec import parse, split, together
from support import Run, forward, loaders, make, net, same, sgd, weights


def test_each_does_what_it_does_alone():
    """D&R pulls back before the epoch, and OGM scales in the steps after it."""
    both = Run("relearn+ogm").train(4)
    relearn, ogm = both.method.methods
    assert set(relearn.history) == {2, 3}
    assert {"gap/a", "strength/a"} < set(both.method.metrics)
    assert any(name.startswith("coefficient/") for name in ogm.metrics)
    plain = Run("relearn").train(2)
    assert not same(both.model, Run("relearn").train(4).model)
    assert plain.method.history == {}


def test_what_does_nothing_changes_nothing():
    neutral = Run("ogm", alpha=0.0)
    model, optimizer = neutral.model, neutral.optimizer
    neutral.method = Composed(
        OGM(model.encoders, alpha=0.0), MSLR(model.encoders, optimizer=optimizer, strategy="keep")
    )
    assert same(neutral.train(3).model, Run("joint").train(3).model)


def test_factors_come_after_what_they_multiply():
    model = net(head="multi")
    order = []

    class Noted(PGGB):
        def before_step(self):
            order.append("factor")

    class Written(OGMGE):
        def before_step(self):
            order.append("written")

    method = Composed(Noted(model.encoders), Written(model.encoders))
    method.before_epoch(0)
    batch = next(iter(loaders()[0]))
    method.backward(method.loss(*forward(model, batch)))
    method.before_step()
    assert order == ["written", "factor"]


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("relearn", "finetune", "weights"),
        ("ogm_ge", "mmpareto", "gradients"),
        ("agm", "mlb", "the loss"),
        ("mcr", "lfm", "the loss"),
        ("smv", "remix", "the order of the samples"),
        ("mslr", "mslr", "the same, as they are of one kind"),
        ("ogm", "ogm_ge", "the same, as they are of one kind"),
        ("joint", "relearn", "what joint training does"),
        ("mla", "reconboost", "gradients"),
    ],
)
def test_two_that_write_the_same_are_refused(one, other, what):
    model = net(head="multi" if "mcr" not in (one, other) else "decoding")
    kinds = [evenly.METHODS[name] for name in (one, other)]
    heads = [net(head=kind.info.head) for kind in kinds]
    methods = [make(name, head) for name, head in zip((one, other), heads, strict=True)]
    names = rf"{kinds[0].__name__} and {kinds[1].__name__} both write {what}, so one would undo"
    with pytest.raises(ValueError, match=names):
        Composed(*methods)
    del model


def test_other_refusals():
    model = net()
    with pytest.raises(ValueError, match="takes at least two methods; found 1"):
        Composed(OGM(model.encoders))
    with pytest.raises(ValueError, match="have different criteria"):
        Composed(OGM(model.encoders), Relearn(model.encoders, criterion=nn.MSELoss()))
    with pytest.raises(ValueError, match="different encoders under the same name"):
        Composed(OGM(model.encoders), Relearn(net().encoders))
    infos = [evenly.METHODS[name].info for name in ("mla", "mmcosine")]
    with pytest.raises(ValueError, match="are made for different heads, cosine and shared"):
        combined(infos)
    with pytest.raises(ValueError, match="one of them trains a single modality"):
        combined([evenly.METHODS[name].info for name in ("unimodal", "relearn")])
    state = Composed(OGM(model.encoders), Relearn(model.encoders)).state_dict()
    assert list(state) == ["OGM", "Relearn"]
    with pytest.raises(ValueError, match="of OGM and Relearn, but this is AGM and Relearn"):
        Composed(AGM(model.encoders, head=model.head), Relearn(model.encoders)).load_state_dict(
            state
        )


def test_facts_are_those_of_all():
    info = combined([evenly.METHODS[name].info for name in ("relearn", "mmpareto")])
    assert (info.writes, info.head, info.needs_probe) == ("gradients", "multi", True)
    assert set(info.targets) == set(MMPareto.info.targets) & set(Relearn.info.targets)
    assert set(combined([SMV.info, Finetune.info]).needs) >= {"index", "unimodal"}


class TestText:
    def test_parts(self):
        text = "relearn(every=5, times=2) + ogm_ge"
        assert [spec.text for spec in together(text)] == ["ogm_ge", "relearn(every=5,times=2)"]
        assert parse(text).text == "ogm_ge+relearn(every=5,times=2)"
        assert parse(parse(text).text).text == parse(text).text
        assert [spec.name for spec in split("joint,relearn+ogm")] == ["joint", "ogm+relearn"]
        assert [spec.name for spec in together("b.C+a.B")] == ["a.B", "b.C"]

    def test_either_order_is_one_row_and_one_folder(self):
        assert expanded(split("relearn+ogm,ogm+relearn"), ()) == ["ogm+relearn"]
        folders = {Cell(Training(), text, 0).folder for text in ("relearn+ogm", "ogm+relearn")}
        assert folders == {"ogm+relearn-0"}

    @pytest.mark.parametrize("text", ["data/c++/x.npz", "relearn(every=1+2)"])
    def test_a_plus_elsewhere_joins_nothing(self, text):
        assert len(together(text)) == 1


class TestLab:
    training = Training(data="digits", epochs=4, limit_samples=60, width=8)

    def test_it_is_built_of_its_parts(self):
        cell = Cell(self.training, "relearn(strength=2)+mmpareto", 3)
        data = load_data(self.training)
        model = build_model(data, cell)
        optimizer = build_optimizer(model, self.training)
        method = build_method(cell, model, optimizer, build_sampler(data, cell))
        mmpareto, relearn = method.methods
        assert (relearn.strength, relearn.seed, relearn.every) == (2.0, 3, 1)
        assert type(mmpareto) is MMPareto
        assert type(model.head).__name__ == "MultiHead"
        assert cell.folder == "mmpareto+relearn_strength=2-3"

    def test_what_a_user_should_know(self):
        _, notes = prepare([Cell(self.training, "relearn(every=50)+ogm_ge", 0)])
        assert any(
            note.startswith("relearn(every=50): its schedule does nothing in") for note in notes
        )
        assert any(note.startswith("ogm_ge: end=2, its schedule of 100") for note in notes)

    @pytest.mark.parametrize(
        ("method", "text"),
        [
            ("relearn+ogm_gee", "unknown method 'ogm_gee'. Did you mean ogm_ge"),
            ("relearn+finetune", "Finetune and Relearn both write weights"),
            ("mla+mmcosine", "are made for different heads"),
        ],
    )
    def test_what_does_not_go_together_is_told_before_training(self, method, text):
        with pytest.raises(ValueError, match=text):
            prepare([Cell(self.training, method, 0)])


def test_a_step_of_all_leaves_the_optimiser_as_it_was():
    model = net()
    optimizer = sgd(model)
    method = Composed(
        MSLR(model.encoders, optimizer=optimizer, strategy="keep", rates={"a": 0.5}),
        OGM(model.encoders),
    )
    before = weights(model)
    method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
    method.backward(method.loss(*forward(model, next(iter(loaders()[0])))))
    method.before_step()
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert not all(torch.equal(before[name], x) for name, x in weights(model).items())
