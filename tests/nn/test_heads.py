"""The heads that several methods share, by hand."""

import math
from functools import partial

import pytest
import torch

from evenly.nn.heads import (
    FUSIONS,
    HEADS,
    AttentionHead,
    ConcatHead,
    EnsembleHead,
    FiLMHead,
    GatedHead,
    Head,
    LateHead,
    LowRankHead,
    MultiHead,
    SharedHead,
    SumHead,
)


def features(**rows):
    return {name: torch.tensor([row]) for name, row in rows.items()}


def set_(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def unimodal(kind):
    head = kind({"a": 2, "b": 1}, 2)
    set_(head.heads["a"], [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    set_(head.heads["b"], [[1.0], [-1.0]], [0.5, 0.0])
    return head(features(a=[2.0, 4.0], b=[3.0]))


def test_concat():
    head = ConcatHead({"a": 2, "b": 1}, 2)
    set_(head.linear, [[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], [1.0, 0.0])
    logits, shares = head(features(a=[1.0, 1.0], b=[2.0]))
    assert logits.tolist() == [[1 + 2 + 6 + 1, 1 - 2]]
    assert shares["a"].tolist() == [[3.5, 1.0]]
    assert shares["b"].tolist() == [[6.5, -2.0]]


def test_late():
    logits, own = unimodal(LateHead)
    assert own["a"].tolist() == [[2.0, 4.0]]
    assert own["b"].tolist() == [[3.5, -3.0]]
    assert logits.tolist() == [[2.75, 0.5]]


def test_ensemble():
    """The mean of probabilities, as logits."""
    logits, _ = unimodal(EnsembleHead)
    a, b = math.exp(2) / (math.exp(2) + math.exp(4)), math.exp(3.5) / (math.exp(3.5) + math.exp(-3))
    assert logits.exp()[0].tolist() == pytest.approx([(a + b) / 2, 1 - (a + b) / 2])


def test_ensemble_of_labels():
    """The mean of the sigmoids, as log-odds, even if float32 cannot hold 1 - probability."""
    logits, _ = unimodal(partial(EnsembleHead, task="labels"))
    a, b = torch.tensor([2.0, 4.0]).sigmoid(), torch.tensor([3.5, -3.0]).sigmoid()
    torch.testing.assert_close(logits[0].sigmoid(), (a + b) / 2)
    head = EnsembleHead({"a": 1, "b": 1}, 1, "labels")
    same = {name: torch.tensor([[200.0], [-200.0]]) for name in "ab"}
    assert head.combined(same)[:, 0].tolist() == pytest.approx([200, -200])


def test_ensemble_of_numbers():
    logits, _ = unimodal(partial(EnsembleHead, task="number"))
    assert logits.tolist() == [[2.75, 0.5]]


def test_multi():
    """Its fused layer is that of joint training, with layers of their own beside it."""
    torch.manual_seed(0)
    head = MultiHead({"a": 2, "b": 1}, 2)
    torch.manual_seed(0)
    assert torch.equal(head.linear.weight, ConcatHead({"a": 2, "b": 1}, 2).linear.weight)
    x = features(a=[1.0, 2.0], b=[3.0])
    logits, own = head(x)
    torch.testing.assert_close(logits, head.linear(torch.tensor([[1.0, 2.0, 3.0]])))
    torch.testing.assert_close(own["b"], head.heads["b"](x["b"]))


def test_shared_weights_samples_by_certainty():
    head = SharedHead({"a": 2, "b": 2}, 2)
    set_(head.linear, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    logits, own = head(
        {
            "a": torch.tensor([[5.0, 0.0], [0.0, 0.0]]),
            "b": torch.tensor([[0.0, 0.0], [0.0, 5.0]]),
        }
    )
    p = math.exp(5) / (math.exp(5) + 1)
    sure = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    w = math.exp(-sure) / (math.exp(-sure) + math.exp(-math.log(2)))
    torch.testing.assert_close(logits, torch.tensor([[5 * w, 0.0], [0.0, 5 * w]]))
    assert own["a"].tolist() == [[5.0, 0.0], [0.0, 0.0]]


def test_shared_needs_one_width():
    with pytest.raises(ValueError, match=r"features need one width; found \{'a': 2, 'b': 1\}"):
        SharedHead({"a": 2, "b": 1}, 2)


def test_sum():
    logits, own = unimodal(SumHead)
    assert own["b"].tolist() == [[3.5, -3.0]]
    assert logits.tolist() == [[5.5, 1.0]]


def test_film():
    head = FiLMHead({"b": 1, "a": 2}, 2)
    set_(head.modulations["b"], [[2.0], [0.0], [1.0], [-1.0]], [0.0, 1.0, 0.5, 0.0])
    set_(head.linear, [[1.0, 0.0], [1.0, 1.0]], [0.0, 0.5])
    # gamma = (6, 1), beta = (3.5, -3); of a missing b gamma = (0, 1), beta = (0.5, 0)
    logits, own = head(features(a=[2.0, 4.0], b=[3.0]))
    assert logits.tolist() == [[15.5, 15.5 + 1 + 0.5]]
    assert own["a"].tolist() == [[0.5, 0.5 + 4 + 0.5]]
    assert own["b"].tolist() == [[3.5, 3.5 - 3 + 0.5]]


def test_gated_for_two_is_a_gate_and_its_complement():
    torch.manual_seed(0)
    head = GatedHead({"a": 2, "b": 3}, 4)
    x = {"a": torch.randn(5, 2), "b": torch.randn(5, 3)}
    together = torch.cat([x["a"], x["b"]], 1)
    gate = torch.sigmoid(head.gates["a"](together) - head.gates["b"](together))
    hidden = {name: torch.tanh(head.hidden[name](value)) for name, value in x.items()}
    expected = head.linear(gate * hidden["a"] + (1 - gate) * hidden["b"])
    torch.testing.assert_close(head(x)[0], expected)


def test_low_rank_is_the_whole_tensor():
    """The outer product of [f, 1] of three modalities with the weight tensor, term by term."""
    torch.manual_seed(0)
    widths = {"a": 2, "b": 3, "c": 1}
    head = LowRankHead(widths, 2, rank=3).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(3))
        head.bias.copy_(torch.randn(2))
    x = {name: torch.randn(4, width).double() for name, width in widths.items()}
    one = {name: torch.cat([value, torch.ones(4, 1).double()], 1) for name, value in x.items()}
    full = {
        name: torch.cat([layer.weight, layer.bias[:, None]], 1).unflatten(0, (3, 2))
        for name, layer in head.factors.items()
    }
    tensor = torch.einsum("r,rci,rcj,rck->cijk", head.weight, full["a"], full["b"], full["c"])
    expected = torch.einsum("ni,nj,nk,cijk->nc", one["a"], one["b"], one["c"], tensor) + head.bias
    torch.testing.assert_close(head(x)[0], expected, rtol=1e-10, atol=1e-12)


def test_attention_passes_over_what_is_missing():
    torch.manual_seed(0)
    head = AttentionHead({"a": 4, "b": 6}, 3)
    x = {"a": torch.randn(5, 4), "b": torch.randn(5, 6)}
    logits, own = head(x)
    torch.testing.assert_close(own["a"], head({"a": x["a"]})[0])
    assert not torch.allclose(logits, own["a"])
    swapped, _ = head({"b": x["b"], "a": x["a"]})
    torch.testing.assert_close(swapped, logits, rtol=1e-4, atol=1e-5)


def test_attention_masks_samples_of_any_modalities_in_one_pass():
    torch.manual_seed(0)
    head = AttentionHead({"a": 4, "b": 6}, 3).double()
    x = {"a": torch.randn(5, 4).double(), "b": torch.randn(5, 6).double()}
    here = {"a": torch.tensor([1, 0, 1, 0, 1]).bool(), "b": torch.tensor([1, 1, 0, 0, 1]).bool()}
    wild = {name: x[name].masked_fill(~here[name][:, None], 1e9) for name in x}
    passes = []
    head.layer.register_forward_hook(lambda *_: passes.append(1))
    found = head(wild, here)
    assert len(passes) == 3  # of both modalities, and of each alone
    expected = Head.forward(head, x, here)  # as for any head: once for each set of modalities
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("widths", [{"a": 4}, {"a": 4, "b": 3}, {"a": 2, "b": 5, "c": 3}])
def test_every_fusion(name, widths):
    """Any number of modalities and widths, one missing, gradients everywhere."""
    torch.manual_seed(0)
    head = FUSIONS[name](widths, 5)
    x = {key: torch.randn(6, width, requires_grad=True) for key, width in widths.items()}
    logits, own = head(x)
    assert logits.shape == (6, 5)
    assert set(own) == set(widths)
    (logits.square().sum() + sum(z.square().sum() for z in own.values())).backward()
    assert all(value.grad is not None and value.grad.any() for value in x.values())
    assert all(p.grad is not None for p in head.parameters())
    if len(widths) > 1:
        fewer = {key: value for key, value in x.items() if key != "a"}
        logits, own = head(fewer)
        assert logits.isfinite().all()
        assert set(own) == set(fewer)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_learns_the_exclusive_or_where_it_can(name):
    """Products of modalities tell it; sums of their logits cannot."""
    torch.manual_seed(0)
    a, b = torch.randint(0, 2, (2, 256)).float() * 2 - 1
    x = {"a": a[:, None] * torch.randn(8), "b": b[:, None] * torch.randn(8)}
    target = (a * b > 0).long()
    head = FUSIONS[name]({"a": 8, "b": 8}, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(x)[0], target).backward()
        optimizer.step()
    accuracy = (head(x)[0].argmax(1) == target).float().mean()
    assert accuracy < 0.8 if name in ("concat", "sum") else accuracy > 0.95


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {"mmtm"}))  # made for its encoders
def test_whether_logits_are_the_sum_of_the_modalities_own_is_declared(name):
    torch.manual_seed(0)
    head = HEADS[name]({"a": 4, "b": 4}, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    logits, own = head({"a": torch.randn(5, 4), "b": torch.randn(5, 4)})
    assert torch.allclose(own["a"] + own["b"], logits, atol=1e-4) == head.sums
