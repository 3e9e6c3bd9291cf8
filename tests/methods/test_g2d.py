import math

import pytest
import torch
from torch import nn

import evenly
from evenly.methods.g2d import G2D, coefficients, divergence, leading
from support import (
    NAMES,
    Run,
    batch_of,
    forward,
    lacking,
    loaders,
    net,
    rows_of,
    samples,
    sgd,
    weights,
)


class TestFormulas:
    def test_divergence_by_hand(self):
        """T² Σ_c p'_c log(p'_c / p_c), with probabilities on both sides."""
        student = [[math.log(2), 0.0], [0.0, 0.0]]
        teacher = [[0.0, math.log(3)], [0.0, 0.0]]
        found = divergence(torch.tensor(student), torch.tensor(teacher), 1.0)
        one = 0.25 * math.log(0.25 / (2 / 3)) + 0.75 * math.log(0.75 / (1 / 3))
        assert float(found) == pytest.approx(one / 2)
        doubled = (
            [[2 * z for z in row] for row in student],
            [[2 * z for z in row] for row in teacher],
        )
        hot = divergence(*(torch.tensor(rows) for rows in doubled), 2.0)
        assert float(hot) == pytest.approx(4 * one / 2)

    def test_the_better_of_two_teachers_is_held_back(self):
        assert coefficients(torch.tensor([9.0, 4.0]), 1).tolist() == [0.0, 1.0]
        assert coefficients(torch.tensor([4.0, 9.0]), 1).tolist() == [1.0, 0.0]

    def test_in_a_tie_none_is(self):
        assert coefficients(torch.tensor([4.0, 4.0]), 1).tolist() == [1.0, 1.0]

    def test_three_join_from_the_weakest(self):
        score = torch.tensor([5.0, 2.0, 9.0])
        assert coefficients(score, 1).tolist() == [0.0, 1.0, 0.0]
        assert coefficients(score, 2).tolist() == [1.0, 1.0, 0.0]
        assert coefficients(score, 3).tolist() == [1.0, 1.0, 1.0]

    def test_one_leads_then_two_then_all(self):
        assert [leading(epoch, 4, 2) for epoch in range(6)] == [1, 1, 1, 1, 2, 2]
        assert [leading(epoch, 4, 3) for epoch in range(6)] == [1, 1, 2, 2, 3, 3]
        assert [leading(epoch, 0, 3) for epoch in range(2)] == [3, 3]
        assert leading(0, 4, 1) == 1


def known(model, count=24, **settings):
    """A method whose teachers are known: that of the first modality is sure and right."""
    stream = torch.Generator().manual_seed(7)
    method = G2D(model.encoders, optimizer=sgd(model), **settings)
    target = torch.arange(count) % 3
    for n, name in enumerate(model.encoders):
        sure = nn.functional.one_hot(target, 3).double() * (3.0 - n)
        noise = torch.randn(count, 3, generator=stream, dtype=torch.float64)
        method.teachers[f"logits/{name}"] = sure + 0.1 * noise
        method.teachers[f"features/{name}"] = torch.randn(
            count, 6, generator=stream, dtype=torch.float64
        )
    method.samples = samples(count)
    method.before_epoch(0)
    return method


def seeded(model):
    torch.manual_seed(0)  # dropout
    return batch_of(model)


def test_golden_step():
    """The loss sample by sample; then weights of the better teacher's encoder get nothing."""
    model = net(head="late").double()
    method = known(model, feature_weight=0.5, logit_weight=2.0, temperature=3.0)
    method.epoch = 0
    output, target = seeded(model)
    expected = 0.0
    for i, row in enumerate(output.index.tolist()):
        expected += -output.logits[i].log_softmax(0)[target[i]] / 24
        ours = (output.logits[i] / 3.0).softmax(0)
        for name, features in output.features.items():
            theirs = (method.teachers[f"logits/{name}"][row] / 3.0).softmax(0)
            for c in range(3):
                expected += 2.0 * 9.0 * theirs[c] * torch.log(theirs[c] / ours[c]) / 24
            for column in range(6):
                teacher = method.teachers[f"features/{name}"][row, column]
                expected += 0.5 * (features[i, column] - teacher) ** 2 / 24 / 6
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
    loss = method.loss(output, target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    method.backward(loss)
    method.before_step()
    for name, parameter, gradient in zip(names, parameters, wanted, strict=True):
        held = name.startswith("encoders.a.") and parameter.ndim > 1
        torch.testing.assert_close(
            parameter.grad, gradient * (0 if held else 1), rtol=1e-10, atol=1e-12
        )
    assert {key: float(k) for key, k in method.metrics.items()} == {
        "coefficient/a": 0.0,
        "coefficient/aa": 1.0,
    }


def held_back(method, model, epoch, names):
    method.epoch = epoch
    output, target = seeded(model)
    model.zero_grad()
    method.backward(method.loss(output, target))
    method.before_step()
    return [not encoder[5].weight.grad.any() for encoder in model.encoders.values()]


def test_three_modalities_are_let_in_one_after_the_other():
    names = NAMES[:3]
    model = net(names, head="late").double()
    method = known(model, prioritise=4)
    found = [held_back(method, model, epoch, names) for epoch in range(5)]
    assert found == [[True, True, False]] * 2 + [[True, False, False]] * 2 + [[False] * 3]


def test_the_teachers_decide_not_the_student():
    """The student of 'a' is blind, its teacher the better one: 'a' is held back all the same."""
    model = net(head="late").double()
    nn.init.zeros_(model.head.heads["a"].weight)
    method = known(model, prioritise=1)
    method.epoch = 0
    output, target = seeded(model)
    method.backward(method.loss(output, target))
    method.before_step()
    assert float(method.metrics["coefficient/a"]) == 0.0


def test_scores_are_those_of_all_passes_of_a_step():
    """The first pass alone would hold 'a' back; the step as a whole, 'aa'."""
    model = net(head="late").double().eval()
    method = known(model, prioritise=1)
    method.epoch = 0
    target = torch.arange(24) % 3
    right = nn.functional.one_hot(target, 3).double() * 8.0
    method.teachers["logits/a"] = torch.where(torch.arange(24).unsqueeze(1) < 4, right, -right)
    method.teachers["logits/aa"] = -method.teachers["logits/a"]
    inputs, target, index = next(
        iter(torch.utils.data.DataLoader(loaders(count=24)[0].dataset, 24))
    )
    doubled = {name: x.double() for name, x in inputs.items()}
    for rows in (slice(0, 4), slice(4, 24)):
        batch = {name: x[rows] for name, x in doubled.items()}, target[rows], index[rows]
        method.backward(method.loss(*forward(model, batch)))
    method.before_step()
    assert [float(k) for k in method.metrics.values()] == [1.0, 0.0]


def test_a_validation_that_asks_for_the_loss_does_not_count():
    model = net(head="late").double()
    method = known(model)
    method.epoch = 0
    output, target = seeded(model)
    with torch.no_grad():
        assert torch.equal(
            method.loss(output, target),
            nn.functional.cross_entropy(output.logits, target).detach(),
        )
    with pytest.raises(RuntimeError, match=r"without a call of G2D\.loss"):
        method.before_step()


def test_scores_of_an_unfinished_step_do_not_count():
    run = Run("g2d")
    for epoch in range(2):
        run.method.before_epoch(epoch, run.probe)
        if epoch == 0:
            run.method.loss(*forward(run.model, next(iter(run.train_loader))))
    with pytest.raises(RuntimeError, match=r"without a call of G2D\.loss"):
        run.method.before_step()


def test_a_missing_modality_is_not_distilled():
    model = net(head="late").double()
    method = known(model, prioritise=0)
    output, target = seeded(model)
    parts = {"features": {"a": output.features["a"]}, "unimodal": {"a": output.unimodal["a"]}}
    found = method.loss(evenly.Output(output.logits, **parts, index=output.index), target)
    teachers = [method.teachers[f"{kind}/a"][output.index] for kind in ("logits", "features")]
    expected = (
        nn.functional.cross_entropy(output.logits, target)
        + divergence(output.logits, teachers[0], 1.0)
        + (output.features["a"] - teachers[1]).square().mean()
    )
    torch.testing.assert_close(found, expected)


def test_the_tables_hold_features_and_logits_of_the_teachers():
    run = Run("g2d")
    run.method.before_epoch(0, run.probe)
    assert {key: tuple(table.shape) for key, table in run.method.teachers.items()} == {
        "features/a": (36, 6),
        "features/aa": (36, 6),
        "logits/a": (36, 3),
        "logits/aa": (36, 3),
    }


def test_an_encoder_held_back_keeps_its_weights():
    """Of two or more dimensions, without weight decay; biases and norms go on."""
    run = Run("g2d", optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05))
    before = weights(run.model)
    run.train(1)
    held = [name for name, k in run.method.metrics.items() if float(k) == 0]
    assert len(held) == 1
    name = held[0].removeprefix("coefficient/")
    after = weights(run.model)
    assert torch.equal(before[f"encoders.{name}.5.weight"], after[f"encoders.{name}.5.weight"])
    assert not torch.equal(before[f"encoders.{name}.5.bias"], after[f"encoders.{name}.5.bias"])
    other = {"a": "aa", "aa": "a"}[name]
    assert not torch.equal(
        before[f"encoders.{other}.5.weight"], after[f"encoders.{other}.5.weight"]
    )


def test_prioritisation_alone_needs_teachers_too():
    def needs(count, **settings):
        model = net(NAMES[:count], head="late")
        return G2D(model.encoders, optimizer=sgd(model), **settings).needs_teachers

    nothing = {"feature_weight": 0.0, "logit_weight": 0.0}
    assert needs(2, **nothing)
    assert not needs(1, **nothing)
    assert not needs(2, **nothing, prioritise=0)
    assert needs(1)


class TestMessages:
    @pytest.mark.parametrize(
        ("setting", "value", "text"),
        [
            (
                "feature_weight",
                -1.0,
                r"'feature_weight' must be finite and not negative; found -1\.0\.",
            ),
            (
                "logit_weight",
                math.inf,
                r"'logit_weight' must be finite and not negative; found inf\.",
            ),
            ("temperature", 0.0, r"'temperature' must be finite and above 0; found 0\.0\."),
            ("prioritise", -1, r"'prioritise' must be not negative; found -1\."),
            ("teacher_epochs", 0, r"'teacher_epochs' must be at least 1; found 0\."),
        ],
    )
    def test_settings(self, setting, value, text):
        with pytest.raises(ValueError, match=rf"G2D: {text}"):
            G2D(net().encoders, optimizer=sgd(net()), **{setting: value})


def test_teachers_of_what_a_sample_lacks_neither_teach_nor_count():
    model, here = net(head="late").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = known(model)
    loss = method.loss(output, target)
    score = method._score.take(method)
    for table in ("logits/a", "features/a"):
        method.teachers[table][output.index[~here]] = 100.0
    torch.testing.assert_close(method.loss(output, target), loss, rtol=0, atol=0)
    method._score.clear()
    method.loss(*rows_of(output, target, here))
    torch.testing.assert_close(method._score.take(method), score)
