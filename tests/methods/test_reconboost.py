import pytest
import torch
from torch import nn

import evenly
from evenly.methods.reconboost import ReconBoost, agreement_loss, boosting_loss
from evenly.nn import LateFusion
from evenly.nn.heads import BoostedHead
from support import Run, lacking, make, net, same, sgd, weights

NAMES = ("a", "aa", "b")


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestFormulas:
    def test_boosting_by_loops(self):
        torch.manual_seed(0)
        z, others = torch.randn(2, 4, 3, dtype=torch.float64)
        target = torch.tensor([0, 2, 1, 2])
        p, q = z.softmax(1), others.softmax(1)
        expected = 0.0
        for i in range(4):
            for c in range(3):
                y = float(c == target[i])
                expected += (-5.0 * y * p[i, c].log() + 2.0 * y * q[i, c] * p[i, c].log()) / 12
        found = boosting_loss(z, others, target, 5.0, 2.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    def test_what_the_others_know_is_asked_for_less(self):
        z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        target = torch.tensor([0])
        pulls = []
        for known in (-9.0, 0.0, 9.0):
            loss = boosting_loss(z, double([known, 0.0]), target, 1.0, 1.0)
            pulls.append(torch.autograd.grad(loss, z)[0].abs().max().item())
        assert pulls[0] > pulls[1] > pulls[2]
        assert pulls[1] == pytest.approx(0.5 * 0.5 / 2)

    def test_agreement_by_hand(self):
        found = agreement_loss(double([1.0, 0.0]).log(), double([0.25, 0.75]).log())
        assert float(found) == pytest.approx(0.75**2)

    def test_agreement_has_a_gradient_towards_the_previous_learner_only(self):
        """The released code's has none at all."""
        z = double([0.0, 0.0]).requires_grad_()
        previous = double([1.0, 0.0]).requires_grad_()
        agreement_loss(z, previous).backward()
        assert z.grad[0, 0] < 0 < z.grad[0, 1]
        assert previous.grad is None


class TestHead:
    def test_by_hand(self):
        head = BoostedHead({"a": 2, "b": 2}, 2)
        with torch.no_grad():
            for layer, weight in ((0, [[1.0, -1.0]]), (2, [[2.0], [3.0]])):
                head.network[layer].weight.copy_(torch.tensor(weight))
                head.network[layer].bias.fill_(1.0)
            head.boost_rate.fill_(0.5)
        x = {"a": torch.tensor([[2.0, 1.0]]), "b": torch.tensor([[0.0, 5.0]])}
        logits, own = head(x)
        assert own["a"].tolist() == [[5.0, 7.0]]  # hidden 2
        assert own["b"].tolist() == [[1.0, 1.0]]  # hidden -4, so 0
        assert logits.tolist() == [[3.0, 4.0]]
        assert head({"a": x["a"]})[0].tolist() == [[2.5, 3.5]]

    def test_its_size_is_the_papers(self):
        head = BoostedHead({"a": 512, "b": 512}, 6)
        assert [tuple(p.shape) for p in head.network.parameters()] == [
            (256, 512),
            (256,),
            (6, 256),
            (6,),
        ]
        assert head.boost_rate.tolist() == [1.0]

    def test_it_needs_one_width(self):
        with pytest.raises(ValueError, match=r"features need one width; found \{'a': 2, 'b': 1\}"):
            BoostedHead({"a": 2, "b": 1}, 2)


def tiny(names=NAMES, **settings):
    torch.manual_seed(2)
    encoders = {name: nn.Linear(2 + n, 4) for n, name in enumerate(names)}
    for encoder in encoders.values():
        encoder.out_features = 4
    model = LateFusion(encoders, 3, "boosted").double()
    with torch.no_grad():
        model.head.boost_rate.fill_(1.5)
    inputs = {name: torch.randn(6, 2 + n).double() for n, name in enumerate(names)}
    target = torch.tensor([0, 1, 2, 1, 0, 2])
    method = ReconBoost(model.encoders, optimizer=sgd(model), head=model.head, **settings)
    return model, inputs, target, method


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_golden_steps_of_a_stage(stage):
    """Of three modalities the others' sum is J, and the one before is agreed with."""
    model, inputs, target, method = tiny(alternation=2, rectification=1)
    method.before_epoch(3 * stage)
    name, previous = NAMES[stage % 3], NAMES[(stage - 1) % 3]
    assert method.trained == name
    z = {key: model.head.network(model.encoders[key](x)) for key, x in inputs.items()}
    joint = 1.5 * sum(value for key, value in z.items() if key != name).detach()
    log_p, true = z[name].log_softmax(1), (range(6), target)
    expected = (-5 * log_p[true] + joint.softmax(1)[true] * log_p[true]).mean() / 3
    if stage > 0:
        gap = z[name].softmax(1) - z[previous].detach().softmax(1)
        expected = expected + 0.5 * gap.square().mean()
    mine = [*model.encoders[name].parameters(), *model.head.network.parameters()]
    slopes = torch.autograd.grad(expected, mine)
    loss = method.loss(model(inputs), target)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    method.backward(loss)
    method.before_step()
    for parameter, slope in zip(mine, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-10, atol=1e-12)
    others = [p for key in NAMES if key != name for p in model.encoders[key].parameters()]
    assert all(p.grad is None for p in (*others, model.head.boost_rate))
    assert ("agreement/" + name in method.metrics) == (stage > 0)


def test_the_agreement_of_a_step_has_a_gradient():
    def slope(agreement):
        model, inputs, target, method = tiny(
            alternation=1, rectification=0, fit=0.0, reconcilement=0.0, agreement=agreement
        )
        method.before_epoch(1)
        method.backward(method.loss(model(inputs), target))
        return model.encoders["aa"].weight.grad

    assert float(slope(0.5).abs().max()) > 1e-6
    assert float(slope(0.0).abs().max()) == 0


def test_golden_step_of_rectification():
    """CE(rate · Σ z_m) trains all, the rate too."""
    model, inputs, target, method = tiny(alternation=2, rectification=1)
    method.before_epoch(2)
    assert method.trained is None
    z = sum(model.head.network(model.encoders[key](x)) for key, x in inputs.items())
    expected = nn.functional.cross_entropy(model.head.boost_rate * z, target)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    method.backward(method.loss(model(inputs), target))
    method.before_step()
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-10, atol=1e-12)
    assert float(model.head.boost_rate.grad.abs()) > 1e-4


def test_stages_go_round():
    _, _, _, method = tiny(alternation=2, rectification=1)
    found = []
    for epoch in range(12):
        method.before_epoch(epoch)
        found.append(method.trained)
    assert found == ["a", "a", None, "aa", "aa", None, "b", "b", None, "a", "a", None]


def test_each_phase_starts_with_a_fresh_optimiser():
    """The state is not carried from one phase to the next, as one optimiser's would be."""
    model, _, _, method = tiny(alternation=2, rectification=1)
    cleared = []
    for epoch in range(6):
        for parameter in model.parameters():
            method.optimizer.state[parameter]["momentum_buffer"] = torch.ones(1)
        method.before_epoch(epoch)
        cleared.append(not method.optimizer.state)
    assert cleared == [True, False, True, True, False, True]
    method.optimizer.state[next(model.parameters())]["momentum_buffer"] = torch.ones(1)
    fresh = ReconBoost(
        model.encoders, optimizer=method.optimizer, head=model.head, alternation=2, rectification=1
    )
    fresh.load_state_dict(method.state_dict())
    fresh.before_epoch(5)  # resumed within the epoch: its phase has begun
    assert method.optimizer.state


def test_neither_momentum_nor_decay_moves_what_is_not_trained():
    run = Run("reconboost", names=NAMES).train(2)  # one phase of 'a', then one of all
    before = weights(run.model)
    run.train(3, start=2)
    after = weights(run.model)
    kept = {"encoders.a.", "encoders.b.", "head.boost_rate"}
    for name, _ in run.model.named_parameters():
        assert torch.equal(before[name], after[name]) == any(map(name.startswith, kept)), name


def test_a_loop_that_only_zeroes_gradients_moves_nothing_either():
    run = Run("reconboost")
    zero = run.optimizer.zero_grad
    run.optimizer.zero_grad = lambda: zero(set_to_none=False)
    run.method.before_epoch(0, run.probe)
    before = weights(run.model)
    for batch in run.train_loader:
        run.step(batch)
    assert torch.equal(weights(run.model)["head.boost_rate"], before["head.boost_rate"])
    assert torch.equal(weights(run.model)["encoders.aa.5.weight"], before["encoders.aa.5.weight"])


def test_without_rectification_stages_follow_one_another():
    _, _, _, method = tiny(alternation=1, rectification=0)
    found = []
    for epoch in range(4):
        method.before_epoch(epoch)
        found.append(method.trained)
    assert found == ["a", "aa", "b", "a"]


def test_one_modality_has_uniform_others_and_agrees_with_nobody():
    model, inputs, target, method = tiny(names=("a",), alternation=1, rectification=1)
    method.before_epoch(2)
    loss = method.loss(model(inputs), target)
    log_p = model(inputs).unimodal["a"].log_softmax(1)[range(6), target]
    torch.testing.assert_close(loss, (-5 + 1 / 3) * log_p.mean() / 3, rtol=1e-10, atol=0)
    assert list(method.metrics) == ["boosting/a"]


def test_a_batch_without_the_modality_in_training_teaches_nothing():
    model, inputs, target, method = tiny()
    method.before_epoch(0)
    loss = method.loss(model({"aa": inputs["aa"]}), target)
    method.backward(loss)
    assert loss.item() == 0


def test_neutral_settings_leave_the_optimiser_alone():
    run = Run("reconboost", alternation=0)
    plain = Run("joint", head="boosted")
    assert same(run.train(3).model, plain.train(3).model)


class TestMessages:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("alternation", -1),
            ("rectification", -1),
            ("fit", -0.5),
            ("reconcilement", -0.5),
            ("agreement", -0.5),
        ],
    )
    def test_negative_settings(self, name, value):
        with pytest.raises(
            ValueError, match=rf"ReconBoost: '{name}' must be not negative; found -"
        ):
            make("reconboost", net(head="boosted"), **{name: value})

    def test_no_epochs(self):
        with pytest.raises(ValueError, match=r"both 0, so a stage has no epoch"):
            make("reconboost", net(head="boosted"), alternation=0, rectification=0)

    def test_a_head_without_a_rate(self):
        with pytest.raises(TypeError, match=r"'boost_rate'; ConcatHead has none.*'boosted'"):
            make("reconboost", net(head="concat"))

    def test_no_fuse(self):
        model = net(head="boosted")
        method = make("reconboost", model)
        z = torch.zeros(2, 3)
        output = evenly.Output(z, {"a": z, "aa": z}, {"a": z, "aa": z})
        with pytest.raises(ValueError, match=r"needs `Output\.fuse`; found None"):
            method.loss(output, torch.zeros(2, dtype=torch.int64))


def test_only_samples_that_have_both_agree():
    model, here = net(head="boosted").double().eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = ReconBoost(model.encoders, optimizer=sgd(model), head=model.head, alternation=1)
    method.epoch = 5  # the second modality, after the first
    method.loss(output, target)
    own = (output.unimodal[name][here] for name in ("aa", "a"))
    expected = 16 / 24 * agreement_loss(*own)
    torch.testing.assert_close(method.metrics["agreement/aa"], expected.detach())
