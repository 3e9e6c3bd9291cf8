import pytest
import torch

from evenly.diagnosis.linear_probe import balanced, linear_probe, read
from evenly.features import Features


def split(count, seed):
    """Two classes: 'clear' tells them apart, 'noise' does not, 'scaled' does in small print."""
    stream = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % 2
    clear = torch.randn(count, 4, generator=stream)
    clear[:, 0] += 6 * target
    noise = torch.randn(count, 4, generator=stream)
    scaled = torch.stack([1e-4 * target, 1e4 * torch.randn(count, generator=stream)], 1)
    return {"clear": clear, "noise": noise, "scaled": scaled.float()}, target


def test_it_finds_what_is_there():
    found = linear_probe(Features(*split(400, 0)), Features(*split(200, 1)))
    assert found["clear"] > 0.97
    assert 0.35 < found["noise"] < 0.65
    assert found["scaled"] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16])
def test_features_of_any_real_type(dtype):
    (train, y), (test, z) = split(400, 0), split(200, 1)
    train, test = train["clear"].to(dtype), test["clear"].to(dtype)
    test.requires_grad_(dtype.is_floating_point)
    assert linear_probe(Features({"m": train}, y), Features({"m": test}, z))["m"] > 0.95


def test_samples_without_the_modality_do_not_count():
    features, target = split(40, 0)
    here = torch.arange(40) < 30
    features["clear"][~here] = 0
    train = Features(features, target, present={"clear": here})
    whole = Features({"clear": features["clear"][:30]}, target[:30])
    unseen = Features(*split(50, 1))
    assert linear_probe(train, unseen)["clear"] == linear_probe(whole, unseen)["clear"]
    nowhere = Features(features, target, present={"clear": torch.zeros(40, dtype=torch.bool)})
    assert set(linear_probe(nowhere, unseen)) == {"noise", "scaled"}


def test_one_class_only_is_named_always():
    features, target = split(20, 0)
    same = Features(features, torch.zeros_like(target))
    assert linear_probe(same, Features(features, target))["clear"] == pytest.approx(0.5)


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_logistic_regression_as_scikit_learn_fits_it(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    stream = torch.Generator().manual_seed(2)
    centres = torch.randn(classes, 16, generator=stream)
    target = torch.randint(classes, (900,), generator=stream)
    x = 3 * torch.randn(900, 16, generator=stream) + centres[target]
    train, test = (Features({"m": x[part]}, target[part]) for part in (slice(600), slice(600, 900)))
    scaler = StandardScaler().fit(x[:600])
    theirs = LogisticRegression(max_iter=500).fit(scaler.transform(x[:600]), target[:600])
    score = theirs.score(scaler.transform(x[600:]), target[600:])
    assert linear_probe(train, test)["m"] == pytest.approx(score, abs=0.0034)  # one sample


def test_several_labels_are_read_one_by_one():
    """Each as classes with and without it; scored by what of them is read rightly."""
    (train, y), (test, z) = split(400, 0), split(200, 1)
    labels = [torch.stack([y, 1 - y, torch.arange(len(y)) % 2 * 0], 1).float() for y in (y, z)]
    found = read(Features(train, labels[0]), Features(test, labels[1]))
    one = read(Features(train, y), Features(test, z))["clear"]
    several = found["clear"]
    odds = one.log[:, 1] - one.log[:, 0]
    torch.testing.assert_close(several.log[:, 0], odds)
    assert (several.log[:, 2] == -float("inf")).all()  # of a label that no sample has
    assert several.above[2] == float("inf")
    # Each label is decided halfway between the means of the training samples with it and without.
    guess = several.log[:, 0] > several.above[0]
    both = [(guess == z.bool())[z == label].double().mean() for label in (0, 1)]
    assert several.right(labels[1]).mean() == pytest.approx(float(sum(both)) / 2)
    assert several.right(labels[1]).mean() > 0.97


def test_balanced_accuracy_is_scikit_learns_and_its_error_that_of_the_shares():
    from sklearn.metrics import balanced_accuracy_score

    stream = torch.Generator().manual_seed(0)
    has = torch.rand(500, 3, generator=stream) < torch.tensor([0.5, 0.1, 0.0])
    guess = has ^ (torch.rand(500, 3, generator=stream) < 0.2)
    values = balanced(guess == has, has)
    expected = [balanced_accuracy_score(has[:, c], guess[:, c]) for c in (0, 1)]
    assert float(values.mean()) == pytest.approx(sum(expected) / 2)  # of the labels that occur
    # One label's variance is that of two shares, each from its own samples.
    one = balanced((guess == has)[:, 1:2], has[:, 1:2])
    variance = 0.0
    for of in (has[:, 1], ~has[:, 1]):
        share = float((guess == has)[of, 1].double().mean())
        variance += share * (1 - share) / int(of.sum()) / 4
    assert float(one.var(correction=0)) / 500 == pytest.approx(variance)


def test_labels_of_samples_without_the_modality_do_not_count():
    stream = torch.Generator().manual_seed(0)
    target = (torch.rand(40, 3, generator=stream) < 0.4).float()
    here = torch.arange(40) % 3 > 0
    found = read(*[Features({"m": target + 1.0}, target, present={"m": here})] * 2)["m"]
    assert found.right(target)[here].mean() == 1
    assert not found.right(target)[~here].any()
    assert (found.luck(target) == 0.5).all()
