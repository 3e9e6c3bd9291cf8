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
    check_together,
    expanded,
    info_of,
    load_data,
)
from evenly.lab.run.prepare import prepare
from evenly.lab.run.settings import Cell, Training
from evenly.methods import AGM, MLA, MSLR, OGM, SMV, Finetune, MMPareto, TCMax
from evenly.methods.composed import check_unimodal, combined
from evenly.methods.pggb import PGGB
from evenly.spec import parse, split, together
from support import Run, equal, forward, loaders, make, net, same, sgd, weights


def test_each_does_what_it_does_alone():
    """D&R pulls back before the epoch, and OGM scales in the steps after it."""
    both = Run("relearn+ogm").train(4)
    relearn, ogm = both.method.methods
    assert set(relearn.history) == {2, 3}
    assert {"Relearn/gap/a", "Relearn/strength/a"} < set(both.method.metrics)
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


def test_who_compares_modalities_does_not_go_with_one_at_a_time():
    text = r"MLA trains on one modality at a time, but OGM does not declare that a batch may lack "
    for method in ("mla+ogm", "ogm+mla"):
        with pytest.raises(ValueError, match=text):
            Run(method, head="shared")
    Run("mla+relearn", head="shared").train(1)
    model = net(head="shared")
    mla, ogm = MLA(model.encoders, head=model.head), OGM(model.encoders)
    inner = Composed(Relearn(model.encoders), mla)
    with pytest.raises(ValueError, match="Composed trains on one modality at a time, but OGM"):
        Composed(inner, ogm)
    Composed(Composed(Relearn(model.encoders), TCMax(model.encoders)), ogm)  # where none does


def test_what_two_call_the_same_is_told_apart():
    run = Run("mlb+ogm").train(1)
    (mlb, ogm), found = run.method.methods, run.method.metrics
    name = "coefficient/a"
    assert mlb.metrics[name] != ogm.metrics[name]
    assert found[f"MLB/{name}"] == mlb.metrics[name]
    assert found[f"OGM/{name}"] == ogm.metrics[name]


PAIRS = [name for name in evenly.METHODS if name not in ("joint", "unimodal")]


def composed(one, other):
    """A training of two methods on the head that they are made for; None if they are refused."""
    infos = [evenly.METHODS[name].info for name in (one, other)]
    try:
        head = combined(infos).head
        check_unimodal(infos)
        run = Run(f"{one}+{other}", head=head, count=16)
    except ValueError:
        return None
    return run


@pytest.mark.parametrize("one", PAIRS)
def test_who_reads_unimodal_logits_gets_trained_ones(one):
    """Of all pairs that are not refused; and each parameter has a gradient, or they say so."""
    for other in PAIRS[PAIRS.index(one) + 1 :]:
        run = composed(one, other)
        if run is None or "tcmax" in (one, other):  # it refuses what is no sum in the first loss
            continue
        does = {part.info.unimodal for part in run.method.methods if "unimodal" in part.info.needs}
        if does <= {"trains"}:
            continue
        parameters = dict(run.model.named_parameters())
        trained, idle = set(), set()

        def step(run=run, trained=trained, idle=idle, parameters=parameters):
            trained |= {
                name for name, p in parameters.items() if p.grad is not None and p.grad.any()
            }
            idle |= {name for name, p in parameters.items() if p.grad is None}

        run.optimizer.step = step
        run.train(1)
        assert run.method.info.partial or not idle, (other, idle)
        output, _ = forward(run.model, next(iter(run.val_loader)))
        total = sum(z.square().sum() for z in output.unimodal.values())
        total.backward()
        behind = {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
        if "reads" in does:
            assert {name for name in behind if name.startswith("head.")} <= trained, other
        if "tries" in does:
            assert all(any(n.startswith(f"encoders.{m}.") for n in behind) for m in ["a", "aa"])


def test_unimodal_logits_that_nothing_trains_are_refused_before_anything_is_trained():
    for text, said in (
        ("finetune+ogm_ge", "goes by unimodal logits, but with Fine-tuned uni-modal encoders "),
        ("umt+ogm", r"goes by unimodal logits, but with Uni-Modal Teacher \(UMT\) nothing trains"),
        ("balm+pdmp", "through unimodal logits, which in BALM reach no encoder. Leave one of them"),
    ):
        with pytest.raises(ValueError, match=said):
            check_together(text)
    assert info_of("finetune+multi_loss+ogm").unimodal == "trains"
    assert info_of("finetune+pdmp").head == "multi"
    training = Training("digits", width=8)
    data = load_data(training)
    cell = Cell(training, "multi_loss(weight=0)+ogm", 0)
    model = build_model(data, cell)
    optimizer, sampler = build_optimizer(model, training), build_sampler(data, cell)
    with pytest.raises(ValueError, match="nothing trains the layers behind them"):
        build_method(cell, model, optimizer, sampler)


def test_slices_of_a_fused_layer_are_trained_by_every_method():
    """In a model of one's own, whose head need not be the one that a method is made for."""
    model = net()
    Composed(Finetune(model.encoders, optimizer=sgd(model)), OGM(model.encoders))


@pytest.mark.parametrize("order", [("finetune", "awc"), ("awc", "finetune")])
def test_weights_are_written_before_others_look_at_them(order):
    run = Run("joint", head="multi")
    run.method = Composed(*(make(name, run.model, run.optimizer) for name in order))
    random = weights(run.model.encoders)
    run.method.before_epoch(0, run.probe)
    awc = run.method.methods[order.index("awc")]
    now = dict(run.model.encoders.named_parameters())
    for name, start in awc.start.items():
        assert all(torch.equal(start[key], now[f"{name}.{key}"]) for key in start)
    assert not equal(random, weights(run.model.encoders))


@pytest.mark.parametrize("order", [("relearn", "mcr"), ("mcr", "relearn")])
def test_relearning_starts_from_what_was_pre_trained(order):
    run = Run("joint", head="decoding")
    settings = {"mcr": {"pretrain": 1}, "relearn": {}}
    run.method = Composed(
        *(make(name, run.model, run.optimizer, **settings[name]) for name in order)
    )
    run.method.before_epoch(0, run.probe)
    relearn = run.method.methods[order.index("relearn")]
    now = dict(run.model.encoders.named_parameters())
    for name, initial in relearn.initial.items():
        assert all(torch.equal(x, now[f"{name}.{key}"]) for key, x in initial.items())


def test_its_sampler_is_that_of_its_part():
    model, sampler = net(), loaders()[0].batch_sampler.sampler
    method = Composed(Relearn(model.encoders), SMV(model.encoders, sampler=sampler))
    assert method.sampler is sampler
    assert not hasattr(Composed(Relearn(model.encoders), OGM(model.encoders)), "sampler")


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
