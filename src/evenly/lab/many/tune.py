"""A search for the best settings of each method: as many trials for each, by validation accuracy.

That a method gets exactly as many trials as any other, whoever does them, is the work of `Claims`:
each trial has a place in the method's budget, which a worker claims. A trial that fails by itself
has had its place; that of a trial whose worker was killed goes to another one.
"""

import shutil
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import optuna

from evenly.errors import UserError, UserRuntimeError
from evenly.files import file_address, write_csv
from evenly.lab.many.claims import LOOK, Claims, connect, connected
from evenly.lab.many.compare import circumstances
from evenly.lab.many.engine import Pool, carry
from evenly.lab.many.job import Job
from evenly.lab.many.trials import Search, Studies, Trial
from evenly.lab.many.tuned import Tuned, Tuning
from evenly.lab.run.build import load_data
from evenly.lab.run.prepare import prepare, say
from evenly.lab.run.result import Result
from evenly.lab.run.settings import (
    Cell,
    Training,
    check_counts,
    check_folder,
    check_same,
    read_settings,
    write_settings,
)
from evenly.report import Point, write_history


def tune(search: Search, pool: Callable[[Training], Pool], storage: str | None = None) -> str:
    """Tries settings of every method, each with as many trials, and writes down the best.

    Trials that have ended are not repeated, so the same call continues a search that was stopped.
    The same call in other processes, on any machine, with the same `storage` shares the work; each
    of them returns when all of it is done.

    Args:
        search: What to search. Its folder receives tune.yaml, tune.csv, tune.html, best.yaml and
            the folders of the trials that were done here.
        pool: Makes what the runs are done in, once all is known to be in order.
        storage: Address of the database; by default a file of SQLite's in the folder.

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
            f"--protocol is 'fair' in a search, which sees no test split; found "
            f"'{search.training.protocol}'. Give it to 'evenly compare' afterwards."
        )
    if storage is not None:
        connect(storage).dispose()  # what is wrong with it is said before anything is written
    _prepare(search)
    with connected(storage or file_address(search.out / "tune.db")) as engine:
        studies = Studies(search, engine)
        try:
            return _searched(studies, Claims(engine, search.name), pool)
        finally:
            studies.close()


def _searched(studies: Studies, claims: Claims, pool: Callable[[Training], Pool]) -> str:
    """Does what is left of a search, and writes down what was found."""
    try:
        carry(Trials(studies, claims), pool(studies.search.training))
    finally:
        with suppress(RuntimeError):  # what stopped it is told, not what follows from it
            _write_trials(studies)
    best = _best(studies)
    _write_best(studies.search, best)
    _write_history(studies)
    return _table(studies, best)


def _prepare(search: Search) -> None:
    """Finds what would fail, says what a user should know, and writes tune.yaml."""
    check_folder(search.out)
    path = search.out / "tune.yaml"
    found = read_settings(path, "trials")
    shared = search.settings()
    check_same(search.out, found, shared)
    first = [
        Cell(tuned.of(search.training), tuned.method, 0)
        for tuned in (space.tuned(space.given) for space in search.spaces.values())
    ]
    _, notes = prepare(first, load_data(search.training).without("test"))
    say(notes)
    search.logs.prepare()
    spaces = {
        method: {name: str(found) for name, found in space.ranges.items()}
        for method, space in search.spaces.items()
    }
    own = {"methods": list(search.methods), "trials": search.trials, "spaces": spaces}
    write_settings(path, {**shared, **own, **circumstances(found), "notes": notes})


def _best(studies: Studies) -> dict[str, Trial]:
    """By method, the trial with the highest accuracy within the budget, the first of equals."""
    search, best = studies.search, {}
    for method in search.methods:
        settled = studies.settled(method)
        trials = [settled[place] for place in range(search.trials)]
        finished = [trial for trial in trials if trial.accuracy is not None]
        if not finished:
            raise UserRuntimeError(
                f"{method}: all of its {search.trials} trials failed, the last one so: "
                f"{trials[-1].reason}. tune.csv in {search.out} has them all."
            )
        best[method] = max(finished, key=lambda trial: trial.accuracy or 0.0)
    return best


def _write_trials(studies: Studies) -> None:
    """tune.csv, with every trial of every method, also those that failed or were lost."""
    rows = [
        {
            "method": trial.method,
            "trial": trial.number,
            "place": trial.place,
            "state": trial.state,
            "val_accuracy": "" if trial.accuracy is None else trial.accuracy,
            "lr": trial.tuned.lr,
            "weight_decay": trial.tuned.weight_decay,
            "settings": trial.tuned.method,
            "accuracies": " ".join(map(str, trial.accuracies)),
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


def _write_best(search: Search, best: Mapping[str, Trial]) -> None:
    """best.yaml: all that `evenly compare --config` needs to train every method at its best."""
    tuning = Tuning(search.trials, search.seeds, {name: t.tuned for name, t in best.items()})
    training = asdict(search.training)
    del training["lr"], training["weight_decay"]
    settings = {**training, "methods": ",".join(best), "tuned": tuning.as_dict()}
    write_settings(search.out / "best.yaml", settings)


def _write_history(studies: Studies) -> None:
    """tune.html: what each trial reached."""
    search = studies.search
    methods = {
        method: [
            Point(place, trial.accuracy, _shown(trial.tuned))
            for place, trial in sorted(studies.settled(method).items())
            if trial.accuracy is not None and place < search.trials
        ]
        for method in search.methods
    }
    title = f"{search.training.data}: {search.trials} trials of each method"
    write_history(search.out / "tune.html", methods, title)


def _table(studies: Studies, best: Mapping[str, Trial]) -> str:
    """The best trials as text, the highest accuracy first."""
    lines = [("method", "validation accuracy", "as given", "lr", "weight decay", "settings")]
    for method, trial in sorted(best.items(), key=lambda item: -(item[1].accuracy or 0.0)):
        first = studies.settled(method)[0]
        lines.append(
            (
                method,
                f"{trial.accuracy:.3f}",
                "failed" if first.accuracy is None else f"{first.accuracy:.3f}",
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
    """A trial that this worker is at."""

    item: str
    method: str
    trial: optuna.Trial
    tuned: Tuned
    results: list[Result] = field(default_factory=list)
    job: Job | None = None  # that of the seed it is at

    @property
    def name(self) -> str:
        return f"{self.method} trial {self.trial.number}"


class Trials:
    """The runs of a search, as one of any number of workers gets them."""

    pause = LOOK

    def __init__(self, studies: Studies, claims: Claims) -> None:
        self._search, self._studies, self._claims = studies.search, studies, claims
        search = studies.search
        self._places = {
            f"{search.study(method)} {place}": (method, place)
            for place in range(search.trials)
            for method in search.methods
        }
        self._each = search.seeds * search.training.epochs
        self._next: deque[Job] = deque()
        self._running: dict[str, _Running] = {}
        claims.rows()

    @property
    def epochs(self) -> int:
        """Of all trials together."""
        return self._each * len(self._places)

    @property
    def finished(self) -> int:
        """The epochs of the trials that have ended, here or elsewhere, and here of those at it."""
        here = sum(len(running.results) for running in self._running.values())
        ended = self._each * (len(self._places) - len(self._wanted()))
        return ended + here * self._search.training.epochs

    def take(self) -> Job | None:
        """The next seed of a trial at hand, or the first of a new trial."""
        if self._next:
            return self._next.popleft()
        while (taken := self._claims.take(self._wanted())) is not None:
            method, place = self._places[taken.name]
            if self._is_settled(method, place):  # its worker was killed after its last word
                self._claims.end(taken.name)
                continue
            self._running[taken.name] = self._begun(taken.name, method, place)
            return self._job(self._running[taken.name])
        return None

    def is_over(self) -> bool:
        """Whether every place in every budget has had its trial."""
        self._claims.rows()
        return not self._wanted()

    def ended(self, job: Job, error: str) -> str:
        """Takes note of a run; with the last seed, its trial is finished."""
        running = next(each for each in self._running.values() if each.job == job)
        for name in ("last.ckpt", "best.ckpt"):  # a comparison trains the best anew
            (job.folder / name).unlink(missing_ok=True)
        if error:
            return self._end(running, None, reason=error)
        result = Result.read(job.folder)
        assert result is not None
        running.results.append(result)
        if len(running.results) < self._search.seeds:
            self._next.append(self._job(running))
            return f"{running.name}, seed {job.cell.seed}: validation {_accuracy(result):.3f}"
        accuracies = [_accuracy(each) for each in running.results]
        found = {
            "accuracies": accuracies,
            "best_epochs": [each.best_epoch for each in running.results],
            "seconds": sum(each.seconds for each in running.results),
        }
        return self._end(running, fmean(accuracies), result=found)

    def lost(self) -> Collection[Job]:
        """The runs of trials whose places others have taken, as this worker seemed to be gone."""
        gone = []
        for item in self._claims.beat():
            job = self._running.pop(item).job
            assert job is not None
            if job in self._next:
                self._next.remove(job)
            else:
                gone.append(job)
        return gone

    def stop(self) -> None:
        """Gives up the trials at hand, and leaves their places to others."""
        with suppress(RuntimeError):  # without the database, they are free after a lease
            for running in self._running.values():
                self._studies.tell(running.method, running.trial.number)
            self._claims.give_back()

    def _wanted(self) -> list[str]:
        """The places that have not had their trial yet, the first of every method first."""
        known = self._claims.known
        return [item for item in self._places if item not in known or known[item].state != "ended"]

    def _is_settled(self, method: str, place: int) -> bool:
        """Whether a place had its trial; one that was lost in it is ended first."""
        for trial in self._studies.trials(method):
            if trial.place == place and trial.state == "running":
                self._studies.tell(method, trial.number)
        return place in self._studies.settled(method)

    def _begun(self, item: str, method: str, place: int) -> _Running:
        trial = self._studies.ask(method, place)
        tuned = self._search.spaces[method].tuned(trial.params)
        who = self._claims.worker.partition(" ")[0]
        tried = {"place": place, "tuned": asdict(tuned), "worker": who}
        self._studies.note(trial, "tried", tried)
        return _Running(item, method, trial, tuned)

    def _job(self, running: _Running) -> Job:
        """The next seed of a trial, in a folder of its own."""
        search = self._search
        # Purity and gap are measured for figures, of which a trial has none.
        training = replace(running.tuned.of(search.training), diagnose_every=0)
        cell = Cell(training, running.tuned.method, len(running.results))
        name = Cell(training, running.method, running.trial.number).folder
        folder = search.out / "trials" / name / str(cell.seed)
        shutil.rmtree(folder, ignore_errors=True)  # of a study that is no longer in the database
        running.job = Job(cell, folder, search.logs, tests=False)
        return running.job

    def _end(self, running: _Running, accuracy: float | None, **found: Any) -> str:
        """Writes down how a trial ended; returns what to tell of it."""
        del self._running[running.item]
        if not all(self._studies.note(running.trial, *each) for each in found.items()):
            self._claims.give_back(running.item)
            return f"{running.name}: taken by another worker"
        self._studies.tell(running.method, running.trial.number, accuracy)
        self._claims.end(running.item)
        self._claims.rows()
        if accuracy is None:
            return f"{running.name}: failed, {found['reason']}"
        return f"{running.name}: validation {accuracy:.3f}, {_shown(running.tuned)}"


def _shown(tuned: Tuned) -> str:
    return f"lr {tuned.lr:g}, weight decay {tuned.weight_decay:g}, {tuned.method}"


def _accuracy(result: Result) -> float:
    return result.metrics["val"]["accuracy"]
