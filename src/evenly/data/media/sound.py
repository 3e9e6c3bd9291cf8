"""Sound from any container, as one channel of samples."""

import av
import numpy as np
import soundfile
from jaxtyping import Float

from evenly.data.media.container import sounds
from evenly.data.media.error import File, MediaError, opened
from evenly.data.media.whole import check_whole

Samples = Float[np.ndarray, " t"]
JITTER = 0.04
"""Seconds by which time stamps may be off before silence is inserted or sound dropped."""
LONGEST = 3600
"""Maximum seconds of inserted silence."""


def read_sound(file: File, rate: int | None = None, stream: int = 0) -> tuple[Samples, int]:
    """The mean of the channels of a sound.

    If a file also has pictures or other sound, silence fills the time before this one begins, and
    any gaps in its time stamps, so that all streams stay in sync.

    Args:
        file: Sound, or a video with sound, in any container that FFmpeg knows.
        rate: Samples per second to convert to; its own by default.
        stream: Which stream of sound, where a file has several.

    Returns:
        Samples (t) as 32-bit floats, full scale at ±1, and their number per second.

    Raises:
        MediaError: If the file is missing, empty or broken.
        NoStream: If it holds no such stream of sound.
    """
    samples, found = (stream == 0 and _wav(file)) or _stream(file, stream)
    if not len(samples):
        raise MediaError(file, "has no sound that can be decoded")
    if not np.isfinite(samples).all():
        raise MediaError(file, "holds samples that are not finite")
    if rate is None or rate == found:
        return samples, found
    brought = resampled(samples, found, rate)
    if not len(brought):
        raise MediaError(file, f"is too short for {rate} samples a second: it holds {len(samples)}")
    return brought, rate


def resampled(samples: Float[np.ndarray, " t"], rate: int, new: int) -> Float[np.ndarray, " u"]:
    """Sound at another rate, by FFmpeg's band-limited interpolation."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
    frame.rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return _joined([part.to_ndarray()[0] for part in parts])


def _wav(file: File) -> tuple[Samples, int] | None:
    """The sound of a .wav file, whatever its name, if libsndfile reads it; None for others.

    FFmpeg reads the same more slowly, and handles unusual files.
    """
    with opened(file) as source:
        if source.read(4) != b"RIFF":
            return None
        check_whole(file)
        source.seek(0)
        try:
            samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            return None
    return (samples.mean(1), rate) if len(samples) else None


def _stream(file: File, stream: int) -> tuple[Samples, int]:
    """The sound of any container, arranged by its time stamps."""
    parts: list[np.ndarray] = []
    rate = length = origin = 0
    for frame, time in sounds(file, stream):
        if rate and frame.sample_rate != rate:
            raise MediaError(
                file, f"changes from {rate} to {frame.sample_rate} samples a second midway"
            )
        rate = frame.sample_rate
        piece = _mono(frame)
        if time is not None:
            late = origin + round(time * rate) - length
            if length and late < -rate:  # it was joined from parts, each with its own clock
                origin -= late
            elif not length or abs(late) > JITTER * rate:
                if late > LONGEST * rate:
                    raise MediaError(file, f"has no sound for {late // rate:,} seconds in a row")
                parts.append(np.zeros(max(late, 0), np.float32))
                piece = piece[max(-late, 0) :]
                length += max(late, 0)
        parts.append(piece)
        length += len(piece)
    return _joined(parts), rate


def _mono(frame: av.AudioFrame) -> Samples:
    """The mean of a frame's channels: FFmpeg's mixing would weight them by speaker position."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 128 - 1
    elif values.dtype.kind == "i":
        values = values * np.float32(2.0 ** (1 - 8 * values.dtype.itemsize))
    mean: Samples = values.astype(np.float32).mean(0)
    return mean


def _joined(parts: list[np.ndarray]) -> Samples:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
