"""Clusters from a sample of the rows, where there are too many for all restarts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evenly import Features, Probe, Relearn, diagnose
from evenly.diagnosis import kmeans as module
from evenly.diagnosis import rows as rows_module
from evenly.diagnosis.kmeans import assign, kmeans
from evenly.diagnosis.purity import purity
from support import forward, loaders, net

K = 6


def overlapping(n, seed=0, width=32, classes=K):
    """Classes in eight dimensions behind a rectifier, as near to each other as they are wide."""
    means = torch.randn(classes, 8, generator=torch.Generator().manual_seed(1))
    mix = torch.randn(8, width, generator=torch.Generator().manual_seed(2))
    stream = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=stream)
    return ((means[y] + torch.randn(n, 8, generator=stream)) @ mix).relu_(), y


@pytest.fixture
def mapped(tmp_path):
    """A file of float16 rows that is read as a tensor, and the same rows in memory."""
    rows = overlapping(3000)[0].half()
    rows.numpy().tofile(tmp_path / "x")
    x = torch.from_file(str(tmp_path / "x"), False, rows.numel(), dtype=torch.float16)
    return x.view_as(rows), rows


def test_a_sample_of_all_rows_changes_nothing():
    x, _ = overlapping(500)
    plain, found = kmeans(x, K), kmeans(x, K, sample=500)
    assert torch.equal(found.centers, plain.centers)
    assert torch.equal(found.labels, plain.labels)
    assert found.inertia == plain.inertia


@pytest.mark.parametrize("seed", range(3))
def test_as_pure_as_from_all_rows(seed):
    x, y = overlapping(12_000)
    plain, found = kmeans(x, K, seed=seed), kmeans(x, K, seed=seed, sample=1800)
    pure = purity(plain.labels, y)
    assert 0.5 < pure < 0.95
    assert not torch.equal(found.labels, plain.labels)
    assert abs(purity(found.labels, y) - pure) <= 0.01
    assert found.inertia <= 1.001 * plain.inertia


def test_the_restarts_see_about_as_many_rows_as_asked(monkeypatch):
    seen = []
    start = module._start
    monkeypatch.setattr(
        module, "_start", lambda rows, *a: seen.append(rows.total) or start(rows, *a)
    )
    kmeans(overlapping(5000)[0], K, sample=1000)
    assert len(seen) == 1
    assert abs(seen[0] - 1000) < 120  # four standard deviations


def test_another_seed_draws_other_rows():
    rows = rows_module.Rows(overlapping(2000)[0], None, sharded=False)
    one, two, again = (rows.drawn(500, seed).index.tolist() for seed in (0, 1, 0))
    assert one == again
    assert len(set(one) & set(two)) < 250


def test_order_of_rows_does_not_change_a_sample():
    x, _ = overlapping(3000)
    order = torch.randperm(3000)
    straight = kmeans(x, K, sample=600, restarts=3)
    shuffled = kmeans(x[order], K, sample=600, restarts=3, index=order)
    torch.testing.assert_close(shuffled.centers, straight.centers)
    assert torch.equal(shuffled.labels, straight.labels[order])


def test_chunks_do_not_change_a_sample(monkeypatch):
    x, _ = overlapping(3000)
    whole = kmeans(x, K, sample=600, restarts=3)
    monkeypatch.setattr(rows_module, "_CHUNK", 501 * 8)
    pieces = kmeans(x, K, sample=600, restarts=3)
    assert torch.equal(pieces.labels, whole.labels)
    torch.testing.assert_close(pieces.centers, whole.centers)


@pytest.mark.parametrize("sample", [None, 600])
def test_half_precision_in_a_file_is_as_in_memory(mapped, sample):
    x, rows = mapped
    found, plain = kmeans(x, K, sample=sample), kmeans(rows.float(), K, sample=sample)
    assert torch.equal(found.labels, plain.labels)
    torch.testing.assert_close(found.centers, plain.centers)


@pytest.mark.parametrize("sample", [None, 600])
def test_units_are_as_rows_divided_by_them(sample):
    x, _ = overlapping(3000)
    unit = torch.logspace(-3, 3, 32)
    plain = kmeans(x, K, sample=sample)
    found = kmeans(x * unit + 5 * unit, K, sample=sample, unit=unit)
    torch.testing.assert_close(found.centers / unit - 5, plain.centers, rtol=1e-3, atol=1e-3)
    assert (found.labels == plain.labels).float().mean() > 0.999
    assert torch.equal(assign(x * unit + 5 * unit, found.centers, unit), found.labels)
    assert found.inertia == pytest.approx(plain.inertia, rel=1e-4)


def test_tight_clusters_and_a_large_offset():
    means = torch.randn(K, 16)
    y = torch.arange(3000) % K
    x = means[y] + 0.01 * torch.randn(3000, 16) + 100
    found = kmeans(x, K, sample=300)
    assert purity(found.labels, y) == 1.0


def test_fewer_distinct_rows_than_clusters_in_a_sample():
    x = torch.randn(5, 4)[torch.arange(2000) % 5]
    found = kmeans(x, 8, sample=200)
    assert found.centers.isfinite().all()
    assert len(found.labels.unique()) == 5
    assert found.inertia == pytest.approx(0, abs=1e-6)


def test_too_small_a_sample():
    x, y = overlapping(500)
    text = "'sample' must be at least 20 rows per cluster, which is 120 for 6 clusters; found 119"
    with pytest.raises(ValueError, match=text):
        kmeans(x, K, sample=119)
    split = Features({"m": x}, y)
    with pytest.raises(ValueError, match=text):
        diagnose(split, split, sample=119)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_unit_that_is_none(value):
    unit = torch.ones(32)
    unit[3] = value
    with pytest.raises(ValueError, match="kmeans: unit must be above 0 in each dimension; found"):
        kmeans(overlapping(50)[0], 2, unit=unit)


class TestDiagnose:
    @pytest.mark.parametrize("gap", ["paper", "matched", "shared"])
    def test_from_samples_and_files(self, gap, tmp_path):
        def split(n, seed):
            x, y = overlapping(n, seed, width=64)
            return Features({"m": x * torch.logspace(-2, 2, 64)}, y)

        def halved(split, name):
            rows = split.features["m"].half()
            rows.numpy().tofile(tmp_path / name)
            x = torch.from_file(str(tmp_path / name), False, rows.numel(), dtype=torch.float16)
            return replace(split, features={"m": x.view_as(rows)})

        train, val = split(12_000, 1), split(4000, 2)
        plain = diagnose(train, val, gap=gap)
        found = diagnose(halved(train, "train"), halved(val, "val"), gap=gap, sample=1500)
        assert found.train["m"] == pytest.approx(plain.train["m"], abs=0.01)
        assert found.val["m"] == pytest.approx(plain.val["m"], abs=0.01)

    def test_half_precision_does_not_overflow_in_scaling(self):
        x, y = overlapping(3000)
        x.clamp_max_(5)
        split, wide = Features({"m": x}, y), Features({"m": ((x - 2.5) * 24_000).half()}, y)
        assert diagnose(wide, wide, sample=600).train["m"] == pytest.approx(
            diagnose(split, split, sample=600).train["m"], abs=0.01
        )

    def test_relearn_hands_it_on(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "evenly.methods.relearn.diagnose",
            lambda *a, **settings: asked.append(settings["sample"]) or diagnose(*a, **settings),
        )
        model = net()
        method = Relearn(dict(model.encoders), every=1, times=1, restarts=1, sample=60)
        probe = Probe(model, forward, *loaders(count=72))
        for epoch in range(3):
            method.before_epoch(epoch, probe)
        assert asked == [60]

    def test_relearn_refuses_too_small_a_sample_before_training(self):
        model = net()
        method = Relearn(dict(model.encoders), sample=59)
        with pytest.raises(ValueError, match="which is 60 for 3 clusters; found 59"):
            method.before_epoch(0, Probe(model, forward, *loaders()))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_time_memory_and_purity_are_as_promised(tmp_path, monkeypatch):
    """That of 200 MB of rows; a copy of them in memory would be 200 MB."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = Path(__file__).parents[2] / "benchmarks" / "growth.py"
    command = [sys.executable, program, "--quick", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
