"""Where a run trains: the device of this process, and the processes that train with it.

It uses torch's own primitives: one process has a plain model, several use DistributedDataParallel
or FSDP2. docs/design.md explains why Lightning Fabric is not used.
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
"""Time that ranks wait for each other: one of them writes checkpoints and inspects the result."""
PAUSE = timedelta(days=30)
"""Time that they wait for work that may take long. If a rank ends, the others end at once."""


@dataclass(frozen=True)
class Rank:
    """This process among those of a run.

    Attributes:
        number: Its rank, from 0.
        world: Number of processes.
        local: Its rank on this machine, which selects its device.
        address: Where they meet, in the form that `torch.distributed.init_process_group` takes.
    """

    number: int
    world: int
    local: int
    address: str = "env://"


def told_rank(training: Training) -> Rank | None:
    """What torchrun, or srun, says about this process; None if neither has started it.

    Raises:
        ValueError: If they started a different number of processes from what the training requires.
    """
    rank = None
    if os.environ.keys() >= {*_TORCHRUN}:
        number, world, local = (int(os.environ[name]) for name in _TORCHRUN)
        rank = Rank(number, world, local)
    elif training.world > 1 and _is_task():  # tasks may also have separate runs
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
    """Whether this is one of several srun tasks; a batch script itself is not."""
    return os.environ.keys() >= {*_SLURM} and os.environ["SLURM_STEP_NUM_TASKS"] != "1"


def _slurm_address() -> str:
    """The first node of a step, and a port that only its tasks use."""
    told = os.environ
    nodes = told.get("SLURM_STEP_NODELIST") or told["SLURM_JOB_NODELIST"]
    first = re.sub(r"\[(\d+).*", r"\1", nodes.partition(",")[0])
    # Steps of a job, and jobs with consecutive numbers, may share a node.
    number = int(told["SLURM_JOB_ID"]) + 7919 * int(told.get("SLURM_STEP_ID", 0))
    return f"tcp://{first}:{20_000 + number % 20_000}"


@dataclass(frozen=True)
class Place:
    """Where this process trains.

    Attributes:
        device: Device of this process.
        precision: Precision of the forward pass.
        rank: Rank of this process.
        world: Number of processes that train together.
        strategy: How they share the work.
        is_reused: Whether this process does other runs, too.
    """

    device: torch.device
    precision: Literal["bf16", "32"]
    rank: int = 0
    world: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    is_reused: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def spread(self, model: LateFusion) -> None:
        """Changes a model in place for several processes, before an optimiser takes its parameters.

        BatchNorm gets the statistics of all GPUs, and FSDP2 shards the model and its encoders.

        Args:
            model: The model on this process's device.
        """
        if self.world == 1:
            return
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # changes its encoders in place
        if self.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for encoder in model.encoders.values():
                fully_shard(encoder)
            fully_shard(model)

    def shared(self, model: LateFusion, *, partial: bool) -> nn.Module:
        """A model that was `spread`, in the form that training steps call, on all processes.

        Args:
            model: The model.
            partial: Whether a step may leave some parameters without a gradient.
        """
        if self.world == 1 or self.strategy == "fsdp":
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=partial
        )

    def wait(self) -> None:
        """Waits for the other processes."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """After the block, waits for the other processes, however long they take in it."""
        if self.world == 1:
            yield
            return
        group = dist.new_group(timeout=PAUSE, backend="gloo")
        yield
        dist.barrier(group)
        dist.destroy_process_group(group)

    def any(self, said: bool) -> bool:
        """Whether it is true on any of the processes."""
        if self.world == 1:
            return said
        return bool(distributed.max_(torch.tensor(int(said), device=self.device)))


def begin(rank: Rank) -> None:
    """Joins the processes of a run, unless already joined."""
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
        training: Settings with a decided precision.
        rank: Rank of this process, if others train with it.
    """
    assert training.precision != "auto"
    number = rank.local if rank else 0
    device = torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")
    if rank is None or rank.world == 1:
        yield Place(device, training.precision)
        return
    is_mine = not dist.is_initialized()  # otherwise they stay joined for the next run
    begin(rank)
    strategy: Literal["ddp", "fsdp"] = "fsdp" if training.strategy == "fsdp" else "ddp"
    yield Place(device, training.precision, rank.number, rank.world, strategy, not is_mine)
    # Not after an error, which this process must report before the others report that it left.
    if is_mine:
        dist.destroy_process_group()
