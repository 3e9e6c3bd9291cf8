"""Cross-modal blocks, the head that has them, and encoders that run in lockstep."""

import math

import pytest
import torch
from torch import nn

from evenly.data import Modality, Padded
from evenly.nn import HEADS, MMTM, LateFusion, Staged, encoder_for


def block(widths, *shape, n=4, seed=0):
    """A block in double precision, and maps of one shape for each modality."""
    torch.manual_seed(seed)
    made = MMTM(widths).double()
    return made, {name: torch.randn(n, width, *shape).double() for name, width in widths.items()}


def gates_by_hand(made, x, sample):
    """The gates of one sample, channel by channel."""
    squeezed = [float(c.mean()) for value in x.values() for c in value[sample]]
    hidden = [max(0.0, s) for s in linear_by_hand(made.squeeze, squeezed)]
    gates = {
        name: [2 / (1 + math.exp(-s)) for s in linear_by_hand(made.excite[name], hidden)]
        for name in x
    }
    return {name: torch.tensor(gate, dtype=torch.float64) for name, gate in gates.items()}


def linear_by_hand(layer, x):
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


class TestBlock:
    @pytest.mark.parametrize("shape", [(), (5,), (3, 2), (2, 3, 2)])
    @pytest.mark.parametrize("widths", [{"a": 3}, {"a": 3, "aa": 5}, {"x": 2, "a": 1, "aa": 4}])
    def test_by_hand(self, widths, shape):
        made, x = block(widths, *shape)
        found = made(x)
        for sample in range(4):
            for name, gate in gates_by_hand(made, x, sample).items():
                expected = x[name][sample] * gate.reshape(-1, *[1] * len(shape))
                torch.testing.assert_close(found[name][sample], expected, rtol=1e-12, atol=1e-12)

    def test_each_modality_has_positions_of_its_own(self):
        made = MMTM({"picture": 4, "text": 3, "sound": 2})
        x = {"picture": (2, 4, 5, 6), "text": (2, 3), "sound": (2, 2, 9)}
        found = made({name: torch.randn(shape) for name, shape in x.items()})
        assert {name: tuple(value.shape) for name, value in found.items()} == x

    def test_half_of_all_channels_are_left_in_the_middle(self):
        assert MMTM({"a": 6, "b": 10}).squeeze.out_features == 8
        assert MMTM({"a": 6, "b": 10}, ratio=8).squeeze.out_features == 4
        assert MMTM({"a": 1}, ratio=8).squeeze.out_features == 1

    def test_a_missing_modality_is_squeezed_to_zeros(self):
        made, x = block({"a": 3, "b": 2}, 5)
        alone = made({"a": x["a"]})
        whole = made({"a": x["a"], "b": torch.zeros_like(x["b"])})
        assert list(alone) == ["a"]
        assert torch.equal(alone["a"], whole["a"])

    def test_what_a_sample_lacks_is_squeezed_to_zeros(self):
        made, x = block({"a": 3, "b": 2}, 5)
        here = torch.tensor([True, False, True, False])
        found, whole, alone = made(x, {"b": here}), made(x), made({"a": x["a"]})
        assert torch.equal(found["a"][here], whole["a"][here])
        assert torch.equal(found["a"][~here], alone["a"][~here])
        assert not torch.allclose(whole["a"], alone["a"])

    def test_a_ratio_below_one(self):
        with pytest.raises(ValueError, match=r"MMTM: 'ratio' must be at least 1; found 0\."):
            MMTM({"a": 3}, ratio=0)

    def test_no_modality(self):
        with pytest.raises(ValueError, match=r"none of the modalities \['a', 'b'\]"):
            MMTM({"a": 3, "b": 2})({})


class TestAverages:
    def test_they_are_over_all_samples_and_passes_whatever_the_batch_size(self):
        made, x = block({"a": 3, "b": 5}, 2, n=13)
        seen = {"a": [], "b": []}
        for rows in (slice(0, 8), slice(8, 9), slice(9, 13)):
            part = {name: value[rows] for name, value in x.items()}
            for name, gate in made.gates({n: v.mean(2) for n, v in part.items()}).items():
                seen[name].append(gate.detach())
            made.update(made.observed())
        for name, gates in seen.items():
            expected = torch.cat(gates).mean(0)
            torch.testing.assert_close(made.averages()[name], expected, rtol=1e-12, atol=0)
        assert made.seen.tolist() == [13, 13]

    def test_each_modalitys_average_is_its_own(self):
        """The released code updates the second one's from the first one's gates."""
        made, x = block({"a": 2, "b": 2})
        with torch.no_grad():
            for name, bias in (("a", 9.0), ("b", -9.0)):
                made.excite[name].weight.zero_()
                made.excite[name].bias.fill_(bias)
        made(x)
        made.update(made.observed())
        assert made.averages()["a"].tolist() == pytest.approx([2 / (1 + math.exp(-9))] * 2)
        assert made.averages()["b"].tolist() == pytest.approx([2 / (1 + math.exp(9))] * 2)

    def test_a_batch_that_lacks_a_modality_does_not_count_for_it(self):
        made, x = block({"a": 2, "b": 3})
        made(x)
        made.update(made.observed())
        before = made.averages()["b"].clone()
        made({"a": 5 * x["a"]})
        made.update(made.observed())
        assert torch.equal(made.averages()["b"], before)
        assert made.seen.tolist() == [8, 4]

    def test_they_are_saved_with_the_weights(self):
        made, x = block({"a": 2, "b": 3})
        made(x)
        made.update(made.observed())
        fresh = MMTM({"a": 2, "b": 3}).double()
        fresh.load_state_dict(made.state_dict())
        assert torch.equal(fresh.average, made.average)
        assert torch.equal(fresh.seen, made.seen)


class TestCuration:
    def curated(self):
        made, x = block({"a": 3, "b": 2}, 4)
        made(x)
        made.update(made.observed())
        made.curate({"b": torch.tensor(True)})
        return made, x

    def test_the_gate_is_the_running_average(self):
        made, x = self.curated()
        other = {name: value[:3] + 1 for name, value in x.items()}  # another batch size
        found = made(other)
        expected = other["b"] * made.averages()["b"].reshape(1, 2, 1)
        torch.testing.assert_close(found["b"], expected, rtol=1e-12, atol=0)
        free = made.eval()(other)
        assert torch.equal(found["a"], free["a"])
        assert not torch.allclose(found["b"], free["b"])

    def test_nothing_flows_from_the_other_modality(self):
        made, x = self.curated()
        other = x["a"].requires_grad_()
        made(x)["b"].square().sum().backward()
        assert other.grad.eq(0).all()
        ways = [*made.squeeze.parameters(), *made.excite["b"].parameters()]
        assert all(p.grad.eq(0).all() for p in ways)  # zeros, not None: DDP waits

    def test_evaluation_takes_the_gates_as_they_are(self):
        made, x = self.curated()
        found = made.eval()(x)
        made.curate({"b": torch.tensor(False)})
        assert torch.equal(found["b"], made.train()(x)["b"])

    def test_the_average_goes_on_meanwhile(self):
        made, x = self.curated()
        made({name: value + 1 for name, value in x.items()})
        before = made.averages()["b"].clone()
        made.update(made.observed())
        assert not torch.equal(made.averages()["b"], before)


MODALITIES = {
    "picture": Modality("picture", "image", (1, 8, 8), torch.zeros(1), torch.ones(1)),
    "spectrum": Modality("spectrum", "image", (2, 40, 33), torch.zeros(2), torch.ones(2)),
    "clip": Modality("clip", "video", (2, 1, 8, 8), torch.zeros(1), torch.ones(1)),
    "words": Modality("words", "sequence", (9, 3), torch.zeros(3), torch.ones(3)),
    "facts": Modality("facts", "vector", (5,), torch.zeros(5), torch.ones(5)),
}


def model(*names, encoders=None, head="mmtm"):
    torch.manual_seed(0)
    made = {name: encoder_for(MODALITIES[name], 8) for name in names}
    return LateFusion({**made, **(encoders or {})}, 4, head)


def batch(*names, n=3, seed=0):
    stream = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(n, *MODALITIES[name].shape, generator=stream) for name in names}
    if "words" in inputs:
        inputs["words"] = Padded(inputs["words"], torch.tensor([9, 4, 1, 7][:n]))
    return inputs


class TestHead:
    def test_by_hand(self):
        head = HEADS["mmtm"]({"a": 2, "b": 3}, 4).double()
        x = {"a": torch.randn(5, 2).double(), "b": torch.randn(5, 3).double()}
        logits, own = head(x)
        for sample in range(5):
            total = torch.zeros(4).double()
            for name, gate in gates_by_hand(head.block, x, sample).items():
                layer = head.heads[name]
                z = layer.weight @ (gate * x[name][sample]) + layer.bias
                torch.testing.assert_close(own[name][sample], z, rtol=1e-12, atol=1e-12)
                total += z / 2
            torch.testing.assert_close(logits[sample], total, rtol=1e-12, atol=1e-12)

    def test_other_encoders_have_a_block_on_their_features_only(self):
        made = model("facts", encoders={"own": nn.Linear(2, 3)})
        assert len(made.head.inner) == 0
        assert made.head.block.widths == {"facts": 8, "own": 3}
        output = made({**batch("facts"), "own": torch.randn(3, 2)})
        own = made.encoders["own"](torch.ones(3, 2))
        again = made({**batch("facts", seed=1), "own": torch.ones(3, 2)})
        assert torch.equal(again.features["own"], own)
        assert output.logits.shape == (3, 4)


@pytest.mark.parametrize("name", MODALITIES)
def test_with_factors_of_one_the_stages_are_the_encoder(name):
    encoder = encoder_for(MODALITIES[name], 8).eval()
    assert isinstance(encoder, Staged)
    x = batch(name)[name]
    run, widths = encoder.staged(x), []
    value = next(run)
    try:
        while True:
            widths.append(value.shape[1])
            value = run.send(torch.ones_like(value))
    except StopIteration as stop:
        torch.testing.assert_close(stop.value, encoder(x), rtol=1e-6, atol=1e-7)
    assert tuple(widths) == encoder.stage_widths


@pytest.mark.parametrize("name", MODALITIES)
def test_a_factor_scales_its_channel(name):
    """A channel multiplied by zero is gone: what would have been in it makes no difference."""
    encoder = encoder_for(MODALITIES[name], 8).eval()
    x = batch(name)[name]

    def features(factor):
        run = encoder.staged(x)
        value = next(run)
        while True:
            try:
                value = run.send(value * 0 + factor(value))
            except StopIteration as stop:
                return stop.value

    assert not torch.allclose(features(lambda v: 2.0), features(lambda v: 1.0), atol=1e-4)
    assert not torch.allclose(features(lambda v: 0.0), features(lambda v: 1.0), atol=1e-4)


class TestLockstep:
    def test_blocks_stand_between_the_last_stages(self):
        made = model("picture", "words")
        assert [b.widths for b in made.head.inner] == [
            {"picture": 2, "words": 8},
            {"picture": 4, "words": 8},
        ]
        assert made.head.block.widths == {"picture": 8, "words": 8}
        made = model("picture", "words", "facts")
        assert [b.widths for b in made.head.inner] == [{"picture": 4, "words": 8, "facts": 8}]

    def test_by_hand(self):
        """A picture passes its first stop alone, and meets the facts at its second."""
        made = model("picture", "facts").eval()
        inputs = batch("picture", "facts")
        picture, facts = made.encoders["picture"].layers, made.encoders["facts"].layers
        x, y = picture[:7](inputs["picture"]), facts[:3](inputs["facts"])
        met = made.head.inner[0]({"picture": x, "facts": y})
        features = {"picture": picture[7:](met["picture"]), "facts": facts[3:](met["facts"])}
        output = made(inputs)
        for name, value in features.items():
            torch.testing.assert_close(output.features[name], value)
        torch.testing.assert_close(output.logits, made.head(features)[0])

    def test_the_block_on_a_resnets_features_is_one_after_its_last_stage(self):
        made = model("picture", "spectrum").eval()
        inputs = batch("picture", "spectrum")
        layers = {name: encoder.layers for name, encoder in made.encoders.items()}
        x = {name: layers[name][:6](value) for name, value in inputs.items()}
        for n, inner in enumerate(made.head.inner):
            x = {name: layers[name][6 + n](value) for name, value in inner(x).items()}
        last = {name: value.mean((2, 3)) for name, value in made.head.block(x).items()}
        z = [made.head.heads[name](value) for name, value in last.items()]
        torch.testing.assert_close(made(inputs).logits, sum(z) / 2)

    @pytest.mark.parametrize(
        "names", [("picture", "words"), ("picture", "words", "facts", "spectrum"), ("words",)]
    )
    def test_everything_takes_a_gradient(self, names):
        made = model(*names)
        made(batch(*names)).logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())

    def test_the_modalities_reach_each_other(self):
        made = model("picture", "words").eval()
        inputs, other = batch("picture", "words"), batch("picture", "words", seed=1)
        mixed = made({"picture": inputs["picture"], "words": other["words"]})
        assert not torch.allclose(mixed.features["picture"], made(inputs).features["picture"])

    def test_padding_never_changes_a_sequence(self):
        made = model("picture", "words").eval()
        inputs = batch("picture", "words")
        values, length = inputs["words"]
        filled = torch.cat([values, torch.full((3, 5, 3), 7.0)], 1)
        for row, n in zip(filled, length.tolist(), strict=True):
            row[n:] = 1e6
        padded = made({"picture": inputs["picture"], "words": Padded(filled, length)})
        torch.testing.assert_close(padded.logits, made(inputs).logits, rtol=1e-4, atol=1e-5)

    def test_fuse_and_ablate(self):
        made = model("picture", "words", "facts").eval()
        inputs = batch("picture", "words", "facts")
        output = made(inputs)
        assert torch.equal(output.fuse(output.features), output.logits)
        assert torch.equal(output.ablate(["facts", "words", "picture"]), output.logits)
        zeros = {**inputs, "facts": torch.zeros(3, 5)}
        assert torch.equal(output.ablate(["picture", "words"]), made(zeros).logits)

    def test_a_modality_may_be_missing(self):
        made = model("picture", "words", "facts").eval()
        output = made(batch("picture", "facts"))
        assert set(output.features) == set(output.unimodal) == {"picture", "facts"}
        assert output.logits.isfinite().all()

    def test_mixed_precision_is_close(self):
        made = model("picture", "words").eval()
        inputs = batch("picture", "words")
        with torch.autocast("cpu", torch.bfloat16):
            rough = made(inputs).logits
        torch.testing.assert_close(rough.float(), made(inputs).logits, rtol=0.1, atol=0.05)

    def test_other_heads_take_each_encoder_by_itself(self):
        made = model("picture", "words", head="concat").eval()
        inputs = batch("picture", "words")
        output = made(inputs)
        for name, encoder in made.encoders.items():
            assert torch.equal(output.features[name], encoder(inputs[name]))
