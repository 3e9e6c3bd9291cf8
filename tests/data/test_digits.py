import pytest
import torch

from evenly.data import load
from evenly.data.digits import digits


def test_the_halves_are_the_digits():
    from sklearn.datasets import load_digits

    source = load_digits()
    data = digits(noise=0.0)
    split = data.split("val")
    batch = split.__getitems__([0, 1, 2])
    both = torch.cat([batch["inputs"]["top"], batch["inputs"]["bottom"]], dim=2)
    assert torch.equal(both[:, 0], torch.from_numpy(source.images).float()[split.rows[:3]])
    assert batch["target"].tolist() == source.target[split.rows[:3]].tolist()
    assert data.class_names == list("0123456789")
    assert data.modalities["bottom"].shape == (1, 4, 8)


def test_the_split_is_60_20_20_and_stratified():
    data = digits()
    rows = [data.split(name).rows for name in ("train", "val", "test")]
    assert [len(part) for part in rows] == [1078, 359, 360]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(1797))
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        counts = data.split(name).target.bincount(minlength=10) / (share * 179.7)
        assert ((counts > 0.95) & (counts < 1.05)).all()


def test_noise_is_drawn_once_and_on_the_lower_half_only():
    clear, noisy, again = digits(noise=0.0), digits(noise=8.0), digits(noise=8.0)
    first = [data.split("train")[0]["inputs"] for data in (clear, noisy, again)]
    assert torch.equal(first[0]["top"], first[1]["top"])
    assert torch.equal(first[1]["bottom"], first[2]["bottom"])
    everyone = list(range(1078))
    difference = (
        noisy.split("train").__getitems__(everyone)["inputs"]["bottom"]
        - clear.split("train").__getitems__(everyone)["inputs"]["bottom"]
    )
    assert difference.std().item() == pytest.approx(8.0, rel=0.02)  # 34,496 draws


def test_another_seed_is_another_split():
    assert not torch.equal(digits().split("test").rows, digits(seed=1).split("test").rows)


def test_the_accuracies_in_the_documentation():
    """Logistic regression on the default: .822 / .508 / .883, standard error about .02."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load("digits")
    splits = {name: data.split(name) for name in ("train", "test")}
    batch = {name: split.__getitems__(list(range(len(split)))) for name, split in splits.items()}

    def accuracy(*names: str) -> float:
        x = {
            split: torch.cat([b["inputs"][name].flatten(1) for name in names], 1).numpy()
            for split, b in batch.items()
        }
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        model.fit(x["train"], batch["train"]["target"].numpy())
        return model.score(x["test"], batch["test"]["target"].numpy())

    assert accuracy("top") == pytest.approx(0.822, abs=0.01)
    assert accuracy("bottom") == pytest.approx(0.508, abs=0.01)
    assert accuracy("top", "bottom") == pytest.approx(0.883, abs=0.01)


def test_negative_noise_is_refused():
    with pytest.raises(
        ValueError, match=r"digits: noise is a standard deviation of at least 0; found -1"
    ):
        digits(noise=-1.0)
