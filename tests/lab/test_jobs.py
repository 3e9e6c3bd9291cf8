import os

import torch

from evenly.lab.jobs import default_jobs


def test_as_many_as_this_process_has_cores_for(monkeypatch):
    """In a container the machine has more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4, 5, 9}, raising=False)
    assert default_jobs(1) == 5
    assert default_jobs(2) == 2
    assert default_jobs(8) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_jobs(2) == 32


def test_one_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_jobs(1) == 1
