"""Before any training: builds and tries what is requested, and prints notes for the user."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from tqdm import tqdm

from evenly.data import Data, SplitName
from evenly.data.dataset import SPLITS
from evenly.errors import UserError
from evenly.lab.run.augment import Augment
from evenly.lab.run.build import (
    build_criterion,
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    check_task,
    frozen,
    load_data,
    method_settings,
    with_missing,
)
from evenly.lab.run.contract import contract_notes
from evenly.lab.run.diagnoses import check_diagnoses
from evenly.lab.run.kept import keeps
from evenly.lab.run.measures import check_measures, measures
from evenly.lab.run.settings import CALLED, Cell, Training
from evenly.method import Method
from evenly.methods.composed import parts
from evenly.methods.relearn import Relearn
from evenly.nn import LateFusion
from evenly.optimizers import divides_size
from evenly.probe import trained_batchnorms
from evenly.spec import Spec, together

UNEQUAL = 10
"""Ratio of the largest to the smallest class from which on a note proposes macro-F1."""


def prepare(cells: Sequence[Cell], data: Data | None = None) -> tuple[Data, list[str]]:
    """Finds what would fail in training, on a model that is then discarded.

    Args:
        cells: Cells of one seed, one for each method, with the same training except for what
            a search or `--settings published` gives each method.
        data: The cells' data, if already loaded.

    Returns:
        The data, and notes for the user.

    Raises:
        ValueError: If something is wrong with the data, an encoder or a method, or too few samples
            have a modality for a planned diagnosis.
    """
    training = cells[0].training
    data = load_data(training) if data is None else data
    notes = list(data.notes)
    for cell in cells:
        check_task(cell, data)
    models = [build_model(data, cell) for cell in cells]
    Augment(training.augment, data.modalities, 0)
    seen = with_missing(data, cells[0])
    lack = {split: seen.lacks(split) for split in SPLITS if seen.has(split)}
    notes += _missing_notes(cells[0], seen, lack)
    widest = max(models, key=lambda model: len(model.encoders))
    notes.append(_encoder_note(widest, data))
    if once := keeps(widest, data, training):
        notes.append(
            f"the encoder of {', '.join(once)} is frozen, so its features are computed once and "
            "kept with the runs."
        )
    own = measures(training.metrics)
    check_measures(own, data.task, data.split("val").target)
    if training.select not in (None, *data.task.metrics, *own):
        listed = ", ".join([*data.task.metrics, *own])
        raise UserError(
            f"--select {training.select} does not apply to {data.name}. Choose from: {listed}."
        )
    notes += _class_notes(data, training)
    built: list[tuple[Cell, LateFusion, Method]] = []
    for cell, model in zip(cells, models, strict=True):
        criterion = build_criterion(data, cell.training)
        optimizer = build_optimizer(model, cell.training)
        method = build_method(cell, model, optimizer, build_sampler(data, cell), criterion)
        built.append((cell, model, method))
        notes += _method_notes(cell, method, divides_size(optimizer))
        notes += contract_notes(cell, data)
        if lack["train"] and not method.info.missing:
            notes.append(
                f"{cell.method}: is not designed for missing modalities; it treats their zeros "
                "as features."
            )
        if training.accumulate > 1:
            notes += _pass_notes(cell, method)
        still = frozen(model.encoders)
        if still and any(isinstance(part, Relearn) for part in parts(method)):
            listed = ", ".join(still)
            notes.append(f"{cell.method}: does nothing to {listed}, whose encoder is frozen.")
        if training.world > 1:
            notes += _share_notes(cell, method)
    check_diagnoses(built, seen)
    if training.world > 1 and not torch.cuda.is_available() and _normed(widest.encoders):
        notes.append("BatchNorm uses the statistics of each process's share of a batch.")
    if training.accumulate > 1 and _normed(widest.encoders):
        notes.append("BatchNorm uses the statistics of each pass of --accumulate.")
    return data, notes


def say(notes: Iterable[str]) -> None:
    """Prints notes, separate from the actual output."""
    for note in notes:
        tqdm.write(f"note: {note}", file=sys.stderr)


def _encoder_note(model: LateFusion, data: Data) -> str:
    """How each modality was interpreted, if a file's form leaves that to its shape."""
    still = frozen(model.encoders)
    parts = [
        f"{name}, {modality.kind} {modality.shape}: {type(model.encoders[name]).__name__}"
        f"{', frozen' * (name in still)}"
        for name, modality in data.modalities.items()
        if name in model.encoders
    ]
    return f"encoders: {'; '.join(parts)}."


def _class_notes(data: Data, training: Training) -> list[str]:
    """What selects better than accuracy if the user has not chosen and classes are unequal."""
    if data.task.name != "classes" or training.select is not None:
        return []
    counts = data.split("train").target.bincount(minlength=len(data.class_names))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] < UNEQUAL * counts[least]:
        return []
    return [
        f"class '{data.class_names[most]}' has {counts[most]} training samples and "
        f"'{data.class_names[least]}' has {counts[least]}, so accuracy hardly counts rare classes: "
        "--select macro_f1 selects the epoch by all classes alike (docs/tasks.md)."
    ]


def _missing_notes(
    cell: Cell, data: Data, lack: Mapping[SplitName, Mapping[str, int]]
) -> list[str]:
    """What is missing if the settings say so, and what replaces it."""
    training = cell.training
    notes = []
    taken = [name for of in training.lacking.values() for name, rate in of.items() if rate]
    for name in dict.fromkeys(taken):
        counts = [
            f"{of_split.get(name, 0)} of {len(data.split(split))} {CALLED[split]}"
            for split, of_split in lack.items()
        ]
        *others, last = counts
        notes.append(
            f"'{name}' is missing from {', '.join(others)} and {last} samples (drawn with seed "
            f"{cell.seed}; other seeds draw others)."
        )
    if training.missing_token and not lack["train"]:
        notes.append(
            "--missing-token: no training sample lacks a modality, so only methods that leave some "
            "out learn the vectors."
        )
    return notes


def _method_notes(cell: Cell, method: Method, size_is_lost: bool) -> list[str]:
    specs = together(cell.method)
    said = [cell.method] if len(specs) == 1 else [spec.text for spec in specs]  # as written
    notes = []
    for name, spec, part in zip(said, specs, parts(method), strict=True):
        notes += _notes_of(name, spec, part, cell, size_is_lost)
    if cell.training.fusion != "concat" and method.info.head != "concat":
        notes.append(f"{cell.method}: keeps its own head, '{method.info.head}'.")
    if cell.training.missing_token and not method.info.fused:
        notes.append(
            f"{cell.method}: its loss does not reach the fused logits, so it learns no vector "
            "(--missing-token); its prediction leaves out what is missing."
        )
    return notes


def _notes_of(name: str, spec: Spec, method: Method, cell: Cell, size_is_lost: bool) -> list[str]:
    notes = []
    info = method.info
    given = spec.settings
    settings = method_settings(replace(cell, method=spec.text))
    epochs = cell.training.epochs
    scaled = [key for key in info.in_epochs if key not in given and settings[key]]
    values = [f"{key}={settings[key]}" for key in scaled]
    if values and epochs != info.epochs:
        notes.append(
            f"{name}: {', '.join(values)}, its schedule of {info.epochs} epochs scaled to {epochs}."
        )
    if not any(method.is_due(epoch) for epoch in range(epochs)):
        first = next((epoch for epoch in range(epochs, 100 * epochs) if method.is_due(epoch)), None)
        more = "" if first is None else f" (first before epoch {first}, counted from 0)"
        notes.append(f"{name}: its schedule does nothing in these {epochs} epochs{more}.")
    if (
        isinstance(method, Relearn)
        and method.batchnorm == "reestimated"
        and not any(any(trained_batchnorms(encoder)) for encoder in method.encoders.values())
    ):
        notes.append(
            f"{name}: no encoder trains a BatchNorm, so there are no statistics to re-estimate."
        )
    if info.scales_gradients and size_is_lost:
        notes.append(
            f"{name} acts through the size of gradients, which {cell.training.optimizer} "
            "divides out: compare it with --optimizer sgd."
        )
    return notes


def _share_notes(cell: Cell, method: Method) -> list[str]:
    """How training differs if several processes share a batch."""
    if cell.training.strategy == "fsdp" and not method.info.sharded:
        raise UserError(
            f"{cell.method} does not work on sharded parameters (--strategy fsdp). Use ddp."
        )
    if not method.info.within_batch:
        return []
    return [f"{cell.method}: compares samples within a batch; here, within each process's share."]


def _pass_notes(cell: Cell, method: Method) -> list[str]:
    """How training differs if several passes make a step."""
    if method.info.by_pass:
        raise UserError(
            f"{cell.method} acts on each backward pass by the samples in it, so --accumulate "
            "would turn each pass into a batch. Leave it out, and lower --batch-size."
        )
    if not method.info.within_batch:
        return []
    return [
        f"{cell.method}: compares samples within a batch; here, within each pass of --accumulate."
    ]


def _normed(encoders: Mapping[str, nn.Module] | nn.ModuleDict) -> bool:
    layers = (layer for encoder in encoders.values() for layer in encoder.modules())
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
