"""In which precision a run trains, where that is left to the machine: in the faster one."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from evenly.data import Data
from evenly.lab.run.augment import Augment
from evenly.lab.run.build import build_model, build_optimizer, load_data
from evenly.lab.run.parts import Forward
from evenly.lab.run.place import Place
from evenly.lab.run.settings import Cell

STEPS = 6
"""That are timed at most, after two that are not."""
SECONDS = 2.0
"""After which no further step of a precision is timed."""
MARGIN = 1.1
"""By how much bf16 must be faster: it is coarser, and a tie would fall either way."""


def has_bf16() -> bool:
    """Whether this machine has units for bf16 products: a GPU, AMX or AVX-512."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def decided(
    cell: Cell, known: Mapping[str, Any], data: Data | None = None
) -> tuple[Cell, Data | None]:
    """The same cell with a precision, where that is left to the machine.

    Args:
        cell: What runs.
        known: The settings of its folder so far, where an earlier call has written it down.
        data: Of the run, if they are loaded.

    Returns:
        The cell, and the data if they are loaded now.
    """
    training = cell.training
    if training.precision != "auto":
        return cell, data
    precision = known.get("precision", "auto")
    if precision == "auto":
        data = load_data(training) if data is None else data
        precision, _ = faster(cell, data)
    return replace(cell, training=replace(training, precision=precision)), data


def faster(cell: Cell, data: Data) -> tuple[Literal["bf16", "32"], str]:
    """The faster precision for a model, by a few steps of it.

    Args:
        cell: Whose model, on its own method's head, is trained without the method.
        data: Of the run.

    Returns:
        The precision, and a sentence on why.
    """
    if not has_bf16():
        return "32", "this machine has no units for bf16 matrix products"
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(cell.training.threads)
    try:
        with torch.random.fork_rng():
            single, half = (_seconds(cell, data, device, bf16=bf16) for bf16 in (False, True))
    finally:
        torch.set_num_threads(before)
    found: Literal["bf16", "32"] = "bf16" if single > MARGIN * half else "32"
    return found, f"a step takes {1e3 * half:.3g} ms in bf16, {1e3 * single:.3g} in 32-bit floats"


def _seconds(cell: Cell, data: Data, device: torch.device, *, bf16: bool) -> float:
    """The shortest of a few steps of training, in seconds."""
    model = build_model(data, cell).to(device)
    forward = Forward(Place(device, "bf16" if bf16 else "32"), Augment({}, data.modalities, 0))
    optimizer = build_optimizer(model, cell.training)
    train = data.split("train")
    batch = train.__getitems__(range(min(cell.training.batch_size, len(train))))
    start, shortest = time.perf_counter(), float("inf")
    for step in range(STEPS + 2):
        began = time.perf_counter()
        with forward.place.autocast():
            output, target = forward(model, batch)
            loss = nn.functional.cross_entropy(output.logits, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.perf_counter()
        if step > 1 or ended - start > SECONDS:
            shortest = min(shortest, ended - began)
        if ended - start > SECONDS:
            break
    return shortest
