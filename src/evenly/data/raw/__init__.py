"""From raw files to a prepared store."""

from evenly.data.raw.decode import batches, listed
from evenly.data.raw.prepare import prepare
from evenly.data.raw.readers import (
    READERS,
    Array,
    Flow,
    Image,
    Reader,
    Spectrogram,
    Tabular,
    Text,
    Video,
    Wave,
    spelled,
)
from evenly.data.raw.source import Sample, Source
from evenly.data.raw.table import table

__all__ = [
    "READERS",
    "Array",
    "Flow",
    "Image",
    "Reader",
    "Sample",
    "Source",
    "Spectrogram",
    "Tabular",
    "Text",
    "Video",
    "Wave",
    "batches",
    "listed",
    "prepare",
    "spelled",
    "table",
]
