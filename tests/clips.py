"""Small clips, written by a real encoder."""

from fractions import Fraction

import av
import numpy as np


def write_video(
    path, frames=10, size=(32, 48), rate=25, codec="mpeg4", sound=0, times=None, tracks=1
):
    """A clip whose frame k is a plain grey of 20 k; `sound` seconds of a tone beside it.

    Of several tracks of sound, track n has the amplitude 1 / (n + 1).
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate) if frames else None
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
