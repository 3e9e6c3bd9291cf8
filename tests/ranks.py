"""Runs a function in several gloo processes and brings back what each returned."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
    mp.spawn(_enter, (world, function, folder, arguments), nprocs=world)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]
