"""Loads a trained run from its folder, wherever that is now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from evenly.data.tasks import Task, restated
from evenly.errors import UserError, UserFileNotFoundError
from evenly.lab.run.build import check_names, fused, made_encoders
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, Training, check_trusted, read_settings
from evenly.lab.run.stored import Stored
from evenly.lab.trained.predict import Trained
from evenly.nn import ENCODERS
from evenly.spec import Spec, converted, parse


def load_run(folder: Path, *, trust: bool = False) -> Trained:
    """The model of a run, wherever its folder is now; its data are not needed.

    Args:
        folder: Folder of the run.
        trust: Whether to import what its settings name by import path, which runs that code. Set it
            only for a folder whose settings are your own, or that you have checked.

    Raises:
        FileNotFoundError: If the folder holds no run with a best checkpoint.
        ValueError: If its files are damaged, a part by import path is not trusted or cannot be
            imported, or weights are not in the folder itself.
    """
    cell, best = opened(folder, trust=trust)
    try:
        return _loaded(folder, cell, best)
    except Exception as error:  # whatever mismatched settings and weights cause
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{folder}: cannot build a model from its config.yaml and best.ckpt ({said[:300]}). "
            "Unless both are from one run, train again."
        ) from error


def opened(folder: Path, *, trust: bool = False) -> "tuple[Cell, Best]":
    """A run's settings from its folder, and its best checkpoint; raises like `load_run`."""
    path = folder / "best.ckpt"
    if (folder / "runs").is_dir() and not path.is_file():
        some = min((folder / "runs").glob("*/"), default=folder / "runs" / "joint-0")
        raise UserFileNotFoundError(
            f"{folder}: is a comparison. Give one of its runs, such as {some}."
        )
    try:
        settings = read_settings(folder / "config.yaml", "method")
    except ValueError as error:
        raise UserError(
            f"{folder / 'config.yaml'}: is damaged, or does not belong to a run. Train again."
        ) from error
    if not settings or not path.is_file():
        raise UserFileNotFoundError(
            f"{folder}: is not a run. Give the folder of a run, such as runs/digits/runs/joint-0."
        )
    result = Result.read(folder)
    if result is not None:
        result.check(path)
    if not trust:
        said = "add --trust (in Python: load_run(folder, trust=True))"
        try:
            check_trusted(settings, path.with_name("config.yaml"), said)
        except UserError as error:
            if str(folder) in str(error):
                raise
            raise UserError(
                f"{folder / 'config.yaml'}: is not as the run wrote it: {error} Train again."
            ) from error
    try:
        best = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}). Train again.") from error
    return _cell(folder / "config.yaml", settings), _best(path, best, is_final=result is not None)


def _cell(path: Path, settings: Mapping[str, Any]) -> Cell:
    """A run's settings, each in its type."""
    hints = get_type_hints(Training) | {"method": str, "seed": int}
    del hints["checkpoint_every"]  # no run records it
    try:
        if lacking := hints.keys() - settings.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}.")
        given = {name: converted(name, settings[name], hint) for name, hint in hints.items()}
        method, seed = given.pop("method"), given.pop("seed")
        parse(method)
        return Cell(Training(**given), method, seed)
    except ValueError as error:
        raise UserError(
            f"{path}: has changed since the run wrote it: {error} Train again."
        ) from error


@dataclass(frozen=True)
class Best:
    """What a best checkpoint holds: the weights, and all that `about` says.

    Attributes:
        epoch: Their epoch, from 0.
        is_final: Whether the run has finished, so that no later epoch can be better.
    """

    epoch: int
    is_final: bool
    state_dict: Mapping[str, Any]
    modalities: Mapping[str, Stored]
    configurations: Mapping[str, Mapping[str, Any]]
    widths: Mapping[str, int]
    task: Task
    read: Mapping[str, str]
    label_columns: Sequence[str]

    def unfinished(self, folder: Path) -> list[str]:
        """A note if the run in this folder has not finished."""
        if self.is_final:
            return []
        return [
            f"{folder} has no result.json: its training continues, was stopped, or failed. These "
            f"are the weights of epoch {self.epoch} (counted from 0), its best so far."
        ]


def _best(path: Path, best: Any, *, is_final: bool) -> Best:
    """The content of a checkpoint, each part in its type."""
    hints = get_type_hints(Stored)
    try:
        for name in ("state_dict", "modalities"):
            if not isinstance(best[name], dict):
                raise ValueError(f"{name} is of the type {type(best[name]).__name__}")
        modalities = {
            name: Stored(**{key: converted(key, known[key], hints[key]) for key in hints})
            for name, known in best["modalities"].items()
        }
        return Best(
            converted("epoch", best["epoch"], int),
            is_final,
            best["state_dict"],
            modalities,
            converted("configurations", best["configurations"], dict[str, dict[str, Any]]),
            converted("widths", best["widths"], dict[str, int]),
            restated(best["task"]),
            converted("read", best["read"], dict[str, str]),
            converted("label_columns", best.get("label_columns", []), list[str]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: has changed since the run wrote it ({type(error).__name__}: {error}). "
            "Train again."
        ) from error


def _loaded(folder: Path, cell: Cell, best: Best) -> Trained:
    check_names(cell, str(folder), best.modalities)
    # Those that the model has: of a run on one modality, the others were never trained.
    known = {name: best.modalities[name] for name in best.widths}
    own = {name: text for name, text in cell.training.encoders.items() if name in known}
    own = _at_hand(folder, own, best.configurations)
    training = replace(cell.training, encoders=own)
    cell = replace(cell, training=training)
    modalities = {
        name: stored.modality(name, best.read.get(name, "")) for name, stored in known.items()
    }
    encoders: dict[str, Any] = made_encoders(modalities, cell)
    for name, width in best.widths.items():
        found = getattr(encoders[name], "out_features", None)
        if not isinstance(found, int):
            encoders[name].out_features = width  # the user's own need not declare it
        elif found != width:
            raise ValueError(f"the features of '{name}' are {found} wide, not {width}")
    model = fused(encoders, best.task, cell)
    model.load_state_dict(best.state_dict)
    return Trained(
        folder,
        model.eval(),
        known,
        best.task,
        best.read,
        best.label_columns,
        training.noise,
        training.lacking["test"],
        best.unfinished(folder),
    )


def _at_hand(folder: Path, encoders: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """The encoders without the folders and names that their initial weights came from.

    Those may be anyone's, on another machine or on the hub, while a run loads only from its own
    folder.
    """
    found = dict(encoders)
    if foreign := sorted(known.keys() - encoders.keys()):
        raise ValueError(f"best.ckpt configures {', '.join(foreign)}, and config.yaml does not")
    for name, text in encoders.items():
        spec = parse(text)
        if name in known:
            found[name] = Spec(spec.name, {**spec.settings, "pretrained": known[name]}).text
        elif spec.name in ENCODERS and isinstance(spec.settings.get("pretrained") or {}, str):
            raise UserError(
                f"{folder / 'config.yaml'} starts the encoder of '{name}' from weights "
                f"elsewhere ({text[:90]}), which best.ckpt does not mention. A run loads only "
                "from its own folder; train again."
            )
    return found
