"""Diagnosing & Re-learning with Lightning: a callback and one line in `training_step`.

Run `python examples/lightning_trainer.py`: a few seconds, no download.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenly

epochs = 25
batch_size = 64
learning_rate = 0.05
noise = 1.0  # only on the lower half, the modality that is hard to learn
every = 8  # epochs: re-learns before epochs 9 and 17, from 0; the paper has 20, of 90

lightning.seed_everything(0)

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
        # evenly: the method finds the encoders by identity, whatever their names
        self.method = evenly.Relearn({"top": self.top, "bottom": self.bottom}, every=every)

    def forward(self, top, bottom):
        features = {"top": self.top(top), "bottom": self.bottom(bottom)}
        logits = self.head(torch.cat([features["top"], features["bottom"]], dim=1))
        return evenly.Output(logits, features)  # evenly: what a method may see

    def training_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        return self.method.loss(output, target)  # evenly: the method's loss

    def validation_step(self, batch, batch_idx):
        output, target = forward(self, batch)
        self.log("accuracy", (output.logits.argmax(1) == target).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=learning_rate, momentum=0.9)


model = TwoHalves()
trainer = lightning.Trainer(
    max_epochs=epochs,
    callbacks=[evenly.Balance(model.method, forward)],  # evenly: calls every hook
    logger=False,
    enable_checkpointing=False,  # checkpoints would include the method's state
    enable_progress_bar=False,
)
trainer.fit(
    model,
    DataLoader(train, batch_size, shuffle=True),
    DataLoader(val, batch_size),
)
print(f"validation accuracy: {trainer.callback_metrics['accuracy']:.3f}")
for epoch, modalities in model.method.history.items():
    pulled = ", ".join(f"{name} {was['strength']:.2f}" for name, was in modalities.items())
    print(f"before epoch {epoch} the encoders went back to their start by: {pulled}")
print(model.method.diagnosis)  # the last one, from before that epoch
