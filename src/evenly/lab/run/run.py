"""One run: train a method on a seed, select by validation, read the test split once.

(`--protocol paper` selects on the test split.)

A run's folder holds all of it; a killed run, when started again, ends with the same weights bit for
bit.
"""

import logging
import resource
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenly.data import Data, SplitName
from evenly.features import Features
from evenly.files import naming
from evenly.lab.run.build import load_data, with_missing
from evenly.lab.run.hold import Hold
from evenly.lab.run.inspection import Subject, inspect, probed, write_features
from evenly.lab.run.logs import Logs, RunLog
from evenly.lab.run.loop import evaluated, fit
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place, Rank, joined
from evenly.lab.run.precision import decided
from evenly.lab.run.record import Progress, Record
from evenly.lab.run.result import Result, checksums
from evenly.lab.run.settings import (
    Cell,
    check_same,
    check_unchanged,
    read_settings,
    write_settings,
)
from evenly.lab.run.stored import about
from evenly.lab.run.versions import of_run
from evenly.probe import Probe


def run_cell(
    cell: Cell,
    folder: Path,
    progress: Progress = lambda epoch, value: None,
    data: Data | None = None,
    tests: bool = True,
    logs: Logs = Logs(),  # noqa: B008, it is frozen
    rank: Rank | None = None,
    features: Path | None = None,
    began: Mapping[str, Any] | None = None,
) -> Result:
    """Trains one cell in its folder, or resumes where an earlier call stopped.

    Args:
        cell: What to run.
        folder: The run's own folder; it receives config.yaml, metrics.csv, last.ckpt, best.ckpt,
            predictions.npz, features.npz for seed 0, TensorBoard's log and, last of all,
            result.json; until then process.txt names the process that works on it.
        progress: Called after each epoch.
        data: The cell's data, if already loaded.
        tests: Whether the test split is read at the end; a trial of a search ends with the metrics
            of the validation split instead.
        logs: How it is logged.
        rank: The rank of this process, if several train together.
        features: Where features of frozen encoders are kept; by default in the run's folder.
        began: The run's settings when its command began, see `check_unchanged`.

    Raises:
        ValueError: If the folder holds a run with other settings.
        Refused: If the data file or a module of the user's has changed since the command began.
        OSError: If there is no space left to write, with the file to be written.
        TakenOver: If another process has started the same run since.
        KeyboardInterrupt: If it was stopped.
    """
    folder = folder.absolute()
    known = read_settings(folder / "config.yaml", "method")
    cell, data, _ = decided(cell, known, data)
    settings = cell.as_dict()
    check_same(folder, known, settings)
    check_unchanged(began or {}, settings)
    if (done := Result.read(folder)) is not None:
        return done
    _quieten()
    torch.set_num_threads(cell.training.threads)
    log = RunLog(logs, cell, folder, settings)
    hold = Hold(folder)
    with naming(folder), joined(cell.training, rank) as place:  # the loggers' files, too
        try:
            kept = features.absolute() if features else folder / "features"
            result = _trained(log, hold, progress, place, data, tests, kept)
            if place.is_first:
                log.finish(result)
        except BaseException:
            log.close(failed=True)
            raise
        log.close()
    if place.is_first:
        hold.check()
        result.write(folder)
        hold.end()
    return result


def _trained(
    log: RunLog,
    hold: Hold,
    progress: Progress,
    place: Place,
    data: Data | None,
    tests: bool,
    kept: Path,
) -> Result:
    """The content of result.json."""
    cell, folder = log.cell, log.folder
    _begin_peak(place)
    data = load_data(cell.training) if data is None else data
    seen = data if tests else data.without("test")
    parts = Parts.of(cell, seen, place, kept)
    known = about(with_missing(data, cell), parts.model)
    record = Record(parts, log, hold, progress, known)
    if place.is_first:
        hold.begin()  # if building fails, nothing is left
        path = folder / "config.yaml"
        used = of_run(folder, read_settings(path, "method"), log.settings)
        write_settings(path, {**log.settings, "versions": used})
        log.start()
    record.resume()
    fit(parts, record)
    # Selection is over: under the fair protocol, the test split is read only from here on, once,
    # with the chosen weights.
    place.wait()  # for the process that writes them
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    parts.load_weights(best["state_dict"])
    splits: tuple[SplitName, ...] = ("val", "test") if tests else ("val",)
    final = {name: evaluated(parts, name) for name in splits}
    metrics: dict[str, dict[str, float]]
    metrics = {name: evaluation.metrics() for name, evaluation in final.items()}
    if tests:
        metrics["test"] |= final["test"].details()
        inspected, features = _inspected(parts, data)
        metrics["test"] |= inspected
        if place.is_first:
            _write_test(log, hold, parts, final["test"].predictions(), features)
    return Result(
        method=cell.method,
        seed=cell.seed,
        best_epoch=best["epoch"],
        epochs=record.epoch,
        steps=record.steps,
        seconds=round(record.seconds, 3),
        peak_memory_mb=_peak_memory_mb(place),
        flops=record.flops,
        precision=place.precision,
        metrics=metrics,
        files=checksums(folder) if place.is_first else {},
    )


def _inspected(parts: Parts, data: Data) -> tuple[dict[str, float], Features]:
    """What the selected model has learnt from each modality, and its features of the test split."""
    model = parts.model
    test, train = parts.in_order("test"), parts.in_order("train")
    kept = {name: data.modalities[name] for name in model.encoders}
    model.eval()
    found = inspect(
        Subject(
            lambda batch: parts.forward(model, batch)[0],
            test,
            kept,
            data.task,
            parts.uninformed,
            parts.noised,
        )
    )
    probe = Probe(model, parts.forward, train, test)  # its second split may be the test split now
    features = probe.features("val").whole()
    return found | probed(data.task, probe.features("train").whole(), features), features


def _write_test(
    log: RunLog,
    hold: Hold,
    parts: Parts,
    predictions: Mapping[str, torch.Tensor],
    features: Features,
) -> None:
    """Writes what is kept from the test split: predictions and, for one seed, features."""
    with hold.replacing(log.folder / "predictions.npz") as path:
        arrays = {name: x.numpy() for name, x in predictions.items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)
    if log.cell.seed == 0 and "probabilities" in predictions:
        # One run of each method, so that folders stay small; only for tasks that planes can colour.
        data = parts.data
        rows = parts.split("test").rows.tolist()
        names = [data.names[row] for row in rows] if data.names else None
        answers = predictions["probabilities"]
        write_features(log.folder / "features.npz", features, data.task, answers, names)


def _begin_peak(place: Place) -> None:
    """Forgets the peak of a GPU's memory in earlier runs of this process."""
    if place.device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(place.device)


def _peak_memory_mb(place: Place) -> float | None:
    """Peak memory of the run: of the GPU if there is one, else of this process if it is its own."""
    if place.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(place.device) / 2**20, 1)
    if place.is_reused:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _quieten() -> None:
    """Suppresses messages that the command already replaces with a note."""
    warnings.filterwarnings("ignore", ".*acts by the size of gradients")
    logging.getLogger("evenly.methods.relearn").setLevel(logging.ERROR)
