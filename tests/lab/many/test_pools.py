"""What is said where the runs of a command cannot be done as it asks."""

import sys

import pytest

from evenly.lab.many.pools import pool
from evenly.lab.run.settings import Training


def test_a_cluster_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"--cluster needs Dask: .* 'evenly\[cluster\]'\."):
        pool(Training(), cluster="tcp://host:8786")


def test_processes_are_started_once(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--cluster starts the processes of its runs itself"):
        pool(Training(devices=2), cluster="tcp://host:8786")


def test_several_nodes_need_a_starter():
    with pytest.raises(ValueError, match="--nodes 2: start this command on each of them"):
        pool(Training(nodes=2))
