"""Diagnosing & Re-learning in your own training loop: the five lines marked "evenly".

Run `python examples/raw_loop.py`: a few seconds, no download. To continue a stopped run from
raw_loop.pt, add `--resume`.
"""

import sys
from pathlib import Path

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
checkpoint = Path("raw_loop.pt")

torch.manual_seed(0)

# Two modalities from handwritten digits of 8 x 8 pixels: the upper and the lower half.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
top, bottom = images[:, :4].flatten(1), images[:, 4:].flatten(1)
bottom = bottom + noise * torch.randn_like(bottom)
data = TensorDataset(top, bottom, torch.tensor(digits.target))
train, val = torch.utils.data.random_split(data, [1347, 450])
train_loader = DataLoader(train, batch_size, shuffle=True)
val_loader = DataLoader(val, batch_size)


class TwoHalves(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.bottom = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, top, bottom):
        features = {"top": self.top(top), "bottom": self.bottom(bottom)}
        logits = self.head(torch.cat([features["top"], features["bottom"]], dim=1))
        return evenly.Output(logits, features)  # evenly: what a method may see


def forward(model, batch):
    top, bottom, target = batch
    return model(top, bottom), target


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    outputs = [forward(model, batch) for batch in loader]
    model.train()
    right = sum((output.logits.argmax(1) == target).sum().item() for output, target in outputs)
    return right / len(loader.dataset)


model = TwoHalves()
optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
method = evenly.Relearn({"top": model.top, "bottom": model.bottom}, every=every)  # evenly: encoders
probe = evenly.Probe(model, forward, train_loader, val_loader)  # evenly: sees both splits
first = 0

if "--resume" in sys.argv:
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    method.load_state_dict(state["method"])  # includes the initial weights, which must survive
    torch.set_rng_state(state["rng"])  # decides the loader's shuffling
    first = state["epoch"] + 1

for epoch in range(first, epochs):
    method.before_epoch(epoch, probe)  # evenly: may change weights
    for batch in train_loader:
        output, target = forward(model, batch)
        method.backward(method.loss(output, target))  # evenly: instead of loss.backward()
        method.before_step()  # evenly: gradients are complete; clip them after this
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch:2}: validation accuracy {accuracy(model, val_loader):.3f}")
    state = {"model": model, "optimizer": optimizer, "method": method}
    state = {name: owner.state_dict() for name, owner in state.items()}
    torch.save({**state, "rng": torch.get_rng_state(), "epoch": epoch}, checkpoint)

print(f"validation accuracy: {accuracy(model, val_loader):.3f}")
print(evenly.diagnose(probe.features("train"), probe.features("val")))
