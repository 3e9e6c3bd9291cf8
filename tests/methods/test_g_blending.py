import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import evenly
from evenly.methods.g_blending import GBlending, weights
from support import Run, Toy, forward, gradients, loaders, net, sgd
from support import weights as weights_of


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestWeights:
    def test_by_hand(self):
        """G = (0.4, 0.2), O = (0.5, 0.1), so G / O² = (1.6, 20)."""
        before = table([1.0, 1.1], [1.2, 1.3])
        after = table([0.1, 0.8], [0.8, 1.1])
        found = weights(before, after)
        assert found.tolist() == pytest.approx([1.6 / 21.6, 20 / 21.6])

    def test_a_negative_gain_has_no_weight(self):
        """A sign that is lost (as by taking the absolute value) would give it the most."""
        before = table([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
        after = table([0.5, 0.5, 0.9], [0.8, 1.4, 1.0])
        assert weights(before, after).tolist() == [1.0, 0.0, 0.0]

    def test_no_overfitting_is_not_divided_by(self):
        before = table([1.0, 1.0], [1.0, 1.0])
        after = table([0.7, 0.9], [0.7, 0.9])
        assert weights(before, after).tolist() == pytest.approx([0.75, 0.25])

    def test_a_smaller_gap_is_overfitting_by_its_square_too(self):
        before = table([1.0, 1.0], [1.5, 1.0])
        after = table([0.9, 0.9], [1.2, 0.7])
        found = weights(before, after)
        assert found.tolist() == pytest.approx([0.5, 0.5])

    def test_equal_where_nothing_generalises(self):
        before, after = table([1.0] * 4, [1.0] * 4), table([0.5] * 4, [1.0, 1.1, 1.2, 1.3])
        assert weights(before, after).tolist() == [0.25] * 4

    def test_a_trial_that_diverged_has_no_weight(self):
        nan = float("nan")
        before = table([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
        after = table([0.5, nan, 9.0], [0.8, nan, float("inf")])
        assert weights(before, after).tolist() == [1.0, 0.0, 0.0]


PARTS = ("fused", "unimodal/a", "unimodal/aa")


def straight():
    model = net(head="multi").double()
    for encoder in model.encoders.values():
        encoder[3] = nn.Identity()
    return model


def as_double(model, batch):
    inputs, target, index = batch
    return forward(model, ({name: x.double() for name, x in inputs.items()}, target, index))


def loss_of(model, part, batch):
    output, target = as_double(model, batch)
    logits = output.logits if part == "fused" else output.unimodal[part.removeprefix("unimodal/")]
    return nn.functional.cross_entropy(logits, target)


def measured(model, part):
    """Sample by sample, in evaluation mode, over each split."""
    model.eval()
    with torch.no_grad():
        return [
            sum(float(loss_of(model, part, sample)) for sample in DataLoader(dataset))
            / len(dataset)
            for dataset in (Toy(36, seed=1), Toy(18, seed=2))
        ]


def slow(model, epochs, seed=0):
    """The weights by plain loops: for each loss, a copy of the model trained on it alone."""
    ratio = []
    for part in PARTS:
        trial, order = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        optimizer = sgd(trial)
        before = measured(trial, part)
        trial.train()
        for _ in range(epochs):
            rows = torch.randperm(36, generator=order).tolist()
            for batch in DataLoader(Toy(36, seed=1), 8, sampler=rows):
                optimizer.zero_grad()
                loss_of(trial, part, batch).backward()
                optimizer.step()
        after = measured(trial, part)
        gain = before[1] - after[1]
        overfitting = (after[1] - after[0]) - (before[1] - before[0])
        ratio.append(max(gain, 0) / max(overfitting**2, 1e-4))
    return [r / sum(ratio) for r in ratio]


@pytest.mark.parametrize("online", [False, True])
def test_golden_weights(online):
    """Offline by `trial_epochs`, online by `super_epoch`; and the loss that they make."""
    model = straight()
    lengths = {"trial_epochs": 1, "super_epoch": 3}
    method = GBlending(model.encoders, optimizer=sgd(model), online=online, **lengths)
    before = weights_of(model)
    method.before_epoch(0, evenly.Probe(model, as_double, *loaders()))
    expected = slow(model, 3 if online else 1)
    assert [method.weights[part] for part in PARTS] == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(before[key], value) for key, value in weights_of(model).items())
    assert len({round(w, 3) for w in expected}) == 3, "a test that could not tell them apart"
    batch = next(iter(loaders()[0]))
    loss = method.loss(*as_double(model.eval(), batch))
    by_hand = sum(method.weights[part] * loss_of(model, part, batch) for part in PARTS)
    torch.testing.assert_close(loss, by_hand, rtol=1e-12, atol=1e-12)
    assert {name: float(w) for name, w in method.metrics.items()} == pytest.approx(
        {"fused_weight": expected[0], "weight/a": expected[1], "weight/aa": expected[2]}, rel=1e-3
    )


def test_a_fused_head_that_gains_nothing_learns_from_the_features_as_they_are():
    """It is what predicts, and it moves no encoder."""
    model = straight().eval()
    method = GBlending(model.encoders, optimizer=sgd(model))
    method.weights = {"fused": 0.0, "unimodal/a": 1.0, "unimodal/aa": 0.0}
    batch = next(iter(loaders()[0]))
    method.loss(*as_double(model, batch)).backward()
    found = gradients(model)
    model.zero_grad(set_to_none=False)
    (loss_of(model, "fused", batch) + loss_of(model, "unimodal/a", batch)).backward()
    for name, p in model.named_parameters():
        if name.startswith("head."):
            torch.testing.assert_close(found[name], p.grad)
    assert any(found[name].any() for name in found if name.startswith("head.linear."))
    model.zero_grad(set_to_none=False)
    loss_of(model, "unimodal/a", batch).backward()
    for name, p in model.encoders.named_parameters():
        torch.testing.assert_close(found[f"encoders.{name}"], p.grad)


def test_weights_add_up_to_one():
    run = Run("g_blending")
    run.method.before_epoch(0, run.probe)
    assert sum(run.method.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(("batch", "drop_last"), [(5, False), (8, True), (36, False), (1, False)])
def test_losses_do_not_depend_on_the_number_of_batches_or_a_dropped_last_one(batch, drop_last):
    """Means over samples, so that the gap between splits of unequal size has a scale."""
    model = straight()
    method = GBlending(model.encoders, optimizer=sgd(model))
    train, val = loaders(batch=batch)
    train.batch_sampler.drop_last = drop_last
    val = DataLoader(val.dataset, batch, drop_last=drop_last)
    found = method._losses(evenly.Probe(model, as_double, train, val))
    for part in PARTS:
        assert found[part] == pytest.approx(measured(model, part), rel=1e-5)


def test_two_trials_are_enough(monkeypatch):
    """In that of the unimodal losses each modality learns what it does alone, bit for bit."""
    model = straight()
    method = GBlending(model.encoders, optimizer=sgd(model), trial_epochs=1)
    probe = evenly.Probe(model, as_double, *loaders())
    objectives = []

    def noted(self, objective, **settings):
        objectives.append(objective)
        return trained(self, objective, **settings)

    trained = evenly.Probe.trained
    monkeypatch.setattr(evenly.Probe, "trained", noted)
    method.before_epoch(0, probe)
    unimodal, fused = objectives

    def changed(objective, reference):
        with trained(probe, objective, epochs=1, optimizer=sgd(model)):
            now = weights_of(model)
        return now, {key for key in now if not torch.equal(now[key], reference[key])}

    before = weights_of(model)
    heads = {key for key in before if key.startswith("head.")}
    fused_head = {"head.linear.weight", "head.linear.bias"}
    together, moved = changed(unimodal, before)
    assert heads - moved == fused_head
    for name in model.encoders:
        alone = partial(one_loss, name)
        assert not any(f".{name}." in key for key in changed(alone, together)[1])
    assert heads & changed(fused, before)[1] == fused_head


def one_loss(name, output, target):
    return nn.functional.cross_entropy(output.unimodal[name], target)


def test_when_trials_are_due():
    def due(**settings):
        method = GBlending(net().encoders, optimizer=sgd(net()), **settings)
        return [epoch for epoch in range(7) if method.is_due(epoch)]

    assert due() == [0]
    assert due(online=True, super_epoch=3) == [0, 3, 6]


def test_online_weights_are_found_from_the_weights_of_the_moment():
    def found(**settings):
        run = Run("g_blending", trial_epochs=1, super_epoch=2, **settings)
        seen = []
        for epoch in range(4):
            run.train(epoch + 1, start=epoch)
            seen.append(dict(run.method.weights))
        return seen

    offline, online = found(), found(online=True)
    assert offline[0] == offline[1] == offline[2] == offline[3]
    assert online[0] == online[1] != online[2] == online[3]


def test_a_missing_modality_is_left_out():
    model = straight()
    method = GBlending(model.encoders, optimizer=sgd(model))
    method.weights = dict(zip(PARTS, (0.5, 0.25, 0.25), strict=True))
    output, target = as_double(model, next(iter(loaders()[0])))
    parts = {"features": {"a": output.features["a"]}, "unimodal": {"a": output.unimodal["a"]}}
    found = method.loss(evenly.Output(output.logits, fuse=output.fuse, **parts), target)
    ce = nn.functional.cross_entropy
    expected = 0.5 * ce(output.logits, target) + 0.25 * ce(output.unimodal["a"], target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("online", [False, True])
def test_a_trial_whose_batches_lack_a_modality(online):
    """As a forward pass that drops one in training makes them."""
    run = Run("g_blending", online=online)
    passes = []

    def dropping(model, batch):
        inputs, target, index = batch
        if model.training:
            passes.append(1)
            inputs = {name: x for name, x in inputs.items() if name != "a" or len(passes) % 3}
        return forward(model, (inputs, target, index))

    probe = evenly.Probe(run.model, dropping, run.train_loader, run.val_loader)
    run.method.before_epoch(0, probe)
    assert len(passes) == 2 * (2 if online else 1) * len(run.train_loader)
    assert sum(run.method.weights.values()) == pytest.approx(1)


class TestMessages:
    @pytest.mark.parametrize("setting", ["trial_epochs", "super_epoch"])
    def test_lengths(self, setting):
        with pytest.raises(
            ValueError, match=rf"GBlending: '{setting}' must be at least 1; found 0\."
        ):
            GBlending(net().encoders, optimizer=sgd(net()), **{setting: 0})

    def test_a_loss_before_any_trial(self):
        model = net(head="multi")
        method = GBlending(model.encoders, optimizer=sgd(model))
        with pytest.raises(RuntimeError, match=r"GBlending\.loss came before any trial"):
            method.loss(*forward(model, next(iter(loaders()[0]))))


def test_the_losses_of_a_modality_are_of_the_samples_that_have_it():
    run = Run("g_blending")
    here = torch.arange(36) % 3 > 0

    def seen(model, batch):
        inputs, target, index = batch
        return replace(model(inputs, index), present={"a": here[index]}), target

    found = run.seen_by(seen).method._means(run.probe, "val")
    looked = run.probe.features("val", lambda output, _: output.unimodal)
    for name, rows in (("a", here[:18]), ("aa", slice(None))):
        expected = nn.functional.cross_entropy(looked.features[name][rows], looked.target[rows])
        assert found[f"unimodal/{name}"] == pytest.approx(float(expected), rel=1e-5)
