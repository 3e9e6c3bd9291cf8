import math

import pytest
import torch

from evenly.methods import QMF
from evenly.methods.qmf import confidence, difficulty, ranking
from many_ranks import on_ranks
from support import NAMES, Toy, forward, lacking, loaders, net, sgd, train

nan = math.nan


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestFormulas:
    def test_confidence_by_hand(self):
        z = torch.tensor([[0.0, 0.0], [math.log(3), math.log(5)]])
        expected = torch.tensor([math.log(2) / 10, math.log(8) / 10])
        torch.testing.assert_close(confidence(z), expected)

    def test_confidence_is_of_single_precision_at_least(self):
        """Else it would be rounded to one part in 256, as features are."""
        z = torch.randn(4, 300).bfloat16()
        assert torch.equal(confidence(z), 0.1 * z.float().logsumexp(-1))
        assert confidence(z.double()).dtype == torch.float64

    def test_difficulty_is_a_mean_brought_to_zero_and_one(self):
        found = difficulty(vector(2.0, 9.0, 0.0, 4.0), vector(2, 3, 0, 2))
        assert found[[0, 1, 3]].tolist() == [0.0, 1.0, 0.5]
        assert found[2].isnan()

    def test_samples_of_one_difficulty_give_no_nan(self):
        """As the released code has it in its first step: 0 / 0."""
        assert difficulty(vector(3.0, 3.0), vector(1, 1)).tolist() == [0.0, 0.0]

    def test_ranking_by_hand(self):
        """Sample 0 is harder than 1 by 0.25 and surer by 0.75; the other pairs are in order."""
        w, kappa = vector(1.0, 0.25, 0.5), vector(0.5, 0.25, 0.125)
        # pairs: (0, 1) 0.75 - 0.25, (1, 2) below 0, (2, 0) easier and less sure: 0.5 - 0.375
        assert float(ranking(w, kappa)) == pytest.approx((0.5 + 0.0 + 0.125) / 3)

    def test_ranking_lowers_the_confidence_of_the_harder_sample(self):
        w = vector(1.0, 0.0).requires_grad_()
        ranking(w, vector(0.5, 0.25)).backward()
        assert w.grad.tolist() == [1.0, -1.0]

    @pytest.mark.parametrize("kappa", [(0.0, 1.0), (0.5, 0.5), (nan, 0.0), (nan, nan)])
    def test_nothing_to_rank(self, kappa):
        """In order, equal, or of a sample without a past."""
        assert float(ranking(vector(1.0, 0.0), vector(*kappa))) == 0.0

    def test_a_batch_of_one(self):
        assert float(ranking(vector(1.0), vector(0.5))) == 0.0


def reference(output, target, past, weight, names):
    """The loss of one batch by loops, from each sample's past losses by modality."""
    n = len(target)

    def ce(z, i):
        return z[i].exp().sum().log() - z[i, target[i]]

    loss = sum(ce(output.logits, i) for i in range(n)) / n
    for name in names:
        z = output.unimodal[name]
        loss = loss + sum(ce(z, i) for i in range(n)) / n
        if not past:
            continue
        mean = {i: sum(found) / len(found) for i, found in past[name].items()}
        low, high = min(mean.values()), max(mean.values())
        w = [z[i].exp().sum().log() / 10 for i in range(n)]
        kappa = [(mean[int(i)] - low) / (high - low) for i in output.index]
        for i in range(n):
            j = (i + 1) % n
            if kappa[i] != kappa[j]:
                sign = 1 if kappa[i] > kappa[j] else -1
                value = sign * (w[i] - w[j]) - abs(kappa[i] - kappa[j])
                loss = loss + weight * value.clamp_min(0) / n
    return loss


def test_golden_epochs():
    """Three epochs of one sample pair a batch, loss and gradients against the loops."""
    names, weight = NAMES[:3], 0.7
    model = net(names, head="energy").double().eval()
    for p in model.head.parameters():
        torch.nn.init.normal_(p, std=5)  # confidences that differ
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = QMF(model.encoders, weight=weight)
    past, ranked = {}, 0
    for epoch in range(3):
        method.before_epoch(epoch)
        found = {name: {} for name in names}
        for inputs, target, index in loaders(names, count=12, batch=4)[0]:
            batch = {n: x.double() for n, x in inputs.items()}, target, index
            output, target = forward(model, batch)
            expected = reference(output, target, past, weight, names)
            gradients = torch.autograd.grad(expected, list(model.parameters()), retain_graph=True)
            loss = method.loss(output, target)
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
            method.backward(loss)
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-11)
            ranked += sum(float(x) > 0 for k, x in method.metrics.items() if k[:4] == "rank")
            for name in names:
                for row, i in enumerate(index.tolist()):
                    z = output.unimodal[name][row].detach()
                    found[name][i] = float(z.exp().sum().log() - z[target[row]])
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
        for name in names:
            for i, value in found[name].items():
                past.setdefault(name, {}).setdefault(i, []).append(value)
    assert ranked > 5, "the ranking was not tested"


def test_samples_that_were_never_seen_are_not_ranked():
    """An index beyond the history, as of a batch that was left out before."""
    model = net(head="energy").double().eval()
    method = QMF(model.encoders)
    loader = torch.utils.data.DataLoader(Toy(12), 4)
    batches = [({n: x.double() for n, x in i.items()}, t, k) for i, t, k in loader]
    method.before_epoch(0)
    method.loss(*forward(model, batches[0]))
    method.before_step()
    method.before_epoch(1)
    assert method.count["a"].tolist() == [1.0] * 4
    output, target = forward(model, batches[2])
    plain = [output.logits, *output.unimodal.values()]
    expected = sum(torch.nn.functional.cross_entropy(z, target) for z in plain)
    torch.testing.assert_close(method.loss(output, target), expected)
    method.before_step()
    method.before_epoch(2)
    assert method.samples.tolist() == [*range(4), *range(8, 12)]
    assert method.count["a"].tolist() == [1.0] * 8


def test_a_validation_is_no_part_of_the_history():
    model = net(head="energy").eval()
    method = QMF(model.encoders)
    method.before_epoch(0)
    with torch.no_grad():
        method.loss(*forward(model, next(iter(loaders()[1]))))
    method.before_step()
    method.before_epoch(1)
    assert not method.count


def test_a_modality_missing_from_a_batch_is_not_counted():
    model = net(head="energy").eval()
    method = QMF(model.encoders)
    inputs, target, index = next(iter(torch.utils.data.DataLoader(Toy(4), 4)))
    method.before_epoch(0)
    method.loss(*forward(model, ({"aa": inputs["aa"]}, target, index)))
    method.before_step()
    method.before_epoch(1)
    assert method.count["a"].sum() == 0
    assert method.count["aa"].sum() == 4


def test_the_history_joins_once_an_epoch():
    """A loop that is resumed within an epoch calls before_epoch for it again."""
    model = net(head="energy")
    method = QMF(model.encoders)
    train(model, method, sgd(model), 2)
    before = {name: count.clone() for name, count in method.count.items()}
    fresh = QMF(model.encoders)
    fresh.load_state_dict(method.state_dict())
    fresh.before_epoch(1)
    assert all(torch.equal(before[name], fresh.count[name]) for name in before)
    fresh.before_epoch(2)
    assert fresh.count["a"].tolist() == [2.0] * 36


def test_a_state_is_a_snapshot():
    model = net(head="energy")
    method = QMF(model.encoders)
    train(model, method, sgd(model), 1)
    state = method.state_dict()
    held = len(state["pending"])
    train(model, method, sgd(model), 2, start=1)
    assert len(state["pending"]) == held
    assert not state["count"]


def history(rank, world):
    """Each rank sees its share in two passes; the whole is known to both after the step."""
    model = net(head="energy").eval()
    method = QMF(model.encoders)
    method.before_epoch(0)
    inputs, target, index = next(iter(torch.utils.data.DataLoader(Toy(12), 12)))
    for part in torch.arange(12)[rank::world].tensor_split(2):
        cut = {name: x[part] for name, x in inputs.items()}, target[part], index[part]
        method.loss(*forward(model, cut))
    method.before_step()
    method.before_epoch(1)
    return method.total, method.count


@pytest.mark.distributed
def test_the_history_is_that_of_all_ranks(tmp_path):
    ranks, (total, count) = on_ranks(history, tmp_path), history(0, 1)
    for found in ranks:
        for name in ("a", "aa"):
            torch.testing.assert_close(found[0][name], total[name], rtol=1e-6, atol=1e-7)
            assert found[1][name].tolist() == count[name].tolist() == [1.0] * 12


@pytest.mark.parametrize("weight", [-1.0, nan, math.inf])
def test_a_weight_out_of_range(weight):
    with pytest.raises(
        ValueError, match=rf"'weight' must be finite and not negative; found {weight}"
    ):
        QMF(net().encoders, weight=weight)


def test_what_a_sample_lacks_is_neither_ranked_nor_remembered():
    model, here = net(head="energy").double().eval(), torch.arange(24) % 3 > 0
    for p in model.head.parameters():
        torch.nn.init.normal_(p, std=5)
    output, target = lacking(model, {"a": here})
    method = QMF(model.encoders)
    method.before_epoch(0)
    method.loss(output, target)
    method.before_step()
    method.before_epoch(1)
    assert method.count["a"].sum() == 16
    method.total["a"] = method.count["a"] * (1 + 1e-3 * torch.rand(24, dtype=torch.float64))
    method.total["a"][output.index[1]] = 100  # so that the others are nearly alike
    method._rate()
    kappa = method._looked_up("a", output.index)
    assert torch.equal(kappa.isnan(), ~here)
    method.loss(output, target)
    expected = 16 / 24 * ranking(confidence(output.unimodal["a"][here]), kappa[here])
    torch.testing.assert_close(method.metrics["ranking/a"], expected.detach())
    assert expected > 0
