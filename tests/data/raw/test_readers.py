"""What becomes of single files and their bytes."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from clips import write_video
from evenly.data.media import MediaError
from evenly.data.raw import Wave
from evenly.data.raw.readers import Array, Flow, Image, Spectrogram, Video, words


class TestBytes:
    """A file in memory is read as the same file on the disk is."""

    def write(self, path):
        if path.suffix == ".npy":
            np.save(path, np.arange(6.0).reshape(2, 3))
        elif path.suffix in (".png", ".tif"):
            ramp = np.arange(0, 240, 5, np.uint8).reshape(6, 8)
            Pillow.fromarray(ramp).save(path)
        elif path.suffix in (".wav", ".flac", ".ogg", ".mp3"):
            soundfile.write(path, 0.3 * np.sin(np.arange(8_000) / 6), 16_000)
        else:
            write_video(path, sound=0.4)

    @pytest.mark.parametrize(
        ("name", "reader"),
        [
            ("a.npy", Array("sequence")),
            ("a.png", Image((6, 8))),
            ("a.tif", Video(2, (6, 8))),
            ("a.mp4", Video(3, (8, 12))),
            ("a.mkv", Video(2, (8, 12), pick="rate", fps=10.0)),
            ("a.avi", Flow(2, (16, 16))),
            ("a.mp4", Image((8, 12))),
            ("a.mp4", Wave(0.3)),
            ("a.wav", Wave(0.3)),
            ("a.flac", Spectrogram("mel", 0.3)),
            ("a.ogg", Wave(0.3, 8_000)),
            ("a.mp3", Wave(0.3)),
        ],
    )
    def test_as_the_file(self, tmp_path, name, reader):
        self.write(tmp_path / name)
        expected = reader(tmp_path / name)
        assert expected.size
        assert np.array_equal(reader((tmp_path / name).read_bytes()), expected)

    def test_random_frames_are_drawn_by_the_content(self, tmp_path):
        videos = [write_video(tmp_path / f"{n}.mp4", 10 + n).read_bytes() for n in (0, 1)]
        reader = Video(4, (2, 2), pick="random")
        assert np.array_equal(reader(videos[0]), reader(bytes(bytearray(videos[0]))))
        assert not np.array_equal(reader(videos[0]), reader(videos[1]))

    @pytest.mark.parametrize("reader", [Image(), Video(), Flow(), Wave(), Spectrogram(), Array()])
    def test_what_is_wrong(self, reader):
        with pytest.raises(MediaError, match=r"^a file in memory of 0 bytes: the file is empty$"):
            reader(b"")
        with pytest.raises(MediaError, match=r"^a file in memory of 3,300 bytes: (cannot|is no)"):
            reader(b"no such kind" * 275)

    def test_half_an_image(self):
        noise, file = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), BytesIO()
        Pillow.fromarray(noise).save(file, "JPEG")
        whole = file.getvalue()
        with pytest.raises(MediaError, match=r"in memory of .* is not a readable, complete image"):
            Image()(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("今天 2024年，很好", "今 天 2024 年 ， 很 好"),
        ("東京タワーへ Go", "東 京 タ ワ ー へ go"),
        ("ที่นี่ สวย", "ที่ นี่ ส ว ย"),
        ("မြန်", "မြ န်"),
        ("हिन्दी में।", "हिन्दी में ।"),
        ("한국어 문장", "한국어 문장"),
        ("CAFE\u0301 isn't, \u2764\ufe0f", "cafe\u0301 isn't , \u2764 \ufe0f"),
        ("Ça va? C'est 3,5 €", "ça va ? c'est 3 , 5 €"),
    ],
)
def test_words_in_scripts_with_and_without_blanks(text, tokens):
    assert words(text) == tokens.split()
