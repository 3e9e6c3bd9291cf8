"""Methods that write weights or gradients, on encoders whose parameters are of odd kinds."""

from functools import partial

import pytest
import torch
from torch import nn

import support
from support import CASES, DENSE, Run, equal, info, weights

WRITING = [case for case in CASES if info(case).writes in ("weights", "gradients")]


class Odd(nn.Module):
    """An encoder with a parameter of a kind, or with one of a plain kind that does the same."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind, self.out_features = kind, width
        self.linear = nn.Linear(5, width)
        if kind in ("sparse", "dense"):
            self.table = nn.Embedding(9, width, sparse=kind == "sparse")
        elif kind in ("complex", "pairs"):
            pairs = torch.randn(5, 5, 2)
            self.turn = nn.Parameter(torch.view_as_complex(pairs) if kind == "complex" else pairs)
        else:
            self.tied = nn.Linear(5, width)
            self.tied.weight = self.linear.weight
            base = torch.randint(-9, 9, (5, 5), dtype=torch.int8)
            self.base = nn.Parameter(base, requires_grad=False)

    def forward(self, x):
        x = x.flatten(1)
        if self.kind in ("sparse", "dense"):
            return self.linear(x) + self.table((4 * x[:, :3]).long().clamp(-4, 4) + 4).sum(1)
        if self.kind in ("complex", "pairs"):
            turn = self.turn if self.kind == "complex" else torch.view_as_complex(self.turn)
            return self.linear((x.to(turn.dtype) @ turn).abs())
        return self.linear(x) + self.tied(x @ self.base.float())


def run_of(case, kind, monkeypatch):
    monkeypatch.setattr(support, "Encoder", partial(Odd, kind=kind))
    # Momentum would be for the optimiser to keep sparse.
    return Run(case, optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.02))


def values(run):
    return {
        name: torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
        for name, p in run.model.named_parameters()
    }


REFUSING = [case for case in WRITING if DENSE & set(case.split("+"))]


@pytest.mark.parametrize("case", REFUSING)
def test_a_method_that_writes_to_every_number_refuses_sparse_gradients(case, monkeypatch):
    """Before the first step."""
    run = run_of(case, "sparse", monkeypatch)
    before = weights(run.model)
    said = r"every number of a gradient, but that of 'table.weight' is sparse\. Build its layer"
    with pytest.raises(ValueError, match=said):
        run.train(1)
    assert equal(weights(run.model), before)


@pytest.mark.parametrize(
    ("case", "kind", "plain"),
    [
        *((case, "sparse", "dense") for case in WRITING if case not in REFUSING),
        *((case, "complex", "pairs") for case in WRITING),
    ],
)
def test_they_learn_as_plain_ones_do(case, kind, plain, monkeypatch):
    found, expected = (values(run_of(case, x, monkeypatch).train(3)) for x in (kind, plain))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", WRITING)
def test_tied_weights_and_a_quantised_base(case, monkeypatch):
    run = run_of(case, "quantised", monkeypatch).train(3)
    for encoder in run.model.encoders.values():
        assert encoder.tied.weight is encoder.linear.weight
        assert encoder.base.dtype == torch.int8
    state = run.reloaded(case).train(4, start=3).state()["model"]
    uninterrupted = run.train(4, start=3).state()["model"]
    assert all(torch.equal(uninterrupted[name], value) for name, value in state.items())
