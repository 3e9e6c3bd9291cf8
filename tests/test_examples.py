"""The examples run as a reader would run them: a process each, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import forked

EXAMPLES = Path(__file__).parents[1] / "examples"
FLOOR = 0.7  # of ten classes; joint training reaches 0.8 in as many epochs
NAMES = ["raw_loop", "lightning_trainer", "transformers_trainer", "ddp_loop", "lightning_ranks"]
# Gloo's threads may let go of a tensor while Python ends, and then the process aborts with all its
# work done (PyTorch's pull request 179291): seen once, on a busy machine.
ABORTED = "terminate called without an active exception"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def ran(script, folder, *arguments):
    done = forked.run(one_thread, script, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_thread(script, *arguments):
    torch.set_num_threads(1)  # beside other tests, more would only wait for each other
    forked.script(script, *arguments)


@pytest.fixture(scope="module")
def raw_loop(tmp_path_factory):
    """What the first example prints."""
    return ran(EXAMPLES / "raw_loop.py", tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.xdist_group("raw loop")
def test_the_raw_loop_prints_accuracy_and_diagnosis(raw_loop):
    check(raw_loop)


@pytest.mark.parametrize("name", NAMES[1:3])
def test_runs_and_prints_accuracy_and_diagnosis(name, tmp_path):
    check(ran(EXAMPLES / f"{name}.py", tmp_path))


@pytest.mark.slow
@pytest.mark.distributed
def test_runs_on_two_processes(tmp_path):
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(EXAMPLES / "ddp_loop.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout
    assert done.returncode == 0 or ABORTED in done.stderr, output + done.stderr
    assert "replicas are equal: True" in output
    check(output)


@pytest.mark.slow
@pytest.mark.distributed
def test_runs_where_slurm_starts_the_processes(tmp_path):
    """With the variables that `srun` sets for each of two tasks on one node."""
    job = str(os.getpid())  # which Lightning makes the port of
    node = {"JOB_ID": job, "JOB_NAME": "train", "NODELIST": "127.0.0.1", "NNODES": "1"}
    ranks = []
    for rank in ("0", "1"):
        task = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NODEID": "0"}
        task |= {"PROCID": rank, "LOCALID": rank}
        slurm = {f"SLURM_{name}": value for name, value in (node | task).items()}
        ranks.append(
            forked.Forked(
                one_thread,
                EXAMPLES / "lightning_ranks.py",
                "fsdp",
                cwd=tmp_path,
                env={**os.environ, **slurm},
            )
        )
    try:
        (first, said), _ = [rank.communicate() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    check(first)


def check(output):
    """An accuracy above the floor, and a diagnosis."""
    accuracy = float(re.search(r"^validation accuracy: ([\d.]+)$", output, re.MULTILINE)[1])
    assert accuracy > FLOOR
    table = output[output.index("modality") :].splitlines()
    assert table[0].split()[:3] == ["modality", "purity", "train"]
    assert [row.split()[0] for row in table[1:3]] == ["top", "bottom"]
    for row in table[1:3]:
        train, val, gap, error, strength = map(float, re.sub(r"\(.*?\)", "", row).split()[1:])
        assert 0 < val <= 1
        assert gap == pytest.approx(abs(train - val), abs=2e-3)
        assert 0 < error < 0.1
        assert 0 <= strength < 1


@pytest.mark.parametrize("name", NAMES)
def test_is_short_and_marks_the_lines_of_the_library(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < 100
    assert 4 <= sum("# evenly: " in line for line in lines) <= 6


@pytest.mark.slow
@pytest.mark.xdist_group("raw loop")
def test_raw_loop_resumed_equals_the_uninterrupted_run(raw_loop, tmp_path):
    script = (EXAMPLES / "raw_loop.py").read_text()
    stopped = tmp_path / "stopped.py"
    stopped.write_text(script.replace("epochs = 25\n", "epochs = 12\n"))
    assert "epoch 11:" in ran(stopped, tmp_path)
    resumed = ran(EXAMPLES / "raw_loop.py", tmp_path, "--resume")
    assert resumed.startswith("epoch 12:")
    assert raw_loop.endswith(resumed)
