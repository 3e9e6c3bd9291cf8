"""Transformers that meet before they are pooled."""

import pytest
import torch
from test_pretrained import SMALL, modality
from torch import nn

import evenly
from evenly.data import Modality, Padded
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.nn import LateFusion
from evenly.nn.heads import TOKEN_FUSIONS, BottleneckHead, CrossModalHead
from evenly.nn.pretrained import AST, BERT, Transformer, ViT

HERE = torch.tensor([True, False, True, False])


def model(head, names=("words", "sound", "steps"), **settings):
    torch.manual_seed(0)
    of = {
        "words": Modality("words", "text", (6, 20), torch.zeros(0), torch.zeros(0)),
        "sound": modality("sequence", 9, 3),
        "steps": modality("sequence", 5, 4),
    }
    encoders = {name: Transformer(of[name], 8, 1, 2) for name in names}
    made = LateFusion(encoders, 4, head)
    if settings:
        widths = dict.fromkeys(names, 8)
        made.head = TOKEN_FUSIONS[head](widths, 4, **settings)
    return made.eval()


def batch(n=4):
    torch.manual_seed(1)
    words = Padded(torch.randint(1, 20, (n, 6)), torch.tensor([6, 3, 1, 4]))
    return {"words": words, "sound": torch.randn(n, 9, 3), "steps": torch.randn(n, 5, 4)}


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
@pytest.mark.parametrize("names", [("sound",), ("words", "sound"), ("words", "sound", "steps")])
def test_any_number_of_modalities(head, names):
    net = model(head, names).train()
    x = {name: value for name, value in batch().items() if name in names}
    output = net(x)
    assert output.logits.shape == (4, 4)
    assert set(output.features) == set(output.unimodal) == set(names)
    (output.logits * torch.randn(4, 4)).sum().backward()
    learnt = [p.grad is not None and bool(p.grad.any()) for p in net.parameters()]
    assert sum(learnt) / len(learnt) > 0.9


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_a_modality_reaches_the_others_features(head):
    net, x = model(head), batch()
    other = {**x, "sound": x["sound"] + 1}
    one, two = net(x), net(other)
    for name in ("words", "steps"):
        assert not torch.allclose(one.features[name], two.features[name], atol=1e-4)


def test_bottlenecks_are_the_only_way_between_modalities():
    """After one layer nothing has passed; after two it has."""
    x = batch()
    other = {**x, "sound": x["sound"] + 1}
    for depth, same in ((1, True), (2, False)):
        net = model("mbt", depth=depth)
        one, two = net(x).features["words"], net(other).features["words"]
        assert torch.allclose(one, two, atol=1e-6) is same


def test_bottlenecks_by_hand():
    """Two layers of one modality and another, with the attention written out by nn's own layer."""
    net, x = model("mbt", ("sound", "steps")), batch()
    head = net.head
    assert isinstance(head, BottleneckHead)
    tokens = {name: net.encoders[name].tokens(x[name]).steps for name in ("sound", "steps")}
    shared = head.bottlenecks.expand(4, -1, -1)
    for layers in head.layers:
        after = {name: layers[name](torch.cat([t, shared], 1)) for name, t in tokens.items()}
        tokens = {name: t[:, :-4] for name, t in after.items()}
        shared = (after["sound"][:, -4:] + after["steps"][:, -4:]) / 2
    output = net(x)
    logits = {name: head.heads[name](t[:, 0]) for name, t in tokens.items()}
    for name, z in logits.items():
        torch.testing.assert_close(output.unimodal[name], z, rtol=1e-4, atol=1e-5)
    expected = (logits["sound"] + logits["steps"]) / 2
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_by_hand():
    """One layer from two tokens to three, head by head."""
    torch.manual_seed(0)
    head = CrossModalHead({"a": 4, "b": 4}, 3, depth=1).double().eval()
    layer = head.across["a<b"][0]
    own, other = torch.randn(1, 2, 4).double(), torch.randn(1, 3, 4).double()
    there = torch.tensor([[True, True, False]])
    attention = layer.attention
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    given = (layer.norm(own)[0], layer.norm_other(other)[0], layer.norm_other(other)[0])
    q, k, v = (x @ w.T + b for x, w, b in zip(given, weights, biases, strict=True))
    k, v = (torch.cat([x[:2], torch.zeros(1, 4).double()]) for x in (k, v))  # and a zero
    parts = []
    for n in range(4):  # four heads of width one
        score = (q[:, [n]] @ k[:, [n]].T).softmax(1)
        parts.append(score @ v[:, [n]])
    steps = own[0] + attention.out_proj(torch.cat(parts, 1))
    expected = steps + layer.rest(steps)
    torch.testing.assert_close(layer(own, other, there)[0], expected, rtol=1e-9, atol=1e-9)


def test_cross_modal_features_are_as_wide_as_the_others_together():
    output = model("mult")(batch())
    assert {name: value.shape[1] for name, value in output.features.items()} == dict.fromkeys(
        ("words", "sound", "steps"), 16
    )
    torch.testing.assert_close(output.logits, sum(output.unimodal.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_padding_never_counts(head):
    net, x = model(head), batch()
    words = x["words"]
    longer = Padded(nn.functional.pad(words.values, (0, 3), value=7), words.length)
    torch.testing.assert_close(
        net({**x, "words": longer}).logits, net(x).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
@pytest.mark.parametrize("name", ["words", "sound"])
def test_samples_that_lack_a_modality(head, name):
    net, x = model(head), batch()
    if name == "words":
        values = torch.where(HERE[:, None], x["words"].values, 19)
        changed = Padded(values, x["words"].length)
    else:
        changed = torch.where(HERE[:, None, None], x["sound"], 100.0)
    one, two = net(x, {name: HERE}), net({**x, name: changed}, {name: HERE})
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-4, atol=1e-5)
    assert not one.features[name][~HERE].any()
    assert one.logits.isfinite().all()
    fewer = net({key: value for key, value in x.items() if key != name})
    assert name not in fewer.features
    assert fewer.logits.isfinite().all()


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_a_batch_in_which_all_texts_are_missing(head):
    """It is padded to no tokens at all, which BERT cannot take."""
    torch.manual_seed(0)
    words = Modality("words", "text", (6, 20), torch.zeros(0), torch.zeros(0))
    encoders = {
        "words": BERT(words, config=SMALL),
        "steps": Transformer(modality("sequence", 5, 4), 16),
    }
    net, steps = LateFusion(encoders, 3, head).eval(), torch.randn(4, 5, 4)
    nothing = Padded(torch.zeros(4, 0, dtype=torch.int32), torch.zeros(4, dtype=torch.int64))
    nobody = torch.zeros(4, dtype=torch.bool)
    masked = net({"words": nothing, "steps": steps}, {"words": nobody})
    torch.testing.assert_close(masked.logits, net({"steps": steps}).logits)
    assert net({"words": nothing, "steps": steps}).logits.isfinite().all()  # there, but empty


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_pictures_and_spectrograms(head):
    torch.manual_seed(0)
    encoders = {
        "eye": ViT(modality("video", 2, 3, 32, 32), config={**SMALL, "patch_size": 16}),
        "ear": AST(modality("image", 1, 32, 50), config=SMALL),
    }
    net = LateFusion(encoders, 3, head).eval()
    x = {"eye": torch.randn(2, 2, 3, 32, 32), "ear": torch.randn(2, 1, 32, 50)}
    assert net(x).logits.shape == (2, 3)
    assert net.encoders["eye"].tokens(x["eye"]).steps.shape == (2, 2 * 5, 16)


DATA = "synthetic(train=24,val=12,test=12,classes=3)"


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
def test_encoders_without_tokens_are_refused(head):
    cell = Cell(Training(DATA, fusion=head), "joint", 0)
    with pytest.raises(ValueError, match=rf"'{head}' fuses tokens, but encoder 'm1' \(MLP\)"):
        prepare([cell])


@pytest.mark.parametrize("head", TOKEN_FUSIONS)
@pytest.mark.parametrize("method", ["relearn(every=1)", "ogm_ge", "agm"])
def test_methods_train_on_them(head, method, tmp_path):
    import numpy as np

    draws = np.random.default_rng(0)
    labels = np.arange(36) % 2
    steps = draws.normal(size=(36, 5, 3)) + labels[:, None, None]
    arrays = {"one": steps.astype(np.float32), "two": -steps.astype(np.float32)}
    evenly.data.save_npz(tmp_path / "a.npz", labels, np.repeat([0, 1, 2], 12), arrays)
    asked = dict.fromkeys(arrays, "transformer(width=8,layers=1)")
    training = Training(
        str(tmp_path / "a.npz"), epochs=2, batch_size=6, fusion=head, encoders=asked
    )
    result = run_cell(Cell(training, method, 0), tmp_path / "run")
    assert {"accuracy/one", "accuracy/two"} <= set(result.metrics["test"])
