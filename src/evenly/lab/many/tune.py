"""A search for the best settings of each method by validation, with equal numbers of trials.

Each method gets exactly as many trials as any other, whichever command does them: each trial has a
place in the method's budget. A trial that fails by itself uses up its place; if its worker was
killed, another trial gets the place.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import isfinite
from statistics import fmean
from threading import Event, Thread
from typing import Any

import optuna

from evenly.data import Data
from evenly.errors import UserError, UserRuntimeError
from evenly.files import file_address, write_csv
from evenly.lab.many.compare import circumstances
from evenly.lab.many.database import reached
from evenly.lab.many.engine import Pool, carry
from evenly.lab.many.job import Job, refusal
from evenly.lab.many.trials import BEAT, Search, Studies, Trial
from evenly.lab.many.tuned import Tuned, Tuning
from evenly.lab.run.build import load_data
from evenly.lab.run.precision import decided, of_task
from evenly.lab.run.prepare import prepare, say
from evenly.lab.run.result import Result
from evenly.lab.run.settings import (
    Cell,
    Precision,
    Training,
    check_apart,
    check_counts,
    check_folder,
    check_same,
    read_settings,
    write_settings,
)
from evenly.lab.run.versions import joined, mixed, versions
from evenly.metrics import METRICS
from evenly.report import Point, write_history
from evenly.report.names import in_words

SETTINGS = "tune.yaml"
LOOK = 2.0
"""Seconds between two looks for a free place."""


def tune(search: Search, pool: Callable[[Training], Pool], storage: str | None = None) -> str:
    """Tries settings of every method, with equal numbers of trials, and records the best.

    Trials that have ended are not repeated, so the same call continues a stopped search. The same
    call in other processes, on any machine, with the same `storage` shares the work; each returns
    when everything is done.

    Args:
        search: What to search. Its folder receives tune.yaml, tune.csv, tune.html, best.yaml and
            the folders of the trials that were done here.
        pool: Makes the pool for the runs, once everything is checked.
        storage: Address of the database; by default an SQLite file in the folder.

    Returns:
        The best settings of each method, as a table.

    Raises:
        ValueError: If something is wrong with the data, a method, the folder or the address;
            before training.
        RuntimeError: If the database does not answer, or every trial of a method failed.
        KeyboardInterrupt: If it was stopped; tune.csv then holds what is finished.
    """
    check_counts(trials=search.trials, seeds=search.seeds)
    if search.training.protocol != "fair":
        raise UserError(
            "a search never sees the test split, so --protocol must be 'fair'; found "
            f"'{search.training.protocol}'. Use it with 'evenly compare' afterwards."
        )
    # Report what is wrong with it before anything is written.
    address = None if storage is None else reached(storage)
    found = read_settings(search.out / SETTINGS, "trials")
    check_folder(search.out)
    data = load_data(search.training).without("test")
    search = replace(search, training=of_task(search.training, data))
    notes = _prepare(search, found, data)
    if address is None:
        search.out.mkdir(parents=True, exist_ok=True)
        address = reached(file_address(search.out / "tune.db"))
    studies = Studies(search, address)
    try:
        training, decision = _decided(studies, found, data)
        _write_settings(search, training, found, notes + decision)
        say(notes + decision)
        return _searched(studies, training, pool)
    finally:
        studies.close()


def _searched(studies: Studies, training: Training, pool: Callable[[Training], Pool]) -> str:
    """Does the rest of a search, and records the results."""
    try:
        carry(Trials(studies, training), pool(training))
    finally:
        with suppress(RuntimeError):  # report what stopped it, not what follows from that
            _write_trials(studies)
    best = _best(studies)
    _write_best(studies.search, training, best)
    _write_history(studies)
    return _table(studies, best)


def _prepare(search: Search, found: Mapping[str, Any], data: Data) -> list[str]:
    """Finds what would fail; returns notes for the user."""
    check_apart(search.methods)
    asked = search.training.precision
    known = {} if asked == "auto" else {"precision": asked}
    check_same(search.out, found, {**search.settings(), **known})
    notes = prepare(_first(search), data)[1]
    return notes + mixed(_versions(search, found))


def _versions(search: Search, found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What the trials of earlier commands with this folder used, and what those of this one use."""
    now = versions({**search.settings(), "methods": list(search.methods)})
    has_run = (search.out / "trials").is_dir()  # tune.yaml is there before the first trial
    known = found.get("versions", {}) if has_run else {}
    before = {name: x for name, x in known.items() if name in now}
    return {"earlier trials": before, "trials from now on": now}


def _first(search: Search) -> list[Cell]:
    """The first run of each method's first trial."""
    return [_cell(search.training, space.first, 0) for space in search.spaces.values()]


def _cell(training: Training, tuned: Tuned, seed: int) -> Cell:
    """A run of a trial, which has no figures for purity and gap."""
    return Cell(replace(tuned.of(training), diagnose_every=0), tuned.method, seed)


def _decided(studies: Studies, found: Mapping[str, Any], data: Data) -> tuple[Training, list[str]]:
    """The training in the precision of the whole search, and a note if that was decided here."""
    search, notes = studies.search, []
    asked = search.training.precision

    def decide() -> Precision:
        # Of all modalities, whichever methods are searched and in whatever order.
        cell, _, said = decided(Cell(search.training, "joint", 0), found, data)
        notes.extend(said)
        return cell.training.precision

    precision = studies.precision(decide)
    if asked not in ("auto", precision):
        raise UserError(
            f"the search '{search.out.name}' in this database uses --precision {precision}; "
            f"found '{asked}'. Leave it out, or choose another name for --out."
        )
    check_same(search.out, found, {"precision": precision})
    return replace(search.training, precision=precision), notes


def _write_settings(
    search: Search, training: Training, found: Mapping[str, Any], notes: list[str]
) -> None:
    """tune.yaml."""
    search.logs.prepare()
    spaces = {
        method: {name: str(each) for name, each in space.ranges.items()}
        for method, space in search.spaces.items()
    }
    shared = {**search.settings(), "precision": training.precision}
    own = {"methods": list(search.methods), "trials": search.trials, "spaces": spaces}
    used = joined(_versions(search, found).values())
    settings = {**shared, **own, **circumstances(found, used), "notes": notes}
    write_settings(search.out / SETTINGS, settings)


def _best(studies: Studies) -> dict[str, Trial]:
    """The best trial of each method within the budget, the first of equals."""
    search, best = studies.search, {}
    for method in search.methods:
        settled = studies.settled(method)
        trials = [settled[place] for place in range(search.trials)]
        finished = [trial for trial in trials if trial.value is not None]
        if not finished:
            raise UserRuntimeError(
                f"{method}: all {search.trials} trials failed, the last with: "
                f"{trials[-1].reason}. See tune.csv in {search.out}."
            )
        best[method] = max(finished, key=lambda trial: search.sign * (trial.value or 0.0))
    return best


def _write_trials(studies: Studies) -> None:
    """tune.csv, with every trial of every method, including failed and lost ones."""
    select, _ = studies.search.training.selected_by
    rows = [
        {
            "method": trial.method,
            "trial": trial.number,
            "place": trial.place,
            "state": trial.state,
            f"val_{select}": "" if trial.value is None else trial.value,
            "lr": trial.tuned.lr,
            "weight_decay": trial.tuned.weight_decay,
            "settings": trial.tuned.method,
            "values": " ".join(map(str, trial.values)),
            "best_epochs": " ".join(map(str, trial.best_epochs)),
            "seconds": round(trial.seconds, 3),
            "worker": trial.worker,
            "reason": trial.reason,
        }
        for method in studies.search.methods
        for trial in studies.trials(method)
    ]
    if rows:
        write_csv(studies.search.out / "tune.csv", list(rows[0]), rows)


def _write_best(search: Search, training: Training, best: Mapping[str, Trial]) -> None:
    """best.yaml: all that `evenly compare --config` needs to train every method at its best."""
    tuning = Tuning(search.trials, search.seeds, {name: t.tuned for name, t in best.items()})
    shared = asdict(training)
    del shared["lr"], shared["weight_decay"]
    settings = {**shared, "methods": ",".join(best), "tuned": tuning.as_dict()}
    write_settings(search.out / "best.yaml", settings)


def _write_history(studies: Studies) -> None:
    """tune.html: the value that each trial reached."""
    search = studies.search
    methods = {
        method: [
            Point(place, trial.value, _shown(trial.tuned))
            for place, trial in sorted(studies.settled(method).items())
            if trial.value is not None and place < search.trials
        ]
        for method in search.methods
    }
    title = f"{search.training.data}: {search.trials} trials of each method"
    write_history(search.out / "tune.html", methods, title, *search.training.selected_by)


def _table(studies: Studies, best: Mapping[str, Trial]) -> str:
    """The best trials as text, the best of all first."""
    metric, sign = studies.search.training.selected_by
    head = f"validation {in_words(metric)}"
    lines = [("method", head, "as given", "lr", "weight decay", "settings")]
    for method, trial in sorted(best.items(), key=lambda item: -sign * (item[1].value or 0.0)):
        first = studies.settled(method)[0]
        lines.append(
            (
                method,
                METRICS[metric].written(trial.value or 0.0),
                "failed" if first.value is None else METRICS[metric].written(first.value),
                f"{trial.tuned.lr:g}",
                f"{trial.tuned.weight_decay:g}",
                trial.tuned.method,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


@dataclass
class _Running:
    """A trial that this command is running."""

    method: str
    place: int
    trial: optuna.Trial
    tuned: Tuned
    results: list[Result] = field(default_factory=list)
    job: Job | None = None  # the run of its current seed

    @property
    def name(self) -> str:
        return f"{self.method} trial {self.trial.number}"


class Trials:
    """The runs of a search, for one of any number of commands.

    Args:
        studies: The search.
        training: What its trials share.
    """

    def __init__(self, studies: Studies, training: Training) -> None:
        self._search, self._studies, self._training = studies.search, studies, training
        # The places without a trial so far, the first of every method first.
        self._left = [
            (method, place)
            for place in range(self._search.trials)
            for method in self._search.methods
        ]
        self._count = len(self._left)
        self._next: deque[Job] = deque()
        self._running: list[_Running] = []
        self._next_take = self._next_beat = 0.0
        self._beat()

    @property
    def epochs(self) -> int:
        """The epochs of all trials together."""
        return self._count * self._search.seeds * self._training.epochs

    @property
    def finished(self) -> int:
        """The epochs of trials that have ended, here or elsewhere, and of those running here."""
        here = sum(len(running.results) for running in self._running)
        ended = self._search.seeds * (self._count - len(self._left))
        return (ended + here) * self._training.epochs

    def take(self) -> Job | None:
        """The next seed of a current trial, or the first of a new trial."""
        if self._next:
            return self._next.popleft()
        if time.monotonic() < self._next_take:
            return None
        held = cache(self._studies.held)
        for method, place in self._left:
            if place in held(method):
                continue
            if begun := self._studies.begin(method, place):
                self._running.append(_Running(method, place, *begun))
                return self._job(self._running[-1])
        self._next_take = time.monotonic() + LOOK
        return None

    def is_over(self) -> bool:
        """Whether every place in every budget has had its trial."""
        self._look()
        return not self._left

    def ended(self, job: Job, error: str) -> str:
        """Records a run; after the last seed, its trial is finished.

        Raises:
            UserError: If the run was refused: that uses up no trial, and others would be, too.
        """
        if why := refusal(error):
            raise UserError(why)
        running = next(each for each in self._running if each.job == job)
        for name in ("last.ckpt", "best.ckpt"):  # a comparison trains the best again
            (job.folder / name).unlink(missing_ok=True)
        if error:
            return self._end(running, None, reason=error)
        result = Result.read(job.folder)
        assert result is not None
        running.results.append(result)
        if len(running.results) < self._search.seeds:
            self._next.append(self._job(running))
            return f"{running.name}, seed {job.cell.seed}: validation {self._value(result):.3f}"
        values = [self._value(each) for each in running.results]
        if not isfinite(fmean(values)):
            select = in_words(self._training.selected_by[0])
            return self._end(running, None, reason=f"its validation {select} is not finite")
        found = {
            "values": values,
            "best_epochs": [each.best_epoch for each in running.results],
            "seconds": sum(each.seconds for each in running.results),
        }
        return self._end(running, fmean(values), result=found)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Records heartbeats within the block, in which a pool may do a whole run."""
        over, mine = Event(), [running.trial for running in self._running]

        def beats() -> None:
            with suppress(RuntimeError):  # without the database; this command's next beat says so
                while not over.wait(BEAT):
                    self._studies.beat(mine)

        thread = Thread(target=beats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def lost(self) -> Collection[Job]:
        """The runs of trials that others have ended because this command seemed gone."""
        if time.monotonic() < self._next_beat:
            return ()
        self._beat()
        gone = []
        for running in list(self._running):
            if self._studies.is_running(running.trial):
                continue
            self._running.remove(running)
            assert running.job is not None
            if running.job in self._next:
                self._next.remove(running.job)
            else:
                gone.append(running.job)
        return gone

    def stop(self) -> None:
        """Gives up the current trials, and leaves their places to others."""
        with suppress(RuntimeError):  # without the database, they count as lost after a while
            for running in self._running:
                self._studies.tell(running.method, running.trial.number)

    def _beat(self) -> None:
        """Records heartbeats for this command's trials, then checks those of others."""
        self._next_beat = time.monotonic() + BEAT
        self._studies.beat(running.trial for running in self._running)
        for method in dict(self._left):
            self._studies.end_lost(method)
        self._look()

    def _look(self) -> None:
        """Removes the places that have had their trial."""
        settled = {method: self._studies.settled(method) for method in dict(self._left)}
        self._left = [
            (method, place) for method, place in self._left if place not in settled[method]
        ]

    def _job(self, running: _Running) -> Job:
        """The next seed of a trial, in its own folder."""
        cell = _cell(self._training, running.tuned, len(running.results))
        name = Cell(cell.training, running.method, running.trial.number).folder
        folder = self._search.out / "trials" / name / str(cell.seed)
        shutil.rmtree(folder, ignore_errors=True)  # of a study no longer in the database
        running.job = Job(
            cell,
            folder,
            self._search.logs,
            tests=False,
            features=self._search.out / "features",
            began=self._search.began(running.method, cell),
        )
        return running.job

    def _value(self, result: Result) -> float:
        """The value that a run has reached."""
        return result.metrics["val"][self._training.selected_by[0]]

    def _end(self, running: _Running, value: float | None, **found: Any) -> str:
        """Records how a trial ended; returns a message about it."""
        self._running.remove(running)
        is_noted = all(self._studies.note(running.trial, *each) for each in found.items())
        if not is_noted or not self._studies.tell(running.method, running.trial.number, value):
            return f"{running.name}: taken by another command"
        self._left.remove((running.method, running.place))
        if value is None:
            return f"{running.name}: failed, {found['reason']}"
        return f"{running.name}: validation {value:.3f}, {_shown(running.tuned)}"


def _shown(tuned: Tuned) -> str:
    return f"lr {tuned.lr:g}, weight decay {tuned.weight_decay:g}, {tuned.method}"
