"""Models like timm's and torchvision's; neither is installed beside this torch."""

import sys

import pytest
import torch
from torch import nn

from evenly.data import Data, load
from evenly.lab.run.build import build_model
from evenly.lab.run.settings import Cell, Training

TIMM = """
from torch import nn

class ResNet(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.num_features = 6
        self.conv = nn.Conv2d(in_chans, 6, 3)
        self.fc = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes):
        self.fc = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def create_model(model_name, pretrained=False, num_classes=1000, in_chans=3):
    assert model_name == "resnet18" and not pretrained
    return ResNet(num_classes, in_chans)
"""
TORCHVISION = """
from torch import nn

class Net(nn.Module):
    def __init__(self, name, top):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.name = name
        setattr(self, name, top)

    def forward(self, x):
        return getattr(self, self.name)(self.conv(x).mean((2, 3)))

def resnet18(weights=None):
    return Net("fc", nn.Linear(6, 1000))

def vgg(weights=None):
    return Net("classifier", nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1000)))

def swin(weights=None):
    return Net("head", nn.Linear(6, 1000))

class Clips(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 6, (1, 3, 3))
        self.fc = nn.Linear(6, 400)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3, 4)))

def r3d_18(weights=None):
    return Clips()

def headless(weights=None):
    return Net("top", nn.Linear(6, 1000))
"""


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture(autouse=True)
def packages(tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text(TIMM)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    (tmp_path / "torchvision" / "models.py").write_text(TORCHVISION)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("timm", "torchvision", "torchvision.models", "flat"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("timm.create_model(model_name=resnet18,pretrained=false,num_classes=0,in_chans=1)", 6),
        ("timm.create_model(model_name=resnet18,in_chans=1)", 6),
        ("torchvision.models.resnet18(weights=null)", 6),
        ("torchvision.models.vgg", 5),
        ("torchvision.models.swin", 6),
    ],
)
def test_features_of_standardised_inputs(data, text, width):
    model = build_model(data, Cell(Training(encoders={"top": text}), "joint", 0)).eval()
    encoder = model.encoders["top"]
    assert encoder.out_features == width
    pictures = data.split("train").__getitems__(range(4))["inputs"]["top"]
    assert encoder(pictures).shape == (4, width)
    assert not any(isinstance(x, nn.Linear) and x.out_features == 1000 for x in model.modules())
    known = data.modalities["top"]
    standard = (pictures.float() - known.mean[:, None, None]) / known.std[:, None, None]
    torch.testing.assert_close(encoder(pictures), encoder[1](standard))


OWN = """
import torch
from torch import nn

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 1)

    def forward(self, x):
        return self.conv(x.float()).mean((2, 3, 4))

class Turned(Flat):
    def forward(self, x):
        return super().forward(x.transpose(1, 2))

class OneByOne(Flat):
    def forward(self, x):
        each = [self.conv(video.float().transpose(0, 1)).mean((1, 2, 3)) for video in x]
        return torch.stack(each)
"""


@pytest.fixture
def clips():
    """Videos of three frames, which look like three channels."""
    x = torch.randint(0, 256, (12, 3, 3, 8, 8), dtype=torch.uint8)
    rows = dict.fromkeys(("train", "val", "test"), torch.arange(12))
    return Data("mine", {"eye": x}, torch.arange(12) % 2, rows, ["no", "yes"])


def test_torchvisions_models_of_videos_get_channels_before_time(clips):
    training = Training(encoders={"eye": "torchvision.models.r3d_18"})
    encoder = build_model(clips, Cell(training, "joint", 0)).encoders["eye"].eval()
    x = clips.split("train").__getitems__(range(4))["inputs"]["eye"]
    known = clips.modalities["eye"]
    turned = x.float().transpose(1, 2)
    mean, std = known.mean[:, None, None, None], known.std[:, None, None, None]
    torch.testing.assert_close(encoder(x), encoder[-1]((turned - mean) / std))


def test_an_own_convolution_that_takes_frames_for_channels(clips, tmp_path):
    (tmp_path / "flat.py").write_text(OWN)
    for name in ("flat.Turned", "flat.OneByOne"):
        build_model(clips, Cell(Training(encoders={"eye": name}), "joint", 0))
    with pytest.raises(ValueError, match=r"'eye' \(Flat\) passes videos, .* frames for channels"):
        build_model(clips, Cell(Training(encoders={"eye": "flat.Flat"}), "joint", 0))


def test_a_model_without_a_layer_to_take_off(data):
    training = Training(encoders={"top": "torchvision.models.headless"})
    with pytest.raises(ValueError, match="Net has no linear layer in fc, classifier, head, heads"):
        build_model(data, Cell(training, "joint", 0))
