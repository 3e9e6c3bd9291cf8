"""Sound and pictures of one file are cut from the same instants, and frames stay in their order."""

import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from clips import write_flash, write_video
from evenly.data.media import MediaError, NoStream, frames_of, read_sound
from evenly.data.raw.readers import Flow, Image, Video

KINDS = {
    "mp4": ("mpeg4", "aac"),
    "mov": ("libx264", "pcm_s16le"),
    "mkv": ("libx264", "libmp3lame"),
    "webm": ("libvpx", "libopus"),
    "ts": ("libx264", "aac"),
    "mpg": ("mpeg1video", "mp2"),
    "flv": ("flv", "aac"),
}


def beep(path, stream=0):
    """When the beep is heard, in seconds."""
    samples, rate = read_sound(path, stream=stream)
    return np.flatnonzero(np.abs(samples) > 0.2)[0] / rate


def flash(path):
    """When the flash is seen."""
    frames = Video(200, (4, 4), "rate", 100.0)(path)
    return frames.mean((1, 2, 3)).argmax() / 100


class TestBothStreams:
    @pytest.mark.parametrize(("pictures", "sound"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.4)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_instants(self, tmp_path, kind, pictures, sound):
        path = write_flash(tmp_path / f"a.{kind}", pictures, sound, KINDS[kind])
        assert flash(path) == pytest.approx(beep(path), abs=0.04)
        assert flash(path) == pytest.approx(0.8, abs=0.06)

    @pytest.mark.parametrize("pictures", [0.0, 0.4])
    def test_in_avi_which_knows_no_late_sound(self, tmp_path, pictures):
        path = write_flash(tmp_path / "a.avi", pictures, 0.0, ("libx264", "aac"))
        assert flash(path) == pytest.approx(beep(path), abs=0.04)

    def test_what_comes_before_a_late_stream(self, tmp_path):
        path = write_flash(tmp_path / "sound.mkv", 0.0, 0.4, ("mpeg4", "pcm_s16le"))
        samples, rate = read_sound(path)
        assert not samples[: round(0.4 * rate)].any()
        path = write_flash(tmp_path / "pictures.mp4", 0.76)
        frames = Video(4, (4, 4), "rate", 4.0)(path)  # black at 0.76, the flash at 0.8
        assert frames.mean((1, 2, 3)) == pytest.approx([0, 0, 0, 0], abs=2)
        assert frames_of(path).times[:2] == pytest.approx([0.76, 0.8])

    def test_sound_with_a_gap(self, tmp_path):
        path = write_flash(tmp_path / "a.mkv", codecs=("mpeg4", "pcm_s16le"), gap=(0.2, 0.6))
        assert beep(path) == pytest.approx(0.8, abs=0.002)

    def test_each_track_of_sound(self, tmp_path):
        path = write_flash(tmp_path / "a.mkv", 0.0, 0.4, ("mpeg4", "aac", "aac"))
        assert beep(path) == pytest.approx(flash(path), abs=0.04)
        assert beep(path, 1) == pytest.approx(flash(path), abs=0.04)

    @pytest.mark.parametrize("kind", ["ts", "mkv"])
    def test_a_clock_that_does_not_begin_at_0(self, tmp_path, kind):
        path = write_flash(tmp_path / f"a.{kind}", 0.0, 0.4, KINDS[kind], clock=100)
        with av.open(str(path)) as container:
            assert container.start_time > 99e6
        assert flash(path) == pytest.approx(beep(path), abs=0.04)
        assert flash(path) == pytest.approx(0.8, abs=0.06)

    def test_videos_one_after_another_in_one_file(self, tmp_path):
        one = write_flash(tmp_path / "1.ts", codecs=KINDS["ts"])
        path = tmp_path / "2.ts"
        path.write_bytes(2 * one.read_bytes())
        assert len(read_sound(path)[0]) == pytest.approx(2 * len(read_sound(one)[0]), abs=9600)
        assert len(frames_of(path)) == 2 * len(frames_of(one))
        assert len(Video(3, (4, 4))(path)) == 3
        with pytest.raises(
            MediaError, match=r"sets its clock back by 1\.\d s before frame 30; pic"
        ):
            flash(path)

    def test_a_gap_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("evenly.data.media.sound.LONGEST", 0.3)
        path = write_flash(tmp_path / "a.mkv", 0.0, 0.4)
        with pytest.raises(MediaError, match="has no sound for"):
            read_sound(path)


class TestSoundAlone:
    @pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff"])
    def test_as_libsndfile_reads_it(self, tmp_path, suffix):
        wave = 0.5 * np.sin(np.arange(20_000) * 0.1)
        soundfile.write(tmp_path / f"a.{suffix}", wave, 44_100)
        expected, _ = soundfile.read(tmp_path / f"a.{suffix}", dtype="float32")
        found, rate = read_sound(tmp_path / f"a.{suffix}")
        assert (rate, len(found)) == (44_100, len(expected))
        assert np.abs(found - expected).max() < 1e-4

    @pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
    def test_samples_of_any_depth_by_either_library(self, tmp_path, subtype):
        wave = 0.5 * np.sin(np.arange(2_000) * 0.1)[:, None] * [1, 0.5]
        soundfile.write(tmp_path / "a.wav", wave, 8_000, subtype)
        expected = read_sound(tmp_path / "a.wav")[0]
        assert expected == pytest.approx(wave.mean(1), abs=0.02)
        whole = (tmp_path / "a.wav").read_bytes()
        at = whole.index(b"data")
        unknown = whole[: at + 4] + struct.pack("<I", 0) + whole[at + 8 :]  # FFmpeg's
        assert np.array_equal(read_sound(unknown)[0], expected)


def tagged(sound, cover):
    """An .mp3 file's bytes with a cover in front."""
    body = b"\0image/png\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame + sound


class TestCovers:
    def test_a_cover_is_no_video(self, tmp_path):
        sound, cover = BytesIO(), BytesIO()
        soundfile.write(sound, 0.5 * np.sin(np.arange(20_000) * 0.1), 44_100, format="MP3")
        Pillow.new("RGB", (8, 8), (200, 0, 0)).save(cover, "PNG")
        file = tagged(sound.getvalue(), cover.getvalue())
        with av.open(BytesIO(file)) as container:
            assert len(container.streams.video) == 1
        for reader in (Video(), Image(), Flow()):
            with pytest.raises(NoStream, match="has no pictures"):
                reader(file)
        assert np.array_equal(read_sound(file)[0], read_sound(sound.getvalue())[0])


class TestWithoutTimes:
    @pytest.fixture
    def raw(self, tmp_path):
        return write_video(tmp_path / "a.h264", codec="libx264", b_frames=3)

    def test_frames_by_their_number(self, raw):
        assert len(frames_of(raw)) == 10
        assert Video(5, (4, 4))(raw).mean((1, 2, 3)) == pytest.approx(
            [20, 60, 100, 140, 180], abs=4
        )
        assert len(Video(3, (4, 4), "random")(raw)) == 3
        assert Image((4, 4))(raw).mean() == pytest.approx(100, abs=4)
        assert Flow(2, (16, 16))(raw).shape == (2, 3, 16, 16)

    def test_only_a_rate_needs_times(self, raw):
        with pytest.raises(MediaError, match="has no time stamps for its frames; pick=unif"):
            Video(2, (4, 4), "rate")(raw)

    def test_a_folder_has_no_times(self, tmp_path):
        for k in range(2):
            Pillow.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / f"{k}.png")
        with pytest.raises(
            MediaError, match="is a folder, whose pictures have no times; pick=unif"
        ):
            Video(2, (4, 4), "rate")(tmp_path)
        assert Video(2, (4, 4))(tmp_path)[:, 0, 0, 0].tolist() == [0, 1]
        assert Video(2, (4, 4), "rate")(tmp_path / "1.png")[:, 0, 0, 0].tolist() == [1, 1]

    @pytest.mark.parametrize("suffix", ["h264", "mpg", "avi", "mkv"])
    def test_the_order_of_showing(self, tmp_path, suffix):
        path = write_video(tmp_path / f"a.{suffix}", codec="libx264", b_frames=3)
        found = frames_of(path).read(np.arange(10)).mean((1, 2, 3))
        assert found == pytest.approx(np.arange(0, 200, 20), abs=4)

    def test_stamps_in_the_order_of_storing(self, tmp_path):
        path = write_video(tmp_path / "a.avi", codec="libx264", b_frames=3)
        with av.open(str(path)) as container:
            stamps = [frame.time for frame in container.decode(video=0)]
        assert stamps != sorted(stamps)
        assert np.diff(frames_of(path).times) == pytest.approx(0.04)

    def test_packets_of_nothing(self, tmp_path):
        with av.open(str(tmp_path / "a.nut"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height = stream.width = 32
            stream.pix_fmt = "yuv420p"
            for k in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * k, np.uint8))
                frame.pts, frame.time_base = 2 * k, Fraction(1, 25)
                empty = av.Packet(b"")
                empty.stream, empty.time_base = stream, Fraction(1, 25)
                empty.pts = empty.dts = 2 * k + 1
                container.mux([*stream.encode(frame), empty])
        found = frames_of(tmp_path / "a.nut").read(np.arange(5)).mean((1, 2, 3))
        assert found == pytest.approx([0, 40, 80, 120, 160], abs=4)


MATRICES = {
    "as it is": (1, 0, 0, 1),
    "turned": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "turned back": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "turned and mirrored": (0, 1, 1, 0),
}
"""Where a step to the right, and one down, leads."""


@pytest.mark.parametrize("name", MATRICES)
def test_as_the_file_turns_and_mirrors_it(tmp_path, name):
    path = write_video(tmp_path / "a.mp4", frames=1)
    picture = np.zeros((32, 48), np.uint8)
    picture[:16, :16] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1))))
        container.mux(stream.encode())
    a, b, c, d = MATRICES[name]
    plain, own = (
        struct.pack(">9i", w << 16, x << 16, 0, y << 16, z << 16, 0, 0, 0, 1 << 30)
        for w, x, y, z in ((1, 0, 0, 1), (a, b, c, d))
    )
    whole = path.read_bytes()
    place = whole.index(plain, whole.index(b"tkhd"))
    found = frames_of(whole[:place] + own + whole[place + 36 :]).read(np.array([0]))[0, 0]
    rows, columns = np.mgrid[:32, :48]
    x, y = a * columns + c * rows, b * columns + d * rows
    expected = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1))
    expected[y - y.min(), x - x.min()] = picture
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 10
