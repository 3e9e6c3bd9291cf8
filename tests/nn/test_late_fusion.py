import pytest
import torch
from torch import nn

from evenly.data import collate, load
from evenly.nn import LateFusion, encoder_for


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
    torch.testing.assert_close(output.logits, model.head(features))
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
