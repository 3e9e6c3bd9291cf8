"""Readers turn one cell of a data set, usually a file, into an array when the set is prepared."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable
from unicodedata import category

import numpy as np
from jaxtyping import Float16, Float32, Int32, UInt8

from evenly.data.dataset import Kind
from evenly.data.media import flow, sampling, spectra
from evenly.data.media.error import File, MediaError, NoStream, opened
from evenly.data.media.sound import read_sound
from evenly.data.media.video import Frames, frames_of
from evenly.data.numbers import channels_first
from evenly.data.raw.rows import Part
from evenly.data.tabular import NAME
from evenly.errors import UserError
from evenly.spec import Spec

HEADER = 4096
"""Bytes enough for the header of a `.npy` file of numbers."""
VOCABULARY = 20_000
"""Size of the vocabulary from the training texts."""
_WORD = re.compile(r"[\w']+|[^\w\s]")
"""A word or a mark."""
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai and Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters
)
"""Characters up to U+FFFF of scripts that put no blanks between words."""
_TRUTHS = (("False", "false", "FALSE", "0"), ("True", "true", "TRUE", "1"))
"""Spellings of the two truth values in tables."""


@runtime_checkable
class Reader(Protocol):
    """Turns a cell, usually a file or its bytes, into an array.

    A frozen dataclass, so that its settings can be recorded.

    Attributes:
        kind: Kind of the resulting modality.
        units: Units of its values, in words.
        rate: Frames or time steps per second, if applicable.
        ragged: Whether samples are sequences of unequal lengths; otherwise all have one shape.
    """

    @property
    def kind(self) -> Kind: ...  # noqa: D102
    @property
    def units(self) -> str: ...  # noqa: D102
    @property
    def rate(self) -> float | None: ...  # noqa: D102
    @property
    def ragged(self) -> bool: ...  # noqa: D102

    def __call__(self, cell: Any) -> np.ndarray | None:
        """The array of one sample; None if the sample turns out to lack the modality.

        Raises:
            ValueError: If the cell is unusable, with the reason; `MediaError` for a file.
            NoStream: If it is a file without the modality, which is then missing, as for None.
        """
        ...


def _check(reader: str, **settings: int | float | tuple[int, int]) -> None:
    """Raises if a setting is invalid: a stream must be at least 0, all else above 0."""
    for name, value in settings.items():
        least = min(value) if isinstance(value, tuple) else value
        if least < 0 or (least == 0 and name != "stream"):
            bound = "at least 0" if name == "stream" else "above 0"
            raise UserError(f"{reader}: {name} must be {bound}; found {value}.")


@dataclass(frozen=True)
class Video:
    """A few frames of a video, a folder of images or an image, in RGB.

    See `evenly.data.media.depth` for the conversion of pictures of more than 8 bits. HDR is not
    tone-mapped, and transparency is ignored: a pixel has the colour stored in the file.

    Args:
        frames: Number of frames.
        size: Height and width to scale them to.
        pick: `uniform`, the middle frame of each of that many equal segments; `random`, a random
            frame from each, drawn once per file; or `rate`, those on screen `fps` times per second
            from the beginning of the file, where its sound begins, too. The first frame also fills
            the time before it, the last the end of a video that is too short.
        fps: Frames per second for `rate`.
        seed: Seed of the draws for `random`.
        stream: Which stream of pictures, from 0, if a file has several.
    """

    frames: int = 2
    size: tuple[int, int] = (224, 224)
    pick: Literal["uniform", "random", "rate"] = "uniform"
    fps: float = 1.0
    seed: int = 0
    stream: int = 0
    kind: ClassVar[Kind] = "video"
    units: ClassVar[str] = "RGB, 0 to 255"
    ragged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("video", frames=self.frames, size=self.size, fps=self.fps, stream=self.stream)

    @property
    def rate(self) -> float | None:
        """Frames per second, if they are evenly spaced."""
        return self.fps if self.pick == "rate" else None

    def __call__(self, cell: File) -> UInt8[np.ndarray, "t 3 h w"]:
        """The frames of one file."""
        found = frames_of(cell, self.stream)
        return found.read(self._picked(cell, found), self.size)

    def _picked(self, file: File, found: Frames) -> np.ndarray:
        if self.pick == "uniform":
            return sampling.uniform(len(found), self.frames)
        if self.pick == "random":
            # By the file's own name, or its content: independent of other files and their order.
            called = sha256(file).digest() if isinstance(file, bytes) else file.name.encode()
            own = np.random.default_rng([self.seed, *called])
            return sampling.segment_random(len(found), self.frames, own)
        index = sampling.at_rate(found.times, self.fps)[: self.frames]
        padded: np.ndarray = np.pad(index, (0, self.frames - len(index)), mode="edge")
        return padded


class _Several:
    """Reads one file of a cell, or any number of them as a video with that many frames.

    Attributes:
        several: Whether a cell may hold any number of files.
    """

    several: bool

    @property
    def kind(self) -> Kind:
        """An image, or a video whose frames have no order."""
        return "video" if self.several else "image"

    @property
    def ragged(self) -> bool:
        """Whether samples may have different numbers of files."""
        return self.several

    def __call__(self, cell: File | Sequence[File]) -> np.ndarray:
        """The array of one file, or those of several; skips files without the modality.

        Raises:
            ValueError: If a file is broken.
            NoStream: If no file has the modality.
        """
        if not self.several:
            assert isinstance(cell, File)
            return self.one(cell)
        found, lacking = [], None
        for file in [cell] if isinstance(cell, File) else cell:
            try:
                found.append(self.one(file))
            except NoStream as error:
                lacking = lacking or error
        if lacking and not found:
            raise lacking
        return np.stack(found)

    @abstractmethod
    def one(self, file: File) -> np.ndarray:
        """The array of one file."""


@dataclass(frozen=True)
class Image(_Several):
    """One picture: a still image, or the middle frame of a video, in RGB.

    Args:
        size: Height and width to scale it to.
        stream: Which stream of pictures, from 0, if a file has several.
        several: Whether a cell may hold any number of files, each one a picture.
    """

    size: tuple[int, int] = (224, 224)
    stream: int = 0
    several: bool = False
    units: ClassVar[str] = "RGB, 0 to 255"
    rate: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _check("image", size=self.size, stream=self.stream)

    def one(self, file: File) -> UInt8[np.ndarray, "3 h w"]:
        """The picture of one file."""
        found: np.ndarray = Video(1, self.size, stream=self.stream)(file)[0]
        return found


@dataclass(frozen=True)
class Flow:
    """Optical flow from some frames of a video to the next ones, as 8-bit images.

    Args:
        frames: Number of frames; each is the middle of one of that many equal segments.
        size: Height and width to scale them to before computing the flow.
        method: `dis` or `farneback`, see `evenly.data.media.flow`.
        layout: `images`, each [u, v, u] for networks that take three channels; or `stacked`, one
            image with the channels u, v, u, v, ...
        bound: Pixels of movement at which values are clipped.
        stream: Which stream of pictures, from 0, if a file has several.
    """

    frames: int = 3
    size: tuple[int, int] = (224, 224)
    method: flow.FlowMethod = "dis"
    layout: Literal["images", "stacked"] = "images"
    bound: float = 20.0
    stream: int = 0
    rate: ClassVar[float | None] = None
    ragged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("flow", frames=self.frames, size=self.size, stream=self.stream, bound=self.bound)

    @property
    def kind(self) -> Kind:
        """A video of images, or one image."""
        return "video" if self.layout == "images" else "image"

    @property
    def units(self) -> str:
        """Of the values."""
        return f"optical flow, 0 to 255 for -{self.bound:g} to {self.bound:g} pixels"

    def __call__(self, cell: File) -> np.ndarray:
        """The flows of one file."""
        found = frames_of(cell, self.stream)
        if len(found) < 2:
            raise MediaError(cell, "has one frame, but optical flow needs two")
        first = sampling.uniform(len(found) - 1, self.frames)
        ends = np.stack([first, first + 1], 1).ravel()
        pairs = found.read(ends, self.size).reshape(self.frames, 2, 3, *self.size)
        fields = np.concatenate([flow.flow(pair, self.method) for pair in pairs])
        values = flow.quantised(fields, self.bound)
        return flow.as_images(values) if self.layout == "images" else flow.stacked(values)


@dataclass(frozen=True)
class Spectrogram(_Several):
    """A picture of sound, bands by frames, in half precision.

    Sound is cut after `seconds`; shorter sound is repeated, as in the field's loaders. It begins
    where the file does: silence precedes a late track, see `evenly.data.media.sound`.

    Args:
        front: `stft`, `mel` or `fbank`, see `evenly.data.media.spectra`.
        seconds: Length of the sound.
        sample_rate: Samples per second to convert the sound to first.
        stream: Which stream of sound, from 0, if a file has several.
        several: Whether a cell may hold any number of files, each one a sound.
    """

    front: Literal["stft", "mel", "fbank"] = "fbank"
    seconds: float = 3.0
    sample_rate: int = 16_000
    stream: int = 0
    several: bool = False

    def __post_init__(self) -> None:
        _check(
            "spectrogram", seconds=self.seconds, sample_rate=self.sample_rate, stream=self.stream
        )

    @property
    def units(self) -> str:
        """Of the values."""
        return {"stft": "ln magnitude", "mel": "dB", "fbank": "ln power"}[self.front]

    @property
    def rate(self) -> float | None:
        """Spectra per second."""
        return {"stft": self.sample_rate / 353, "mel": self.sample_rate / 160, "fbank": 100.0}[
            self.front
        ]

    def one(self, file: File) -> Float16[np.ndarray, "1 bands frames"]:
        """The spectrogram of one file's sound."""
        samples, rate = read_sound(file, self.sample_rate, self.stream)
        whole = np.resize(samples, round(self.seconds * rate))
        found = {
            "stft": spectra.log_stft,
            "mel": lambda x: spectra.log_mel(x, rate),
            "fbank": lambda x: spectra.fbank(x, rate),
        }[self.front](whole)
        return found[None].astype(np.float16)


@dataclass(frozen=True)
class Wave:
    """The samples of a sound, in half precision, for encoders that take them as they are.

    Sound is cut after `seconds`; shorter sound is repeated. It begins where the file does: silence
    precedes a late track, see `evenly.data.media.sound`.

    Args:
        seconds: Length of the sound.
        sample_rate: Samples per second to convert the sound to.
        stream: Which stream of sound, from 0, if a file has several.
    """

    seconds: float = 3.0
    sample_rate: int = 16_000
    stream: int = 0
    kind: ClassVar[Kind] = "sequence"
    units: ClassVar[str] = "of full scale"
    ragged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("wave", seconds=self.seconds, sample_rate=self.sample_rate, stream=self.stream)

    @property
    def rate(self) -> float | None:
        """Samples per second."""
        return float(self.sample_rate)

    def __call__(self, cell: File) -> Float16[np.ndarray, "t 1"]:
        """The samples of one file."""
        samples, rate = read_sound(cell, self.sample_rate, self.stream)
        return np.resize(samples, round(self.seconds * rate))[:, None].astype(np.float16)


@dataclass(frozen=True)
class Array:
    """Numbers as they are: an array, a list, or a `.npy` file.

    Args:
        kind: The layout of a sample: (d) for a vector, (t, d) for a sequence, (c, h, w) or (h, w)
            for an image, (t, c, h, w) for a video; or with the channels last, if only that axis is
            1, 3 or 4.
        units: Units in words.
        ragged: Whether sequences have unequal lengths.
        rate: Frames or time steps per second.
    """

    kind: Literal["vector", "sequence", "image", "video"] = "vector"
    units: str = ""
    ragged: bool = False
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.ragged and self.kind != "sequence":
            raise UserError(
                f"array: only sequences can have unequal lengths, but the kind is {self.kind}. "
                "Set kind=sequence, or leave ragged out."
            )

    def __call__(self, cell: Any) -> np.ndarray:
        """The numbers of one sample."""
        found = numbers(cell) if isinstance(cell, File) else np.asarray(cell)
        if self.kind == "image" and found.ndim == 2:
            found = found[None]
        axes = {"vector": 1, "sequence": 2, "image": 3, "video": 4}[self.kind]
        if found.ndim != axes or not found.size:
            raise ValueError(f"holds an array of shape {found.shape}, which is not a {self.kind}")
        return channels_first(found) if self.kind in ("image", "video") else found


def numbers(file: File) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        MediaError: If the file is missing, broken or of another kind.
    """
    with opened(file) as source:
        try:
            found = np.load(source, allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise MediaError(file, "is not a complete .npy file of numbers") from error
        if isinstance(found, np.ndarray) and source.read(1):
            raise MediaError(file, "holds more than one array, or something after it")
    if not isinstance(found, np.ndarray):
        found.close()
        raise MediaError(file, "is an .npz file of several arrays, not a .npy file of one")
    return found


def dtype_of(file: File | Part) -> np.dtype[Any]:
    """The type of the numbers in a `.npy` file, reading only its beginning.

    Raises:
        MediaError: If the file is missing or empty.
        ValueError: If it is another kind of file.
    """
    if isinstance(file, Part):
        file = replace(file, size=min(file.size, HEADER)).read()
    with opened(file) as source:
        version = np.lib.format.read_magic(source)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        dtype: np.dtype[Any] = read(source)[2]
        return dtype


@dataclass(frozen=True)
class Text:
    """Tokens of a text, as whole numbers.

    Args:
        tokenizer: A Transformers tokenizer, by the path of its folder, which is made absolute, or
            its name on the hub. By default, lower-case words and marks, numbered by the vocabulary.
        vocabulary: Known words, separated by spaces and numbered from 2; others are 1. For a table,
            it is built from its training texts.
        length: Tokens after which a text is cut off.
    """

    tokenizer: str = ""
    vocabulary: str = ""
    length: int = 512
    kind: ClassVar[Kind] = "text"
    units: ClassVar[str] = "tokens"
    rate: ClassVar[float | None] = None
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("text", length=self.length)
        folder = Path(self.tokenizer).expanduser()
        if self.tokenizer and folder.is_dir():  # elsewhere, it would be a name on the hub
            object.__setattr__(self, "tokenizer", str(folder.absolute()))

    def check(self) -> None:
        """Raises a ValueError if there is no such tokenizer."""
        if self.tokenizer:
            _tokenizer(self.tokenizer)

    def __call__(self, cell: str) -> Int32[np.ndarray, " t"]:
        """The tokens of one text; one unknown word if it has none."""
        if self.tokenizer:
            found = _tokenizer(self.tokenizer)(cell, truncation=True, max_length=self.length)
            return np.array(found["input_ids"], np.int32)
        known = _numbered(self.vocabulary)
        tokens = [known.get(word, 1) for word in words(cell)[: self.length]]
        return np.array(tokens or [1], np.int32)


def words(text: str) -> list[str]:
    """The words and marks of a text, in lower case.

    In scripts that put no blanks between words, such as Chinese or Thai, each character is one. A
    character has its combining marks with it, such as the vowels of Hindi.
    """
    text = text.lower()
    special, word = _scripts()
    found: list[str] = (word if special.search(text) else _WORD).findall(text)
    return found


@cache
def _scripts() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A character that `_WORD` parts wrongly, and a slower pattern that does not."""
    marks = "".join(x for x in map(chr, range(0x300, 0xFFFF)) if category(x).startswith("M"))
    # Characters above U+FFFF would slow down a class that holds the others.
    unspaced = rf"(?:[{_UNSPACED}]|[\U00020000-\U0003ffff])"
    one = rf"[\w'][{marks}]*"
    return re.compile(rf"[{marks}]|{unspaced}"), re.compile(
        rf"(?={unspaced}){one}|(?:(?!{unspaced}){one})+|[^\w\s]"
    )


def vocabulary(texts: Iterable[str]) -> str:
    """The words of some texts, most frequent first, in the form that `Text` takes."""
    counts = Counter(word for text in texts for word in words(text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return " ".join(ordered[:VOCABULARY])


@cache
def _numbered(vocabulary: str) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary.split(" "), 2)}


@cache
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    # Hub names are NAME or OWNER/NAME; anything else is never looked up there.
    folder = Path(name).expanduser()
    local = folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)
    try:
        return AutoTokenizer.from_pretrained(
            folder if local else name, local_files_only=local, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no tokenizer '{name}' ({str(error).splitlines()[0]}). Give its folder, "
            "as written by tokenizer.save_pretrained."
        ) from error


@dataclass(frozen=True)
class Tabular:
    """Columns of numbers and of categories, together as one vector, see `evenly.data.tabular`.

    A number is standardised; a missing one becomes the mean. A category is a 1 at the place of its
    value; an empty cell is a value like any other. Values that fewer than two training samples have
    count as unknown, so that the model learns something about unknown values.

    Statistics of the training split come from the table, unless given.

    Args:
        numbers: Columns of numbers.
        categories: Columns of categories.
        means: Means of the numbers over the training split.
        deviations: Standard deviations likewise; 1 if a number is constant.
        lacking: Number columns that some training samples lack: an extra number marks missing
            values.
        values: The values with a place, by category column.
    """

    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    lacking: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    kind: ClassVar[Kind] = "vector"
    units: ClassVar[str] = "standard deviations, and places of categories"
    rate: ClassVar[float | None] = None
    ragged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        names = self.columns
        if not names:
            raise UserError(
                "tabular: no columns given. Give numbers=[age,fare], categories=[port], or both."
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"tabular: names the column '{twice[0]}' twice. Name it once.")
        if strange := set(self.lacking) - set(self.numbers):
            raise UserError(
                f"tabular: lacking names {sorted(strange)}, which are no numbers of it."
            )
        known = len(self.means), len(self.deviations), len(self.values)
        if any(known) and known != (len(self.numbers), len(self.numbers), len(self.categories)):
            raise UserError(
                f"tabular: has {known[0]} means, {known[1]} deviations and {known[2]} lists of "
                f"values for {len(self.numbers)} numbers and {len(self.categories)} categories. "
                "Leave them out: the table's own are taken."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.numbers, *self.categories)

    @property
    def is_fitted(self) -> bool:
        """Whether statistics of the training split are known."""
        return bool(self.means or self.values)

    def __call__(self, cell: Sequence[Any]) -> Float32[np.ndarray, " d"]:
        """The vector of one sample.

        Args:
            cell: Its numbers, then its categories, in the order of `columns`; None if missing.
        """
        count = len(self.numbers)
        given = np.array([np.nan if x is None else x for x in cell[:count]], np.float64)
        apart = (given - np.array(self.means)) / np.array(self.deviations)
        gone = np.isnan(apart)
        marks = [gone[self.numbers.index(name)] for name in self.lacking]
        parts = [np.where(gone, 0, apart), np.array(marks, np.float64)]
        for known, value in zip(_places(self.values), cell[count:], strict=True):
            places = np.zeros(len(known) + 1)
            places[known.get(value or "", 0)] = 1
            parts.append(places)
        return np.concatenate(parts).astype(np.float32)

    def knows(self, column: str, value: str) -> bool:
        """Whether a value of a category column has its own place."""
        return value in _places(self.values)[self.categories.index(column)]


@cache
def _places(values: tuple[tuple[str, ...], ...]) -> list[dict[str, int]]:
    return [_placed(known) for known in values]


def _placed(known: tuple[str, ...]) -> dict[str, int]:
    """The place of each value; if all are true or false, in any spelling."""
    found = {value: n for n, value in enumerate(known, 1)}
    if not set(known) <= {"", *chain(*_TRUTHS)}:
        return found
    for spellings in _TRUTHS:
        place = next((found[text] for text in spellings if text in found), None)
        if place is not None:
            found = dict.fromkeys(spellings, place) | found
    return found


READERS: dict[str, Callable[..., Reader]] = {
    "video": Video,
    "image": Image,
    "flow": Flow,
    "spectrogram": Spectrogram,
    "wave": Wave,
    "array": Array,
    "text": Text,
    NAME: Tabular,
}
"""Readers by the name that requests them."""


KEPT = ("seconds", "frames", "size", "length")
"""The settings that say how much of a file is kept."""


def spelled(reader: Reader, *, whole: bool = False, also: Collection[str] = ()) -> str:
    """The text that requests a reader.

    Args:
        reader: Any reader.
        whole: Whether to include settings with their default values.
        also: Settings to include even with their default values.
    """
    names = {kind: name for name, kind in READERS.items()}
    name = names.get(type(reader), type(reader).__name__.lower())
    if not is_dataclass(reader):
        return name
    settings = {
        field.name: value
        for field in fields(reader)
        if (value := getattr(reader, field.name)) != field.default or whole or field.name in also
    }
    return Spec(name, settings).text
