"""Runs a function in several gloo processes, and the training that is the same on any number."""

import importlib
import os
from datetime import timedelta
from functools import cache, partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import evenly
import forked
from support import Toy, forward, info, make, net, sgd, weights

EPOCHS = 4
BATCH = 8  # of all ranks together


def _enter(rank, world, function, folder, arguments):
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    # A rank that raises must not keep the other waiting for long.
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init, timeout=wait, rank=rank, world_size=world)
    torch.save(function(rank, world, *arguments), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # At once: torch's own threads can abort a process that takes its modules down in good order.
    os._exit(0)


def on_ranks(function, folder, *arguments, world=2):
    """What `function(rank, world, *arguments)` returned on each rank."""
    forked.context()
    mp.start_processes(
        _enter, (world, function, folder, arguments), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


class Straight(nn.Module):
    """The toy without BatchNorm and dropout, which see a rank's own rows only."""

    def __init__(self, seed, head):
        super().__init__()
        self.net = net(seed=seed, head=head)
        for encoder in self.net.encoders.values():
            encoder[1] = nn.Identity()
            encoder[3] = nn.Identity()
        self.encoders, self.head = self.net.encoders, self.net.head

    def forward(self, inputs, index=None):
        return self.net(inputs, index)


def splits():
    """Training and validation data: 18 rows in batches of 5 make unequal last batches."""
    return Toy(24, seed=1), Toy(18, seed=2)


def few_clusterings(world):
    """As the fixture has it, in processes of their own."""
    if world > 1:
        gap = importlib.import_module("evenly.diagnosis.gap")
        gap.HALVINGS = (2, 2)


def train(rank, world, case, seed=None, parallel=None, between=lambda model: None):
    """Global batches of 8, cut over the ranks; each rank starts from weights of its own."""
    few_clusterings(world)
    model = Straight(rank if seed is None else seed, info(case).head)
    parallel = parallel or partial(
        DistributedDataParallel, find_unused_parameters=info(case).partial
    )
    trained = parallel(model) if world > 1 else model
    optimizer = sgd(model)
    dataset, val = splits()
    sampler = evenly.Resampler(dataset, world, rank, seed=3)
    method = make(case, model, optimizer, sampler)
    loader = DataLoader(
        dataset,
        batch_sampler=evenly.Repeated(sampler, BATCH // world, repeats=method.repeats),
    )
    probe = evenly.Probe(trained, forward, loader, DataLoader(val, 5))
    for epoch in range(EPOCHS):
        between(trained)
        sampler.set_epoch(epoch)
        method.before_epoch(epoch, probe)
        for batch in loader:
            output, target = forward(trained, batch)
            method.backward(method.loss(output, target))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
    # What one rank saves must be whole.
    assert not any(hasattr(value, "full_tensor") for value in tree_leaves(method.state_dict()))
    return {name: whole(value) for name, value in weights(model).items()}


@cache
def in_one_process(case):
    """The training in one process, which no test changes."""
    return train(0, 1, case, seed=0)


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value
