"""The checkup of a model: what is there, learnt, used and over-trained, and the verdict."""

import copy
import io
import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import evenly
from evenly.diagnosis.alone import Alone
from evenly.diagnosis.classes import Classes
from evenly.diagnosis.estimate import Estimate, Z
from evenly.diagnosis.findings import concluded
from evenly.diagnosis.interactions import interactions
from evenly.diagnosis.verdict import Figures, judge
from many_ranks import on_ranks

WIDTH = 8


def data(count, seed, **clear):
    """Two classes; of each modality, how clear they are. Those named 'xor' need learning."""
    stream = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (count,), generator=stream)
    inputs = []
    for name, by in clear.items():
        x = torch.randn(count, WIDTH, generator=stream)
        sign = 2 * target - 1
        if name.startswith("xor"):
            other = 2 * torch.randint(2, (count,), generator=stream) - 1
            x[:, 0] += by * other
            x[:, 1] += by * other * sign
        else:
            x[:, 0] += by * sign
        inputs.append(x)
    return TensorDataset(*inputs, target)


class Fusion(nn.Module):
    def __init__(self, names, width=16, classes=2):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU()) for name in names}
        )
        self.head = nn.Linear(width * len(names), classes)

    def forward(self, *inputs):
        features = {
            name: encoder(x)
            for (name, encoder), x in zip(self.encoders.items(), inputs, strict=True)
        }
        return self.head(torch.cat(list(features.values()), 1)), features


def forward(model, batch):
    *inputs, target = batch
    logits, features = model(*inputs)
    return evenly.Output(logits, features), target


def single(model, batch):
    """The same with one logit for both classes."""
    output, target = forward(model, batch)
    one = output.logits[:, 1:] - output.logits[:, :1]
    return evenly.Output(one, output.features), target.float()[:, None]


class Case:
    """A model of some modalities, trained jointly."""

    def __init__(self, epochs=20, rates=None, frozen=(), **clear):
        torch.manual_seed(0)
        self.model = Fusion(list(clear))
        self.initial = copy.deepcopy(self.model.state_dict())
        self.train = DataLoader(data(600, 1, **clear), 50, shuffle=True)
        self.val = DataLoader(data(400, 2, **clear), 50)
        for name in frozen:
            self.model.encoders[name].requires_grad_(False)
        groups = [
            {"params": list(encoder.parameters()), "lr": (rates or {}).get(name, 0.1)}
            for name, encoder in self.model.encoders.items()
        ]
        groups.append({"params": list(self.model.head.parameters())})
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        for _ in range(epochs):
            for batch in self.train:
                output, target = forward(self.model, batch)
                nn.functional.cross_entropy(output.logits, target).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()

    def checkup(self, **options):
        options = {
            "initial": self.initial,
            "optimizer": self.optimizer,
            "epochs": 15,
            "progress": False,
        } | options
        return evenly.checkup(
            self.model, forward, self.train, self.val, self.model.encoders, **options
        )


def test_learnt_and_scarce():
    found = Case(plain=1.0, noise=0.0).checkup()
    assert found.verdict == {"plain": "learnt", "noise": "scarce"}
    one = found.findings["plain"]
    assert one.there.value == pytest.approx(0.84, abs=0.05)  # Φ(1)
    assert one.learnt.low < one.there.value
    assert one.chance.value == pytest.approx(0.5, abs=0.06)
    assert one.without.value < 0.6 < found.accuracy.value
    assert one.raw.value == pytest.approx(0.84, abs=0.05)
    assert found.best == "plain"
    assert "relearn" in str(found)


@pytest.mark.parametrize("held", [{"rates": {"xor": 1e-5}}, {"frozen": ["xor"]}])
def test_an_encoder_that_is_held_back_is_suppressed(held):
    found = Case(plain=1.0, xor=1.5, epochs=15, **held).checkup(epochs=25)
    assert found.verdict == {"plain": "learnt", "xor": "suppressed"}
    assert found.findings["xor"].missed.low > 0.05
    assert found.findings["xor"].raw.value < 0.6  # no linear probe of its input can tell
    assert "multi_loss" in str(found)
    said = "is frozen." if "frozen" in held else "learns at a rate of 1e-05, another at 0.1."
    assert found.notes[-1] == f"The encoder of 'xor' {said}"


def test_what_the_head_leaves_out_is_unused():
    case = Case(plain=1.0, left=1.0)
    case.model.head.weight.data[:, 16:] = 0
    found = case.checkup()
    assert found.verdict == {"plain": "learnt", "left": "unused"}
    assert found.findings["left"].flipped.value == 0


def test_worse_together_than_alone_is_said_first():
    case = Case(plain=1.0, noise=0.0)
    case.model.head.weight.data[:, 16:] = 9 * torch.randn(2, 16)
    found = case.checkup()
    assert found.together.high < 0
    assert str(found).startswith("The joint model is WORSE than plain alone")


def test_everything_is_as_it_was():
    case = Case(plain=1.0, xor=1.5, frozen=["xor"], epochs=2)
    case.model.eval()
    case.model.head.train()
    state = copy.deepcopy(case.model.state_dict())
    moments = copy.deepcopy(case.optimizer.state_dict())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = case.checkup(epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, state[name])
    assert str(case.optimizer.state_dict()) == str(moments)
    assert not case.model.training
    assert case.model.head.training
    assert not any(p.requires_grad for p in case.model.encoders["xor"].parameters())
    assert all(p.grad is None for p in case.model.encoders["xor"].parameters())
    assert case.checkup(epochs=2) == first  # a seed gives the same again


def test_without_first_weights_the_model_is_trained_as_well():
    case = Case(plain=1.0, noise=0.0, epochs=0)
    found = case.checkup(initial=None)
    assert found.accuracy.value > 0.75
    assert found.verdict == {"plain": "learnt", "noise": "scarce"}
    assert torch.equal(case.model.head.weight, case.initial["head.weight"])


@pytest.mark.slow
def test_a_trained_model_without_its_first_weights_is_noticed():
    found = Case(plain=1.5, noise=0.0).checkup(initial=None, epochs=1)
    assert "give its first weights (initial=...)" in found.notes[-1]
    assert Case(plain=1.5, noise=0.0, epochs=0).checkup(initial=None, epochs=1).notes == ()


def test_each_is_trained_as_if_by_itself():
    case = Case(plain=1.0, xor=1.5, epochs=0)
    probe = evenly.Probe(case.model, forward, case.train, case.val)
    classes = Classes(2, None, one_logit=False)

    def trained(names):
        encoders = {name: case.model.encoders[name] for name in names}
        output, _ = forward(case.model, next(iter(case.val)))
        alone = Alone(probe, encoders, output, classes, seed=0)
        found = []
        own = probe.trained

        def noting(*given, **named):
            found.append(own(*given, **named))
            return found[-1]

        probe.trained = noting
        try:
            return alone.trained(case.optimizer, 3, lambda: None, fastest=False)[1]
        finally:
            probe.trained = own

    both, one = trained(["plain", "xor"]), trained(["plain"])
    torch.testing.assert_close(both.features["plain"], one.features["plain"], rtol=0, atol=0)
    assert not torch.equal(both.features["xor"], one.features["xor"])


@pytest.mark.slow
def test_one_logit_and_samples_without_a_label():
    case = Case(plain=1.5, noise=0.0)
    expected = case.checkup()

    def masked(model, batch):
        *inputs, target = batch
        target = target.clone()
        target[inputs[0][:, 3] > 1.2] = -100
        return forward(model, (*inputs, target))

    found = evenly.checkup(
        case.model, masked, case.train, case.val, case.model.encoders,
        initial=case.initial, optimizer=case.optimizer, epochs=15, progress=False,
    )  # fmt: skip
    assert 300 < found.accuracy.count < 400 == expected.accuracy.count
    assert found.verdict["plain"] == "learnt"

    found = evenly.checkup(
        case.model, single, case.train, case.val, case.model.encoders,
        initial=case.initial, optimizer=case.optimizer, epochs=15, progress=False,
        criterion=nn.functional.binary_cross_entropy_with_logits,
    )  # fmt: skip
    assert found.accuracy == expected.accuracy
    assert found.verdict == expected.verdict


def test_a_class_that_the_validation_split_lacks_has_no_gap():
    case = Case(plain=1.0, noise=0.0, epochs=2)
    found = case.checkup(epochs=1)
    case.model.head = nn.Linear(32, 3)
    train = case.train.dataset
    train.tensors[-1][:5] = 2

    def wider(model, batch):
        return forward(model, batch)

    rare = evenly.checkup(
        case.model, wider, case.train, case.val, case.model.encoders, epochs=1, progress=False
    )
    assert rare.notes[-1] == "Classes missing from one split have no gap: 2."
    assert found.notes == ()


def test_samples_of_a_class_that_the_training_split_lacks_have_no_bits():
    case = Case(plain=1.0, noise=0.0, epochs=0)
    case.model.head = nn.Linear(32, 3)
    case.val.dataset.tensors[-1][:5] = 2
    found = case.checkup(initial=None, epochs=1, interactions=True)
    assert found.notes[-1] == "Classes missing from one split have neither a gap nor bits: 2."
    (pair,) = found.shared
    assert pair.redundant.count == 395
    assert all(
        math.isfinite(x.value) for x in (pair.redundant, pair.synergy, *pair.unique.values())
    )


@pytest.mark.slow
def test_as_dict_is_plain_and_whole():
    case = Case(plain=1.0, noise=0.0, third=0.7, epochs=5)
    found = case.checkup(interactions=True)
    whole = json.loads(json.dumps(found.as_dict()))
    assert whole["findings"]["noise"]["verdict"]["name"] == found.verdict["noise"]
    assert whole["findings"]["plain"]["there"]["value"] == found.findings["plain"].there.value
    assert [one["modalities"] for one in whole["shared"]] == [
        ["plain", "noise"], ["plain", "third"], ["noise", "third"],
    ]  # fmt: skip
    assert "measured" not in whole
    assert "only together" in str(found)


@pytest.mark.slow
def test_several_trainings_make_one_checkup():
    case = Case(plain=1.0, noise=0.0, epochs=3)
    one, other = case.checkup(seed=0), case.checkup(seed=1)
    both = evenly.Checkup.pooled([one, other])
    there = [x.findings["plain"].there.value for x in (one, other, both)]
    assert there[2] == pytest.approx(sum(there[:2]) / 2)
    assert len(both.measured) == 2
    between = abs(there[0] - there[1]) / 2
    length = both.findings["plain"].there.high - both.findings["plain"].there.low
    assert between == 0 or length > 2 * Z * between  # not only the samples' part
    another = Case(plain=1.0, epochs=1).checkup(epochs=1)
    with pytest.raises(ValueError, match="no checkups to pool"):
        evenly.Checkup.pooled([])
    with pytest.raises(ValueError, match="same validation split and modalities"):
        evenly.Checkup.pooled([one, another])


def test_one_modality_has_nobody_to_disagree_with():
    found = Case(plain=1.0, epochs=5).checkup()
    assert found.findings["plain"].followed is None
    assert found.verdict == {"plain": "learnt"}
    assert str(found).startswith("accuracy 0.")


@pytest.mark.parametrize("same", [True, False])
def test_interactions_add_up(same):
    stream = torch.Generator().manual_seed(0)

    def split(count):
        target = torch.randint(4, (count,), generator=stream)
        bits = [target // 2, target % 2]
        first, second = (bits[0], bits[0]) if same else bits
        noise = 0.05 * torch.randn(2, count, 2, generator=stream)
        return evenly.Features(
            {
                name: nn.functional.one_hot(bit, 2) + noise[i]
                for i, (name, bit) in enumerate({"a": first, "b": second}.items())
            },
            target,
        )

    found = interactions(split(1000), split(500))["a", "b"]
    redundant, synergy = found.redundant.mean(), found.synergy.mean()
    unique = [x.mean() for x in found.unique.values()]
    if same:  # one bit, twice
        assert redundant == pytest.approx(1, abs=0.1)
        assert max(unique) < 0.1
        assert abs(synergy) < 0.1
    else:  # a bit of each, which the smaller information counts as shared: it is known to do so
        assert redundant + sum(unique) + synergy == pytest.approx(2, abs=0.1)


def test_modalities_that_no_sample_has_both_of_share_nothing():
    target = torch.arange(40) % 2
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x = target[:, None] + 0.1 * noise
    here = torch.arange(40) < 20
    split = evenly.Features({"a": x, "b": x, "c": x}, target, present={"a": here, "b": ~here})
    assert list(interactions(split, split)) == [("a", "c"), ("b", "c")]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_batches_that_cannot_be_counted():
    case = Case(plain=1.0, noise=0.0, epochs=3)
    train, val = (DataLoader(Stream(list(x.dataset)), 50) for x in (case.train, case.val))
    found = evenly.checkup(
        case.model, forward, train, val, case.model.encoders, initial=case.initial,
        optimizer=case.optimizer, epochs=8,
    )  # fmt: skip
    assert found.verdict["plain"] == "learnt"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
def test_the_bar_says_what_is_done_and_how_many_trainings_there_are(monkeypatch):
    case = Case(plain=1.0, noise=0.0, epochs=0, rates={"noise": 0.01})
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    case.checkup(initial=None, epochs=2, progress=True)
    said = re.findall(r"\r([a-z][^\r:]+):", terminal.getvalue())
    assert list(dict.fromkeys(said)) == [
        "training 1 of 3 (joint model), 2 epochs",
        "what the joint model uses",
        "training 2 of 3 (plain and noise alone), 2 epochs",
        "training 3 of 3 (plain and noise alone), 2 epochs",
        "linear probes",
        "gap of plain and noise",
    ]
    assert "72/72" in terminal.getvalue()  # 12 batches in each of two epochs


def test_frozen_features_learn_at_the_rate_of_what_is_not_frozen():
    case = Case(plain=1.0, xor=1.5, epochs=3, frozen=["plain", "xor"])
    found = case.checkup(epochs=25)
    assert found.verdict["xor"] == "suppressed"
    assert "The encoder of 'xor' is frozen." in found.notes
    other = torch.optim.SGD(Fusion(["plain", "xor"]).parameters(), lr=0.1)
    still = torch.optim.SGD(case.model.head.parameters(), lr=0.0)
    for optimizer in (other, still):
        with pytest.raises(ValueError, match="trains nothing of the model"):
            case.checkup(optimizer=optimizer)


def test_one_of_several_optimisers_is_refused():
    """It would train an encoder alone at a rate of 0, as if it were frozen."""
    case = Case(plain=1.0, noise=0.0, epochs=1)
    plain, head = case.model.encoders["plain"], case.model.head
    one = torch.optim.SGD([*plain.parameters(), *head.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"leaves out 2 of the 2 .* 'noise'\. Pass .* if several"):
        case.checkup(optimizer=one)


def test_rates_that_a_plateau_has_lowered_are_told():
    case = Case(plain=1.0, noise=0.0, epochs=1)
    output, _ = forward(case.model, next(iter(case.val)))
    probe = evenly.Probe(case.model, forward, case.train, case.val)
    encoders = dict(case.model.encoders.items())
    alone = Alone(probe, encoders, output, Classes(2, None, one_logit=False), seed=0)
    assert alone.lowered(case.optimizer) is None
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(case.optimizer, patience=0)
    for _ in range(2):
        schedule.step(1.0)
    assert alone.lowered(case.optimizer) == (
        "The short trainings ran at a learning rate of 0.01, but the default of this SGD is 0.1. "
        "If a schedule has lowered the rate since, repeat the checkup with a new optimiser like "
        "yours, at the rate of your training."
    )


def test_features_that_are_not_finite_are_named():
    case = Case(plain=1.0, noise=0.0, epochs=1)
    fast = torch.optim.SGD(case.model.parameters(), lr=1e20)
    with pytest.raises(ValueError, match="Trained alone, its encoder diverges"):
        case.checkup(optimizer=fast)
    case.val.dataset.tensors[1][7, 0] = float("nan")
    with pytest.raises(ValueError, match="'noise' are NaN or infinite in row 7 of the validation"):
        case.checkup(epochs=1)


def test_one_logit_needs_no_criterion():
    case = Case(plain=1.5, noise=0.0, epochs=0)

    found = evenly.checkup(
        case.model, single, case.train, case.val, case.model.encoders,
        optimizer=case.optimizer, progress=False,
    )  # fmt: skip
    assert found.accuracy.value > 0.85


def test_where_some_lack_the_best_it_is_compared_on_the_others():
    case = Case(plain=2.0, noise=0.0)

    def lacking(model, batch):
        output, target = forward(model, batch)
        here = torch.arange(len(target)) % 2 == 0
        return evenly.Output(output.logits, output.features, present={"plain": here}), target

    found = evenly.checkup(
        case.model, lacking, case.train, case.val, case.model.encoders,
        initial=case.initial, optimizer=case.optimizer, progress=False,
    )  # fmt: skip
    assert (found.alone.count, found.together.count, found.accuracy.count) == (200, 200, 400)
    assert "of the 200 that have it" in str(found)


def lacking(start):
    """`forward` for samples of which every other one lacks the noise, and one of three the rest."""

    def lacks(model, batch):
        output, target = forward(model, batch)
        number = torch.arange(len(target)) + start
        present = {"noise": number % 2 == 0, "plain": number % 3 > 0}
        return evenly.Output(output.logits, output.features, present=present), target

    return lacks


@pytest.mark.slow
def test_trainings_whose_samples_lack_different_modalities_make_one_checkup():
    case = Case(plain=1.0, noise=0.0, epochs=3)
    several = [
        evenly.checkup(
            case.model, lacking(start), case.train, case.val, case.model.encoders,
            initial=case.initial, optimizer=case.optimizer, epochs=3, interactions=True,
            progress=False,
        )
        for start in (0, 1)
    ]  # fmt: skip
    both = evenly.Checkup.pooled(several)
    assert [one.findings["noise"].there.count for one in (*several, both)] == [200, 200, 400]
    for name in ("there", "learnt", "lost", "flipped", "contribution", "without"):
        figures = [getattr(one.findings["noise"], name) for one in (*several, both)]
        # No sample has noise in both, and as many have it in each.
        assert figures[2].value == pytest.approx((figures[0].value + figures[1].value) / 2)
        assert figures[2].count == 400
    assert both.shared[0].synergy.count > several[0].shared[0].synergy.count


def test_synergy_counts_what_a_modality_alone_reads_in_the_joint_model_as_well():
    case = Case(plain=1.0, noise=0.0, epochs=3)
    (one,) = case.checkup(epochs=1).measured
    count = len(one.right)
    wrong, right = torch.zeros(count).double(), torch.ones(count).double()
    known = replace(
        one,
        right=right,
        there={"plain": wrong, "noise": wrong},
        learnt={"plain": right, "noise": wrong},
    )
    found = concluded([known])
    assert found.alone.value == 1
    assert found.synergy.value == 0


def labelled(count, seed, **clear):
    """Four labels, the later the rarer; of each modality, how clear the first and last two are."""
    stream = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.2, 0.1])
    target = (torch.rand(count, 4, generator=stream) < shares).float()
    inputs = []
    for first, last in clear.values():
        x = torch.randn(count, WIDTH, generator=stream)
        x[:, :4] += torch.tensor([first, first, last, last]) * target
        inputs.append(x)
    return TensorDataset(*inputs, target)


CLEAR = {"common": (3.0, 0.0), "rare": (0.0, 3.0), "noise": (0.0, 0.0)}


class TestLabels:
    def checkup(self, head=None, **options):
        torch.manual_seed(0)
        model = Fusion(list(CLEAR), classes=4)
        initial = copy.deepcopy(model.state_dict())
        train = DataLoader(labelled(600, 1, **CLEAR), 50, shuffle=True)
        val = DataLoader(labelled(600, 2, **CLEAR), 50)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            for batch in train:
                output, target = forward(model, batch)
                loss = nn.functional.binary_cross_entropy_with_logits(output.logits, target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        if head is not None:
            model.head.weight.data[:, head] = 0
        options = {"initial": initial, "optimizer": optimizer, "epochs": 8} | options
        return evenly.checkup(model, forward, train, val, model.encoders, progress=False, **options)

    @pytest.mark.slow
    def test_what_rare_labels_need_is_seen_as_well(self):
        found = self.checkup()
        assert found.verdict == {"common": "learnt", "rare": "learnt", "noise": "scarce"}
        common, rare, noise = found.findings.values()
        for one in (common, rare):  # balanced: of two labels Φ(1.5) = 0.93, of the others 0.5
            assert one.there.value == pytest.approx(0.72, abs=0.04)
            assert one.contribution.value > 0.1
            assert one.without.value < found.accuracy.value - 0.1
        assert noise.there.value == pytest.approx(0.5, abs=0.04)
        assert all(one.chance.value == 0.5 for one in found.findings.values())
        assert found.accuracy.value == pytest.approx(0.93, abs=0.04)
        assert found.accuracy.high - found.accuracy.low < 0.06
        assert found.synergy is None
        assert common.followed is None
        assert "accuracy is balanced, and the mean over labels" in found.notes[0]
        json.dumps(found.as_dict())

    def test_what_the_head_leaves_out_is_unused(self):
        found = self.checkup(head=slice(16, 32))
        assert found.verdict["rare"] == "unused"

    def test_numbers_and_bits_are_refused(self):
        with pytest.raises(ValueError, match="these samples have several labels"):
            self.checkup(interactions=True)
        with pytest.raises(ValueError, match=r"checkup takes class numbers.*several labels per s"):
            self.checkup(criterion=nn.functional.mse_loss)


def test_refusals():
    case = Case(plain=1.0, noise=0.0, epochs=0)
    with pytest.raises(ValueError, match="'epochs' must be at least 1"):
        case.checkup(epochs=0)
    with pytest.raises(ValueError, match="'initial' equals the current model"):
        case.checkup(initial=case.model.state_dict())
    trained = copy.deepcopy(case.model.state_dict())
    with pytest.raises(ValueError, match="'initial' is not the state of this model"):
        case.checkup(initial={name: x[:1] if x.ndim > 1 else x + 1 for name, x in trained.items()})
    assert all(torch.equal(x, trained[name]) for name, x in case.model.state_dict().items())

    def numbers(model, batch):
        output, target = forward(model, batch)
        return output, target + 0.5

    with pytest.raises(ValueError, match="checkup takes class numbers"):
        evenly.checkup(case.model, numbers, case.train, case.val, case.model.encoders)

    def mixed(model, batch):
        output, target = forward(model, batch)
        features = {**output.features, "plain": output.features["plain"] + output.features["noise"]}
        return evenly.Output(output.logits, features), target

    with pytest.raises(ValueError, match="'plain' also depend on the encoder of 'noise'"):
        evenly.checkup(case.model, mixed, case.train, case.val, case.model.encoders)
    with pytest.raises(ValueError, match="there is an encoder 'sound'"):
        evenly.checkup(
            case.model, forward, case.train, case.val, {"sound": case.model.encoders["plain"]}
        )
    with pytest.raises(ValueError, match="needs the encoders by modality"):
        evenly.checkup(case.model, forward, case.train, case.val, {})


@pytest.mark.parametrize(
    ("used", "end"), [(0.1, "and the predictions follow it"), (-0.1, "no better for it")]
)
def test_what_is_held_is_said_to_be_followed_only_where_it_helps(used, end):
    much, nothing, worth = (Estimate.around(value, 0.01, 100) for value in (0.5, 0.0, used))
    found = judge(Figures(much, much, nothing, nothing, nothing, much, worth))
    assert found.name == "learnt"
    assert found.why.endswith(end)


def around(value):
    return Estimate.around(value, 0.01, 100)


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ({"gap": 0.125}, "learnt"),  # a gap above 0.12, but not by its error
        ({"gap": 0.135}, "over-trained"),
        ({"missed": 0.051}, "suppressed"),  # over 5 points by any amount
        ({"missed": 0.049}, "learnt"),
        ({"missed": Estimate.around(0.06, 0.04, 100)}, "unclear"),  # the interval includes 0
        ({"missed": Estimate.around(0.06, 0.04, 100), "flipped": 0.01}, "unused"),
        ({"flipped": 0.025}, "unclear"),
        ({"gain": 0.075, "held": 0.0, "lost": 0.0}, "unclear"),
        # It tells little alone, but much is lost: nothing else is asked of it.
        ({"gain": 0.0, "held": 0.0, "lost": 0.2, "gap": 0.5, "missed": 0.2}, "learnt"),
        ({"gain": 0.075, "held": 0.0, "lost": 0.2, "gap": 0.5}, "learnt"),
    ],
)
def test_the_verdicts_follow_the_rules_of_the_page(figures, verdict):
    """Errors are 0.01 unless given; the other figures are those of what is learnt and used."""
    usual = {"gain": 0.5, "held": 0.5, "missed": 0.0, "gap": 0.0, "lost": 0.3, "flipped": 0.4}
    found = {
        name: value if isinstance(value, Estimate) else around(value)
        for name, value in {**usual, **figures}.items()
    }
    assert judge(Figures(**found)).name == verdict


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.0, "scarce"), (0.05, "unclear"), (0.09, "unclear"), (0.2, "learnt")]
)
def test_what_tells_little_alone_is_scarce_only_if_little_is_lost_without_it(lost, verdict):
    """The threshold is 0.07 and the error 0.03."""
    much, nothing = (Estimate.around(value, 0.01, 100) for value in (0.5, 0.0))
    found = judge(
        Figures(nothing, nothing, nothing, nothing, Estimate.around(lost, 0.03, 100), much)
    )
    assert found.name == verdict
    if verdict == "scarce":  # not above the page's chance, which names the commonest class
        assert found.why == (
            "alone its encoder reaches only 0 points (-2 to 2) more than shuffled guesses"
        )
    if verdict == "unclear":
        assert "whether accuracy is lost without it" in found.why
        assert found.samples == pytest.approx(225, abs=1)  # (0.03 / 0.02)² times as many


@pytest.mark.parametrize(
    ("of_seeds", "samples"), [(0.0, 225), (0.01, 267), (0.015, None), (0.02, None)]
)
def test_what_samples_cannot_settle_takes_seeds(of_seeds, samples):
    """The error is 0.03, and 0.02 would be enough."""
    much, nothing = around(0.5), around(0.0)
    lost = Estimate(0.05, -0.01, 0.11, 100, standard_error=0.03, seed_error=of_seeds)
    found = judge(Figures(nothing, nothing, nothing, nothing, lost, much))
    assert found.name == "unclear"
    # 100 · (0.03² - of_seeds²) / (0.02² - of_seeds²)
    assert found.samples == (None if samples is None else pytest.approx(samples, abs=1))


def test_the_samples_that_would_settle_what_is_held_back_follow_from_its_interval():
    """Of few seeds, it extends more than two standard errors."""
    missed = Estimate(0.06, -0.03, 0.15, 100, standard_error=0.03, seed_error=0.01)
    found = judge(Figures(around(0.5), around(0.5), missed, around(0.0), around(0.3), around(0.4)))
    assert found.name == "unclear"
    assert found.samples == pytest.approx(267, abs=1)  # 100 · 0.0008 / (0.02² - 0.01²)


def after_ddp(rank, world, folder):
    """What a checkup says while the ranks' group exists, and what it finds without it."""
    train, val = (DataLoader(data(60, seed, plain=2, noise=0), 20) for seed in (1, 2))
    torch.manual_seed(0)
    model = Fusion(("plain", "noise"))
    initial = copy.deepcopy(model.state_dict())
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    for batch in train:
        output, target = forward(parallel, batch)
        nn.functional.cross_entropy(output.logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    def look(model):
        return evenly.checkup(
            model, forward, train, val, model.encoders,
            initial=initial, optimizer=optimizer, epochs=1, progress=False,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"2 ranks exists\. After training, call torch\.distrib"):
        look(parallel.module)
    distributed.destroy_process_group()
    found = look(parallel.module).verdict if rank == 0 else None
    # The end of `on_ranks` needs a group.
    distributed.init_process_group("gloo", f"file://{folder}/again", rank=rank, world_size=world)
    return found


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_after_ddp_one_rank_calls_it_once_the_group_has_ended(tmp_path):
    found, none = on_ranks(after_ddp, tmp_path, str(tmp_path))
    assert found.keys() == {"plain", "noise"}
    assert none is None
