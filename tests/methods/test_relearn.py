import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

import evenly
from evenly import Relearn
from support import Toy, forward, loaders, net, sgd, train, weights
from unchecked import error_of


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def one_number(model, batch):
    output, target = forward(model, batch)
    return evenly.Output(output.logits[:, :1], output.features), target


class TestRelearn:
    def test_the_papers_schedule(self):
        """After the epochs with 0-based number 20, 40 and 60 of 90."""
        method = Relearn(net().encoders)
        assert [epoch for epoch in range(90) if method.is_due(epoch)] == [21, 41, 61]

    def test_the_first_epoch_may_be_named(self):
        """every=4 acts before epochs 5 and 9; whoever means 4 and 8 says so."""
        encoders = net().encoders
        assert list(Relearn(encoders, every=4, times=2).schedule) == [5, 9]
        method = Relearn(encoders, every=4, first=4, times=2)
        assert list(method.schedule) == [4, 8]
        assert [epoch for epoch in range(20) if method.is_due(epoch)] == [4, 8]
        assert list(Relearn(encoders, times=0).schedule) == []

    def test_it_acts_before_the_epochs_of_the_schedule(self):
        model = net()
        method = Relearn(model.encoders, every=2, first=1, times=2, restarts=2)
        train(model, method, sgd(model), 5)
        assert list(method.history) == list(method.schedule) == [1, 3]

    def test_one_event_by_hand(self):
        """Weights, gap and strength of one re-learning, worked out from its parts."""
        model = net()
        method = Relearn(model.encoders, every=1, times=1, strength=2.0, restarts=3)
        initial = {name: snapshot(encoder) for name, encoder in model.encoders.items()}
        train(model, method, sgd(model), 2)
        probe = evenly.Probe(model, forward, *loaders())
        found = evenly.diagnose(probe.features("train"), probe.features("val"), restarts=3)
        before = {name: snapshot(encoder) for name, encoder in model.encoders.items()}
        head = snapshot(model.head)
        method.before_epoch(2, probe)
        for name, encoder in model.encoders.items():
            strength = math.tanh(2.0 * abs(found.train[name] - found.val[name]))
            assert method.history[2][name]["strength"] == pytest.approx(strength)
            for key, p in encoder.named_parameters():
                expected = (1 - strength) * before[name][key] + strength * initial[name][key]
                torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(p, head[key]) for key, p in model.head.named_parameters())
        assert float(method.metrics["gap/a"]) == pytest.approx(found.gap["a"])

    @pytest.mark.slow
    def test_a_stable_gap_that_is_not_sure_leaves_the_weights_alone(self):
        """Toy rows are noise: 37 and 18 of them show no gap beyond three errors."""
        model = net()
        method = Relearn(model.encoders, every=1, times=1, gap="stable", restarts=1)
        train(model, method, sgd(model), 2)
        before = weights(model)
        method.before_epoch(2, evenly.Probe(model, forward, *loaders()))
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())
        assert method.history[2]["a"]["error"] == method.diagnosis.standard_error["a"] > 0
        assert method.history[2]["a"]["strength"] == 0.0

    @pytest.mark.parametrize(("rank", "strength", "times"), [(0, 3.0, 1), (1, 3.0, 0), (0, 0.0, 0)])
    def test_a_gap_that_may_not_be_real_is_logged_once(
        self, rank, strength, times, monkeypatch, caplog
    ):
        """Each of two re-learnings has gaps of 0.02 with errors of 0.03."""
        caplog.set_level("WARNING", "evenly.methods.relearn")  # a run of the lab quietens it
        model = net()
        gap, error = (dict.fromkeys(model.encoders, value) for value in (0.02, 0.03))
        found = evenly.Diagnosis(gap, gap, gap, error, gap, gap, notes=("Labels are cut.",))
        monkeypatch.setattr("evenly.methods.relearn.diagnose", lambda *_, **__: found)
        monkeypatch.setattr("evenly.methods.relearn.distributed.rank", lambda: rank)
        method = Relearn(model.encoders, every=1, times=2, strength=strength)
        train(model, method, sgd(model), 4)
        assert list(method.history) == [2, 3]
        text = (
            "Relearn, before epoch 2: The gap of 'a' and 'aa' is no larger than its error, a lower "
            "bound: take gap='stable', or more validation samples. Later re-learnings are not "
            "reported; see `history`."
        )
        assert caplog.messages == [text] * times

    def test_it_happens_once_for_an_epoch(self):
        """A loop that is resumed within an epoch calls before_epoch for it again."""
        model = net()
        method = Relearn(model.encoders, every=1, times=1)
        train(model, method, sgd(model), 3)
        before = weights(model)
        method.before_epoch(2, evenly.Probe(model, forward, *loaders()))
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())

    def test_initial_weights_are_taken_in_the_first_epoch_not_before(self):
        """Each rank draws its own until the ranks are synchronised."""
        model = net()
        method = Relearn(model.encoders)
        assert method.initial is None
        nn.init.constant_(model.encoders["a"][0].weight, 0.5)
        method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
        assert torch.equal(method.initial["a"]["0.weight"], torch.full((4, 1, 3), 0.5))

    def test_moments_kept_or_cleared(self):
        def momenta(moments):
            model = net()
            optimizer = sgd(model)
            method = Relearn(model.encoders, every=1, times=1, moments=moments, optimizer=optimizer)
            train(model, method, optimizer, 2)
            head = optimizer.state[model.head.linear.weight]["momentum_buffer"].clone()
            method.before_epoch(2, evenly.Probe(model, forward, *loaders()))
            assert torch.equal(optimizer.state[model.head.linear.weight]["momentum_buffer"], head)
            return [len(optimizer.state[p]) for p in model.encoders.parameters()]

        assert all(momenta("kept"))
        assert not any(momenta("cleared"))

    def test_batchnorm_kept_or_reestimated(self):
        def statistics(batchnorm):
            model = net()
            method = Relearn(model.encoders, every=1, times=1, batchnorm=batchnorm)
            train(model, method, sgd(model), 2)
            before = model.encoders["a"][1].running_mean.clone()
            method.before_epoch(2, evenly.Probe(model, forward, *loaders()))
            return before, model.encoders["a"][1].running_mean

        assert torch.equal(*statistics("kept"))
        assert not torch.equal(*statistics("reestimated"))

    def test_reestimation_with_a_last_batch_of_one(self):
        """37 rows in batches of 12: BatchNorm over vectors can make nothing of the last."""
        model = net()
        model.encoders["a"].append(nn.BatchNorm1d(6))
        method = Relearn(model.encoders, every=1, times=1, batchnorm="reestimated", restarts=2)
        train_loader = DataLoader(Toy(37), 12, drop_last=True)
        probe = evenly.Probe(model, forward, train_loader, loaders()[1])
        for epoch in range(3):
            method.before_epoch(epoch, probe)
        assert 2 in method.history
        assert model.encoders["a"][1].momentum == 0.1

    def test_initial_state_from_a_file(self, tmp_path):
        other = net(seed=5)
        states = {name: encoder.state_dict() for name, encoder in other.encoders.items()}
        torch.save(states, tmp_path / "pretrained.pt")
        model = net()
        method = Relearn(model.encoders, initial=tmp_path / "pretrained.pt", every=1)
        method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
        assert torch.equal(method.initial["a"]["0.weight"], other.encoders["a"][0].weight)

    @pytest.mark.parametrize(
        ("criterion", "ignored"),
        [
            (None, -100),
            (nn.CrossEntropyLoss(ignore_index=2), 2),
            (partial(nn.functional.cross_entropy, ignore_index=-1), -1),
            (lambda logits, y: nn.functional.cross_entropy(logits, y, ignore_index=255), 255),
        ],
    )
    def test_samples_without_a_label_count_in_no_diagnosis(self, criterion, ignored):
        def diagnosed(keep):
            model = net()
            splits = [Toy(36, seed=1), Toy(18, seed=2)]
            for split in splits:
                mark = torch.arange(len(split)) % 4 == 1
                split.target = torch.where(mark, ignored, torch.arange(len(split)) % 2)
                if not keep:
                    split.target = split.target[~mark]
                    split.inputs = {name: x[~mark] for name, x in split.inputs.items()}
            probe = evenly.Probe(model, forward, *(DataLoader(split, 8) for split in splits))
            method = Relearn(model.encoders, every=1, times=1, criterion=criterion, gap="shared")
            for epoch in (0, 2):
                method.before_epoch(epoch, probe)
            return method.history[2]

        with_them, without = diagnosed(True), diagnosed(False)
        for name in with_them:
            assert with_them[name] == pytest.approx(without[name])

    def test_whole_numbers_to_regress_on(self):
        """They are cut into bins as floats are, whichever of them the validation split lacks."""

        def diagnosed(dtype):
            model = net()
            splits = [Toy(36, seed=1), Toy(18, seed=2)]
            for split in splits:
                split.target = (torch.arange(len(split)) * 7 % 31 - 9).to(dtype)
            probe = evenly.Probe(model, one_number, *(DataLoader(split, 8) for split in splits))
            method = Relearn(model.encoders, every=1, times=1, criterion=nn.MSELoss())
            for epoch in (0, 2):
                method.before_epoch(epoch, probe)
            assert "10 equal-count bins" in str(method.diagnosis)
            return method.history[2]

        assert diagnosed(torch.int64) == diagnosed(torch.float32)

    @pytest.mark.parametrize("count", [6, 20])
    def test_a_split_that_is_no_good_is_refused_before_training(self, count):
        model = net()
        splits = [Toy(400, seed=1), Toy(count, seed=2)]
        splits[0].target = torch.randn(400) if count == 6 else torch.arange(400) % 2.0
        splits[1].target = splits[0].target[:count] if count == 6 else torch.zeros(count)
        probe = evenly.Probe(model, one_number, *(DataLoader(split, 8) for split in splits))
        with pytest.raises(ValueError, match=r"samples than clusters|every target of the valid"):
            Relearn(model.encoders).before_epoch(0, probe)

    def test_moments_of_an_optimizer_that_trains_another_model(self):
        optimizer = torch.optim.Adam(net().parameters())
        with pytest.raises(
            ValueError, match=r"Relearn: the optimiser leaves out 6 of the 6 .* 'a'"
        ):
            Relearn(net().encoders, moments="cleared", optimizer=optimizer)

    def test_a_small_sample_is_enough_for_one_logit(self):
        model = net()
        splits = [Toy(60, seed=1), Toy(18, seed=2)]
        for split in splits:
            split.target = torch.arange(len(split)) % 2.0
        probe = evenly.Probe(model, one_number, *(DataLoader(split, 8) for split in splits))
        Relearn(model.encoders, sample=40).before_epoch(0, probe)

    def test_one_value_to_regress_on_is_refused_before_training(self):
        model = net()
        splits = [Toy(36, seed=1), Toy(18, seed=2)]
        for split in splits:
            split.target = torch.full((len(split),), 2.5)
        probe = evenly.Probe(model, one_number, *(DataLoader(split, 8) for split in splits))
        with pytest.raises(ValueError, match=r"every target of the training split is 2\.5"):
            Relearn(model.encoders).before_epoch(0, probe)

    def test_an_encoder_with_adapters_on_a_quantised_base(self):
        """The product of the adapter's factors goes to (1 - α) of itself; integers stay."""

        class Adapted(nn.Module):
            def __init__(self):
                super().__init__()
                stream = torch.Generator().manual_seed(0)
                base = torch.randint(-127, 127, (6, 5), dtype=torch.int8, generator=stream)
                self.base = nn.Parameter(base, requires_grad=False)
                self.lora_A = nn.Parameter(torch.randn(2, 5, generator=stream))
                self.lora_B = nn.Parameter(torch.zeros(6, 2))

            def forward(self, x):
                return x.flatten(1) @ (self.base.float() / 127 + self.lora_B @ self.lora_A).T

        model = net()
        model.encoders["aa"] = Adapted()
        method = Relearn(model.encoders, every=1, times=1, restarts=2)
        train(model, method, sgd(model), 2)
        other = Relearn(model.encoders, every=1, times=1, restarts=2)
        other.load_state_dict(method.state_dict())
        encoder = model.encoders["aa"]
        before = encoder.lora_B @ encoder.lora_A
        other.before_epoch(2, evenly.Probe(model, forward, *loaders()))
        strength = other.history[2]["aa"]["strength"]
        assert 0.01 < strength < 0.99
        torch.testing.assert_close(encoder.lora_B @ encoder.lora_A, (1 - strength) * before)
        assert "base" not in other.initial["aa"]

    def test_a_state_holds_the_vectors_of_spectral_norm(self):
        model = net()
        layer = parametrizations.spectral_norm(model.encoders["a"][5])
        method = Relearn(model.encoders)
        method.before_epoch(0, evenly.Probe(model, forward, *loaders()))
        u = method.state_dict()["initial"]["a"]["5.parametrizations.weight.0._u"]
        assert torch.equal(u, layer.parametrizations.weight[0]._u)

    def test_some_modalities_only(self):
        model = net()
        method = Relearn({"a": model.encoders["a"]}, every=1, times=1)
        train(model, method, sgd(model), 3)
        assert list(method.history[2]) == ["a"]


class TestMessages:
    def test_no_probe(self):
        with pytest.raises(ValueError, match=r"found no probe. Pass before_epoch\(epoch, evenly"):
            Relearn(net().encoders).before_epoch(0)

    def test_resumed_without_its_state(self):
        model = net()
        method = Relearn(model.encoders)
        with pytest.raises(RuntimeError, match=r"first epoch is 5.*load_state_dict"):
            method.before_epoch(5, evenly.Probe(model, forward, *loaders()))

    def test_other_names_in_the_forward_pass(self):
        model = net()
        method = Relearn({"sound": model.encoders["a"]})
        with pytest.raises(ValueError, match=r"encoder 'sound'.*features of \['a', 'aa'\]"):
            method.before_epoch(0, evenly.Probe(model, forward, *loaders()))

    def test_what_cannot_be_pulled_back_is_said_before_training(self):
        model = net()
        model.encoders["aa"].far = nn.Parameter(torch.eye(2).to_sparse())
        with pytest.raises(ValueError, match="'far' of the encoder 'aa' is trained and sparse"):
            Relearn(model.encoders).before_epoch(0, evenly.Probe(model, forward, *loaders()))

    def test_diverged_before_training(self):
        model = net()
        nn.init.constant_(model.encoders["aa"][5].bias, math.inf)
        method = Relearn(model.encoders)
        with pytest.raises(ValueError, match="'aa' are NaN or infinite in row 0 of the training"):
            method.before_epoch(0, evenly.Probe(model, forward, *loaders()))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"every": 0}, "'every' must be at least 1; found 0"),
            ({"first": 0}, "'first' must be at least 1; found 0"),
            ({"times": -1}, "'times' must be not negative; found -1"),
            ({"restarts": 0}, "'restarts' must be at least 1; found 0"),
            ({"strength": -1.0}, r"'strength' must be finite and not negative; found -1\.0"),
            ({"strength": math.nan}, "'strength' must be finite and not negative; found nan"),
            ({"moments": "cleared"}, "needs the optimizer"),
        ],
    )
    def test_settings(self, setting, message):
        with pytest.raises(ValueError, match=message):
            Relearn(net().encoders, **setting)

    def test_words_that_are_no_choice(self):
        """In a process of its own, where annotations are not checked, as a user's is."""
        for setting, message in (
            ("gap='mine'", "unknown gap 'mine'. Choose from: paper, matched, shared, stable."),
            ("moments='new'", "'moments' must be 'kept' or 'cleared'; found 'new'"),
            ("batchnorm='new'", "'batchnorm' must be 'kept' or 'reestimated'; found 'new'"),
        ):
            code = (
                f"import torch, evenly; evenly.Relearn({{'a': torch.nn.Linear(1, 1)}}, {setting})"
            )
            assert message in error_of(code)

    def test_initial_without_a_modality(self):
        with pytest.raises(ValueError, match=r"hold \['a'\], but not 'aa'"):
            Relearn(net().encoders, initial={"a": snapshot(net().encoders["a"])})

    def test_what_would_fail_at_the_first_re_learning_is_said_before_training(self):
        class Lacking(Toy):
            def __init__(self):
                super().__init__(18)
                self.target = self.target % 2

        model = net()
        probe = evenly.Probe(model, forward, loaders()[0], DataLoader(Lacking(), 8))
        with pytest.raises(ValueError, match="class 2 is missing from the validation split"):
            Relearn(model.encoders).before_epoch(0, probe)

    @pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
    def test_a_column_of_targets_is_one_for_each_sample(self, kind):
        """As the losses of one output want it, which would add up to pairs otherwise."""

        def column(model, batch):
            output, target = forward(model, batch)
            return output, (target % 2)[:, None].to(kind)

        def flat(model, batch):
            output, target = column(model, batch)
            return output, target[:, 0].long()

        found = []
        for look in (column, flat):
            torch.manual_seed(0)
            model = net()
            method = Relearn(model.encoders, every=1, first=1, times=1, restarts=2)
            for epoch in range(2):
                method.before_epoch(epoch, evenly.Probe(model, look, *loaders()))
            found.append(method.history[1])
        assert found[0] == found[1]

    def test_several_targets_a_sample_are_told_before_training(self):
        def look(model, batch):
            output, target = forward(model, batch)
            return output, torch.stack([target, target], 1).float()

        model = net()
        with pytest.raises(ValueError, match=r"found targets of shape .36, 2. that are not 0"):
            Relearn(model.encoders).before_epoch(0, evenly.Probe(model, look, *loaders()))

    @pytest.mark.parametrize("kind", [torch.float32, torch.int64])
    def test_several_numbers_a_sample(self, kind):
        """Whole ones, too: their mean purity, which decides the strength."""

        def look(model, batch):
            output, target = forward(model, batch)
            logits = output.logits[:, :2]
            return evenly.Output(logits, output.features), torch.stack(
                [target, 10 * target + batch[-1] % 2], 1
            ).to(kind)

        model = net()
        method = Relearn(model.encoders, every=1, first=1, times=1, criterion=nn.L1Loss())
        probe = evenly.Probe(model, look, *loaders())
        for epoch in range(2):
            method.before_epoch(epoch, probe)
        splits = [probe.features(split) for split in ("train", "val")]
        for name in model.encoders:
            alone = [
                evenly.diagnose(
                    *(replace(x, target=x.target[:, column].float()) for x in splits)
                ).train[name]
                for column in (0, 1)
            ]
            assert method.history[1][name]["train"] == pytest.approx(sum(alone) / 2)

    def test_a_regression_target_that_is_no_number(self):
        class Values(Toy):
            def __init__(self):
                super().__init__(36)
                self.target = torch.linspace(0, 1, 36)
                self.target[7] = math.nan

        model = net()
        probe = evenly.Probe(model, forward, DataLoader(Values(), 8), DataLoader(Values(), 8))
        with pytest.raises(ValueError, match="a target of the training split is NaN"):
            Relearn(model.encoders).before_epoch(0, probe)

    def test_lazy_layers(self):
        encoders = nn.ModuleDict({"a": nn.LazyLinear(3)})
        with pytest.raises(RuntimeError, match=r"encoder 'a' has lazy layers.*Pass one batch"):
            Relearn(encoders).before_epoch(0)

    @pytest.mark.parametrize("strength", [0.0, 3.0])
    def test_the_probe_is_missed_at_once(self, strength):
        with pytest.raises(ValueError, match="found no probe"):
            Relearn(net().encoders, strength=strength).before_epoch(0)

    def test_a_second_training_needs_a_method_of_its_own(self):
        model = net()
        method = Relearn(model.encoders, every=1, times=1, restarts=2)
        train(model, method, sgd(model), 3)
        with pytest.raises(RuntimeError, match=r"has reached epoch 2.*Make a new one"):
            train(model, method, sgd(model), 3)

    def test_a_state_of_another_architecture(self):
        model, other = net(), net()
        other.encoders["aa"][5] = nn.Linear(20, 9)
        method, foreign = Relearn(model.encoders), Relearn(other.encoders, times=0)
        foreign.before_epoch(0)
        with pytest.raises(ValueError, match=r"encoder 'aa' hold '5\.weight' of shape"):
            method.load_state_dict(foreign.state_dict())

    def test_encoders_that_are_no_mapping(self):
        found = error_of("import torch, evenly; evenly.Relearn([torch.nn.Linear(1, 1)])")
        assert "TypeError: encoders are given by modality" in found

    def test_no_encoders(self):
        with pytest.raises(ValueError, match="Relearn needs the encoders by modality"):
            Relearn({})


def test_a_state_is_a_snapshot():
    model = net()
    method = Relearn(model.encoders, every=1, times=2, restarts=2)
    train(model, method, sgd(model), 3)
    state = method.state_dict()
    train(model, method, sgd(model), 4, start=3)
    assert list(state["history"]) == [2]
    assert list(method.history) == [2, 3]


def test_resume_within_the_history():
    """The initial weights of a resumed run are those of the first start, not of the resume."""
    model = net()
    method = Relearn(model.encoders, every=1, times=2, restarts=2)
    start = {name: snapshot(encoder) for name, encoder in model.encoders.items()}
    train(model, method, sgd(model), 3)
    fresh = Relearn(net(seed=9).encoders, every=1, times=2)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.initial["aa"]["5.weight"], start["aa"]["5.weight"])
    assert fresh.history == method.history
