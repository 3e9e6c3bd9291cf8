"""Each front end against its formula, written out slowly."""

import numpy as np
import pytest

from evenly.data.media.spectra import fbank, log_mel, log_stft

RATE = 16_000


@pytest.fixture
def sound():
    draws = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    tones = np.sin(2 * np.pi * 440 * t) + 0.3 * np.sin(2 * np.pi * 3000 * t)
    return (0.2 * tones + 0.01 * draws.standard_normal(RATE)).astype(np.float32)


def transform(frame, n_fft):
    """The discrete Fourier transform, term by term."""
    k, t = np.arange(n_fft // 2 + 1)[:, None], np.arange(len(frame))
    return (frame * np.exp(-2j * np.pi * k * t / n_fft)).sum(1)


def centred(x, n_fft, hop):
    """|STFT| with a periodic Hann window and mirrored edges, (bands, frames)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(x.astype(np.float64), n_fft // 2, mode="reflect")
    starts = range(0, len(x) + 1, hop)
    return np.abs(np.stack([transform(padded[s : s + n_fft] * window, n_fft) for s in starts], 1))


def triangles(scale, edges, frequencies):
    """Filters that rise and fall linearly between neighbouring edges on a scale."""
    x = scale(frequencies)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        rows.append(
            np.maximum(0, np.minimum((x - low) / (middle - low), (high - x) / (high - middle)))
        )
    return np.stack(rows)


def test_log_stft(sound):
    found = log_stft(sound[:3000])
    expected = np.log(centred(sound[:3000], 512, 353) + 1e-7)
    assert found.shape == (257, 1 + 3000 // 353)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_shape_of_the_field():
    assert log_stft(np.zeros(3 * 22_050, np.float32)).shape == (257, 188)


def slaney(hertz):
    """Linear to 1 kHz, logarithmic above."""
    hertz = np.asarray(hertz, dtype=np.float64)
    above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def slaney_hertz(mel):
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def test_log_mel(sound):
    x = sound[:3000]
    found = log_mel(x, RATE, bands=64)
    edges = slaney_hertz(np.linspace(0, slaney(RATE / 2), 66))
    filters = triangles(lambda f: f, edges, np.arange(513) * RATE / 1024)
    filters *= (2 / (edges[2:] - edges[:-2]))[:, None]
    power = filters @ centred(x, 1024, 160) ** 2
    assert found.shape == (64, 1 + 3000 // 160)
    np.testing.assert_allclose(found, 10 * np.log10(np.maximum(power, 1e-10)), atol=1e-2)


def test_silence_is_at_the_floor():
    assert (log_mel(np.zeros(3000, np.float32), RATE) == -100).all()


def kaldi(hertz):
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def test_fbank(sound):
    x = sound[:4000]
    found = fbank(x, RATE, bands=40)
    centre = x - x.mean()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    edges = np.linspace(kaldi(20), kaldi(RATE / 2), 42)
    filters = triangles(kaldi, edges, np.arange(257) * RATE / 512)
    rows = []
    for start in range(0, 4000 - 400 + 1, 160):
        frame = centre[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(transform(frame * window, 512)) ** 2
        rows.append(np.log(np.maximum(filters @ power, 1.192092955078125e-07)))
    assert found.shape == (40, len(rows)) == (40, 23)
    np.testing.assert_allclose(found, np.stack(rows, 1), atol=2e-3)


def test_louder_sound_is_more_everywhere(sound):
    for front in (log_stft, lambda x: log_mel(x, RATE), lambda x: fbank(x, bands=40)):
        assert (front(2 * sound) > front(sound)).all()


def test_too_short_for_a_window():
    with pytest.raises(ValueError, match="100 samples are less than a window of 400"):
        fbank(np.zeros(100, np.float32))


def test_the_bands_of_the_field_hold_no_more_than_a_few_empty_ones(sound):
    found = fbank(sound)
    assert found.shape == (128, 98)
    empty = (found == found[:, :1]).all(1)
    assert 0 < empty.sum() < 10
    assert not empty[20:].any()
