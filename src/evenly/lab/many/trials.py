"""The trials of a search in a database: a study of Optuna's for each method.

What is tried at a place of a method's budget is a function of the search's seed, the place, and the
trials of the method that were finished by then. The first is what the user gave; in those after it,
as long as Optuna draws at random, all methods try the same shared settings.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from evenly import chance
from evenly.lab.many.claims import RACES, engine_settings, patiently, unwarned
from evenly.lab.many.space import Number, Space
from evenly.lab.many.tuned import Tuned
from evenly.lab.run.logs import Logs
from evenly.lab.run.settings import Training, fingerprint

T = TypeVar("T")

LOST = "its worker was stopped, killed or cut off"


@dataclass(frozen=True)
class Search:
    """What to search.

    Attributes:
        training: What all trials share; its learning rate and weight decay are the first trial's.
        methods: Each 'name' or 'name(setting=value)'.
        trials: For each method.
        seeds: Of each trial, whose value is the mean over them; they are 0, 1, ...
        seed: Of the search.
        out: The folder that receives everything.
        logs: How the runs are logged, of which the search knows nothing.
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
        """By method, what is searched."""
        return {method: Space.of(self.training, method) for method in self.methods}

    def settings(self) -> dict[str, Any]:
        """What all trials share, for a file; trials of other settings must not be mixed."""
        return {**self.training.as_dict(), "seeds": self.seeds, "seed": self.seed}

    @cached_property
    def name(self) -> str:
        """What tells this search from others in a database, on whatever machine it is named."""
        return f"{self.out.name} {fingerprint(self.settings())}"

    def study(self, method: str) -> str:
        """Name of a method's study."""
        ranges = {name: str(found) for name, found in self.spaces[method].ranges.items()}
        return f"{self.name} {method} {fingerprint(ranges)}"


@dataclass(frozen=True)
class Trial:
    """What the database holds of a trial.

    Attributes:
        method: As the user named it.
        number: Of the trial in its study, from 0.
        place: In the method's budget, from 0.
        state: Finished, failed by itself, lost with its worker, or running.
        tuned: What it tried.
        accuracy: On the validation split, the mean over seeds; None unless it is finished.
        accuracies: By seed.
        best_epochs: By seed.
        seconds: Of training, over all seeds.
        worker: Who did it, as HOST:PROCESS.
        reason: Why it is not finished.
    """

    method: str
    number: int
    place: int
    state: Literal["finished", "failed", "lost", "running"]
    tuned: Tuned
    accuracy: float | None = None
    accuracies: tuple[float, ...] = ()
    best_epochs: tuple[int, ...] = ()
    seconds: float = 0.0
    worker: str = ""
    reason: str = ""


class Studies:
    """The studies of a search in a database, by method."""

    def __init__(self, search: Search, engine: Engine) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search = search
        # It makes an engine of its own, of ours in all but the object.
        address = engine.url.render_as_string(hide_password=False)
        address = address.replace("{", "{{").replace("}", "}}")  # it fills in a template
        with unwarned():
            self._storage = storage = _asked(
                lambda: RDBStorage(address, engine_settings(engine.url)), RACES
            )
        self._studies = {
            method: _asked(partial(_made, search.study(method), storage))
            for method in search.methods
        }

    def close(self) -> None:
        """Ends the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def ask(self, method: str, place: int) -> optuna.Trial:
        """A new trial, for a place in the method's budget."""
        study, space = self._studies[method], self.search.spaces[method]
        study.sampler = (
            TPESampler(seed=chance.mixed(self.search.seed, place) % 2**32)
            if place
            else _Given(space.given)
        )
        return _asked(lambda: study.ask(space.distributions()))

    def tell(self, method: str, number: int, accuracy: float | None = None) -> None:
        """Ends a trial, if it has not ended: with an accuracy it is finished, else failed."""
        state = TrialState.FAIL if accuracy is None else TrialState.COMPLETE
        study = self._studies[method]
        _asked(lambda: study.tell(number, accuracy, state=state, skip_if_finished=True))

    def note(self, trial: optuna.Trial, name: str, value: Any) -> bool:
        """Writes something down about a trial; False if it has ended, as others have ended it."""
        try:
            _asked(lambda: trial.set_user_attr(name, value))
        except UpdateFinishedTrialError:
            return False
        return True

    def trials(self, method: str) -> list[Trial]:
        """All trials of a method, in their order."""
        study = self._studies[method]
        found = _asked(lambda: study.get_trials(deepcopy=False))
        return [_read(method, trial) for trial in found if "tried" in trial.user_attrs]

    def settled(self, method: str) -> dict[int, Trial]:
        """By place, the trials that are finished or have failed by themselves."""
        trials = self.trials(method)
        return {trial.place: trial for trial in trials if trial.state in ("finished", "failed")}


def _made(name: str, storage: RDBStorage) -> optuna.Study:
    return optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True
    )


class _Given(RandomSampler):
    """Samples what it is given."""

    def __init__(self, values: Mapping[str, Number]) -> None:
        super().__init__()
        self._values = values

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Number:
        """The value of a setting."""
        return self._values[name]


def _asked(call: Callable[[], T], pauses: Iterable[float] | None = None) -> T:
    """What Optuna answers; it hides the database's errors in its own."""

    def unhidden() -> T:
        try:
            return call()
        except StorageInternalError as error:
            raise error.__cause__ or error from error

    return patiently(unhidden, pauses)


def _read(method: str, trial: FrozenTrial) -> Trial:
    """A trial as `ask` and `note` have written it down."""
    tried, result = trial.user_attrs["tried"], trial.user_attrs.get("result", {})
    reason = trial.user_attrs.get("reason", "")
    state: Literal["finished", "failed", "lost", "running"]
    if trial.state == TrialState.COMPLETE:
        state = "finished"
    elif trial.state == TrialState.FAIL:
        state = "failed" if reason else "lost"
    else:
        state = "running"
    return Trial(
        method,
        trial.number,
        tried["place"],
        state,
        Tuned(**tried["tuned"]),
        trial.value if state == "finished" else None,
        tuple(result.get("accuracies", ())),
        tuple(result.get("best_epochs", ())),
        result.get("seconds", 0.0),
        tried["worker"],
        LOST if state == "lost" else reason,
    )
