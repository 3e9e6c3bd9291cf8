import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import evenly
from evenly.methods.pmr import (
    PMR,
    class_means,
    lags,
    leads,
    mixed,
    prototype_entropy,
    prototype_loss,
    similarities,
)
from support import NAMES, Run, Toy, forward, net


class TestFormulas:
    def test_similarities_by_loops(self):
        x, c = torch.randn(40, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
        found = similarities(x, c, torch.ones(3, dtype=torch.bool))
        for i in range(40):
            for k in range(3):
                assert float(found[i, k]) == pytest.approx(-math.dist(x[i], c[k]), rel=1e-12)

    def test_losses_by_loops(self):
        similarity = -torch.rand(2, 4, 3, dtype=torch.float64)
        target, known = torch.tensor([0, 2, 1, 0]), torch.tensor([True, True, True])
        loss, entropy = (
            prototype_loss(similarity, target, known),
            prototype_entropy(similarity, known),
        )
        for m in range(2):
            p = [[math.exp(s) for s in row] for row in similarity[m].tolist()]
            p = [[x / sum(row) for x in row] for row in p]
            wanted = sum(-math.log(row[y]) for row, y in zip(p, target, strict=True)) / 4
            assert float(loss[m]) == pytest.approx(wanted, rel=1e-12)
            wanted = sum(-x * math.log(x) for row in p for x in row) / 4
            assert float(entropy[m]) == pytest.approx(wanted, rel=1e-12)

    def test_a_class_without_a_prototype_gives_no_nan(self):
        """Nor does a feature that lies on its prototype."""
        known = torch.tensor([True, False, True])
        x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        prototype = torch.stack([x[0].detach(), torch.zeros(2).double(), torch.ones(2).double()])
        similarity = similarities(x, prototype, known).unsqueeze(0)
        target = torch.tensor([0, 1, 2, 1])
        loss, entropy = (
            prototype_loss(similarity, target, known),
            prototype_entropy(similarity, known),
        )
        few = nn.functional.cross_entropy(
            similarity[0][[0, 2]][:, [0, 2]], torch.tensor([0, 1]), reduction="sum"
        )
        torch.testing.assert_close(loss[0], few / 4)
        (loss + entropy).sum().backward()
        assert entropy.isfinite().all()
        assert x.grad.isfinite().all()

    def test_no_class_with_a_prototype_in_the_batch_gives_no_loss(self):
        known = torch.tensor([True, False, False])
        similarity = similarities(torch.randn(2, 4), torch.zeros(3, 4), known).unsqueeze(0)
        assert prototype_loss(similarity, torch.tensor([1, 2]), known).tolist() == [0.0]

    def test_only_the_slower_modality_is_pulled_and_only_the_faster_held(self):
        score = torch.tensor([6.0, 5.0])
        assert lags(score).tolist() == pytest.approx([0.0, 6 / 5 - 1])
        assert leads(score).tolist() == pytest.approx([6 / 5 - 1, 0.0])
        assert lags(torch.tensor([1.0, 9.0])).tolist() == [1.0, 0.0]
        assert score.tolist() == [6.0, 5.0]

    def test_more_modalities_are_each_compared_with_the_best(self):
        score = torch.tensor([4.0, 6.0, 5.0])
        assert lags(score).tolist() == pytest.approx([0.5, 0.0, 0.2])
        assert leads(score).tolist() == pytest.approx([0.0, 0.5, 0.0])

    def test_scores_of_zero_give_no_nan(self):
        assert lags(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
        assert lags(torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]

    def test_prototypes_are_mixed_where_there_are_two(self):
        new, old = torch.tensor([[1.0], [2.0], [0.0], [0.0]]), torch.tensor([[5.0], [0], [7], [0]])
        seen, known = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
        found = mixed(new, seen, old, known, 0.25)
        assert found.flatten().tolist() == [0.75 * 1 + 0.25 * 5, 2.0, 7.0, 0.0]

    def test_a_sample_that_float16_cannot_hold_is_in_no_mean(self):
        x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [torch.inf, 0.0], [torch.nan, 0.0]])
        found = evenly.Features({"a": x}, torch.tensor([0, 0, 0, 1]))
        means, seen = class_means(found, "a", 3)
        assert means.tolist() == [[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]]
        assert seen.tolist() == [True, False, False]


def probe_of(model, train, batch=8):
    return evenly.Probe(model, forward, DataLoader(train, batch), DataLoader(train, batch))


def means(model, train):
    """The mean feature of each class, by loops."""
    inputs, target, index = next(iter(DataLoader(train, len(train))))
    modes = model.training
    features = model.eval()(inputs, index).features
    model.train(modes)
    return {
        name: torch.stack([x[target == k].mean(0) for k in range(3)]).detach()
        for name, x in features.items()
    }


def test_prototypes_are_running_means_from_the_second_training_epoch_on():
    train, model = Toy(30), net()
    method = PMR(model.encoders, momentum=0.3, fraction=1.0)
    wanted = {}
    for epoch in range(4):
        method.before_epoch(epoch, probe_of(model, train))
        for name, new in means(model, train).items():
            # before the second: of the untrained encoders
            wanted[name] = new if epoch <= 1 else 0.7 * new + 0.3 * wanted[name]
            torch.testing.assert_close(method.prototypes[name], wanted[name])
        for parameter in model.parameters():
            nn.init.normal_(parameter)


def test_prototypes_that_begin_later_are_running_means_at_once():
    """Then the first are of trained encoders."""
    train, model = Toy(30), net()
    method = PMR(model.encoders, momentum=0.3, fraction=1.0, start=2)
    method.before_epoch(2, probe_of(model, train))
    first = means(model, train)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    method.before_epoch(3, probe_of(model, train))
    for name, new in means(model, train).items():
        torch.testing.assert_close(method.prototypes[name], 0.7 * new + 0.3 * first[name])


def test_a_part_of_the_training_split_is_looked_at():
    model, seen = net(), []

    def spied(model, batch):
        seen.extend(batch[2].tolist())
        return forward(model, batch)

    train = Toy(100)
    method = PMR(model.encoders)
    for epoch in range(2):
        method.before_epoch(epoch, evenly.Probe(model, spied, DataLoader(train, 4), []))
    assert len(seen) == 20
    assert seen[:10] != seen[10:], "another part before each epoch"


def test_a_class_absent_from_the_pass_gives_no_nan():
    """It has no prototype until one is seen, and keeps it when it is absent again."""
    train = Toy(36)
    lacking = Subset(train, [i for i in range(36) if i % 3 != 1])
    run = Run("pmr", fraction=1.0, entropy=0.5)
    run.probe = probe_of(run.model, lacking)
    run.train(2)
    assert run.method.known.tolist() == [True, False, True]
    run.method.before_epoch(2, probe_of(run.model, train))
    assert run.method.known.all()
    kept = run.method.prototypes["a"][1].clone()
    run.probe = probe_of(run.model, lacking)
    run.train(3, start=2)
    assert run.method.known.all()
    assert torch.equal(run.method.prototypes["a"][1], kept)
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_a_class_has_a_prototype_in_each_modality_or_in_none():
    def overflowing(model, batch):
        output, target = forward(model, batch)
        output.features["aa"][target == 1] = torch.inf
        return output, target

    train, model = DataLoader(Toy(30), 8), net()
    method = PMR(model.encoders, fraction=1.0)
    method.before_epoch(0, evenly.Probe(model, overflowing, train, train))
    assert method.known.tolist() == [True, False, True]
    method.before_epoch(1, evenly.Probe(model, forward, train, train))
    assert method.known.all()
    for name, wanted in means(model, Toy(30)).items():
        torch.testing.assert_close(method.prototypes[name], wanted)


@pytest.mark.parametrize("count", [2, 3])
def test_golden_step(count):
    names = NAMES[:count]
    inputs, target, index = next(iter(DataLoader(Toy(24, names), 24)))
    batch = {name: x.double() for name, x in inputs.items()}, target, index
    model = net(names).double().eval()
    method = PMR(model.encoders, alpha=1.7, entropy=0.4, fraction=1.0)

    def as_double(model, batch):
        return forward(model, ({n: x.double() for n, x in batch[0].items()}, *batch[1:]))

    loader = DataLoader(Toy(24, names, seed=1), 24)
    method.before_epoch(0, evenly.Probe(model, as_double, loader, loader))
    loss = method.loss(*forward(model, batch))
    method.backward(loss)

    output, _ = forward(model, batch)
    log_p = {}
    for name in names:
        rows = []
        for x in output.features[name]:
            distances = [(x - c.double()).norm() for c in method.prototypes[name]]
            rows.append(-torch.stack(distances))
        log_p[name] = torch.stack(rows).log_softmax(1)
    score = [float(log_p[name].detach()[range(24), target].exp().sum()) for name in names]
    behind = [min(max(score) / s - 1, 1) for s in score]
    weight = {f"weight/{name}": 1.7 * w for name, w in zip(names, behind, strict=True)}
    assert {n: float(w) for n, w in method.metrics.items()} == pytest.approx(weight, rel=1e-5)
    joint = nn.functional.cross_entropy(output.logits, target)
    wanted = joint
    for m, name in enumerate(names):
        wanted = wanted - 1.7 * behind[m] * log_p[name][range(24), target].mean()
        if score[m] == max(score):
            entropy = -(log_p[name].exp() * log_p[name]).sum(1).mean()
            wanted = wanted - 0.4 * max(behind) * entropy
    torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-6, atol=0)
    assert abs(loss.detach() - joint.detach()) > 1e-3
    grads = torch.autograd.grad(wanted, model.parameters())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-8)


def test_only_in_its_epochs():
    method = PMR(net().encoders, start=2, end=4)
    due = [method.is_due(epoch) for epoch in range(7)]
    assert due == [False, False, True, True, True, False, False]
    assert not PMR(net(("a",)).encoders).is_due(0), "one modality has none to keep up with"


def test_the_entropy_is_of_early_epochs():
    train, model = Toy(24), net().eval()
    losses = {}
    for entropy in (0.0, 5.0):
        method = PMR(model.encoders, entropy=entropy, entropy_end=2, fraction=1.0)
        for epoch in range(5):
            method.before_epoch(epoch, probe_of(model, train))
            for batch in DataLoader(train, 24):
                method.loss(*forward(model, batch))
                method.before_step()
                losses[entropy, epoch] = float(method.loss(*forward(model, batch)).detach())
    lower = [losses[5.0, epoch] < losses[0.0, epoch] for epoch in range(5)]
    assert lower == [True, True, True, False, False]
    assert losses[5.0, 4] == losses[0.0, 4]


class TestMessages:
    @pytest.mark.parametrize("name", ["alpha", "entropy"])
    def test_negative(self, name):
        with pytest.raises(ValueError, match=rf"PMR: '{name}' must be not negative; found -1\."):
            PMR(net().encoders, **{name: -1.0})

    def test_momentum(self):
        with pytest.raises(ValueError, match=r"PMR: 'momentum' must be from 0 to 1; found 1\.2\."):
            PMR(net().encoders, momentum=1.2)

    def test_fraction(self):
        with pytest.raises(
            ValueError, match=r"'fraction' must be above 0 and at most 1; found 0\.0"
        ):
            PMR(net().encoders, fraction=0.0)

    def test_an_end_before_the_start(self):
        with pytest.raises(ValueError, match="'end' must not be before 'start' = 5; found 4"):
            PMR(net().encoders, start=5, end=4)
