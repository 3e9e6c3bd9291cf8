import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn

import evenly
from evenly.methods.mcr import MCR, contrast, divergence, games
from support import (
    NAMES,
    Run,
    batch_of,
    forward,
    lacking,
    loaders,
    net,
    rows_of,
    same,
    weights,
)


def jsd(p, q):
    """Of two distributions, in plain loops."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total = total + (a * torch.log(a / m) + b * torch.log(b / m)) / 2
    return total


def mean_jsd(one, other):
    p, q = one.softmax(1), other.softmax(1)
    return sum(jsd(a, b) for a, b in zip(p, q, strict=True)) / len(p)


class TestFormulas:
    def test_divergence_against_plain_loops(self):
        one, other = torch.randn(2, 5, 3, dtype=torch.float64)
        torch.testing.assert_close(divergence(one, other), mean_jsd(one, other))
        assert float(divergence(torch.tensor([[99.0, 0]]), torch.tensor([[0, 99.0]]))) == (
            pytest.approx(math.log(2))
        )

    def test_divergence_of_equals_has_a_gradient_of_zero(self):
        z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
        divergence(z, z.detach()).backward()
        assert z.grad.tolist() == [[0, 0, 0]]

    def test_contrast_against_plain_loops(self):
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0])
        s = nn.functional.cosine_similarity(x[:, None], x[None, :], dim=2) / 0.2
        losses = []
        for a in range(6):
            others = sum(math.exp(s[a, k]) for k in range(6) if y[k] != y[a])
            losses += [
                -math.log(math.exp(s[a, p]) / (math.exp(s[a, p]) + others))
                for p in range(6)
                if p != a and y[p] == y[a]
            ]
        assert len(losses) == 3 * 2 + 2
        assert float(contrast(x, y, 0.2)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)

    @pytest.mark.parametrize("y", [[0, 0], [0, 1], [0]])
    def test_contrast_without_pairs_or_without_others_is_zero(self, y):
        x = torch.ones(len(y), 3, requires_grad=True)
        loss = contrast(x, torch.tensor(y), 0.1)
        loss.backward()
        assert float(loss.detach()) == 0
        assert not x.grad.any()

    def test_games(self):
        a, b, c = ("a",), ("b",), ("c",)
        assert list(games(("a", "b"), 1)) == [(a, ("a", "b"), 1.0), (b, ("a", "b"), 1.0)]
        assert list(games(("a", "b"), 0)) == [(a, a, 1.0), (b, b, 1.0)]
        assert list(games(("a", "b"), -1)) == [(a, a, 1), (a, b, -1), (b, b, 1), (b, a, -1)]
        pairs = [("a", "b"), ("a", "c"), ("b", "c")]
        assert list(games(("a", "b", "c"), 0)) == [(pair, pair, 1.0) for pair in pairs]
        assert list(games(("a", "b", "c"), -1))[:2] == [(pairs[0], pairs[0], 1), (pairs[0], c, -1)]


def permuted(model, output, moved, order, players=NAMES):
    """The prediction with the logits of some modalities permuted, and those of others held."""
    total = model.head.linear.bias
    blocks = model.head.linear.weight.split(6, dim=1)
    for (name, x), block in zip(output.features.items(), blocks, strict=True):
        z = x @ block.T if name in players else (x @ block.T).detach()
        total = total + (z[order] if name in moved else z)
    return total


def contribution(model, output, orders, moved, players=NAMES):
    """J of what is permuted, one permutation after the other."""
    found = [
        mean_jsd(output.logits, permuted(model, output, moved, order, players)) for order in orders
    ]
    return sum(found) / len(orders)


def moves(names):
    return [(n,) for n in names] if len(names) < 3 else list(combinations(names, 2))


def given(unimodal):
    """Two samples, of classes 0 and 1, on a fused layer whose bias and second input tell nothing.

    Of the fused logits, (5 + ln 3, 5) and (5, 5), the first modality alone makes the difference.
    """
    features = {"a": torch.tensor([[1.0], [0.0]]), "b": torch.tensor([[2.0], [-7.0]])}
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]))
        layer.bias.fill_(5.0)

    def fuse(features):
        return layer(torch.cat([features["a"], features["b"]], dim=1))

    return evenly.Output(fuse(features), features, unimodal, fuse=fuse), torch.tensor([0, 1])


def of_two(**settings):
    off = {"strength": 0.0, "contrast": 0.0, "bottleneck": 0.0, "unimodal": 0.0, "samples": 1}
    return MCR({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}, **{**off, **settings})


def test_classifiers_beside_the_fused_layer_have_the_unimodal_losses_by_hand():
    """Their probabilities of the classes are 3/4 and 3/4, 1/2 and 1/4; the fused ones' 3/4, 1/2."""
    own = {"a": [[math.log(3), 0.0], [0.0, math.log(3)]], "b": [[2.0, 2.0], [math.log(3), 0.0]]}
    output, target = given({name: torch.tensor(z) for name, z in own.items()})
    loss = of_two(unimodal=0.1).loss(output, target)
    fused = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    each = -math.log(3 / 4), -(math.log(1 / 2) + math.log(1 / 4)) / 2
    assert float(loss.detach()) == pytest.approx(fused + 0.1 * sum(each), rel=1e-6)


def test_the_game_is_played_with_the_fused_layer_by_hand():
    """Swapping the first modality swaps (3/4, 1/4) and (1/2, 1/2); the other changes nothing."""
    wild = {name: torch.randn(2, 2, requires_grad=True) for name in "ab"}
    output, target = given(wild)
    method = of_two(strength=0.5, k=1)
    method._orders = lambda logits: torch.tensor([[1, 0]])
    loss = method.loss(output, target)
    swap = (3 * math.log(6 / 5) + math.log(2 / 3) + 2 * math.log(4 / 5) + 2 * math.log(4 / 3)) / 8
    fused = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert float(loss.detach()) == pytest.approx(fused - 0.5 * swap, rel=1e-6)
    assert float(method.metrics["contribution/a"]) == pytest.approx(swap, rel=1e-5)
    assert float(method.metrics["contribution/b"]) == pytest.approx(0, abs=1e-7)
    loss.backward()
    assert all(not z.grad.any() for z in wild.values())  # DDP waits for one


def test_unimodal_losses_teach_classifiers_and_encoders_but_not_the_fused_layer():
    model = net(head="decoding").double().eval()
    output, target = batch_of(model)
    only = {"strength": 0.0, "contrast": 0.0, "bottleneck": 0.0}
    term = MCR(model.encoders, **only).loss(output, target)
    term = term - nn.functional.cross_entropy(output.logits, target)
    model.zero_grad()
    term.backward()
    moved = {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 1e-12
    }
    assert {name for name in moved if name.startswith("head.")} == {
        f"head.heads.{name}.{part}" for name in model.encoders for part in ("weight", "bias")
    }
    assert any(name.startswith("encoders.a.") for name in moved)
    assert any(name.startswith("encoders.aa.") for name in moved)


def test_without_unimodal_losses_classifiers_are_left_as_they_are():
    model = net(head="decoding")
    assert MCR(model.encoders, head=model.head, unimodal=0.0).info.unimodal == "leaves"
    assert MCR(model.encoders, head=model.head).info.unimodal == "trains"


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
def test_golden_loss(names):
    model = net(names, head="decoding").double().eval()
    output, target = batch_of(model)
    given = {"strength": 0.5, "contrast": 0.7, "bottleneck": 0.3, "unimodal": 0.2}
    method = MCR(model.encoders, head=model.head, k=1, samples=3, **given)
    orders = method._orders(output.logits)
    assert all(sorted(order.tolist()) == list(range(24)) for order in orders)
    game = -sum(contribution(model, output, orders, moved) for moved in moves(names))
    features = torch.cat(list(output.features.values()))
    error = torch.cat(list(output.features.values()), 1) - model.head.decoder(output.logits)
    expected = (
        nn.functional.cross_entropy(output.logits, target)
        + 0.5 * game
        + 0.7 * contrast(features, target.repeat(len(names)), 0.5)
        + 0.3 * error.square().mean()
        + 0.2
        * sum(
            nn.functional.cross_entropy(model.head.heads[name](x), target)
            for name, x in output.features.items()
        )
    )
    torch.testing.assert_close(method.loss(output, target), expected, rtol=1e-12, atol=0)


def playing(model, names, **settings):
    """A method of the game alone, what it adds to the loss, and the orders that it drew."""
    output, target = batch_of(model)
    alone = {"contrast": 0.0, "bottleneck": 0.0, "unimodal": 0.0, "samples": 2, "strength": 0.5}
    method = MCR(model.encoders, **{**alone, **settings})
    game = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    return output, game, method._orders(output.logits)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3]])
@pytest.mark.parametrize("k", [-1, 0, 1])
def test_what_each_modality_plays_for(k, names):
    """p learns from all; in p_m the logits of those who do not play are held still."""
    model = net(names, head="decoding").double().eval()
    output, game, orders = playing(model, names, k=k)
    expected = 0.0
    for moved in moves(names):
        sides = [(names, 1.0)] if k == 1 else [(moved, 1.0)]
        sides += [((name,), -1.0) for name in names if k == -1 and name not in moved]
        for players, share in sides:
            expected = expected - share * contribution(model, output, orders, moved, players)
    learns = [model.head.linear.weight, *output.features.values(), model.head.linear.bias]
    found = torch.autograd.grad(game, learns, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected, learns), strict=True):
        assert one.abs().max() > 1e-5 or (one is found[-1] and k == -1)  # there it cancels
        torch.testing.assert_close(one, 0.5 * other, rtol=1e-10, atol=1e-14)
    own = torch.autograd.grad(game, list(model.head.heads.parameters()))
    assert not any(grad.any() for grad in own)


def test_modalities_without_an_encoder_stay_in_the_prediction():
    """And neither are permuted nor play."""
    names = NAMES[:3]
    model = net(names, head="decoding").double().eval()
    output, target = batch_of(model)
    mine = {name: model.encoders[name] for name in names[:2]}
    alone = {"contrast": 0.0, "bottleneck": 0.0, "unimodal": 0.0}
    method = MCR(mine, samples=2, strength=0.5, k=1, **alone)
    orders = method._orders(output.logits)
    j = [contribution(model, output, orders, (name,)) for name in names[:2]]
    game = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    torch.testing.assert_close(game, -0.5 * sum(j), rtol=1e-10, atol=1e-14)


def test_a_validation_leaves_the_metrics():
    model = net(head="decoding").double().eval()
    output, target = batch_of(model)
    method = MCR(model.encoders, head=model.head, samples=2)
    method.loss(output, target)
    before = dict(method.metrics)
    assert set(before) == {"contribution/a", "contribution/aa", "contrast", "bottleneck"}
    assert not any(value.requires_grad for value in before.values())
    with torch.no_grad():
        method.loss(output, target.flip(0))
    assert method.metrics == before


def test_a_greedy_game_teaches_the_head():
    """Its value is 0, as each contribution is fought for as much as against; its slope is not."""
    model = net(head="decoding").double().eval()
    _, game, _ = playing(model, NAMES[:2])
    assert float(game.detach()) == pytest.approx(0, abs=1e-15)
    (slope,) = torch.autograd.grad(game, model.head.linear.weight)
    assert slope.abs().max() > 1e-5


def test_logits_that_are_no_sum():
    model = net(head="gated").eval()
    for parameter in model.head.parameters():  # of small numbers, gates are close to linear
        nn.init.normal_(parameter)
    output, target = forward(model, next(iter(loaders()[0])))
    text = r"`Output\.fuse` gives the modalities one by one do not add up .* or pass strength=0\."
    with pytest.raises(ValueError, match=text):
        MCR(model.encoders, contrast=0.0, bottleneck=0.0).loss(output, target)
    MCR(model.encoders, strength=0.0, contrast=0.0, bottleneck=0.0).loss(output, target)


def test_pretrained_encoders_are_those_that_finetune_has():
    run, other = Run("mcr", pretrain=2), Run("finetune", head="decoding", pretrain=2)
    for each in (run, other):
        each.method.before_epoch(0, each.probe)
    assert same(run.model, other.model)
    assert not same(run.model, net(head="decoding"))
    before = weights(run.model)
    run.method.before_epoch(0, run.probe)
    assert all(torch.equal(before[name], x) for name, x in weights(run.model).items())


def test_the_bottleneck_does_not_reach_the_prediction():
    model = net(head="decoding").double().eval()
    output, target = batch_of(model)
    method = MCR(model.encoders, head=model.head, strength=0.0, contrast=0.0, unimodal=0.0)
    term = method.loss(output, target) - nn.functional.cross_entropy(output.logits, target)
    parts = torch.autograd.grad(
        term, [*model.head.linear.parameters(), *model.head.decoder.parameters()], allow_unused=True
    )
    assert not any(p.abs().max() > 1e-15 for p in parts[:2] if p is not None)
    assert all(p.any() for p in parts[2:])


def test_permutations_differ_from_step_to_step_but_not_from_run_to_run():
    def two():
        method = MCR(net().encoders, bottleneck=0.0, seed=4)
        first = method._orders(torch.zeros(9, 2))
        method.before_step()
        return first, method._orders(torch.zeros(9, 2))

    (one, after), (again, _) = two(), two()
    assert torch.equal(one, again)
    assert not torch.equal(one, after)


def test_one_modality_has_no_game():
    run = Run("mcr", names=("a",)).train(1)
    assert set(run.method.metrics) == {"contrast", "bottleneck"}


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"strength": -0.1}, r"MCR: 'strength' must be finite and not negative; found -0\.1\."),
            ({"contrast": -1.0}, r"MCR: 'contrast' must be finite and not negative; found -1\.0\."),
            (
                {"bottleneck": math.inf},
                r"MCR: 'bottleneck' must be finite and not negative; found inf",
            ),
            ({"unimodal": -1.0}, r"MCR: 'unimodal' must be finite and not negative; found -1\.0\."),
            ({"pretrain": -1}, r"MCR: 'pretrain' must be finite and not negative; found -1\."),
            ({"pretrain": 1}, r"'pretrain' trains the encoders alone .*Pass optimizer=optimizer"),
            ({"k": 2}, r"MCR: 'k' is -1, 0 or 1; found 2\."),
            ({"samples": 0}, r"MCR: 'samples' must be at least 1; found 0\."),
            ({"temperature": 0.0}, r"MCR: 'temperature' must be finite and above 0; found 0\.0\."),
            (
                {"temperature": math.inf},
                r"MCR: 'temperature' must be finite and above 0; found inf\.",
            ),
        ],
    )
    def test_settings(self, settings, text):
        model = net(head="decoding")
        with pytest.raises(ValueError, match=text):
            MCR(model.encoders, head=model.head, **settings)

    def test_a_head_that_cannot_decode(self):
        model = net()
        text = r"found ConcatHead\. Pass head=model\.head of a model with the head 'decoding'"
        with pytest.raises(ValueError, match=text):
            MCR(model.encoders, head=model.head)
        with pytest.raises(ValueError, match=r"can decode; found NoneType\."):
            MCR(model.encoders)

    def test_features_of_unequal_width(self):
        method = MCR(net().encoders, strength=0.0, bottleneck=0.0, unimodal=0.0)
        features = {"a": torch.zeros(2, 3), "aa": torch.zeros(2, 4)}
        with pytest.raises(ValueError, match=r"found \{'a': 3, 'aa': 4\}\. .* contrast=0\."):
            method.loss(evenly.Output(torch.zeros(2, 3), features), torch.tensor([0, 1]))


def test_samples_play_with_what_they_have():
    """The game and the bottleneck are those of the parts that have the same modalities."""
    model, here = net(head="decoding").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    given = {"contrast": 0.0, "unimodal": 0.0, "samples": 3, "strength": 0.5}
    method = MCR(model.encoders, head=model.head, **given)
    method.before_epoch(0)
    part, rest = (rows_of(output, target, rows)[0] for rows in (here, ~here))
    rest = replace(
        rest, **{key: {"aa": getattr(rest, key)["aa"]} for key in ("features", "unimodal")}
    )
    fuse = output.fuse, *2 * (lambda features: model.head(features)[0],)
    output, part, rest = (
        replace(some, fuse=of) for some, of in zip((output, part, rest), fuse, strict=True)
    )
    losses = []
    for some, rows in ((output, slice(None)), (part, here), (rest, ~here)):
        loss = method.loss(some, target[rows])
        slopes = torch.autograd.grad(loss, model.head.linear.weight, retain_graph=True)
        losses.append((loss, *slopes))
    for one, two, three in zip(*losses, strict=True):
        torch.testing.assert_close(one, (16 * two + 8 * three) / 24)


def test_what_a_sample_lacks_is_not_contrasted():
    model, here = net(head="decoding").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = MCR(model.encoders, head=model.head)
    method.loss(output, target)
    a, aa = output.features["a"][here], output.features["aa"]
    expected = contrast(torch.cat([a, aa]), torch.cat([target[here], target]), 0.5)
    torch.testing.assert_close(method.metrics["contrast"], expected.detach())
