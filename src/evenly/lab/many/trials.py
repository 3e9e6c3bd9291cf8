"""The trials of a search in a database: an Optuna study for each method.

Every trial belongs to a place in its method's budget. The first trial at a place that was not lost
counts. A command that finds none adds a waiting trial, and Optuna lets only one command take it.
The command that runs a trial records heartbeats, timed by the database's clock; if they stop, the
trial is lost.

What is tried at a place depends on the search's seed, the place, and the method's trials finished
by then. The first tries the user's settings; after that, as long as Optuna draws at random, all
methods try the same shared settings.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SAWarning

from evenly import chance
from evenly.lab.many.database import RACES, engine_settings, make_exact, patiently, unwarned
from evenly.lab.many.space import Space
from evenly.lab.many.tuned import Tuned
from evenly.lab.many.worker import has_died, this_worker
from evenly.lab.run.logs import Logs
from evenly.lab.run.settings import Cell, Precision, Training, fingerprint, with_code

T = TypeVar("T")

BEAT = 10
"""Seconds between two heartbeats of a trial."""
GRACE = 90
"""Seconds without one after which a trial is lost: more than a command waits for a database."""
LOST = "its worker was stopped, killed or cut off"


@dataclass(frozen=True)
class Search:
    """What to search.

    Attributes:
        training: What all trials share; its learning rate and weight decay are the first trial's.
        methods: Each 'name' or 'name(setting=value)'.
        trials: Number of trials for each method.
        seeds: Number of seeds of each trial, 0, 1, ..., over which its value is the mean.
        seed: Seed of the search.
        out: The folder for all results.
        logs: How the runs are logged, which does not affect the search.
    """

    training: Training
    methods: tuple[str, ...]
    trials: int
    seeds: int
    seed: int
    out: Path
    logs: Logs = field(default_factory=Logs)

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """The search space of each method."""
        return {method: Space.of(self.training, method) for method in self.methods}

    @property
    def sign(self) -> int:
        """1 if a higher selecting metric is better, else -1."""
        return self.training.selected_by[1]

    @cached_property
    def _began(self) -> dict[str, Any]:
        """The training's settings, with the checksums of its files when they were first read."""
        return with_code(self.training.as_dict())

    @cached_property
    def _code(self) -> dict[str, dict[str, str]]:
        """The checksums of each method's modules when they were first read."""
        return {name: with_code({"method": name}).get("code", {}) for name in self.methods}

    def settings(self) -> dict[str, Any]:
        """What all trials share except the precision, for a file; others must not be mixed in."""
        settings = {**self._began, "seeds": self.seeds, "seed": self.seed}
        del settings["precision"]  # the search itself may have to find it
        return settings

    def began(self, method: str, cell: Cell) -> dict[str, Any]:
        """The settings of a method's run, with the checksums of when the search began here."""
        settings = cell.as_dict(self._began.get("data_sha256"))
        return {**settings, "code": {**self._began.get("code", {}), **self._code[method]}}

    @cached_property
    def name(self) -> str:
        """What identifies this search in a database, on any machine."""
        return f"{self.out.name} {fingerprint(self.settings())}"

    def study(self, method: str) -> str:
        """Name of a method's study."""
        ranges = {name: str(found) for name, found in self.spaces[method].ranges.items()}
        return f"{self.name} {method} {fingerprint({**ranges, **self._code[method]})}"


@dataclass(frozen=True)
class Trial:
    """The database's record of a trial.

    Attributes:
        method: The method as the user named it.
        number: Number of the trial in its study, from 0.
        place: Place in the method's budget, from 0.
        state: Finished, failed by itself, lost with its worker, or running.
        tuned: What it tried.
        value: Selecting metric on the validation split, the mean over seeds; None unless finished.
        values: Values by seed.
        best_epochs: Best epochs by seed.
        seconds: Seconds of training, over all seeds.
        worker: The worker that did it, as HOST:PROCESS.
        reason: Why it is not finished.
    """

    method: str
    number: int
    place: int
    state: Literal["finished", "failed", "lost", "running"]
    tuned: Tuned
    value: float | None = None
    values: tuple[float, ...] = ()
    best_epochs: tuple[int, ...] = ()
    seconds: float = 0.0
    worker: str = ""
    reason: str = ""


class Studies:
    """The studies of a search in a database, by method."""

    def __init__(self, search: Search, url: URL) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search = search
        address = url.render_as_string(hide_password=False)
        address = address.replace("{", "{{").replace("}", "}}")  # Optuna treats it as a template
        with unwarned(SAWarning), unwarned(ExperimentalWarning):
            self._storage = storage = _asked(
                lambda: RDBStorage(
                    address, engine_settings(url), heartbeat_interval=BEAT, grace_period=GRACE
                ),
                RACES,
            )
        make_exact(storage.engine)
        self._studies = {
            method: _asked(partial(_made, search.study(method), storage, search.sign))
            for method in search.methods
        }

    def close(self) -> None:
        """Closes the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def precision(self, decide: Callable[[], Precision]) -> Precision:
        """The precision in which all trials of the search train.

        Args:
            decide: Called by the first command, whose answer the others read.
        """
        study = _asked(partial(_made, self.search.name, self._storage))

        def written() -> list[Precision]:
            return [trial.user_attrs["precision"] for trial in study.get_trials(deepcopy=False)]

        if not _asked(written):
            note = {"precision": decide()}
            _asked(lambda: study.enqueue_trial({}, note))  # the first of several counts for all
        return _asked(written)[0]

    def held(self, method: str) -> set[int]:
        """The places in a method's budget with a finished or running trial."""
        return {
            place
            for place, trial in self._holders(method).items()
            if trial.state != TrialState.WAITING
        }

    def begin(self, method: str, place: int) -> tuple[optuna.Trial, Tuned] | None:
        """Begins the trial of a place in a method's budget, with the settings to try.

        Optuna does not learn of a value outside its range, which only the first trial may have.

        Returns:
            None if another command has the place.
        """
        study, space = self._studies[method], self.search.spaces[method]
        if place not in self._holders(method):
            given = {} if place else dict(space.given)
            _asked(lambda: study.enqueue_trial(given, {"place": place}))
        holder = self._holders(method).get(place)
        if holder is None or not self._seize(holder._trial_id):
            return None
        study.sampler = TPESampler(seed=chance.mixed(self.search.seed, place) % 2**32)
        trial = _asked(lambda: optuna.Trial(study, holder._trial_id))
        try:
            _asked(lambda: trial.set_user_attr("worker", this_worker()))
            for name, distribution in space.distributions().items():  # like `study.ask`
                if place or space.given[name] in space.ranges[name]:
                    _asked(partial(trial._suggest, name, distribution))
            tuned = space.tuned(trial.params) if place else space.first
            _asked(lambda: trial.set_user_attr("tuned", asdict(tuned)))
        except UpdateFinishedTrialError:  # this command was suspended meanwhile
            return None
        return trial, tuned

    def beat(self, trials: Iterable[optuna.Trial]) -> None:
        """Records that trials are in progress."""
        for trial in trials:
            _asked(partial(self._storage.record_heartbeat, trial._trial_id))

    def is_running(self, trial: optuna.Trial) -> bool:
        """Whether a trial has not been ended."""
        found = _asked(lambda: self._storage.get_trial(trial._trial_id))
        return found.state == TrialState.RUNNING

    def end_lost(self, method: str) -> None:
        """Ends the lost trials of a method."""
        study = self._studies[method]
        with unwarned(ExperimentalWarning):
            _asked(lambda: fail_stale_trials(study))
        for trial in _asked(lambda: study.get_trials(False, (TrialState.RUNNING,))):
            if has_died(trial.user_attrs.get("worker", "")):
                self.tell(method, trial.number)

    def tell(self, method: str, number: int, value: float | None = None) -> bool:
        """Ends a trial: finished if it has a value, else failed; False if it had already ended."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study = self._studies[method]
        try:
            told = _asked(lambda: study.tell(number, value, state, skip_if_finished=True))
        except UpdateFinishedTrialError:  # in the meantime
            return False
        return told.state == state

    def note(self, trial: optuna.Trial, name: str, value: Any) -> bool:
        """Records something about a trial; False if others have ended it."""
        try:
            _asked(lambda: trial.set_user_attr(name, value))
        except UpdateFinishedTrialError:
            return False
        return True

    def trials(self, method: str) -> list[Trial]:
        """All started trials of a method, in order."""
        return [_read(method, trial) for trial in self._all(method) if "tuned" in trial.user_attrs]

    def settled(self, method: str) -> dict[int, Trial]:
        """The trials that finished or failed by themselves, by place."""
        return {
            place: _read(method, trial)
            for place, trial in self._holders(method).items()
            if trial.state.is_finished()
        }

    def _all(self, method: str) -> list[FrozenTrial]:
        study = self._studies[method]
        return _asked(lambda: study.get_trials(deepcopy=False))

    def _holders(self, method: str) -> dict[int, FrozenTrial]:
        """The first trial at each place that is not lost."""
        found: dict[int, FrozenTrial] = {}
        for trial in self._all(method):
            if not _is_lost(trial):
                found.setdefault(trial.user_attrs["place"], trial)
        return found

    def _seize(self, trial_id: int) -> bool:
        """Takes a waiting trial; False if another command was faster."""
        # Before it runs: Optuna does not consider a trial without any heartbeat stale.
        _asked(lambda: self._storage.record_heartbeat(trial_id))
        try:
            return _asked(
                lambda: self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            )
        except UpdateFinishedTrialError:
            return False


def _made(name: str, storage: RDBStorage, sign: int = 1) -> optuna.Study:
    direction = StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE
    return optuna.create_study(
        study_name=name, storage=storage, direction=direction, load_if_exists=True
    )


def _asked(call: Callable[[], T], pauses: Iterable[float] | None = None) -> T:
    """Optuna's answer; it hides the database's errors in its own."""

    def unhidden() -> T:
        try:
            return call()
        except StorageInternalError as error:
            raise error.__cause__ or error from error

    return patiently(unhidden, pauses)


def _is_lost(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def _read(method: str, trial: FrozenTrial) -> Trial:
    """A trial as recorded by `begin` and `note`."""
    noted = trial.user_attrs
    result = noted.get("result", {})
    state: Literal["finished", "failed", "lost", "running"]
    if trial.state == TrialState.COMPLETE:
        state = "finished"
    elif trial.state == TrialState.FAIL:
        state = "lost" if _is_lost(trial) else "failed"
    else:
        state = "running"
    return Trial(
        method,
        trial.number,
        noted["place"],
        state,
        Tuned(**noted["tuned"]),
        trial.value if state == "finished" else None,
        tuple(result.get("values", ())),
        tuple(result.get("best_epochs", ())),
        result.get("seconds", 0.0),
        noted["worker"].partition(" ")[0],
        LOST if state == "lost" else noted.get("reason", ""),
    )
