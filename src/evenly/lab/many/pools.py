"""Which pool carries the runs of a command."""

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
        jobs: Runs at the same time; by default as many as there is room for.
        cluster: Address of one, if there is one.
        runs_per_device: Runs at the same time on each GPU.
    """
    if cluster:
        from evenly.lab.many.cluster import Cluster

        return Cluster(cluster, jobs, runs_per_device)
    if (rank := told_rank(training)) is not None:
        from evenly.lab.many.together import Together

        return Together(rank)
    return Local(jobs or default_jobs(training, runs_per_device))


def check(training: Training, cluster: str = "") -> None:
    """Raises if runs cannot be done where they are to be, before anything is spent on them."""
    import torch

    if training.nodes > 1 and (cluster or told_rank(training) is None):
        raise UserError(
            f"--nodes {training.nodes}: start this command on each node with torchrun or srun, "
            "one process per device."
        )
    if cluster:
        if find_spec("distributed") is None:
            raise UserError("--cluster needs Dask. Install it with pip install 'evenly[cluster]'.")
        from evenly.lab.many.cluster import Cluster

        Cluster(cluster).close()
    elif torch.cuda.is_available() and training.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {training.devices}: this machine has {torch.cuda.device_count()} GPUs."
        )


def followed(training: Training, cluster: str = "") -> bool:
    """Takes part in the runs of another process that torchrun or srun started, if this is one.

    Raises:
        UserError: If runs cannot be done where they are to be, as `check` says.
    """
    check(training, cluster)
    rank = None if cluster else told_rank(training)
    if rank is None or rank.number == 0:
        return False
    from evenly.lab.many.together import follow

    follow(rank)
    return True
