import inspect
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from evenly.diagnosis import kmeans as module
from evenly.diagnosis import rows as rows_module
from evenly.diagnosis.kmeans import assign, kmeans
from evenly.diagnosis.purity import purity


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(n, k, d=16, spread=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(k, d, generator=generator)
    target = torch.arange(n) % k
    return means[target] + spread * torch.randn(n, d, generator=generator), target


def rectified(n, k, d=128, separation=0.3, seed=0):
    """Features as a ReLU encoder gives them, with class structure."""
    generator = torch.Generator().manual_seed(seed)
    means = separation * torch.randn(k, d, generator=generator)
    target = torch.randint(k, (n,), generator=generator)
    return (means[target] + torch.randn(n, d, generator=generator)).relu(), target


def exact_inertia(x, centers, labels):
    return float((x.double() - centers.double()[labels]).square().sum())


def same_grouping(a, b):
    """Whether two labellings group the rows equally, whatever the clusters' numbers."""
    return len({*zip(a.tolist(), b.tolist(), strict=True)}) == len(a.unique()) == len(b.unique())


def test_hand_worked():
    # Means 1 and 11: each outer row is 1 away, so the inertia is 4.
    x = torch.tensor([[0.0], [12.0], [2.0], [10.0]])
    found = kmeans(x, 2)
    order = found.centers[:, 0].argsort()
    torch.testing.assert_close(found.centers[order], torch.tensor([[1.0], [11.0]]))
    assert order[0] == found.labels[0] == found.labels[2]
    assert order[1] == found.labels[1] == found.labels[3]
    assert found.inertia == pytest.approx(4.0)
    assert found.labels.dtype == torch.int64


def test_one_cluster_is_the_mean():
    x = torch.randn(50, 3)
    found = kmeans(x, 1)
    torch.testing.assert_close(found.centers[0], x.mean(0))
    assert not found.labels.any()


def test_as_many_clusters_as_rows():
    x = torch.randn(7, 3)
    found = kmeans(x, 7)
    assert sorted(found.labels.tolist()) == list(range(7))
    assert found.inertia == pytest.approx(0, abs=1e-10)


def test_finds_separate_blobs():
    x, target = blobs(600, 12)
    found = kmeans(x, 12)
    assert same_grouping(found.labels, target)
    assert purity(found.labels, target) == 1.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("x", "k"),
    [
        (blobs(1000, 8, spread=1.5)[0], 8),
        (rectified(1500, 6)[0], 6),
        (rectified(1500, 20, separation=0.2)[0], 20),
    ],
    ids=["blobs", "features", "weak features"],
)
def test_inertia_as_low_as_that_of_sklearn(x, k, seed):
    reference = KMeans(k, n_init=10, random_state=seed).fit(x.numpy())
    assert kmeans(x, k, seed=seed).inertia <= 1.005 * reference.inertia_


@pytest.mark.parametrize(
    ("x", "k"),
    [
        (blobs(1000, 8)[0], 20),
        (torch.rand(800, 2, generator=torch.Generator().manual_seed(3)), 15),
    ],
    ids=["too many clusters", "no structure"],
)
def test_inertia_as_low_on_average_where_ten_restarts_find_many_ends(x, k):
    seeds = range(8)
    theirs = [KMeans(k, n_init=10, random_state=s).fit(x.numpy()).inertia_ for s in seeds]
    assert sum(kmeans(x, k, seed=s).inertia for s in seeds) <= 1.01 * sum(theirs)


@pytest.mark.data
@pytest.mark.parametrize("name", ["text_cnn", "audio_opensmile", "video_c3d"])
def test_inertia_as_low_as_that_of_sklearn_on_real_features(shared_data, name):
    file = shared_data / "cmu_mosi" / "cmu_mosi_utterance.npz"
    with np.load(file, allow_pickle=False) as arrays:
        x = torch.from_numpy(np.nan_to_num(arrays[name]))
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    reference = KMeans(8, n_init=10, random_state=0).fit(x.numpy())
    assert kmeans(x, 8).inertia <= 1.005 * reference.inertia_


def test_same_seed_same_clusters():
    x, _ = rectified(500, 10)
    first, second = kmeans(x, 10, seed=3), kmeans(x, 10, seed=3)
    assert torch.equal(first.centers, second.centers)
    assert torch.equal(first.labels, second.labels)
    assert first.inertia == second.inertia


def test_seed_decides():
    x = torch.rand(300, 2)
    found = {round(kmeans(x, 12, seed=seed, restarts=1).inertia, 4) for seed in range(6)}
    assert len(found) > 1


def test_more_restarts_are_better_on_average():
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    one, ten = (
        sum(kmeans(x, 12, seed=seed, restarts=restarts).inertia for seed in range(8))
        for restarts in (1, 10)
    )
    assert ten < one


@pytest.mark.parametrize("seed", range(20))
def test_ten_starts_find_every_separated_class(seed):
    """Where a start leaves two classes in one cluster, and another in two."""
    x, target = rectified(3100, 31, d=64, separation=1.0)
    assert purity(kmeans(x, 31, seed=seed).labels, target) > 0.99


def test_all_rows_are_mended_where_the_restarts_see_few(monkeypatch):
    monkeypatch.setattr(module, "_DRAFT", 0)
    x, target = rectified(6200, 31, d=64, separation=1.0)
    assert purity(kmeans(x, 31).labels, target) > 0.99


def test_starts_that_agree_are_not_mended(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_jumps", lambda *a: asked.append(a) or (None, []))
    x, target = blobs(600, 3)
    assert same_grouping(kmeans(x, 3).labels, target)
    assert not asked
    kmeans(torch.rand(300, 2), 12)
    assert [one[2:] for one in asked] == [(0, 0)]  # of seed 0, the first trial


def test_global_random_stream_is_left_as_found():
    x, _ = blobs(100, 3)
    before = torch.get_rng_state()
    kmeans(x, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_order_of_rows_does_not_matter():
    x, _ = blobs(400, 10, spread=1.0)
    order = torch.randperm(400)
    straight = kmeans(x, 14, restarts=3)
    shuffled = kmeans(x[order], 14, restarts=3, index=order)
    torch.testing.assert_close(shuffled.centers, straight.centers)
    assert torch.equal(shuffled.labels, straight.labels[order])


def test_chunks_and_groups_of_restarts_do_not_matter(monkeypatch):
    x, _ = blobs(400, 10, spread=1.0)
    whole = kmeans(x, 14, restarts=5)
    monkeypatch.setattr(rows_module, "_CHUNK", 37 * 16)
    monkeypatch.setattr(rows_module, "_KEEP", 0)
    monkeypatch.setattr(module, "_STATE", 0)
    pieces = kmeans(x, 14, restarts=5)
    assert torch.equal(pieces.labels, whole.labels)
    torch.testing.assert_close(pieces.centers, whole.centers)


def test_offset_costs_no_precision():
    x, target = blobs(300, 5)
    found = kmeans(x + 1e4, 5)
    assert same_grouping(found.labels, target)
    assert found.inertia == pytest.approx(kmeans(x, 5).inertia, rel=0.01)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_unit_does_not_matter(factor):
    x, target = blobs(300, 5)
    assert same_grouping(kmeans(x * factor, 5).labels, target)


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_types(dtype, returned):
    x, target = blobs(300, 5)
    found = kmeans(x.to(dtype), 5)
    assert found.centers.dtype == returned
    assert same_grouping(found.labels, target)
    assert torch.equal(assign(x.to(dtype), found.centers), found.labels)


def test_autocast_and_gradients_are_kept_out():
    x, _ = rectified(400, 6)
    plain = kmeans(x, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kmeans(x.clone().requires_grad_(), 6)
    assert torch.equal(found.labels, plain.labels)
    assert not found.centers.requires_grad


def test_precision_of_products_is_left_as_found():
    x, _ = blobs(100, 3)
    precision = torch.get_float32_matmul_precision()
    try:
        for setting in ("medium", "highest"):
            torch.set_float32_matmul_precision(setting)
            kmeans(x, 3)
            assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.fixture
def rounded_products(monkeypatch):
    """Fast products in bfloat16, as on hardware that has it; counts the passes of Lloyd's."""
    passes = []
    scores, products, move = module._scores, module._products, module._move
    fast = False

    def rounded(centers, part):
        if not fast:
            return scores(centers, part)
        flat = centers.flatten(0, 1)
        product = (-2 * flat).bfloat16().float() @ part.bfloat16().float().T
        product += flat.square().sum(1, keepdim=True)
        return product.view(*centers.shape[:2], len(part))

    @contextmanager
    def setting(**speed):
        nonlocal fast
        fast = speed["fast"]
        with products(fast=False):
            yield

    def counted(*args):
        passes.append(fast)
        move(*args)

    monkeypatch.setattr(module, "_scores", rounded)
    monkeypatch.setattr(module, "_products", setting)
    monkeypatch.setattr(module, "_move", counted)
    return passes


def test_rounded_products_end_in_clusters_as_good(rounded_products):
    x, _ = rectified(1500, 20, separation=0.2)
    reference = KMeans(20, n_init=10, random_state=0).fit(x.numpy())
    found = kmeans(x, 20)
    assert True in rounded_products
    assert found.inertia <= 1.005 * reference.inertia_
    assert torch.equal(assign(x, found.centers), found.labels)


def test_rounded_products_are_not_trusted_with_tight_clusters(rounded_products):
    x = 0.01 * torch.randn(300, 2)
    x[::2] += 1
    reference = KMeans(20, n_init=10, random_state=0).fit(x.double().numpy())
    assert kmeans(x, 20).inertia <= 1.005 * reference.inertia_
    assert 0 < rounded_products.count(True) < 100  # it does not walk in circles to the limit


@pytest.mark.parametrize(("shift", "copied"), [(0.0, False), (5.0, True)])
def test_rows_around_zero_are_clustered_as_they_are(shift, copied):
    x, _ = rectified(500, 5)
    x += shift
    rows = rows_module.Rows(x, None, sharded=False)
    rows.center()
    seen = rows.take(slice(None))
    assert (seen.data_ptr() != x.data_ptr()) == copied
    torch.testing.assert_close(rows.norms, seen.square().sum(1))
    torch.testing.assert_close(rows.uncentred(seen).float(), x)
    if copied:
        torch.testing.assert_close(seen.mean(0), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
    assert torch.equal(kmeans(x, 5).labels, kmeans(x - shift, 5).labels)


def test_empty_cluster_goes_to_the_farthest_row():
    # Centre 2 is nobody's nearest. Of the rows, 9 is farthest from its centre.
    x = torch.tensor([[0.0], [1.0], [9.0], [20.0]])
    rows = rows_module.Rows(x, None, sharded=False)
    rows.center()
    starts = rows.centred(torch.tensor([[[0.0], [20.0], [500.0]]]))
    centers, _ = module._lloyd(rows, starts, gain=0.0)
    assert sorted(rows.uncentred(centers).flatten().tolist()) == pytest.approx([0.5, 9.0, 20.0])


def test_equally_far_rows_go_by_position():
    x = torch.tensor([[-4.0], [4.0], [0.0]])
    for index, first in ((torch.tensor([0, 1, 2]), -4.0), (torch.tensor([5, 1, 2]), 4.0)):
        rows = rows_module.Rows(x, index, sharded=False)
        rows.center()
        means = torch.tensor([[0.0], [99.0]], dtype=torch.float64)
        labels = torch.zeros(3, dtype=torch.int32)
        module._refill(rows, labels, means, torch.tensor([False, True]))
        assert means[1] == first


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_fewer_distinct_rows_than_clusters(distinct):
    x = torch.randn(distinct, 4)[torch.arange(40) % distinct]
    found = kmeans(x, 8)
    assert found.centers.isfinite().all()
    assert len(found.labels.unique()) == distinct
    assert found.inertia == pytest.approx(0, abs=1e-9)


def test_equal_rows_share_a_cluster():
    x, _ = blobs(200, 5, spread=1.0)
    found = kmeans(x.repeat(3, 1), 20)
    assert torch.equal(found.labels[:200], found.labels[200:400])
    assert torch.equal(found.labels[:200], found.labels[400:])
    assert len(found.labels.unique()) == 20


@given(
    n=st.integers(1, 60),
    d=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    levels=st.sampled_from([0, 3]),
)
@settings(max_examples=60, deadline=None)
def test_properties(n, d, k, seed, levels):
    k = min(k, n)
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    if levels:  # a coarse grid: equal rows and equal distances
        x = (x * levels).round()
    found = kmeans(x, k, seed=seed, restarts=3)
    distance = torch.cdist(x.double(), found.centers.double())
    nearest = distance.min(1).values
    chosen = distance.gather(1, found.labels[:, None])[:, 0]
    torch.testing.assert_close(chosen, nearest, rtol=1e-3, atol=1e-3)
    assert torch.equal(assign(x, found.centers), found.labels)
    assert found.inertia == pytest.approx(
        exact_inertia(x, found.centers, found.labels), rel=1e-4, abs=1e-6
    )
    for cluster in found.labels.unique():
        mean = x[found.labels == cluster].mean(0)
        torch.testing.assert_close(found.centers[cluster], mean, rtol=0.05, atol=0.05)
    if len(x.unique(dim=0)) >= k:
        assert len(found.labels.unique()) == k


def test_draw_follows_the_weights():
    rows = torch.arange(40000, dtype=torch.int32).view(10000, 4)
    weight = torch.tensor([1.0, 2.0, 5.0, 0.0]).expand(10000, 4)
    times = module._race(module._mix(rows), weight)
    won = times.argmin(1).bincount(minlength=4) / 10000
    torch.testing.assert_close(won, torch.tensor([1, 2, 5, 0]) / 8, atol=0.02, rtol=0)
    assert times.isfinite().all()
    assert (times.argmax(1) == 3).all()


def test_restarts_begin_in_different_places():
    x = torch.randn(300, 2)
    rows = rows_module.Rows(x, None, sharded=False)
    rows.center()
    starts = module._seeds(rows, 3, 0, torch.arange(20))
    assert len(starts[:, 0].unique(dim=0)) > 15


def test_assign_takes_the_first_of_equally_near():
    centers = torch.tensor([[3.0], [-1.0], [1.0], [1.0]])
    x = torch.tensor([[0.0], [1.0], [2.5], [-5.0]])
    assert assign(x, centers).tolist() == [1, 2, 0, 1]
    assert assign(torch.empty(0, 1), centers).shape == (0,)


@pytest.mark.parametrize(("k", "restarts", "name"), [(0, 1, "k"), (-2, 1, "k"), (2, 0, "restarts")])
def test_too_small_a_number(k, restarts, name):
    value = k if name == "k" else restarts
    with pytest.raises(ValueError, match=f"kmeans: {name} must be at least 1; found {value}"):
        kmeans(torch.randn(5, 2), k, restarts=restarts)


@pytest.mark.parametrize("n", [0, 3])
def test_fewer_rows_than_clusters(n):
    text = rf"kmeans: fewer samples than clusters: {n} rows for k = 5\. Pass more rows or a sm"
    with pytest.raises(ValueError, match=text):
        kmeans(torch.randn(n, 2), 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_row_that_is_not_finite(value):
    x = torch.randn(30, 4)
    x[17, 2] = x[25, 0] = value
    with pytest.raises(ValueError, match="kmeans: row 17 of x holds NaN or infinity"):
        kmeans(x, 3)
    with pytest.raises(ValueError, match="assign: row 17 of x holds NaN or infinity"):
        assign(x, torch.randn(3, 4))
    with pytest.raises(ValueError, match="kmeans: row 4 of x"):
        kmeans(x, 3, index=torch.arange(29, -1, -1))


def test_large_values_are_no_infinity():
    x, target = blobs(40, 2)
    assert same_grouping(kmeans((x * 1e3).half(), 2).labels, target)


def test_rows_too_far_apart_for_their_squares():
    x = torch.tensor([[-1e36], [0.0], [1e36]])
    with pytest.raises(ValueError, match=r"infinite in float32\. Scale them"):
        kmeans(x, 2)
    assert len(set(kmeans(x, 3, unit=torch.tensor([1e36])).labels.tolist())) == 3


@pytest.mark.parametrize("shape", [(5,), (5, 2, 2)])
def test_not_a_matrix(shape):
    unchecked = inspect.unwrap(kmeans)  # the tests' check of shapes would speak first
    text = f"kmeans: x must be a matrix with a row per sample; found shape {shape}"
    with pytest.raises(ValueError, match=re.escape(text)):
        unchecked(torch.randn(shape), 2)


MEMORY = """
import resource, torch
from evenly.diagnosis.kmeans import kmeans
torch.set_num_threads(1)
kmeans(torch.randn(1000, 512), {k}, restarts=2)  # so that libraries are loaded and warm
x = torch.randn({n}, 512)
x[:, 0] += 100 * (torch.arange({n}) % {k})  # clear clusters are found in few passes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kmeans(x, {k}, restarts={restarts})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / (x.numel() * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.parametrize(("k", "restarts"), [(4, 10), (2, 40)])
def test_memory_beyond_the_features(k, restarts, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = MEMORY.format(n=200_000, k=k, restarts=restarts)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


def test_numbers_that_float32_cannot_tell_apart():
    seconds = torch.tensor([[1_700_000_000], [1_700_000_001], [1_700_000_030], [1_700_000_031]])
    assert kmeans(seconds, 2).labels.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_what_is_no_tensor_of_real_numbers():
    with pytest.raises(TypeError, match="kmeans: x holds complex numbers"):
        kmeans(torch.ones(3, 2) * 1j, 2)
    with pytest.raises(TypeError, match="assign: x holds complex numbers"):
        assign(torch.ones(3, 2) * 1j, torch.zeros(2, 2))
    with pytest.raises(TypeError, match="kmeans: x must be a tensor; found ndarray"):
        inspect.unwrap(kmeans)(np.zeros((3, 2)), 2)
