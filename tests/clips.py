"""Small clips, written by a real encoder."""

from fractions import Fraction

import av
import numpy as np


def write_video(
    path,
    frames=10,
    size=(32, 48),
    rate=25,
    codec="mpeg4",
    sound=0,
    times=None,
    tracks=1,
    b_frames=0,
):
    """A clip whose frame k is a plain grey of 20 k; `sound` seconds of a tone beside it.

    Of several tracks of sound, track n has the amplitude 1 / (n + 1). libx264 takes a number of
    `b_frames`, which are stored after the frame that follows them.
    """
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"bframes={b_frames}:b-adapt=0:scenecut=0"} if b_frames else {}
        video = container.add_stream(codec, rate=rate, options=options) if frames else None
        tones = [
            container.add_stream("aac", rate=16_000, layout="mono")
            for _ in range(tracks if sound else 0)
        ]
        if video:
            video.height, video.width, video.pix_fmt = *size, "yuv420p"
            for k in range(frames):
                picture = np.full((*size, 3), 20 * k, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[k], Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        for n, audio in enumerate(tones):
            wave = np.sin(np.arange(int(16_000 * sound)) * 0.2).astype(np.float32)[None] / (n + 1)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.rate = 16_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_flash(
    path, late_pictures=0.0, late_sound=0.0, codecs=("mpeg4", "aac"), gap=None, clock=0
):
    """A flash and a beep at 0.8 seconds, in 1.2 of black and silence.

    Args:
        path: Where to.
        late_pictures: Seconds before the first frame is shown.
        late_sound: Seconds before the sound begins.
        codecs: Of pictures and sound; each further one is another track of the same sound, which
            begins at 0.
        gap: First and last second of a part of the sound that is left out.
        clock: Seconds that the clock of the file shows at the beginning.
    """
    seconds, at, fps, rate = 1.2, 0.8, 25, 48_000
    wave = np.zeros(round(seconds * rate), np.float32)
    beep = 0.8 * np.sin(np.arange(rate // fps) * 0.8)
    wave[round(at * rate) :][: len(beep)] = beep
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=fps)
        video.height = video.width = 32
        video.pix_fmt = "yuv420p"
        if codecs[0] == "libx264":
            video.codec_context.max_b_frames = 2
        tracks = [container.add_stream(codec, rate=rate, layout="mono") for codec in codecs[1:]]
        packets = []
        for k in range(round(late_pictures * fps), round(seconds * fps)):
            value = 255 if k == round(at * fps) else 0
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8))
            frame.pts, frame.time_base = k + clock * fps, Fraction(1, fps)
            packets += video.encode(frame)
        packets += video.encode()
        for n, track in enumerate(tracks):
            step = track.codec_context.frame_size or 1024
            resampler = av.AudioResampler(track.format.name, "mono", rate, step)
            for begin in range(0 if n else round(late_sound * rate), len(wave) - step + 1, step):
                if gap and gap[0] <= begin / rate < gap[1]:
                    continue
                frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + step], "fltp", "mono")
                frame.rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = begin + clock * rate
                for piece in resampler.resample(frame):
                    packets += track.encode(piece)
            packets += track.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path
