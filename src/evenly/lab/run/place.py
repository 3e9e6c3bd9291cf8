"""Where a run trains: the device of this process, and the processes that train with it.

On torch's own primitives: one process is a plain model, several are DistributedDataParallel or
FSDP2. docs/scale.md says why Lightning Fabric is not between them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from evenly import distributed
from evenly.errors import UserError
from evenly.lab.run.settings import Training
from evenly.nn import LateFusion

PATIENCE = timedelta(minutes=30)
"""For which ranks wait for one another: one of them writes checkpoints and looks at the result."""


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a run this is.

    Attributes:
        number: From 0.
        world: How many there are.
        local: Its number on this machine, which is that of its device.
        address: Where they meet, as `torch.distributed.init_process_group` takes it.
    """

    number: int
    world: int
    local: int
    address: str = "env://"


def told_rank(training: Training) -> Rank | None:
    """What torchrun, or srun, says of this process; None if neither has started it.

    Raises:
        ValueError: If they started another number of processes than the training asks for.
    """
    rank = None
    if os.environ.keys() >= {*_TORCHRUN}:
        number, world, local = (int(os.environ[name]) for name in _TORCHRUN)
        rank = Rank(number, world, local)
    elif training.world > 1 and _is_task():  # tasks may have runs of their own, too
        number, world, local = (int(os.environ[name]) for name in _SLURM)
        rank = Rank(number, world, local, _slurm_address())
    if rank is not None and rank.world != training.world:
        raise UserError(
            f"{rank.world} processes were started, but --devices {training.devices} --nodes "
            f"{training.nodes} asks for {training.world}. Start one for each device."
        )
    return rank if training.world > 1 else None


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def _is_task() -> bool:
    """Whether this is one of several tasks of srun's; a batch script itself is none."""
    return os.environ.keys() >= {*_SLURM} and os.environ["SLURM_STEP_NUM_TASKS"] != "1"


def _slurm_address() -> str:
    """The first node of a job, and a port that its tasks alone use."""
    nodes = os.environ["SLURM_JOB_NODELIST"]
    first = re.sub(r"\[(\d+).*", r"\1", nodes.partition(",")[0])
    return f"tcp://{first}:{20_000 + int(os.environ['SLURM_JOB_ID']) % 20_000}"


@dataclass(frozen=True)
class Place:
    """Where this process trains.

    Attributes:
        device: Of this process.
        precision: Of the forward pass.
        rank: Which of the processes this is.
        world: How many train together.
        strategy: How they share the work.
    """

    device: torch.device
    precision: Literal["bf16", "32"]
    rank: int = 0
    world: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def shared(self, model: LateFusion, *, partial: bool) -> nn.Module:
        """The model as the steps of training call it, on all processes.

        Args:
            model: On this process's device; its encoders and itself are sharded in place by FSDP2.
            partial: Whether a step may leave some parameters without a gradient.
        """
        if self.world == 1:
            return model
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # of its encoders, in place
        if self.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for encoder in model.encoders.values():
                fully_shard(encoder)
            fully_shard(model)
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=partial
        )

    def wait(self) -> None:
        """For the others to come here."""
        if self.world > 1:
            dist.barrier()

    def any(self, said: bool) -> bool:
        """Whether one of the processes says so."""
        if self.world == 1:
            return said
        return bool(distributed.max_(torch.tensor(int(said), device=self.device)))


def begin(rank: Rank) -> None:
    """Joins the processes of a run, if they are not joined yet."""
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, rank.address, PATIENCE, rank=rank.number, world_size=rank.world
        )


@contextmanager
def joined(training: Training, rank: Rank | None = None) -> Iterator[Place]:
    """The place of this process in a run; joins the others until the block ends.

    Args:
        training: With the precision decided.
        rank: Of this process, where others train with it.
    """
    assert training.precision != "auto"
    number = rank.local if rank else 0
    device = torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")
    if rank is None or rank.world == 1:
        yield Place(device, training.precision)
        return
    is_mine = not dist.is_initialized()  # else they stay together for the next run
    begin(rank)
    strategy: Literal["ddp", "fsdp"] = "fsdp" if training.strategy == "fsdp" else "ddp"
    yield Place(device, training.precision, rank.number, rank.world, strategy)
    # Not after an error, of which this process has yet to tell: the others would, that it left.
    if is_mine:
        dist.destroy_process_group()
