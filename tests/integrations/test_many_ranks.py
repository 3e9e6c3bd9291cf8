"""Several processes through the adapters: equal weights on each, and equal to one process's."""

import os
import socket
from functools import cache
from pathlib import Path

import pytest
import torch
from on_many_ranks import NAMED, ON_FOUR, RESUMED
from toy import raw_loop

import forked
from many_ranks import in_one_process
from support import info

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.xdist_group("many ranks"),  # started once
]
STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """What each rank found: all runs of an adapter, as starting processes takes longer."""
    folder = tmp_path_factory.mktemp("ranks")

    @cache
    def start(adapter, world):
        if world > 2:  # which goes on from what two ranks saved
            start(adapter, 2)
        # As torchrun sets them.
        every = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        every |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        every |= {"TORCHELASTIC_RUN_ID": "none", "CUDA_VISIBLE_DEVICES": ""}
        ranks = [
            forked.Forked(
                forked.script,
                HERE / "on_many_ranks.py",
                adapter,
                folder,
                env={**os.environ, **every, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world)
        ]
        try:
            said = [rank.communicate(250)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0] * world, said
        files = [folder / f"{adapter}-{rank}-of-{world}.pt" for rank in range(world)]
        return [torch.load(file, weights_only=True) for file in files]

    return start


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def worlds(*counts):
    """Numbers of processes."""
    return pytest.mark.parametrize("world", counts)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("case", "world"), [(case, 2) for case in NAMED] + [(case, 4) for case in ON_FOUR]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lightning_equals_one_process_on_the_same_global_batches(strategy, case, world, on_ranks):
    first, *others = (found[strategy, case] for found in on_ranks("lightning", world))
    if strategy == "fsdp" and not info(case).sharded:
        for text in (first, *others):
            assert "does not work on parameters that are sharded over ranks" in text
        return
    for other in others:
        assert_equal(first, other)
    for name, expected in in_one_process(case).items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=5e-6)


@worlds(2, 4)
@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lightning_resumed_on_many_ranks_equals_uninterrupted(strategy, case, world, on_ranks):
    for found in on_ranks("lightning", world):
        resumed, uninterrupted = found[strategy, case, "resumed"], found[strategy, case]
        if strategy == "fsdp" or world == 2:
            assert_equal(resumed, uninterrupted)
        # DDP fills its buckets in another order in its first step, so that sums of more than two
        # numbers are rounded in another way.
        torch.testing.assert_close(resumed, uninterrupted, rtol=1e-5, atol=1e-6)


@worlds(2, 4)
def test_a_sharded_run_resumes_from_a_checkpoint_in_one_file(world, on_ranks):
    for found in on_ranks("lightning", world):
        assert_equal(found["fsdp", "relearn", "one file"], found["fsdp", "relearn"])
        assert_equal(found["fsdp", "relearn", "one file", "resumed"], found["fsdp", "relearn"])


@pytest.mark.parametrize("case", RESUMED)
def test_four_ranks_go_on_from_what_two_saved(case, on_ranks):
    uninterrupted = on_ranks("lightning", 2)[0]["fsdp", case]
    for found in on_ranks("lightning", 4):
        torch.testing.assert_close(
            found["fsdp", case, "from two"], uninterrupted, rtol=1e-4, atol=5e-6
        )


@worlds(2, 4)
def test_a_sampler_of_fewer_ranks_is_refused(world, on_ranks):
    for found in on_ranks("lightning", world):
        assert f"shares the samples among 1 rank(s), but {world} train" in found["few"]


@worlds(2)
@pytest.mark.parametrize("name", ["joint", "relearn", "ogm_ge"])
def test_transformers_equals_one_process_on_the_same_global_batches(name, world, on_ranks):
    first, *others = (found[name] for found in on_ranks("transformers", world))
    for other in others:
        assert_equal(first["model"], other["model"])
    model, _ = raw_loop(name, n=48)
    for key, expected in model.state_dict().items():
        torch.testing.assert_close(first["model"][key], expected, rtol=1e-4, atol=1e-5)
    if name == "relearn":
        assert {tuple(rank["epochs"]) for rank in (first, *others)} == {(3, 5)}
