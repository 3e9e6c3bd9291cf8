"""Runs on shards that are decoded in every epoch equal runs on the store that is made of them."""

import time

import numpy as np
import pytest
import torch

import forked
from evenly.data.raw import prepare, table
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from hubs import picture, tone
from stores import pack

READERS = {"png": "image(size=[8,8])", "wav": "spectrogram(seconds=0.25,sample_rate=8000)"}


def shards(folder):
    """Two archives of 60 pictures and sounds, of which some samples lack one."""
    for n in range(2):
        members = []
        for k in range(30 * n, 30 * n + 30):
            members += [(f"{k:02}.png", picture(4 * k))] if k % 7 else []
            members += [(f"{k:02}.wav", tone(k / 60))] if k % 5 or not k % 7 else []
            members += [(f"{k:02}.txt", f"row {k}"), (f"{k:02}.cls", str(k % 2))]
        pack(folder / f"a-{n}.tar", members)
    return folder / "a-{0..1}.tar"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    source = table(shards(folder), None, READERS)
    prepare(source, folder / "store", workers=1)
    prepare(source, folder / "streamed", workers=1, stream=True)
    return folder


def assert_same(one, two):
    for file in ("last.ckpt", "best.ckpt"):
        weights = [
            torch.load(folder / file, weights_only=True)["state_dict"] for folder in (one, two)
        ]
        assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    found = [np.load(folder / "predictions.npz") for folder in (one, two)]
    assert all(np.array_equal(x, found[1][name]) for name, x in found[0].items())
    assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()
    assert Result.read(one).metrics == Result.read(two).metrics


def stop(epoch, value):
    if epoch == 1:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_weights_and_figures_are_those_of_a_store_also_when_stopped(both, tmp_path):
    for name in ("store", "streamed"):
        training = Training(
            str(both / name), epochs=3, batch_size=8, width=8, precision="32",
            missing={"png": 0.1}, augment={"png": "picture"}, checkpoint_every=0.0,
        )  # fmt: skip
        cell = Cell(training, "relearn(every=1,times=2)", 0)
        if name == "streamed":
            with pytest.raises(KeyboardInterrupt):
                run_cell(cell, tmp_path / name, stop)
        run_cell(cell, tmp_path / name)
    assert_same(tmp_path / "store", tmp_path / "streamed")


@pytest.mark.slow
def test_killed_and_resumed_from_shards(tmp_path):
    shards(tmp_path)

    def train(folder, *more):
        command = [
            "train",
            "--data",
            tmp_path / "a-{0..1}.tar",
            "--method",
            "joint",
            "--epochs",
            12,
        ]
        command += ["--batch_size", 8, "--width", 8, "--precision", 32, "--checkpoint_every", 0]
        for name, reader in READERS.items():
            command += [f"--readers.{name}", reader]
        return forked.Forked(forked.evenly, *command, "--out", folder, *more)

    def finish(process):
        out, err = process.communicate(200)
        assert process.returncode == 0, out + err

    finish(train(tmp_path / "held"))
    killed = tmp_path / "killed"
    process = train(killed, "--stream")
    while not (killed / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "result.json").exists()
    finish(train(killed, "--stream", "--resume"))
    assert not (killed / "store" / "inputs" / "png.memmap").exists()
    assert_same(tmp_path / "held", killed)


def test_what_is_no_shard_is_not_streamed(tmp_path):
    ran = forked.run(forked.evenly, "train", "--data", "digits", "--stream", cwd=tmp_path)
    assert ran.returncode == 1
    assert "--stream goes with .tar shards; found digits. Leave it out" in ran.stderr
    assert not list(tmp_path.iterdir())
