"""Files as users' tools write them are read back to the same values, or refused in a sentence.

What a file holds is drawn first, and then who writes it, and in which of the ways that they have.
"""

import csv
import json
import math
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from evenly.data import Padded, load_npz, save_npz
from evenly.data.raw import Array, Text, table

N = 6
LABEL = [k % 2 for k in range(N)]
SPLIT = ["train", "train", "val", "val", "test", "test"]
# Numbers that every type of floats and decimals holds as they are; of three digits after a comma,
# 1,125, they could be thousands, and would be refused.
FLOAT = st.integers(-1000, 1000).map(lambda k: k / 4)
WORDS = st.text("abé ,;|'\"\n\t0.[]", max_size=12).map(lambda text: f"the {text} end")
CELLS = {
    "float": FLOAT,
    "int": st.integers(0, 120),
    "bool": st.booleans(),
    "vector": st.lists(FLOAT, min_size=3, max_size=3),
    "sequence": st.lists(st.lists(FLOAT, min_size=2, max_size=2), min_size=1, max_size=4),
    "text": WORDS,
}
READERS = {"sequence": Array("sequence", ragged=True)} | dict.fromkeys(
    ["float", "int", "bool", "vector"], Array()
)
few = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def columns(draw, kinds=tuple(CELLS)):
    """A kind of modality, and its cells, of which some are missing."""
    kind = draw(st.sampled_from(kinds))
    cells = draw(st.lists(CELLS[kind], min_size=N, max_size=N))
    missing = draw(st.sets(st.integers(0, N - 1), max_size=N - 1))
    return kind, [None if k in missing else cell for k, cell in enumerate(cells)]


def check(path, kind, cells):
    """Raises if a table is read as something else."""
    source = table(path)
    assert list(source.readers) == ["x"]
    reader = source.readers["x"]
    assert isinstance(reader, Text) if kind == "text" else reader == READERS[kind]
    assert [sample.label for sample in source.samples] == LABEL
    assert [sample.split for sample in source.samples] == SPLIT
    for sample, cell in zip(source.samples, cells, strict=True):
        found = sample.cells["x"]
        if cell is None or kind == "text":
            assert found == (cell and cell.strip())
        else:
            assert reader(found).tolist() == (cell if isinstance(cell, list) else [cell])


# By name, how lists are written in a CSV.
LISTS = {
    "str": str,
    "json": json.dumps,
    "numpy": lambda cell: str(np.array(cell)),
    "repr": lambda cell: repr(np.array(cell, np.float32)),
    "scalars": lambda cell: str([np.float64(x) for x in cell] if np.ndim(cell) == 1 else cell),
    "blanks": lambda cell: " ".join(map(str, cell)) if np.ndim(cell) == 1 else str(cell),
}


def with_csv(draw, path, cells, comma):
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    code = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    blank = draw(st.sampled_from(["", " "])) if comma != "\t" else ""
    with path.open("w", newline="", encoding=code) as file:
        writer = csv.writer(file, delimiter=comma, quoting=quoting, lineterminator=end)
        writer.writerow(["x", f"{blank}label", f"{blank}split"])
        writer.writerows(zip(cells, LABEL, SPLIT, strict=True))


def with_arrow(draw, path, cells, comma):
    options = arrow_csv.WriteOptions(
        delimiter=comma, quoting_style=draw(st.sampled_from(["needed", "all_valid"]))
    )
    arrow_csv.write_csv(pa.table({"x": cells, "label": LABEL, "split": SPLIT}), path, options)


def with_pandas(draw, path, cells, comma):
    frame = pandas.DataFrame({"x": cells, "label": LABEL, "split": SPLIT})
    commas = {"decimal": ","} if comma == ";" and draw(st.booleans()) else {}
    frame.to_csv(
        path,
        sep=comma,
        index=draw(st.booleans()),
        encoding=draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        na_rep=draw(st.sampled_from(["", "NA", "NaN"])),
        **commas,
    )


def with_polars(draw, path, cells, comma):
    frame = polars.DataFrame({"x": cells, "label": LABEL, "split": SPLIT}, strict=False)
    style = draw(st.sampled_from(["necessary", "always", "non_numeric"]))
    frame.write_csv(
        path, separator=comma, include_bom=draw(st.booleans()), quote_style=style,
        line_terminator=draw(st.sampled_from(["\n", "\r\n"])),
    )  # fmt: skip


@few
@given(columns(), st.data())
def test_csv(column, data):
    kind, cells = column
    draw = data.draw
    writers = [with_csv, with_arrow, with_pandas, with_polars]
    writer = draw(st.sampled_from(writers))
    if kind in ("vector", "sequence"):
        written = LISTS[draw(st.sampled_from(list(LISTS)))]
        given = [None if cell is None else written(cell) for cell in cells]
    else:
        given = cells
    with TemporaryDirectory() as folder:
        path = Path(folder) / draw(st.sampled_from(["t.csv", "T.CSV", "t.tsv"]))
        writer(draw, path, given, draw(st.sampled_from([",", ";", "\t"])))
        check(path, kind, cells)


# By kind, the types in which Arrow keeps it.
NUMBERS = [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 3), pa.decimal256(40, 10)]
WHOLE = [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64(), pa.float32()]
TYPES = {
    "float": NUMBERS,
    "int": [*WHOLE, pa.dictionary(pa.int8(), pa.int32()), pa.decimal128(5, 0)],
    "bool": [pa.bool_()],
    "vector": [
        form(kind)
        for kind in NUMBERS
        for form in (pa.list_, pa.large_list, pa.list_view, lambda kind: pa.list_(kind, 3))
    ],
    "sequence": [
        pa.list_(inner(kind))
        for kind in NUMBERS
        for inner in (pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2))
    ],
    "text": [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.utf8())],
}


def innermost(kind):
    return innermost(kind.value_type) if hasattr(kind, "value_type") else kind


def as_type(cell, kind):
    if isinstance(cell, list):
        return [as_type(x, kind) for x in cell]
    return Decimal(str(cell)) if pa.types.is_decimal(kind) and cell is not None else cell


def arrow_file(draw, path, kind, cells):
    """As pyarrow writes it, or `datasets`, which adds a description."""
    of = draw(st.sampled_from(TYPES[kind]))
    x = [as_type(cell, innermost(of)) for cell in cells]
    if pa.types.is_dictionary(of):
        x = pa.array(x, of.value_type).dictionary_encode()
    columns = pa.table({"x": pa.array(x, None if isinstance(x, pa.Array) else of),
                        "label": LABEL, "split": SPLIT})  # fmt: skip
    about = {b"huggingface": b'{"info": {"features": {"x": {"_type": "Value"}}}}'}
    columns = columns.replace_schema_metadata(draw(st.sampled_from([None, about])))
    rows = draw(st.sampled_from([None, 2]))
    parquet.write_table(columns, path, row_group_size=rows, version=draw(
        st.sampled_from(["1.0", "2.4", "2.6"])))  # fmt: skip


DTYPES = {
    "float": ["float32", "float64", "Float32", "Float64", "float64[pyarrow]", object],
    "int": ["Int8", "Int64", "UInt64", "float64", "int64[pyarrow]", "category"],
    "bool": ["boolean", object, "bool[pyarrow]"],
    "text": [object, "string", "category", "string[pyarrow]"],
    "vector": [object],
    "sequence": [object],
}


def pandas_file(draw, path, kind, cells):
    if kind == "vector" and draw(st.booleans()):
        cells = [cell and np.array(cell, np.float32) for cell in cells]
    frame = pandas.DataFrame({
        "x": pandas.Series(cells, dtype=draw(st.sampled_from(DTYPES[kind]))),
        "label": pandas.Series(LABEL, dtype=draw(st.sampled_from(["int64", "Int8", "float"]))),
        "split": pandas.Series(SPLIT, dtype=draw(st.sampled_from([object, "category", "string"]))),
    })  # fmt: skip
    index = draw(st.sampled_from(["range", "shuffled", "named", "two", "texts"]))
    number = pandas.Series(draw(st.permutations(range(N))))
    frame = {
        "range": lambda: frame,
        "shuffled": lambda: frame.set_index(pandas.Index(number)),
        "named": lambda: frame.set_index(pandas.Index(number, name="clip")),
        "two": lambda: frame.set_index([number, number % 2]),
        "texts": lambda: frame.set_index(pandas.Index([f"clip{k}" for k in number])),
    }[index]()
    frame.to_parquet(path, index=draw(st.sampled_from([None, True])))


def polars_file(draw, path, kind, cells):
    number = draw(st.sampled_from([polars.Float32, polars.Float64]))
    of = {
        "float": [number, polars.Decimal(9, 3)],
        "int": [polars.Int8, polars.UInt64, polars.Int64, number],
        "bool": [polars.Boolean],
        "text": [polars.String, polars.Categorical],
        "vector": [polars.List(number), polars.Array(number, 3)],
        "sequence": [polars.List(polars.List(number)), polars.List(polars.Array(number, 2))],
    }[kind]
    x = polars.Series("x", cells, dtype=draw(st.sampled_from(of)), strict=False)
    polars.DataFrame({"x": x, "label": LABEL, "split": SPLIT}).write_parquet(
        path, use_pyarrow=draw(st.booleans())
    )


@few
@given(columns(), st.data())
def test_parquet(column, data):
    kind, cells = column
    writers = [arrow_file, pandas_file, polars_file]
    writer = data.draw(st.sampled_from(writers))
    with TemporaryDirectory() as folder:
        path = Path(folder) / data.draw(st.sampled_from(["t.parquet", "T.PARQUET"]))
        writer(data.draw, path, kind, cells)
        check(path, kind, cells)


# Of arrays, by kind.
ARRAYS = {
    "float": ["<f2", ">f4", "<f8", "g"],
    "int": ["u1", "i1", ">u2", "<i4", "u8", "f4"],
    "bool": ["?"],
    "vector": ["<f2", ">f4", "<f8"],
    "sequence": ["<f2", ">f4", "<f8"],
}


@few
@given(columns(tuple(ARRAYS)), st.data())
def test_npz(column, data):
    kind, cells = column
    draw = data.draw
    dtype = draw(st.sampled_from(ARRAYS[kind]))
    if kind == "sequence":
        steps = [step for cell in cells for step in cell or []]
        length = [len(cell or []) for cell in cells]
        ends = draw(st.sampled_from(["<i4", "u8", "i2"]))
        arrays = {"x": np.array(steps, dtype), "x_offset": np.cumsum([0, *length]).astype(ends)}
    else:
        nothing = (
            [0.0] * 3 if kind == "vector" else 0
        )  # for want of a way to say that it is missing
        cells = [nothing if cell is None else cell for cell in cells]
        arrays = {"x": np.array(cells, dtype, order=draw(st.sampled_from("CF")))}
    arrays["more"] = np.arange(N)
    arrays["labels"] = draw(st.sampled_from([
        np.array(LABEL, "u1"), np.array(LABEL, ">i8"), np.array(["a", "b"])[LABEL],
        np.array([b"a", b"b"])[LABEL], np.array(LABEL, bool),
    ]))  # fmt: skip
    arrays["split"] = draw(st.sampled_from([
        np.array(SPLIT), np.array(SPLIT, "S"), np.array([0, 0, 1, 1, 2, 2], "f4"),
    ]))  # fmt: skip
    with TemporaryDirectory() as folder:
        path = Path(folder) / draw(st.sampled_from(["a.npz", "A.NPZ"]))
        write = draw(st.sampled_from([np.savez, np.savez_compressed, "MATLAB", "evenly"]))
        if write == "MATLAB":
            arrays = through_matlab(Path(folder) / "a.mat", arrays)
        if write in ("MATLAB", "evenly"):
            labels, split = arrays.pop("labels"), arrays.pop("split")
            save_npz(path, labels, split, arrays)
        else:
            with path.open("wb") as file:
                write(file, **arrays)
        read = load_npz(path)
    assert read.modalities["x"].kind == ("sequence" if kind == "sequence" else "vector")
    for place, name in enumerate(("train", "val", "test")):
        batch = read.split(name).__getitems__([0, 1])
        assert batch["target"].tolist() == LABEL[2 * place : 2 * place + 2]
        x = batch["inputs"]["x"]
        for row, cell in enumerate(cells[2 * place : 2 * place + 2]):
            if isinstance(x, Padded):
                found = x.values[row, : int(x.length[row])].tolist()
                assert found == (cell or [])
                assert bool(batch["present"]["x"][row] if "x" in batch["present"] else True) == (
                    cell is not None
                )
            else:
                assert x[row].tolist() == (cell if isinstance(cell, list) else [cell])


def through_matlab(path, arrays):
    """Arrays as MATLAB keeps and SciPy reads them; it has no half or extended precision."""
    from scipy import io as matlab

    own = {"f2": "f4", "f16": "f8"}
    kept = {
        name: x.astype(own.get(x.dtype.str[1:], x.dtype.newbyteorder("="))) if x.dtype.kind == "f"
        else np.char.decode(x) if x.dtype.kind == "S" else x
        for name, x in arrays.items()
    }  # fmt: skip
    matlab.savemat(path, kept, oned_as="column")
    found = {name: x for name, x in matlab.loadmat(path).items() if name in kept}
    found |= {name: found[name].ravel() for name in found.keys() & {"labels", "split", "x_offset"}}
    return {name: np.char.strip(x) if x.dtype.kind == "U" else x for name, x in found.items()}


# Cells that no model can learn from as they are, each of a kind that tools do write.
REFUSED = [
    np.array(["2024-01-02"] * N, "M8[D]"), np.array([1] * N, "m8[s]"), [[["a"], ["b"]]] * N,
    [{"a": 1}] * N, [math.nan] * N, [1e300] * N, [b"bytes"] * N, [None] * N,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_no_modality_is_refused(tmp_path, number):
    from evenly.data.raw import prepare

    path = tmp_path / "t.parquet"
    x = REFUSED[number]
    parquet.write_table(pa.table({"x": pa.array(x), "label": LABEL, "split": SPLIT}), path)
    with pytest.raises(ValueError, match=r"column 'x' |row 1: x: holds (nan|1e\+300)") as caught:
        prepare(table(path), tmp_path / "store", workers=1)
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@few
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=N, max_size=N))
@example(["1,5"] * N)
@example(["[1 2 ... 9]"] * N)
@example(["a/b"] * N)
def test_whatever_is_in_the_cells_it_is_read_or_refused(texts):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["x", "label", "split"], *zip(texts, LABEL, SPLIT, strict=True)]
            )
        try:
            found = table(path)
        except ValueError as error:
            said = str(error)
        else:
            said = f"{path}: {found.readers['x'].kind}"
    assert said.startswith(f"{path}: ")
