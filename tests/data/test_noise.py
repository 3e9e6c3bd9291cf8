import pytest
import torch

from evenly.data import Data, Padded, Ragged
from evenly.data.noise import noisy


def data():
    torch.manual_seed(1)
    n = 30
    rows = {"train": torch.arange(10), "val": torch.arange(10, 20), "test": torch.arange(20, 30)}
    length = 1 + torch.arange(n) % 3
    steps = Ragged(torch.randn(int(length.sum()), 2), length.cumsum(0) - length, length)
    words = Ragged(torch.ones(n, dtype=torch.int32), torch.arange(n), torch.ones(n).long())
    inputs = {
        "x": torch.randn(n, 5) * torch.tensor([1.0, 10, 1, 1, 0]),
        "eye": torch.randint(0, 255, (n, 3, 16, 16), dtype=torch.uint8),
        "steps": steps,
        "said": words,
    }
    return Data("mine", inputs, torch.arange(n) % 2, rows, ["no", "yes"])


def test_noise_has_the_level_asked_for_and_leaves_constants():
    spread = 2 * torch.tensor([1.0, 10.0, 0.0])
    made = noisy(torch.ones(4000, 3), spread, torch.arange(4000))
    assert made.mean(0).tolist() == pytest.approx([1, 1, 1], abs=0.5)
    assert made.std(0).tolist() == pytest.approx([2, 20, 0], rel=0.05)


def test_noise_in_deviations_of_a_constant_is_none():
    made, clean = (each.split("val").__getitems__(range(10))["inputs"]["x"]
                   for each in (data().noisy({"x": 3.0}), data()))  # fmt: skip
    assert torch.equal(made[:, 4], clean[:, 4])  # which is 0 in all samples
    assert not torch.isclose(made[:, :4], clean[:, :4]).any()


def test_a_samples_noise_is_its_own_in_any_batch():
    clean, made = data(), data().noisy({"x": 1.0, "eye": 0.5, "steps": 1})
    split = made.split("val")
    whole, part = split.__getitems__(range(10)), split.__getitems__([7, 2])
    for name in ("x", "eye"):
        assert torch.equal(whole["inputs"][name][[7, 2]], part["inputs"][name])
    one, other = whole["inputs"]["steps"], part["inputs"]["steps"]
    assert torch.equal(one.values[[7, 2], :2], other.values[:, :2])
    assert not one.values[7, int(one.length[7]) :].any()  # padding stays
    first = made.split("train").__getitems__([0])["inputs"]["x"]
    assert not torch.allclose(first, clean.split("train").__getitems__([0])["inputs"]["x"])
    assert torch.equal(whole["inputs"]["said"].values, torch.ones(10, 1))


def test_modalities_of_one_shape_have_noise_of_their_own():
    rows = {"train": torch.arange(500), "val": torch.arange(0), "test": torch.arange(0)}
    clean = (torch.arange(500.0) % 2)[:, None].expand(500, 4)
    both = {"one": clean, "other": clean}
    data = Data("mine", both, torch.arange(500) % 2, rows, ["no", "yes"])

    def drawn():
        noise = data.noisy({"one": 1.0, "other": 1.0}).split("train").__getitems__(range(500))
        return {name: x - clean for name, x in noise["inputs"].items()}

    one, other = (x.flatten() for x in drawn().values())
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.1
    assert torch.equal(drawn()["one"].flatten(), one)


def test_an_image_has_noise_by_channel():
    made = data().noisy({"eye": 2.0})
    clean = data()
    for split in ("train", "val", "test"):
        batches = [d.split(split).__getitems__(range(10))["inputs"]["eye"] for d in (made, clean)]
        deviation = (batches[0] - batches[1].float()).std((0, 2, 3))
        assert torch.allclose(deviation, 2 * clean.modalities["eye"].std, rtol=0.05)
    assert made.limited(4).split("train").__getitems__([0])["inputs"]["eye"].is_floating_point()


def test_noise_is_refused_where_there_can_be_none():
    with pytest.raises(ValueError, match="'said' is text"):
        data().noisy({"said": 1.0})
    with pytest.raises(ValueError, match="unknown modality 'ear'"):
        data().noisy({"ear": 1.0})


def test_padded_steps_of_no_length():
    x = Padded(torch.zeros(2, 3, 1), torch.tensor([0, 3]))
    made = noisy(x.values, torch.ones(1), torch.arange(2), length=x.length)
    assert not made[0].any()
    assert made[1].all()
