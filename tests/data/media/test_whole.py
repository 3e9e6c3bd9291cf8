"""Files whose headers lie about their length."""

import struct
from io import BytesIO

import numpy as np
import pytest
import soundfile

from clips import write_video
from evenly.data.media import MediaError, read_sound
from evenly.data.media.whole import check_whole
from evenly.data.raw.readers import Array, Video

WAVE = 0.3 * np.sin(np.arange(20_000) / 6)


def sound(kind="WAV"):
    file = BytesIO()
    soundfile.write(file, WAVE, 16_000, format=kind)
    return file.getvalue()


def said(size, tail=b""):
    """A .wav file whose header gives its sound another length."""
    whole = sound()
    return whole[:40] + struct.pack("<I", size) + whole[44:] + tail


class TestSound:
    @pytest.mark.parametrize("size", [0, 2**32 - 1, 2**31 - 1, 40_000 + 44])
    def test_an_unknown_length_is_read_to_the_end(self, size):
        assert np.array_equal(read_sound(said(size))[0], read_sound(sound())[0])

    def test_a_length_that_is_too_short(self):
        with pytest.raises(MediaError, match="goes on for 30,000 bytes after the end that"):
            read_sound(said(10_000))

    @pytest.mark.parametrize("tail", [b"LIST\4\0\0\0abcd", bytes(1000), b"end"])
    def test_what_may_follow_a_sound(self, tail):
        assert len(read_sound(said(40_000, tail))[0]) == len(WAVE)

    def test_a_chunk_that_was_not_made_even(self):
        file = BytesIO()
        soundfile.write(file, WAVE[:999], 16_000, "PCM_U8", format="WAV")
        whole = file.getvalue()[: 44 + 999] + b"LIST\4\0\0\0abcd"
        assert len(read_sound(whole)[0]) == 999

    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "MP3"])
    def test_cut_off(self, kind):
        whole = sound(kind)
        assert len(read_sound(whole)[0]) == len(WAVE)
        said = rf"is cut off: it has [\d,]+ of the {len(whole):,} bytes that its header gives"
        with pytest.raises(MediaError, match=said):
            read_sound(whole[: len(whole) // 2])

    def test_mp3_behind_a_long_tag(self):
        whole = b"ID3\3\0\0\0\0\2\0" + bytes(256) + sound("MP3")
        assert len(read_sound(whole)[0]) == len(WAVE)
        with pytest.raises(MediaError, match="is cut off"):
            read_sound(whole[:-1000])

    def test_flac_that_does_not_know_its_length(self):
        whole = sound("FLAC")
        unknown = whole[:21] + bytes([whole[21] & 0xF0]) + bytes(4) + whole[26:]
        assert np.array_equal(read_sound(unknown)[0], read_sound(whole)[0])

    def test_flac_cut_off(self):
        whole = sound("FLAC")
        with pytest.raises(MediaError, match="cannot be decoded"):
            read_sound(whole[: len(whole) // 2])


class TestVideos:
    @pytest.mark.parametrize(
        ("suffix", "first"),
        [
            ("mp4", b"mdat"),
            ("mov", b"mdat"),
            ("mkv", b"\x1f\x43\xb6\x75"),
            ("webm", b"\x1f\x43\xb6\x75"),
            ("avi", b"movi"),
        ],
    )
    def test_cut_off(self, tmp_path, suffix, first):
        codec = "libvpx" if suffix == "webm" else "mpeg4"
        path = write_video(tmp_path / f"a.{suffix}", codec=codec)
        check_whole(path)
        whole = path.read_bytes()
        begin = whole.index(first)
        with pytest.raises(MediaError, match=r"is cut off: it has [\d,]+ of the [\d,]+ bytes"):
            Video(2, (8, 8))(whole[: begin + 200])

    def test_a_stream_of_no_stated_length(self, tmp_path):
        path = write_video(tmp_path / "a.mkv")
        whole = path.read_bytes()
        place = whole.index(b"\x18\x53\x80\x67") + 4
        live = whole[:place] + b"\x01" + b"\xff" * 7 + whole[place + 8 :]
        assert np.array_equal(Video(3, (8, 8))(live), Video(3, (8, 8))(path))


class TestArrays:
    def test_two_in_one_file(self):
        file = BytesIO()
        np.save(file, np.zeros(3))
        np.save(file, np.ones(3))
        with pytest.raises(MediaError, match="holds more than one array, or something after it"):
            Array()(file.getvalue())

    def test_cut_off(self):
        file = BytesIO()
        np.save(file, np.zeros(30))
        with pytest.raises(MediaError, match="is not a complete"):
            Array()(file.getvalue()[:-8])
