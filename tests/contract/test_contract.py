"""What every method keeps. A method that joins METHODS is tested here without a test of its own.

A test that does not concern a method is not made for it: the reason is in its `Info`.
"""

import inspect
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

import evenly
import evenly.lab.run.build
import evenly.nn
from evenly import METHODS, chance
from evenly.lab.run.build import settings_of
from support import (
    CASES,
    EXACT,
    NAMES,
    SETTINGS,
    Run,
    Toy,
    each,
    equal,
    forward,
    info,
    loaded,
    loaders,
    make,
    net,
    parts,
    uninterrupted,
    weights,
)


def cases(holds=lambda info: True):
    return pytest.mark.parametrize("case", each(case for case in CASES if holds(info(case))))


def is_uninterrupted(run, case, epochs=4):
    """Whether a run of so many epochs ended as the training without a break, bit for bit."""
    return equal(weights(run.model), uninterrupted(case).weights[epochs])


def is_finite(run):
    return all(value.isfinite().all() for value in weights(run.model).values())


def has_neutral(info):
    return not isinstance(info.neutral, str)


@cases(has_neutral)
def test_neutral_settings_equal_joint_training_bit_for_bit(case):
    neutral = Run(case, **info(case).neutral).train(4)
    assert equal(weights(neutral.model), uninterrupted("joint", info(case).head).weights[4])


@cases(lambda info: info.writes != "nothing")
def test_it_does_something(case):
    joint = uninterrupted("joint", info(case).head)
    assert not equal(uninterrupted(case).weights[4], joint.weights[4])


@cases()
@pytest.mark.parametrize("count", [1, 6])  # tests of what is missing have three, all others two
def test_any_number_of_modalities(case, count):
    assert is_finite(Run(case, NAMES[:count]).train(3))


class NoNumbers(TorchFunctionMode):
    """Refuses what makes a tensor of Python's numbers: on a GPU, a copy that is waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        return func(*args, **(kwargs or {}))


class WithoutWaiting(Run):
    """A training whose steps make no tensors of Python's numbers."""

    def step(self, *args):
        with NoNumbers():
            super().step(*args)


@cases()
def test_a_run_repeats_itself_and_no_step_copies_numbers_to_the_device(case):
    """And leaves finite weights, as NaN equals nothing."""
    assert is_uninterrupted(WithoutWaiting(case).train(4), case)


@cases()
def test_resumed_after_each_epoch_equals_uninterrupted(case):
    whole = uninterrupted(case)
    file = whole.files[1]
    for epoch in range(1, 4):
        run = loaded(case, file)
        metrics = run.method.metrics, whole.metrics[epoch]  # the next look may be epochs away
        torch.testing.assert_close(*metrics, rtol=0, atol=0, equal_nan=True)
        run.train(epoch + 1, start=epoch)
        assert is_uninterrupted(run, case, epochs=epoch + 1)
        file = run.saved()


@cases()
@pytest.mark.parametrize("begin", [True, False])
def test_resumed_within_each_epoch_equals_uninterrupted(case, begin):
    """Whether or not the loop calls `before_epoch` again for an epoch that had begun."""
    run = Run(case)
    for epoch in range(3):
        run = run.train(epoch + 1, start=epoch, stop=3).reloaded(case)
        run.train(epoch + 1, start=epoch, skip=3, begin=begin)
    assert is_uninterrupted(run, case, epochs=3)


@cases()
def test_a_state_is_a_snapshot(case):
    """Neither what it is taken from nor what it is loaded into changes it."""
    whole = uninterrupted(case)
    file = whole.files[2]
    file.seek(0)
    run = Run(case, seed=99).load({**torch.load(file, weights_only=True), "method": whole.state})
    assert is_uninterrupted(run.train(4, start=2), case)
    found, form = tree_flatten(whole.state)
    expected, form_before = tree_flatten(whole.snapshot)
    assert form == form_before
    for value, before in zip(found, expected, strict=True):
        if isinstance(before, torch.Tensor):
            torch.testing.assert_close(value, before, rtol=0, atol=0, equal_nan=True)
        else:
            assert value == before


@cases()
def test_global_random_stream_is_left_as_found(case):
    run = Run(case)
    batch = next(iter(run.train_loader))
    for epoch in range(4):
        torch.manual_seed(5)
        run.method.before_epoch(epoch, run.probe)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))
        output, target = forward(run.model.eval(), batch)
        torch.manual_seed(5)
        run.method.backward(run.method.loss(output, target))
        run.method.before_step()
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))


class Looking(Run):
    """A training that asks for the loss before each step, as a validation does."""

    def step(self, batch, *args):
        with torch.no_grad():
            self.method.loss(*forward(self.model.eval(), batch))
        self.model.train()
        super().step(batch, *args)


@cases()
def test_a_validation_that_asks_for_the_loss_leaves_no_trace(case):
    assert is_uninterrupted(Looking(case).train(2), case, epochs=2)


@cases()
def test_batch_of_one(case):
    run = Run(case)
    run.model.eval()  # BatchNorm has nothing to average
    for epoch in range(3):
        run.method.before_epoch(epoch, run.probe)
        for batch in torch.utils.data.DataLoader(Toy(3)):
            for _ in range(run.method.repeats):
                run.step(batch)
    assert is_finite(run)


@cases()
def test_frozen_parameters_stay_and_gradients_may_be_clipped(case):
    run = Run(case)
    frozen = [encoder[0].requires_grad_(False) for encoder in run.model.encoders.values()]
    before = [weights(layer) for layer in frozen]
    assert is_finite(run.train(3, clip=1e-3))
    assert all(map(equal, before, map(weights, frozen)))


@cases(lambda info: not (info.within_batch or info.by_pass))
def test_accumulated_passes_equal_one(case):
    """Two passes for a step give the same weights as one, to rounding."""

    def go(split):
        run = Run(case, **EXACT.get(case, {}))
        run.model.double().eval()
        for epoch in range(3):
            probe = evenly.Probe(run.model, as_double, run.train_loader, run.val_loader)
            run.method.before_epoch(epoch, probe)
            inputs, target, index = next(iter(torch.utils.data.DataLoader(Toy(24), 24)))
            doubled = {name: x.double() for name, x in inputs.items()}
            run.step((doubled, target, index), split=split)
        return weights(run.model)

    one, two = go(1), go(2)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-9)


def as_double(model, batch):
    inputs, target, index = batch
    return model({key: x.double() for key, x in inputs.items()}, index), target


@cases()
def test_a_scaled_loss_changes_nothing(case):
    """As gradient scaling (AMP in float16) does: scaled before the backward, unscaled after."""
    scaled = weights(Run(case).train(3, scale=1024).model)
    for key, value in uninterrupted(case).weights[3].items():
        torch.testing.assert_close(scaled[key], value, rtol=1e-4, atol=1e-5)


@cases()
@pytest.mark.parametrize(
    ("optimizer", "length"),
    [
        (torch.optim.SGD, {"epochs": 1, "stop": 1}),
        (torch.optim.AdamW, {"epochs": 1, "stop": 1}),
        (torch.optim.RMSprop, {"epochs": 3}),
    ],
)
def test_optimisers(case, optimizer, length):
    """Those that divide out what a method does are told once, by the first step."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        run = Run(case, optimizer=lambda model: optimizer(model.parameters(), lr=0.01))
        run.train(**length)
    assert is_finite(run)
    said = [str(w.message) for w in heard if "acts by the size of gradients" in str(w.message)]
    telling = [one for one in case.split("+") if info(one).scales_gradients]
    assert len(said) == len(telling) * (optimizer is not torch.optim.SGD)


@cases(lambda info: info.missing)
@pytest.mark.parametrize("count", [2, 3])
def test_a_modality_missing_from_a_batch(case, count):
    assert is_finite(Run(case, NAMES[:count]).train(3, lacking="a"))


@cases()
def test_samples_that_lack_a_modality(case):
    """Some samples of each batch, and all of a few; also of the splits that are looked at."""

    def seen(model, batch):
        inputs, target, index = batch
        here = {name: chance.uniform(index, n) > 0.3 for n, name in enumerate(inputs)}
        here["a"] &= index.sum() % 3 != 0
        here["aa"] |= ~torch.stack(list(here.values())).any(0)
        return replace(evenly.nn.LateFusion.forward(model, inputs, here), index=index), target

    for count in (2,) if info(case).missing else (2, 3):  # the others have three in test_lacking
        assert is_finite(Run(case, NAMES[:count]).seen_by(seen).train(3))


@cases(lambda info: info.keeps_loss)
def test_a_loss_that_is_kept_is_joint_trainings(case):
    run = Run(case)
    run.model.eval()
    run.method.before_epoch(0, run.probe)
    batch = next(iter(run.train_loader))
    found = []
    for method in (run.method, evenly.Method()):
        run.model.zero_grad()
        loss = method.loss(*forward(run.model, batch))
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in run.model.encoders.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@cases(lambda info: info.multiplies)
def test_gradients_that_are_multiplied_keep_their_direction(case):
    run = Run(case).train(3)
    run.method.before_epoch(3, run.probe)
    run.method.backward(run.method.loss(*forward(run.model, next(iter(run.train_loader)))))
    before = {name: p.grad.clone() for name, p in run.model.encoders.named_parameters()}
    run.method.before_step()
    for name, p in run.model.encoders.named_parameters():
        old, new = before[name].flatten(), p.grad.flatten()
        torch.testing.assert_close(new * old.norm(), old * new.norm() * (old @ new).sign())


@cases(lambda info: info.needs != ())
def test_refuses_a_model_that_lacks_what_it_needs(case):
    """In the first loss, so before any step; the text says what to pass."""
    for part in info(case).needs:
        run = Run(case)
        run.method.before_epoch(0, run.probe)
        output, target = forward(run.model, next(iter(run.train_loader)))
        object.__setattr__(output, part, None)
        with pytest.raises(ValueError, match=rf"needs `Output\.{part}`; found None\. "):
            run.method.loss(output, target)


@cases(lambda info: info.needs_probe)
def test_refuses_a_loop_without_a_probe(case):
    run = Run(case)
    run.probe = None
    with pytest.raises(ValueError, match="found no probe"):
        run.train(4)


@cases(lambda info: info.writes == "nothing")
def test_a_frozen_encoder_takes_part(case):
    run = Run(case)
    frozen = run.model.encoders["a"].requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]
    run.train(2)
    assert all(map(torch.equal, before, frozen.parameters()))


@cases(lambda info: info.writes != "nothing")
def test_refuses_an_encoder_without_trainable_parameters(case):
    model = net(head=info(case).head)
    model.encoders["aa"].requires_grad_(False)
    with pytest.raises(ValueError, match="encoder 'aa' has no trainable parameters"):
        make(case, model)


@cases()
def test_refuses_shared_parameters(case):
    model = net(head=info(case).head)
    model.encoders["aa"][0] = model.encoders["a"][0]
    with pytest.raises(ValueError, match="encoders 'a' and 'aa' share parameters"):
        make(case, model)


@cases()
def test_refuses_anothers_state(case):
    with pytest.raises(ValueError, match="saved by another method"):
        make(case, net(head=info(case).head)).load_state_dict({"nobody's": 1})


@pytest.mark.parametrize("name", METHODS)
def test_info_is_complete(name):
    info = METHODS[name].info
    assert info.title
    assert info.head in evenly.nn.HEADS
    assert info.budget >= 1
    if name != "joint":
        assert info.paper
        assert info.url.startswith("https://")
        assert 2015 < info.year < 2100
        assert info.neutral
    if isinstance(info.neutral, str):
        assert len(info.neutral.split()) > 3, "a reason, in words"
        assert not info.neutral.startswith("none"), "who shows it says that there are none"
    if not info.sharded:
        assert "FSDP2" in info.doubts, "a reason, in words"


@pytest.mark.parametrize(
    ("name", "count", "settings"),
    [
        ("multi_loss", 2, {"weight": 0.0}),
        ("mlb", 2, {"alpha": 0.0, "weight": 0.0}),
        ("miles", 2, {"unimodal": 0.0, "reduction": 1.0}),
        ("pggb", 2, {"unimodal": 0.0}),
        ("mcr", 2, {"bottleneck": 0.0}),
        ("umt", 2, {"gamma": 0.0}),
        ("finetune", 2, {"pretrain": 0}),
        *((name, 1, {}) for name in ("miles", "pggb", "midas", "balm")),
    ],
)
def test_a_method_is_partial_under_settings_that_leave_out_a_part_of_its_head(
    name, count, settings
):
    head = METHODS[name].info.head
    model = net(NAMES[:count], head=head)
    method = make(name, model, **settings)
    method.loss(*forward(model, next(iter(loaders(NAMES[:count])[0])))).backward()
    assert method.info.partial
    assert any(p.grad is None for p in model.parameters())
    assert not make(name, net(head=head)).info.partial


# Epochs that are trained before the first step, of which one will do.
BEFOREHAND = {"alone_epochs", "pretrain", "ranking_epochs", "teacher_epochs", "trial_epochs"}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "unimodal"])
def test_a_step_leaves_a_parameter_without_a_gradient_only_if_it_says_so(name):
    """Under any setting that turns something off, and with a single modality."""
    kind = METHODS[name]
    short = dict.fromkeys(BEFOREHAND & SETTINGS[name].keys(), 1)
    off = [{}] if isinstance(kind.info.neutral, str) else [{}, kind.info.neutral]
    for key in settings_of(kind):
        default = inspect.signature(kind).parameters[key].default
        if isinstance(default, bool):
            off.append({key: not default})
        elif isinstance(default, float):
            off.append({key: 0.0})
    for count, settings in itertools.product((1, 2), off):
        try:
            given = short | settings
            run = Run(name, NAMES[:count], head=kind.info.head, count=16, **given)
        except ValueError:  # nothing can be off there
            continue
        run.method.before_epoch(0, run.probe)
        run.method.backward(run.method.loss(*forward(run.model, next(iter(run.train_loader)))))
        idle = [key for key, p in run.model.named_parameters() if p.grad is None]
        assert run.method.info.partial or not idle, (count, settings, idle)


@pytest.mark.parametrize("name", ["amco", "aug", "balm", "di_mml", "mcr", "rolling_q"])
def test_who_calls_a_method_of_the_head_tells_that_it_may_not_be_sharded_alone(name):
    assert "FSDP2 must shard the head together" in METHODS[name].info.doubts


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_documented(name):
    text = METHODS[name].__init__.__doc__
    for setting in evenly.lab.run.build.settings_of(METHODS[name]):
        assert f"{setting}: " in text, setting


@cases()
def test_its_text_shows_encoders_and_settings(case):
    text = repr(make(case, net(head=info(case).head)))
    for one in case.split("+"):
        name, given = parts(one)
        assert f"{METHODS[name].__name__}(encoders=['a'" in text
        assert all(f", {setting}=" in text for setting in settings_of(METHODS[name]))
        assert all(f", {setting}={value!r}" in text for setting, value in given.items())
