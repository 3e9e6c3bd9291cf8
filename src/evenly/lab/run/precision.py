"""Decides what a run leaves open: its precision, by speed, and its task, by the data."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from evenly.data import Data
from evenly.lab.run.augment import Augment
from evenly.lab.run.build import build_criterion, build_model, build_optimizer, load_data
from evenly.lab.run.kept import batch_with_features
from evenly.lab.run.parts import Forward
from evenly.lab.run.place import Place
from evenly.lab.run.settings import Cell, Training

Found = Literal["bf16", "32"]
STEPS = 10
"""Maximum number of timed steps per precision; the shortest counts."""
SECONDS = 2.0
"""Seconds of steps after which timing ends; not wall time, since the first steps are slow."""
MARGIN = 1.2
"""How much faster bf16 must be: it is coarser, and a tie could go either way."""


def has_bf16() -> bool:
    """Whether this machine has units for bf16 products: a GPU, AMX or AVX-512."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def decided(
    cell: Cell, known: Mapping[str, Any], data: Data | None = None
) -> tuple[Cell, Data | None, list[str]]:
    """The cell with open settings decided: the precision by the machine, the rest by the data.

    Args:
        cell: What runs.
        known: The folder's settings so far, where an earlier call has recorded the decision.
        data: Data of the run, if loaded.

    Returns:
        The cell; the data if now loaded; a note if steps were timed.
    """
    training = cell.training
    if training.task == "auto" or training.select is None:
        data = load_data(training) if data is None else data
        training = of_task(training, data)
        cell = replace(cell, training=training)
    if training.precision != "auto":
        return cell, data, []
    precision, notes = known.get("precision", "auto"), []
    if precision == "auto":
        data = load_data(training) if data is None else data
        precision, why = faster(cell, data)
        notes = [
            f"precision: {('bf16' if precision == 'bf16' else '32-bit floats')}, because {why}."
        ]
    return replace(cell, training=replace(training, precision=precision)), data, notes


def of_task(training: Training, data: Data) -> Training:
    """The training with the data's task, and with the default selecting metric if none is set."""
    select = training.select or data.task.main
    return replace(training, task=data.task.name, select=select)


def faster(cell: Cell, data: Data) -> tuple[Found, str]:
    """The faster precision for a model, timed over a few steps.

    Args:
        cell: The cell whose model, with its method's head, is trained without the method.
        data: Data of the run.

    Returns:
        The precision, and a sentence on the reason.
    """
    if not has_bf16():
        return "32", "this machine has no units for bf16 matrix products"
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(cell.training.threads)
    try:
        with torch.random.fork_rng():
            half, single = _shortest(_steps(cell, data, p, device) for p in ("bf16", "32"))
    except Exception as error:  # the run will meet and report it, too
        return "32", f"a step of the model fails ({type(error).__name__})"
    finally:
        torch.set_num_threads(before)
    found: Found = "bf16" if single > MARGIN * half else "32"
    times = f"{1e3 * half:.3g} ms in bf16, {1e3 * single:.3g} in 32-bit floats"
    return found, f"a step of the model of '{cell.method}' takes {times}"


def _shortest(trainings: Iterable[Iterator[float]]) -> list[float]:
    """The shortest step of each training when they take turns."""
    trainings = list(trainings)
    found = [[next(each) for each in trainings]]
    while len(found) < STEPS and sum(map(sum, found)) < SECONDS:
        found.append([next(each) for each in trainings])
    return [min(steps) for steps in zip(*found, strict=True)]


def _steps(cell: Cell, data: Data, precision: Found, device: torch.device) -> Iterator[float]:
    """Trains a model and yields the seconds of each step; processor time if that does the work.

    Frozen encoders whose features a run keeps encode the batch once, before.

    Processor time is less than wall time if other programs use the processor meanwhile.
    """
    model = build_model(data, cell).to(device)
    place = Place(device, precision)
    forward = Forward(place, data.task, Augment({}, data.modalities, 0))
    optimizer = build_optimizer(model, cell.training)
    criterion = build_criterion(data, cell.training) or nn.CrossEntropyLoss()
    criterion.to(device)
    train = data.split("train")
    batch = train.__getitems__(range(min(cell.training.batch_size, len(train))))
    batch = batch_with_features(model, data, cell.training, place, batch)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    while True:
        began = clock()
        with place.autocast():
            output, target = forward(model, batch)
            loss = criterion(output.logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield clock() - began
