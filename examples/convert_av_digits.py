"""Spoken and handwritten digits to one .npz file: modalities `speech` and `image`, 10 digits.

`speech` is the log-mel spectrogram of the recording at 8 kHz (32 bands, a frame every 16 ms), a
sequence as long as the recording; `image` has the 28×28 pixels. The source's balanced pairs and
split are kept: no recording or image is in two splits. The pairing is artificial: different people
wrote and spoke. --snr adds white noise to the sound, to make it the weak modality.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from _convert import parser, read

from evenly.data import save_npz

RATE = 8000
FFT = 512
HOP = 128
BANDS = 32


def mel_filters() -> torch.Tensor:
    """(BANDS, FFT // 2 + 1): triangles, evenly spaced on the mel scale from 50 Hz to 4 kHz."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (50, RATE / 2))
    mel = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    corner = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    rise = (hertz - corner[:-2, None]) / (corner[1:-1] - corner[:-2])[:, None]
    fall = (corner[2:, None] - hertz) / (corner[2:] - corner[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0).float()


def log_mel(wave: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """(t, BANDS) in dB, from 32 ms of sound per frame; silence is -100 dB."""
    spectrum = torch.stft(
        wave,
        FFT,
        hop_length=HOP,
        win_length=FFT // 2,
        window=torch.hann_window(FFT // 2),
        pad_mode="constant",
        return_complex=True,
    )
    power = filters @ spectrum.abs().square()
    return 10 * power.clamp_min(1e-10).log10().T


def add_noise(wave: torch.Tensor, snr: float, generator: torch.Generator) -> torch.Tensor:
    """White noise whose mean power is `snr` dB below the recording's."""
    noise = torch.randn(wave.shape, generator=generator)
    level = wave.square().mean().sqrt() * 10 ** (-snr / 20)
    return wave + level * noise


def main(argv: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "av_digits")
    command.add_argument("--snr", type=float, metavar="DB", help="signal-to-noise ratio")
    arguments, source = read(command, argv, "av_digits.npz")
    generator = torch.Generator().manual_seed(0)
    filters = mel_filters()
    recordings = []
    for wave in np.split(source["waveform"], source["wave_offset"][1:-1]):
        sound = torch.from_numpy(wave).float() / 32768
        if arguments.snr is not None:
            sound = add_noise(sound, arguments.snr, generator)
        recordings.append(log_mel(sound, filters).numpy().astype(np.float16))
    speech = [recordings[number] for number in source["pair_audio"]]
    modalities = {
        "speech": np.concatenate(speech),
        "speech_offset": np.cumsum([0, *map(len, speech)]),
        "image": source["image"][source["pair_image"]],
    }
    save_npz(
        arguments.out,
        source["pair_label"],
        source["pair_split"],
        modalities,
        class_names=source["class_names"].tolist(),
    )
    print(f"{arguments.out}: {len(speech)} pairs of speech and image")


if __name__ == "__main__":
    main()
