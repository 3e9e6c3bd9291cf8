"""Samples that lack a modality: what their encoder, the fusion and the diagnosis make of it."""

import pytest
import torch
from torch import nn

import evenly
from evenly.data import Data, Modality, Padded, Ragged, collate
from evenly.data.tasks import Classes
from evenly.lab.run.augment import Augment
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.parts import Forward
from evenly.lab.run.place import Place
from evenly.nn import HEADS, LateFusion, encoder_for
from evenly.nn.heads import TOKEN_FUSIONS
from evenly.nn.late_fusion import _Partly
from evenly.nn.mmtm import blocks_of
from evenly.nn.pretrained import Transformer
from evenly.probe import Probe
from many_ranks import on_ranks

SHAPES = {"a": ("vector", (5,)), "b": ("image", (1, 8, 8)), "c": ("sequence", (6, 3))}
HERE = torch.tensor([True, False, True, True, False, True])


def model(head="concat", classes=4):
    torch.manual_seed(0)
    encoders = {
        name: encoder_for(Modality(name, kind, shape, torch.zeros(1), torch.ones(1)), 8)
        for name, (kind, shape) in SHAPES.items()
    }
    return LateFusion(encoders, classes, head)


def batch(n=6):
    inputs = {name: torch.randn(n, *shape) for name, (_, shape) in SHAPES.items()}
    inputs["c"] = Padded(inputs["c"], torch.full((n,), 6))
    return inputs


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("head", [name for name in HEADS if name not in TOKEN_FUSIONS])
def test_what_stands_in_its_place_makes_no_difference(name, head):
    net, x = model(head).eval(), batch()
    other = dict(x)
    value = other[name].values if name == "c" else other[name]
    changed = torch.where(HERE.reshape(-1, *[1] * (value.dim() - 1)), value, 100.0)
    other[name] = Padded(changed, x["c"].length) if name == "c" else changed
    one, two = net(x, {name: HERE}), net(other, {name: HERE})
    assert torch.equal(one.logits, two.logits)
    assert not one.features[name][~HERE].any()
    assert one.features[name][HERE].any()
    assert torch.equal(one.logits[HERE], two.logits[HERE])


def test_batchnorm_does_not_count_the_others():
    net, x = model().train(), batch()
    net(x, {"b": HERE})
    seen = {k: v.clone() for k, v in net.encoders["b"].state_dict().items()}
    alone = model().train()
    alone.encoders["b"](x["b"][HERE])
    for key, value in alone.encoders["b"].state_dict().items():
        assert torch.equal(seen[key], value), key


def test_batchnorm_does_not_count_the_others_in_lockstep_either():
    net, x = model("mmtm").train(), batch()
    net(x, {"b": HERE})
    alone = model("mmtm").train().encoders["b"]
    next(alone.staged(x["b"][HERE]))  # up to the first stop, before which nothing reaches in
    assert torch.equal(net.encoders["b"].layers[2].running_mean, alone.layers[2].running_mean)


MASKS = {  # of six samples; in all of them together every set of modalities but the empty one
    2: {"a": [1, 0, 1, 1, 0, 1], "b": [1, 1, 0, 1, 1, 0]},
    3: {"a": [1, 0, 1, 0, 0, 1], "b": [1, 1, 0, 0, 1, 0], "c": [1, 1, 0, 1, 0, 1]},
}


def masks(count):
    return {name: torch.tensor(mask).bool() for name, mask in MASKS[count].items()}


def drawn(head, count, kinds):
    """A model in which every bias is drawn at random, so that features of zeros would show."""
    torch.manual_seed(0)
    of = {name: kinds[name] for name in list("abc")[:count]}
    parts = {
        name: Modality(name, kind, shape, torch.zeros(1), torch.ones(1))
        for name, (kind, shape) in of.items()
    }
    encoders = {
        name: Transformer(m, 8, 1, 2) if head in TOKEN_FUSIONS else encoder_for(m, 8)
        for name, m in parts.items()
    }
    net = LateFusion(encoders, 4, head)
    if head == "configurable":
        net.head.add("a")
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    inputs = {name: torch.randn(6, *shape) for name, (_, shape) in of.items()}
    if "c" in of:
        inputs["c"] = Padded(inputs["c"], torch.tensor([6, 3, 2, 5, 4, 1]))
    return net, inputs


PLAIN = {"a": ("vector", (5,)), "b": ("vector", (4,)), "c": ("sequence", (6, 3))}
STEPS = {"a": ("sequence", (5, 2)), "b": ("sequence", (4, 3)), "c": ("sequence", (6, 3))}


def kinds(head, training):
    """No BatchNorm in training, where samples of a batch are not apart."""
    if head in TOKEN_FUSIONS:
        return STEPS
    return PLAIN if training else SHAPES


def one_of(inputs, here, row):
    """A batch of one sample, with the modalities that it has."""
    return {
        name: Padded(*(part[[row]] for part in x)) if isinstance(x, Padded) else x[[row]]
        for name, x in inputs.items()
        if here[name][row]
    }


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_masked_is_left_out(head, count, training):
    """Each sample is seen as in a batch without the modalities that it lacks."""
    net, inputs = drawn(head, count, kinds(head, training))
    net.train(training)
    here = masks(count)
    whole = net(inputs, here)
    ablated = whole.ablate(["b"])
    first = whole.fuse({"a": whole.features["a"]})
    for row in range(6):
        alone = net(one_of(inputs, here, row))
        close(whole.logits[[row]], alone.logits)
        close(whole.fuse(whole.features)[[row]], alone.logits)
        close(ablated[[row]], alone.ablate(["b"]))
        for name in here:
            own, features = whole.unimodal[name][[row]], whole.features[name][[row]]
            if here[name][row]:
                close(own, alone.unimodal[name])
                close(features, alone.features[name])
            else:
                assert not own.any()
                assert not features.any()
        expected = alone.fuse({"a": alone.features["a"]}) if here["a"][row] else torch.zeros(1, 4)
        close(first[[row]], expected)


@pytest.mark.parametrize("head", HEADS)
def test_a_learnt_vector_stands_in_for_what_is_missing(head):
    """In a batch and in some of its samples alike, and of all fusions; each learns."""
    net, inputs = drawn(head, 3, kinds(head, training=False))
    net.head.learn_missing()
    for vector in net.head.missing.values():
        nn.init.normal_(vector)
    here, target = masks(3), torch.arange(6) % 4
    whole = net.eval()(inputs, here)
    for row in range(6):
        alone = net(one_of(inputs, here, row))
        close(whole.logits[[row]], alone.logits)
        close(whole.fuse(whole.features)[[row]], alone.logits)
        for name in here:
            own = whole.unimodal[name][[row]]
            assert own.any() == here[name][row]
            assert whole.features[name][row].any() == here[name][row]
            if here[name][row]:
                close(own, alone.unimodal[name])
    nn.functional.cross_entropy(whole.logits, target).backward()
    assert all(vector.grad.any() for vector in net.head.missing.values())


def test_a_learnt_vector_by_hand():
    net = LateFusion(dict(model().encoders.items()), 4, missing_token=True).eval()
    x = batch()
    plain = model().eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net(x).logits, plain(x).logits)
    close(net(x, {"a": HERE}).logits, plain(x, {"a": HERE}).logits)  # zeros at first
    nn.init.ones_(net.head.missing["a"])
    features = net(x, {"a": HERE}).features
    features = [torch.where(HERE[:, None], features["a"], 1.0), features["b"], features["c"]]
    close(net(x, {"a": HERE}).logits, net.head.linear(torch.cat(features, 1)))


@pytest.mark.parametrize("head", ["concat", "late"])
def test_a_loss_of_what_no_sample_has_has_no_gradient_and_is_no_error(head):
    net, inputs = drawn(head, 2, PLAIN)
    output = net(inputs, {"a": torch.zeros(6, dtype=torch.bool)})
    nn.functional.cross_entropy(output.unimodal["a"], torch.arange(6) % 4).backward()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("head", ["late", "attention", "mbt", "mult", "mmtm"])
def test_gradients_are_those_without_it(head):
    net, inputs = drawn(head, 3, kinds(head, training=True))
    here, target = masks(3), torch.arange(6) % 4
    output = net(inputs, here)
    loss = nn.functional.cross_entropy(output.logits, target, reduction="sum")
    of_features = torch.autograd.grad(loss, list(output.features.values()), retain_graph=True)
    for name, gradient in zip(output.features, of_features, strict=True):
        assert torch.equal(gradient.any(1), here[name])
    loss.backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    for row in range(6):
        logits = net(one_of(inputs, here, row)).logits
        nn.functional.cross_entropy(logits, target[[row]], reduction="sum").backward()
    for name, parameter in net.named_parameters():
        assert (name in found) == (parameter.grad is not None), name
        if name in found:
            close(found[name], parameter.grad)


@pytest.mark.parametrize("head", HEADS)
def test_a_sample_without_any_modality_has_logits_of_zero(head):
    net, inputs = drawn(head, 2, kinds(head, training=False))
    for nobody in (torch.zeros(6, dtype=torch.bool), HERE):
        output = net.eval()(inputs, {"a": nobody, "b": nobody})
        assert not output.logits[~nobody].any()
        assert not output.ablate(["a"])[~nobody].any()
        assert output.logits[nobody].all()
        assert output.logits.shape == output.unimodal["b"].shape == (6, 4)


@pytest.mark.parametrize("head", ["concat", "late", "mbt"])
def test_the_head_is_asked_once_for_each_set_of_modalities(head, monkeypatch):
    net, inputs = drawn(head, 3, kinds(head, training=False))
    asked, logits = [], net.head.logits
    monkeypatch.setattr(net.head, "logits", lambda x: asked.append(list(x)) or logits(x))
    net(inputs)
    net(inputs, {"a": torch.ones(6, dtype=torch.bool)})
    assert asked == [["a", "b", "c"]] * 2
    asked.clear()
    net(inputs, masks(3))
    assert sorted(asked) == [["a"], ["a", "b", "c"], ["a", "c"], ["b"], ["b", "c"], ["c"]]


def test_fuse_takes_the_batch_several_times_over():
    net, inputs = drawn("late", 2, PLAIN)
    output = net(inputs, masks(2))
    close(
        output.fuse({name: x.repeat(3, 1) for name, x in output.features.items()}),
        output.logits.repeat(3, 1),
    )


def test_gates_are_averaged_over_those_that_have_the_modality():
    net, inputs = drawn("mmtm", 3, PLAIN)
    here = masks(3)
    net(inputs, here)
    found = [block.observed() for block in blocks_of(net)]
    expected = [torch.zeros_like(value) for value in found]
    for row in range(6):
        net(one_of(inputs, here, row))
        expected = [e + b.observed() for e, b in zip(expected, blocks_of(net), strict=True)]
    close(found, expected)
    assert found[0][-3:].tolist() == [3, 3, 4]


def test_gradients_come_from_those_that_have_it():
    net, x = model(), batch()
    output = net(x, {"b": torch.zeros(6, dtype=torch.bool)})
    output.logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoders["b"].parameters())
    assert all(p.grad is not None for p in net.encoders["a"].parameters())


def test_complete_batches_are_as_ever():
    net, x = model().eval(), batch()
    whole = net(x, {"a": torch.ones(6, dtype=torch.bool)})
    assert torch.equal(whole.logits, net(x).logits)


def data():
    """Forty samples of two classes; a third lack 'steps', whose stored values are wild there."""
    n = 40
    target = torch.arange(n) % 2
    here = torch.arange(n) % 3 != 0
    signal = torch.where(target == 1, 1.0, -1.0)
    length = here.long() * 2
    steps = signal.repeat_interleave(length)[:, None] + torch.zeros(1, 2)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)[:-1]])
    rows = torch.arange(n)
    split = {"train": rows[:20], "val": rows[20:30], "test": rows[30:]}
    inputs = {"x": torch.randn(n, 3) + signal[:, None], "steps": Ragged(steps, start, length)}
    return Data("part", inputs, target, split, ["no", "yes"], present={"steps": here})


def test_a_sample_with_one_modality_is_told_from_others_by_mult():
    steps = {"b": (10, 3), "c": (6, 3)}
    torch.manual_seed(0)
    encoders = {
        name: Transformer(Modality(name, "sequence", s, torch.zeros(3), torch.ones(3)), 16, 1)
        for name, s in steps.items()
    }
    net = LateFusion(encoders, 4, "mult").eval()
    assert net({"b": torch.randn(5, 10, 3)}).logits.std(0).min() > 1e-3


def test_the_mask_goes_with_the_batch():
    batch = data().split("val").__getitems__([0, 1, 2])
    assert batch["present"]["steps"].tolist() == [True, False, True]  # rows 20, 21, 22
    assert batch["inputs"]["steps"].length.tolist() == [2, 0, 2]
    assert set(batch["present"]) == {"steps"}


def test_a_diagnosis_is_of_those_that_have_it():
    torch.manual_seed(0)
    found = data()
    net = LateFusion({k: encoder_for(m, 8) for k, m in found.modalities.items()}, 2)
    loaders = [
        torch.utils.data.DataLoader(found.split(name), 7, collate_fn=collate)
        for name in ("train", "val")
    ]
    forward = Forward(Place(torch.device("cpu"), "32"), found.task, Augment({}, {}, 0))
    probe = Probe(net, forward, *loaders)
    train, val = probe.features("train"), probe.features("val")
    assert train.present["steps"].tolist() == [k % 3 != 0 for k in range(20)]
    # The steps tell the class; a third of zeros among them would be a cluster of both.
    assert evenly.diagnose(train, val).train["steps"] == 1
    assert evenly.diagnose(train, val, gap="matched").train["steps"] == 1
    assert evenly.diagnose(train, val, gap="shared").val["steps"] == 1


def test_the_accuracy_of_a_modality_is_of_those_that_have_it():
    evaluation = Evaluation(Classes(["no", "yes"]))
    right = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    here = torch.tensor([True, True, False, False])
    unimodal = {"m": torch.where(here[:, None], right, -right)}
    output = evenly.Output(right, {}, unimodal, present={"m": here})
    evaluation.add(output, torch.tensor([0, 1, 0, 1]))
    assert evaluation.metrics()["accuracy/m"] == 1


def test_a_single_sample_with_a_modality_trains():
    """BatchNorm at the last stage of a tiny picture has one value for each channel."""
    picture = Modality("eye", "image", (3, 2, 2), torch.zeros(3), torch.ones(3))
    other = Modality("x", "vector", (4,), torch.zeros(4), torch.ones(4))
    encoders = {"eye": encoder_for(picture, 8), "x": encoder_for(other, 8)}
    model = LateFusion(encoders, 2).train()
    here = torch.tensor([False, True, False])
    inputs = {"eye": torch.randn(3, 3, 2, 2), "x": torch.randn(3, 4)}
    output = model(inputs, {"eye": here})
    output.logits.sum().backward()
    assert all(module.training for module in model.modules())
    expected = model.eval()(inputs, {"eye": here}).logits
    torch.testing.assert_close(output.logits, expected)


@pytest.mark.parametrize(
    ("world", "kind", "trains"),
    [(2, nn.SyncBatchNorm, True), (2, nn.BatchNorm1d, False), (1, nn.SyncBatchNorm, False)],
)
def test_ranks_wait_for_each_other_in_a_synchronised_batchnorm(world, kind, trains, monkeypatch):
    """A rank without a sample of the modality passes a blank through it."""
    monkeypatch.setattr("evenly.nn.late_fusion.world_size", lambda: world)
    encoder = nn.Sequential(nn.Linear(4, 3), kind(3))
    encoder.out_features = 3
    partly = _Partly(encoder, torch.arange(5) == (9 if world > 1 else 1))
    with partly._norms():
        assert encoder[1].training == trains
    assert encoder[1].training


def step_on_rank(rank, world, head, anew, token):
    """One step under DDP; the second rank's samples all lack the picture."""
    torch.manual_seed(0)
    picture = Modality("eye", "image", (1, 8, 8), torch.zeros(1), torch.ones(1))
    other = Modality("x", "vector", (4,), torch.zeros(4), torch.ones(4))
    encoders = {"eye": encoder_for(picture, 8), "x": encoder_for(other, 8)}
    whole = LateFusion(encoders, 2, head, missing_token=token)
    model = nn.parallel.DistributedDataParallel(whole)
    here = torch.full((3,), rank == 0)
    for step in range(2):  # DDP finds out in the second that it was left waiting in the first
        torch.manual_seed(10 + step)
        inputs = {"eye": torch.randn(3, 1, 8, 8), "x": torch.randn(3, 4)}
        model.zero_grad()
        output = model(inputs, {"eye": here})
        logits = output.fuse(output.features) if anew else output.logits
        logits.square().sum().backward()
    return output.features["eye"].detach(), [p.grad for p in model.parameters()]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("head", "anew", "token"),
    [
        ("concat", False, False),
        ("mmtm", False, False),
        ("concat", True, False),
        ("concat", False, True),
    ],
)
def test_a_rank_whose_samples_all_lack_a_modality_keeps_step(head, anew, token, tmp_path):
    """Also where a method fuses features anew, and takes no loss of the logits themselves."""
    (first, gradients), (second, others) = on_ranks(step_on_rank, tmp_path, head, anew, token)
    assert first.abs().sum() > 0
    assert not second.any()
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
