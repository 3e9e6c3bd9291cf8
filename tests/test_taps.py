import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import evenly


class Users(nn.Module):
    """A model as somebody else wrote it: nothing of it knows of modalities."""

    def __init__(self):
        super().__init__()
        self.ears = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.eyes = nn.ModuleDict({"net": nn.Conv2d(1, 2, 3)})
        self.out = nn.Linear(6, 2)

    def forward(self, sound, image):
        seen = self.eyes["net"](image).mean((2, 3))
        return self.out(torch.cat([self.ears(sound), seen], 1))


@pytest.fixture
def taps_and_model():
    model = Users()
    return evenly.capture(model, {"audio": "ears", "visual": "eyes.net"}), model


def test_features_are_those_that_enter_the_fusion(taps_and_model):
    taps, model = taps_and_model
    sound, image = torch.randn(5, 3), torch.randn(5, 1, 6, 6)
    logits = model(sound, image)
    features = taps.features()
    assert list(features) == ["audio", "visual"]
    torch.testing.assert_close(features["visual"], model.eyes["net"](image).mean((2, 3)))
    parts = evenly.split_linear(model.out, features)
    torch.testing.assert_close(parts["audio"] + parts["visual"], logits)


def test_encoders_are_the_models_own(taps_and_model):
    taps, model = taps_and_model
    assert taps.encoders == {"audio": model.ears, "visual": model.eyes["net"]}


def test_features_are_handed_out_once(taps_and_model):
    taps, model = taps_and_model
    model(torch.randn(5, 3), torch.randn(5, 1, 6, 6))
    taps.features()
    with pytest.raises(RuntimeError, match=r"no features of \['audio', 'visual'\]"):
        taps.features()


def test_gradients_flow_through(taps_and_model):
    taps, model = taps_and_model
    model(torch.randn(5, 3), torch.randn(5, 1, 6, 6))
    taps.features()["audio"].sum().backward()
    assert model.ears[0].weight.grad is not None


def test_removed_hooks_are_gone():
    model = Users()
    with evenly.capture(model, {"audio": "ears"}) as taps:
        pass
    model(torch.randn(5, 3), torch.randn(5, 1, 6, 6))
    with pytest.raises(RuntimeError):
        taps.features()


def test_an_encoder_that_runs_twice_is_told(taps_and_model):
    taps, model = taps_and_model
    inputs = torch.randn(5, 3), torch.randn(5, 1, 6, 6)
    with torch.no_grad():  # a validation of the user's own may leave features behind
        model(*inputs)
        model(*inputs)
    model(*inputs)
    taps.features()
    model(*inputs)
    with pytest.raises(RuntimeError, match="encoder of 'visual' ran twice"):
        model(*inputs)


def test_a_look_between_pass_and_features_loses_nothing_in_silence(taps_and_model):
    _, model = taps_and_model
    inputs = torch.randn(5, 3), torch.randn(5, 1, 6, 6)
    model(*inputs)
    with torch.no_grad(), pytest.raises(RuntimeError, match="ran twice"):
        model(*inputs)


def test_activation_checkpointing_is_one_pass():
    model = Users()
    taps = evenly.capture(model, {"audio": "ears"})
    inputs = torch.randn(5, 3, requires_grad=True), torch.randn(5, 1, 6, 6)
    for _ in range(2):
        with set_checkpoint_early_stop(False):
            checkpoint(model, *inputs, use_reentrant=False)
            taps.features()["audio"].sum().backward()


def test_copies_and_files_of_the_model_are_its_own(taps_and_model, tmp_path):
    taps, model = taps_and_model
    copy.deepcopy(model)(torch.randn(5, 3), torch.randn(5, 1, 6, 6))
    with pytest.raises(RuntimeError, match="no features"):
        taps.features()
    torch.save(model, tmp_path / "whole.pt")
    assert (tmp_path / "whole.pt").stat().st_size > 0


def test_a_copied_model_that_nobody_listens_to(taps_and_model):
    """An average of the weights, or a teacher, which may be trained on."""
    _, model = taps_and_model
    inputs = torch.randn(5, 3), torch.randn(5, 1, 6, 6)
    model(*inputs)  # its features hang on a graph, which cannot be copied
    average = torch.optim.swa_utils.AveragedModel(model)
    average(*inputs)
    average(*inputs)


def test_unknown_path_names_the_nearest():
    with pytest.raises(ValueError, match=r"no module 'eyes.nett' \(for 'visual'\).*'eyes.net'"):
        evenly.capture(Users(), {"visual": "eyes.nett"})


def run(module, pool=None):
    taps = evenly.capture(nn.ModuleDict({"m": module}), {"m": "m"}, pool=pool)
    module(torch.ones(2, 3))
    return taps.features()["m"]


class Says(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, _):
        return self.what


@pytest.mark.parametrize(("shape", "axes"), [((2, 7, 7, 9), (1, 2)), ((2, 4, 7, 7, 9), (1, 2, 3))])
def test_maps_whose_channels_seem_to_be_last(shape, axes):
    maps = torch.rand(shape)
    with pytest.raises(ValueError, match=r"'m' has shape \(2, .*7, 7, 9\), whose channels s"):
        run(Says(maps))
    assert run(Says(maps), lambda x: x.mean(axes)).shape == (2, 9)
    first = maps.movedim(-1, 1)
    torch.testing.assert_close(run(Says(first)), maps.mean(axes))
    assert run(Says(torch.ones(2, 5, 5, 3))).shape == (2, 5)
    assert run(Says(torch.ones(2, 30, 7, 7, 12))).shape == (2, 30)  # as many frames as rows


def test_what_counts_as_features():
    sequence = torch.arange(12.0).reshape(2, 3, 2)
    assert run(Says(torch.ones(2, 4, 3, 3, 3))).shape == (2, 4)
    assert torch.equal(run(Says(SimpleNamespace(last_hidden_state=sequence))), sequence.mean(1))
    pooled = SimpleNamespace(last_hidden_state=sequence, pooler_output=torch.ones(2, 5, 1, 1))
    assert run(Says(pooled)).shape == (2, 5)
    assert run(Says((torch.ones(2, 7), None))).shape == (2, 7)
    assert run(Says({"features": torch.ones(2, 7)})).shape == (2, 7)
    assert torch.equal(run(Says(sequence), pool=lambda x: x[:, 0]), sequence[:, 0])
    assert torch.equal(run(Says(sequence), pool={"m": lambda x: x[:, 1]}), sequence[:, 1])


class Text(nn.Module):
    """As Transformers' encoders without a pooler are called, and what they return."""

    def forward(self, steps, attention_mask=None, head_mask=None):
        return SimpleNamespace(last_hidden_state=steps)


class Own(nn.Module):
    def forward(self, steps, mask):
        return SimpleNamespace(last_hidden_state=steps)


class Inputs(Text):
    def forward(self, inputs, attention_mask=None):
        return SimpleNamespace(last_hidden_state=inputs["steps"])


class Sound(Text):
    """Its steps are fewer than the samples that its mask is of."""

    def _get_feature_vector_attention_mask(self, length, mask):
        return mask[:, :: mask.shape[1] // length]


class Seq2Seq(nn.Module):
    def forward(self, steps, attention_mask=None, decoder_attention_mask=None):
        return {"last_hidden_state": steps, "encoder_last_hidden_state": steps}


def called(module, *args, **kwargs):
    with evenly.capture(nn.ModuleDict({"m": module}), {"m": "m"}) as taps:
        module(*args, **kwargs)
        return taps.features()["m"]


STEPS = torch.tensor([[1.0, 2, 3, math.nan], [4, 6, math.nan, math.nan]])[..., None]
KEPT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
MEANS = torch.tensor([[2.0], [5.0]])


class TestPadding:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
    def test_the_mean_leaves_it_out(self, dtype):
        mask = KEPT.to(dtype)
        assert torch.equal(called(Text(), STEPS, mask), MEANS)
        assert torch.equal(called(Text(), STEPS, attention_mask=mask), MEANS)
        left = called(Text(), STEPS.flip(1), attention_mask=mask.flip(1))
        assert torch.equal(left, MEANS)

    def test_no_mask_and_no_step(self):
        steps = STEPS.nan_to_num(0)
        assert torch.equal(called(Text(), steps), steps.mean(1))
        assert torch.equal(called(Text(), steps, None), steps.mean(1))
        none = torch.zeros(2, 4, dtype=torch.long)
        assert torch.equal(called(Text(), STEPS, none), torch.zeros(2, 1))

    def test_where_the_mask_may_be(self):
        inputs = {"steps": STEPS, "attention_mask": KEPT}
        assert torch.equal(called(Inputs(), inputs), MEANS)
        compiled = torch.compile(Text(), backend="eager")
        assert torch.equal(called(compiled, STEPS, KEPT), MEANS)
        samples = KEPT.repeat_interleave(5, dim=1)
        assert torch.equal(called(Sound(), STEPS, samples), MEANS)

    def test_a_decoder_has_a_mask_of_its_own(self):
        other = torch.ones(2, 4)
        assert torch.equal(called(Seq2Seq(), STEPS, other, KEPT), MEANS)
        assert called(Seq2Seq(), STEPS, KEPT).isnan().all()

    def test_a_vector_of_the_whole_sample_needs_none(self):
        class Pooled(Text):
            def forward(self, steps, attention_mask=None):
                return {"last_hidden_state": steps, "text_embeds": MEANS}

        assert torch.equal(called(Pooled(), STEPS, torch.ones(2, 1, 4, 4)), MEANS)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (
                torch.ones(2, 1, 4, 4),
                r"'m' was given 'attention_mask', a mask of shape \(2, 1, 4, 4",
            ),
            (torch.ones(2, 4, 4), "does not say which steps are padding"),
            (torch.ones(2, 9), "but the output has 4 steps for 2 samples"),
            (-1e9 * (1 - KEPT), "is not 1 at steps and 0 at padding"),
            ({"full": KEPT}, "a dict, which does not say"),
        ],
    )
    def test_masks_that_cannot_tell(self, mask, message):
        with pytest.raises(ValueError, match=message):
            called(Text(), STEPS, mask)

    def test_a_mask_of_unknown_meaning(self):
        with pytest.raises(ValueError, match=r"'mask'.*meaning its name does not tell.*pool="):
            called(Own(), STEPS, KEPT)
        square = called(Own(), STEPS.nan_to_num(0), torch.ones(4, 4))  # is none of steps
        assert torch.equal(square, STEPS.nan_to_num(0).mean(1))

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
    def test_torchs_own_layers(self, batch_first, dtype):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first)
        encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=batch_first).eval()

        def ordered(x):
            return x if batch_first else x.transpose(0, 1)

        alone, beside = torch.randn(1, 3, 4), torch.randn(2, 5, 4)
        beside[0, :3] = alone[0]
        padding = torch.arange(5) >= torch.tensor([[3], [5]])
        if dtype != torch.bool:
            padding = torch.zeros(2, 5).masked_fill(padding, -math.inf)
        for module in (encoder, layer.eval()):
            expected = ordered(module(ordered(alone))).mean(1)
            torch.testing.assert_close(called(module, ordered(alone)), expected)
            found = called(module, ordered(beside), src_key_padding_mask=padding)
            torch.testing.assert_close(found[:1], expected)

    def test_packed_sequences(self):
        torch.manual_seed(0)
        gru = nn.GRU(2, 3, batch_first=True)
        x = torch.randn(2, 5, 2)
        packed = pack_padded_sequence(
            x, torch.tensor([2, 5]), batch_first=True, enforce_sorted=False
        )
        expected = [gru(x[:1, :2])[0].mean(1)[0], gru(x[1:])[0].mean(1)[0]]
        torch.testing.assert_close(called(gru, packed), torch.stack(expected))
        with pytest.raises(ValueError, match=r"have shape \(2, 5, 3\) after pooling"):
            called(gru, x)

    def test_half_precision_does_not_overflow(self):
        steps = torch.full((1, 2000, 1), 60.0, dtype=torch.float16)
        found = called(Text(), steps, torch.ones(1, 2000))
        assert torch.equal(found, torch.tensor([[60.0]], dtype=torch.float16))

    def test_a_text_has_the_same_features_beside_a_longer_one(self):
        transformers = pytest.importorskip("transformers")
        sizes = {"vocab_size": 20, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
        encoder = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes)).eval()
        short, long = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]])
        alone = called(encoder, short, torch.ones_like(short))
        beside = called(encoder, long, (long > 0).long())
        torch.testing.assert_close(beside[:1], alone)


def test_a_nested_tensor():
    x = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    assert torch.equal(run(Says(x)), torch.stack([torch.ones(3), torch.zeros(3)]))


@pytest.mark.parametrize("when", ["before", "after", "in place", "a part"])
def test_a_compiled_model(when):
    torch._dynamo.reset()
    model = compiled = Users()
    if when == "before":
        taps = evenly.capture(model, {"audio": "ears"})
    if when in ("before", "after"):
        compiled = torch.compile(model, backend="eager")
    elif when == "in place":
        model.compile(backend="eager")
    else:
        model.ears = torch.compile(model.ears, backend="eager")
    if when != "before":
        taps = evenly.capture(compiled, {"audio": "ears"})
    linear, relu = model.ears.children() if when != "a part" else model.ears._orig_mod
    sound = torch.randn(5, 3)
    for _ in range(2):
        with torch.no_grad():  # Dynamo warns of its own doing where gradients flow
            compiled(sound, torch.randn(5, 1, 6, 6))
            torch.testing.assert_close(taps.features()["audio"], relu(linear(sound)))


def test_a_model_that_was_compiled_and_run_before():
    torch._dynamo.reset()
    compiled = torch.compile(Users(), backend="eager")
    inputs = torch.randn(5, 3), torch.randn(5, 1, 6, 6)
    compiled(*inputs)
    taps = evenly.capture(compiled, {"audio": "ears"})
    compiled(*inputs)
    with pytest.raises(RuntimeError, match="compiled must not have run before capture"):
        taps.features()


def test_paths_in_a_wrapped_model():
    model = Users()
    wrapped = nn.DataParallel(model)
    for path in ("ears", "module.ears"):
        assert evenly.capture(wrapped, {"audio": path}).encoders == {"audio": model.ears}


def test_ambiguous_features_are_refused():
    with pytest.raises(ValueError, match=r"'m' have shape \(2, 3, 2\).*pool=lambda"):
        run(Says(torch.ones(2, 3, 2)))
    with pytest.raises(TypeError, match="returned str"):
        run(Says("text"))
    with pytest.raises(TypeError, match="returned tuple"):
        run(Says(()))
    two = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    with pytest.raises(TypeError, match=r"returned dict of \['a', 'b'\]"):
        run(Says(two))
