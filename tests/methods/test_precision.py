"""Models of fewer bits, and steps that do not wait for the device."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import evenly
from support import CASES, Run, forward


def narrow(model, batch):
    inputs, target, index = batch
    return model({name: x.bfloat16() for name, x in inputs.items()}, index), target


@pytest.mark.parametrize("name", CASES)
def test_a_model_in_bfloat16(name):
    """Weights and all, as Lightning's "bf16-true" has it."""
    run = Run(name)
    run.model.bfloat16()
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    probe = evenly.Probe(run.model, narrow, run.train_loader, run.val_loader)
    for epoch in range(3):
        run.method.before_epoch(epoch, probe)
        for batch in run.train_loader:
            run.method.backward(run.method.loss(*narrow(run.model, batch)))
            run.method.before_step()
            run.optimizer.step()
            run.optimizer.zero_grad()
    for p in run.model.parameters():
        assert p.dtype == torch.bfloat16
        assert p.isfinite().all()
    assert any(not torch.equal(p, before[name]) for name, p in run.model.named_parameters())


class NoNumbers(TorchFunctionMode):
    """Refuses what makes a tensor of Python's numbers: on a GPU, a copy that is waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_a_step_copies_no_numbers_to_the_device(name):
    run = Run(name)
    for epoch in range(3):
        run.method.before_epoch(epoch, run.probe)
        for batch in run.train_loader:
            output, target = forward(run.model, batch)
            with NoNumbers():
                run.method.backward(run.method.loss(output, target))
                run.method.before_step()
            run.optimizer.step()
            run.optimizer.zero_grad()
