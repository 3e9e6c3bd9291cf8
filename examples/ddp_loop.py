"""Diagnosing & Re-learning on several processes with DistributedDataParallel: the same five lines.

Run `torchrun --nproc-per-node 2 examples/ddp_loop.py`: a few seconds on a CPU, no download.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import evenly

epochs = 25
batch_size = 32  # of each process
learning_rate = 0.05
noise = 1.0  # only on the lower half, the modality that is hard to learn
every = 8  # epochs: re-learns before epochs 9 and 17, from 0; the paper has 20, of 90

dist.init_process_group("gloo")
torch.manual_seed(0)  # every process creates the same data

# Two modalities from handwritten digits of 8 x 8 pixels: the upper and the lower half.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
top, bottom = images[:, :4].flatten(1), images[:, 4:].flatten(1)
bottom = bottom + noise * torch.randn_like(bottom)
data = TensorDataset(top, bottom, torch.tensor(digits.target))
train, val = torch.utils.data.random_split(data, [1347, 450])
sampler = DistributedSampler(train)
train_loader = DataLoader(train, batch_size, sampler=sampler)
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


plain = TwoHalves()
model = DistributedDataParallel(plain)
optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
method = evenly.Relearn({"top": plain.top, "bottom": plain.bottom}, every=every)  # evenly: encoders
probe = evenly.Probe(model, forward, train_loader, val_loader)  # evenly: each rank sees its share

for epoch in range(epochs):
    sampler.set_epoch(epoch)
    method.before_epoch(epoch, probe)  # evenly: on every rank, since all decide together
    for batch in train_loader:
        output, target = forward(model, batch)
        method.backward(method.loss(output, target))  # evenly: instead of loss.backward()
        method.before_step()  # evenly: gradients are averaged over ranks; clip them after this
        optimizer.step()
        optimizer.zero_grad()

diagnosis = evenly.diagnose(probe.features("train"), probe.features("val"))
weights = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
copies = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
dist.all_gather(copies, weights)
model.eval()
with torch.no_grad():
    outputs = [forward(plain, batch) for batch in val_loader]
right = sum((output.logits.argmax(1) == target).sum().item() for output, target in outputs)
if dist.get_rank() == 0:
    print("replicas are equal:", all(torch.equal(copies[0], copy) for copy in copies))
    print(f"validation accuracy: {right / len(val):.3f}")
    print(diagnosis)
dist.destroy_process_group()
