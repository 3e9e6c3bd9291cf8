from collections import Counter

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Sampler
from toy import (
    BATCH,
    EPOCHS,
    METHODS,
    Everything,
    Halves,
    assert_same,
    dataset,
    forward,
    loaders,
    net,
    raw_loop,
    sgd,
)

import evenly
from evenly.methods import MLA
from evenly.nn import LateFusion

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*have no `val_dataloader`",
    "ignore:.*but this training ended after",
    "ignore:.*LeafSpec",  # Lightning's use of torch.utils._pytree
)


class Module(lightning.LightningModule):
    def __init__(self, name="joint"):
        super().__init__()
        self.net = net()
        self.method = METHODS[name](self.net.encoders)

    def forward(self, *inputs):
        return self.net(*inputs)

    def training_step(self, batch, batch_idx):
        return self.method.loss(*forward(self, batch))

    def validation_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        self.log("val_loss", nn.functional.cross_entropy(output.logits, target))

    def configure_optimizers(self):
        return sgd(self)


def trainer(module, folder, *callbacks, **settings):
    settings = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        **settings,
    }
    balance = evenly.Balance(module.method, forward)
    return lightning.Trainer(callbacks=[balance, *callbacks], **settings)


def fit(module, folder, *callbacks, ckpt=None, **settings):
    engine = trainer(module, folder, *callbacks, **settings)
    engine.fit(module, *loaders(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return engine


@pytest.mark.parametrize("name", METHODS)
def test_equals_the_raw_loop_bit_for_bit(name, tmp_path):
    module = Module(name)
    fit(module, tmp_path)
    model, _ = raw_loop(name)
    assert_same(module.net, model)


@pytest.mark.parametrize("name", ["everything", "ogm_ge"])
def test_accumulation_and_clipping_equal_the_raw_loop(name, tmp_path):
    module = Module(name)
    fit(module, tmp_path, accumulate_grad_batches=4, gradient_clip_val=0.5)
    model, _ = raw_loop(name, accumulate=4, clip=0.5)
    assert_same(module.net, model)


def test_hooks_come_once_each_in_order(tmp_path):
    module = Module("everything")
    fit(module, tmp_path, max_epochs=2, accumulate_grad_batches=4)
    batch, step = ["loss", "backward"], ["step"]
    epoch = batch * 4 + step + batch * 2 + step  # 6 batches: 4 and the remaining 2
    assert module.method.calls == ["epoch 0", *epoch, "epoch 1", *epoch]


def test_before_step_sees_gradients_before_clipping(tmp_path):
    clipped, free = Module("everything"), Module("everything")
    fit(clipped, tmp_path, max_steps=1, gradient_clip_val=1e-6)
    fit(free, tmp_path, max_steps=1)
    assert torch.equal(clipped.method.gradients[0], free.method.gradients[0])


def test_validates_and_keeps_the_weights_that_before_epoch_left(tmp_path):
    """The best checkpoint holds what was validated, not what a later edit made of it."""
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{epoch}")
    module = Module("everything")
    seen = {}

    class Note(lightning.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            seen[trainer.current_epoch] = {k: v.clone() for k, v in module.state_dict().items()}

    fit(module, tmp_path, Note(), keep, max_epochs=3)
    for epoch, weights in seen.items():
        held = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(held[name], weights[name]) for name in weights)


@pytest.mark.parametrize("moment", ["validation", "epoch end", "train end of epoch"])
@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_uninterrupted(name, moment, tmp_path):
    settings = {
        "validation": {"monitor": "val_loss"},
        "epoch end": {"save_on_train_epoch_end": True},
        "train end of epoch": {"every_n_train_steps": 6},
    }[moment]
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", **settings)
    fit(Module(name), tmp_path, keep, max_epochs=3)
    resumed = Module(name)
    fit(resumed, tmp_path, ckpt=tmp_path / "epoch=2.ckpt")
    assert_same(resumed.net, raw_loop(name)[0])
    if name == "everything":
        assert resumed.method.epochs == list(range(EPOCHS))


class Resumable(DataLoader):
    """A loader that goes on where it was, as Lightning asks of one for resuming mid-epoch."""

    given, skip = 0, 0

    def __iter__(self):
        self.given = 0
        skip, self.skip = self.skip, 0
        for batch in super().__iter__():
            self.given += 1
            if self.given > skip:
                yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.skip = state["given"]


@pytest.mark.parametrize("name", METHODS)
def test_resumed_within_an_epoch_equals_uninterrupted(name, tmp_path):
    def run(module, *callbacks, ckpt=None):
        train, val = loaders()
        train = Resumable(train.dataset, batch_size=BATCH, sampler=train.sampler)
        engine = trainer(module, tmp_path, *callbacks)
        engine.fit(module, train, val, ckpt_path=ckpt, weights_only=True)

    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", every_n_train_steps=5)
    run(Module(name), keep)
    resumed = Module(name)
    run(resumed, ckpt=tmp_path / "step=15.ckpt")  # epoch 2, after 3 of its 6 batches
    assert_same(resumed.net, raw_loop(name)[0])
    if name == "everything":
        assert resumed.method.epochs == list(range(EPOCHS))


class Noting(Module):
    """Trains by a method that writes the order, and notes the samples of each batch."""

    def __init__(self):
        super().__init__()
        self.data = dataset(44, seed=1)
        self.sampler = evenly.Resampler(self.data, seed=3)
        self.method = Halves(self.net.encoders, self.sampler)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch[0]))
        return super().training_step(batch, batch_idx)

    def loader(self, **settings):
        return DataLoader(self.data, BATCH, sampler=self.sampler, **settings)


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")  # it does not know of Balance
@pytest.mark.parametrize(
    ("keep", "settings", "name", "workers"),
    [
        ({"every_n_train_steps": 6}, {}, "epoch=1-step=12", 0),
        ({"every_n_train_steps": 5}, {}, "epoch=2-step=15", 0),
        # The loader's workers have drawn batches before Lightning tells the sampler its epoch.
        ({"save_on_train_epoch_end": True}, {}, "epoch=1-step=12", 1),
        # Lightning counts that epoch twice.
        ({"save_on_train_epoch_end": True}, {"max_steps": 24}, "epoch=1-step=12", 0),
    ],
)
def test_resumed_with_an_order_of_the_methods_equals_uninterrupted(
    keep, settings, name, workers, tmp_path
):
    def run(*callbacks, ckpt=None):
        module = Noting()
        engine = trainer(module, tmp_path, *callbacks, max_epochs=4, **settings)
        loader = module.loader(num_workers=workers)
        engine.fit(module, loader, loaders()[1], ckpt_path=ckpt, weights_only=True)
        return module

    whole = run(ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}-{step}", **keep))
    resumed = run(ckpt=tmp_path / f"{name}.ckpt")
    assert_same(resumed.net, whole.net)
    assert len(resumed.seen) == 24 - int(name.split("=")[-1])
    for (_, after), (_, before) in zip(resumed.seen[::-1], whole.seen[::-1], strict=False):
        assert torch.equal(after, before)


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
def test_workers_draw_the_first_epoch_in_the_order_of_the_method(tmp_path):
    def run(workers):
        module = Noting()
        loader = module.loader(num_workers=workers)
        trainer(module, tmp_path, max_epochs=2).fit(module, loader, loaders()[1])
        return [batch for _, batch in module.seen]

    for found, expected in zip(run(1), run(0), strict=True):
        assert torch.equal(found, expected)


def test_resumed_within_an_epoch_of_random_order_warns(tmp_path):
    def run(*callbacks, ckpt=None):
        module = Module()
        loader = DataLoader(dataset(44, seed=1), BATCH, shuffle=True)
        trainer(module, tmp_path, *callbacks, max_epochs=1).fit(
            module, loader, ckpt_path=ckpt, weights_only=True
        )

    run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4))
    with (
        pytest.warns(UserWarning, match="dataloader is not resumable"),  # Lightning's own
        pytest.warns(UserWarning, match=r"middle of epoch 0, but .* stream \(RandomSampler\)"),
    ):
        run(ckpt=tmp_path / "step=4.ckpt")


class Alternating(Sampler):
    """An order that the probe does not know, so that it goes through the loader itself."""

    def __iter__(self):
        return iter([*range(0, 44, 2), *range(1, 44, 2)])

    def __len__(self):
        return 44


def test_a_look_does_not_use_up_the_first_epoch_of_persistent_workers(tmp_path):
    module = Module("relearn")
    steps = Counter()

    class Count(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            steps[trainer.current_epoch] += 1

    loader = DataLoader(
        dataset(44, 1), BATCH, sampler=Alternating(), num_workers=1, persistent_workers=True
    )
    engine = trainer(module, tmp_path, Count(), max_epochs=2)
    engine.fit(module, loader, loaders()[1])
    assert steps == {0: 6, 1: 6}


class Validating(Module):
    """Logs the method's loss in validation, as many do."""

    def validation_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        self.log("val_loss", self.method.loss(output, target))
        self.plain = nn.functional.cross_entropy(output.logits, target)

    test_step = validation_step


def test_the_sanity_check_and_validation_before_fit_see_the_plain_criterion(tmp_path):
    module = Validating("everything")
    one = {"limit_val_batches": 1, "limit_test_batches": 1}
    engine = trainer(module, tmp_path, max_epochs=1, num_sanity_val_steps=2, **one)
    for look in (engine.validate, engine.test):
        (found,) = look(module, loaders()[1], verbose=False)
        assert found["val_loss"] == module.plain.item()
    engine.fit(module, *loaders())
    assert module.method.calls[:2] == ["epoch 0", "loss"]
    left_as_found = Validating("everything")
    fit(left_as_found, tmp_path, max_epochs=1, limit_val_batches=1)
    assert_same(module.net, left_as_found.net)


@pytest.mark.filterwarnings("ignore:.*enable_checkpointing", "ignore:.*lr_find")
def test_the_learning_rate_finder_leaves_nothing_with_the_method(tmp_path):
    from lightning.pytorch.callbacks import LearningRateFinder

    class Rated(Module):
        lr = 0.1

    module = Rated("everything")
    finder = LearningRateFinder(num_training_steps=4, update_attr=False)
    fit(module, tmp_path, finder, max_epochs=1)
    assert module.method.calls[:2] == ["epoch 0", "loss"]
    plain = Module("everything")
    fit(plain, tmp_path, max_epochs=1)
    assert_same(module.net, plain.net)


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_without_a_loss_is_no_step_of_the_methods(first, tmp_path):
    class Skipping(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) if first else None
            return None if batch_idx in (0, 3) else loss or super().training_step(batch, batch_idx)

    module = Skipping("everything")
    fit(module, tmp_path, max_epochs=1)
    assert module.method.calls.count("step") == 4


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
def test_a_pass_without_a_loss_ends_the_turn(tmp_path):
    class InTurn(Module):
        def __init__(self):
            super().__init__()
            encoders = {name: nn.Linear(5, 6) for name in ("left", "right")}
            self.net = LateFusion(encoders, 3, "shared")
            self.method = MLA(self.net.encoders, head=self.net.head)
            self.turns = []

        def forward(self, left, right):
            return self.net({"left": left, "right": right})

        def training_step(self, batch, batch_idx):
            self.turns.append(self.method.turn)
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx in (0, 5) else loss

    train, _ = loaders()
    batches = evenly.Repeated(train.sampler, train.batch_size, repeats=2)
    module = InTurn()
    engine = trainer(module, tmp_path, max_epochs=1)
    engine.fit(module, DataLoader(train.dataset, batch_sampler=batches))
    assert module.turns == ["left", "right"] * 6


def test_a_training_too_short_for_the_method_is_told_at_its_start_and_end(tmp_path, caplog):
    caplog.set_level(
        "INFO", "evenly.integrations.lightning"
    )  # a run of the lab may have quietened it
    module = Module()
    module.method = evenly.Relearn(module.net.encoders)
    with pytest.warns(UserWarning, match=r"but this training ended after 1 epoch\. Train longer"):
        fit(module, tmp_path, max_epochs=1)
    when = "before epochs 21, 41 and 61 (counted from 0)"
    sentence = f"By its schedule, Relearn acts {when}, but this training has "
    assert sentence + "1 epoch." in caplog.messages
    caplog.clear()
    module = Module("everything")
    fit(module, tmp_path, max_steps=7, max_epochs=-1)
    assert not [text for text in caplog.messages if "counted from 0" in text]


def test_the_probe_sees_no_more_than_overfit_batches_trains_on(tmp_path):
    module = Module("everything")
    seen = []

    class Look(Everything):
        def before_epoch(self, epoch, probe=None):
            super().before_epoch(epoch, probe)
            seen.append(probe.features("train").target.tolist())

    module.method = Look(module.net.encoders)
    data = dataset(44, seed=1)
    engine = trainer(module, tmp_path, max_epochs=1, overfit_batches=2)
    engine.fit(module, DataLoader(data, BATCH), loaders()[1])
    assert seen == [data.tensors[2][: 2 * BATCH].tolist()]


def test_method_state_is_in_the_checkpoint_and_loads_safely(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    module = Module("everything")
    fit(module, tmp_path, keep, max_epochs=2)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Balance"]
    assert held["epoch"] == 1
    assert held["method"]["epochs"] == [0, 1]
    assert torch.equal(held["method"]["noise"], module.method.noise.get_state())


def test_metrics_are_logged_as_a_mean_over_the_epoch(tmp_path):
    module = Module("everything")
    engine = fit(module, tmp_path, max_epochs=1)
    assert engine.callback_metrics["method/scale"].item() == pytest.approx(module.method.scale)


def test_metrics_keep_no_graph_until_the_epochs_end():
    module = Module()
    balance = evenly.Balance(module.method, forward)
    module.method.metrics = {"penalty": torch.ones((), requires_grad=True) * 2}
    balance.on_train_batch_end(lightning.Trainer(logger=False), module, None, None, 0)
    total, batches = balance._sums["penalty"]
    assert (float(total), int(batches), total.requires_grad) == (2.0, 1, False)


def test_metrics_of_a_step_that_overflowed_are_not_in_the_mean():
    module = Module()
    balance = evenly.Balance(module.method, forward)
    for value in (3.0, float("nan"), float("inf"), 4.0):
        module.method.metrics = {"score": torch.tensor(value)}
        balance.on_train_batch_end(lightning.Trainer(logger=False), module, None, None, 0)
    total, batches = balance._sums["score"]
    assert (float(total), int(batches)) == (7.0, 2)


@pytest.mark.parametrize("every", [1, 4])
def test_probe_finds_a_validation_loader_that_was_not_set_up_yet(every, tmp_path):
    module = Module("relearn")
    fit(module, tmp_path, check_val_every_n_epoch=every)
    assert list(module.method.history) == [3, 5]


def test_probe_runs_under_the_precision_and_with_augmentation_off(tmp_path):
    class Augmented(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            augmented.append(self.trainer.training)
            return batch

        def forward(self, *inputs):
            autocast.append(torch.is_autocast_enabled("cpu"))
            return super().forward(*inputs)

    augmented, autocast = [], []
    module = Augmented("everything")
    fit(module, tmp_path, max_epochs=1, precision="bf16-mixed", limit_val_batches=1)
    # the probe's 3 validation batches, 6 training batches, the Trainer's 1 validation batch
    assert augmented == [False] * 3 + [True] * 6 + [False]
    assert autocast == [True] * 10
    assert module.training


@pytest.mark.parametrize("name", METHODS)
def test_bf16_mixed_trains(name, tmp_path):
    module = Module(name)
    fit(module, tmp_path, precision="bf16-mixed")
    plain, _ = raw_loop(name)
    for mixed, full in zip(module.net.parameters(), plain.parameters(), strict=True):
        assert mixed.isfinite().all()
        assert not torch.equal(mixed, full)


def test_fp16_scaling_is_undone_before_the_step(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, plain = Module("everything"), Module("everything")
    fit(scaled, tmp_path, max_steps=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    fit(plain, tmp_path, max_steps=1)
    for actual, expected in zip(scaled.method.gradients, plain.method.gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=1e-3)


def test_leaves_the_module_and_the_method_as_they_were(tmp_path):
    module = Module("everything")
    fit(module, tmp_path, max_epochs=1)
    assert "backward" not in vars(module)
    assert "loss" not in vars(module.method)


def test_an_exception_leaves_the_module_and_the_method_as_they_were(tmp_path):
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            raise OSError("the disk is gone")

    module = Failing("everything")
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, tmp_path)
    assert "backward" not in vars(module)
    assert "loss" not in vars(module.method)


def test_refuses_manual_optimisation(tmp_path):
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match=r"Module optimises by hand .* in `training_step`"):
        fit(module, tmp_path)


def test_refuses_two_backward_passes(tmp_path):
    class Own(Module):
        def backward(self, loss):
            loss.backward()

    with pytest.raises(ValueError, match="Own has a `backward` of its own and so has Everything"):
        fit(Own("everything"), tmp_path)
    fit(Own("relearn"), tmp_path, max_epochs=1)  # a method without one leaves it alone


def test_refuses_a_module_that_never_asks_for_the_loss(tmp_path):
    class Forgetful(Module):
        def training_step(self, batch, batch_idx):
            output, target = forward(self, batch)
            return nn.functional.cross_entropy(output.logits, target)

    for name in ("everything", "ogm_ge"):
        module = Forgetful(name)
        before = [p.clone() for p in module.net.head.parameters()]
        with pytest.raises(ValueError, match=r"`training_step` of Forgetful did not call"):
            fit(module, tmp_path)
        assert all(map(torch.equal, before, module.net.head.parameters()))
    fit(Forgetful("relearn"), tmp_path, max_epochs=1)  # its loss is the plain one


@pytest.mark.parametrize("off", [{"limit_val_batches": 0}, {}])
def test_refuses_a_probing_method_without_validation(off, tmp_path):
    module = Module("relearn")
    train, val = loaders()
    with pytest.raises(ValueError, match="Relearn looks at the validation split, but the Trainer"):
        trainer(module, tmp_path, **off).fit(module, train, val if off else None)


def test_trains_without_validation_where_no_probe_is_needed(tmp_path):
    module = Module("ogm_ge")
    trainer(module, tmp_path, max_epochs=1).fit(module, loaders()[0])


def test_refuses_several_training_loaders(tmp_path):
    module = Module("relearn")
    train, val = loaders()
    with pytest.raises(ValueError, match="one training loader, but the Trainer has a dict of 2"):
        trainer(module, tmp_path).fit(module, {"a": train, "b": train}, val)


def test_refuses_a_fused_optimiser_in_fp16(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    class Fused(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="the fused SGD unscales them only inside its step"):
        fit(Fused("everything"), tmp_path, plugins=plugin)


@pytest.mark.parametrize(
    ("strategy", "sharded", "message"),
    [
        ("DeepSpeedStrategy", True, "DeepSpeed keeps copies of its own"),
        ("FSDPStrategy", True, "but FSDPStrategy flattens them"),
        ("ModelParallelStrategy", False, "does not work on parameters that are sharded"),
    ],
)
def test_refuses_strategies(strategy, sharded, message, tmp_path, monkeypatch):
    from dataclasses import replace

    from lightning.pytorch import strategies

    kind = getattr(strategies, strategy)
    module = Module("everything")
    engine = trainer(module, tmp_path)
    # Made without its constructor: DeepSpeed is not installed, the others want several devices.
    monkeypatch.setattr(type(engine), "strategy", kind.__new__(kind))
    monkeypatch.setattr(Everything, "info", replace(Everything.info, sharded=sharded))
    with pytest.raises(ValueError, match=message):
        engine.callbacks[0].setup(engine, module, "fit")


@pytest.mark.parametrize(("told", "fails"), [(False, True), (True, False)])
def test_a_partial_method_needs_ddp_to_know(told, fails, tmp_path, monkeypatch):
    from dataclasses import replace

    from lightning.pytorch.strategies import DDPStrategy

    module = Module("everything")
    monkeypatch.setattr(Everything, "info", replace(Everything.info, partial=True))
    engine = trainer(module, tmp_path)
    monkeypatch.setattr(
        type(engine), "strategy", DDPStrategy(find_unused_parameters=told), raising=False
    )
    if fails:
        with pytest.raises(ValueError, match="strategy='ddp_find_unused_parameters_true'"):
            engine.callbacks[0].setup(engine, module, "fit")
    else:
        engine.callbacks[0].setup(engine, module, "fit")


def test_a_method_that_repeats_batches_needs_a_loader_that_does(tmp_path, monkeypatch):
    monkeypatch.setattr(Everything, "repeats", 2)
    train, val = loaders()
    module = Module("everything")
    engine = trainer(module, tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"takes each batch 2 times.*evenly\.Repeated"):
        engine.fit(module, train, val)
    module = Module("everything")
    batches = evenly.Repeated(train.sampler, train.batch_size, repeats=2)
    twice = DataLoader(train.dataset, batch_sampler=batches)
    engine = trainer(module, tmp_path, max_epochs=1)
    engine.fit(module, twice, val)
    assert engine.global_step == 2 * len(train)


def test_a_method_that_repeats_batches_cannot_accumulate_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Everything, "repeats", 2)
    module = Module("everything")
    engine = trainer(module, tmp_path, max_epochs=1, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="Set accumulate_grad_batches=1"):
        engine.fit(module, *loaders())


@pytest.mark.parametrize("puts", [True, False])
def test_a_method_with_a_sampler_keeps_it_on_several_ranks(puts, tmp_path, monkeypatch):
    from lightning.pytorch.strategies import DDPStrategy

    module = Module("everything")
    monkeypatch.setattr(Everything, "sampler", None, raising=False)
    engine = trainer(module, tmp_path, use_distributed_sampler=puts)
    monkeypatch.setattr(type(engine), "strategy", DDPStrategy(), raising=False)
    if puts:
        with pytest.raises(ValueError, match="Pass use_distributed_sampler=False"):
            engine.callbacks[0].setup(engine, module, "fit")
    else:
        engine.callbacks[0].setup(engine, module, "fit")


def test_two_methods_in_one_trainer_are_refused(tmp_path):
    module = Module("relearn")
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Balance`"):
        trainer(module, tmp_path, evenly.Balance(module.method, forward))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(Module("relearn"), tmp_path, keep, max_epochs=1)
    with pytest.raises(ValueError, match=r"OGMGE remembers .* saved by another method"):
        fit(Module("ogm_ge"), tmp_path, ckpt=tmp_path / "last.ckpt")


def test_a_second_fit_needs_a_new_method(tmp_path):
    module = Module("everything")
    fit(module, tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="Make a new method for a new training"):
        fit(module, tmp_path, max_epochs=1)
    assert module.method.epochs == [0]
    forgetful = Module("joint")
    fit(forgetful, tmp_path, max_epochs=1)
    fit(forgetful, tmp_path, max_epochs=1)
