"""Several processes train one model: equal weights on each, and equal to one process's."""

import tempfile
import traceback
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

import evenly
from many_ranks import Straight, few_clusterings, in_one_process, on_ranks, train
from support import CASES, Toy, forward, info, make, net, sgd, weights

pytestmark = pytest.mark.distributed
CHUNK = 12  # cases that share two processes: starting them takes longer than training


def chunks(names):
    return {
        case: tuple(names[n : n + CHUNK])
        for n in range(0, len(names), CHUNK)
        for case in names[n : n + CHUNK]
    }


def grouped(names):
    """Each case with its chunk; a chunk's tests run one after the other in one worker."""
    return [
        pytest.param(case, chunk, marks=pytest.mark.xdist_group(f"ranks of {chunk[0]}"), id=case)
        for case, chunk in chunks(list(CASES)).items()
        if case in names
    ]


def train_all(rank, world, chunk):
    """By case and way of training, what it gives, or the text of what it raised."""
    found = {}
    for case in chunk:
        for way in (train, sharded) if info(case).sharded else (train,):
            try:
                found[case, way.__name__] = way(rank, world, case)
            except Exception:  # the others of the chunk are to be tested all the same
                found[case, way.__name__] = traceback.format_exc()
    return found


@cache
def on_two(chunk):
    with tempfile.TemporaryDirectory() as folder:
        return on_ranks(train_all, Path(folder), chunk)


def found_by(case, chunk, way):
    ranks = [rank[case, way.__name__] for rank in on_two(chunk)]
    for rank in ranks:
        assert not isinstance(rank, str), rank
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize(("case", "chunk"), grouped(CASES))
def test_replicas_are_equal_bit_for_bit_and_equal_one_process(case, chunk):
    ranks = found_by(case, chunk, train)
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])
    if info(case).within_batch:
        return  # a rank compares its own samples: another batch than one process's
    # DDP gives every rank rank 0's weights before the first epoch.
    for key, value in in_one_process(case).items():
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-4, atol=2e-6)


def look(rank, world):
    """Features of every row, each on one rank, whatever the sampler."""
    model, dataset = net(), Toy(11)
    found = {}
    for kind, sampler in (
        ("split", DistributedSampler(dataset, world, rank)),
        ("whole", SequentialSampler(dataset)),
    ):
        loader = DataLoader(dataset, 4, sampler=sampler)
        found[kind] = evenly.Probe(model, forward, loader, loader).features("train")
    custom = DataLoader(dataset, batch_sampler=[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    found["custom"] = evenly.Probe(model, forward, custom, custom).features("train")
    try:
        evenly.Probe(model, without_index, custom, custom).features("train")
    except ValueError as error:
        found["error"] = str(error)
    return found


def without_index(model, batch):
    output, target = forward(model, batch)
    return evenly.Output(output.logits, output.features), target


def test_a_probe_sees_each_row_on_one_rank(tmp_path):
    ranks = on_ranks(look, tmp_path)
    for kind in ("split", "whole", "custom"):
        parts = [rank[kind] for rank in ranks]
        assert all(part.sharded for part in parts)
        assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(11))
        for part in parts:
            assert torch.equal(part.target, Toy(11).target[part.index])
    assert "needs `Output.index`" in ranks[0]["error"]


def diagnose(rank, world, gap, kind="classes"):
    few_clusterings(world)
    return diagnosed(rank, world, gap, kind)


def diagnosed(rank, world, gap, kind="classes"):
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(3, 8, generator=stream)[y] * 0.8 + torch.randn(90, 8, generator=stream)

    if kind == "labels":
        y = torch.stack([y == 0, y < 2, torch.arange(90) % 5 == 0], 1)
    if kind == "numbers":  # of ten bins and of three values
        y = torch.stack([x[:, 0], y + 0.5], 1)

    def part(rows):
        mine = rows[rank::world] if world > 1 else rows
        return evenly.Features({"m": x[mine]}, y[mine], mine, sharded=world > 1)

    return evenly.diagnose(part(torch.arange(60)), part(torch.arange(60, 89)), gap=gap)


@pytest.mark.parametrize(
    ("gap", "kind"),
    [
        *((gap, "classes") for gap in ("paper", "matched", "shared", "stable")),
        ("stable", "labels"),
        ("stable", "numbers"),
    ],
)
def test_a_diagnosis_is_the_same_on_any_number_of_ranks(gap, kind, tmp_path):
    ranks = on_ranks(diagnose, tmp_path, gap, kind, world=3)
    alone = diagnose(0, 1, gap, kind)
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0].gap["m"] == pytest.approx(alone.gap["m"], abs=1e-9)
    assert ranks[0].train["m"] == pytest.approx(alone.train["m"], abs=1e-9)
    assert ranks[0].standard_error["m"] == pytest.approx(alone.standard_error["m"], abs=1e-9)


def bad(rank, world):
    x = torch.zeros(4, 2)
    x[1, 0] = float("nan") if rank == 1 else 0.0
    split = evenly.Features({"m": x}, torch.arange(4) % 2, torch.arange(4) + 4 * rank, sharded=True)
    try:
        evenly.diagnose(split, split)
    except ValueError as error:
        return str(error)


def test_one_ranks_nan_stops_all_of_them(tmp_path):
    """The others would wait for ever in the next reduction."""
    assert all("row 5 of the training split" in text for text in on_ranks(bad, tmp_path))


def alone_among_many(rank, world):
    """Features that are not sharded need no other rank: rank 0 may look by itself."""
    if rank == 0:
        return diagnose(0, 1, "matched")
    return None


def test_whole_features_need_no_other_rank(tmp_path):
    assert on_ranks(alone_among_many, tmp_path)[0] == diagnose(0, 1, "matched")


def sharded(rank, world, case):
    """FSDP2 shards each parameter over the ranks; the result is brought together again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    return train(rank, world, case, 0, lambda model: fully_shard(model, mesh=mesh), evaluate)


@torch.no_grad()
def evaluate(model):
    """As a loop does between epochs: it leaves FSDP2 with whole copies of parameters."""
    model.eval()
    forward(model, next(iter(DataLoader(Toy(18, seed=2), 5))))
    model.train()


@pytest.mark.parametrize(("case", "chunk"), grouped([case for case in CASES if info(case).sharded]))
def test_sharded_parameters_equal_one_process(case, chunk):
    ranks = found_by(case, chunk, sharded)
    for key, value in ranks[0].items():
        assert torch.equal(value, ranks[1][key])
        if not info(case).within_batch:
            torch.testing.assert_close(value, in_one_process(case)[key], rtol=1e-4, atol=2e-6)


OFF = [
    ("mcr", {"unimodal": 0.0}),
    ("mcr", {"unimodal": 0.0, "bottleneck": 0.0}),
    ("multi_loss", {"weight": 0.0}),
    ("pggb", {"unimodal": 0.0}),
]


def without_unimodal_losses(rank, world):
    """By settings, the weights after four steps; DDP waits for what the output depends on."""
    found = []
    for name, settings in OFF:
        model = Straight(0, info(name).head)
        optimizer = sgd(model)
        method = make(name, model, optimizer, **settings)
        trained = DistributedDataParallel(model, find_unused_parameters=method.info.partial)
        loader = DataLoader(Toy(32), 8, sampler=DistributedSampler(Toy(32), world, rank))
        method.before_epoch(0, evenly.Probe(trained, forward, loader, loader))
        for batch in [*loader, *loader]:
            method.backward(method.loss(*forward(trained, batch)))
            method.before_step()
            optimizer.step()
            optimizer.zero_grad()
        found.append(weights(model))
    return found


def test_without_unimodal_losses_replicas_are_equal(tmp_path):
    ranks = on_ranks(without_unimodal_losses, tmp_path)
    for one, other in zip(*ranks, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
