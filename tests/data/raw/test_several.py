"""Several pictures or sounds in one cell of a table."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset, Features, List
from datasets import Image as Picture
from pyarrow import feather, parquet

from evenly.data import from_datasets, open_store
from evenly.data.raw import Image, Spectrogram, prepare, table
from hubs import picture

COUNTS = [1, 2, 3, 0]
"""Pictures of a row, again and again; each has a sound more."""
READERS = {
    "photos": "image(size=[2,2],several=true)",
    "sounds": "spectrogram(front=stft,seconds=0.05,sample_rate=8000,several=true)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With pictures and sounds of which each has a number of its own."""
    path = tmp_path_factory.mktemp("several")
    for n in range(32):
        (path / f"{n}.png").write_bytes(picture(n))
        soundfile.write(path / f"{n}.wav", np.full(400, (n + 1) / 64, np.float32), 8000)
    return path


def cells(row):
    """The paths of a row's pictures and sounds."""
    count = COUNTS[row % 4]
    return [f"{row + k}.png" for k in range(count)], [f"{row + k}.wav" for k in range(count + 1)]


ROWS = [
    {"photos": photos, "sounds": sounds, "label": row // 4 % 2, "split": split}
    for row, split in enumerate(["train"] * 16 + ["val", "test"] * 4)
    for photos, sounds in [cells(row)]
]


def csv_of(folder, mark):
    path = folder / f"t{ord(mark)}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        joined = [
            {k: mark.join(x) if isinstance(x, list) else x for k, x in r.items()} for r in ROWS
        ]
        writer.writerows(joined)
    return path


def jsonl_of(folder):
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def bytes_of(folder, paths):
    return [(folder / path).read_bytes() for path in paths]


def arrow_of(folder):
    """Pictures by bytes in structures, and sounds by bytes alone."""
    photos = [[{"bytes": x, "path": None} for x in bytes_of(folder, r["photos"])] for r in ROWS]
    sounds = [bytes_of(folder, r["sounds"]) for r in ROWS]
    others = {name: [row[name] for row in ROWS] for name in ("label", "split")}
    return pa.table({"photos": photos, "sounds": sounds, **others})


def parquet_of(folder):
    parquet.write_table(arrow_of(folder), folder / "t.parquet")
    return folder / "t.parquet"


def feather_of(folder):
    feather.write_feather(arrow_of(folder), folder / "t.feather")
    return folder / "t.feather"


def paths_of(folder):
    """Structures whose files are named by paths alone."""
    some = arrow_of(folder).drop_columns(["photos"])
    paths = [[{"bytes": None, "path": path} for path in row["photos"]] for row in ROWS]
    kind = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    parquet.write_table(some.append_column("photos", pa.array(paths, kind)), folder / "p.parquet")
    return folder / "p.parquet"


FORMS = {
    "semicolons": lambda folder: csv_of(folder, ";"),
    "bars": lambda folder: csv_of(folder, " | "[1]),
    "jsonl": jsonl_of,
    "parquet": parquet_of,
    "feather": feather_of,
    "paths": paths_of,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_the_same_store(form, folder, tmp_path):
    source = table(FORMS[form](folder), readers=READERS)
    described = prepare(source, tmp_path / "store", workers=1)
    assert described.modalities["photos"].shape == [3, 3, 2, 2]
    assert described.modalities["photos"].missing == 6
    assert described.modalities["sounds"].kind == "video"
    data = open_store(tmp_path / "store")
    train = data.split("train").__getitems__(range(16))
    values, length = train["inputs"]["photos"]
    assert length.tolist() == COUNTS * 4
    shown = [[row + k if k < COUNTS[row % 4] else 0 for k in range(3)] for row in range(16)]
    assert values[:, :, 0, 0, 0].tolist() == shown
    assert train["present"]["photos"].tolist() == [True, True, True, False] * 4
    values, length = train["inputs"]["sounds"]
    assert length.tolist() == [2, 3, 4, 1] * 4
    loudest = values.float().amax((2, 3, 4))[2]  # of the sounds 2 to 5
    assert (loudest.diff() > 0).all()
    # By hand: every picture has one value, and all that are there count alike.
    every = torch.tensor([row + k for row in range(16) for k in range(COUNTS[row % 4])]).double()
    assert data.modalities["photos"].mean.tolist() == pytest.approx([float(every.mean())] * 3)
    spread = float(every.std(correction=0))
    assert data.modalities["photos"].std.tolist() == pytest.approx([spread] * 3)


def test_what_is_found_out(folder):
    source = table(csv_of(folder, ";"))
    assert source.readers == {"photos": Image(several=True), "sounds": Spectrogram(several=True)}
    assert "t59.csv: ';' joins several files in a cell of 'photos'." in source.notes
    assert source.samples[3].cells["photos"] is None
    assert source.samples[1].cells["photos"] == (folder / "1.png", folder / "2.png")


def test_features_of_datasets_say_what_lists_hold(folder, tmp_path):
    kinds = {
        "photos": List(Picture()),
        "sounds": List(Audio()),
        "label": ClassLabel(names=["a", "b"]),
    }
    given = {name: [bytes_of(folder, row[name]) for row in ROWS] for name in ("photos", "sounds")}
    files = {name: [[{"bytes": x} for x in row] for row in rows] for name, rows in given.items()}
    labels = [row["label"] for row in ROWS]
    # Not by from_dict, which would encode sound anew.
    schema = Features(kinds).arrow_schema
    made = Dataset(pa.table({**files, "label": labels}, schema=schema))
    made.to_parquet(tmp_path / "t.parquet")
    source = table(tmp_path / "t.parquet")
    assert source.readers == {"photos": Image(several=True), "sounds": Spectrogram(several=True)}
    data = from_datasets(made, tmp_path / "store", readers=READERS, workers=1)
    assert data.modalities["photos"].shape == (3, 3, 2, 2)


def said(path, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("reader", "of"),
    [
        ("image(size=[2,2])", "image"),
        ("video", "video"),
        ("array", "array"),
        ("wave", "wave"),
        ("flow", "flow"),
    ],
)
@pytest.mark.parametrize("form", ["semicolons", "jsonl", "parquet"])
def test_what_reads_one_file_says_so(form, reader, of, folder):
    found = said(FORMS[form](folder), readers={"photos": reader})
    wanted = f"column 'photos' has several files in a cell, but {of} reads only one. Use image"
    assert wanted in found


def test_several_arrays_are_refused(tmp_path):
    for n in (1, 2):
        np.save(tmp_path / f"{n}.npy", np.arange(3.0))
    (tmp_path / "t.csv").write_text("x,label\n" + "1.npy;2.npy,a\n1.npy,b\n" * 8)
    assert "has several files in a cell, but array reads only one" in said(tmp_path / "t.csv")


def test_texts_with_marks_are_texts(folder):
    path = folder / "texts.csv"
    path.write_text("said,label\n" + "so good; 9.png and 8.png,a\nhere;there,b\n" * 8)
    assert table(path).samples[1].cells["said"] == "here;there"
    forced = table(jsonl_of(folder), readers={"photos": "text"})
    assert forced.samples[1].cells["photos"] == "1.png 2.png"


def test_a_broken_file_among_several(folder, tmp_path):
    (folder / "broken.png").write_bytes(picture(1)[:40])
    path = folder / "broken.csv"
    rows = ["0.png;1.png,a", "2.png,b"] * 12
    path.write_text("\n".join(["photos,label", *rows, "3.png;broken.png;4.png,a"]))
    with pytest.raises(ValueError, match="1 of 25 samples cannot be used") as caught:
        prepare(table(path), tmp_path / "store", workers=1)
    assert "row 25: photos: " in str(caught.value)
    assert "broken.png" in str(caught.value)


def test_files_without_sound_are_left_out_and_missing_if_all_are(folder):
    reader = Spectrogram(several=True, seconds=0.05, sample_rate=8000)
    silent = (folder / "1.png", folder / "2.png")
    heard = folder / "3.wav"
    assert reader((silent[0], heard)).shape == (1, 1, 128, 3)
    assert reader(heard).shape == (1, 1, 128, 3)
    with pytest.raises(ValueError, match=r"1\.png: .*no sound"):
        reader(silent)
