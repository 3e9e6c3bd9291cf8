"""A checkup is the same call in any loop: after Lightning's and after Transformers' training."""

import copy
import warnings

import pytest
import toy
from test_transformers import arguments, collate
from test_transformers import forward as named
from torch import nn
from toy import forward, loaders, net, sgd

import evenly

EPOCHS = 4


def checked(model, forward, train, val, initial, optimizer):
    return evenly.checkup(
        model, forward, train, val, model.encoders,
        initial=initial, optimizer=optimizer, epochs=EPOCHS, progress=False,
    )  # fmt: skip


@pytest.fixture
def raw():
    """That of a plain loop."""
    model = net()
    initial = copy.deepcopy(model.state_dict())
    train, val = loaders()
    optimizer = sgd(model)
    for epoch in range(EPOCHS):
        train.sampler.set_epoch(epoch)
        for batch in train:
            output, target = forward(model, batch)
            nn.functional.cross_entropy(output.logits, target).backward()
            optimizer.step()
            optimizer.zero_grad()
    return checked(model, forward, train, val, initial, optimizer)


@pytest.mark.slow
def test_lightning(raw, tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.encoders = self.net.encoders

        def forward(self, *inputs):
            return self.net(*inputs)

        def training_step(self, batch):
            output, target = forward(self, batch)
            return nn.functional.cross_entropy(output.logits, target)

        def configure_optimizers(self):
            return sgd(self)

    module = Module()
    initial = copy.deepcopy(module.state_dict())
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    train, val = loaders()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, train)
    assert checked(module, forward, train, val, initial, trainer.optimizers[0]) == raw


@pytest.mark.slow
def test_transformers(raw, tmp_path):
    from transformers import Trainer

    class SameOrder(Trainer):
        def _get_train_sampler(self, *given):
            return toy.loaders(len(self.train_dataset))[0].sampler

        def compute_loss(self, model, inputs, **given):
            output, target = named(model, inputs)
            return nn.functional.cross_entropy(output.logits, target)

        def create_optimizer(self):
            self.optimizer = sgd(self.model)
            return self.optimizer

    model = net()
    initial = copy.deepcopy(model.state_dict())
    train, val = loaders()
    trainer = SameOrder(
        model=model,
        args=arguments(tmp_path, num_train_epochs=EPOCHS, lr_scheduler_type="constant"),
        train_dataset=train.dataset,
        eval_dataset=val.dataset,
        data_collator=collate,
    )
    trainer.train()
    found = checked(
        model, named, trainer.get_train_dataloader(), trainer.get_eval_dataloader(), initial,
        trainer.optimizer,
    )  # fmt: skip
    assert found.verdict == raw.verdict
    for name, one in found.findings.items():
        assert one.learnt.value == pytest.approx(raw.findings[name].learnt.value, abs=0.05)
