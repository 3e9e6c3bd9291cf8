"""Data sets as the library `datasets` writes them, and the Hub stores them."""

import io

import numpy as np
import pyarrow as pa
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetInfo, Features, Image, Value
from PIL import Image as Picture

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = Features(
    {
        "photo": Image(),
        "sound": Audio(),
        "caption": Value("string"),
        "age": Value("float32"),
        "label": ClassLabel(names=["cat", "dog"]),
    }
)


def picture(grey, size=(12, 8)):
    """A file of a plain picture."""
    file = io.BytesIO()
    Picture.new("RGB", size, (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def tone(loudness, rate=8_000):
    """A file of a quarter of a second."""
    file = io.BytesIO()
    soundfile.write(file, np.full(rate // 4, loudness), rate, "FLOAT", format="WAV")
    return file.getvalue()


def dataset(rows=range(8), features=FEATURES, **columns):
    """Of each row k a picture of grey k, a sound of k / 100, a text, a number and a class."""
    rows = list(rows)
    cells = {
        "photo": [{"bytes": picture(k), "path": f"{k}.png"} for k in rows],
        "sound": [{"bytes": tone(k / 100), "path": None} for k in rows],
        "caption": [f"the {('cat', 'dog')[k % 2]} of row {k}" for k in rows],
        "age": [k / 2 for k in rows],
        "label": [k % 2 for k in rows],
    } | columns
    schema = features.arrow_schema
    # Audio is put in as it lies in a file: to encode it, `datasets` needs TorchCodec.
    arrays = [pa.array(cells[name], schema.field(name).type) for name in features]
    table = pa.Table.from_arrays(arrays, schema=schema)
    return Dataset(table, info=DatasetInfo(features=features))


def on_the_hub(folder, **splits):
    """A folder of Parquet files, by split their data sets, one or several."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, parts in splits.items():
        parts = parts if isinstance(parts, list) else [parts]
        for number, part in enumerate(parts):
            name = f"{split}-{number:05}-of-{len(parts):05}.parquet"
            part.to_parquet(folder / "data" / name)
    return folder
