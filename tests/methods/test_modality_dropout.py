from dataclasses import replace

import pytest
import torch
from torch import nn

from evenly import Output, chance
from evenly.methods import ModalityDropout
from evenly.methods.modality_dropout import kept
from support import batch_of, forward, gradients, kept_by, loaders, net

NAMES = ("a", "aa", "b")


class TestMask:
    def test_by_hand(self):
        """The columns are samples: none dropped, two dropped, all below p."""
        drawn = torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.6, 0.4], [0.7, 0.2, 0.1]])
        assert kept(drawn, 0.5).tolist() == [
            [True, False, False],
            [True, True, True],
            [True, False, False],
        ]

    def test_shares(self):
        """P(kept) = 1 - p + p³ / 3 of three modalities; each sample keeps at least one."""
        index = torch.arange(30_000)
        drawn = torch.stack([chance.uniform(index, 0, 0, m) for m in range(3)])
        for p in (0.2, 0.5, 0.9):
            mask = kept(drawn, p)
            assert mask.any(0).all()
            for share in mask.double().mean(1):
                assert float(share) == pytest.approx(1 - p + p**3 / 3, abs=0.01)

    def test_at_one_each_sample_keeps_one(self):
        drawn = torch.stack([chance.uniform(torch.arange(1000), 0, 0, m) for m in range(3)])
        assert kept(drawn, 1.0).sum(0).tolist() == [1] * 1000


def test_golden_step():
    """Loss and gradients against a loop over samples that leaves out what is dropped."""
    model = net(NAMES).double().eval()
    method = ModalityDropout(model.encoders, p=0.6, seed=7)
    method.before_step()
    method.before_step()
    output, target = batch_of(model)
    method.backward(method.loss(output, target))
    found = gradients(model)
    model.zero_grad()

    output, target = batch_of(model)
    weight, bias = model.head.linear.weight, model.head.linear.bias
    kept = kept_by(0.6, 7, 2, output)
    assert sum(map(len, kept)) < 3 * 24 - 10
    expected = 0.0
    for i in range(24):
        z = bias
        for m, name in enumerate(NAMES):
            if name in kept[i]:
                z = z + weight[:, 6 * m : 6 * m + 6] @ output.features[name][i]
        expected = expected + (z.exp().sum().log() - z[target[i]]) / 24
    expected.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)


def test_masks_differ_from_step_to_step_but_not_from_pass_to_pass():
    model = net(NAMES).double().eval()
    method = ModalityDropout(model.encoders)
    one, again = (float(method.loss(*batch_of(model)).detach()) for _ in range(2))
    assert one == again
    method.before_step()
    assert float(method.loss(*batch_of(model)).detach()) != one


def test_a_validation_drops_nothing():
    model = net(NAMES).double().eval()
    method = ModalityDropout(model.encoders)
    with torch.no_grad():
        output, target = batch_of(model)
        assert torch.equal(
            method.loss(output, target), nn.functional.cross_entropy(output.logits, target)
        )
    assert method.metrics == {}


def test_a_modality_without_an_encoder_handed_over_is_never_dropped():
    model = net(NAMES)
    some = {name: model.encoders[name] for name in ("a", "aa")}
    seen = []
    method = ModalityDropout(some, p=1.0)
    output, target = forward(model.eval(), next(iter(loaders(NAMES)[0])))
    fuse = lambda features: (seen.append(features), output.fuse(features))[1]  # noqa: E731
    method.loss(Output(output.logits, output.features, index=output.index, fuse=fuse), target)
    assert torch.equal(seen[0]["b"], output.features["b"])
    gone = torch.stack([(seen[0][name] == 0).all(1) for name in some])
    assert gone.sum(0).tolist() == [1] * len(target)


def test_a_sample_keeps_one_of_those_that_it_has():
    model = net(NAMES).double().eval()
    method = ModalityDropout(model.encoders, p=1.0)
    output, target = batch_of(model)
    has = {name: torch.arange(24) % 3 == n for n, name in enumerate(NAMES)}
    seen = []
    fuse = lambda features: (seen.append(features), output.fuse(features))[1]  # noqa: E731
    method.loss(replace(output, present=has, fuse=fuse), target)
    for name, rows in has.items():
        assert torch.equal(seen[0][name][rows], output.features[name][rows])
        assert not seen[0][name][~rows].any()


def test_shares_kept_are_told():
    model = net(NAMES).double().eval()
    method = ModalityDropout(model.encoders, p=1.0)
    method.loss(*batch_of(model))
    assert set(method.metrics) == {f"kept/{name}" for name in NAMES}
    assert sum(float(share) for share in method.metrics.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range(p):
    with pytest.raises(ValueError, match=rf"ModalityDropout: 'p' must be from 0 to 1; found {p}\."):
        ModalityDropout(net().encoders, p=p)
