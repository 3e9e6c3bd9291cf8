"""Real clips of five containers, folders of frames, and files made here that are wrong."""

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from clips import write_video
from evenly.data.media import MediaError, NoStream, frames_of, read_sound, resampled, video
from evenly.data.raw import Wave


@pytest.fixture(scope="session")
def clips(shared_data):
    return shared_data / "media_clips"


@pytest.mark.data
class TestRealClips:
    @pytest.mark.parametrize(
        ("name", "stream", "count", "size", "fps"),
        [
            ("grid/bbaf2n.mpg", 0, 75, (288, 360), 25),
            ("misc/nasa_13013.mp4", 0, 325, (180, 320), 25),
            ("misc/nasa_13013.mp4", 1, 390, (270, 480), 30000 / 1001),
            ("misc/realshort.mp4", 0, 36, (240, 320), 30),
            ("misc/cockatoo.mp4", 0, 280, (720, 1280), 20),
            ("misc/flipping_a_pancake.mkv", 0, 310, (240, 426), 30),
            ("misc/mmaction_test.avi", 0, 164, (240, 320), 25),
        ],
    )
    def test_frames_are_as_many_and_as_large_as_their_source_says(
        self, clips, name, stream, count, size, fps
    ):
        frames = frames_of(clips / name, stream)
        assert len(frames.times) == count
        assert np.diff(frames.times).mean() == pytest.approx(1 / fps, rel=0.01)
        assert frames.read(np.array([0, count - 1])).shape == (2, 3, *size)

    def test_every_grid_clip(self, clips):
        found = sorted(clips.glob("grid/*.mpg"))
        assert len(found) == 12
        for path in found:
            assert len(frames_of(path).times) == 75
            samples, rate = read_sound(path)
            assert (len(samples), rate) == (131_328, 44_100)
            assert 0.01 < np.abs(samples).max() <= 1

    @pytest.mark.parametrize(
        ("name", "stream", "rate", "seconds"),
        [
            ("misc/nasa_13013.mp4", 0, 8_000, 13.06),
            ("misc/nasa_13013.mp4", 1, 16_000, 13.06),
            ("misc/realshort.mp4", 0, 48_000, 1.17),
            ("misc/cockatoo.mp4", 0, 16_000, 13.9),
            ("misc/flipping_a_pancake.mkv", 0, 48_000, 10.37),
            ("misc/mmaction_test.avi", 0, 44_100, 6.56),
            ("imagebind_pairs/dog_audio.wav", 0, 44_100, 2.61),
            ("imagebind_pairs/bird_audio.wav", 0, 44_100, 5.0),
            ("imagebind_pairs/car_audio.wav", 0, 44_100, 5.0),
        ],
    )
    def test_sound(self, clips, name, stream, rate, seconds):
        samples, found = read_sound(clips / name, stream=stream)
        assert found == rate
        assert len(samples) / rate == pytest.approx(seconds, abs=0.05)
        assert samples.dtype == np.float32
        loudest = np.abs(samples).max()
        silent = name == "misc/cockatoo.mp4"  # it has a track, of silence
        assert loudest == 0 if silent else 0.01 < loudest < 1.5  # lossy codecs overshoot

    @pytest.mark.parametrize("number", [1, 50, 100])
    def test_a_folder_of_frames(self, clips, number):
        frames = frames_of(clips / "ucf101_frames" / f"ApplyEyeMakeup_v_{number:06d}")
        assert len(frames) == 25
        assert frames.read(np.array([0, 24])).shape == (2, 3, 256, 340)
        assert frames.read(np.array([3]), (64, 80)).shape == (1, 3, 64, 80)

    @pytest.mark.parametrize("name", ["bird", "car", "dog"])
    def test_an_image(self, clips, name):
        path = clips / "imagebind_pairs" / f"{name}_image.jpg"
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(frames_of(path).read(np.array([0]))[0], expected)


class TestFrames:
    @pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".flv"])
    def test_the_frames_asked_for(self, tmp_path, suffix):
        codec = "flv" if suffix == ".flv" else "mpeg4"
        frames = frames_of(write_video(tmp_path / f"clip{suffix}", codec=codec))
        assert len(frames.times) == 10
        found = frames.read(np.array([1, 1, 7]))
        assert found.mean((1, 2, 3)) == pytest.approx([20, 20, 140], abs=4)

    def test_a_variable_frame_rate(self, tmp_path):
        path = write_video(tmp_path / "clip.mkv", 4, times=[0, 40, 520, 560])
        assert frames_of(path).times == pytest.approx([0, 0.04, 0.52, 0.56], abs=0.002)

    @pytest.mark.parametrize("name", ["clip.jpg", "clip.png", "clip.wav", "clip"])
    def test_a_video_under_another_name(self, tmp_path, name):
        write_video(tmp_path / "clip.mp4").rename(tmp_path / name)
        frames = frames_of(tmp_path / name)
        assert len(frames.times) == 10
        assert frames.read(np.array([7])).mean() == pytest.approx(140, abs=4)

    @pytest.mark.parametrize("name", ["picture.mp4", "picture.gif", "picture"])
    def test_an_image_under_another_name(self, tmp_path, name):
        Image.new("RGB", (8, 6), (3, 5, 7)).save(tmp_path / name, "PNG")
        assert frames_of(tmp_path / name).read(np.array([0]))[0, :, 0, 0].tolist() == [3, 5, 7]

    def test_moving_gifs(self, tmp_path):
        first, *others = [Image.new("RGB", (8, 6), (50 * k,) * 3) for k in range(3)]
        first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=100)
        frames = frames_of(tmp_path / "a.gif")
        assert frames.times == pytest.approx([0, 0.1, 0.2])
        assert frames.read(np.arange(3)).mean((1, 2, 3)) == pytest.approx([0, 50, 100], abs=1)

    def test_photographs_are_turned_upright(self, tmp_path):
        image = Image.new("RGB", (16, 8))
        image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper left corner as it lies in the file
        turned = image.getexif()
        turned[0x0112] = 6  # to be turned by 90 degrees, clockwise
        image.save(tmp_path / "a.jpg", exif=turned, quality=95)
        found = frames_of(tmp_path / "a.jpg").read(np.array([0]))[0, 0]
        assert found.shape == (16, 8)
        assert found[:8, 4:].mean() > 250
        assert found[8:].mean() < 5

    @pytest.mark.parametrize(("limit", "decoded"), [(video.KEPT, 1), (5 * 48 * 32, 2)])
    def test_a_short_video_is_decoded_once(self, tmp_path, monkeypatch, limit, decoded):
        runs = []
        pictures = video.pictures
        monkeypatch.setattr(video, "KEPT", limit)
        monkeypatch.setattr(video, "pictures", lambda *of: runs.append(of) or pictures(*of))
        frames = frames_of(write_video(tmp_path / "clip.mp4"))
        assert len(frames.times) == 10
        found = frames.read(np.array([1, 1, 7]))
        assert found.mean((1, 2, 3)) == pytest.approx([20, 20, 140], abs=4)
        assert len(runs) == decoded

    def test_scaled(self, tmp_path):
        frames = frames_of(write_video(tmp_path / "clip.mp4"))
        assert frames.read(np.array([2]), (16, 20)).shape == (1, 3, 16, 20)

    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_turned_upright(self, tmp_path, degrees):
        path, size = tmp_path / "clip.mp4", (32, 48)
        picture = np.zeros((*size, 3), np.uint8)
        picture[:16, :24] = 255  # the upper left corner as it lies in the file
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.set_display_rotation(degrees)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        expected = np.rot90(picture[..., 0], degrees // 90)
        found = frames_of(path).read(np.array([0]))[0, 0]
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 10

    def test_images_in_the_order_of_their_numbers(self, tmp_path):
        for number in (1, 2, 10):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
        (tmp_path / "notes.txt").write_text("no image")
        frames = frames_of(tmp_path)
        assert frames.read(np.arange(3))[:, 0, 0, 0].tolist() == [1, 2, 10]

    def test_grey_and_transparent_images(self, tmp_path):
        Image.new("L", (8, 6), 7).save(tmp_path / "1.png")
        Image.new("RGBA", (8, 6), (7, 7, 7, 0)).save(tmp_path / "2.png")
        assert (frames_of(tmp_path).read(np.arange(2)) == 7).all()


class TestSound:
    def test_the_mean_of_the_channels(self, tmp_path):
        samples = np.stack([np.full(100, 0.5), np.full(100, -0.25)], 1)
        soundfile.write(tmp_path / "a.wav", samples, 8_000, "FLOAT")
        found, rate = read_sound(tmp_path / "a.wav")
        assert rate == 8_000
        assert np.array_equal(found, np.full(100, 0.125, np.float32))

    def test_flac_is_without_loss(self, tmp_path):
        samples = (np.arange(-50, 50) / 128).astype(np.float32)
        soundfile.write(tmp_path / "a.flac", samples, 8_000)
        assert np.array_equal(read_sound(tmp_path / "a.flac")[0], samples)

    @pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
    def test_resampling_keeps_a_tone(self, rate):
        seconds, hertz = 1.0, 440.0
        tone = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
        found = resampled(tone, 16_000, rate)
        assert len(found) == pytest.approx(rate * seconds, abs=2)
        expected = np.sin(2 * np.pi * hertz * np.arange(len(found)) / rate)
        inner = slice(len(found) // 10, -len(found) // 10)
        assert np.abs(found - expected)[inner].max() < 0.01

    def test_another_rate(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.zeros(44_100), 44_100)
        found, rate = read_sound(tmp_path / "a.wav", 16_000)
        assert (len(found), rate) == (16_000, 16_000)

    @pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.jpg"])
    def test_of_a_video_under_another_name(self, tmp_path, name):
        write_video(tmp_path / "clip.mp4", sound=1.0).rename(tmp_path / name)
        assert read_sound(tmp_path / name)[1] == 16_000

    def test_a_second_track(self, tmp_path):
        path = write_video(tmp_path / "clip.mkv", sound=0.5, tracks=2)
        for stream, loudest in ((0, 1), (1, 0.5)):
            assert np.abs(read_sound(path, stream=stream)[0]).max() == pytest.approx(loudest, 0.1)
            heard = Wave(0.5, stream=stream)(path)
            assert np.abs(heard).max() == pytest.approx(loudest, rel=0.1)

    def test_of_a_video(self, tmp_path):
        found, rate = read_sound(write_video(tmp_path / "clip.mp4", sound=1.0))
        assert rate == 16_000
        assert np.abs(found).max() == pytest.approx(1, abs=0.1)


class TestMessages:
    def failing(self, path, read):
        with pytest.raises(MediaError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        return caught.value.reason

    def pictures(self, path):
        frames = frames_of(path)
        return frames.read(np.arange(len(frames)))

    @pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
    def test_no_file(self, tmp_path, name):
        assert self.failing(tmp_path / name, read_sound) == "file not found"

    @pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
    def test_empty(self, tmp_path, name):
        (tmp_path / name).touch()
        assert self.failing(tmp_path / name, read_sound) == "the file is empty"

    @pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4"])
    def test_no_sound_file(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"not a sound" * 50)
        assert "be decoded" in self.failing(tmp_path / name, read_sound)

    def test_no_pictures(self, tmp_path):
        path = write_video(tmp_path / "a.mp4", frames=0, sound=0.5)
        assert self.failing(path, self.pictures) == "has no pictures"

    def test_no_sound(self, tmp_path):
        assert self.failing(write_video(tmp_path / "a.mp4"), read_sound) == "has no sound"

    def test_no_such_stream(self, tmp_path):
        path = write_video(tmp_path / "a.mp4")
        with pytest.raises(NoStream, match=r"has 1 stream of pictures.* stream 1 was asked for"):
            frames_of(path, 1).times  # noqa: B018

    def test_an_empty_sound(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.zeros(0), 8_000)
        assert "has no sound" in self.failing(tmp_path / "a.wav", read_sound)

    def test_too_short_for_another_rate(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.array([0.5]), 44_100)
        assert read_sound(tmp_path / "a.wav")[0] == pytest.approx(0.5, abs=1e-4)
        reason = self.failing(tmp_path / "a.wav", lambda path: read_sound(path, 16_000))
        assert reason == "is too short for 16000 samples a second: it holds 1"

    def test_a_second_stream_of_a_wav(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.zeros(100), 8_000)
        reason = self.failing(tmp_path / "a.wav", lambda path: read_sound(path, stream=1))
        assert reason == "has 1 stream of sound, but stream 1 was asked for"

    def test_samples_that_are_not_finite(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.array([0, np.nan]), 8_000, "FLOAT")
        assert "not finite" in self.failing(tmp_path / "a.wav", read_sound)

    def test_an_image_that_is_none(self, tmp_path):
        (tmp_path / "1.jpg").write_bytes(b"no image")
        assert "cannot be decoded" in self.failing(tmp_path / "1.jpg", self.pictures)

    def test_half_an_image(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "1.jpg")
        whole = (tmp_path / "1.jpg").read_bytes()
        (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
        assert "complete image" in self.failing(tmp_path / "1.jpg", self.pictures)

    def test_a_folder_without_images(self, tmp_path):
        assert self.failing(tmp_path, self.pictures) == "the folder holds no images"

    def test_frames_of_several_sizes(self, tmp_path):
        for number, size in enumerate([(8, 6), (6, 8)]):
            Image.new("RGB", size).save(tmp_path / f"{number}.png")
        assert "differ in size" in self.failing(tmp_path, self.pictures)
        assert frames_of(tmp_path).read(np.arange(2), (4, 4)).shape == (2, 3, 4, 4)
