import re
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from evenly.cli import main
from evenly.data import Data, Padded, load, save_npz
from evenly.data.raw.readers import Tabular
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.run.stored import Stored, stored
from evenly.lab.trained.intake import Intake, odd_columns
from evenly.lab.trained.load import load_run
from evenly.lab.trained.predict import predictions


def intake(kind, shape, dtype, low=0.0, high=1.0, ragged=False, longest=None, alike=False):
    known = Stored(kind, list(shape), 1, dtype, ragged, float(low), float(high))
    return Intake(Path("RUN"), "x", known, longest, alike)


BYTES = intake("image", (1, 2, 2), "uint8", 0, 255)
UNIT = intake("image", (1, 2, 2), "float32")
WORDS = intake("text", (4, 9), "int32", 0, 8, ragged=True)


def picture(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("takes", "x", "fault"),
    [
        (BYTES, picture(0, 0.5, 1, 0), "pictures of float32 values.* on uint8, 0 to 255"),
        (BYTES, picture(0, 9, 1, 0, dtype=torch.int32), "pictures of int32 values"),
        (UNIT, picture(0, 9, 1, 0, dtype=torch.uint8), "pictures of uint8 values.* float32, 0 to"),
        (UNIT, picture(0, 1, 1, 0, dtype=torch.bool), "pictures of bool values"),
        (UNIT, torch.zeros(1, 1, 2, 3), r"the shape \(1, 2, 3\), but RUN was trained on \(1, 2, 2"),
        (UNIT, torch.zeros(1, 2), r"the shape \(2,\)"),
        (WORDS, Padded(torch.tensor([[3, 9]]), torch.tensor([2])), "token 9, .* tokens 0 to 8"),
        (WORDS, Padded(torch.tensor([[3, -1]]), torch.tensor([2])), "which are not token numbers"),
        (WORDS, Padded(torch.tensor([[3.0]]), torch.tensor([1])), "float32 values, which"),
        (intake("text", (4, 9), "int32", ragged=True, longest=3),
         Padded(torch.ones(2, 5).int(), torch.tensor([2, 4])), "a sample of 4 steps, .* takes at"),
        (intake("vector", (2,), "uint8", 0, 255), torch.tensor([[0, 300]]), "300, which does not"),
        (intake("vector", (2,), "float16"), torch.tensor([[0, 1e6]]), "1e.06, which does not fit"),
        (intake("vector", (2,), "bool"), torch.tensor([[0, 2]]).byte(), "2, which does not fit"),
        (intake("vector", (2,), "float32"), torch.zeros(1, 3), r"the shape \(3,\)"),
        (intake("sequence", (9, 2), "float32"), torch.zeros(1, 9, 3), r"the shape \(9, 3\)"),
    ],
)  # fmt: skip
def test_what_is_something_else_is_refused(takes, x, fault):
    with pytest.raises(ValueError, match=rf"^'x' h.*{fault}"):
        takes(x, None)


@pytest.mark.parametrize(
    ("takes", "x", "expected"),
    [
        (BYTES, picture(0, 9, 255, 0, dtype=torch.uint8), torch.uint8),
        (UNIT, picture(0, 0.5, 1.2, 0), torch.float32),
        (UNIT, picture(0, 0.5, 1, 0, dtype=torch.float64), torch.float32),
        (UNIT, picture(0, 0, 0, 0), torch.float32),
        (intake("image", (1, 2, 2), "float16", -11, 3, alike=True), picture(-40, 0, 0, 9),
         torch.float16),
        (intake("vector", (2,), "float32", 0, 50), torch.tensor([[3, 400]]), torch.float32),
        (intake("vector", (2,), "int64", 0, 50), torch.tensor([[3.0, 4.0]]), torch.int64),
        (intake("vector", (2,), "int64", 0, 50), torch.tensor([[3.0, 4.5]]), torch.float32),
        (intake("vector", (2,), "uint8", 0, 1), torch.tensor([[0, 1]]), torch.uint8),
        (intake("vector", (2,), "float32"), torch.tensor([[0, 1]]).byte(), torch.float32),
    ],
)  # fmt: skip
def test_the_same_in_another_type_is_converted(takes, x, expected):
    found = takes(x, None)
    assert found.dtype == expected
    assert torch.equal(found.double(), x.double())


def test_samples_that_lack_a_modality_count_for_nothing():
    takes = intake("image", (1, 2, 2), "float32", 100, 200)
    here = torch.tensor([True, False])
    x = torch.cat([picture(120, 150, 130, 190), picture(9e9, 9e9, 9e9, 9e9)])
    assert torch.equal(takes(x, here)[0], x[0])
    assert takes.doubt() == ""
    few = intake("text", (4, 9), "int32", 0, 8, ragged=True, longest=3)
    tokens = torch.tensor([[1, 2, 0, 0], [50, -1, 50, 50]])
    for given in (tokens[:, :3], Padded(tokens, torch.tensor([2, 4]))):
        found = few(given, here)
        assert found.values[:, :2].tolist() == [[1, 2], [0, 0]]
        assert not found.values[:, 2:].any()
        assert found.length.tolist() == [2, 0]
    whole = intake("vector", (2,), "uint8", 0, 255)
    assert whole(torch.tensor([[3, 4], [300, -1]]), here).tolist() == [[3, 4], [0, 0]]


def test_sequences_are_given_as_they_were():
    plain = intake("sequence", (4, 1), "float32")
    ragged = intake("sequence", (4, 1), "float32", ragged=True)
    x, length = torch.rand(2, 3, 1), torch.tensor([3, 3])
    assert torch.equal(plain(Padded(x, length), None), x)
    found = ragged(x, None)
    assert torch.equal(found.values, x)
    assert found.length.tolist() == [3, 3]
    waves = intake("sequence", (9, 1), "float16", ragged=True)(torch.ones(1, 3001, 1).half(), None)
    assert waves.length.tolist() == [3001]  # which 16-bit floats do not have
    several = intake("video", (2, 3, 4, 5), "uint8", 0, 255, ragged=True)
    shown = torch.ones(2, 6, 3, 4, 5, dtype=torch.uint8)  # more than the run has seen
    assert several(shown, None).length.tolist() == [6, 6]
    assert several(Padded(shown, torch.tensor([6, 1])), None).length.tolist() == [6, 1]
    with pytest.raises(ValueError, match=r"the shape \(6, 3, 4, 4\)"):
        several(shown[..., :4], None)
    lacking = torch.tensor([3, 0])
    assert torch.equal(plain(Padded(x, lacking), torch.tensor([True, False]))[0], x[0])
    assert plain(Padded(x, torch.tensor([3, 2])), None).length.tolist() == [3, 2]
    words = WORDS(torch.tensor([[3, 0, 2, 0], [1, 0, 0, 0]]), None)
    assert words.length.tolist() == [3, 1]


FLOATS = {"kind": "image", "shape": (1, 2, 2), "dtype": "float32"}
COUNTS = {"kind": "vector", "shape": (4,), "dtype": "uint8", "high": 255}
SOUND = {"kind": "sequence", "shape": (4, 1), "dtype": "float32", "low": -1}


@pytest.mark.parametrize(
    ("known", "x", "fault"),
    [
        (FLOATS, picture(0, 128, 255, 3), "from 0 to 255, but RUN was trained on float32, 0 to 1"),
        (SOUND, torch.tensor([[[3000], [-20000]]]).short(),
         "int16 values from -20000 to 3000, but RUN was trained on float32, -1 to 1"),
    ],
)  # fmt: skip
def test_another_scale_is_refused_where_most_values_tell(known, x, fault):
    takes = intake(**known)
    takes(x, None)
    with pytest.raises(ValueError, match=rf"^'x' holds .*{fault}\. Scale them"):
        takes.doubt()


@pytest.mark.parametrize(
    ("known", "x", "said"),
    [
        (FLOATS, picture(-2.1, 0, 1, 2.6), "from -2.1 to 2.6, but RUN was trained on float32, 0 t"),
        (FLOATS | {"high": 255}, picture(0, 0.5, 1, 0), "from 0 to 1, but RUN was trained on flo"),
        (COUNTS, torch.tensor([[0.1, 0.9, 0.3, 0.2]]), "from 0.1 to 0.9"),
        (COUNTS | {"dtype": "float32", "high": 1}, torch.tensor([[50.0, 70, 0, 90]]), "0 to 90"),
    ],
)
def test_numbers_far_away_are_doubted(known, x, said):
    takes = intake(**known)
    takes(x, None)
    assert re.search(
        rf"^'x' holds float32 values .*{said}.*the predictions mean nothing", takes.doubt()
    )
    for alike, here in ((True, None), (False, torch.tensor([False]))):
        takes = intake(**known, alike=alike)
        takes(x, here)
        assert takes.doubt() == ""


@pytest.mark.parametrize(
    ("width", "count", "doubted"),
    [(0.04, 12, True), (0.04, 9, False), (0.5, 12, False), (0.0, 12, False)],
)
def test_numbers_that_hardly_differ_are_doubted_if_they_are_several(width, count, doubted):
    """Metres where the run had kilometres: none is far from what it knows."""
    takes = intake("vector", (1,), "float32", -20, 20)
    for part in torch.linspace(0, width, count)[:, None].split(5):
        takes(part, None)
    assert bool(takes.doubt()) is doubted
    if doubted:
        assert "values from 0 to 0.04, but RUN was trained on float32, -20 to 20." in takes.doubt()


@pytest.mark.parametrize(("scale", "count", "doubted"), [(1e-3, 12, 1), (1e-3, 9, 0), (0.5, 12, 0)])
def test_columns_of_a_table_that_hardly_differ_are_doubted(scale, count, doubted):
    reader = Tabular(numbers=("a", "b"), means=(30.0, 0.0), deviations=(10.0, 1.0))
    known = Stored("vector", [2], 2, "float32", False, -3.0, 3.0)
    cells = [(scale * (20 + 2 * k), float(k % 3)) for k in range(count)]
    found = odd_columns(Path("RUN"), "facts", known, reader, cells)
    assert len(found) == doubted
    for said in found:
        assert said.startswith("'a' of 'facts' holds numbers from 0.02 to 0.042, but RUN was train")


def test_scale_is_judged_by_most_values_of_all_batches():
    """Of its own data, a run has seen a few samples: others may be brighter, or nearly black."""
    takes = intake(**FLOATS)
    for x in (torch.rand(64, 1, 2, 2), picture(0, 0, 9, 0.5), picture(0, 0.001, 0, 0)):
        assert torch.equal(takes(x, None), x)
    assert takes.doubt() == ""


def test_what_is_known_of_data(tmp_path):
    n = 12
    steps = np.arange(24, dtype=np.float32)[:, None] + 5
    arrays = {
        "eye": np.full((n, 3, 4, 4), 7, np.uint8),
        "deep": np.linspace(2, 3, n * 16).reshape(n, 1, 4, 4).astype(np.float64),
        "walk": steps,
        "walk_offset": np.arange(0, 25, 2),
        "text": np.tile([3, 9, 0], (n, 1)),
        "text_kind": np.array("text"),
    }
    save_npz(tmp_path / "d.npz", np.arange(n) % 2, np.repeat(["train", "val", "test"], 4), arrays)
    found = stored(load(str(tmp_path / "d.npz")).noisy({"deep": 9.0}))
    assert found["eye"] == Stored("image", [3, 4, 4], 3, "uint8", False, 0.0, 255.0)
    third = 2 + (n * 16 // 3 - 1) / (n * 16 - 1)  # of the training split, without noise
    deep = found["deep"]
    assert (deep.dtype, deep.low, deep.high) == ("float64", 2, pytest.approx(third))
    assert found["walk"] == Stored("sequence", [2, 1], 1, "float32", True, 5.0, 12.0)
    assert found["text"] == Stored("text", [2, 10], 0, "int64", True, 3.0, 9.0)


def test_the_range_is_looked_for_within_data_of_any_size():
    """In 32-bit floats, the last of 30 million places is one too far."""
    part, vast = MagicMock(), MagicMock(spec=Data)
    part.__len__.return_value = 30_000_000
    part.__getitems__ = lambda rows: {"inputs": {"x": torch.tensor(rows)[:, None]}, "present": {}}
    vast.noisy.return_value.split.return_value = part
    known = Stored("vector", [1], 1, "int64", False, 0.0, 29_999_999.0)
    vast.modalities = {"x": known.modality("x")}
    assert stored(vast) == {"x": known}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Texts by number, spectrograms, and steps, all as arrays."""
    folder = tmp_path_factory.mktemp("run")
    n, draws = 24, np.random.default_rng(0)
    arrays = {
        "text": draws.integers(1, 9, (n, 5)),
        "text_kind": np.array("text"),
        "sound": draws.normal(size=(n, 6, 7)).astype(np.float32),
        "sound_kind": np.array("image"),
        "steps": draws.integers(0, 200, (n, 4, 3)).astype(np.uint8),
        "steps_kind": np.array("sequence"),
    }
    save_npz(folder / "d.npz", np.arange(n) % 2, np.repeat([0, 1, 2], 8), arrays, ["no", "yes"])
    training = Training(
        str(folder / "d.npz"), epochs=1, batch_size=8, width=8, noise={"sound": 0.5}
    )
    run_cell(Cell(training, "joint", 0), folder / "run")
    return folder


class TestPredict:
    def test_arrays_are_taken_for_what_the_run_s_are(self, run, capsys):
        with np.load(run / "d.npz") as file:
            plain = {k: file[k] for k in file.files if not k.endswith("_kind")}
        np.savez(run / "plain.npz", **plain)
        trained = load_run(run / "run")
        found, expected = (
            [p.answers for p in predictions(trained, str(run / name))]
            for name in ("plain.npz", "d.npz")
        )
        assert found == expected
        said = capsys.readouterr().err
        assert "'sound' of" in said
        assert "was trained with noise of 0.5 standard deviations (--noise)" in said
        assert "labels" not in said

    @pytest.mark.parametrize(
        ("name", "values", "fault"),
        [
            ("text", np.full((3, 5), 9), "holds the token 9, but .* tokens 0 to 8"),
            ("text", np.full((3, 5), 0.5), "which is not text"),
            ("sound", np.ones((3, 6, 7), np.uint8), "pictures of uint8 values"),
            ("sound", 90 * np.ones((3, 6, 7)), "from 90 to 90"),
            ("sound", np.ones((3, 7, 6)), r"shape \(1, 7, 6\)"),
            ("steps", np.ones((3, 4, 2), np.uint8), r"shape \(4, 2\)"),
            ("steps", np.ones((3, 4, 4, 3), np.uint8), "cannot be read as sequence"),
        ],
    )
    def test_arrays_of_another_kind(self, run, name, values, fault):
        np.savez(run / "new.npz", **{name: values})
        with pytest.raises(ValueError, match=fault):
            list(predictions(load_run(run / "run"), str(run / "new.npz")))

    def test_an_array_that_says_it_is_another_kind(self, run):
        np.savez(run / "new.npz", sound=np.ones((3, 6, 7)), sound_kind=np.array("sequence"))
        with pytest.raises(ValueError, match=r"has the kind sequence, .* on the kind image"):
            list(predictions(load_run(run / "run"), str(run / "new.npz")))

    def test_texts_and_files_where_arrays_were_learnt(self, run, tmp_path):
        trained = load_run(run / "run")
        (tmp_path / "t.csv").write_text("text\na good one\nbad\n")
        with pytest.raises(ValueError, match=r"'text' is read as text, but .* on arrays"):
            list(predictions(trained, str(tmp_path / "t.csv")))
        (tmp_path / "t.csv").write_text("sound\n1.5\n2\n")
        with pytest.raises(ValueError, match=r"'sound' is read as vector, but .* kind image"):
            list(predictions(trained, str(tmp_path / "t.csv")))

    def test_numbers_of_tokens_where_texts_were_learnt(self, tmp_path):
        lines = "".join(f"{('good', 'bad')[k % 2]} word,{k % 2}\n" for k in range(40))
        (tmp_path / "t.csv").write_text("text,label\n" + lines)
        training = ["--data", str(tmp_path / "t.csv"), "--epochs", "1", "--width", "8"]
        assert main(["train", *training, "--method", "joint", "--out", str(tmp_path / "run")]) == 0
        np.savez(tmp_path / "new.npz", text=np.ones((3, 2), np.int64))
        with pytest.raises(ValueError, match=r"holds token numbers, but .* on texts"):
            list(predictions(load_run(tmp_path / "run"), str(tmp_path / "new.npz")))

    def test_labels_of_other_names_are_told_once(self, run, capsys):
        draws = np.random.default_rng(1)
        np.savez(run / "new.npz", text=draws.integers(1, 9, (3, 5)), labels=np.array([0, 1, 1]))
        found = list(predictions(load_run(run / "run"), str(run / "new.npz")))
        assert [p.label for p in found] == ["0", "1", "1"]
        said = capsys.readouterr().err
        assert said.count("some labels, such as '0', are not among the classes") == 1
        assert "no, yes" in said
