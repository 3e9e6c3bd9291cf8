import pytest
import torch
from torch import nn

from evenly.data import collate, load
from evenly.data.dataset import Modality, Padded
from evenly.nn import HEADS, LateFusion, Standardise, encoder_for
from evenly.nn.heads import TOKEN_FUSIONS
from support import Merging


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small
    yield
    torch.set_num_threads(threads)


def test_the_head_reads_the_features_in_the_order_given():
    model = LateFusion({"b": nn.Linear(2, 3), "a": nn.Linear(4, 5)}, num_classes=7)
    inputs = {"a": torch.randn(6, 4), "b": torch.randn(6, 2)}
    output = model(inputs)
    assert list(output.features) == ["b", "a"]
    features = torch.cat([model.encoders["b"](inputs["b"]), model.encoders["a"](inputs["a"])], 1)
    torch.testing.assert_close(output.logits, model.head.linear(features))
    assert output.logits.shape == (6, 7)


def test_the_unimodal_logits_add_up():
    model = LateFusion({name: nn.Linear(2, 3) for name in "abc"}, num_classes=4)
    output = model({name: torch.randn(5, 2) for name in "abc"})
    torch.testing.assert_close(sum(output.unimodal.values()), output.logits)


def test_one_modality_is_enough():
    output = LateFusion({"a": nn.Linear(2, 3)}, 4)({"a": torch.randn(5, 2)})
    torch.testing.assert_close(output.unimodal["a"], output.logits)


def test_an_encoder_without_a_width_is_explained():
    with pytest.raises(ValueError, match=r"encoder 'a' \(ReLU\) has no `out_features`"):
        LateFusion({"a": nn.ReLU()}, 4)


def test_no_encoder_is_explained():
    with pytest.raises(ValueError, match="LateFusion needs an encoder for each modality"):
        LateFusion({}, 4)


def two(head="concat", dropout=False):
    encoders = {name: nn.Linear(2, 3) for name in "ab"}
    if dropout:
        encoders["a"] = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        encoders["a"].out_features = 3
    return LateFusion(encoders, 4, head), {name: torch.randn(5, 2) for name in "ab"}


def test_fuse_and_ablate_keep_the_precision_of_the_pass():
    """A loss is asked for outside of autocast."""
    model, inputs = two()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(inputs)
    assert torch.equal(output.fuse(output.features), output.logits)
    assert torch.equal(output.ablate(["a", "b"]), output.logits)
    output = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output.fuse(output.features), output.logits)


def test_an_unknown_head_is_explained():
    with pytest.raises(ValueError, match=r"unknown head 'cocat'\. Did you mean concat"):
        two("cocat")


@pytest.mark.parametrize("head", [name for name in HEADS if name not in TOKEN_FUSIONS])
class TestEveryHead:
    def test_fuse_gives_the_prediction_of_the_same_features(self, head):
        model, inputs = two(head)
        output = model.eval()(inputs)
        torch.testing.assert_close(output.fuse(output.features), output.logits)
        assert output.logits.shape == (5, 4)
        assert list(output.unimodal) == ["a", "b"]

    def test_fuse_gives_gradients_of_changed_features(self, head):
        model, inputs = two(head)
        output = model(inputs)
        changed = {name: (2 * value).detach() for name, value in output.features.items()}
        changed["a"].requires_grad_()
        output.fuse(changed).square().sum().backward()
        assert changed["a"].grad.abs().sum() > 0

    def test_a_missing_modality(self, head):
        model, inputs = two(head)
        output = model({"b": inputs["b"]})
        assert list(output.features) == list(output.unimodal) == ["b"]
        assert output.logits.isfinite().all()

    def test_no_modality_at_all(self, head):
        model, _ = two(head)
        with pytest.raises((ValueError, RuntimeError)):
            model({})


def test_a_missing_modality_counts_as_zeros():
    model, inputs = two()
    zeros = {"a": torch.zeros(5, 3), "b": model.encoders["b"](inputs["b"])}
    torch.testing.assert_close(model({"b": inputs["b"]}).logits, model.head(zeros)[0])


class TestAblate:
    def test_inputs_that_are_not_kept_are_zeros(self):
        model, inputs = two()
        found = model(inputs).ablate(["b"])
        expected = model({"a": torch.zeros(5, 2), "b": inputs["b"]}).logits
        torch.testing.assert_close(found, expected)

    def test_layers_that_merge_for_evaluation_are_parted(self):
        layers = {"a": Merging(), "b": Merging()}
        for layer in layers.values():
            layer.out_features = 2
        output = LateFusion(layers, 3)({name: torch.randn(5, 2) for name in layers})
        output.ablate(["a"])
        assert not any(layer.merged for layer in layers.values())

    def test_it_leaves_modes_and_statistics_and_gives_gradients(self):
        model, inputs = two(dropout=True)
        output = model(inputs)
        norm = model.encoders["a"][1]
        before = norm.running_mean.clone()
        output.ablate(["a"]).sum().backward()
        assert torch.equal(norm.running_mean, before)
        assert all(module.training for module in model.modules())
        assert model.encoders["a"][0].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("spec", ["digits(noise=0)", "synthetic(modalities=2)"])
    def test_what_standardises_its_input_is_given_its_mean(self, spec):
        data = load(spec)
        encoders = {name: encoder_for(m, width=8) for name, m in data.modalities.items()}
        model = LateFusion(encoders, len(data.class_names)).eval()
        inputs = data.split("val").__getitems__([0, 1, 2])["inputs"]
        gone, kept = list(inputs)
        standard = next(m for m in encoders[gone].modules() if isinstance(m, Standardise))
        mean = standard.mean.expand(inputs[gone].shape)
        expected = model({gone: mean, kept: inputs[kept]}).logits
        torch.testing.assert_close(model(inputs).ablate([kept]), expected)
        assert torch.equal(standard(mean), torch.zeros_like(mean))

    def test_padded_sequences_keep_their_lengths(self):
        modality = Modality("s", "sequence", (4, 2), torch.ones(2), torch.ones(2))
        model = LateFusion({"s": encoder_for(modality, 8)}, 3).eval()
        x = Padded(torch.randn(2, 4, 2), torch.tensor([4, 1]))
        expected = model({"s": Padded(torch.ones(2, 4, 2), x.length)}).logits
        torch.testing.assert_close(model({"s": x}).ablate([]), expected)


@pytest.mark.parametrize("spec", ["digits(noise=0)", "synthetic(modalities=3,information=4)"])
def test_it_learns_the_built_in_data(spec):
    data = load(spec)
    encoders = {name: encoder_for(m, width=32) for name, m in data.modalities.items()}
    model = LateFusion(encoders, len(data.class_names))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = torch.utils.data.DataLoader(
        data.split("train"), batch_size=64, shuffle=True, collate_fn=collate
    )
    for _ in range(8):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["inputs"]).logits, batch["target"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    val = data.split("val")
    batch = val.__getitems__(list(range(len(val))))
    with torch.no_grad():
        predicted = model.eval()(batch["inputs"]).logits.argmax(1)
    assert (predicted == batch["target"]).float().mean() > 0.9
