import math

import pytest
import torch

from evenly.data.synthetic import bayes_accuracy, synthetic


def _all(data, name):
    split = data.split(name)
    return split.__getitems__(list(range(len(split))))


def test_bayes_accuracy_of_two_classes_is_the_textbook_value():
    # Two clouds sqrt(2) d apart in unit noise: Φ(d / sqrt(2)).
    for distance in (0.0, 0.5, 2.0, 5.0):
        expected = 0.5 * (1 + math.erf(distance / 2))
        assert bayes_accuracy(distance, 2) == pytest.approx(expected, abs=1e-9)


def test_bayes_accuracy_at_no_distance_is_chance():
    assert bayes_accuracy(0.0, 7) == pytest.approx(1 / 7, abs=1e-9)
    assert bayes_accuracy(30.0, 7) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimal_rule_reaches_the_bayes_accuracy(seed):
    """Distances to the class means, themselves measured on plenty of data, decide."""
    count, lengths, noises = 60_000, [2.0, 1.5], [1.0, 2.0]
    data = synthetic(
        classes=4, train=count, val=4, test=20_000, dim=6,
        information=lengths, noise=noises, seed=seed,
    )  # fmt: skip
    train, test = _all(data, "train"), _all(data, "test")
    scores = {}
    for name, noise in zip(("m1", "m2"), noises, strict=True):
        x = train["inputs"][name]
        means = torch.stack([x[train["target"] == c].mean(0) for c in range(4)])
        scores[name] = -torch.cdist(test["inputs"][name], means).square() / (2 * noise**2)
    scores["all"] = scores["m1"] + scores["m2"]
    assert set(data.bayes) == set(scores)
    for name, score in scores.items():
        accuracy = (score.argmax(1) == test["target"]).float().mean().item()
        error = math.sqrt(accuracy * (1 - accuracy) / 20_000)
        assert abs(accuracy - data.bayes[name]) < 4 * error, name
    assert data.bayes["m2"] < data.bayes["m1"] < data.bayes["all"]


def test_speed_changes_the_way_and_not_the_end():
    slow, fast = synthetic(speed=0.1), synthetic(speed=1.0)
    assert slow.bayes == fast.bayes
    # An invertible linear map leads from one to the other.
    a, b = (_all(data, "train")["inputs"]["m1"].double() for data in (slow, fast))
    solution = torch.linalg.lstsq(a, b).solution
    assert (a @ solution - b).abs().max() < 1e-4


def test_speed_is_how_fast_gradient_descent_learns():
    data = synthetic(speed=[1.0, 0.2], train=600)
    batch = _all(data, "train")
    gains = []
    for name in ("m1", "m2"):
        modality = data.modalities[name]
        x = (batch["inputs"][name] - modality.mean) / modality.std
        head = torch.nn.Linear(32, 6)
        torch.nn.init.zeros_(head.weight)
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(head(x), batch["target"])
            head.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter -= 0.2 * parameter.grad
        gains.append(math.log(6) - loss.item())
    assert gains[0] > 4 * gains[1] > 0


def test_every_class_is_equally_frequent_in_every_split():
    data = synthetic(modalities=3, classes=5, train=50, val=10, test=20, dim=5)
    for name, size in (("train", 50), ("val", 10), ("test", 20)):
        assert data.split(name).target.bincount().tolist() == [size // 5] * 5
    assert list(data.modalities) == ["m1", "m2", "m3"]
    assert data.modalities["m3"].shape == (5,)


def test_the_seed_decides_all():
    first, again, other = synthetic(), synthetic(), synthetic(seed=1)
    x = [_all(data, "train")["inputs"]["m2"] for data in (first, again, other)]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": 0}, "synthetic: found 0 modalities. Give 1 or more."),
        ({"classes": 1}, "synthetic: found 1 classes. Give 2 or more."),
        ({"dim": 5}, "vectors of width 5 cannot hold 6 classes"),
        ({"val": 5}, "synthetic: val=5 is fewer samples than the 6 classes. Give 6 or more."),
        ({"speed": [1.0]}, "synthetic: speed lists 1 values for 2 modalities. Give one for each"),
        ({"speed": 0.0}, "synthetic: speed needs numbers above 0, found 0.0."),
        ({"noise": [1.0, -1.0]}, "synthetic: noise needs numbers above 0, found [1.0, -1.0]."),
        ({"information": -1.0}, "synthetic: information needs numbers of 0 or more, found -1.0."),
        ({"information": math.inf}, "synthetic: information needs numbers of 0 or more"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        synthetic(**settings)
    assert message in str(caught.value)
