"""A short check, before training, that a user's method keeps the contract of all methods.

Three epochs on made-up vectors take a second. This package's tests require more of its own.
"""

import io
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from evenly.data import Data
from evenly.data.tasks import Task
from evenly.errors import UserError
from evenly.imported import is_own
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place
from evenly.lab.run.settings import Cell, Training
from evenly.method import Method
from evenly.methods import method_named
from evenly.probe import Probe
from evenly.spec import Spec, together

EPOCHS = 3
WIDTH = 8
"""Width of the made-up vectors and of their features."""


def contract_notes(cell: Cell, data: Data) -> list[str]:
    """Checks each of the user's own methods in a cell, and reports the findings.

    Args:
        cell: What is about to run.
        data: Data of the run, whose modalities and task the made-up vectors copy.

    Raises:
        ValueError: If a method breaks the contract.
    """
    return [_note(spec, cell, data) for spec in together(cell.method) if is_own(spec.name)]


def _note(spec: Spec, cell: Cell, data: Data) -> str:
    toy = _toy(data)
    training = Training(
        task=data.task.name,
        select=cell.training.select,
        loss=cell.training.loss,
        metrics=cell.training.metrics,
        epochs=EPOCHS,
        batch_size=16,
        width=WIDTH,
        lr=0.05,
        precision="32",
        diagnose_every=0,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            kept = list(_kept(Cell(training, spec.text, 0), toy))
    except UserError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{spec.text}: its contract could not be checked, as it fails on made-up vectors "
            f"({type(error).__name__}: {error}; {where.filename}, line {where.lineno})."
        )
    return f"{spec.text}: passes the contract checks on made-up vectors: {'; '.join(kept)}."


def _kept(cell: Cell, data: Data) -> Iterator[str]:
    """The parts of the contract that the method keeps, one by one."""
    (spec,) = together(cell.method)
    neutral = method_named(spec.name).info.neutral
    whole = _begun(cell, data)
    _train(whole, 0, EPOCHS)
    weights = whole.weights()
    if not all(x.isfinite().all() for x in weights.values() if x.is_floating_point()):
        raise _broken(spec, "weights are no finite numbers after a few steps", "Look at the loss")
    yield "it leaves the global random stream alone"
    if isinstance(neutral, Mapping) and neutral:
        still = Cell(cell.training, Spec(spec.name, {**spec.settings, **neutral}).text, 0)
        one, joint = _begun(still, data), _begun(still, data)
        joint.method = Method(joint.model.encoders, criterion=one.method.criterion)
        _train(one, 0, EPOCHS)
        _train(joint, 0, EPOCHS)
        said = ", ".join(f"{key}={value}" for key, value in neutral.items())
        if not _same(one.weights(), joint.weights()):
            raise _broken(
                spec,
                f"with its neutral settings, {said}, it is not joint training",
                "Correct it, or give `Info.neutral` the settings that are, or a text that says why "
                "there are none",
            )
        yield f"{said} is joint training"
    stopped, resumed = _begun(cell, data), _begun(cell, data)
    _train(stopped, 0, 1)
    resumed.load_state_dict(_written(spec, stopped.state_dict()))
    _train(resumed, 1, EPOCHS)
    if not _same(resumed.weights(), weights):
        raise _broken(
            spec,
            "resumed after an epoch, it does not end with the same weights",
            "Name in `state` all that it remembers from step to step, and draw random numbers from "
            "`evenly.chance` or a torch.Generator in `state`",
        )
    yield "a resumed run equals an uninterrupted one"


def _broken(spec: Spec, what: str, advice: str) -> UserError:
    return UserError(f"{spec.name} breaks the contract of methods: {what}. {advice}.")


def _begun(cell: Cell, data: Data) -> Parts:
    return Parts.of(cell, data, Place(torch.device("cpu"), "32"))


def _train(parts: Parts, start: int, end: int) -> None:
    """Trains some epochs as in a run; raises if a hook changes the global random stream."""
    method = parts.method
    probe = Probe(parts.model, parts.forward, parts.train, parts.in_order("val", 16))
    for epoch in range(start, end):
        parts.begin(epoch)
        before = torch.get_rng_state()
        method.before_epoch(epoch, probe)
        _check_stream(parts, before, "before_epoch")
        for passes in parts.steps(epoch):
            for _, batch in passes:
                output, target = parts.forward(parts.shared, batch)
                before = torch.get_rng_state()
                method.backward(method.loss(output, target))
            method.before_step()
            _check_stream(parts, before, "a step")
            parts.optimizer.step()
            parts.optimizer.zero_grad()


def _check_stream(parts: Parts, before: torch.Tensor, hook: str) -> None:
    if not torch.equal(before, torch.get_rng_state()):
        (spec,) = together(parts.cell.method)
        raise _broken(
            spec,
            f"{hook} draws from torch's global random stream, which changes the order of the data "
            "and dropout",
            "Draw from `evenly.chance` or from a torch.Generator named in `state`",
        )


def _written(spec: Spec, state: dict[str, Any]) -> Any:
    """A state as restored from a checkpoint."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    except Exception as error:
        raise _broken(
            spec,
            "its `state` cannot be written to a checkpoint and read back "
            f"({str(error).strip().partition(chr(10))[0][:200]})",
            "Keep tensors, numbers, texts, and lists and dicts of these",
        ) from error


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(torch.equal(x, other[name]) for name, x in one.items())


def _toy(data: Data) -> Data:
    """Vectors for each modality, with more or less information about a target of the run's kind."""
    stream = torch.Generator().manual_seed(0)
    task, c = data.task, len(data.task.names)
    count = max(48, 4 * c)
    target = _target(task, 2 * count, stream)
    told = target if target.ndim == 2 else torch.nn.functional.one_hot(target, c)
    told = told.float() @ torch.randn(c, WIDTH, generator=stream)
    inputs = {
        name: told + (1 + n) * torch.randn(2 * count, WIDTH, generator=stream)
        for n, name in enumerate(data.modalities)
    }
    rows = torch.arange(2 * count)
    splits: Any = {"train": rows[:count], "val": rows[count:]}
    return Data("made-up vectors", inputs, target, splits, data.class_names, task=task)


def _target(task: Task, count: int, stream: torch.Generator) -> torch.Tensor:
    c = len(task.names)
    if task.name == "classes":
        return torch.arange(count) % c
    if task.name == "labels":
        return (torch.rand(count, c, generator=stream) > 0.5).float()
    return torch.randn(count, c, generator=stream)
