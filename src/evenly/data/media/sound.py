"""Sound from any container, as one channel of samples."""

import av
import numpy as np
import soundfile
from jaxtyping import Float

from evenly.data.media.container import sounds
from evenly.data.media.error import File, MediaError, check_file, readable

Samples = Float[np.ndarray, " t"]


def read_sound(file: File, rate: int | None = None, stream: int = 0) -> tuple[Samples, int]:
    """The mean of the channels of a sound.

    Args:
        file: Sound, or a video with sound, in any container that FFmpeg knows.
        rate: Samples a second that it is brought to; its own by default.
        stream: Which stream of sound, where a file has several.

    Returns:
        Samples (t) as 32-bit floats, full scale at ±1, and their number a second.

    Raises:
        MediaError: If the file is missing, empty or broken.
        NoStream: If it holds no such stream of sound.
    """
    check_file(file)
    samples, found = _file(file) if stream == 0 and _is_plain(file) else _stream(file, stream)
    if not len(samples):
        raise MediaError(file, "holds no sound that can be decoded")
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


def _is_plain(file: File) -> bool:
    """Whether it is a .wav or .flac file, which libsndfile reads faster, whatever its name."""
    if isinstance(file, bytes):
        return file.startswith((b"RIFF", b"fLaC"))
    with file.open("rb") as opened:
        return opened.read(4) in (b"RIFF", b"fLaC")


def _file(file: File) -> tuple[Samples, int]:
    """What libsndfile reads, or else FFmpeg."""
    try:
        samples, rate = soundfile.read(readable(file), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        found = _stream(file, 0)
        if not len(found[0]):
            raise MediaError(file, f"cannot be decoded ({error.error_string})") from error
        return found
    return samples.mean(1), rate


def _stream(file: File, stream: int) -> tuple[Samples, int]:
    # FFmpeg's own mixing would weigh channels by their place in the room.
    plain = av.AudioResampler(format="fltp")
    parts, rate = [], 0
    for frame in sounds(file, stream):
        rate = frame.sample_rate
        parts += [part.to_ndarray().mean(0) for part in plain.resample(frame)]
    return _joined(parts), rate


def _joined(parts: list[np.ndarray]) -> Samples:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
