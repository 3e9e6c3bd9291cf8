"""Samples that lack a modality: what their encoder, the fusion and the diagnosis make of it."""

import pytest
import torch

import evenly
from evenly.data import Data, Modality, Padded, Ragged, collate
from evenly.lab.evaluation import Evaluation
from evenly.lab.run import forward
from evenly.nn import HEADS, LateFusion, encoder_for
from evenly.nn.heads import TOKEN_FUSIONS
from evenly.probe import Probe

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
    if head != "mmtm":  # its blocks take all samples together, but none the place of another
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
    probe = Probe(net, forward, *loaders)
    train, val = probe.features("train"), probe.features("val")
    assert train.present["steps"].tolist() == [k % 3 != 0 for k in range(20)]
    # The steps tell the class; a third of zeros among them would be a cluster of both.
    assert evenly.diagnose(train, val).train["steps"] == 1
    assert evenly.diagnose(train, val, gap="matched").train["steps"] == 1
    assert evenly.diagnose(train, val, gap="shared").val["steps"] == 1


def test_the_accuracy_of_a_modality_is_of_those_that_have_it():
    evaluation = Evaluation(2)
    right = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    here = torch.tensor([True, True, False, False])
    unimodal = {"m": torch.where(here[:, None], right, -right)}
    output = evenly.Output(right, {}, unimodal, present={"m": here})
    evaluation.add(output, torch.tensor([0, 1, 0, 1]))
    assert evaluation.metrics()["accuracy/m"] == 1
