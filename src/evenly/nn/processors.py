"""The preprocessing of inputs that pretrained weights expect, read from their folder."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evenly.errors import UserError

Takes = Literal["pictures", "clips", "spectrogram", "waves", "mel", "tokens"]
"""What a model takes: pictures one by one, clips of frames, an AST's spectrogram, waveforms,
Whisper's mel bands (computed from waveforms here), tokens."""


@dataclass(frozen=True)
class Processor:
    """Settings of a Transformers processor, only numbers and lists.

    Attributes:
        mean: Subtracted from each channel of byte pictures, or from a spectrogram.
        std: The divisor after that.
        size: Height and width of pictures.
        rate: Samples of sound per second.
        normalise: Whether each waveform is scaled to mean 0 and deviation 1.
        n_fft: Samples in a window of Whisper's mel bands.
        hop: Samples between two windows.
        pad: The token that fills texts up; None for the configuration's.
    """

    mean: list[float] | None = None
    std: list[float] | None = None
    size: list[int] | None = None
    rate: int | None = None
    normalise: bool | None = None
    n_fft: int = 400
    hop: int = 160
    pad: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The settings that recreate it."""
        return asdict(self)

    @staticmethod
    def of(place: str, takes: Takes) -> "Processor":
        """The processor beside weights; without settings if there is none."""
        if takes == "tokens":
            return Processor()
        found = _loaded(place, takes)
        if found is None:
            return Processor(rate=16_000) if takes == "mel" else Processor()
        if takes in ("pictures", "clips"):
            return _of_pictures(found)
        rate = int(found.sampling_rate)
        if takes == "mel":
            return Processor(rate=rate, n_fft=found.n_fft, hop=found.hop_length)
        if takes == "waves":
            return Processor(rate=rate, normalise=bool(found.do_normalize))
        if not found.do_normalize:
            return Processor([0.0], [1.0], rate=rate)
        return Processor([float(found.mean)], [2 * float(found.std)], rate=rate)


def _loaded(place: str, takes: Takes) -> Any:
    """A Transformers processor; None if there is no file of one."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    names = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    if not has_file(place, names):
        return None
    kind: Any = AutoImageProcessor if takes in ("pictures", "clips") else AutoFeatureExtractor
    try:
        return kind.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"cannot read the processor at '{place}' ({str(error).splitlines()[0]}). Save it "
            "again with processor.save_pretrained, or remove its file: inputs are then "
            "standardised with the statistics of the training split."
        ) from error


def has_file(place: str, names: Iterable[str]) -> bool:
    """Whether a folder, or a model on the hub, has one of these files."""
    from transformers.utils import cached_file

    return any(
        cached_file(
            place,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for name in names
    )


def _of_pictures(found: Any) -> Processor:
    factor = float(found.rescale_factor) if found.do_rescale else 1.0
    shift = 1.0 if getattr(found, "offset", None) or getattr(found, "rescale_offset", None) else 0.0
    mean = list(found.image_mean) if found.do_normalize else [0.0]
    std = list(found.image_std) if found.do_normalize else [1.0]
    return Processor(
        [(float(x) + shift) / factor for x in mean], [float(x) / factor for x in std], _size(found)
    )


def _size(found: Any) -> list[int] | None:
    """Height and width of a picture processor's output, if always the same."""
    cropped = getattr(found, "do_center_crop", None)
    size: Any = found.crop_size if cropped else (found.size if found.do_resize else None)
    height, width = (size and size.get(side) for side in ("height", "width"))
    return [int(height), int(width)] if height and width else None
