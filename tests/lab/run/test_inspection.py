from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from evenly import chance
from evenly.data import Modality
from evenly.data.tasks import Classes, Labels, Numbers
from evenly.features import Features
from evenly.lab.run.inspection import (
    LEVELS,
    RATES,
    SAMPLES,
    Subject,
    inspect,
    probed,
    share_of_each,
    write_features,
)
from evenly.metrics import DERIVED
from evenly.output import Output

TASK = Classes(["a", "b", "c"])


def subject(kind="vector", rows=4000):
    """Three classes of which `a` tells all and `b` two; the model adds up what it is given."""
    target = torch.arange(rows) % 3
    code = torch.eye(3)[target]
    blurred = code.clone()
    blurred[target == 2] = 0.2  # of the third class b knows nothing, and would name the first
    inputs = {"a": 2 * code, "b": blurred}

    def passed(batch):
        logits = torch.stack([x.float() for x in batch["inputs"].values()]).sum(0)
        return Output(logits, {})

    batches = [
        {"inputs": {name: x[rows] for name, x in inputs.items()}, "target": target[rows],
         "index": rows, "present": {}}
        for rows in torch.arange(rows).split(1000)
    ]  # fmt: skip
    modalities = {
        name: Modality(name, kind, (3,), torch.zeros(3), torch.ones(3)) for name in inputs
    }
    return Subject(passed, batches, modalities, TASK, torch.tensor([0.0, 1.0, 0.0]))


def test_what_each_modality_is_worth_by_hand():
    """Accuracies: none 1/3, a 1, b 2/3, both 1."""
    found = inspect(subject())
    assert found["only/a"] == found["without/b"] == 1
    assert found["only/b"] == found["without/a"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["contribution/a"] == pytest.approx((1 - 1 / 3 + 1 - 2 / 3) / 2, abs=1e-3)
    assert found["contribution/b"] == pytest.approx((2 / 3 - 1 / 3 + 1 - 1) / 2, abs=1e-3)
    assert found["imbalance"] == pytest.approx(2 * 0.5 / (2 / 3) - 1, abs=2e-3)


def test_the_names_of_what_is_found_are_taken():
    features = Features({"a": torch.eye(3)}, torch.arange(3))
    task, logits = Numbers(("x", "y")), torch.zeros(3, 2)
    found = [*inspect(subject(rows=30)), *probed(TASK, features, features)]
    found += [*TASK.details(torch.eye(3), torch.arange(3)), *task.details(logits, logits)]
    found += Labels(("x", "y")).details(logits, torch.eye(3)[:, :2])
    assert {name.partition("/")[0] for name in found} == set(DERIVED)


def test_accuracy_falls_with_noise_and_the_noise_is_always_the_same():
    found = inspect(subject())
    curve = [found[f"noise_{level:g}/a"] for level in LEVELS]
    assert curve[0] > 0.98
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 0.7
    assert inspect(subject()) == found


def test_a_small_deviation_gets_small_noise():
    quiet = subject()
    for modality in quiet.modalities.values():
        modality.std.mul_(1e-3)
    assert all(inspect(quiet)[f"noise_{level:g}/a"] == 1 for level in LEVELS)


def test_texts_get_no_noise_and_one_modality_has_no_share():
    assert not any(name.startswith("noise") for name in inspect(subject("text")))
    one = subject()
    found = inspect(replace(one, modalities={"a": one.modalities["a"]}))
    assert {name.partition("/")[0].partition("_")[0] for name in found} == {"noise"}


def test_accuracies_between_with_and_without_a_modality():
    """Without a, every third sample is wrong; of them as many as the rate says."""
    found = inspect(subject(rows=3000))
    for rate in RATES:
        assert found[f"missing_{rate:g}/a"] == pytest.approx(1 - rate / 3, abs=0.02)
        assert found[f"missing_{rate:g}/b"] == 1
    curve = [1, *(found[f"missing_{rate:g}/a"] for rate in RATES), found["without/a"]]
    assert curve == sorted(curve, reverse=True)


def test_a_sample_without_any_of_a_set_counts_like_the_empty_set():
    """b is in the first three of six samples; without any input the guess is the second class.

    Accuracies: none 3/6, a 1, b (3 + 2)/6, both 1.
    """
    target = torch.tensor([0, 1, 2, 1, 1, 2])
    here = torch.arange(6) < 3
    code = torch.eye(3)[target]
    batch = {"inputs": {"a": code, "b": code * here[:, None]}, "target": target,
             "index": torch.arange(6), "present": {"b": here}}  # fmt: skip
    found = inspect(replace(subject(), batches=[batch]))
    assert found["only/b"] == found["without/a"] == pytest.approx(5 / 6)
    assert found["contribution/a"] == pytest.approx((3 / 6 + 1 / 6) / 2)
    assert found["contribution/b"] == pytest.approx((2 / 6 + 0) / 2)


def test_those_accuracies_are_the_ones_of_samples_without_it():
    """As if the samples that are counted without it came without it."""
    whole = subject(rows=1000)
    gone = chance.uniform(torch.arange(1000), 0).argsort(stable=True)[:500]
    batch = whole.batches[0]
    inputs = {name: x.clone() for name, x in batch["inputs"].items()}
    inputs["a"][gone] = 0
    right = whole.passed({**batch, "inputs": inputs}).logits.argmax(1) == batch["target"]
    assert inspect(whole)["missing_0.5/a"] == float(right.double().mean())


def test_each_class_has_its_share_of_the_chosen_samples():
    target = torch.tensor([0] * 600 + [1] * 300 + [2] * 90 + [3] * 10)[torch.randperm(1000)]
    chosen = share_of_each(target, 100)
    assert len(chosen.unique()) == 100
    assert chosen.equal(chosen.sort().values)
    share = target[chosen].bincount(minlength=4)
    assert (share - torch.tensor([60, 30, 9, 1])).abs().max() <= 1
    assert share_of_each(target, 2000).equal(torch.arange(1000))
    first = torch.nonzero(target == 0).flatten()
    of_first = torch.searchsorted(first, chosen[target[chosen] == 0])
    assert of_first.diff().max() <= 11  # from the whole split, not from its beginning


def test_kept_features_are_few_and_small(tmp_path):
    rows = 2 * SAMPLES
    target = torch.arange(rows) % 4
    sound = torch.linspace(-1e9, 1e9, rows)[:, None].expand(rows, 3)  # beyond half precision
    features = Features(
        {"sound": sound, "text": torch.zeros(rows, 2)},
        target,
        present={"text": torch.arange(rows) % 3 > 0},
    )
    path = tmp_path / "features.npz"
    task, answers = Classes(tuple("abcd")), one_hot(target.flip(0)).float()
    write_features(path, features, task, answers, [f"clip {row}" for row in range(rows)])
    with np.load(path) as kept:
        assert list(kept["modalities"]) == ["sound", "text"]
        assert len(kept["row"]) == SAMPLES
        assert kept["features_0"].shape == (SAMPLES, 3)
        assert kept["features_0"][:, 0] == pytest.approx(
            sound[kept["row"], 0].numpy() / 1e9, abs=1e-3
        )
        assert not kept["features_1"].any()
        assert np.array_equal(kept["present_1"], kept["row"] % 3 > 0)
        assert "present_0" not in kept
        assert np.array_equal(kept["target"], kept["row"] % 4)
        assert np.array_equal(kept["predicted"], (rows - 1 - kept["row"]) % 4)
        assert list(kept["name"]) == [f"clip {row}" for row in kept["row"]]


def test_of_several_labels_the_rarest_is_kept_and_all_in_words(tmp_path):
    target = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 1], [1, 0]]).float()
    answers = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.2], [0.1, 0.9], [0.6, 0.6]])
    features = Features({"sound": torch.rand(5, 2)}, target)
    write_features(tmp_path / "features.npz", features, Labels(("voice", "crowd")), answers)
    with np.load(tmp_path / "features.npz") as kept:
        assert kept["target"].tolist() == [0, 1, 2, 1, 0]
        said = kept["said"]
        assert said[kept["own"]].tolist() == ["voice", "voice;crowd", "", "voice;crowd", "voice"]
        assert said[kept["predicted"]].tolist() == ["voice", "voice", "", "crowd", "voice;crowd"]


def test_probes_of_several_labels_have_scikit_learns_mean_average_precision():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.preprocessing import StandardScaler

    stream = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5, 0.2])
    target = (torch.rand(300, 2, generator=stream) < shares).float()
    x = target @ torch.randn(2, 6, generator=stream) + torch.randn(300, 6, generator=stream)
    here = torch.arange(300) % 5 > 0
    split = Features({"sound": x}, target, present={"sound": here})
    first = torch.arange(300) < 150
    found = probed(Labels(("voice", "crowd")), split.where(first), split.where(~first))
    train, test = first & here, ~first & here
    scaler = StandardScaler().fit(x[train])
    expected = []
    for label in target.T:
        model = LogisticRegression().fit(scaler.transform(x[train]), label[train])
        score = model.decision_function(scaler.transform(x[test]))
        expected.append(average_precision_score(label[test], score))
    assert found["probe/sound"] == pytest.approx(sum(expected) / 2, abs=2e-3)
