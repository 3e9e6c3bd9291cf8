#!/usr/bin/env bash
# One would guess: a run resumed from a checkpoint of an epoch's end goes on with the order of samples
# that the uninterrupted run would have had, where that order is a function of the epoch
# (DistributedSampler with shuffle and set_epoch).
# What happens in Lightning:
#   (a) with loader workers the epoch it resumes in has the order of epoch 0, as the workers fetch
#       before set_epoch is called;
#   (b) with max_steps every epoch from there on has the order of the one after it, as the finished
#       epoch is counted twice;
#   (c) a callback that goes through the training loader before the first epoch (to measure
#       something) leaves that epoch without a batch if workers are persistent.
# Why it hurts: a run that was killed is another run, and nothing says so.
# Instead: set the epoch of the sampler yourself in on_train_epoch_start and begin the loader's iterator
# after it; give a measuring pass a loader of its own.
# Seen with lightning 2.6.6: all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet lightning==2.6.6 torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import logging
import tempfile
import warnings

warnings.filterwarnings("ignore")
import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)
data = TensorDataset(torch.arange(12.0).unsqueeze(1))


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch[0].flatten().int().tolist())
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def run(folder, workers=0, ckpt=None, callbacks=(), persistent=False, **limits):
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=0)
    keep = L.pytorch.callbacks.ModelCheckpoint(
        folder, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True
    )
    module = Module()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[keep, *callbacks], **limits,
    )
    loader = DataLoader(
        data, 4, sampler=sampler, num_workers=workers, persistent_workers=persistent
    )
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module.seen


class Look(L.Callback):
    def on_train_epoch_start(self, trainer, module):
        sum(1 for _ in trainer.train_dataloader)


with tempfile.TemporaryDirectory() as d:
    whole = run(d, max_epochs=4)
    again = run(d, workers=1, ckpt=f"{d}/epoch=1.ckpt", max_epochs=4)
a = again[2] == whole[0] != whole[2]
with tempfile.TemporaryDirectory() as d:
    run(d, max_steps=12, max_epochs=-1)
    again = run(d, ckpt=f"{d}/epoch=1.ckpt", max_steps=12, max_epochs=-1)
b = again[2] == whole[3] != whole[2]
with tempfile.TemporaryDirectory() as d:
    seen = run(d, workers=1, persistent=True, callbacks=[Look()], max_epochs=2)
c = 0 not in seen and len(seen[1]) == 12
print(f"lightning {L.__version__}: (a) {a}, (b) {b}, (c) {c}")
assert a and b and c, "the behaviour has changed"
PYTHON
