"""What every method keeps. A method that joins METHODS is tested here without a test of its own."""

import io

import pytest
import torch
from torch import nn

import evenly
from evenly import METHODS
from support import NAMES, Toy, forward, loaders, make, net, same, sgd, train, weights

everyone = pytest.mark.parametrize("name", METHODS)
changing = pytest.mark.parametrize(
    "name", [name for name, kind in METHODS.items() if kind.info.writes != "nothing"]
)


def trained(name, epochs=4, names=NAMES[:2], **settings):
    model = net(names)
    return train(model, make(name, model, **settings), sgd(model), epochs, names=names)


@everyone
def test_neutral_settings_equal_joint_training_bit_for_bit(name):
    assert same(trained(name, **METHODS[name].info.neutral), trained("joint"))


@changing
def test_it_does_something(name):
    assert not same(trained(name), trained("joint"))


@everyone
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_any_number_of_modalities(name, count):
    model = trained(name, epochs=3, names=NAMES[:count])
    assert all(value.isfinite().all() for value in weights(model).values())


@everyone
def test_a_run_repeats_itself(name):
    assert same(trained(name), trained(name))


@everyone
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_equals_uninterrupted(name, stop):
    """Through a file, read with weights_only, into objects built anew."""
    model = net()
    method, optimizer = make(name, model), sgd(model)
    train(model, method, optimizer, stop)
    file = io.BytesIO()
    parts = {"model": model, "method": method, "optimizer": optimizer}
    torch.save({key: part.state_dict() for key, part in parts.items()}, file)
    file.seek(0)

    fresh = net(seed=99)
    saved = torch.load(file, weights_only=True)
    parts = {"model": fresh, "method": make(name, fresh), "optimizer": sgd(fresh)}
    for key, part in parts.items():
        part.load_state_dict(saved[key])
    train(fresh, parts["method"], parts["optimizer"], 4, start=stop)
    assert same(fresh, trained(name))


@everyone
def test_global_random_stream_is_left_as_found(name):
    model = net()
    method = make(name, model)
    probe = evenly.Probe(model, forward, *loaders())
    batch = next(iter(loaders()[0]))
    for epoch in range(4):
        torch.manual_seed(5)
        method.before_epoch(epoch, probe)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))
        output, target = forward(model.eval(), batch)
        torch.manual_seed(5)
        method.backward(method.loss(output, target))
        method.before_step()
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))


@everyone
def test_batch_of_one(name):
    model = net().eval()  # BatchNorm has nothing to average
    method = make(name, model)
    method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
    output, target = forward(model, next(iter(torch.utils.data.DataLoader(Toy(3)))))
    method.backward(method.loss(output, target))
    method.before_step()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@everyone
def test_frozen_parameters_stay(name):
    model = net()
    for encoder in model.encoders.values():
        encoder[0].requires_grad_(False)
    before = weights(model.encoders["a"][0])
    train(model, make(name, model), sgd(model), 4)
    after = weights(model.encoders["a"][0])
    assert all(torch.equal(before[key], after[key]) for key in before)


@everyone
def test_accumulated_passes_equal_one(name):
    """Two passes for a step give the same gradients as one, to rounding."""

    def run(split):
        model = net().double().eval()
        method, optimizer = make(name, model), sgd(model)
        if name == "ogm_ge":
            method.noise = False  # scaled by the gradients' spread, which rounding moves
        batch = next(iter(torch.utils.data.DataLoader(Toy(24), 24)))
        method.before_epoch(0, evenly.Probe(model, as_double, *loaders()))
        inputs, target, index = batch
        for part in torch.arange(24).tensor_split(split):
            cut = {key: x[part] for key, x in inputs.items()}, target[part], index[part]
            output, labels = as_double(model, cut)
            method.backward(method.loss(output, labels) / split)
        method.before_step()
        optimizer.step()
        return model

    one, two = weights(run(1)), weights(run(2))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-9)


def as_double(model, batch):
    inputs, target, index = batch
    return model({key: x.double() for key, x in inputs.items()}, index), target


@everyone
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_optimisers(name, optimizer):
    model = net()
    train(model, make(name, model), optimizer(model.parameters(), lr=0.01), 3)
    assert all(value.isfinite().all() for value in weights(model).values())


@everyone
def test_bf16_autocast(name):
    model = net()
    method, optimizer = make(name, model), sgd(model)
    train_loader, val_loader = loaders()

    def cast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(model, batch)

    probe = evenly.Probe(model, cast, train_loader, val_loader)
    for epoch in range(3):
        method.before_epoch(epoch, probe)
        for batch in train_loader:
            method.backward(method.loss(*cast(model, batch)))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
    assert all(value.isfinite().all() for value in weights(model).values())


@changing
def test_refuses_an_encoder_without_trainable_parameters(name):
    encoders = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).requires_grad_(False)}
    with pytest.raises(ValueError, match="encoder 'b' has no trainable parameters"):
        METHODS[name](encoders)


@everyone
def test_refuses_shared_parameters(name):
    shared = nn.Linear(2, 2)
    encoders = {"a": nn.Sequential(shared), "b": nn.Sequential(shared, nn.Linear(2, 2))}
    with pytest.raises(ValueError, match="encoders 'a' and 'b' share parameters"):
        METHODS[name](encoders)


@everyone
def test_refuses_anothers_state(name):
    model = net()
    with pytest.raises(ValueError, match="saved by another method"):
        make(name, model).load_state_dict({"nobody's": 1})


@everyone
def test_info_is_complete(name):
    info = METHODS[name].info
    assert info.title
    if name != "joint":
        assert info.paper
        assert info.url.startswith("https://")
        assert 2015 < info.year < 2100
        assert info.neutral
