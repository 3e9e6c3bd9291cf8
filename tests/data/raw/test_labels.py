"""What a table says is to be predicted: one class, or several labels."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Sequence as Several
from pyarrow import parquet

from evenly.data import open_store
from evenly.data.catalogue import load
from evenly.data.raw import prepare, table
from evenly.data.store import describe
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained.load import load_run
from evenly.lab.trained.predict import predictions

ROWS = [["x"], ["x", "y"], ["y"], ["z", "x"], [], ["z"]] * 5
TARGET = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]] * 5


def csv(folder, names, rows):
    lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def as_lists(folder):
    cells = {"v": list(range(len(ROWS))), "label": ROWS}
    parquet.write_table(pa.table(cells), folder / "t.parquet")
    return folder / "t.parquet"


def as_texts(folder):
    return csv(folder, ["v", "label"], [(k, " ; ".join(row)) for k, row in enumerate(ROWS)])


def as_columns(folder):
    names = ["v", "label_x", "label_y", "label_z"]
    return csv(folder, names, [(k, *row) for k, row in enumerate(TARGET)])


def as_class_lists(folder):
    numbers = [[("y", "x", "z").index(name) for name in row] for row in ROWS]
    kinds = {"v": Value("int32"), "tags": Several(ClassLabel(names=["y", "x", "z"]))}
    cells = {"v": range(len(ROWS)), "tags": numbers}
    Dataset.from_dict(cells, features=Features(kinds)).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("form", [as_lists, as_texts, as_columns, as_class_lists])
def test_several_labels(tmp_path, form):
    source = table(form(tmp_path))
    order = [source.classes.index(name) for name in "xyz"]
    assert source.task.name == "labels"
    assert source.target[:, order].tolist() == TARGET
    assert [*source.readers] == ["v"]
    splits = [sample.split for sample in source.samples]
    assert [splits.count(name) for name in ("train", "val", "test")] == [22, 4, 4]


def test_a_note_says_that_labels_are_lists(tmp_path):
    assert (
        "t.parquet: a label is a list of the labels of a sample, of which there are 3; 5 samples "
        "have none."
    ) in table(as_lists(tmp_path)).notes


def test_of_few_numbers_the_share_is_drawn(tmp_path):
    source = table(csv(tmp_path, ["x", "label"], [(k, k + 0.5) for k in range(30)]))
    drawn = {n: [s.label[0] for s in source.samples if s.split == n] for n in ("val", "test")}
    assert [*map(len, drawn.values())] == [4, 4]
    assert all(min(x) < 9 and max(x) > 20 for x in drawn.values())
    assert "4 of 30 samples (13%, stratified, seed 0)" in "".join(source.notes)


def test_a_store_holds_them(tmp_path):
    prepare(table(as_texts(tmp_path)), tmp_path / "store", workers=1)
    data = open_store(tmp_path / "store")
    assert describe(tmp_path / "store").task["name"] == data.task.name == "labels"
    batch = data.split("train").__getitems__(range(20))
    numbers = batch["inputs"]["v"].flatten().tolist()
    assert batch["target"].tolist() == [TARGET[n] for n in numbers]
    assert data.task.called(torch.tensor(TARGET[1])) == "x;y"
    assert (
        "t.csv: ';' joins several labels of a sample, of which there are 3; 5 samples"
        in "".join(data.notes)
    )


def test_a_store_of_another_format_is_to_be_prepared_again(tmp_path):
    prepare(table(as_texts(tmp_path)), tmp_path / "store", workers=1)
    path = tmp_path / "store" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(ValueError, match=r"has the format 3, .* Prepare the store again"):
        open_store(tmp_path / "store")


def test_lists_of_a_mark_for_each_label(tmp_path):
    cells = {"v": list(range(30)), "label": TARGET}
    parquet.write_table(pa.table(cells), tmp_path / "t.parquet")
    source = table(tmp_path / "t.parquet")
    assert source.target.tolist() == TARGET
    assert source.classes == ["0", "1", "2"]


@pytest.mark.parametrize("task", ["auto", "labels"])
@pytest.mark.parametrize("rows", [TARGET, [[1, 0], [0, 1]] * 15])
def test_lists_of_a_mark_for_each_label_may_be_floats(tmp_path, task, rows):
    of_lists([[float(x) for x in row] for row in rows])(tmp_path)
    source = table(tmp_path / "t.parquet", task=task)
    assert source.task.name == "labels"
    assert source.target.tolist() == rows
    assert table(tmp_path / "t.parquet", task="number").task.name == "number"


@pytest.mark.parametrize("rows", [[[0.0], [1.0]], [[0.0, 1.0], [1.0, 0.5]]])
def test_other_lists_of_floats_are_numbers(tmp_path, rows):
    of_lists(rows * 15)(tmp_path)
    assert table(tmp_path / "t.parquet").target.tolist() == rows * 15


def test_names_that_are_numbers_are_in_their_order(tmp_path):
    rows = [(k, ("10|9", "9", "10", "b|9")[k % 4]) for k in range(24)]
    assert table(csv(tmp_path, ["v", "label"], rows)).classes == ["9", "10", "b"]


def test_a_column_that_is_asked_for_leaves_the_others_aside(tmp_path):
    rows = [(k, k % 2, 1, 0) for k in range(20)]
    source = table(csv(tmp_path, ["v", "label", "label_a", "label_b"], rows), label="label")
    assert source.classes == ["0", "1"]
    assert [*source.readers] == ["v"]
    noted = "t.csv: the column 'label_a' is named like a label, so it is not a modality."
    assert noted in source.notes


def test_one_column_named_like_a_label_is_left_aside(tmp_path):
    path = csv(tmp_path, ["v", "label", "label_text"], [(k, k % 2, "ab"[k % 2]) for k in range(20)])
    source = table(path)
    assert [*source.readers] == ["v"]
    noted = "t.csv: the column 'label_text' is named like a label, so it is not a modality."
    assert noted in source.notes
    assert [*table(path, ["label_text"]).readers] == ["label_text"]


def test_one_sample_with_a_label_stays_in_training(tmp_path):
    rows = [(k, "rare;a" if k == 7 else ("a", "b", "a;b")[k % 3]) for k in range(30)]
    source = table(csv(tmp_path, ["v", "label"], rows))
    assert source.samples[7].split == "train"


def test_labels_need_not_be_known(tmp_path):
    source = table(
        csv(tmp_path, ["v", "label_a", "label_b"], [(0, "", ""), (1, 1, 0)]), labelled=False
    )
    assert source.target.tolist() == [[-1, -1], [1, 0]]
    assert isinstance(source.samples[0].label, tuple)
    assert [source.task.called(row) for row in source.target] == ["", "a"]


def of_lists(cells):
    return lambda folder: parquet.write_table(
        pa.table({"v": list(range(len(cells))), "label": cells}), folder / "t.parquet"
    )


def of_texts(names, *rows):
    return lambda folder: csv(folder, names.split(","), rows)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (of_lists([["a"], None, ["b"]]), "row 2 has no list of labels"),
        (of_lists([["a"], ["b", "b"]]), "row 2 has a label twice, ['b', 'b']"),
        (of_lists([["a"], ["b", ""]]), "row 2 has '' in its list of labels"),
        (
            of_lists([[0.5, 1.5], [2.5]]),
            "row 2 has the label [2.5], and others are 2",
        ),
        (of_lists([[0.5, 1.5], [2.5, float("nan")]]), "row 2 has nan among its numbers to regress"),
        (
            of_texts("v,label_a,label_b", (1, 0.5, 2), (2, 1, "")),
            "row 2 holds nothing in",
        ),
        (of_texts("v,label_a,label_b", (1, 0.5, 2), (2, 1, "x")), "row 2 holds 'x' in the column"),
        (
            of_texts("v,label", *((k, 1e8 + k / 2) for k in range(30))),
            "the label has mean 100000007 and deviation 4.33. 32-bit floats are 8 apart",
        ),
        (
            of_lists([[k / 2, 1e8 + k] for k in range(30)]),
            "'number 1' of the labels has mean 100000014 and",
        ),
        (of_texts("v,label", (1, "a;b"), (2, "a|b")), "its labels hold both ; and |"),
        (
            of_texts("v,label", (1, 2), (2, '"1,5"')),
            "row 2 has the label '1,5', which can be read in two ways",
        ),
        (
            of_texts("v,label_a,label_b", (1, 0.5, 2), (2, 1, '"1,5"')),
            "row 2 has the label '1,5', which can be read in two ways",
        ),
        (of_texts("v,label", (1, "\"['a', 'b']\""), (2, "b")), "row 1 has the label ['a', 'b'], a"),
        (
            of_texts("v,label,label_a,label_b", (1, 1, 1, 0), (2, 0, 1, 1)),
            "has labels in the column 'label' and in label_a, label_b. Say with --label label",
        ),
    ],
)
def test_what_is_refused(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=r".") as caught:
        table(next(tmp_path.iterdir()))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_label_that_no_training_sample_has(tmp_path):
    rows = [(k, ("a", "b", "a;b")[k % 3], ("train", "val", "test")[k // 10]) for k in range(30)]
    rows[-1] = (29, "c;a", "test")
    source = table(csv(tmp_path, ["v", "label", "split"], rows))
    with pytest.raises(
        ValueError, match="in the training split, all samples or none have the label 'c'"
    ):
        prepare(source, tmp_path / "store", workers=1)


def test_one_label_is_none_of_several(tmp_path):
    of_lists([["a"], []] * 12)(tmp_path)
    with pytest.raises(ValueError, match="has only the label 'a'"):
        prepare(table(tmp_path / "t.parquet"), tmp_path / "store", workers=1)


def test_as_many_of_each_group_for_a_trial(tmp_path):
    source = table(as_lists(tmp_path)).limited(4)
    assert len(source.samples) == 12
    assert np.unique(source.target.numpy(), axis=0).shape[0] > 3


def test_each_label_of_a_trial(tmp_path):
    """Label 'a' is the rarest of no sample, and first comes with the fourth."""
    rows = [["b"], ["c"], [], ["a", "b"], ["a", "b"], ["a", "c"], ["a", "c"]] * 3
    split = ["train"] * 7 + ["val"] * 7 + ["test"] * 7
    cells = {"v": list(range(21)), "label": rows, "split": split}
    parquet.write_table(pa.table(cells), tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet").limited(3).target[:4].tolist() == [
        [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0],
    ]  # fmt: skip


class TestNumbers:
    def test_of_a_column(self, tmp_path):
        rows = [(k, f"{k / 4 - 2:g}") for k in range(40)]
        source = table(csv(tmp_path, ["v", "label"], rows))
        prepare(source, tmp_path / "store", workers=1)
        data = open_store(tmp_path / "store")
        assert data.task.name == source.task.name == "number"
        batch = data.split("val").__getitems__(range(len(data.split("val"))))
        assert (batch["target"] == batch["inputs"]["v"] / 4 - 2).all()
        assert data.task.mean[0] == data.split("train").target.double().mean()
        assert "t.csv: the labels look like numbers to regress on, 'number'; use --task" in "".join(
            data.notes
        )

    @pytest.mark.parametrize(
        "texts", [["-0.0", "0.0", "1.5"], ["0.5", "0.50", ".5"], ["1", "1.0", "0.5"]]
    )
    def test_one_that_is_written_in_two_ways(self, tmp_path, texts):
        cells = [texts[k % 3] for k in range(30)]
        path = csv(tmp_path, ["v", "label"], list(enumerate(cells)))
        assert table(path).target.flatten().tolist() == [float(text) for text in cells]
        parquet.write_table(pa.table({"v": range(30), "label": cells}), tmp_path / "t.parquet")
        assert table(tmp_path / "t.parquet").target.flatten().tolist() == [*map(float, cells)]

    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            ("NA", "row 30 holds 'NA' in the column 'label', whose"),
            ("?", "row 30 has the label '?'"),
        ],
    )
    def test_a_word_among_them(self, tmp_path, odd, message):
        cells = [k / 4 - 2 for k in range(29)] + [odd]
        path = csv(tmp_path, ["v", "label"], list(enumerate(cells)))
        with pytest.raises(ValueError, match=re.escape(message)):
            table(path)
        assert not table(path, labelled=False, task="number").target[:29].isnan().any()

    def test_words_beside_whole_numbers_are_classes(self, tmp_path):
        cells = ["1", "2", "both"] * 10
        assert table(csv(tmp_path, ["v", "label"], list(enumerate(cells)))).classes == [
            "1", "2", "both",
        ]  # fmt: skip

    def test_na_beside_whole_numbers(self, tmp_path):
        """It is no class in any table, unless it is said to be one."""
        cells = ["10", "2", "NA"] * 10
        lines = [json.dumps({"v": k, "label": x}) for k, x in enumerate(cells)]
        (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
        parquet.write_table(pa.table({"v": range(30), "label": cells}), tmp_path / "t.parquet")
        csv(tmp_path, ["v", "label"], list(enumerate(cells)))
        for path in tmp_path.glob("t.*"):
            with pytest.raises(ValueError, match=r"row 3 has the label NA\. .* --task classes if"):
                table(path)
            source = table(path, task="classes")
            assert source.classes == ["2", "10", "NA"]
            assert source.target.tolist() == [1, 0, 2] * 10
            assert f"{path.name}: 'NA' is a class, of 10 samples." in source.notes
            unknown = table(path, labelled=False, task="classes")
            assert unknown.target.tolist() == [1, 0, -1] * 10

    @pytest.mark.parametrize(
        ("texts", "classes"),
        [
            (["1.10", "1.0", "10.0", "1.1"], ["1.0", "1.1", "1.10", "10.0"]),
            (["0.5", "0.50"], ["0.5", "0.50"]),
            (["2.5", "NA", "2", "-1"], ["-1", "2", "2.5", "NA"]),
        ],
    )
    def test_names_that_are_numbers(self, tmp_path, texts, classes):
        rows = list(enumerate(texts * 10))
        path = csv(tmp_path, ["v", "label"], rows)
        source = table(path, task="classes")
        assert source.classes == classes
        assert [source.classes[n] for n in source.target.tolist()] == texts * 10
        with pytest.raises(ValueError, match="row 2 has the label None"):
            table(csv(tmp_path, ["v", "label"], [rows[0], (1, ""), *rows[2:]]), task="classes")

    def test_numbers_that_are_written_in_different_ways(self, tmp_path):
        (tmp_path / "t.csv").write_text("label;v\n" + "2.5;1\n1,5e3;2\n" * 10)
        with pytest.raises(
            ValueError, match=r"row 2 has the label '1,5e3', a number .* as 1234\.5,"
        ):
            table(tmp_path / "t.csv")
        assert table(tmp_path / "t.csv", task="classes").classes == ["1,5e3", "2.5"]

    def test_of_several_columns_and_of_lists(self, tmp_path):
        rows = [(k, k / 4, -k) for k in range(30)]
        source = table(csv(tmp_path, ["v", "label_one", "label_two"], rows))
        assert source.classes == ["one", "two"]
        assert source.target[3].tolist() == [0.75, -3]
        of_lists([[k / 4, -float(k)] for k in range(30)])(tmp_path)
        assert table(tmp_path / "t.parquet").target.tolist() == source.target.tolist()

    def test_decimal_commas(self, tmp_path):
        rows = "".join(f"{k};{k // 2},{5 * (k % 2)};0,5;{k}\n" for k in range(30))
        (tmp_path / "t.csv").write_text(f"x;label;label_a;label_b\n{rows}")
        assert table(tmp_path / "t.csv", label="label").target.flatten().tolist() == [
            k / 2 for k in range(30)
        ]
        (tmp_path / "t.csv").write_text(f"x;y;label_a;label_b\n{rows}")
        assert table(tmp_path / "t.csv", ["x"]).target[3].tolist() == [0.5, 3]

    def test_whole_numbers_are_classes_unless_asked_for(self, tmp_path):
        path = csv(tmp_path, ["v", "label"], [(k, k % 2) for k in range(30)])
        assert table(path).task.name == "classes"
        assert table(path, task="number").target.tolist() == [[k % 2] for k in range(30)]

    def test_one_that_need_not_be_known(self, tmp_path):
        path = csv(tmp_path, ["v", "label"], [(1, 0.5), (2, ""), (3, 2)])
        source = table(path, labelled=False)
        assert [source.task.called(row) for row in source.target] == ["0.5", "", "2"]
        with pytest.raises(ValueError, match="row 2 holds nothing in the column 'label', whose"):
            table(path)


@pytest.mark.parametrize(
    ("label", "task", "names", "called"),
    [
        (lambda k: ["a", "a;b", "b"][k % 3], "labels", ["a", "b"], "b"),
        (lambda k: k % 3 + 0.25, "number", ["number"], "2.25"),
    ],
)
def test_from_a_table_to_a_run_and_its_predictions(tmp_path, capsys, label, task, names, called):
    path = csv(tmp_path, ["v", "id", "label"], [(k % 3, -k, label(k)) for k in range(60)])
    prepare(table(path, ["v", "id"]), tmp_path / "store", workers=1)
    training = Training(str(tmp_path / "store"), epochs=2, width=8, batch_size=16)
    run_cell(Cell(training, "joint", 0), tmp_path / "run")
    trained = load_run(tmp_path / "run")
    assert trained.task.name == task
    assert list(trained.task.names) == names
    rows = [(3, 2, called), (4, 1, called)]  # ids that differ, as in training
    found = list(predictions(trained, str(csv(tmp_path, ["id", "v", "label"], rows))))
    assert "lacks" not in capsys.readouterr().err
    assert [found[0].label, len(found[0].answers)] == [called, len(names)]
    same = trained.answers({"v": torch.tensor([[2]]), "id": torch.tensor([[3]])})
    assert found[0].answers == pytest.approx(same[0].tolist(), abs=1e-6)
    (tmp_path / "t.csv").write_text("id,v\n3,2\n")
    assert [p.label for p in predictions(trained, str(tmp_path / "t.csv"))] == [""]


def test_texts_are_classes_as_a_whole_if_asked_for(tmp_path):
    path = csv(tmp_path, ["v", "label"], [(k, ("a;b", "c")[k % 2]) for k in range(30)])
    assert table(path, task="classes").classes == ["a;b", "c"]
    assert table(path).classes == ["a", "b", "c"]


@pytest.mark.parametrize("form", [as_lists, as_columns])
def test_several_labels_are_no_classes(tmp_path, form):
    with pytest.raises(ValueError, match="which are not classes"):
        table(form(tmp_path), task="classes")


def test_a_store_of_classes_is_prepared_again_for_numbers(tmp_path):
    path = csv(tmp_path, ["x", "label"], [(k, k % 2) for k in range(30)])
    prepare(table(path), tmp_path / "store", workers=1)
    with pytest.raises(ValueError, match=r"Prepare it again with --task number, or leave it out"):
        load(str(tmp_path / "store"), "number")
