import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import raw_loop

HERE = Path(__file__).parent


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["joint", "relearn", "ogm_ge"])
@pytest.mark.parametrize("adapter", ["lightning", "transformers"])
def test_two_ranks_equal_one_process_on_the_same_global_batches(adapter, name, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "on_two_ranks.py"), adapter, name, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    model, _ = raw_loop(name, n=48)
    for key, expected in model.state_dict().items():
        assert torch.equal(first["model"][key], second["model"][key]), key
        torch.testing.assert_close(first["model"][key], expected, rtol=1e-4, atol=1e-5)
    if name == "relearn":
        assert first["epochs"] == second["epochs"] == [3, 5]
