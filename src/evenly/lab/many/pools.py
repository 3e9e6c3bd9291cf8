"""Chooses the pool that carries out the runs of a command."""

from importlib.util import find_spec

from evenly.errors import UserError
from evenly.lab.many.engine import Pool
from evenly.lab.many.local import Local, default_jobs
from evenly.lab.run.place import told_rank
from evenly.lab.run.settings import Training


def pool(
    training: Training, jobs: int | None = None, cluster: str = "", runs_per_device: int = 1
) -> Pool:
    """A cluster, the processes that torchrun or srun started, or this machine.

    Args:
        training: What the runs share.
        jobs: Simultaneous runs; by default as many as there is room for.
        cluster: Address of a cluster, if there is one.
        runs_per_device: Simultaneous runs per GPU.
    """
    if cluster:
        from evenly.lab.many.cluster import Cluster

        return Cluster(cluster, jobs, runs_per_device)
    if (rank := told_rank(training)) is not None:
        from evenly.lab.many.together import Together

        return Together(rank)
    return Local(jobs or default_jobs(training, runs_per_device))


def check(training: Training, cluster: str = "") -> None:
    """Raises if runs cannot be done in the requested place, before they cost anything."""
    import torch

    if training.nodes > 1 and (cluster or told_rank(training) is None):
        raise UserError(
            f"--nodes {training.nodes}: start this command on each node with torchrun or srun, "
            "one process per device."
        )
    if cluster:
        if find_spec("distributed") is None:
            raise UserError(
                "--cluster needs Dask. Install it with pip install '.[cluster]' in evenly's clone."
            )
        from evenly.lab.many.cluster import Cluster

        Cluster(cluster).close()
    elif torch.cuda.is_available() and training.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {training.devices}: this machine has {torch.cuda.device_count()} GPUs. "
            "Give no more than these."
        )


def followed(
    training: Training, cluster: str = "", jobs: int | None = None, runs_per_device: int = 1
) -> bool:
    """Joins the runs of the first process that torchrun or srun started, if this is another.

    Raises:
        UserError: If runs cannot be done in the requested place, see `check`, or several at a time
            are requested of processes that do one after the other.
    """
    check(training, cluster)
    rank = None if cluster else told_rank(training)
    if rank is None:
        return False
    for name, asked in (("--jobs", jobs or 1), ("--runs-per-device", runs_per_device)):
        if asked > 1:
            raise UserError(
                f"{name} {asked}: processes that torchrun or srun started do one run after the "
                "other. Leave it out."
            )
    if rank.number == 0:
        return False
    from evenly.lab.many.together import follow

    follow(rank)
    return True
