"""Columns of numbers and categories that are one modality."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from evenly.data import open_store, save_npz
from evenly.data.dataset import Modality
from evenly.data.raw import prepare, table
from evenly.data.raw.readers import READERS, Tabular, spelled
from evenly.data.tabular import Layout, columns_of, layout_of
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.trained.export import export
from evenly.lab.trained.load import load_run
from evenly.lab.trained.predict import predictions
from evenly.nn import encoder_for
from evenly.nn.encoders import TabularResNet
from evenly.reinit import soft_reinit_
from evenly.spec import made, parse

ASKED = {"facts": "tabular(numbers=[age,fare],categories=[port])"}
TRAIN = [(20, 1, "Cork"), (40, 1, "Cork"), ("", 1, "Oslo"), (30, 1, "Oslo"), (30, 1, "Riga")]
"""Of age, fare and port; one age is missing, the fare is constant, and Riga is there once."""


def csv(path, rows, names="age,fare,port"):
    lines = [names, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def source(tmp_path):
    rows = [(*row, k % 2, "train") for k, row in enumerate(TRAIN)]
    rows += [("", "", "", 0, "val"), (50, 3, "Rome", 1, "val"), (30, "", "Oslo", 0, "test")]
    rows += [(30, 1, "", 1, "test")]
    return table(csv(tmp_path / "t.csv", rows, "age,fare,port,label,split"), None, ASKED)


def test_the_training_split_decides(source):
    std = math.sqrt(50)
    assert source.readers["facts"] == Tabular(
        ("age", "fare"), ("port",), (30.0, 1.0), (std, 1.0), ("age",), (("Cork", "Oslo"),)
    )
    reader = source.readers["facts"]
    found = [reader(s.cells["facts"]).tolist() for s in source.samples if s.cells["facts"]]
    assert found[0] == pytest.approx([-10 / std, 0, 0, 0, 1, 0])
    assert found[2] == [0, 0, 1, 0, 0, 1]
    assert found[4] == [0, 0, 0, 1, 0, 0]  # once in the training split is unknown, too
    assert found[5] == pytest.approx([20 / std, 2, 0, 1, 0, 0])
    assert found[6] == [0, 0, 0, 0, 0, 1]  # no fare is the mean, of which training lacks no number
    assert found[7] == [0, 0, 0, 1, 0, 0]
    assert source.samples[5].cells["facts"] is None
    assert [*source.readers] == ["facts"]


def test_how_it_was_read_says_all(source):
    reader = source.readers["facts"]
    read = spelled(reader, whole=True)
    assert made("reader", parse(read), READERS) == reader
    assert layout_of(read) == Layout(3, (3,))
    assert columns_of("facts", read) == ["age", "fare", "port"]
    assert layout_of("array(kind=vector)") is None


def test_an_empty_cell_is_a_category_and_whole_floats_are_whole(tmp_path):
    cells = {"deck": [1.0, 2.0, None] * 10, "v": np.arange(30), "label": [0, 1] * 15}
    pd.DataFrame(cells).to_parquet(tmp_path / "t.parquet")
    source = table(
        tmp_path / "t.parquet", None, {"facts": "tabular(numbers=[v],categories=[deck])"}
    )
    assert sorted(source.readers["facts"].values[0]) == ["", "1", "2"]
    assert [*source.readers] == ["facts"]


def test_nan_is_an_empty_cell(tmp_path):
    """Unlike pandas, pyarrow and polars write it to a file as a number."""
    cells = {"port": np.array([1, 2, np.nan] * 10), "v": np.arange(30), "label": [0, 1] * 15}
    parquet.write_table(pa.table(cells), tmp_path / "t.parquet")
    reader = {"facts": "tabular(numbers=[v],categories=[port])"}
    assert sorted(table(tmp_path / "t.parquet", None, reader).readers["facts"].values[0]) == [
        "", "1", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("known", [("False", "True"), ("", "0", "1")])
def test_what_is_true_may_be_written_otherwise(known):
    reader = Tabular(categories=("flag",), values=(known,))
    places = {text: reader((text,)).argmax() for text in ("0", "False", "1", "TRUE", "2")}
    assert places["0"] == places["False"] == len(known) - 1
    assert places["1"] == places["TRUE"] == len(known)
    assert places["2"] == 0


def test_codes_are_not_what_is_true():
    reader = Tabular(categories=("code",), values=(("0", "1", "2"),))
    assert not reader.knows("code", "True")


def test_a_number_that_may_be_two_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("age;label\n" + "999;0\n1.234;1\n" * 10)
    with pytest.raises(ValueError, match=r"row 2 holds '1\.234' in the column 'age' of 'facts', w"):
        table(tmp_path / "t.csv", None, {"facts": "tabular(numbers=[age])"})


def test_rare_values_beyond_the_first_thousand_are_unknown(tmp_path):
    rows = [(k // 2, k % 2) for k in range(2400)] * 2
    path = csv(tmp_path / "t.csv", rows, "code,label")
    source = table(path, None, {"facts": "tabular(categories=[code])"})
    assert len(source.readers["facts"].values[0]) == 1000


class TestEncoder:
    def modality(self, reader):
        shape = (6,)
        return Modality(
            "facts", "vector", shape, torch.zeros(shape), torch.ones(shape), spelled(reader)
        )

    def test_embeddings_of_each_category(self, source):
        encoder = encoder_for(self.modality(source.readers["facts"]), 8)
        assert isinstance(encoder, TabularResNet)
        assert [tuple(each.weight.shape) for each in encoder.embed] == [(3, 3)]
        assert encoder.enter.in_features == 6
        assert not encoder.embed[0].weight[0].any()
        x = torch.tensor([[0.5, 1, 0, 0, 0, 1.0]])
        inside = torch.cat([x[:, :3], encoder.embed[0].weight[2:]], 1)
        stages = encoder.staged(x)
        assert torch.equal(next(stages), encoder.blocks[0](encoder.enter(inside)))
        with pytest.raises(StopIteration) as done:
            stages.send(torch.ones(1, 8))
        assert torch.equal(done.value.value, encoder(x))

    def test_it_is_pulled_back_as_a_whole(self, source):
        encoder = encoder_for(self.modality(source.readers["facts"]), 8)
        start = {name: value.clone() for name, value in encoder.state_dict().items()}
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(1)
        soft_reinit_(encoder, start, 0.25)
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(value, start[name] + 0.75)

    def test_other_vectors_are_refused(self):
        plain = Modality("x", "vector", (3,), torch.zeros(3), torch.ones(3))
        with pytest.raises(ValueError, match="encoder tabular takes columns of a table, but 'x'"):
            TabularResNet(plain, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on facts that say the class, and a text that does not."""
    folder = tmp_path_factory.mktemp("trained")
    draws = np.random.default_rng(0)
    rows = [
        (
            "" if k % 9 == 0 else f"{30 + 20 * (k % 2) + draws.normal():.2f}",
            f"{draws.normal():.2f}",
            ["Cork", "Oslo"][k % 2],
            "so it is",
            ["no", "yes"][k % 2],
        )
        for k in range(120)
    ]
    path = csv(folder / "t.csv", rows, "age,fare,port,said,label")
    prepare(table(path, None, ASKED), folder / "store", workers=1)
    training = Training(str(folder / "store"), epochs=6, width=8, batch_size=16, lr=0.01)
    run_cell(Cell(training, "relearn(every=2)", 0), folder / "run")
    return folder


def answers(trained, path):
    return [p.answers[1] for p in predictions(load_run(trained / "run"), str(path))]


class TestRun:
    def test_a_new_table_is_mapped_the_same_way(self, trained, tmp_path):
        new = csv(
            tmp_path / "new.csv",
            [
                ("Oslo", "it is", 50, 0),
                ("Cork", "", 30, 0),
                ("Bergen", "", "", ""),
                ("", "so", "", ""),
            ],
            "port,said,age,fare",
        )
        found = answers(trained, new)
        assert found[0] > 0.5 > found[1]
        kept = open_store(trained / "store")
        inputs = kept.split("test").__getitems__(range(18))["inputs"]
        model = load_run(trained / "run")
        whole = model.answers(inputs)[:, 1].tolist()
        assert whole == pytest.approx(answers(trained, trained / "store"), abs=1e-6)
        as_texts = pd.read_csv(trained / "t.csv").iloc[[int(n[4:]) - 1 for n in named(kept)]]
        as_texts.to_parquet(tmp_path / "same.parquet")
        assert answers(trained, tmp_path / "same.parquet") == pytest.approx(whole, abs=1e-6)

    def test_columns_that_are_not_as_in_training_are_told(self, trained, tmp_path, capsys):
        rows = [(30 + k, 0, "cork" if k else "Oslo", "so") for k in range(10)]
        answers(trained, csv(tmp_path / "new.csv", rows, "age,fare,port,said"))
        said = capsys.readouterr().err
        assert "9 of 10 values of 'port' of 'facts', such as 'cork', are unknown to" in said
        assert "which learnt Cork, Oslo." in said
        assert "scaled" not in said
        rows = [(1000 * row[0], *row[1:2], "Oslo", "so") for row in rows]
        answers(trained, csv(tmp_path / "new.csv", rows, "age,fare,port,said"))
        said = capsys.readouterr().err
        assert "'age' of 'facts' holds numbers from 30000 to 39000, but" in said
        assert "unknown" not in said

    def test_it_is_exported(self, trained, tmp_path):
        run = load_run(trained / "run")
        export(run, tmp_path / "m.pt2")

    @pytest.mark.parametrize(
        ("names", "rows", "message"),
        [
            ("age,said", [(1, "a")], "has no column 'fare', of which 'facts' is made"),
            (
                "age,fare,port",
                [(1, "a", "b")],
                "row 1 holds 'a' in the column 'fare', which 'facts'",
            ),
            ("x,y", [(1, 2)], "has none of the columns said, age, fare, port that"),
        ],
    )
    def test_other_tables_are_refused(self, trained, tmp_path, names, rows, message):
        with pytest.raises(ValueError, match=r".") as caught:
            answers(trained, csv(tmp_path / "new.csv", rows, names))
        assert message in str(caught.value)

    def test_arrays_are_refused(self, trained, tmp_path):
        save_npz(tmp_path / "a.npz", [0, 1], ["test"] * 2, {"facts": np.zeros((2, 6), np.float32)})
        with pytest.raises(ValueError, match=r"'facts' is an array, but .* was trained on columns"):
            answers(trained, tmp_path / "a.npz")


def named(data):
    return [data.names[row] for row in data.split("test").rows.tolist()]


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("tabular()", "tabular: no columns given. Give numbers=[age,fare]"),
        ("tabular(numbers=[age,age])", "tabular: names the column 'age' twice"),
        ("tabular(numbers=[age],categories=[age])", "tabular: names the column 'age' twice"),
        ("tabular(numbers=[year])", "has no column 'year', of which 'facts' is made. It has age"),
        (
            "tabular(numbers=[label])",
            "'label' of 'facts' is the label, split or name of a sample",
        ),
        ("tabular(numbers=[port])", "row 1 holds 'Cork' in the column 'port', which 'facts' takes"),
        ("tabular(numbers=[huge])", "row 2 holds 1e+99 in the column 'huge', which 'facts' takes"),
        ("tabular(numbers=[none])", "no training sample has a number in 'none' of 'facts'"),
        ("tabular(categories=[key])", "no two training samples share a value of 'key' of 'facts'"),
        (
            "tabular(numbers=[age],means=[1])",
            "tabular: has 1 means, 0 deviations and 0 lists of val",
        ),
        (
            "tabular(numbers=[age],lacking=[b])",
            "tabular: lacking names ['b'], which are no numbers",
        ),
        ("tabular(numbers=[1])", "tabular: numbers takes a text, found 1"),
        ("tabular(numbers=age)", "tabular: numbers takes a list of texts, found 'age'"),
    ],
)
def test_what_is_refused(tmp_path, reader, message):
    rows = [
        (k, "Cork", "1e99" if k == 1 else 2, "", f"k{k}", k % 2, ("train", "val", "test")[k // 4])
        for k in range(12)
    ]
    path = csv(tmp_path / "t.csv", rows, "age,port,huge,none,key,label,split")
    with pytest.raises(ValueError, match=r".") as caught:
        table(path, ["facts"], {"facts": reader})
    assert message in str(caught.value)


def test_a_name_that_a_column_has(tmp_path):
    path = csv(tmp_path / "t.csv", [(k, k % 2) for k in range(20)], "facts,label")
    with pytest.raises(ValueError, match=r"already has a column 'facts'\. Choose another name"):
        table(path, None, {"facts": "tabular(numbers=[facts])"})


@pytest.mark.parametrize(
    ("cell", "what"),
    [([{"a": 1}], "lists"), ({"a": 1}, "structures"), (pd.Timestamp("2020-01-02"), "dates")],
)
def test_what_is_no_category(tmp_path, cell, what):
    cells = {"x": [["a"]] * 8, "y": [cell] * 8, "label": [0, 1] * 4}
    pd.DataFrame(cells).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=f"'y' of 'facts' holds {what}, which are no categories"):
        table(tmp_path / "t.parquet", None, {"facts": "tabular(categories=[y])"})
