import math

import pytest
import torch
from torch import nn

from evenly import METHODS
from evenly.methods.amco import dependent, masked, masked_share, mass
from evenly.nn import LateFusion
from support import Run, lacking, net, rows_of, weights

AMCo = METHODS["amco"]
CLASSES = 5


def build(names=("a", "aa"), **settings):
    torch.manual_seed(0)
    net = LateFusion({name: nn.Linear(3, 4) for name in names}, CLASSES, "amco").double()
    return net, AMCo(net.encoders, head=net.head, **settings)


def inputs(names=("a", "aa"), n=7):
    stream = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, 3, generator=stream, dtype=torch.float64) for name in names}


class TestFormulas:
    def test_the_share_of_masked_logits_grows_along_a_sine(self):
        found = [masked_share(grown, 0.3) for grown in (0.0, 0.15, 0.3, 5.0)]
        assert found == pytest.approx([0.0, math.sqrt(0.5), 1.0, 1.0])

    def test_mass_by_hand(self):
        logits = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]])
        e = math.e
        first = (e + 1) / (e + 1 + e**2 + 1)
        torch.testing.assert_close(mass(logits), torch.tensor([first + 0.5, 1.5 - first]))

    def test_a_batch_without_samples_has_no_mass(self):
        assert mass(torch.empty(2, 0, 3)).tolist() == [0.0, 0.0]

    def test_the_threshold_is_sigma_for_two_and_relative_for_more(self):
        assert dependent(torch.tensor([0.51, 0.49]), 0.5).tolist() == [True, False]
        assert dependent(torch.tensor([0.59, 0.41]), 0.6).tolist() == [False, False]
        assert dependent(torch.tensor([0.35, 0.4, 0.25]), 0.5).tolist() == [True, True, False]

    def test_the_mask_keeps_the_other_classes(self):
        logits, drop = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([True, False, True])
        assert masked(logits, drop, torch.tensor(True)).tolist() == [[0.0, 2.0, 0.0]]
        assert masked(logits, drop, torch.tensor(False)).tolist() == [[1.0, 2.0, 3.0]]


def test_the_head_by_hand():
    net, _ = build()
    output = net(inputs())
    total = 0
    for name in ("a", "aa"):
        layer = net.head.heads[name]
        logits = output.features[name] @ layer.weight.T + layer.bias
        torch.testing.assert_close(output.unimodal[name], logits, rtol=1e-12, atol=1e-12)
        total = total + logits
    expected = total @ net.head.fusion.weight.T + net.head.fusion.bias
    torch.testing.assert_close(output.logits, expected, rtol=1e-12, atol=1e-12)
    alone = net.head({"a": output.features["a"]})[0]
    assert torch.equal(alone, net.head.combined({"a": output.unimodal["a"]}))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("names", [("a",), ("a", "aa"), ("a", "b", "c")])
def test_golden_steps(n, names):
    """Three steps of epoch 1 by loops: any size of batch, one loss and so one backward."""
    net, method = build(names)
    method.before_epoch(1)
    shares, counts = None, []
    for step in range(3):
        output = net({name: x + step for name, x in inputs(names, n).items()})
        target = torch.arange(n) % CLASSES
        p = math.sin(math.pi / 2 * min(0.3, step / 10) / 0.3)
        dropped = method.mask(CLASSES, torch.device("cpu")).tolist()
        counts.append(sum(dropped))
        assert counts[-1] == math.floor(p * CLASSES)
        logits = {name: z.clone() for name, z in output.unimodal.items()}
        for name in names:
            if len(names) > 1 and shares is not None and shares[name] > 1 / len(names):
                for c in range(CLASSES):
                    if dropped[c]:
                        logits[name][:, c] = 0
        fused = net.head.fusion(sum(logits.values()))
        expected = nn.functional.cross_entropy(fused, target)
        for z in output.unimodal.values():
            expected = expected + nn.functional.cross_entropy(z, target)
        loss = method.loss(output, target)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        parameters = list(net.parameters())
        ours = torch.autograd.grad(loss, parameters, retain_graph=True)
        theirs = torch.autograd.grad(expected, parameters, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        method.backward(loss)
        method.before_step()
        net.zero_grad()
        joined = torch.cat(list(output.unimodal.values()), 1).softmax(1)
        parts = joined.split(CLASSES, 1)
        shares = {m: x.sum(1).mean().item() for m, x in zip(names, parts, strict=True)}
        found = {key: float(value) for key, value in method.metrics.items()}
        assert found == pytest.approx({f"share/{m}": s for m, s in shares.items()}, abs=1e-12)
    assert counts == [0, 2, 4]


def test_the_mask_hits_the_dependent_modality_only():
    net, method = build()
    method.before_epoch(3)
    method.batches, method.share = 1, torch.tensor([0.9, 0.1])
    output = net(inputs())
    fused = net.head.combined({"aa": output.unimodal["aa"]})  # all of 'a' is masked
    expected = sum(
        nn.functional.cross_entropy(z, torch.zeros(7, dtype=torch.int64))
        for z in (fused, *output.unimodal.values())
    )
    found = method.loss(output, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_mask_grows_anew_in_each_epoch_and_not_in_the_first():
    _, method = build()
    found = {}
    for epoch in (0, 1, 2, 3):
        method.before_epoch(epoch)
        assert method.batches == 0
        found[epoch] = []
        for method.batches in range(5):
            found[epoch].append(method.dropped(101))
    assert found == {
        0: [0, 0, 0, 0, 0],
        1: [0, 50, 87, 101, 101],
        2: [0, 87, 101, 101, 101],
        3: [0, 101, 101, 101, 101],
    }


def test_the_mask_is_that_of_the_step():
    """Drawn anew with each step, equal in its passes and from run to run; others by seed."""
    device = torch.device("cpu")
    (_, method), (_, again), (_, other) = build(), build(), build(seed=1)
    drawn = []
    for one in (method, again, other):
        one.before_epoch(1)
        one.batches = 1
        for one.steps in range(20):
            mask = one.mask(CLASSES, device)
            assert torch.equal(mask, one.mask(CLASSES, device))
            drawn.append(tuple(mask.tolist()))
    assert drawn[:20] == drawn[20:40] != drawn[40:]
    assert len(set(drawn[:20])) > 5


def test_the_next_step_has_another_mask():
    net, method = build()
    method.before_epoch(1)
    drawn = set()
    for _ in range(20):
        method.batches = 1
        drawn.add(tuple(method.mask(CLASSES, torch.device("cpu")).tolist()))
        method.loss(net(inputs()), torch.zeros(7, dtype=torch.int64))
        method.before_step()
    assert len(drawn) > 5


def test_a_validation_sees_no_mask():
    """What is validated is the prediction."""
    net, method = build()
    method.before_epoch(3)
    method.batches, method.share = 1, torch.tensor([0.9, 0.1])
    output, target = net(inputs()), torch.zeros(7, dtype=torch.int64)
    with torch.no_grad():
        found = method.loss(output, target)
    logits = (output.logits, *output.unimodal.values())
    assert torch.equal(found, sum(nn.functional.cross_entropy(z, target) for z in logits))
    assert not torch.equal(found, method.loss(output, target))


def test_passes_of_a_step_see_one_mask_and_add_up_their_shares():
    def go(split):
        run = Run("amco", sigma=0.45)
        run.model.double().eval()
        run.method.before_epoch(1)
        for n, batch in enumerate(run.train_loader):
            doubled = {name: x.double() for name, x in batch[0].items()}
            run.step((doubled, *batch[1:]), split=split)
            assert n or run.method.share is not None
        assert run.method.dropped(3) == 3
        return weights(run.model)

    one, two = go(1), go(2)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-9, atol=1e-12)


def test_passes_that_lack_a_modality_say_nothing_about_dependence():
    net, method = build()
    method.before_epoch(1)
    target = torch.zeros(7, dtype=torch.int64)
    method.loss(net(inputs()), target)
    method.before_step()
    share = method.share
    alone = net({"a": inputs()["a"]})
    method.share = torch.tensor([0.9, 0.1], dtype=torch.float64)
    loss = method.loss(alone, target)  # nothing else could be fitted, so nothing is masked
    expected = nn.functional.cross_entropy(alone.logits, target)
    assert torch.equal(loss, expected + nn.functional.cross_entropy(alone.unimodal["a"], target))
    method.share = share
    method.before_step()
    assert torch.equal(method.share, share)


class TestMessages:
    @pytest.mark.parametrize("sigma", [-0.1, 1.1, math.nan])
    def test_sigma_out_of_range(self, sigma):
        with pytest.raises(ValueError, match=r"AMCo: 'sigma' must be from 0 to 1; found "):
            build(sigma=sigma)

    @pytest.mark.parametrize("eps", [0.0, -1.0, math.inf])
    def test_eps_out_of_range(self, eps):
        with pytest.raises(ValueError, match=r"AMCo: 'eps' must be finite and above 0; found "):
            build(eps=eps)

    def test_a_head_that_cannot_fuse_logits(self):
        net = LateFusion({"a": nn.Linear(3, 2)}, 4)
        with pytest.raises(ValueError, match=r"which this ConcatHead lacks\. Build the model"):
            AMCo(net.encoders, head=net.head)

    def test_a_head_of_ones_own(self):
        """Masked logits are fused by its rule."""

        class Own(nn.Module):
            def combined(self, unimodal):
                return 3 * sum(unimodal.values())

        net, method = build()
        method = AMCo(net.encoders, head=Own())
        method.before_epoch(3)
        method.batches, method.share = 1, torch.tensor([0.9, 0.1])
        output, target = net(inputs()), torch.zeros(7, dtype=torch.int64)
        logits = (3 * output.unimodal["aa"], *output.unimodal.values())
        expected = sum(nn.functional.cross_entropy(z, target) for z in logits)
        torch.testing.assert_close(method.loss(output, target), expected, rtol=1e-12, atol=0)

    def test_a_step_without_a_loss(self):
        _, method = build()
        with pytest.raises(RuntimeError, match=r"without a call of AMCo\.loss"):
            method.before_step()


def test_shares_are_of_samples_that_lack_nothing():
    model, here = net(head="amco").eval(), torch.arange(24) % 3 > 0
    output, target = lacking(model, {"a": here})
    method = AMCo(model.encoders, head=model.head)
    method.before_epoch(0)
    found = []
    for batch in ((output, target), rows_of(output, target, here)):
        method.loss(*batch)
        found.append(method._mass.take(method))
    torch.testing.assert_close(*found)
