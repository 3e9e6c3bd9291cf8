"""Pictures of any depth."""

import struct

import av
import numpy as np
import pytest
from PIL import Image as Pillow

from evenly.data.media import MediaError, frames_of
from evenly.data.raw.readers import Image, Video

RAMP = np.linspace(0, 1, 64)[None].repeat(16, 0)
EIGHT = np.rint(255 * RAMP)


def grey(file):
    """The one picture of a file, whose three channels are alike."""
    found = frames_of(file).read(np.array([0]))[0].astype(int)
    assert (found == found[0]).all()
    return found[0]


def save(path, values, **settings):
    Pillow.fromarray(values).save(path, **settings)
    return path


def packed(path):
    """A TIFF of 12 bits, two pixels in three bytes."""
    values = np.rint(4095 * RAMP).astype(int).reshape(-1, 2)
    first, second = values.T
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    data = data.astype(np.uint8).tobytes()
    tags = {256: 64, 257: 16, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def deep_video(path, values, form):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *values.shape[:2], form
        for frame in (values, values):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, form)))
        container.mux(stream.encode())
    return path


class TestScale:
    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm"])
    def test_16_bits(self, tmp_path, name):
        path = save(tmp_path / name, np.rint(65535 * RAMP).astype(np.uint16))
        assert np.abs(grey(path) - EIGHT).max() <= (1 if name == "a.jp2" else 0)

    def test_16_bits_in_the_other_order_of_bytes(self, tmp_path):
        path = save(tmp_path / "a.tif", np.rint(65535 * RAMP).astype(">u2"))
        with Pillow.open(path) as image:
            assert image.mode == "I;16B"
        assert np.array_equal(grey(path), EIGHT)

    def test_12_bits(self, tmp_path):
        assert np.abs(grey(packed(tmp_path / "a.tif")) - EIGHT).max() <= 1

    def test_32_bits(self, tmp_path):
        path = save(tmp_path / "a.tif", (RAMP * (2**31 - 1)).astype(np.int32))
        assert np.array_equal(grey(path), EIGHT)

    def test_floating_point(self, tmp_path):
        assert np.array_equal(grey(save(tmp_path / "a.tif", RAMP.astype(np.float32))), EIGHT)

    def test_white_that_is_0(self, tmp_path):
        values = np.rint(65535 * (1 - RAMP)).astype(np.uint16)
        assert np.array_equal(grey(save(tmp_path / "a.tif", values, tiffinfo={262: 0})), EIGHT)

    def test_one_bit(self, tmp_path):
        assert np.array_equal(grey(save(tmp_path / "a.png", RAMP > 0.5)), 255 * (RAMP > 0.5))

    def test_all_black(self, tmp_path):
        assert not grey(save(tmp_path / "a.png", np.zeros((4, 4), np.uint16))).any()

    def test_turned_upright(self, tmp_path):
        values = np.rint(65535 * RAMP).astype(np.uint16)
        path = save(tmp_path / "a.tif", values, tiffinfo={0x0112: 6})
        assert np.array_equal(grey(path), np.rot90(EIGHT, -1))

    @pytest.mark.parametrize("form", ["gray16le", "gray12le", "gray10le"])
    def test_videos(self, tmp_path, form):
        white = 2 ** int(form[4:6]) - 1
        path = deep_video(tmp_path / "a.mkv", np.rint(white * RAMP).astype(np.uint16), form)
        assert np.abs(grey(path) - EIGHT).max() <= 1

    def test_colours_of_16_bits(self, tmp_path):
        values = np.rint(65535 * np.stack([RAMP, 1 - RAMP, RAMP], -1)).astype(np.uint16)
        path = deep_video(tmp_path / "a.mkv", values, "gbrp16le")
        found = frames_of(path).read(np.array([1]))[0]
        assert np.array_equal(found, np.stack([EIGHT, 255 - EIGHT, EIGHT]))

    @pytest.mark.parametrize("mode", ["CMYK", "LA", "P", "RGBA", "YCbCr"])
    def test_modes_of_8_bits(self, tmp_path, mode):
        image = Pillow.fromarray(EIGHT.astype(np.uint8))
        image = image.convert(mode) if mode in ("LA", "P") else image.convert("RGB").convert(mode)
        image.save(tmp_path / "a.tif")
        assert np.abs(grey(tmp_path / "a.tif") - EIGHT).max() <= 1

    def test_a_palette_with_transparency(self, tmp_path):
        image = Pillow.fromarray(EIGHT.astype(np.uint8)).convert("P")
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))
        assert np.array_equal(grey(tmp_path / "a.png"), EIGHT)

    def test_a_folder_of_tiffs(self, tmp_path):
        for n in (0.5, 1):
            save(tmp_path / f"{n}.TIF", np.rint(n * 65535 * RAMP).astype(np.uint16))
        (tmp_path / "._1.TIF").write_bytes(b"of a Mac")
        found = Video(2, (16, 64))(tmp_path)
        assert np.abs(found[0, 0] - EIGHT / 2).max() <= 1
        assert np.array_equal(found[1, 0], EIGHT)


class TestRefused:
    @pytest.mark.parametrize("name", ["a.png", "a.tif"])
    def test_12_bits_stored_in_16(self, tmp_path, name):
        path = save(tmp_path / name, np.rint(4095 * RAMP).astype(np.uint16))
        with pytest.raises(MediaError, match="from 0 to 4,095 where 65,535 is white"):
            Image()(path)

    @pytest.mark.parametrize(("low", "high"), [(0, 300), (-0.5, 0.5), (0, 0.01), (0, np.nan)])
    def test_floating_point_on_another_scale(self, tmp_path, low, high):
        path = save(tmp_path / "a.tif", (low + (high - low) * RAMP).astype(np.float32))
        with pytest.raises(MediaError, match=r"where 1 is white|not finite"):
            Image()(path)

    def test_a_scan_around_an_offset(self, tmp_path):
        """Of which 8 bits would keep ten levels; a picture that is all one is none."""
        scan = np.rint(32768 + 1000 * (2 * RAMP - 1)).astype(np.uint16)
        with pytest.raises(MediaError, match="from 31,768 to 33,768 where 65,535 is white"):
            Image()(save(tmp_path / "a.png", scan))
        even = Image()(save(tmp_path / "b.png", np.full_like(scan, 32768)))
        assert (even == 127).all() or (even == 128).all()

    def test_numbers_that_are_no_grey(self, tmp_path):
        path = save(tmp_path / "a.tif", np.rint(65535 * RAMP).astype(np.int32))
        with pytest.raises(MediaError, match="0 to 65,535 where 2,147,483,647 is white"):
            Image()(path)

    def test_a_video_of_depths(self, tmp_path):
        path = deep_video(tmp_path / "a.mkv", np.rint(8000 * RAMP).astype(np.uint16), "gray16le")
        with pytest.raises(MediaError, match="from 0 to 8,000 where 65,535 is white"):
            Video()(path)

    def test_colours_of_12_bits_stored_in_16(self, tmp_path):
        import cv2

        values = np.rint(4095 * np.stack([RAMP] * 3, -1)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / "a.png"), values)
        with pytest.raises(MediaError, match="from 0 to 15 where 255 is white"):
            Image()(tmp_path / "a.png")

    @pytest.mark.parametrize("suffix", ["tif", "webp"])
    def test_several_pictures_in_one(self, tmp_path, suffix):
        first, second = Pillow.new("RGB", (8, 8)), Pillow.new("RGB", (8, 8), (9, 9, 9))
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
        with pytest.raises(MediaError, match="holds 2 pictures; give one, or a folder of them"):
            Image()(tmp_path / f"a.{suffix}")

    def test_a_smaller_copy_beside_a_picture_is_none(self, tmp_path):
        image = Pillow.fromarray(EIGHT.astype(np.uint8))
        image.save(tmp_path / "a.tif", save_all=True, append_images=[image.resize((8, 2))])
        assert np.array_equal(grey(tmp_path / "a.tif"), EIGHT)

    def test_more_pixels_than_are_read(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.png", np.zeros((16, 16), np.uint8))
        monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(MediaError, match="has too many pixels"):
            Image()(path)
