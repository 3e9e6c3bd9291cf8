import numpy as np
import pytest

from evenly.data import load_npz
from evenly.data.own import given_by, is_arrays, is_function, written


def arrays(seed=0, samples=60):
    stream = np.random.default_rng(seed)
    return {
        "labels": np.arange(samples) % 3,
        "split": np.repeat(["train", "val", "test"], samples // 3),
        "a": stream.normal(size=(samples, 4)),
        "b": stream.integers(0, 255, (samples, 3, 8, 8)).astype(np.uint8),
    }


def restless():
    return arrays(seed=np.random.default_rng().integers(2**31))


def fails():
    raise KeyError("labels")


def halved():
    return {"labels": np.arange(4)}


def listed():
    return [1, 2]


def objects():
    return arrays() | {"a": np.array([object()] * 60)}


number = 5


def test_what_is_a_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_function("my.module.load(seed=1)")
    (tmp_path / "a.store").mkdir()
    for text in ("digits", "digits(noise=2)", "my.npz", "./my.load", "a.csv", "a.store", "./a(b"):
        assert not is_function(text)


def test_arrays_are_written_once_and_read_as_any_file(tmp_path):
    given = given_by("test_own.arrays(seed=3)")
    assert is_arrays(given)
    path = written("test_own.arrays(seed=3)", given, tmp_path / "new" / "arrays.npz")
    before = path.stat().st_mtime_ns
    data = load_npz(path)
    assert list(data.modalities) == ["a", "b"]
    assert data.modalities["b"].kind == "image"
    assert len(data.split("train")) == 20
    written("test_own.arrays(seed=3)", given_by("test_own.arrays(seed=3)"), path)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", ["a", "labels"])
def test_other_data_than_before_are_refused(changed, tmp_path):
    path = written("x.y", arrays(), tmp_path / "arrays.npz")
    other = arrays()
    other[changed] = other[changed][::-1]
    with pytest.raises(ValueError, match=f"now returns other data than .* in '{changed}'"):
        written("x.y", other, path)
    with pytest.raises(ValueError, match="in 'c'"):
        written("x.y", arrays() | {"c": arrays()["a"]}, path)
    with pytest.raises(ValueError, match="Draw what is random from a seed"):
        written("x.y", restless(), path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"cannot be made \(KeyError: 'labels'\)"),
        ("arrays(size=3)", r"cannot be made \(TypeError: .*'size'"),
        ("halved", "returns the arrays labels, without 'split'"),
        ("listed", "returns list. Return a mapping of arrays"),
        ("number", "of the type int. A data set is a function"),
    ],
)
def test_what_is_no_data_set(name, message):
    with pytest.raises(ValueError, match=message):
        given_by(f"test_own.{name}")


def test_arrays_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'x\.y': .*holds Python objects"):
        written("x.y", objects(), tmp_path / "arrays.npz")
