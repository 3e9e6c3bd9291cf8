import pytest
import torch
from torch import nn

import evenly
from evenly.methods import MILES
from evenly.methods.miles import factors, utilisation
from support import NAMES, Run, Toy, forward, loaders, net, same, sgd, weights


class TestFormulas:
    def test_utilisation_by_hand(self):
        assert utilisation(0.8, [0.6, 0.2]) == pytest.approx([0.75, 0.25])
        assert utilisation(0.5, [0.6, 0.8]) == pytest.approx([-0.6, -0.2])
        assert utilisation(0.8, [0.6, 0.2, 0.4]) == pytest.approx([0.625, 0.375, 0.5])
        assert utilisation(0.0, [0.6, 0.2]) == [0.0, 0.0]

    @pytest.mark.parametrize(
        ("rates", "expected"),
        [
            ((0.75, 0.25), [0.5, 1.0]),
            ((0.1, 0.25), [1.0, 1.0]),
            ((-0.1, 0.25), [1.0, 0.5]),
            ((-0.6, -0.2), [1.0, 1.0]),  # both negative
            ((-0.6, 0.0), [1.0, 0.5]),
            ((0.5, 0.25), [0.5, 1.0]),
            ((0.25, 0.0), [1.0, 1.0]),  # no more than the threshold
            ((0.75, 0.25, 0.0), [0.5, 1.0, 1.0]),
            ((0.75, 0.75, 0.0), [0.5, 0.5, 1.0]),
        ],
    )
    def test_factors_by_hand(self, rates, expected):
        threshold = 0.25 if rates == (0.25, 0.0) else 0.2
        assert factors(rates, threshold, 0.5) == expected


def right_by_hand(model, split):
    """Of the prediction and of each modality, one sample at a time."""
    model.eval()
    found = dict.fromkeys(["", *model.encoders], 0)
    for i in range(len(split)):
        output = model({name: x[i : i + 1] for name, x in split.inputs.items()})
        for name, z in {"": output.logits, **output.unimodal}.items():
            found[name] += int(z.argmax()) == int(split.target[i])
    return found


def factor_by_hand(right, names):
    """The paper's rule for two modalities, as one would write it."""
    first, second = names
    if right[""] == 0:
        return dict.fromkeys(names, 1.0)
    u = {first: 1 - right[second] / right[""], second: 1 - right[first] / right[""]}
    found = dict.fromkeys(names, 1.0)
    if not (u[first] < 0 and u[second] < 0) and abs(u[first] - u[second]) > 0.2:
        found[max(u, key=u.get)] = 0.5
    return found


def test_golden_epochs():
    """Two runs in float64: ours, and one whose optimiser has a group for each encoder."""
    names, seen = NAMES[:2], []
    ours, slow = (net(names, head="multi").double().eval() for _ in range(2))
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    groups = {name: list(encoder.parameters()) for name, encoder in slow.encoders.items()}
    groups["head"] = list(slow.head.parameters())
    plain = torch.optim.SGD([{"params": p} for p in groups.values()], 0.1, momentum=0.9)
    method = MILES(ours.encoders, optimizer=optimizer, unimodal=0.6)
    train, val = loaders(names)
    for split in (train.dataset, val.dataset):
        split.inputs = {name: x.double() for name, x in split.inputs.items()}
    probe = evenly.Probe(ours, forward, train, val)
    ce = nn.functional.cross_entropy
    for epoch in range(6):
        method.before_epoch(epoch, probe)
        factor = dict.fromkeys(names, 1.0)
        if epoch:
            factor = factor_by_hand(right_by_hand(slow, val.dataset), names)
            assert method.factor == factor
            seen.append(tuple(factor.values()))
        for group, name in zip(plain.param_groups, groups, strict=True):
            group["lr"] = 0.1 * factor.get(name, 1.0)
        for inputs, target, index in train:
            method.backward(method.loss(ours(inputs, index), target))
            method.before_step()
            output = slow(inputs, index)
            unimodal = sum(ce(z, target) for z in output.unimodal.values())
            (ce(output.logits, target) + 0.6 * unimodal).backward()
            for one in (optimizer, plain):
                one.step()
                one.zero_grad()
        for key, value in weights(slow).items():
            torch.testing.assert_close(weights(ours)[key], value, rtol=1e-8, atol=1e-10)
    assert len(set(seen)) > 1


def test_a_rate_that_was_lowered_is_raised_again():
    run = Run("miles")
    run.method.factor = {"a": 0.5, "aa": 1.0}
    run.method.threshold = 1e9
    run.method.before_epoch(1, run.probe)
    assert run.method.factor == {"a": 1.0, "aa": 1.0}


def test_once_for_an_epoch():
    """A run resumed within one keeps its factors."""
    run = Run("miles")
    run.method.before_epoch(1, run.probe)
    run.method.factor = {"a": 0.25, "aa": 1.0}
    run.method.before_epoch(1, run.probe)
    assert run.method.factor == {"a": 0.25, "aa": 1.0}


def test_a_sample_without_a_modality_is_not_right_by_it():
    """Of its logits, which are zeros, the largest is that of class 0."""
    run = Run("miles")

    def lacking(model, batch):
        output, target = forward(model, batch)
        here = torch.zeros(len(target), dtype=torch.bool)
        unimodal = {**output.unimodal, "a": 0 * output.unimodal["a"]}
        changed = {"unimodal": unimodal, "present": {"a": here}, "index": output.index}
        return evenly.Output(output.logits, output.features, **changed), target

    _, right, rows = run.seen_by(lacking).method._right(run.probe)
    assert right["a"] == 0
    assert rows == len(run.val_loader.dataset)


def test_a_batch_without_a_modality():
    """The looks' rows fit one another."""
    run = Run("miles")

    def lacking(model, batch):
        inputs, target, index = batch
        return forward(model, ({"aa": inputs["aa"]} if 0 in index else inputs, target, index))

    _, right, _ = run.seen_by(lacking).method._right(run.probe)
    split = Toy(len(run.val_loader.dataset), seed=2)
    for n, inputs in enumerate(split.inputs["a"].split(8)):
        if n:
            found = run.model.eval()({"a": inputs}).unimodal["a"].argmax(1)
            right["a"] -= float((found == split.target[8 * n : 8 * n + 8]).sum())
    assert right["a"] == 0


def test_one_modality_is_trained_jointly():
    run, joint = Run("miles", names=("a",)), Run("joint", names=("a",), head="multi")
    assert same(run.train(2).model, joint.train(2).model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threshold": -0.1}, r"MILES: 'threshold' must be finite and not negative; found -0\.1"),
        (
            {"unimodal": float("inf")},
            "MILES: 'unimodal' must be finite and not negative; found inf",
        ),
        ({"reduction": 0.0}, r"MILES: 'reduction' must be above 0 and at most 1; found 0\.0"),
        ({"reduction": 1.5}, r"MILES: 'reduction' must be above 0 and at most 1; found 1\.5"),
        ({"unimodal": 0.0}, "MILES: 'unimodal' is 0, so nothing trains .* or reduction=1 as well"),
    ],
)
def test_messages(settings, text):
    model = net()
    with pytest.raises(ValueError, match=text):
        MILES(model.encoders, optimizer=sgd(model), **settings)
