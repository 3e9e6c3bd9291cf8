import pytest
import torch

import evenly
from evenly.loaders import shuffled
from evenly.methods import Finetune
from support import forward, loaders, net, sgd, weights


def prepared(**settings):
    model = net(head="multi")
    optimizer = sgd(model)
    method = Finetune(model.encoders, optimizer=optimizer, **{"pretrain": 2, **settings})
    return model, optimizer, method, evenly.Probe(model, forward, *loaders())


def test_golden_pre_training():
    """The encoders after a loop by hand over the unimodal losses; all else as it was."""
    model, optimizer, method, probe = prepared(seed=4)
    before = weights(model.head)
    torch.manual_seed(8)
    method.before_epoch(0, probe)
    expected = net(head="multi")
    by_hand = sgd(expected)
    torch.manual_seed(4)
    for batch in shuffled(loaders()[0], epochs=2, seed=4):
        output, target = forward(expected, batch)
        by_hand.zero_grad()
        for logits in output.unimodal.values():
            torch.nn.functional.cross_entropy(logits, target).backward(retain_graph=True)
        by_hand.step()
    found = weights(model.encoders)
    for key, value in weights(expected.encoders).items():  # BatchNorm's statistics, too
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["a.5.weight"], net().encoders["a"][5].weight)
    assert all(torch.equal(before[key], value) for key, value in weights(model.head).items())
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())


def test_modalities_are_pre_trained_separately():
    """What one modality's samples look like does not touch the encoder of the other."""

    def encoder(noise):
        model, _, method, _ = prepared()
        for layers in model.encoders.values():
            layers[3] = torch.nn.Identity()
        train, val = loaders()
        train.dataset.inputs["aa"] = train.dataset.inputs["aa"] * noise
        method.before_epoch(0, evenly.Probe(model, forward, train, val))
        return weights(model.encoders["a"]), weights(model.encoders["aa"])

    (one, other), (same, changed) = encoder(1.0), encoder(3.0)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(other["5.weight"], changed["5.weight"])


def test_training_is_joint_training():
    model, _, method, probe = prepared()
    method.before_epoch(0, probe)
    output, target = forward(model, next(iter(loaders()[0])))
    loss = method.loss(output, target)
    assert torch.equal(loss, torch.nn.functional.cross_entropy(output.logits, target))
    method.backward(loss)
    assert not any(p.grad.any() for p in model.head.heads.parameters())


def test_some_modalities_only():
    model = net(head="multi")
    before = weights(model.encoders)
    method = Finetune({"aa": model.encoders["aa"]}, optimizer=sgd(model), pretrain=1)
    method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
    changed = {
        k for k, value in weights(model.encoders).items() if not torch.equal(before[k], value)
    }
    trained = {f"aa.{key}" for key, _ in model.encoders["aa"].named_parameters()}
    assert trained <= changed
    assert all(key.startswith("aa.") for key in changed)


def test_it_happens_once():
    """A loop that is resumed within the first epoch calls before_epoch for it again."""
    model, _, method, probe = prepared()
    method.before_epoch(0, probe)
    before = weights(model)
    fresh = Finetune(model.encoders, optimizer=sgd(model), pretrain=2)
    fresh.load_state_dict(method.state_dict())
    fresh.before_epoch(0, probe)
    fresh.before_epoch(1, probe)
    assert all(torch.equal(before[key], value) for key, value in weights(model).items())


def test_it_is_due_before_the_first_epoch():
    method = prepared()[2]
    assert [epoch for epoch in range(5) if method.is_due(epoch)] == [0]
    assert not prepared(pretrain=0)[2].is_due(0)


class TestMessages:
    def test_too_late(self):
        _, _, method, probe = prepared()
        with pytest.raises(RuntimeError, match=r"first epoch is 3, so it is too late to pre-train"):
            method.before_epoch(3, probe)

    def test_negative(self):
        with pytest.raises(ValueError, match="'pretrain' must be not negative; found -1"):
            prepared(pretrain=-1)
