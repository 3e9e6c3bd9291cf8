import math

import pytest
import torch
from torch import nn

import evenly
from evenly.methods import PDMP
from evenly.methods.pdmp import best_of, coefficients
from support import NAMES, Run, forward, loaders, net, same, sgd, weights


def test_formulas_by_hand():
    assert best_of({"a": 0.3, "b": 0.7, "c": 0.7}) == "b"
    assert coefficients("abc", "b", 1.5, 0.25) == {"a": 0.25, "b": 1.5, "c": 0.25}


def doubled(batch):
    inputs, target, index = batch
    return {name: x.double() for name, x in inputs.items()}, target, index


def slowly_ranked(model, train, val, epochs):
    """Accuracies of models of one modality each, trained one after the other."""
    ce, found = nn.functional.cross_entropy, {}
    before = weights(model)
    for name, encoder in model.encoders.items():
        head = model.head.heads[name]
        own = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(own, 0.05, momentum=0.9)
        model.train()
        for _ in range(epochs):
            for inputs, target, _ in train:
                ce(head(encoder(inputs[name].double())), target).backward()
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        split = val.dataset
        logits = head(encoder(split.inputs[name].double()))
        found[name] = float((logits.argmax(1) == split.target).double().mean())
        model.load_state_dict(before)
    return found


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[2:5]])
def test_golden_training(names, monkeypatch):
    """The ranking, with batches in the loader's own order, and then the steps."""
    model = net(names, head="multi").double()
    for encoder in model.encoders.values():
        encoder[3] = nn.Identity()  # dropout's draws differ from model to model
    monkeypatch.setattr(
        "evenly.loaders.shuffled",
        lambda loader, epochs, _: (batch for _ in range(epochs) for batch in loader),
    )
    train, val = loaders(names)
    slow = slowly_ranked(model, train, val, 3)
    dominant = max(slow, key=slow.get)
    assert min(slow.values()) < slow[dominant]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    method = PDMP(model.encoders, optimizer=optimizer, prioritised=1.75, rest=0.3, ranking_epochs=3)
    before = weights(model)
    probe = evenly.Probe(model, lambda m, batch: forward(m, doubled(batch)), train, val)
    method.before_epoch(0, probe)
    assert method.ranked == dominant
    for name, accuracy in slow.items():
        assert float(method.metrics[f"accuracy/{name}"]) == pytest.approx(accuracy)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())

    momentum = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    value = {key: p.detach().clone() for key, p in model.named_parameters()}
    for batch in train:
        output, target = forward(model, doubled(batch))
        plain = nn.functional.cross_entropy(output.logits, target)
        slopes = torch.autograd.grad(
            plain, list(model.parameters()), retain_graph=True, materialize_grads=True
        )
        loss = method.loss(output, target)
        assert torch.equal(loss, plain)
        method.backward(loss)
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
        for (key, p), slope in zip(model.named_parameters(), slopes, strict=True):
            place, name, *_ = key.split(".")
            factor = 1.0 if place == "head" else 1.75 if name == dominant else 0.3
            momentum[key] = 0.9 * momentum[key] + factor * slope
            value[key] = value[key] - 0.05 * momentum[key]
            torch.testing.assert_close(p.detach(), value[key], rtol=1e-8, atol=1e-10)


class TestTheRankingIsKnown:
    def test_nothing_is_trained(self):
        run = Run("pdmp", dominant="aa")
        run.method.before_epoch(0)  # without a probe
        run.probe = None
        run.train(1)
        assert run.method.ranked is None

    def test_it_is_as_if_it_had_been_found(self):
        found = Run("pdmp").train(2)
        given = Run("pdmp", dominant=found.method.ranked).train(2)
        assert same(found.model, given.model)
        other = Run("pdmp", dominant=next(n for n in NAMES[:2] if n != found.method.ranked))
        assert not same(found.model, other.train(2).model)

    def test_a_model_without_unimodal_logits_will_do(self):
        run = Run("pdmp", dominant="a")

        def without(model, batch):
            output, target = forward(model, batch)
            return evenly.Output(output.logits, output.features), target

        run.seen_by(without).train(1)


def test_the_ranking_is_made_once():
    run = Run("pdmp")
    run.method.ranked = "aa"
    run.method.before_epoch(0, run.probe)
    assert run.method.ranked == "aa"


def test_a_step_before_the_ranking():
    run = Run("pdmp")
    run.method.backward(run.method.loss(*forward(run.model, next(iter(run.train_loader)))))
    with pytest.raises(RuntimeError, match=r"PDMP\.before_step was called before .* were ranked"):
        run.method.before_step()


def test_one_modality_is_trained_jointly():
    run, joint = Run("pdmp", names=("a",)), Run("joint", names=("a",))
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prioritised": 0.9}, r"PDMP: 'prioritised' must be finite and at least 1; found 0\.9"),
        ({"prioritised": math.inf}, "PDMP: 'prioritised' must be finite and at least 1; found inf"),
        ({"rest": 1.1}, r"PDMP: 'rest' must be from 0 to 1; found 1\.1"),
        ({"dominant": "sound"}, r"PDMP: 'dominant' must be one of \['a', 'aa'\]; found 'sound'"),
        ({"ranking_epochs": 0}, "PDMP: 'ranking_epochs' must be at least 1; found 0"),
    ],
)
def test_messages(settings, text):
    model = net()
    with pytest.raises(ValueError, match=text):
        PDMP(model.encoders, optimizer=sgd(model), **settings)
