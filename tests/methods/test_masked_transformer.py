from dataclasses import replace

import pytest
import torch
from torch import nn

from evenly import chance
from evenly.methods import MaskedTransformer, ModalityDropout
from support import batch_of, gradients, kept_by, net

NAMES = ("a", "aa", "b")


def build(**settings):
    model = net(NAMES, head="attention").double().eval()
    return model, MaskedTransformer(model.encoders, head=model.head, **settings)


def without(model, output, kept):
    """The logits of each sample by a pass of its own, with the tokens that it keeps."""
    return torch.cat(
        [
            model.head({n: output.features[n][i : i + 1] for n in kept[i]})[0]
            for i in range(len(output.logits))
        ]
    )


def test_golden_step():
    """Loss and gradients against a loop over samples that leaves out what is masked."""
    model, method = build(p=0.4, seed=7)
    method.before_step()
    method.before_step()
    output, target = batch_of(model)
    method.backward(method.loss(output, target))
    found = gradients(model)
    model.zero_grad()

    output, target = batch_of(model)
    kept = kept_by(0.4, 7, 2, output)
    assert {len(each) for each in kept} == {1, 2, 3}
    nn.functional.cross_entropy(without(model, output, kept), target).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)


def test_features_of_zeros_would_still_make_a_token():
    """Which is how it differs from modality dropout on the same head, with the same masks."""
    model, method = build()
    output, target = batch_of(model)
    dropout = ModalityDropout(model.encoders)
    assert not torch.isclose(method.loss(output, target), dropout.loss(output, target))
    assert method.metrics == dropout.metrics


def test_a_sample_keeps_one_of_those_that_it_has():
    model, method = build(p=1.0)
    output, target = batch_of(model)
    has = {"a": torch.arange(24) % 2 == 0, "aa": torch.arange(24) % 3 > 0}
    output = replace(output, present=has)
    drawn = torch.stack([chance.uniform(output.index, 0, 0, m) for m in range(3)])
    drawn[0, ~has["a"]] = drawn[1, ~has["aa"]] = -1
    kept = [[NAMES[m]] for m in drawn.argmax(0)]
    assert {each[0] for each in kept} == set(NAMES)
    expected = nn.functional.cross_entropy(without(model, output, kept), target)
    torch.testing.assert_close(method.loss(output, target), expected, rtol=1e-10, atol=0)


def test_a_sample_that_lacks_all_of_them_is_predicted_by_zeros():
    model, method = build(p=1.0)
    output, target = batch_of(model)
    nobody = torch.zeros(24, dtype=torch.bool)
    output = replace(output, present=dict.fromkeys(NAMES, nobody))
    torch.testing.assert_close(method.loss(output, target), torch.tensor(3.0).double().log())


def test_a_head_that_takes_no_masks_is_refused():
    model = net(NAMES)
    with pytest.raises(ValueError, match=r"but Linear takes no `here`\. Build the model with"):
        MaskedTransformer(model.encoders, head=model.head.linear)


def test_a_head_of_ones_own():
    model, _ = build()
    seen = []

    def head(features, **given):
        seen.append(given["here"])
        return model.head(features, **given)

    method = MaskedTransformer(model.encoders, head=head, p=1.0)
    method.loss(*batch_of(model))
    assert torch.stack(list(seen[0].values())).sum(0).tolist() == [1] * 24


def test_a_probability_out_of_range():
    with pytest.raises(ValueError, match=r"MaskedTransformer: 'p' must be from 0 to 1; found 1\.5"):
        build(p=1.5)
