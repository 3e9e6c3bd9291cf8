import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from evenly.diagnosis.purity import purity, shuffled
from unchecked import error_of


def test_hand_count():
    # Cluster 0 holds classes 0 0 1, cluster 1 holds 1 1 2 2 2, cluster 2 holds 0: (2 + 3 + 1) / 9.
    cluster = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    target = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 0])
    assert purity(cluster, target) == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("cluster", "target", "expected"),
    [
        ([0, 1, 2], [5, 3, 4], 1.0),  # pure, whatever the numbers
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.25),  # one cluster: the commonest class
        ([0, 1, 2, 3], [0, 0, 0, 0], 1.0),  # one class
        ([7, 7, 3], [0, 1, 1], 2 / 3),  # clusters without samples add nothing
        ([4], [9], 1.0),
    ],
)
def test_small_cases(cluster, target, expected):
    assert purity(torch.tensor(cluster), torch.tensor(target)) == pytest.approx(expected)


def test_small_integer_types_do_not_overflow():
    cluster = torch.arange(100, dtype=torch.int8)
    target = torch.arange(100, dtype=torch.int16) % 50
    assert purity(cluster, target) == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=60))
def test_equals_the_count_by_loops(pairs):
    best = 0
    for c in {c for c, _ in pairs}:
        classes = [t for d, t in pairs if d == c]
        best += max(classes.count(t) for t in classes)
    cluster, target = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert purity(cluster, target) == pytest.approx(best / len(pairs))


def test_several_labels_by_hand():
    """Cluster 0 stands for {a, b}: 1 + 1 + 1/2 of 3 samples; cluster 1 for none: 1 + 0."""
    cluster = torch.tensor([0, 0, 0, 1, 1])
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert purity(cluster, labels) == pytest.approx(3.5 / 5)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=30))
def test_several_labels_by_loops(pairs):
    """A cluster stands for its commonest labels, as many as fit best."""
    best = 0.0
    for cluster in {c for c, _ in pairs}:
        own = [{a for a in range(3) if bits >> a & 1} for c, bits in pairs if c == cluster]
        commonest = sorted(range(3), key=lambda a: -sum(a in labels for labels in own))
        fits = []
        for count in range(4):
            named = set(commonest[:count])
            fits.append(sum(len(x & named) / len(x | named) if x | named else 1 for x in own))
        best += max(fits)
    cluster = torch.tensor([c for c, _ in pairs])
    labels = torch.tensor([[bits >> a & 1 for a in range(3)] for _, bits in pairs])
    assert purity(cluster, labels) == pytest.approx(best / len(pairs))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=60))
def test_of_one_label_a_sample_it_is_that_of_classes(pairs):
    cluster, target = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert purity(cluster, one_hot(target)) == pytest.approx(purity(cluster, target), abs=1e-12)
    has = target > 4
    assert purity(cluster, has[:, None]) == purity(cluster, has)


def test_labels_are_0_and_1():
    with pytest.raises(ValueError, match=r"target of shape \(2, 2\) is of several labels.*0 or 1"):
        purity(torch.tensor([0, 1]), torch.tensor([[0.5, 1.0], [0.0, 1.0]]))


def test_bools_and_unsigned_integers():
    cluster = torch.tensor([0, 0, 1, 1], dtype=torch.uint16)
    assert purity(cluster, torch.tensor([True, True, False, True])) == 3 / 4


def test_what_is_no_number_of_a_cluster():
    with pytest.raises(TypeError, match=r"cluster is a tensor of integers; found torch\.float32"):
        purity(torch.zeros(3), torch.zeros(3).long())
    code = "import numpy, evenly; evenly.purity(numpy.zeros(3), numpy.zeros(3))"
    assert "tensor of integers; found ndarray. torch.as_tensor makes" in error_of(code)


def test_no_sample():
    empty = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="purity: no samples"):
        purity(empty, empty)


@pytest.mark.parametrize("name", ["cluster", "target"])
def test_negative_number(name):
    numbers = {"cluster": torch.tensor([0, 1]), "target": torch.tensor([0, 1])}
    numbers[name] = torch.tensor([0, -1])
    with pytest.raises(ValueError, match=f"purity: {name} must be numbered from 0; found -1"):
        purity(**numbers)
    numbers[name] = torch.tensor([0, 10**12])
    with pytest.raises(ValueError, match=f"purity: {name} must be .* found 1000000000000"):
        purity(**numbers)


def test_shuffled_labels_keep_sizes_and_classes():
    table = torch.tensor([[40, 0, 0], [0, 25, 5], [0, 0, 0]])
    for other in shuffled(table, 0, 20):
        assert torch.equal(other.sum(0), table.sum(0))
        assert torch.equal(other.sum(1), table.sum(1))
    mean = torch.stack(shuffled(table, 0, 500)).double().mean(0)
    expected = table.sum(1)[:, None] * table.sum(0) / 70
    torch.testing.assert_close(mean, expected.double(), rtol=0, atol=0.5)
