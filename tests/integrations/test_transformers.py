from dataclasses import replace

import pytest
import torch
import toy
from torch import nn
from toy import EPOCHS, METHODS, assert_same, net, raw_loop, sgd
from transformers import TrainerCallback, TrainingArguments

import evenly
from evenly.integrations.transformers import BalancedTrainer

NAMES = list(METHODS)
pytestmark = pytest.mark.filterwarnings("ignore:.*but this training ended after")


def collate(rows):
    left, right, target = zip(*rows, strict=True)
    inputs = {"left": torch.stack(left), "right": torch.stack(right)}
    return {**inputs, "labels": torch.stack(target)}


def forward(model, inputs):
    return model(inputs["left"], inputs["right"]), inputs["labels"]


def arguments(folder, **args):
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": toy.BATCH,
        "per_device_eval_batch_size": 8,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return TrainingArguments(str(folder), **{**settings, **args})


class SameOrder(BalancedTrainer):
    """Takes its batches in the raw loop's order."""

    def _get_train_sampler(self, *args):
        return toy.loaders(len(self.train_dataset))[0].sampler


def trainer(
    name,
    folder,
    kind=SameOrder,
    callbacks=(),
    eval_dataset="toy",
    samples=44,
    batch_size=toy.BATCH,
    **args,
):
    model = net()
    optimizer = sgd(model)
    return kind(
        method=METHODS[name](model.encoders),
        forward=forward,
        model=model,
        args=arguments(folder, per_device_train_batch_size=batch_size, **args),
        train_dataset=toy.dataset(samples, seed=1),
        eval_dataset=toy.dataset(21, seed=2) if eval_dataset == "toy" else eval_dataset,
        data_collator=collate,
        callbacks=list(callbacks),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_raw_loop_bit_for_bit(name, tmp_path):
    engine = trainer(name, tmp_path)
    engine.train()
    assert_same(engine.model, raw_loop(name)[0])


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_and_clipping_equal_the_raw_loop(name, tmp_path):
    engine = trainer(name, tmp_path, gradient_accumulation_steps=4, max_grad_norm=0.5)
    engine.train()
    model, _ = raw_loop(name, accumulate=4, clip=0.5, short_group=2)
    assert_close(engine.model, model)


def assert_close(actual, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(actual.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_hooks_come_once_each_in_order(tmp_path):
    engine = trainer("everything", tmp_path, num_train_epochs=2, gradient_accumulation_steps=4)
    engine.train()
    batch, step = ["loss", "backward"], ["step"]
    epoch = batch * 4 + step + batch * 2 + step  # 6 batches: 4 and the remaining 2
    assert engine.method.calls == ["epoch 0", *epoch, "epoch 1", *epoch]


def test_before_step_sees_gradients_before_clipping(tmp_path):
    seen = []
    for clip in (1e-6, 0):
        engine = trainer("everything", tmp_path, max_steps=1, max_grad_norm=clip)
        engine.train()
        seen.append(engine.method.gradients[0])
    assert torch.equal(*seen)


class Stop(TrainerCallback):
    """Ends the run after a step, as a kill would, once that step is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("step", [12, 18, 15, 19])  # two ends of epochs of 6 steps, two within
@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(name, step, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": step}
    trainer(name, tmp_path, callbacks=[Stop(step)], **saving).train()
    assert (tmp_path / f"checkpoint-{step}").is_dir()
    resumed = trainer(name, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed.model, raw_loop(name)[0])
    if name == "everything":
        assert resumed.method.epochs == list(range(EPOCHS))


class Numbered(toy.TensorDataset):
    """Rows that say which they are."""

    def __getitem__(self, i):
        return {**collate([super().__getitem__(i)]), "index": torch.tensor([i])}


def stacked(rows):
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def with_another(method):
    return evenly.Composed(method, evenly.Relearn(method.encoders, every=9))


@pytest.mark.parametrize(("step", "method"), [(12, with_another), (15, lambda method: method)])
def test_a_method_that_writes_the_order_has_its_sampler_used_and_resumes(step, method, tmp_path):
    def run(folder, *callbacks, resume=False, **args):
        seen = []

        def noting(model, inputs):
            if model.training:
                seen.append(inputs["index"].tolist())
            return forward(model, inputs)

        data = Numbered(*toy.dataset(44, seed=1).tensors)
        sampler = evenly.Resampler(data, seed=3)
        model = net()
        engine = BalancedTrainer(
            method=method(toy.Halves(model.encoders, sampler)),
            forward=noting,
            model=model,
            args=arguments(folder, num_train_epochs=4, **args),
            train_dataset=data,
            eval_dataset=Numbered(*toy.dataset(21, seed=2).tensors),
            data_collator=stacked,
            callbacks=list(callbacks),
        )
        engine.train(resume_from_checkpoint=resume)
        return engine, seen

    whole, order = run(tmp_path / "whole")
    for epoch in range(4):  # as many batches as ever, from half of the samples
        assert len({i for batch in order[6 * epoch : 6 * epoch + 6] for i in batch}) == 22
    run(tmp_path / "cut", Stop(step), save_strategy="steps", save_steps=step)
    resumed, rest = run(tmp_path / "cut", resume=True)
    assert rest == order[step:]
    assert_same(resumed.model, whole.model)


def test_refuses_a_second_owner_of_the_order(tmp_path, monkeypatch):
    def of(**settings):
        sampler = evenly.Resampler(toy.dataset(44, seed=1), **settings)
        return lambda model: toy.Halves(model.encoders, sampler)

    grouped = {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(ValueError, match="Halves decides on the order of the samples, and so does"):
        trainer("joint", tmp_path, kind=remaking(of()), **grouped)

    def two_ranks(trainer):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)

    monkeypatch.setattr(AsIf, "pretend", staticmethod(two_ranks))
    with pytest.raises(ValueError, match=r"among 2 ranks, .* num_replicas=1, rank=0"):
        trainer("joint", tmp_path, kind=remaking(of(num_replicas=2, rank=0), AsIf))
    trainer("joint", tmp_path, kind=remaking(of(num_replicas=1, rank=0), AsIf))


def test_state_in_the_checkpoint_loads_safely(tmp_path):
    engine = trainer("everything", tmp_path, num_train_epochs=2, save_strategy="epoch")
    engine.train()
    held = torch.load(tmp_path / "checkpoint-12" / "evenly.pt", weights_only=True)
    assert held["epoch"] == 1
    assert held["method"]["epochs"] == [0, 1]
    assert torch.equal(held["method"]["noise"], engine.method.noise.get_state())
    assert not list(tmp_path.glob("*/*.tmp"))


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    trainer("joint", tmp_path, num_train_epochs=1, save_strategy="epoch").train()
    (tmp_path / "checkpoint-6" / "evenly.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no 'evenly.pt', .* saved by another Trainer, or"
    ):
        trainer("joint", tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    trainer("joint", tmp_path, num_train_epochs=1, save_strategy="epoch").train()
    with pytest.raises(ValueError, match=r"OGMGE remembers .* saved by another method"):
        trainer("ogm_ge", tmp_path).train(resume_from_checkpoint=True)


def test_a_second_training_needs_a_new_method(tmp_path):
    engine = trainer("everything", tmp_path, num_train_epochs=1)
    engine.train()
    with pytest.raises(ValueError, match="this Everything remembers noise and scale and epochs of"):
        engine.train()
    with pytest.raises(ValueError, match="Make a new method for a new training"):
        trainer("everything", tmp_path, kind=remaking(engine.method)).train()
    forgetful = trainer("joint", tmp_path, num_train_epochs=1)
    forgetful.train()
    forgetful.train()


def remaking(method, base=SameOrder):
    """A Trainer with another method than the one it is given."""

    def kind(**kwargs):
        return base(**{**kwargs, "method": method})

    return kind


def test_a_method_given_as_a_function_is_made_anew_for_each_training(tmp_path):
    kind = remaking(lambda model: METHODS["everything"](model.encoders))
    engine = trainer("joint", tmp_path, kind=kind, num_train_epochs=1)
    first = engine.method
    engine.train()
    assert engine.method is first
    engine.train()
    assert first.epochs == engine.method.epochs == [0]
    assert engine.method is not first


def test_a_model_made_for_each_training_needs_a_method_made_of_it(tmp_path):
    def given(method):
        return BalancedTrainer(
            method=method,
            forward=forward,
            model_init=lambda: net(),
            args=arguments(tmp_path, num_train_epochs=3),
            train_dataset=toy.dataset(44, seed=1),
            eval_dataset=toy.dataset(21, seed=2),
            data_collator=collate,
        )

    with pytest.raises(ValueError, match=r"`model_init` makes a new model .* method=lambda model"):
        given(METHODS["ogm_ge"](net().encoders))
    engine = given(lambda model: METHODS["everything"](model.encoders))
    for _ in range(2):  # as in a search over hyper-parameters
        engine.train()
        assert engine.method.epochs == [0, 1, 2]
        mine = set(engine.method.encoders["left"].parameters())
        assert mine <= set(engine.model.parameters())
        assert engine.method.calls.count("step") == 18


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter([self.rows[i] for i in range(len(self.rows))])


class EpochStop(TrainerCallback):
    """Ends each epoch after four of its six batches."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step % 4 == 0


@pytest.mark.parametrize("case", ["stream of unknown length", "epochs cut short"])
def test_every_epoch_is_counted(case, tmp_path):
    cut = case == "epochs cut short"
    callbacks, args = ([EpochStop()], {"num_train_epochs": 3}) if cut else ([], {"max_steps": 18})
    engine = trainer("everything", tmp_path, BalancedTrainer, callbacks, **args)
    if not cut:
        engine.train_dataset = Stream(engine.train_dataset)
    engine.train()
    assert engine.method.epochs == [0, 1, 2]


def test_a_training_too_short_for_the_method_is_told_at_its_start_and_end(tmp_path, caplog):
    caplog.set_level(
        "INFO", "evenly.integrations.transformers"
    )  # a run of the lab may have quietened it
    kind = remaking(lambda model: evenly.Relearn(model.encoders))
    with pytest.warns(UserWarning, match=r"but this training ended after 2 epochs\. Train longer"):
        trainer("joint", tmp_path, kind=kind, num_train_epochs=2).train()
    when = "before epochs 21, 41 and 61 (counted from 0)"
    sentence = f"By its schedule, Relearn acts {when}, but this training has "
    assert sentence + "2 epochs." in caplog.messages


def test_a_training_begun_anew_for_want_of_memory_is_refused(tmp_path):
    engine = trainer("everything", tmp_path, auto_find_batch_size=True, num_train_epochs=3)
    calls = []

    def failing(model, inputs):
        calls.append(model.training)
        if calls.count(True) == 8:  # in epoch 1
            raise RuntimeError("CUDA out of memory.")
        return forward(model, inputs)

    engine.forward = failing
    with pytest.raises(ValueError, match=r"epoch 1 did not fit .* per_device_train_batch_size"):
        engine.train()


@pytest.mark.parametrize("look", ["inputs['labels']", "inputs.get('labels')"])
def test_predicts_data_without_labels(look, tmp_path):
    engine = trainer("ogm_ge", tmp_path)
    left, right, _ = engine.eval_dataset.tensors
    rows = [{"left": x, "right": y} for x, y in zip(left, right, strict=True)]
    engine.data_collator = lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
    engine.forward = lambda model, inputs: (
        model(inputs["left"], inputs["right"]),
        eval(look, {"inputs": inputs}),
    )
    found = engine.predict(rows)
    with torch.no_grad():
        expected = engine.model(left, right).logits
    torch.testing.assert_close(torch.tensor(found.predictions), expected)
    assert found.label_ids is None
    engine.forward = lambda model, inputs: (
        model(inputs["left"], inputs["right"]),
        inputs["labels"].long(),
    )
    with pytest.raises(ValueError, match=r"the data have no 'labels', and `forward` cannot"):
        engine.predict(rows)
    with pytest.raises(KeyError, match="right"):  # no label
        engine.predict([{"left": x} for x in left])


def test_evaluation_is_plain_and_leaves_the_method_alone(tmp_path):
    engine = trainer("everything", tmp_path, num_train_epochs=1)
    engine.train()
    engine.compute_metrics = lambda p: {"accuracy": float((p[0].argmax(1) == p[1]).mean())}
    calls = list(engine.method.calls)
    found = engine.evaluate()
    assert engine.method.calls == calls
    with torch.no_grad():
        left, right, target = engine.eval_dataset.tensors
        logits = engine.model(left, right).logits
    accuracy = (logits.argmax(1) == target).float().mean()
    assert found["eval_accuracy"] == pytest.approx(accuracy.item())
    loss = nn.functional.cross_entropy(logits, target)
    assert found["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_metrics_are_logged_beside_the_training_loss(tmp_path):
    engine = trainer("everything", tmp_path, num_train_epochs=1, logging_steps=2)
    engine.train()
    logged = [row for row in engine.state.log_history if "loss" in row]
    assert [row["method/scale"] for row in logged] == [pytest.approx(engine.method.scale)] * 3
    assert not any("method/scale" in row for row in engine.state.log_history if "loss" not in row)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_runs_features_and_loss_under_autocast(name, tmp_path):
    engine = trainer(name, tmp_path, bf16=True)
    seen = set()

    def noting(model, inputs):
        output, target = forward(model, inputs)
        seen.add((model.training, output.features["left"].dtype))
        return output, target

    engine.forward = noting
    engine.train()
    full, _ = raw_loop(name)
    assert seen >= {(True, torch.bfloat16)}
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    for mixed, plain in zip(engine.model.parameters(), full.parameters(), strict=True):
        assert mixed.dtype == torch.float32
        assert not torch.equal(mixed, plain)
        assert mixed.isfinite().all()


def test_bf16_equals_a_raw_loop_under_autocast(tmp_path):
    engine = trainer("joint", tmp_path, bf16=True)
    engine.train()
    model = net()
    optimizer = sgd(model)
    train, _ = toy.loaders()
    for epoch in range(EPOCHS):
        train.sampler.set_epoch(epoch)
        for batch in train:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output, target = toy.forward(model, batch)
                loss = nn.functional.cross_entropy(output.logits, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(engine.model, model)


def test_several_evaluation_sets_probe_the_first(tmp_path):
    sets = {"a": toy.dataset(21, seed=2), "b": toy.dataset(9, seed=5)}
    engine = trainer("everything", tmp_path, eval_dataset=sets)
    engine.train()
    assert_same(engine.model, raw_loop("everything")[0])


def test_padded_inputs_reach_forward_as_they_are(tmp_path):
    from evenly.data import Padded

    def padded(rows):
        batch = collate(rows)
        length = torch.full((len(rows),), 5)
        return {**batch, "left": Padded(batch["left"], length)}

    def unpack(model, inputs):
        assert isinstance(inputs["left"], Padded)
        return model(inputs["left"].values, inputs["right"]), inputs["labels"]

    engine = trainer("everything", tmp_path)
    engine.data_collator, engine.forward = padded, unpack
    engine.train()
    assert_same(engine.model, raw_loop("everything")[0])


def test_refuses_a_probing_method_without_an_evaluation_set(tmp_path):
    engine = trainer("relearn", tmp_path, eval_dataset=None)
    with pytest.raises(ValueError, match="Relearn looks at the validation split, but the Trainer"):
        engine.train()
    trainer("ogm_ge", tmp_path, eval_dataset=None, num_train_epochs=1).train()


def test_refuses_a_second_owner_of_the_loss(tmp_path):
    def kind(**kwargs):
        return BalancedTrainer(compute_loss_func=lambda outputs, labels: 0, **kwargs)

    with pytest.raises(ValueError, match=r"the loss comes from Method, so .* a `criterion`"):
        trainer("joint", tmp_path, kind=kind)


class AsIf(BalancedTrainer):
    """As if the machine were another: `pretend` changes the trainer before it is checked."""

    pretend = staticmethod(lambda trainer: None)

    def _check(self):
        self.pretend(self)
        super()._check()


def fp16(trainer):
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")


def deepspeed(trainer):
    trainer.is_deepspeed_enabled = True


def several_gpus(trainer):
    trainer.args._n_gpu = 2


@pytest.mark.parametrize(
    ("pretend", "message"),
    [
        (fp16, "Everything needs unscaled gradients, but in fp16"),
        (deepspeed, "Everything writes gradients, but DeepSpeed keeps copies"),
        (several_gpus, r"sees 2 GPUs in one process .* torchrun"),
    ],
)
def test_refuses_what_would_be_wrong(pretend, message, tmp_path, monkeypatch):
    monkeypatch.setattr(AsIf, "pretend", staticmethod(pretend))
    with pytest.raises(ValueError, match=message):
        trainer("everything", tmp_path, kind=AsIf)


def test_fp16_is_fine_where_gradients_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(AsIf, "pretend", staticmethod(fp16))
    trainer("relearn", tmp_path, kind=AsIf)


@pytest.mark.parametrize(
    ("fsdp2", "message"),
    [
        (False, r"whole parameters, but FSDP1 flattens them"),
        (True, r"Everything does not work on parameters that are sharded"),
    ],
)
def test_refuses_fsdp_where_the_method_cannot_work(fsdp2, message, tmp_path, monkeypatch):
    def fsdp(trainer):
        trainer.is_fsdp_enabled = True
        monkeypatch.setattr(type(trainer.accelerator), "is_fsdp2", fsdp2)

    monkeypatch.setattr(AsIf, "pretend", staticmethod(fsdp))
    monkeypatch.setattr(toy.Everything, "info", replace(toy.Everything.info, sharded=not fsdp2))
    with pytest.raises(ValueError, match=message):
        trainer("everything", tmp_path, kind=AsIf)


def test_refuses_a_partial_method_unless_ddp_knows(tmp_path, monkeypatch):
    def two_ranks(trainer):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)

    monkeypatch.setattr(AsIf, "pretend", staticmethod(two_ranks))
    monkeypatch.setattr(toy.Everything, "info", replace(toy.Everything.info, partial=True))
    with pytest.raises(ValueError, match="Set ddp_find_unused_parameters=True"):
        trainer("everything", tmp_path, kind=AsIf)
    trainer("everything", tmp_path, kind=AsIf, ddp_find_unused_parameters=True)


def test_refuses_a_method_that_repeats_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Everything, "repeats", 2)
    with pytest.raises(ValueError, match="takes each batch 2 times, which this Trainer does not"):
        trainer("everything", tmp_path)


def test_relearn_is_found_in_the_history(tmp_path):
    engine = trainer("relearn", tmp_path)
    engine.train()
    assert isinstance(engine.method, evenly.Relearn)
    assert list(engine.method.history) == [3, 5]
