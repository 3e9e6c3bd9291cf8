"""The settings that a search found, as `evenly tune` passes them to `evenly compare`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from evenly.errors import UserError
from evenly.lab.run.settings import Training
from evenly.spec import Spec, converted, made
from evenly.suggest import unknown


@dataclass(frozen=True)
class Tuned:
    """The settings that a method was tried with, or is compared with.

    Attributes:
        method: A text 'name' or 'name(setting=value)' with everything tuned.
        lr: Learning rate.
        weight_decay: Weight decay.
    """

    method: str
    lr: float
    weight_decay: float

    @property
    def changes(self) -> dict[str, Any]:
        """The method's own part of the training settings, for config.yaml."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def of(self, training: Training) -> Training:
        """A training with these settings."""
        return replace(training, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Tuning:
    """What a search found, with equal numbers of trials for every method.

    Attributes:
        trials: Trials of each method.
        seeds: Seeds of each trial.
        methods: The best settings, by the method as the user named it.
    """

    trials: int
    seeds: int
    methods: Mapping[str, Tuned]

    @property
    def shared(self) -> dict[str, Any]:
        """What config.yaml says instead of the settings that differ by method."""
        counts = {"tuned_trials": self.trials, "tuned_seeds": self.seeds}
        return {"lr": "tuned", "weight_decay": "tuned", **counts}

    def as_dict(self) -> dict[str, Any]:
        """The form in a file."""
        return asdict(self)

    @staticmethod
    def read(found: Mapping[str, Any]) -> "Tuning":
        """Reads the result of `as_dict`.

        Raises:
            ValueError: If it is something else.
        """
        try:
            methods = {
                name: made("method", Spec(name, dict(each)), {name: Tuned})
                for name, each in found["methods"].items()
            }
            trials, seeds = (converted(key, found[key], int) for key in ("trials", "seeds"))
            return Tuning(trials, seeds, methods)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                "the tuned settings were not written by 'evenly tune'. Give its file with --config "
                f"FOLDER/best.yaml ({type(error).__name__}: {error})."
            ) from error

    def of(self, method: str) -> Tuned:
        """The best settings of a method.

        Raises:
            ValueError: If it was not tuned: its settings were not searched like the others'.
        """
        if method not in self.methods:
            raise unknown("tuned method", method, self.methods)
        return self.methods[method]
