"""A run that is killed at a random moment, and continued, ends with the same weights."""

import random
import time

import pytest
import torch

import forked
from evenly.lab.run.result import Result

pytestmark = pytest.mark.slow
EPOCHS = 12


def train(folder, method, *more):
    command = ["train", "--data", "digits", "--method", method, "--epochs", EPOCHS, "--width", 8]
    command += ["--precision", 32, "--checkpoint_every", 0.05]
    return forked.Forked(forked.evenly, *command, "--out", folder, *more)


def finish(process):
    out, err = process.communicate(200)
    assert process.returncode == 0, out + err


def kill_soon(process, folder, moment):
    """Kills the process some time after it has begun to train."""
    started = time.monotonic()
    known = (folder / "last.ckpt").stat().st_mtime if (folder / "last.ckpt").exists() else 0
    while time.monotonic() - started < 120:
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        file = folder / "last.ckpt"
        if file.exists() and file.stat().st_mtime > known:
            break
        time.sleep(0.01)
    time.sleep(moment)
    process.kill()
    process.wait()


@pytest.mark.parametrize("method", ["relearn(every=3,times=3)", "ogm_ge"])
def test_killed_and_resumed_equals_uninterrupted(method, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(train(whole, method))

    chance = random.Random(time.time_ns())
    moments = [chance.uniform(0, 0.4) for _ in range(2)]
    for turn, moment in enumerate(moments):
        process = train(killed, method, *(["--resume"] if turn else []))
        kill_soon(process, killed, moment)
        assert not (killed / "result.json").exists(), f"too late to kill it, after {moments}"
    finish(train(killed, method, "--resume"))

    one, two = (torch.load(f / "last.ckpt", weights_only=True) for f in (whole, killed))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), (
            f"{name} differs, killed after {moments}"
        )
    results = [Result.read(folder) for folder in (whole, killed)]
    assert results[0].metrics == results[1].metrics
    assert results[0].best_epoch == results[1].best_epoch
    assert results[0].steps == results[1].steps
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
