"""Tables of JSON lines and of Feather."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from evenly.data import open_store
from evenly.data.raw import Array, Image, Text, lines, prepare, table
from evenly.data.raw.rows import ArrowRows
from hubs import picture

ROWS = [
    {"v": [k, k / 2], "said": f"word{k % 3} and more", "label": ["cat", "dog"][k % 2]}
    for k in range(30)
]


def written(path, rows=ROWS):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def said(path, **options):
    """What is said of a table that cannot be used."""
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, **options)
    return str(caught.value)


class TestJson:
    @pytest.mark.parametrize("name", ["t.jsonl", "t.NDJSON"])
    def test_fields_are_columns(self, tmp_path, name):
        source = table(written(tmp_path / name))
        assert source.name == "t"
        assert source.readers["v"] == Array()
        assert isinstance(source.readers["said"], Text)
        assert source.classes == ["cat", "dog"]
        assert source.samples[3].cells["v"].tolist() == [3, 1.5]
        assert source.samples[3].cells["said"] == "word0 and more"

    def test_fields_may_be_lacking_and_lines_be_blank(self, tmp_path):
        rows = [{"x": 1, "label": 0}, {"label": 1, "y": 2.5}, {"x": None, "y": 3, "label": 0}]
        path = written(tmp_path / "t.jsonl", rows * 8)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"}\n", b"}\r\n\n"))
        source = table(path)
        cells = [{name: x and x[0] for name, x in s.cells.items()} for s in source.samples[:3]]
        assert cells == [{"x": 1, "y": None}, {"x": None, "y": 2.5}, {"x": None, "y": 3}]

    def test_a_chunk_at_a_time_is_the_same(self, tmp_path, monkeypatch):
        rows = [{"x": k, "mixed": [k, "k", 0.5][k % 3], "label": k % 2} for k in range(12)]
        rows += [{"x": 0.5, "late": [], "mixed": True, "label": 1}, {"late": ["a b"], "label": 0}]
        whole = lines.JsonRows.of(written(tmp_path / "t.jsonl", rows)).content
        monkeypatch.setattr(lines, "_CHUNK", 30)
        parts = lines.JsonRows.of(tmp_path / "t.jsonl").content
        assert parts.column("x").num_chunks > 3
        assert parts.to_pydict() == whole.to_pydict()
        assert parts.schema == whole.schema
        assert parts.column("mixed").to_pylist()[:3] == ["0", "k", "0.5"]

    def test_a_folder_whose_files_are_splits(self, tmp_path):
        for name, rows in {"train": ROWS[:20], "dev": ROWS[20:24], "test": ROWS[24:]}.items():
            written(tmp_path / f"{name}.jsonl", rows)
        splits = [sample.split for sample in table(tmp_path).samples]
        assert [splits.count(name) for name in ("train", "val", "test")] == [20, 4, 6]

    def test_labels_that_are_lists(self, tmp_path):
        rows = [{"x": k, "label": [["a"], [], ["b", "a"]][k % 3]} for k in range(30)]
        source = table(written(tmp_path / "t.jsonl", rows))
        assert source.target[:3].tolist() == [[1, 0], [0, 0], [1, 1]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"x": 1, "label": 0}\n{"x": 1, "label"\n', "line 2 is not JSON (Expecting ':'"),
            ('[{"x": 1}]', "line 1 holds no fields. Write an object in each line"),
            ('{\n  "x": 1\n}', "line 1 is not JSON (Expecting property name"),
            ('{"x": 1, "label": 0, "x": 2}', "line 1 is not JSON (it has the field 'x' twice)"),
            ("[" * 100_000, "line 1 is not JSON"),
            ("", "has no rows"),
            ('{"x": 1}\n{"x": 2}', "needs a column 'label' and one for each modality; found x"),
            ('{"x": {"a": 1}, "label": 0}\n' * 2, "column 'x' holds dict values such as"),
            ('{"x": NaN, "label": 0}\n{"x": 1, "label": NaN}', "row 2 has the label nan"),
        ],
    )
    def test_what_is_refused(self, tmp_path, text, message):
        (tmp_path / "t.jsonl").write_text(text)
        found = said(tmp_path / "t.jsonl")
        assert message in found
        assert f"{tmp_path / 't.jsonl'}: " in found

    def test_another_encoding(self, tmp_path):
        (tmp_path / "t.jsonl").write_bytes('{"x": "é"}'.encode("latin-1"))
        assert "line 1 is not JSON ('utf-8' codec" in said(tmp_path / "t.jsonl")


class TestFeather:
    @pytest.mark.parametrize("compression", ["lz4", "uncompressed"])
    def test_columns_and_files(self, tmp_path, compression):
        cells = {
            "photo": [picture(k) for k in range(30)],
            "v": [row["v"] for row in ROWS],
            "label": [row["label"] for row in ROWS],
        }
        path = tmp_path / "t.feather"
        feather.write_feather(pa.table(cells), path, compression=compression, chunksize=7)
        source = table(path, None, {"photo": "image(size=[2,2])"})
        assert source.readers == {"photo": Image((2, 2)), "v": Array()}
        prepare(source, tmp_path / "store", workers=1)
        data = open_store(tmp_path / "store")
        inputs = data.split("train").__getitems__(range(len(data.split("train"))))["inputs"]
        assert inputs["photo"][:, 0, 0, 0].tolist() == inputs["v"][:, 0].tolist()

    def test_of_pandas_with_categories(self, tmp_path):
        import pandas as pd

        frame = pd.DataFrame({"x": np.arange(24) / 2, "label": pd.Categorical(["a", "b"] * 12)})
        frame.to_feather(tmp_path / "t.feather")
        source = table(tmp_path / "t.feather")
        assert source.classes == ["a", "b"]
        assert source.samples[5].cells["x"] == [2.5]

    def test_some_columns_in_any_order(self, tmp_path):
        columns = {"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0.5, 1.5, 2.5]}
        feather.write_feather(pa.table(columns), tmp_path / "t.feather", chunksize=2)
        rows = ArrowRows.of(tmp_path / "t.feather")
        assert len(rows) == 3
        assert rows.table(["c", "a"]).to_pydict() == {"c": columns["c"], "a": columns["a"]}
        [(start, batch)] = rows.batches(["b"], 2)
        assert (start, batch.column("b").to_pylist()) == (2, ["z"])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"FEA1" + bytes(40), "is Feather of version 1, which is no Arrow file"),
            (b"ARROW1\0\0" + bytes(40), "cannot be read as a table"),
            (b"x,label\n1,2\n", "cannot be read as a table"),
            (b"", "cannot be read as a table"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, message):
        (tmp_path / "t.feather").write_bytes(content)
        assert message in said(tmp_path / "t.feather")

    def test_a_file_that_is_cut(self, tmp_path):
        feather.write_feather(pa.table({"x": [1.0] * 100, "label": [0, 1] * 50}), tmp_path / "t")
        (tmp_path / "t.feather").write_bytes((tmp_path / "t").read_bytes()[:-40])
        assert "cannot be read as a table" in said(tmp_path / "t.feather")


class TestSeveralInOneRow:
    def test_columns_are_modalities_and_texts_of_a_list_are_one(self, tmp_path):
        rows = [
            {
                "title": f"title {k}",
                "body": [["one text", "another"], [], ["alone"]][k % 3],
                "front": "1.png",
                "back": "2.png",
                "label": k % 2,
            }
            for k in range(24)
        ]
        for n in (1, 2):
            (tmp_path / f"{n}.png").write_bytes(picture(n))
        source = table(written(tmp_path / "t.jsonl", rows))
        assert [type(reader) for reader in source.readers.values()] == [Text, Text, Image, Image]
        assert [s.cells["body"] for s in source.samples[:3]] == ["one text another", None, "alone"]
        assert (
            "t.jsonl: the texts in a cell of 'body' are one, with blanks between." in source.notes
        )

    def test_files_in_a_list_are_paths(self, tmp_path):
        for n in (1, 2):
            (tmp_path / f"{n}.png").write_bytes(picture(n))
        pages = [["1.png", "2.png"], [" 2.png ", None, ""], [], None]
        rows = [{"pages": pages[k % 4], "x": k, "label": k // 4 % 2} for k in range(24)]
        source = table(written(tmp_path / "t.jsonl", rows))
        one, two = tmp_path / "1.png", tmp_path / "2.png"
        assert source.readers["pages"] == Image(several=True)
        assert [s.cells["pages"] for s in source.samples[:4]] == [(one, two), (two,), None, None]
        assert {one, two} < set(source.files())

    def test_lists_of_one_file_are_a_file(self, tmp_path):
        (tmp_path / "1.png").write_bytes(picture(1))
        rows = [{"page": ["1.png"], "label": k % 2} for k in range(24)]
        source = table(written(tmp_path / "t.jsonl", rows))
        assert source.readers["page"] == Image()
        assert source.samples[0].cells["page"] == tmp_path / "1.png"
