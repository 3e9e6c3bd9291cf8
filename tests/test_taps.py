import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
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


def test_what_counts_as_features():
    sequence = torch.arange(12.0).reshape(2, 3, 2)
    assert run(Says(torch.ones(2, 4, 3, 3, 3))).shape == (2, 4)
    assert torch.equal(run(Says(SimpleNamespace(last_hidden_state=sequence))), sequence.mean(1))
    pooled = SimpleNamespace(last_hidden_state=sequence, pooler_output=torch.ones(2, 5, 1, 1))
    assert run(Says(pooled)).shape == (2, 5)
    assert run(Says((torch.ones(2, 7), None))).shape == (2, 7)
    assert torch.equal(run(Says(sequence), pool=lambda x: x[:, 0]), sequence[:, 0])
    assert torch.equal(run(Says(sequence), pool={"m": lambda x: x[:, 1]}), sequence[:, 1])


def test_ambiguous_features_are_refused():
    with pytest.raises(ValueError, match=r"'m' have shape \(2, 3, 2\).*pool=lambda"):
        run(Says(torch.ones(2, 3, 2)))
    with pytest.raises(TypeError, match="returned str"):
        run(Says("text"))
