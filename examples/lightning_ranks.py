"""Diagnosing & Re-learning with Lightning on several processes, whole (DDP) or sharded (FSDP2).

Run `torchrun --nproc-per-node 2 examples/lightning_ranks.py`, followed by `fsdp` for FSDP2: a few
seconds on a CPU, no download.
"""

import sys

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import evenly

devices = 2  # processes on each node
epochs = 25
batch_size = 32  # of each process
learning_rate = 0.05
noise = 1.0  # only on the lower half, the modality that is hard to learn
every = 8  # epochs: re-learns before epochs 9 and 17, from 0; the paper has 20, of 90

lightning.seed_everything(0)  # every process creates the same data and weights

# Two modalities from handwritten digits of 8 x 8 pixels: the upper and the lower half.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
top, bottom = images[:, :4].flatten(1), images[:, 4:].flatten(1)
bottom = bottom + noise * torch.randn_like(bottom)
data = TensorDataset(top, bottom, torch.tensor(digits.target))
train, val = torch.utils.data.random_split(data, [1347, 450])


def forward(model, batch):
    top, bottom, target = batch
    return model(top, bottom), target


class TwoHalves(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.top = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.bottom = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)
        # evenly: the method finds the encoders by identity, sharded or not
        self.method = evenly.Relearn({"top": self.top, "bottom": self.bottom}, every=every)

    def configure_model(self):
        if self.device_mesh is not None:  # FSDP2
            for part in (self.top, self.bottom, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, top, bottom):
        features = {"top": self.top(top), "bottom": self.bottom(bottom)}
        logits = self.head(torch.cat([features["top"], features["bottom"]], dim=1))
        return evenly.Output(logits, features)  # evenly: what a method may see

    def training_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        return self.method.loss(output, target)  # evenly: the method's loss

    def validation_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        right = (output.logits.argmax(1) == target).float().mean()
        self.log("accuracy", right, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=learning_rate, momentum=0.9)


model = TwoHalves()
trainer = lightning.Trainer(
    max_epochs=epochs,
    accelerator="cpu",  # on GPUs: leave it out
    devices=devices,
    strategy=ModelParallelStrategy(devices, 1) if "fsdp" in sys.argv else "ddp",
    callbacks=[evenly.Balance(model.method, forward)],  # evenly: calls every hook
    logger=False,
    enable_checkpointing=False,  # checkpoints would include the method's state
    enable_progress_bar=False,
)
trainer.fit(model, DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size))
if trainer.is_global_zero:
    print(f"validation accuracy: {trainer.callback_metrics['accuracy']:.3f}")
    print(model.method.diagnosis)  # evenly: the last one, equal on every rank
