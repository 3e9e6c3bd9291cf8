import pytest
import torch

from evenly.diagnosis.kmeans import kmeans
from evenly.diagnosis.purity import purity
from many_ranks import on_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

K = 9


def features():
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(K, (500,), generator=generator)
    means = torch.randn(K, 32, generator=generator)
    return means[target] + 0.7 * torch.randn(500, 32, generator=generator), target


def shares(name):
    """Row numbers of each of two ranks."""
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    cut = {"uneven": 137, "one row": 499, "nothing": 500}[name]
    return order[:cut], order[cut:]


def cluster(rank, world, share, by_index):
    x, target = features()
    mine = shares(share)[rank]
    found = kmeans(x[mine], K, seed=2, index=mine if by_index else None, sharded=True)
    alone = kmeans(x, K, seed=2)  # within a process group, but of this rank only
    pure = purity(found.labels, target[mine], sharded=True)
    return {
        "centers": found.centers,
        "labels": found.labels,
        "inertia": found.inertia,
        "purity": pure,
        "alone": alone.labels,
    }


@pytest.mark.parametrize("share", ["uneven", "one row", "nothing"])
def test_two_processes_find_what_one_does(tmp_path, share):
    x, target = features()
    whole = kmeans(x, K, seed=2)
    found = on_ranks(cluster, tmp_path, share, True)
    assert torch.equal(found[0]["centers"], found[1]["centers"])
    for part, rows in zip(found, shares(share), strict=True):
        torch.testing.assert_close(part["centers"], whole.centers)
        assert torch.equal(part["labels"], whole.labels[rows])
        assert part["inertia"] == pytest.approx(whole.inertia, rel=1e-5)
        assert part["purity"] == pytest.approx(purity(whole.labels, target))
        assert torch.equal(part["alone"], whole.labels)


def test_rows_count_on_from_rank_to_rank_by_default(tmp_path):
    x, _ = features()
    order = torch.cat(shares("uneven"))
    whole = kmeans(x[order], K, seed=2)
    found = on_ranks(cluster, tmp_path, "uneven", False)
    assert torch.equal(torch.cat([part["labels"] for part in found]), whole.labels)


def refuse(rank, world):
    texts = []
    x = torch.randn(6, 3)
    if rank == 1:
        x[4, 1] = torch.nan
    for rows, k in ((x, 2), (torch.randn(rank, 3), 2)):
        try:
            kmeans(rows, k, sharded=True)
        except ValueError as error:
            texts.append(str(error))
    numbers = torch.tensor([3, -1][: 2 * rank], dtype=torch.int64)
    for sample in (numbers[:0], numbers):
        try:
            purity(sample, sample, sharded=True)
        except ValueError as error:
            texts.append(str(error))
    return texts


def test_every_rank_raises_the_same(tmp_path):
    first, second = on_ranks(refuse, tmp_path)
    assert first == second
    assert first[0].startswith("kmeans: row 10 of x holds NaN")
    assert first[1].startswith("kmeans: fewer samples than clusters: 1 rows for k = 2")
    assert first[2].startswith("purity: no samples")
    assert first[3].startswith("purity: cluster must be numbered from 0; found -1")


def equal_rows(rank, world):
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0], [5.0, 0.0], [9.0, 1.0], [0.0, 7.0]])
    mine = torch.arange(rank, 6, 2)
    found = kmeans(x[mine], 5, index=mine, sharded=True)
    return {"labels": found.labels, "inertia": found.inertia}


def test_equal_rows_on_different_ranks(tmp_path):
    even, odd = on_ranks(equal_rows, tmp_path)
    labels = torch.stack([even["labels"], odd["labels"]], 1).flatten().tolist()
    assert labels[0] == labels[1]
    assert labels[2] == labels[3]
    assert len({*labels}) == 4
    assert even["inertia"] == odd["inertia"] == pytest.approx(0, abs=1e-10)


def sampled(rank, world, share):
    x, _ = features()
    mine = shares(share)[rank]
    found = kmeans(x[mine], K, seed=2, index=mine, sharded=True, sample=200)
    return {"centers": found.centers, "labels": found.labels}


@pytest.mark.parametrize("share", ["uneven", "nothing"])
def test_two_processes_draw_the_sample_that_one_does(tmp_path, share):
    x, _ = features()
    whole = kmeans(x, K, seed=2, sample=200)
    found = on_ranks(sampled, tmp_path, share)
    assert torch.equal(found[0]["centers"], found[1]["centers"])
    for part, rows in zip(found, shares(share), strict=True):
        torch.testing.assert_close(part["centers"], whole.centers)
        assert torch.equal(part["labels"], whole.labels[rows])
