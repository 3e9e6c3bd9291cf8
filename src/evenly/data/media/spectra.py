"""The field's three front ends for sound: pictures of (bands, frames).

Each is computed by `transformers.audio_utils`, with the settings of its source.
"""

import warnings
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float

from evenly.errors import UserError

Samples = Float[np.ndarray, " t"]
Spectrogram = Float[np.ndarray, "bands frames"]


def log_stft(samples: Samples, n_fft: int = 512, hop: int = 353) -> Spectrogram:
    """ln(|STFT| + 1e-7), periodic Hann window, centred frames with mirrored edges.

    The defaults are those of OGM-GE's released code (Peng et al., CVPR 2022), which give 257 × 188
    for three seconds at 22,050 samples per second.

    Args:
        samples: (t) sound; longer than n_fft / 2, for the mirrored edges.
        n_fft: Samples in a window.
        hop: Samples between two windows.

    Returns:
        n_fft / 2 + 1 bands, 1 + t // hop frames.
    """
    from transformers.audio_utils import spectrogram, window_function

    magnitude = spectrogram(samples, window_function(n_fft, "hann"), n_fft, hop, power=1.0)
    found: Spectrogram = np.log(magnitude + 1e-7).astype(np.float32)
    return found


def log_mel(
    samples: Samples, rate: int, bands: int = 128, n_fft: int = 1024, hop: int = 160
) -> Spectrogram:
    """10 · log10 of the power in mel bands (Slaney's scale and norm), at least -100 dB.

    Args:
        samples: (t) sound.
        rate: Samples per second.
        bands: Mel bands from 0 to half the rate.
        n_fft: Samples in a window, periodic Hann.
        hop: Samples between two windows.

    Returns:
        Decibels, 1 + t // hop frames, centred with mirrored edges.
    """
    from transformers.audio_utils import spectrogram, window_function

    filters = _filters(n_fft, bands, 0.0, rate, scale="slaney")
    power = spectrogram(
        samples, window_function(n_fft, "hann"), n_fft, hop, power=2.0, mel_filters=filters
    )
    found: Spectrogram = (10 * np.log10(power)).astype(np.float32)
    return found


def fbank(samples: Samples, rate: int = 16_000, bands: int = 128) -> Spectrogram:
    """Kaldi's log mel filter bank, as used by AST and the released code of D&R.

    Windows of 25 ms (symmetric Hann) every 10 ms, all within the sound; its mean and that of each
    window subtracted; pre-emphasis of 0.97; power in triangles on Kaldi's mel scale from 20 Hz to
    half the rate; natural logarithm. There is no dither.

    Args:
        samples: (t) sound, 25 ms or more.
        rate: Samples per second.
        bands: Mel bands.

    Returns:
        1 + (t - 0.025 · rate) // (0.010 · rate) frames. At 16 kHz a few of the lowest of 128 bands
        contain no frequency and are constant, as in the released code.
    """
    from transformers.audio_utils import spectrogram, window_function

    length, hop = round(0.025 * rate), round(0.010 * rate)
    if len(samples) < length:
        raise UserError(f"fbank: {len(samples)} samples are less than a window of {length}.")
    n_fft = 1 << (length - 1).bit_length()
    filters = _filters(n_fft, bands, 20.0, rate, scale="kaldi")
    window = window_function(length, "hann", periodic=False)
    found: Spectrogram = spectrogram(
        samples - samples.mean(),
        window,
        length,
        hop,
        fft_length=n_fft,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
        dtype=np.float32,
    )
    return found


@cache
def _filters(
    n_fft: int, bands: int, lowest: float, rate: int, scale: Literal["slaney", "kaldi"]
) -> Float[np.ndarray, "frequencies bands"]:
    """Triangles from `lowest` to half the rate; Kaldi's are linear in mel and not normalised."""
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        # The field's 128 bands are finer than its transform: a few low ones contain no frequency.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        found: Float[np.ndarray, "frequencies bands"] = mel_filter_bank(
            n_fft // 2 + 1,
            bands,
            lowest,
            rate / 2,
            rate,
            norm="slaney" if scale == "slaney" else None,
            mel_scale=scale,
            triangularize_in_mel_space=scale == "kaldi",
        )
    return found
