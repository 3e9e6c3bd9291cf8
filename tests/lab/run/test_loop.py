"""What a run trains with: each option alone, taken up after a kill, and on two processes."""

import csv
import math
from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
import torch

from evenly.data import Data, load, save_npz
from evenly.lab.many.engine import Listed, carry
from evenly.lab.many.job import Job, outcome
from evenly.lab.many.local import Local
from evenly.lab.run import loop, run
from evenly.lab.run.build import build_model, build_optimizer
from evenly.lab.run.evaluation import Evaluation
from evenly.lab.run.hold import Hold
from evenly.lab.run.logs import Logs, RunLog
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place
from evenly.lab.run.prepare import prepare
from evenly.lab.run.record import Record
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from evenly.lab.statistics.tables import read_results

DATA = "synthetic(train=96,val=62,test=61,classes=3,information=2)"
TRAINING = Training(
    data=DATA, epochs=5, diagnose_every=0, width=8, lr=0.05, batch_size=32, precision="32"
)
OPTIONS = {
    "cosine": {"optimizer": "adamw", "schedule": "cosine", "warmup": 2},
    "plateau": {"optimizer": "rmsprop", "schedule": "plateau", "lr_step": 1},
    "muon": {"optimizer": "muon", "lr_scale": {"m1": 0.1}, "clip": 0.5},
    "accumulate": {"accumulate": 3, "batch_size": 16, "schedule": "cosine"},
    "ema": {"ema": 0.9, "clip": 0.5},
    "sgd": {"optimizer": "sgd(nesterov=true)", "clip": 0.5, "patience": 1, "lr_step": 2},
}


def weights(folder, name="last"):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_what_lacks_the_only_modality_of_a_run_gets_the_commonest_class():
    """Not the first one, at which the zeros of its logits would point."""
    target = torch.arange(30) % 3 > 0
    rows = dict.fromkeys(("train", "val", "test"), torch.arange(30))
    here = torch.arange(30) < 10
    data = Data("mine", {"x": torch.zeros(30, 2), "y": torch.zeros(30, 2)}, target.long(), rows,
                ["no", "yes"], present={"x": here})  # fmt: skip
    place = Place(torch.device("cpu"), "32")
    parts = Parts.of(Cell(TRAINING, "unimodal(modality=x)", 0), data, place)
    found = loop.evaluated(parts, "val").predictions()["probabilities"]
    assert found[~here].argmax(1).tolist() == [1] * 20
    assert found[here].allclose(parts.model({"x": torch.zeros(10, 2)}).logits.softmax(1))


def test_it_counts_alike_in_training_and_validation(tmp_path):
    """Both splits are the same samples, and the rate is too small to change anything."""
    target = torch.arange(30) % 3 > 0
    rows = dict.fromkeys(("train", "val", "test"), torch.arange(30))
    x = torch.arange(60.0).view(30, 2)
    data = Data("mine", {"x": x, "y": x}, target.long(), rows, ["no", "yes"],
                present={"x": torch.arange(30) < 10})  # fmt: skip
    training = replace(TRAINING, epochs=1, lr=1e-12)
    run_cell(Cell(training, "unimodal(modality=x)", 0), tmp_path, data=data)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["train_accuracy"]) == pytest.approx(float(row["val_accuracy"]))


class Killed(Exception):
    """Stands for a signal after an epoch."""


@pytest.mark.parametrize("options", OPTIONS)
def test_taken_up_after_each_epoch_it_ends_as_without_a_break(options, tmp_path):
    cell = Cell(
        replace(TRAINING, checkpoint_every=0.0, **OPTIONS[options]), "relearn(every=1)+ogm", 0
    )
    whole = run_cell(cell, tmp_path / "whole")

    def kill(epoch, accuracy):
        raise Killed

    for _ in range(whole.epochs):
        with pytest.raises(Killed):
            run_cell(cell, tmp_path / "run", kill)
    again = run_cell(cell, tmp_path / "run")
    assert again.metrics == whole.metrics
    assert (again.best_epoch, again.epochs, again.steps) == (
        whole.best_epoch, whole.epochs, whole.steps
    )  # fmt: skip
    for file in ("last", "best"):
        theirs = weights(tmp_path / "whole", file)
        for name, value in weights(tmp_path / "run", file).items():
            assert torch.equal(value, theirs[name])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize("options", OPTIONS)
def test_two_processes(options, tmp_path):
    training = replace(TRAINING, **OPTIONS[options])
    strategies = ["ddp"] if options == "muon" else ["ddp", "fsdp"]  # whose products are in bf16
    jobs = [Job(Cell(training, "joint", 0), tmp_path / "one")]
    jobs += [
        Job(Cell(replace(training, devices=2, strategy=each), "joint", 0), tmp_path / each)
        for each in strategies
    ]
    source = Listed(jobs)
    carry(source, Local(1))
    assert source.failures == {}
    one = Result.read(jobs[0].folder)
    for job in jobs[1:]:
        two = Result.read(job.folder)
        assert (one.best_epoch, one.epochs, one.steps) == (two.best_epoch, two.epochs, two.steps)
        for file in ("last", "best"):
            theirs = weights(jobs[0].folder, file)
            for name, value in weights(job.folder, file).items():
                torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4)


def test_gradients_are_clipped_after_the_method(tmp_path):
    """One step goes as far as the norm times the rate, whatever the method multiplies by."""
    training = replace(
        TRAINING, epochs=1, batch_size=96, lr=0.5, optimizer="sgd(momentum=0)", weight_decay=0.0
    )
    for clip, is_cut in ((1e-3, True), (1e6, False)):
        cell = Cell(replace(training, clip=clip), "ogm(alpha=3)", 0)
        run_cell(cell, tmp_path / str(clip))
        before = build_model(load(DATA), cell).state_dict()
        after = weights(tmp_path / str(clip))
        moved = torch.cat([(after[name] - x).flatten() for name, x in before.items()]).norm()
        assert (float(moved) == pytest.approx(5e-4, rel=1e-3)) is is_cut


def test_a_run_that_diverges_fails_whether_or_not_it_is_diagnosed(tmp_path):
    """It had a good epoch before; its last logits are NaN, which scores would take for class 0."""
    cell = Cell(replace(TRAINING, epochs=2), "joint", 0)
    stepped = Record.stepped

    def diverges(record):
        stepped(record)
        if record.epoch:
            next(record.parts.model.head.parameters()).data.fill_(math.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "stepped", diverges)
        with pytest.raises(ValueError, match=r"logits of the validation split .* has diverged"):
            run_cell(cell, tmp_path)
    assert Result.read(tmp_path) is None


def test_operations_of_a_method_that_takes_each_batch_twice(tmp_path):
    """Two batches; a pass multiplies two rows of three by a matrix, in turn of five and of four."""
    cell = Cell(TRAINING, "mla", 0)
    parts = Parts.of(cell, load(DATA), Place(torch.device("cpu"), "32"))
    log = RunLog(Logs(), cell, tmp_path, {})
    record = Record(parts, log, Hold(tmp_path), lambda epoch, value: None, {})
    record.begin()
    for number in range(4):
        with record.step(number):
            torch.ones(2, 3) @ torch.ones(3, 4 if number % 2 else 5)
        record.stepped()
    record.trained()
    assert record.flops == 2 * (2 * 2 * 3 * 5 + 2 * 2 * 3 * 4)
    assert record.steps == 4


class TestMemory:
    def test_a_gpu_begins_each_run_anew(self, monkeypatch):
        called = []
        for name in ("init", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *of, name=name: called.append((name, *of)))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
        place = Place(torch.device("cuda", 1), "32")
        run._begin_peak(place)
        assert called == [("init",), ("reset_peak_memory_stats", place.device)]
        assert run._peak_memory_mb(place) == 3.0

    def test_of_a_process_that_does_other_runs_too_there_is_none(self):
        place = Place(torch.device("cpu"), "32")
        assert run._peak_memory_mb(place) > 10
        assert run._peak_memory_mb(replace(place, is_reused=True)) is None

    def test_a_table_and_a_log_go_without_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "_peak_memory_mb", lambda place: None)
        run_cell(Cell(replace(TRAINING, epochs=1), "joint", 0), tmp_path / "runs" / "joint-0")
        (tmp_path / "config.yaml").write_text("methods: [joint]\n")
        cost = [row["metric"] for row in read_results(tmp_path) if row["split"] == "train"]
        assert cost == ["seconds", "steps", "flops"]


class TestPatience:
    def cell(self, **changes):
        return Cell(replace(TRAINING, epochs=12, patience=2, **changes), "joint", 0)

    @pytest.fixture
    def flat(self, monkeypatch):
        """Epochs that bring nothing after the third."""
        found = loop._measured

        def measured(parts, record):
            return found(parts, record) | {"val_accuracy": min(record.epoch, 2) / 10}

        monkeypatch.setattr(loop, "_measured", measured)

    def test_a_run_ends_so_many_epochs_after_its_best(self, flat, tmp_path):
        job = Job(self.cell(checkpoint_every=1e9), tmp_path / "run")
        result = run_cell(job.cell, job.folder)
        assert (result.best_epoch, result.epochs, result.steps) == (2, 5, 15)
        assert outcome(job).startswith("best epoch 2, ended after 5 of 12, validation 0.")

    def test_the_epoch_at_which_a_run_ends_is_diagnosed(self, tmp_path, monkeypatch):
        found, values = Evaluation.metrics, chain([0.0, 0.1], repeat(0.2))
        monkeypatch.setattr(
            Evaluation, "metrics", lambda self: found(self) | {"accuracy": next(values)}
        )
        run_cell(self.cell(diagnose_every=3), tmp_path)
        with (tmp_path / "metrics.csv").open() as file:
            diagnosed = [row["epoch"] for row in csv.DictReader(file) if row["gap/m1"]]
        assert diagnosed == ["0", "3", "4"]

    def test_a_run_that_had_ended_stays_so(self, flat, tmp_path):
        """Killed before its result was written."""
        run_cell(self.cell(), tmp_path)
        (tmp_path / "result.json").unlink()
        result = run_cell(self.cell(), tmp_path, lambda *news: pytest.fail("it trains again"))
        assert result.epochs == 5


class TestRates:
    def test_by_modality(self):
        cell = Cell(replace(TRAINING, lr_scale={"m1": 0.1}), "joint", 0)
        model = build_model(load(DATA), cell)
        for name in ("sgd", "muon"):
            optimizer = build_optimizer(model, replace(cell.training, optimizer=name))
            rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
            assert len(rates) == len(list(model.parameters()))
            slow = set(model.encoders["m1"].parameters())
            assert all(rates[p] == pytest.approx(0.005 if p in slow else 0.05) for p in rates)

    def test_a_method_multiplies_them(self):
        scales = {"m1": 0.1, "m2": 0.5}
        method = 'mslr(strategy=keep,rates={"m1": 4})'
        cell = Cell(replace(TRAINING, lr_scale=scales), method, 0)
        parts = Parts.of(cell, load(DATA), Place(torch.device("cpu"), "32"))
        found = {}

        def note(optimizer, *_):
            found.update({p: g["lr"] for g in optimizer.param_groups for p in g["params"]})

        parts.optimizer.register_step_pre_hook(note)
        parts.optimizer.step()
        for name, rate in {"m1": 0.05 * 0.1 * 4, "m2": 0.05 * 0.5}.items():
            for p in parts.model.encoders[name].parameters():
                assert found[p] == pytest.approx(rate)
        assert {found[p] for p in parts.model.head.parameters()} == {0.05}

    def test_a_modality_that_there_is_not(self):
        cell = Cell(replace(TRAINING, lr_scale={"m3": 0.1}), "joint", 0)
        with pytest.raises(ValueError, match="unknown modality 'm3' of --lr-scale"):
            build_model(load(DATA), cell)


class TestAccumulation:
    METHODS = ("joint", "relearn(every=1)", "ogm_ge", "mmpareto", "mla", "smv", "remix(warmup=1)")

    @pytest.mark.parametrize("method", METHODS)
    def test_passes_make_a_step_as_one_batch_does(self, method, tmp_path):
        """The last step of an epoch has fewer samples, and its last pass fewer still."""
        whole = run_cell(Cell(replace(TRAINING, batch_size=40), method, 0), tmp_path / "whole")
        passes = replace(TRAINING, batch_size=10, accumulate=4)
        parts = run_cell(Cell(passes, method, 0), tmp_path / "parts")
        assert (parts.steps, parts.best_epoch) == (whole.steps, whole.best_epoch)
        theirs = weights(tmp_path / "whole")
        for name, value in weights(tmp_path / "parts").items():
            torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("focal", [0.0, 2.0])
    def test_classes_may_have_weights(self, focal, tmp_path):
        """Passes hold unequal weights, and so shares of a step that are not those of samples."""
        stream = np.random.default_rng(0)
        target = np.tile(stream.permutation(np.repeat([0, 1, 2], [25, 10, 5])), 3)
        split = np.repeat([0, 1, 2], 40)
        arrays = {name: stream.normal(size=(120, 4)).astype("f4") for name in ("m1", "m2")}
        save_npz(tmp_path / "a.npz", target, split, arrays)
        training = replace(
            TRAINING, data=str(tmp_path / "a.npz"), class_weights="balanced", focal=focal, epochs=2
        )
        found = []
        for options in ({"batch_size": 20}, {"batch_size": 5, "accumulate": 4}):
            parts = Parts.of(
                Cell(replace(training, **options), "joint", 0),
                load(training.data),
                Place(torch.device("cpu"), "32"),
            )
            parts.begin(0)
            for share, batch in next(parts.steps(0)):
                output, labels = parts.forward(parts.model, batch)
                parts.method.backward(share * parts.method.loss(output, labels))
            found.append([p.grad for p in parts.model.parameters()])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)

    def test_passes_are_augmented_apart_and_a_last_one_of_one_is_left_out(self):
        training = replace(TRAINING, batch_size=19, accumulate=3)
        parts = Parts.of(
            Cell(training, "joint", 0), load(DATA), Place(torch.device("cpu"), "32")
        )  # 96 samples: 57, and 39 as 19, 19 and 1
        seen = [
            (parts.forward.step, share, len(batch["target"]))
            for passes in parts.steps(1)
            for share, batch in passes
        ]
        assert seen == [
            ((1, 0), 1 / 3, 19),
            ((1, 1), 1 / 3, 19),
            ((1, 2), 1 / 3, 19),
            ((1, 3), 0.5, 19),
            ((1, 4), 0.5, 19),
        ]
        assert parts.forward.step is None

    def test_methods_to_which_a_pass_is_a_batch(self):
        training = replace(TRAINING, accumulate=2)
        for method in ("pmr", "opm", "agm"):
            with pytest.raises(ValueError, match=f"{method} acts on each backward pass .* a batch"):
                prepare([Cell(training, method, 0)])
        _, notes = prepare([Cell(training, "qmf", 0)])
        assert any("qmf: compares samples" in note and "each pass" in note for note in notes)
