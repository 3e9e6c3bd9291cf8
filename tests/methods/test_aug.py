import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evenly.methods.aug import AUG, residual_loss, weakest
from evenly.nn import LateFusion
from evenly.nn.heads import ConfigurableHead
from support import NAMES, Run, forward, lacking, make, net, rows_of, sgd, weights
from unchecked import error_of


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestFormulas:
    def test_residual_by_loops(self):
        """The cross-entropy with the label y - λ y softmax(before)."""
        torch.manual_seed(0)
        last, before = torch.randn(2, 4, 3, dtype=torch.float64)
        target = torch.tensor([0, 2, 1, 2])
        log_p, q = last.log_softmax(1), before.softmax(1)
        expected = 0.0
        for i in range(4):
            for c in range(3):
                y = float(c == target[i])
                expected -= (y - 0.3 * y * q[i, c]) * log_p[i, c] / 4
        found = residual_loss(last, before, target, 0.3)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    def test_what_is_known_already_has_no_gradient(self):
        last, before = torch.zeros(2, 1, 3, requires_grad=True)
        found = residual_loss(last, before, torch.tensor([0]), 0.5)
        assert torch.autograd.grad(found, before, allow_unused=True) == (None,)

    def test_the_weakest_of_two(self):
        assert weakest(torch.tensor([0.5, 0.4]), 0.01) == 1
        assert weakest(torch.tensor([0.4, 0.5]), 0.01) == 0
        assert weakest(torch.tensor([0.5, 0.5]), 0.01) is None
        assert weakest(torch.tensor([0.504, 0.5]), 0.01) is None
        assert weakest(torch.tensor([0.506, 0.5]), 0.01) == 1

    def test_the_weakest_of_three_is_compared_with_the_mean_of_the_others(self):
        assert weakest(torch.tensor([0.8, 0.2, 0.3]), 0.01) == 1
        assert weakest(torch.tensor([0.8, 0.4, 0.6]), 0.8) is None
        assert weakest(torch.tensor([0.8, 0.4, 0.6]), 0.7) == 1

    def test_one_is_never_weaker(self):
        assert weakest(torch.tensor([0.1]), 0.01) is None


def set_(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


class TestHead:
    def test_by_hand(self):
        head = ConfigurableHead({"a": 2, "b": 1}, 2)
        set_(head.linear, [[1.0], [-1.0]], [0.5, 0.0])
        set_(head.first["a"], [[1.0, 1.0]], [0.0])
        set_(head.first["b"], [[-1.0]], [0.0])
        set_(head.extra["a"][0], [[0.0, 2.0]], [1.0])
        set_(head.extra["a"][1], [[-1.0, 0.0]], [0.0])
        x = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[4.0]])}
        logits, own = head(x)
        assert own["a"].tolist() == [[3.5, -3.0]]
        assert own["b"].tolist() == [[0.5, 0.0]]  # hidden -4, so 0
        assert logits.tolist() == [[2.0, -1.5]]
        head.add("a")  # hidden 5
        before, last = head.parts(x)["a"]
        assert (before.tolist(), last.tolist()) == ([[3.5, -3.0]], [[5.5, -5.0]])
        assert head(x)[1]["a"].tolist() == [[9.0, -8.0]]
        head.add("a")  # hidden -1, so 0
        before, last = head.parts(x)["a"]
        assert (before.tolist(), last.tolist()) == ([[9.0, -8.0]], [[0.5, 0.0]])
        assert head(x)[0].tolist() == [[5.0, -4.0]]
        assert head({"b": x["b"]})[0].tolist() == [[0.5, 0.0]]

    def test_a_checkpoint_of_the_model_predicts_as_the_model_did(self):
        model = net(head="configurable").eval()
        for name in ("aa", "a", "aa"):
            model.head.add(name)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh = net(seed=5, head="configurable").eval()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert [fresh.head.active(name) for name in ("a", "aa")] == [1, 2]
        x = {name: torch.randn(4, 1, 5) for name in ("a", "aa")}
        assert torch.equal(fresh(x).logits, model(x).logits)

    def test_a_copy_goes_its_own_way(self):
        head = ConfigurableHead({"a": 2}, 2)
        head.add("a")
        other = copy.deepcopy(head)
        other.load_state_dict(ConfigurableHead({"a": 2}, 2).state_dict())
        assert (head.active("a"), other.active("a")) == (1, 0)

    def test_no_more_than_there_are(self):
        head = ConfigurableHead({"a": 2}, 2)
        for _ in range(10):
            head.add("a")
        with pytest.raises(ValueError, match="all 10 layers of 'a' are switched on already"):
            head.add("a")

    def test_its_size_is_the_papers(self):
        head = ConfigurableHead({"a": 512, "b": 512}, 6)
        assert tuple(head.first["a"].weight.shape) == (256, 512)
        assert tuple(head.extra["b"][9].weight.shape) == (256, 512)
        assert tuple(head.linear.weight.shape) == (6, 256)


def tiny(names=("a", "b", "c")):
    torch.manual_seed(3)
    encoders = {name: nn.Linear(2 + n, 4 + n) for n, name in enumerate(names)}
    for n, encoder in enumerate(encoders.values()):
        encoder.out_features = 4 + n
    model = LateFusion(encoders, 3, "configurable").double()
    inputs = {name: torch.randn(6, 2 + n).double() for n, name in enumerate(names)}
    return model, inputs, torch.tensor([0, 1, 2, 1, 0, 2])


def test_golden_step():
    """Of modalities with two, one and no added layers."""
    model, inputs, target = tiny()
    head = model.head
    for name in ("a", "a", "b"):
        head.add(name)
    method = AUG(model.encoders, head=head, residual=0.4)
    method.before_epoch(0)
    expected = 0.0
    for name, x in inputs.items():
        f = model.encoders[name](x)
        layers = [head.first[name], *head.extra[name][: {"a": 2, "b": 1, "c": 0}[name]]]
        z = [head.linear(torch.relu(layer(f))) for layer in layers]
        expected = expected + cross_entropy(sum(z), target)
        if len(z) > 1:
            before, last = sum(z[:-1]), z[-1]
            label = nn.functional.one_hot(target, 3).double()
            label = label - 0.4 * label * before.detach().softmax(1)
            expected = expected + cross_entropy(before, target) + cross_entropy(last, label)
    slopes = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    loss = method.loss(model(inputs), target)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    method.backward(loss)
    method.before_step()
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        if slope is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-10, atol=1e-12)
    assert sum(slope is None for slope in slopes) == 2 * (8 + 9 + 10)


def test_golden_scores():
    """The mean of softmax(z_m) at the true class over all passes of an epoch."""
    model, inputs, target = tiny()
    method = AUG(model.encoders, head=model.head)
    method.before_epoch(0)
    for part in (slice(0, 4), slice(4, 6)):
        cut = {name: x[part] for name, x in inputs.items()}
        method.backward(method.loss(model(cut), target[part]))
        method.before_step()
        model.zero_grad()
    unimodal = model(inputs).unimodal
    expected = [float(z.detach().softmax(1)[range(6), target].sum()) for z in unimodal.values()]
    assert method.scores[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert method.scores[1].tolist() == [6, 6, 6]


def test_the_weakest_is_given_a_layer_by_the_epoch_that_has_gone_by():
    model, _, _ = tiny()
    method = AUG(model.encoders, head=model.head, every=2)
    sums = ([3.0, 1.0, 2.0], [3.0, 9.0, 2.0], [1.0, 9.0, 9.0], [5.0, 5.0, 5.0], [3.0, 1.0, 1.5])
    found = []
    for epoch, score in enumerate((*sums, None, None)):
        method.before_epoch(epoch)
        found.append([model.head.active(name) for name in ("a", "b", "c")])
        method.scores = None if score is None else torch.tensor([score, [10.0] * 3])
    # due before epochs 1, 2, 4 and 6; by the sums of 0, 1, 3 (a tie) and 5 (none)
    assert found == [[0, 0, 0], [0, 1, 0], *[[0, 1, 1]] * 5]
    assert {name: float(value) for name, value in method.metrics.items()} == {
        "layers/a": 0,
        "layers/b": 1,
        "layers/c": 1,
    }


def test_a_modality_of_fewer_batches_is_not_weaker_for_that():
    model, inputs, target = tiny(("a", "b"))
    method = AUG(model.encoders, head=model.head, every=1)
    method.before_epoch(0)
    method.scores = torch.tensor([[6.0, 2.0], [10.0, 2.0]])
    method.before_epoch(1)
    assert [model.head.active(name) for name in ("a", "b")] == [1, 0]
    method.backward(method.loss(model({"b": inputs["b"]}), target))
    method.before_step()
    assert method.scores[1].tolist() == [0, 6]
    method.before_epoch(2)  # nothing is known of 'a'
    assert [model.head.active(name) for name in ("a", "b")] == [1, 0]


def test_added_layers_train_and_those_in_reserve_do_not():
    """The optimiser owns them all from the start, which the released code's does not."""
    run = Run("aug").train(1)
    method, head = run.method, run.model.head
    method.scores = torch.tensor([[9.0, 1.0], [9.0, 9.0]])
    before = weights(run.model)
    method.before_epoch(1, run.probe)
    assert [head.active(name) for name in ("a", "aa")] == [0, 1]
    for batch in run.train_loader:
        run.step(batch)
    after = weights(run.model)
    for name, _ in head.named_parameters():
        changed = not torch.equal(before[f"head.{name}"], after[f"head.{name}"])
        assert changed == (not name.startswith("extra") or name.startswith("extra.aa.0.")), name


def test_a_head_that_is_full_is_given_no_more():
    model, _, _ = tiny(("a", "b"))
    method = AUG(model.encoders, head=model.head, every=1)
    for epoch in range(13):
        method.before_epoch(epoch)
        method.scores = torch.tensor([[9.0, 1.0], [9.0, 9.0]])
    assert [model.head.active(name) for name in ("a", "b")] == [0, 10]


def test_a_run_resumed_within_an_epoch_adds_no_second_layer():
    run = Run("aug").train(2)
    batch = next(iter(run.train_loader))
    run.method.before_epoch(2, run.probe)
    run.step(batch)
    fresh = Run("aug", seed=4).load(run.state())
    fresh.method.before_epoch(2, fresh.probe)
    assert torch.equal(fresh.method.scores, run.method.scores)
    assert torch.equal(fresh.model.head.added, run.model.head.added)
    assert int(run.model.head.added.sum()) > 0
    assert [fresh.model.head.active(name) for name in ("a", "aa")] == run.model.head.added.tolist()


def test_a_validation_does_not_count():
    run = Run("aug")
    run.method.before_epoch(0, run.probe)
    batch = next(iter(run.train_loader))
    with torch.no_grad():
        run.method.loss(*forward(run.model, batch))
    run.step(batch)
    assert run.method.scores[1].tolist() == [8, 8]


def test_one_modality_is_given_nothing():
    run = Run("aug", names=("a",)).train(3)
    assert run.model.head.active("a") == 0


def test_it_is_due_as_often_as_the_head_has_layers():
    """Before epoch 1 and each tenth part of the training after it, as in the paper."""
    model, _, _ = tiny()
    method = AUG(model.encoders, head=model.head)
    assert sum(method.is_due(epoch) for epoch in range(AUG.info.epochs)) == model.head.depth
    assert [epoch for epoch in range(45) if method.is_due(epoch)] == [1, 20, 40]


class TestMessages:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"residual": 1.5}, r"'residual' must be from 0 to 1; found 1\.5"),
            ({"residual": -0.5}, r"'residual' must be from 0 to 1; found -0\.5"),
            ({"every": 0}, r"'every' must be at least 1; found 0"),
            ({"tolerance": -0.5}, r"'tolerance' must be not negative; found -0\.5"),
            ({"tolerance": math.nan}, r"'tolerance' must be not negative; found nan"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            make("aug", net(head="configurable"), **settings)

    def test_another_head(self):
        code = (
            "from evenly.methods.aug import AUG\n"
            "from evenly.nn.heads import LateHead\n"
            "AUG({}, head=LateHead({'a': 2}, 2))"
        )
        assert "needs a head that can grow classifiers; LateHead cannot" in error_of(code)

    def test_a_step_without_a_loss(self):
        model = net(NAMES[:2], head="configurable")
        method = make("aug", model, sgd(model))
        with pytest.raises(RuntimeError, match=r"without a call of AUG\.loss"):
            method.before_step()


def test_scores_are_of_samples_that_have_the_modality():
    model, here = net(head="configurable").eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = AUG(model.encoders, head=model.head)
    method.before_epoch(0)
    found = []
    for batch in ((output, target), rows_of(output, target, here)):
        method.loss(*batch)
        found.append(method._step_scores.take(method))
    torch.testing.assert_close(found[0][:, 0], found[1][:, 0])
    assert found[0][1].tolist() == [16, 24]
