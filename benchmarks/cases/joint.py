"""The joint model of a case, and its training."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import evenly
from cases.plan import BATCH, DROPPED, SLOW, Part, Plan


class Recurrent(nn.Module):
    """A GRU over (channels, steps); its outputs' mean over time."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer = nn.GRU(channels, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, steps) to (n, width)."""
        return self.layer(x.transpose(1, 2))[0].mean(1)


def _encoder(part: Part, shape: tuple[int, ...]) -> nn.Module:
    if part.encoder == "gru":
        return Recurrent(shape[0], part.width)
    if part.encoder == "conv":
        return nn.Sequential(
            nn.Conv1d(shape[0], part.hidden, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(part.hidden, part.width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
    return nn.Sequential(
        nn.Linear(shape[0], part.hidden), nn.ReLU(), nn.Linear(part.hidden, part.width), nn.ReLU()
    )


class Joint(nn.Module):
    """An encoder for each modality, and a fusion of their features."""

    def __init__(self, plan: Plan, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        parts, classes = plan.parts, plan.classes
        self.fusion = plan.fusion
        self.detached = {name for name, part in parts.items() if part.how == "detached"}
        self.masked = {name for name, part in parts.items() if part.how == "masked"}
        self.widths = {name: part.width for name, part in parts.items()}
        self.encoders = nn.ModuleDict(
            {
                name: _encoder(part, shape)
                for (name, part), shape in zip(parts.items(), shapes, strict=True)
            }
        )
        self.own = nn.ModuleDict(
            {name: nn.Linear(part.width, classes) for name, part in parts.items() if part.own}
        )
        total = sum(self.widths.values())
        if plan.fusion == "concat":
            self.head: nn.Module = nn.Linear(total, classes)
        elif plan.fusion == "mlp":
            self.head = nn.Sequential(nn.Linear(total, 32), nn.ReLU(), nn.Linear(32, classes))
        else:
            self.head = nn.ModuleDict(
                {name: nn.Linear(width, classes) for name, width in self.widths.items()}
            )
        if plan.fusion == "gated":
            self.gate = nn.Linear(total, len(parts))

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """The logits of some features, with zeros for missing modalities."""
        some = next(iter(features.values()))
        whole = {
            name: features[name]
            if name in features and name not in self.masked
            else some.new_zeros(len(some), width)
            for name, width in self.widths.items()
        }
        for name in self.detached:
            whole[name] = whole[name].detach()
        joined = torch.cat(list(whole.values()), 1)
        if self.fusion in ("concat", "mlp"):
            return self.head(joined)
        logits = torch.stack([self.head[name](x) for name, x in whole.items()], 1)
        if self.fusion == "gated":
            logits = logits * self.gate(joined).sigmoid()[:, :, None]
        return logits.sum(1)

    def encode(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """The features of each modality."""
        named = zip(self.encoders.items(), inputs, strict=True)
        return {name: encoder(x) for (name, encoder), x in named}

    def blocks(self, name: str) -> list[Tensor]:
        """The fusion's weights on a modality."""
        start = list(self.widths).index(name)
        first = sum(list(self.widths.values())[:start])
        columns = slice(first, first + self.widths[name])
        if self.fusion == "concat":
            return [self.head.weight.data[:, columns]]
        if self.fusion == "mlp":
            return [self.head[0].weight.data[:, columns]]
        found = [self.head[name].weight.data, self.head[name].bias.data]
        return [*found, self.gate.weight.data[:, columns]] if self.fusion == "gated" else found


def forward(model: Joint, batch: list[Tensor]) -> tuple[evenly.Output, Tensor]:
    """The forward function as a user writes it."""
    *inputs, target = batch
    features = model.encode(inputs)
    own = None
    if model.fusion == "concat":
        own = evenly.split_linear(model.head, features)
    elif model.fusion == "sum":
        own = {name: model.head[name](x) for name, x in features.items()}
    return evenly.Output(model.fuse(features), features, own, fuse=model.fuse), target


def optimizer_of(model: Joint, plan: Plan) -> torch.optim.Optimizer:
    groups = []
    for name, encoder in model.encoders.items():
        how = plan.parts[name].how
        rate = plan.rate * (SLOW if how in ("slow", "group") else 1)
        group = {"params": list(encoder.parameters()), "lr": rate}
        # A schedule stores its initial rate in the group.
        groups.append({**group, "initial_lr": plan.rate} if how == "slow" else group)
    mine = {id(p) for p in model.encoders.parameters()}
    groups.append({"params": [p for p in model.parameters() if id(p) not in mine]})
    if plan.optimizer == "adam":
        return torch.optim.Adam(groups, lr=plan.rate, fused=True)
    return torch.optim.SGD(groups, lr=plan.rate, momentum=0.9, fused=True)


def train(
    model: Joint, plan: Plan, optimizer: torch.optim.Optimizer, inputs: list[Tensor], y: Tensor
) -> None:
    how = {name: part.how for name, part in plan.parts.items()}
    late = math.ceil(0.97 * plan.epochs)
    for epoch in range(plan.epochs):
        for name, encoder in model.encoders.items():
            still = how[name] == "frozen" or (how[name] == "delayed" and epoch < late)
            encoder.requires_grad_(not still)
        for rows in torch.randperm(len(y)).split(BATCH):
            if len(rows) == 1:
                continue
            features = model.encode([x[rows] for x in inputs])
            seen = {
                name: x * (torch.rand(len(x), 1) > DROPPED) if how[name] == "dropped" else x
                for name, x in features.items()
            }
            loss = cross_entropy(model.fuse(seen), y[rows])
            for name, head in model.own.items():
                loss = loss + plan.parts[name].own * cross_entropy(head(features[name]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name in model.encoders:
                if how[name] == "closed" or (how[name] == "faded" and epoch >= plan.epochs // 2):
                    for weight in model.blocks(name):
                        weight.mul_(0.0 if how[name] == "closed" else 0.5)
    for name in model.encoders:
        if how[name] == "cut":
            for weight in model.blocks(name):
                weight.zero_()
    model.encoders.requires_grad_(True)
    optimizer.zero_grad()
