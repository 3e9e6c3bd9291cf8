from itertools import pairwise

import numpy as np
import pytest
import torch

from evenly.data import Modality, Padded, save_npz
from evenly.lab.run.augment import Augment
from evenly.lab.run.prepare import prepare
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training

PICTURE = Modality("eye", "image", (3, 16, 24), torch.zeros(3), torch.ones(3))
CLIP = Modality("clip", "video", (4, 3, 16, 24), torch.zeros(3), torch.ones(3))
SOUND = Modality("ear", "image", (1, 40, 60), torch.tensor([-7.0]), torch.ones(1))
ALL = {"eye": PICTURE, "clip": CLIP, "ear": SOUND}
ASKED = {"eye": "picture", "clip": "picture", "ear": "spectrum"}


def inputs():
    torch.manual_seed(0)
    return {name: torch.rand(5, *m.shape) * 200 for name, m in ALL.items()} | {
        "other": torch.rand(5, 3)
    }


def test_what_is_drawn_depends_on_seed_epoch_and_batch_alone():
    x = inputs()
    one = Augment(ASKED, ALL, 0)
    found = one(x, 3, 7)
    one(x, 1, 1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = Augment(ASKED, ALL, 0)(x, 3, 7)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ASKED:
        assert torch.equal(found[name], again[name])
        assert not torch.equal(found[name], x[name])
        for other in ((3, 8), (4, 7)):
            assert not torch.equal(found[name], one(x, *other)[name])
        assert not torch.equal(found[name], Augment(ASKED, ALL, 1)(x, 3, 7)[name])
    assert found["other"] is x["other"]


def test_a_part_of_the_picture_in_its_range():
    ramp = torch.arange(24.0).expand(3, 16, 24).repeat(200, 1, 1, 1).to(torch.uint8)
    found = Augment({"eye": "picture"}, ALL, 0)({"eye": ramp}, 0, 0)["eye"]
    assert found.shape == ramp.shape
    assert found.min() >= 0
    assert found.max() <= 23
    slope = (found[:, 0, 8, 20] - found[:, 0, 8, 4]).sign()
    assert 70 < (slope < 0).sum() < 130  # mirrored every second time
    span = found[:, 0, 8].amax(1) - found[:, 0, 8].amin(1)
    assert span.min() < 15 < 20 < span.max()


def test_frames_of_a_video_are_cut_alike():
    still = torch.rand(6, 1, 3, 16, 24).expand(6, 4, 3, 16, 24).contiguous()
    found = Augment({"clip": "picture"}, ALL, 0)({"clip": still}, 0, 0)["clip"]
    for frame in range(1, 4):
        torch.testing.assert_close(found[:, frame], found[:, 0])
    assert not torch.allclose(found[0], found[1])


def test_several_pictures_are_cut_alike_and_padding_stays_zero():
    modality = Modality("x", "video", (3, 3, 8, 10), torch.zeros(3), torch.ones(3))
    change = Augment({"x": "picture"}, {"x": modality}, seed=0)
    x = torch.rand(1, 3, 8, 10).expand(2, 3, 3, 8, 10).clone()
    x[1, 1:] = 0
    length = torch.tensor([3, 1])
    values, kept = change({"x": Padded(x, length)}, 0, 0)["x"]
    assert kept is length
    torch.testing.assert_close(values[0, 1], values[0, 0])
    assert values[1, 0].any()
    assert not values[1, 1:].any()
    none = Padded(x[:, :0], torch.zeros(2).long())
    assert change({"x": none}, 0, 0)["x"] is none


def test_a_stretch_of_bands_and_of_frames_is_blanked():
    x = torch.ones(300, 1, 40, 60, dtype=torch.float16)
    found = Augment({"ear": "spectrum"}, ALL, 0)({"ear": x}, 0, 0)["ear"][:, 0]
    assert set(found.unique().tolist()) == {-7.0, 1.0}
    blank = found == -7
    bands, frames = blank.all(2), blank.all(1)
    assert torch.equal(blank, bands[:, :, None] | frames[:, None, :])
    for stretch, size in ((bands, 40), (frames, 60)):
        count = stretch.sum(1)
        assert count.max() <= size // 5 + 1
        assert abs(count.float().mean() - size / 10) < size / 40
        edges = stretch.int().diff(dim=1).abs().sum(1)
        assert edges.max() <= 2  # one stretch


@pytest.fixture
def data(tmp_path):
    draws = np.random.default_rng(0)
    labels = np.arange(48) % 2
    eye = (draws.normal(size=(48, 3, 8, 8)) + labels[:, None, None, None]).astype(np.float32)
    arrays = {"eye": eye, "x": draws.normal(size=(48, 3)).astype(np.float32)}
    save_npz(tmp_path / "a.npz", labels, np.repeat([0, 1, 2], [24, 12, 12]), arrays)
    return str(tmp_path / "a.npz")


def last(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", ["joint", "mla"])
def test_a_run_is_augmented_and_repeats_exactly(data, tmp_path, method):
    found = {}
    for name, augment in (("plain", {}), ("one", {"eye": "picture"}), ("two", {"eye": "picture"})):
        training = Training(data, epochs=2, batch_size=8, width=8, augment=augment)
        run_cell(Cell(training, method, 0), tmp_path / name)
        found[name] = last(tmp_path / name)
    assert all(torch.equal(value, found["two"][key]) for key, value in found["one"].items())
    assert any(not torch.equal(value, found["plain"][key]) for key, value in found["one"].items())


@pytest.fixture
def drawn(monkeypatch):
    """What every call of an augmentation gave for the eye."""
    found, call = [], Augment.__call__

    def recorded(self, inputs, epoch, batch):
        changed = call(self, inputs, epoch, batch)
        found.append(changed["eye"].clone())
        return changed

    monkeypatch.setattr(Augment, "__call__", recorded)
    return found


def test_training_steps_alone_are_augmented_and_alike_for_every_method(data, drawn, tmp_path):
    training = Training(data, epochs=2, batch_size=8, width=8, augment={"eye": "picture"})
    for method in ("joint", "relearn(every=1)", "agm"):
        run_cell(Cell(training, method, 0), tmp_path / method)
    assert len(drawn) == 3 * 2 * 3  # methods, epochs, batches: no diagnosis, no evaluation
    for step in range(6):
        assert torch.equal(drawn[step], drawn[6 + step])
        assert torch.equal(drawn[step], drawn[12 + step])


def test_teachers_are_augmented(data, drawn, tmp_path):
    training = Training(data, epochs=2, batch_size=8, width=8, augment={"eye": "picture"})
    run_cell(Cell(training, "umt(teacher_epochs=3)", 0), tmp_path)
    assert len(drawn) == (3 + 2) * 3
    assert all(not torch.equal(x, y) for x, y in pairwise(drawn))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"ey": "picture"}, "unknown modality 'ey' of --augment. Did you mean eye"),
        ({"eye": "flip"}, "unknown augmentation 'flip'. Choose from: picture, spectrum"),
        ({"x": "picture"}, "--augment picture needs images and videos, but 'x' is vector"),
        ({"x": "spectrum"}, "--augment spectrum needs spectrograms, but 'x' is vector"),
    ],
)
def test_what_cannot_be_is_said_before_training(data, asked, wanted):
    with pytest.raises(ValueError, match=wanted.replace(".", r"\.")):
        prepare([Cell(Training(data, augment=asked), "joint", 0)])
