import sys

import numpy as np
import pytest

import forked
from evenly.lab.run.result import Result, checksums
from evenly.lab.statistics.projection import MANY, coordinates, project, project_meanwhile
from evenly.report import write_projection_picture, write_report
from evenly.report.folder import read_comparison


def clusters(count=60, width=40):
    """Three classes far apart in many dimensions."""
    rng = np.random.default_rng(0)
    target = np.arange(count) % 3
    return 8 * rng.normal(size=(3, width))[target] + rng.normal(size=(count, width)), target


def nearest(places, target):
    """The share of samples whose nearest other one is of their class."""
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return (target[distance.argmin(1)] == target).mean()


def write_run(folder, features, target, present=None, finished=True):
    """What a run leaves of what its encoders make of the samples."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"method: {folder.name[:-2]}\nseed: 0\n")
    arrays = {f"features_{n}": x.astype(np.float16) for n, x in enumerate(features.values())}
    arrays |= {f"present_{list(features).index(name)}": x for name, x in (present or {}).items()}
    np.savez(folder / "features.npz", modalities=np.array(list(features)), target=target,
             predicted=target, row=np.arange(len(target)), **arrays)  # fmt: skip
    probabilities = np.eye(3, dtype=np.float32)[target]
    np.savez(folder / "predictions.npz", probabilities=probabilities, target=target,
             index=np.arange(len(target)))  # fmt: skip
    if finished:
        Result(folder.name[:-2], 0, 0, 1, 1, 1.0, 1.0, 1, "32", {}).write(folder)


@pytest.fixture
def comparison(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "methods: [joint, relearn]\nseeds: 1\nmodalities: [a, b]\nclass_names: [x, y, z]\n"
    )
    x, target = clusters()
    here = np.arange(60) >= 6
    for method in ("joint", "relearn"):
        folder = tmp_path / "runs" / f"{method}-0"
        write_run(folder, {"a": x, "b": np.roll(x, 1)}, target, {"b": here})
    return tmp_path


def test_tsne_keeps_neighbours_together_and_is_the_same_each_time():
    x, target = clusters()
    places = coordinates(x, "tsne")
    assert places.shape == (60, 2)
    assert nearest(places, target) == 1
    assert np.array_equal(coordinates(x, "tsne"), places)
    assert nearest(np.random.default_rng(0).permutation(places), target) < 0.6


def test_the_order_of_magnitude_of_features_changes_no_neighbourhood():
    x, target = clusters()
    assert nearest(coordinates(1e-6 * x, "tsne"), target) == 1
    assert nearest(coordinates(1e6 * x, "tsne"), target) == 1


@pytest.mark.parametrize("kind", ["tsne", "umap"])
@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (3, 5), (30, 1)])
def test_what_needs_no_unfolding_is_laid_out_straight(kind, shape):
    x = np.random.default_rng(0).normal(size=shape)
    places = coordinates(x, kind)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert np.linalg.norm(places[:, None] - places[None], axis=2) == pytest.approx(apart)


def test_features_that_tell_nothing_are_one_place():
    assert np.ptp(coordinates(np.ones((20, 8)), "tsne"), axis=0) == pytest.approx(0)


def test_few_samples_and_equal_ones():
    x, target = clusters(count=5)
    assert np.isfinite(coordinates(x, "tsne")).all()
    x, target = clusters(count=9)
    assert nearest(coordinates(np.repeat(x, 4, axis=0), "tsne"), np.repeat(target, 4)) == 1


def test_every_finished_run_gets_places(comparison):
    x, target = clusters()
    write_run(comparison / "runs" / "open-0", {"a": x}, target, finished=False)
    project(comparison)
    assert not (comparison / "runs" / "open-0" / "projection.npz").exists()
    found = read_comparison(comparison).projection("relearn", "tsne")
    assert nearest(found.places["a"], target) == 1
    assert np.isnan(found.places["b"][:6]).all()
    assert np.isfinite(found.places["b"][6:]).all()
    assert found.labels[7] == "sample 7"
    assert np.array_equal(found.target, target)
    assert read_comparison(comparison).projection("relearn", "umap") is None


def test_places_are_kept_until_the_features_change(comparison):
    project(comparison)
    files = [comparison / "runs" / f"{name}-0" / "projection.npz" for name in ("joint", "relearn")]
    before = [file.stat().st_mtime_ns for file in files]
    project(comparison)
    assert [file.stat().st_mtime_ns for file in files] == before
    folder = files[0].parent
    with np.load(folder / "features.npz") as file:
        arrays = dict(file)
    arrays["features_0"] = arrays["features_0"][::-1]
    np.savez(folder / "features.npz", **arrays)
    project(comparison)
    assert files[0].stat().st_mtime_ns > before[0]
    assert files[1].stat().st_mtime_ns == before[1]


def test_many_planes_are_laid_out_by_several_processes_and_while_the_last_runs_go_on(tmp_path):
    target = np.arange(MANY // 2) % 3
    line = np.linspace(-1, 1, len(target))[:, None]  # laid out straight, in no time
    names = ("joint-0", "relearn-0")
    files = [tmp_path / "runs" / name / "projection.npz" for name in names]
    for file in files:
        write_run(file.parent, {"a": line, "b": line[::-1]}, target)
    enough, pipe = forked.context().Pipe(duplex=False)

    def laid_out(function, *arguments):
        ran = forked.run(function, *arguments)
        assert ran.returncode == 0, ran.stderr
        found = [np.load(file)["tsne_1"] for file in files if file.exists()]
        for file in files:
            file.unlink(missing_ok=True)
        return np.array(found)

    several = laid_out(project, tmp_path)
    assert np.ptp(several[:, :, 0], axis=1) == pytest.approx(2, abs=1e-3)
    assert np.array_equal(laid_out(project_meanwhile, tmp_path, enough), several)
    pipe.close()
    assert len(laid_out(project_meanwhile, tmp_path, enough)) == 0


def test_without_features_nothing_is_computed(comparison):
    for path in comparison.glob("runs/*/features.npz"):
        path.unlink()
    project(comparison)
    assert not list(comparison.rglob("projection.npz"))
    assert 'id="plane"' not in write_report(comparison).read_text()


def test_umap_that_is_not_installed_is_named(comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(RuntimeError, match=r"umap-learn. Install it with pip install '.\[umap\]'"):
        project(comparison, "umap")


@pytest.mark.slow  # numba compiles it first
def test_umap_stands_beside_tsne(comparison):
    pytest.importorskip("umap")
    project(comparison, "tsne")
    project(comparison, "umap")
    found = read_comparison(comparison)
    umap, tsne = (found.projection("joint", kind) for kind in ("umap", "tsne"))
    assert nearest(umap.places["a"], umap.target) == 1
    assert np.isnan(umap.places["b"][:6]).all()
    assert not np.array_equal(umap.places["a"], tsne.places["a"])
    places = umap.places["a"]
    for path in comparison.glob("runs/*/projection.npz"):
        path.unlink()
    project(comparison, "umap")
    assert np.array_equal(
        read_comparison(comparison).projection("joint", "umap").places["a"], places
    )
    assert "placed by UMAP" in write_report(comparison, "umap").read_text()
    picture = write_projection_picture(comparison, comparison / "p.svg", projection="umap")
    assert picture.is_file()
    with pytest.raises(ValueError, match="holds no t-SNE of any method"):
        write_projection_picture(comparison, comparison / "p.svg")


def test_damaged_features_are_said_and_damaged_places_made_anew(comparison, capsys):
    project(comparison)
    folder = comparison / "runs" / "joint-0"
    before = (folder / "projection.npz").read_bytes()
    for damaged in (before[: len(before) // 2], b"", b"PK\x03\x04"):
        (folder / "projection.npz").write_bytes(damaged)
        project(comparison)
        assert f"note: {folder / 'projection.npz'} is damaged (" in capsys.readouterr().err
        assert read_comparison(comparison).projection("joint", "tsne") is not None
    features = (folder / "features.npz").read_bytes()
    (folder / "features.npz").write_bytes(features[: len(features) // 2])
    with pytest.raises(ValueError, match=r"features\.npz is damaged \(File is not a zip file\)"):
        project(comparison)


def test_features_are_those_that_the_run_wrote(comparison):
    folder = comparison / "runs" / "joint-0"
    files = checksums(folder)
    Result("joint", 0, 0, 1, 1, 1.0, 1.0, 1, "32", {}, files).write(folder)
    project(comparison)
    with np.load(folder / "features.npz") as file:
        other = {**file, "target": np.roll(file["target"], 1)}
    np.savez(folder / "features.npz", **other)
    with pytest.raises(ValueError, match=r"features\.npz is damaged: it is not as the run wrote"):
        project(comparison)
    (folder / "features.npz").unlink()
    with pytest.raises(ValueError, match=r"features\.npz is missing"):
        project(comparison)
