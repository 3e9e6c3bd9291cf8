"""What the columns of tables are taken for, whoever wrote them."""

import json
import re
from decimal import Decimal

import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image as Picture
from pyarrow import parquet

from evenly.data import open_store
from evenly.data.raw import Array, Image, Text, Video, prepare, table
from evenly.data.raw.rows import Turn

N = 12
LABEL = [k % 2 for k in range(N)]
SPLIT = ["train"] * 6 + ["val"] * 2 + ["test"] * 4


def written(folder, x, *, comma=",", code="utf-8", end="\n", name="t.csv", quote=True):
    """A CSV with the texts `x` in a column of this name."""
    quoted = ['"' + text.replace('"', '""') + '"' if quote else text for text in x]
    lines = [f"x{comma}label{comma}split"]
    lines += [comma.join([text, str(LABEL[k]), SPLIT[k]]) for k, text in enumerate(quoted)]
    (folder / name).write_bytes((end.join(lines) + end).encode(code))
    return folder / name


def stored(folder, x, **more):
    """A Parquet file with the cells `x`."""
    columns = {"x": x, "label": LABEL, "split": SPLIT, **more}
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def cells(source, name="x"):
    found = [sample.cells[name] for sample in source.samples]
    return [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in found]


class TestForms:
    """Of CSVs."""

    @pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    @pytest.mark.parametrize("comma", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_how_it_is_written_changes_nothing(self, tmp_path, code, comma, end):
        x = [f"{k}.5" for k in range(N)]
        source = table(written(tmp_path, x, comma=comma, code=code, end=end))
        assert source.readers == {"x": Array()}
        assert cells(source) == [[k + 0.5] for k in range(N)]
        assert [sample.split for sample in source.samples] == SPLIT

    @pytest.mark.parametrize("name", ["T.CSV", "t.TSV", "t.Csv"])
    def test_endings_in_any_letters(self, tmp_path, name):
        assert table(written(tmp_path, ["1"] * N, name=name)).readers == {"x": Array()}

    def test_decimal_commas(self, tmp_path):
        source = table(written(tmp_path, [f"{k},5" for k in range(N)], comma=";", quote=False))
        assert cells(source) == [[k + 0.5] for k in range(N)]
        # Where tabs part the cells, they may as well be pairs.
        with pytest.raises(ValueError, match="holds '0,5' in row 1, which can be read in two"):
            table(written(tmp_path, [f"{k},5" for k in range(N)], comma="\t", quote=False))

    def test_thousands_that_may_be_fractions(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds '1\.234' in row 2, which can be read in two"):
            table(written(tmp_path, ["999", *["1.234"] * (N - 1)], comma=";"))

    def test_only_in_a_csv_words_count_as_empty(self, tmp_path):
        x = ["NA", "null", "a", "b"] * 3
        assert cells(table(stored(tmp_path, x))) == x
        mixed = table(stored(tmp_path, x), None, {"facts": "tabular(categories=[x])"})
        assert cells(mixed, "facts") == [(text,) for text in x]
        assert cells(table(written(tmp_path, x)))[:3] == [None, None, "a"]

    @pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
    def test_utf_16_that_does_not_say_so(self, tmp_path, code):
        with pytest.raises(ValueError, match=r"t\.csv: is no text in UTF-8, as it holds zero byte"):
            table(written(tmp_path, ["1"] * N, code=code))

    def test_blanks_after_commas(self, tmp_path):
        lines = [f'c{k % 3}, {SPLIT[k]}, {k}.5, "a, b"' for k in range(N)]
        (tmp_path / "t.csv").write_text("label, split, a , b\n" + "\n".join(lines))
        source = table(tmp_path / "t.csv")
        assert [type(reader) for reader in source.readers.values()] == [Array, Text]
        assert list(source.readers) == ["a", "b"]
        assert [sample.split for sample in source.samples] == SPLIT
        assert source.classes == ["c0", "c1", "c2"]
        assert cells(source, "b") == ["a, b"] * N

    def test_columns_and_rows_without_anything(self, tmp_path):
        lines = [f"{k},{LABEL[k]},{SPLIT[k]},," for k in range(N)]
        (tmp_path / "t.csv").write_text("\n".join(["x,label,split,,", *lines, ",,,,", ",,"]))
        source = table(tmp_path / "t.csv")
        assert cells(source) == [[k] for k in range(N)]
        assert list(source.readers) == ["x"]

    def test_reserved_names_in_any_letters(self, tmp_path):
        """A column 'Split' is no modality, and the splits are not drawn."""
        lines = [f"{k}.5,{LABEL[k]},{SPLIT[k]},s{k}" for k in range(N)]
        (tmp_path / "t.csv").write_text("\n".join(["x,Label,SPLIT,Name", *lines]))
        source = table(tmp_path / "t.csv")
        assert list(source.readers) == ["x"]
        assert [sample.split for sample in source.samples] == SPLIT
        assert source.samples[3].name == "s3"

    def test_a_cell_of_megabytes(self, tmp_path):
        long = "word " * 600_000
        source = table(written(tmp_path, ["short"] * 3 + [long] + ["short"] * 8))
        assert len(source.samples[3].cells["x"]) == len(long) - 1
        assert source.readers["x"](source.samples[3].cells["x"]).tolist() == [2] * 512

    def test_a_quotation_mark_that_is_not_closed(self, tmp_path):
        x = ["a word"] * 5 + ['"another'] + ["word"] * 6
        with pytest.raises(ValueError, match="Look for a quotation mark that is not closed"):
            table(written(tmp_path, x, quote=False))

    def test_a_row_of_another_length(self, tmp_path):
        with pytest.raises(ValueError, match=r"row 1 has 4 cells for 3 columns\. Put"):
            table(written(tmp_path, ["1,5"] * N, quote=False))


class TestVectors:
    @pytest.mark.parametrize(
        "write",
        [
            str, lambda x: str(x)[1:-1], lambda x: " ".join(map(str, x)),
            lambda x: ";".join(map(str, x)), lambda x: str(np.array(x)),
            lambda x: repr(np.array(x)),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("as_csv", [True, False])
    def test_as_texts_they_are_numbers(self, tmp_path, write, as_csv):
        values = [[k + 0.25, -0.5, *range(40)] for k in range(N)]
        texts = [write(x) for x in values]
        source = table((written if as_csv else stored)(tmp_path, texts))
        assert source.readers == {"x": Array()}
        assert cells(source) == values

    def test_an_empty_list_is_a_missing_modality(self, tmp_path):
        texts = ["[0.5, 1.0]"] * 11 + ["[]"]
        assert cells(table(written(tmp_path, texts)))[-2:] == [[0.5, 1], None]
        values = [[0.5, 1.0]] * 11 + [[]]
        assert cells(table(stored(tmp_path, values)))[-2:] == [[0.5, 1], None]

    def test_printed_with_some_left_out(self, tmp_path):
        texts = [str(np.arange(2000) + k) for k in range(N)]
        with pytest.raises(ValueError, match=r"'\[.* in row 1, from which NumPy left numbers"):
            table(written(tmp_path, texts))

    @pytest.mark.parametrize("odd", ["?", "-", "12%", "1,5", "[1,,2]", "2024-01-02", "missing"])
    def test_one_that_is_no_number_among_numbers(self, tmp_path, odd):
        texts = [f"{k}.5" for k in range(11)] + [odd]
        what = {"12%": "a percentage, ", "2024-01-02": "a date, "}.get(odd, "")
        why = "which can be read in two ways" if odd == "1,5" else "neither a number nor a list"
        said = f"holds '{re.escape(odd)}' in row 12, {what}{why}.*s.x=text"
        with pytest.raises(ValueError, match=said):
            table(written(tmp_path, texts))
        assert table(written(tmp_path, texts), None, {"x": "text"}).samples[11].cells["x"] == odd
        with pytest.raises(ValueError, match=why):
            table(written(tmp_path, texts), None, {"x": "array"})

    @pytest.mark.parametrize("text", ["2024-01-0{}", "10:0{}", "0,{}", "${}", "1 {}; 3 4"])
    def test_figures_are_no_words(self, tmp_path, text):
        with pytest.raises(
            ValueError, match=r"'x' holds .*, (neither a number|which can be read in)"
        ):
            table(written(tmp_path, [text.format(k % 10) for k in range(N)]))

    def test_of_unequal_lengths_they_are_sequences_if_asked(self, tmp_path):
        path = stored(tmp_path, [[float(k)] * (1 + k % 3) for k in range(N)])
        with pytest.raises(ValueError, match=r"row 2: x: has the shape \(2,\).*; sequences of"):
            prepare(table(path), tmp_path / "store", workers=1)
        assert not (tmp_path / "store").exists()
        source = table(path, None, {"x": "array(kind=sequence,ragged=true)"})
        prepare(source, tmp_path / "store", workers=1)
        found = open_store(tmp_path / "store").split("val").__getitems__([0, 1])["inputs"]["x"]
        assert found.length.tolist() == [1, 2]
        assert found.values.tolist() == [[[6], [0]], [[7], [7]]]


class TestIndices:
    """Columns that number the rows are no modalities."""

    def test_of_pandas_in_parquet(self, tmp_path):
        path = stored(tmp_path, [0.5] * N, row=list(range(N)))
        about = {b"pandas": json.dumps({"index_columns": ["row"]}).encode()}
        parquet.write_table(parquet.read_table(path).replace_schema_metadata(about), path)
        source = table(path)
        assert list(source.readers) == ["x"]
        assert "the column 'row' numbers the rows, so it is not a modality" in source.notes[0]
        assert list(table(path, ["row"]).readers) == ["row"]
        assert list(table(path, None, {"row": "array"}).readers) == ["x", "row"]

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "Unnamed: 0",
            "index",
            "id",
            "row",
            "idx",
            "sample_id",
            "__index_level_0__",
            "clip_id",
            "Image_ID",
            "uid",
            "uuid",
            "PassengerId",
            "petID",
        ],
    )
    @pytest.mark.parametrize("shuffled", [True, False])
    def test_by_its_name(self, tmp_path, name, shuffled):
        number = np.random.default_rng(0).permutation(N) if shuffled else range(1, N + 1)
        lines = [f"{number[k]},{k}.5,{LABEL[k]},{SPLIT[k]}" for k in range(N)]
        (tmp_path / "t.csv").write_text("\n".join([f"{name},x,label,split", *lines]))
        source = table(tmp_path / "t.csv")
        assert list(source.readers) == ["x"]
        assert len(source.notes) == 1

    def test_other_numbers_of_such_a_name_are_a_modality(self, tmp_path):
        path = stored(tmp_path, [0.5] * N, index=[k // 2 for k in range(N)])
        assert list(table(path).readers) == ["x", "index"]

    @pytest.mark.parametrize("name", ["id", "clip_id"])
    @pytest.mark.parametrize("word", ["c-{:03}", "{:04}", "{}"])
    def test_words_that_number_the_rows_unless_they_are_paths(self, tmp_path, name, word):
        path = stored(tmp_path, [0.5] * N, **{name: [word.format(k) for k in range(N)]})
        assert list(table(path).readers) == ["x"]
        for k in range(N):
            (tmp_path / word.format(k)).mkdir()
            Picture.new("RGB", (8, 6)).save(tmp_path / word.format(k) / "1.png")
        assert table(path).readers == {"x": Array(), name: Video()}

    @pytest.mark.parametrize("name", ["valid", "grid", "COVID", "identity"])
    def test_words_that_end_alike_are_no_numbering(self, tmp_path, name):
        path = stored(tmp_path, [0.5] * N, **{name: list(range(N))})
        assert list(table(path).readers) == ["x", name]

    def test_as_pandas_writes_it(self, tmp_path):
        frame = pandas.DataFrame({"x": np.arange(N) / 2, "label": LABEL, "split": SPLIT})
        frame = frame.sample(frac=1, random_state=0)
        named = frame.rename_axis("clip")
        for kept in (frame, named, frame.set_index([frame.index, frame.index % 2]), frame.iloc[:]):
            kept.to_parquet(tmp_path / "t.parquet")
            assert list(table(tmp_path / "t.parquet").readers) == ["x"]
        frame.to_csv(tmp_path / "t.csv")
        assert list(table(tmp_path / "t.csv").readers) == ["x"]
        again = pandas.read_csv(tmp_path / "t.csv")
        again.to_csv(tmp_path / "t.csv")
        assert list(table(tmp_path / "t.csv").readers) == ["x"]


class TestTheLabelAgain:
    """A column with a value of its own for each class is no modality."""

    @pytest.mark.parametrize("again", [[3, 7], ["no", "yes"], [0.5, 1.5], [False, True]])
    @pytest.mark.parametrize("as_csv", [True, False])
    def test_it_is_left_aside(self, tmp_path, again, as_csv):
        path = stored(tmp_path, [0.5] * N, target=[again[k % 2] for k in range(N)])
        if as_csv:
            pandas.read_parquet(path).to_csv(path := tmp_path / "t.csv", index=False)
        source = table(path)
        assert list(source.readers) == ["x"]
        why = "has one value for each class, so it is not a modality."
        assert source.notes == [f"{path.name}: the column 'target' {why}"]
        assert list(table(path, ["x", "target"]).readers) == ["x", "target"]
        given = "text" if as_csv or again == ["no", "yes"] else "array"
        assert list(table(path, None, {"target": given}).readers) == ["x", "target"]
        assert list(table(path, labelled=False).readers) == ["x", "target"]

    @pytest.mark.parametrize(
        "x",
        [
            [1] * 2 + [0, 1] * 5,  # wrong once
            [0, 1] * 5 + [2, 1],  # two values of a class
            [None, 1] * 6,  # missing, which may have other reasons
            [[0], [1]] * 6,
        ],
    )
    def test_others_are_modalities(self, tmp_path, x):
        path = stored(tmp_path, [0.5] * N, other=x)
        assert list(table(path).readers) == ["x", "other"]

    def test_so_is_one_that_is_alone(self, tmp_path):
        assert list(table(stored(tmp_path, LABEL)).readers) == ["x"]

    def test_one_sample_of_each_class_says_nothing(self, tmp_path):
        numbers = list(range(N))
        path = stored(tmp_path, [0.5] * N, y=numbers, label=numbers)
        assert list(table(path).readers) == ["x", "y"]


class TestFiles:
    def test_blanks_around_paths(self, tmp_path):
        Picture.new("RGB", (8, 8)).save(tmp_path / "a b.png")
        for path in (written(tmp_path, [" a b.png "] * N), stored(tmp_path, ["a b.png\t"] * N)):
            source = table(path)
            assert source.readers == {"x": Image()}
            assert source.samples[0].cells["x"] == tmp_path / "a b.png"

    def test_cells_that_are_files(self, tmp_path):
        """As `datasets` writes pictures and sound, by path or as bytes, and as bytes alone."""
        for k in range(N):
            Picture.new("RGB", (8, 6), (20 * k, 0, 0)).save(tmp_path / f"{k}.png")
        files = [(tmp_path / f"{k}.png").read_bytes() for k in range(N)]
        both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        forms = [
            pa.array([{"bytes": x, "path": "elsewhere.png"} for x in files[:-1]] + [None], both),
            pa.array([{"bytes": None, "path": f"{k}.png"} for k in range(11)] + [{}], both),
            pa.array([*files[:-1], None], pa.binary()),
            pa.array([*files[:-1], b""], pa.large_binary()),
        ]
        for form in forms:
            source = table(stored(tmp_path, form))
            assert source.readers == {"x": Image()}
            turn = Turn()
            assert turn(source.samples[11].cells)["x"] is None
            read = source.readers["x"](turn(source.samples[3].cells)["x"])
            assert read[:, 0, 0].tolist() == [60, 0, 0]
            assert table(stored(tmp_path, form), None, {"x": "image(size=[4,4])"}).readers == {
                "x": Image((4, 4))
            }
            with pytest.raises(ValueError, match=r"files such as .*, which text does not read"):
                table(stored(tmp_path, form), None, {"x": "text"})

    def test_files_are_stored(self, tmp_path):
        for k in range(N):
            Picture.new("RGB", (8, 6), (20 * k, 0, 0)).save(tmp_path / f"{k}.png")
        files = [(tmp_path / f"{k}.png").read_bytes() for k in range(N)]
        source = table(stored(tmp_path, files), None, {"x": "image(size=[2,2])"})
        prepare(source, tmp_path / "store", workers=1)
        found = open_store(tmp_path / "store").split("val").__getitems__([0, 1])["inputs"]["x"]
        assert found[:, 0, 0, 0].tolist() == [120, 140]
        files[0] = files[1]
        with pytest.raises(ValueError, match="holds a store made from other files"):
            prepare(table(stored(tmp_path, files), None, {"x": "image(size=[2,2])"}),
                    tmp_path / "store", workers=1)  # fmt: skip


class TestTypes:
    """Of Parquet's columns."""

    @pytest.mark.parametrize(
        "kind",
        [
            pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(5, 2),
            pa.bool_(),
        ],
    )  # fmt: skip
    def test_numbers(self, tmp_path, kind):
        source = table(stored(tmp_path, pa.array([1, 0] * 5 + [None, 1], pa.int8()).cast(kind)))
        assert source.readers == {"x": Array()}
        assert cells(source) == [[1], [0]] * 5 + [None, [1]]

    def test_categories(self, tmp_path):
        x = pa.array([5, 7] * 5 + [None, 7]).dictionary_encode()
        assert cells(table(stored(tmp_path, x))) == [[5], [7]] * 5 + [None, [7]]

    def test_wide_whole_numbers_stay_what_they_are(self, tmp_path):
        x = pa.array([2**62 + 1] * 11 + [None])
        assert cells(table(stored(tmp_path, x)))[0] == [2**62 + 1]

    @pytest.mark.parametrize(
        "kind",
        [
            pa.list_(pa.float32()), pa.list_(pa.int8(), 2), pa.large_list(pa.float64()),
            pa.list_view(pa.int16()), pa.list_(pa.decimal128(5, 2)), pa.list_(pa.float16()),
        ],
    )  # fmt: skip
    def test_lists(self, tmp_path, kind):
        number = Decimal if pa.types.is_decimal(kind.value_type) else int
        x = pa.array([[number(k), number(1)] for k in range(11)] + [None], kind)
        source = table(stored(tmp_path, x))
        assert source.readers == {"x": Array()}
        assert cells(source) == [[k, 1] for k in range(11)] + [None]

    def test_lists_of_lists(self, tmp_path):
        x = [[[k, 1.5], [2, 3]] for k in range(N)]
        source = table(stored(tmp_path, x))
        assert source.readers == {"x": Array("sequence", ragged=True)}
        assert cells(source) == x
        grey = pa.array([[[k, 1], [2, 3]] for k in range(N)], pa.list_(pa.list_(pa.uint8())))
        source = table(stored(tmp_path, grey))
        assert source.readers == {"x": Array("image")}
        read = source.readers["x"](source.samples[5].cells["x"])
        assert (read.dtype, read.tolist()) == (np.uint8, [[[5, 1], [2, 3]]])

    def test_tensors(self, tmp_path):
        kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
        flat = pa.array([[1, 2, 3, 4, 5, 6]] * 11 + [None], pa.list_(pa.float32(), 6))
        source = table(stored(tmp_path, pa.ExtensionArray.from_storage(kind, flat)))
        assert cells(source)[0] == [[1, 3], [2, 4], [3, 5]] or cells(source)[0] == [
            [1, 4], [2, 5], [3, 6],
        ]  # fmt: skip
        assert cells(source)[11] is None

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
    def test_texts(self, tmp_path, kind):
        source = table(stored(tmp_path, pa.array([f"word{k} it" for k in range(N)], kind)))
        assert isinstance(source.readers["x"], Text)
        assert cells(source)[3] == "word3 it"

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (pa.date32(), 1), (pa.timestamp("us"), 1), (pa.duration("s"), 1), (pa.time32("s"), 1),
            (pa.struct([("a", pa.int8())]), {"a": 1}),
            (pa.map_(pa.string(), pa.int8()), [("a", 1)]),
            (pa.list_(pa.list_(pa.string())), [["a"]]),
            (pa.list_(pa.list_(pa.int8())), [[1], [1, 2]]),
            (pa.list_(pa.date32()), [1]),
        ],
    )  # fmt: skip
    def test_what_nothing_can_be_made_of(self, tmp_path, kind, value):
        with pytest.raises(ValueError, match=r"column 'x' holds \w+ values such as .*Give numbers"):
            table(stored(tmp_path, pa.array([value] * N, kind)))

    @pytest.mark.parametrize("kind", [pa.null(), pa.float32(), pa.string(), pa.list_(pa.int8())])
    def test_empty_lists_alone(self, tmp_path, kind):
        with pytest.raises(ValueError, match="column 'x' is empty"):
            table(stored(tmp_path, pa.array([[]] * N, pa.list_(kind))))

    @pytest.mark.parametrize(
        ("kind", "value", "said"),
        [
            (pa.float64(), 1e300, r"x: holds 1e\+300 \(float32 ends at 3\.4e\+38\)"),
            (pa.float32(), float("nan"), "x: holds nan"),
            (pa.uint64(), 2**64 - 1, r"x: holds 18446744073709551615 \(int64 ends at 9\.2e\+18\)"),
            (pa.list_(pa.int8()), [1, None], "x: holds nan"),
            (pa.list_(pa.bool_()), [True, None], "x: holds object values"),
        ],
    )
    def test_numbers_that_cannot_be_stored(self, tmp_path, kind, value, said):
        fine = value[:1] * 2 if isinstance(value, list) else 1
        x = pa.array([*[fine] * 10, value, fine], kind)
        with pytest.raises(ValueError, match="row 11: " + said):
            prepare(table(stored(tmp_path, x)), tmp_path / "store", workers=1)
        assert not (tmp_path / "store").exists()  # nothing was decoded

    def test_numbers_that_cannot_be_stored_in_a_csv(self, tmp_path):
        path = written(tmp_path, ["1e39", *["1"] * 11])
        with pytest.raises(ValueError, match=r"row 1: x: holds 1e\+39 \(float32 ends"):
            prepare(table(path), tmp_path / "store", workers=1)

    @pytest.mark.parametrize("kind", [pa.float64(), pa.decimal128(5, 2), pa.int8()])
    def test_labels_of_any_number_type(self, tmp_path, kind):
        label = pa.array([float(x) for x in LABEL]).cast(kind)
        assert table(stored(tmp_path, [1.0] * N, label=label)).classes == ["0", "1"]

    def test_a_damaged_file(self, tmp_path):
        path = stored(tmp_path, [1.0] * N)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"t\.parquet: cannot be read as a table"):
            table(path)


@pytest.mark.parametrize("form", [written, stored])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),
        (["1e5", "10e4", "3"], ["3", "10e4", "1e5"]),
        (["1", "1.0", "2"], ["1", "2"]),
        (["-1.0", "-0.0", "0.0"], ["-1", "0"]),
        (["100", "007", "020"], ["007", "020", "100"]),
        (["10", "9", "+1"], ["+1", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
    ],
)
def test_classes_that_are_whole_numbers_are_called_as_written(tmp_path, form, labels, classes):
    path = form(tmp_path, [f"{k}.5" for k in range(N)])
    if form is written:
        lines = [f"{k}.5,{labels[k % 3]}" for k in range(N)]
        path.write_text("\n".join(["x,label", *lines]))
    else:
        path = stored(tmp_path, [k / 2 for k in range(N)], label=[labels[k % 3] for k in range(N)])
    source = table(path)
    assert list(source.classes) == classes
    assert {source.classes[sample.label] for sample in source.samples[:3]} == set(classes)
