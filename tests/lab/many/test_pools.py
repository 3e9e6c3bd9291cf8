"""What is said where the runs of a command cannot be done as it asks."""

import sys

import pytest
import torch

from evenly.lab.many import pools
from evenly.lab.many.pools import check, followed
from evenly.lab.run.settings import Training


def test_a_cluster_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"--cluster needs Dask. .* '.\[cluster\]' in evenly"):
        check(Training(), "tcp://host:8786")


def test_a_cluster_goes_before_who_started_the_command(monkeypatch):
    """As in a batch script of several tasks, which starts the workers."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patched:
        patched.setattr(pools, "check", lambda *_: None)  # which would look for it
        assert not followed(Training(devices=2), "tcp://host:8786")
    with pytest.raises(ValueError, match="2 processes were started, but --devices 4"):
        followed(Training(devices=4))


@pytest.mark.parametrize(("more", "option"), [((2,), "--jobs"), ((1, 2), "--runs-per-device")])
def test_processes_that_were_started_together_do_one_run_at_a_time(more, option, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{option} 2: processes that torchrun .* one run after"):
        followed(Training(devices=2), "", *more)
    assert not followed(Training(devices=2), "", 1)


def test_several_nodes_need_a_starter():
    with pytest.raises(ValueError, match="--nodes 2: start this command on each node"):
        check(Training(nodes=2))


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check(Training(devices=2))
    with pytest.raises(ValueError, match="--devices 4: this machine has 2 GPUs"):
        check(Training(devices=4))
