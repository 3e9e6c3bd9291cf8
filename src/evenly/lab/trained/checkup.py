"""A checkup of trained runs, or of data before any other training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evenly.diagnosis.checkup import checkup
from evenly.diagnosis.findings import Checkup
from evenly.errors import UserError
from evenly.lab.run.build import build_criterion, info_of, load_data
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import joined
from evenly.lab.run.precision import decided
from evenly.lab.run.prepare import prepare, say
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, read_settings
from evenly.lab.trained.load import opened

LEAST = 10
"""Minimum epochs of a short training, if the run has as many."""


_INSTEAD = (
    "For regression, the report of 'evenly compare --methods joint' shows what each modality adds."
)


def short(epochs: int) -> int:
    """Epochs of the short trainings in a run's checkup: a third of its own, or ten.

    Never more than its own: an encoder trained longer alone would make the run look too short.
    """
    return min(max(epochs // 3, LEAST), epochs)


def trained_for(folder: Path, cell: Cell) -> int:
    """Epochs that a run has trained, which its patience may have ended early."""
    result = Result.read(folder)
    return cell.training.epochs if result is None else result.epochs


def runs_opened(
    folders: Sequence[Path], data: str | None, *, trust: bool
) -> list[tuple[Path, Cell, dict[str, torch.Tensor]]]:
    """Folder, settings and selected weights of each run; a note says if one has not finished.

    Args:
        folders: Folders of runs that differ only in their seed.
        data: Where their data are now, if they have moved.
        trust: Whether to import what is named by import path.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If the runs differ in more than their seed, train one modality alone, or
            predict numbers.
    """
    found = []
    for folder in folders:
        if folder.is_file():
            raise UserError(f"{folder} is a file, but a run is a folder. Give data as --data.")
        cell, best = opened(folder, trust=trust)
        if info_of(cell.method).alone:
            raise UserError(
                f"{folder} uses only one modality, so there is nothing to compare. Give a run "
                "that uses all, such as joint-0."
            )
        if data is not None:
            cell = replace(cell, training=replace(cell.training, data=data))
        if cell.training.task == "number":
            raise UserError(
                f"{folder} predicts numbers, but a checkup needs classes or labels. {_INSTEAD}"
            )
        _check_data(folder, cell)
        say(best.unfinished(folder))
        found.append((folder, cell, dict(best.state_dict)))
    first = found[0][1]
    for folder, cell, _ in found[1:]:
        if cell == first:
            raise UserError(f"{folder} and {found[0][0]} are the same run. Give each once.")
        if replace(cell, seed=first.seed) != first:
            raise UserError(
                f"{folder} differs from {found[0][0]} in more than its seed. Check them one by one."
            )
    return found


def _check_data(folder: Path, cell: Cell) -> None:
    """Raises if a run's data file has changed since training."""
    known = read_settings(folder / "config.yaml", "method").get("data_sha256")
    if known != cell.as_dict().get("data_sha256"):
        raise UserError(
            f"{cell.training.data} is not what {folder} was trained on, or has changed since. "
            "Give its data with --data."
        )


def of_run(
    cell: Cell, weights: dict[str, torch.Tensor], epochs: int, *, interactions: bool = False
) -> Checkup:
    """The checkup of a run, with its encoders trained alone from the run's initial weights.

    Args:
        cell: Its settings.
        weights: The weights that validation selected.
        epochs: Epochs of the short training.
        interactions: See `evenly.checkup`.
    """
    data, _ = prepare([cell])
    torch.set_num_threads(cell.training.threads)
    with joined(cell.training) as place:
        parts = Parts.of(cell, data, place)
        initial = {name: x.clone() for name, x in parts.model.state_dict().items()}
        parts.load_weights(weights)
        return _checked(parts, initial, epochs, interactions)


def of_data(cell: Cell, epochs: int, *, interactions: bool = False) -> Checkup:
    """The checkup of a model trained jointly for as many epochs as its encoders alone.

    Raises:
        ValueError: If the data have numbers to regress on.
    """
    data = load_data(cell.training)
    if data.task.name == "number":
        raise UserError(
            f"{data.name} has numbers to regress on, but a checkup needs classes or labels. "
            f"{_INSTEAD}"
        )
    undiagnosed = replace(cell.training, diagnose_every=0)  # a checkup asks for less
    cell, _, _ = decided(replace(cell, training=undiagnosed), {}, data)
    data, _ = prepare([cell], data)
    torch.set_num_threads(cell.training.threads)
    with joined(cell.training) as place:
        return _checked(Parts.of(cell, data, place), None, epochs, interactions)


def _checked(
    parts: Parts, initial: dict[str, torch.Tensor] | None, epochs: int, interactions: bool
) -> Checkup:
    if parts.model.head.meets:
        head = info_of(parts.cell.method).head
        what, instead = f"the head '{head}' of {parts.cell.method}", "Check a run of another method"
        if head == "concat":
            what = f"--fusion {parts.cell.training.fusion}"
            instead = "Use a fusion of features, such as concat"
        raise UserError(
            f"{what} mixes modalities inside the encoders, so a checkup cannot separate them. "
            f"{instead}."
        )
    return checkup(
        parts.model,
        parts.forward,
        parts.train,
        parts.in_order("val"),
        parts.model.encoders,
        initial=initial,
        optimizer=parts.optimizer,
        epochs=epochs,
        criterion=build_criterion(parts.data, parts.cell.training),
        seed=parts.cell.seed,
        interactions=interactions,
    )
