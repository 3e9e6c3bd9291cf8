import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenly.data import Modality, Padded
from evenly.nn import MLP, FrameMean, ResNet, Standardise, TemporalConv, encoder_for
from evenly.nn.encoders import resumed


def _modality(kind, *shape, mean=0.0, std=1.0):
    features = {"image": shape[0], "video": shape[1 % len(shape)]}.get(kind, shape[-1])
    return Modality("x", kind, shape, torch.full((features,), mean), torch.full((features,), std))


CASES = [
    (_modality("vector", 12), MLP),
    (_modality("vector", 1), MLP),
    (_modality("sequence", 20, 7), TemporalConv),
    (_modality("sequence", 1, 3), TemporalConv),
    (_modality("image", 1, 4, 8), ResNet),
    (_modality("image", 1, 1, 1), ResNet),
    (_modality("image", 3, 28, 28), ResNet),
    (_modality("image", 1, 64, 176), ResNet),
    (_modality("image", 3, 128, 300), ResNet),
    (_modality("image", 1, 300, 20), ResNet),
    (_modality("video", 2, 3, 40, 48), FrameMean),
    (_modality("video", 1, 1, 4, 8), FrameMean),
]


@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_each_kind_has_an_encoder_that_gives_vectors(modality, kind):
    encoder = encoder_for(modality, width=16)
    assert type(encoder) is kind
    assert encoder.out_features == 16
    x = torch.randn(3, *modality.shape)
    features = encoder(x)
    assert features.shape == (3, 16)
    features.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


class TestSeveralPictures:
    """Samples of unequal numbers of pictures."""

    @pytest.mark.parametrize("training", [True, False])
    def test_features_are_the_mean_over_those_that_are_there(self, training):
        encoder = FrameMean(_modality("video", 3, 1, 4, 8), 16).train(training)
        x = torch.randn(3, 3, 1, 4, 8)
        x[0, 1:], x[2, 2:] = 1e6, torch.nan  # padding, whatever it holds
        length = torch.tensor([1, 3, 2])
        norm = encoder.frame.layers[2]
        found = encoder(Padded(x, length))
        counted = norm.running_mean.clone()
        norm.running_mean.zero_()
        one, *rest = encoder.frame(torch.cat([x[0, :1], x[1], x[2, :2]])).split(1)
        wanted = torch.cat([one, sum(rest[:3]) / 3, sum(rest[3:]) / 2])
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(norm.running_mean, counted)

    def test_none_at_all_are_zeros(self):
        encoder = FrameMean(_modality("video", 3, 1, 4, 8), 16).eval()
        assert not encoder(Padded(torch.zeros(2, 0, 1, 4, 8), torch.zeros(2).long())).any()

    def test_stops_change_nothing_by_themselves(self):
        encoder = FrameMean(_modality("video", 3, 1, 4, 8), 16).eval()
        x = Padded(torch.randn(3, 3, 1, 4, 8), torch.tensor([1, 3, 2]))
        run = encoder.staged(x)
        found = next(run)
        for width in encoder.stage_widths:
            assert found.shape == (3, width)
            found = resumed(run, torch.ones(3, width))
        torch.testing.assert_close(found, encoder(x))


def test_the_width_is_64_unless_set():
    assert encoder_for(_modality("vector", 12)).out_features == 64


def test_a_width_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"encoder_for: the width must be at least 4; found 3\."):
        encoder_for(_modality("vector", 12), width=3)


@pytest.mark.parametrize("shape", [(1, 4, 8), (1, 28, 28), (3, 64, 176)])
def test_a_batch_of_one_trains(shape):
    encoder = encoder_for(_modality("image", *shape), width=8).train()
    assert encoder(torch.randn(1, *shape)).shape == (1, 8)


def test_values_are_standardised_by_feature():
    modality = Modality("x", "vector", (2,), torch.tensor([10.0, -1.0]), torch.tensor([2.0, 0.5]))
    x = torch.tensor([[12, -1], [10, 0]], dtype=torch.int16)
    assert Standardise(modality)(x).tolist() == [[1, 0], [0, 2]]


def test_a_constant_is_only_centred():
    """A sample of other splits may differ from it."""
    modality = Modality("x", "vector", (2,), torch.tensor([10.0, 3.0]), torch.tensor([2.0, 0.0]))
    assert Standardise(modality)(torch.tensor([[12.0, 3], [10, 7]])).tolist() == [[1, 0], [0, 4]]


def test_images_are_standardised_by_channel():
    modality = Modality(
        "x", "image", (2, 1, 2), torch.tensor([100.0, 0.0]), torch.tensor([50.0, 1])
    )
    x = torch.tensor([[[[0, 200]], [[0, 3]]]], dtype=torch.uint8)
    assert Standardise(modality)(x).tolist() == [[[[-2, 2]], [[0, 3]]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("kind", "shape"), [("vector", (5,)), ("sequence", (4, 5)), ("image", (1, 4, 5))]
)
def test_stored_types_are_converted(kind, shape, dtype):
    encoder = encoder_for(_modality(kind, *shape), width=8).eval()
    x = torch.randint(0, 2, (3, *shape)).to(dtype)
    assert encoder(x).dtype == torch.float32
    assert torch.equal(encoder(x), encoder(x.float()))


def test_units_do_not_matter():
    """The same data in other units, with its own statistics, gives the same features."""
    x = torch.randn(6, 1, 8, 8)
    encoder = encoder_for(_modality("image", 1, 8, 8), width=8).eval()
    scaled = encoder_for(_modality("image", 1, 8, 8, mean=100.0, std=7.0), width=8).eval()
    scaled.load_state_dict(
        {k: v for k, v in encoder.state_dict().items() if not k.startswith("layers.0.")},
        strict=False,
    )
    torch.testing.assert_close(scaled(100 + 7 * x), encoder(x), rtol=1e-4, atol=1e-4)


def test_the_statistics_are_saved_with_the_weights():
    state = encoder_for(_modality("sequence", 4, 2, mean=3.0)).state_dict()
    assert state["standardise.mean"].tolist() == [3, 3]


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    more=st.integers(0, 9),
    filling=st.sampled_from([0.0, 1e6, -3.0]),
    training=st.booleans(),
)
def test_padding_never_changes_a_sequence(lengths, more, filling, training):
    torch.manual_seed(0)
    encoder = TemporalConv(_modality("sequence", 40, 3, mean=0.5, std=2.0), 8).train(training)
    alone = [torch.randn(1, n, 3) for n in lengths]
    values = torch.full((len(lengths), max(lengths) + more, 3), filling)
    for row, sequence in zip(values, alone, strict=True):
        row[: sequence.shape[1]] = sequence[0]
    together = encoder(Padded(values, torch.tensor(lengths)))
    expected = torch.cat([encoder(sequence) for sequence in alone])
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_padding_takes_no_gradient():
    encoder = TemporalConv(_modality("sequence", 6, 3), 8)
    values = torch.randn(2, 6, 3, requires_grad=True)
    encoder(Padded(values, torch.tensor([6, 2]))).square().sum().backward()
    assert values.grad[1, 2:].eq(0).all()
    assert values.grad[0].ne(0).all()


@pytest.mark.parametrize("modality", [case[0] for case in CASES[::2]])
def test_mixed_precision_is_close(modality):
    encoder = encoder_for(modality, width=16).eval()
    x = torch.randn(3, *modality.shape)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(x)
    torch.testing.assert_close(rough.float(), encoder(x), rtol=0.1, atol=0.05)


def test_a_sequence_of_no_steps_is_a_number():
    encoder = TemporalConv(_modality("sequence", 6, 3), 8)
    features = encoder(Padded(torch.zeros(2, 6, 3), torch.tensor([6, 0])))
    assert features[1].tolist() == [0] * 8


def test_time_matters():
    """The order of steps changes the features: it is no bag of steps."""
    encoder = TemporalConv(_modality("sequence", 10, 3), 8).eval()
    x = torch.randn(2, 10, 3)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "extent"),
    [((1, 4, 8), (4, 8)), ((1, 28, 28), (28, 28)), ((1, 64, 176), (16, 44))],
)
def test_only_large_images_are_reduced_by_the_stem(shape, extent):
    encoder = ResNet(_modality("image", *shape), 16)
    seen = []
    blocks = [m for m in encoder.layers if type(m).__name__ == "_BasicBlock"]
    blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    encoder(torch.randn(2, *shape))
    assert seen == [extent]
    assert len(blocks) == 3


def test_images_have_batchnorm_and_the_others_none():
    def norms(encoder):
        return [
            m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        ]

    assert norms(encoder_for(_modality("image", 1, 8, 8)))
    assert not norms(encoder_for(_modality("vector", 8)))
    assert not norms(encoder_for(_modality("sequence", 8, 8)))


def test_a_video_is_the_mean_of_its_frames():
    modality = _modality("video", 3, 3, 16, 16, mean=2.0, std=3.0)
    encoder = encoder_for(modality, width=8).eval()
    x = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    by_frame = torch.stack([encoder.frame(x[:, t]) for t in range(3)])
    torch.testing.assert_close(encoder(x), by_frame.mean(0))
    torch.testing.assert_close(encoder(x.flip(1)), encoder(x))


class TestText:
    def encoder(self, classes=5):
        return encoder_for(Modality("x", "text", (7, classes), torch.zeros(0), torch.zeros(0)), 8)

    def test_tokens_beyond_the_end_never_count(self):
        encoder = self.encoder().eval()
        tokens = torch.randint(0, 5, (3, 7), dtype=torch.int32)
        length = torch.tensor([2, 7, 0])
        other = tokens.clone()
        other[0, 2:] = 4
        assert torch.equal(encoder(Padded(tokens, length)), encoder(Padded(other, length)))
        assert encoder(Padded(tokens, length)).isfinite().all()

    def test_a_batch_without_a_single_token(self):
        none = Padded(torch.zeros(2, 0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))
        empty = Padded(torch.zeros(2, 7, dtype=torch.int32), none.length)
        encoder = self.encoder()
        assert torch.equal(encoder(none), encoder(empty))

    def test_unknown_tokens_are_token_one(self):
        encoder = self.encoder().eval()
        known, unknown = torch.tensor([[1, 2, 1]]), torch.tensor([[9, 2, 100]])
        length = torch.tensor([3])
        assert torch.equal(encoder(Padded(known, length)), encoder(Padded(unknown, length)))

    def test_order_matters_and_every_weight_learns(self):
        encoder = self.encoder()
        one, two = torch.tensor([[1, 2, 3, 4, 0]]), torch.tensor([[4, 3, 2, 1, 0]])
        length = torch.tensor([5])
        assert not torch.allclose(encoder(Padded(one, length)), encoder(Padded(two, length)))
        encoder(Padded(one, length)).sum().backward()
        assert all(p.grad is not None for p in encoder.parameters())
