"""What `evenly tune` searches: the settings that all methods share, and each method's own.

Every method searches the same ranges of the shared settings with the same number of trials; its own
settings come on top. A setting counted in epochs is given here for a training of the paper's
length, and scales with the length of training like its default. Settings are left out if they turn
the method into another one (OGM-GE without its noise is OGM), if more is better but takes longer
(restarts, a teacher's training), or if they have no effect beside the method's others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from evenly.errors import UserError
from evenly.lab.many.tuned import Tuned
from evenly.lab.run.build import in_run, method_settings
from evenly.lab.run.describe import defaults
from evenly.lab.run.settings import Cell, Training
from evenly.methods import method_named
from evenly.spec import Spec, parse, together

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Number = int | float

DIGITS = 3
"""Significant digits of a tried number, so that names and tables can show it exactly."""


@dataclass(frozen=True)
class Range:
    """The values of a setting; whole numbers if both ends are.

    Attributes:
        low: The smallest value.
        high: The largest value.
        log: Whether to draw on a logarithmic scale: as many values below the geometric mean of the
            ends as above it.
        only: By name, the values of the method's other settings with which this one has an effect.
    """

    low: Number
    high: Number
    log: bool = False
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"

    def distribution(self) -> "BaseDistribution":
        """The range in Optuna's terms."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, found: Number) -> Number:
        """The value to run for a number from Optuna."""
        return int(found) if self.is_whole else float(f"{found:.{DIGITS}g}")

    def acts(self, settings: Mapping[str, Any]) -> bool:
        """Whether the setting has an effect beside a method's others."""
        return all(settings[name] in values for name, values in self.only.items())

    def __contains__(self, value: Number) -> bool:
        """Whether a value is in the range."""
        return self.low <= value <= self.high


def log(low: float, high: float) -> Range:
    """A range over orders of magnitude."""
    return Range(low, high, log=True)


_SGD = {"lr": log(1e-4, 0.1), "weight_decay": log(1e-6, 1e-2)}
# These adapt their steps, and the latter separate decay from the loss: other numbers.
_ADAM = {"lr": log(1e-5, 1e-2), "weight_decay": log(1e-6, 1e-2)}
_ADAMW = {"lr": log(1e-5, 1e-2), "weight_decay": log(1e-4, 1.0)}
TRAINING: dict[str, dict[str, Range]] = {
    **dict.fromkeys(("sgd", "asgd"), _SGD),
    **dict.fromkeys(("adam", "adamax", "nadam", "radam", "rmsprop"), _ADAM),
    **dict.fromkeys(("adamw", "muon"), _ADAMW),
}
"""The shared settings, by optimiser."""

METHOD: dict[str, dict[str, Range]] = {
    "unimodal": {},
    "joint": {},
    "multi_loss": {"weight": log(0.1, 10.0)},
    "ensemble": {},
    "finetune": {"pretrain": Range(20, 100)},
    "modality_dropout": {"p": Range(0.1, 0.9)},
    "masked_transformer": {"p": Range(0.1, 0.9)},
    "qmf": {"weight": log(0.01, 1.0)},  # its code has 0.1 and 1
    "g_blending": {
        "trial_epochs": Range(10, 45, only={"online": (False,)}),
        "super_epoch": Range(5, 20, only={"online": (True,)}),
    },
    "ogm": {"alpha": log(0.1, 3.0), "end": Range(10, 100)},  # published: 0.1 to 2.6
    "ogm_ge": {"alpha": log(0.1, 3.0), "end": Range(10, 100)},
    "mslr": {"window": Range(1, 10, only={"strategy": ("dynamic",)})},
    "mbsd": {"distillation": log(0.1, 10.0)},
    "amco": {"sigma": Range(0.2, 0.8), "eps": log(0.1, 1.0)},
    "mmcosine": {},
    "cml": {"penalty": log(1.0, 100.0)},  # the paper searches 0 to 100
    "umt": {"gamma": log(1.0, 100.0)},
    "pmr": {
        "alpha": log(0.3, 3.0),  # its scripts: 1 to 3
        "momentum": Range(0.0, 0.9),
        "entropy": log(0.01, 1.0),
        "end": Range(30, 150),
    },
    "agm": {"alpha": log(0.1, 3.0)},  # its scripts: 1 and 2.5
    "greedy": {"epsilon": log(1e-3, 0.1), "window": Range(1, 20)},
    "relearn": {"strength": log(0.3, 30.0), "every": Range(5, 40), "times": Range(1, 5)},
    "remedy": {
        "strength": log(0.3, 30.0),
        "weight": log(0.1, 10.0),
        "every": Range(5, 20),
        "times": Range(1, 8),
    },
    "smv": {"alpha": Range(0.25, 2.0, only={"level": ("modality",)}), "warmup": Range(1, 20)},
    "mmpareto": {"gamma": Range(1.0, 3.0)},
    "mla": {},
    "reconboost": {
        "fit": log(1.0, 10.0),
        "reconcilement": log(0.1, 10.0),
        "agreement": log(0.05, 5.0),
    },
    "lfm": {
        "epochs": Range(100, 400, only={"schedule": ("replayed", "heuristic")}),
        "weight": Range(0.05, 0.95, only={"schedule": ("learnt",)}),
    },
    "opm": {
        "base": Range(0.1, 0.8),
        "strength": Range(0.1, 1.0),
        "probability": Range(0.3, 1.0),
    },
    "mlb": {"alpha": log(0.1, 5.0), "beta": log(0.5, 10.0), "weight": log(0.1, 10.0)},
    "cggm": {"rho": Range(1.0, 2.0), "lam": log(0.01, 1.0)},
    "di_mml": {"align": log(0.1, 10.0), "temperature": log(1.0, 100.0), "start": Range(5, 40)},
    "dgl": {"alpha": log(1.0, 10.0)},  # its scripts: 4 and 5
    "g2d": {
        "feature_weight": log(0.1, 10.0),
        "logit_weight": log(0.1, 10.0),
        "temperature": log(0.5, 5.0),
        "prioritise": Range(30, 250),
    },
    "arl": {"temperature": log(1.0, 20.0), "gamma": log(0.1, 10.0), "start": Range(0, 20)},
    "mcr": {
        "strength": log(0.01, 1.0),
        "contrast": log(0.1, 10.0),
        "bottleneck": log(0.1, 10.0),
        "unimodal": log(0.01, 1.0),  # as in its trainer's runs
    },
    "inforeg": {"strength": log(0.1, 3.0), "threshold": log(0.01, 0.2)},  # its code: 0.1 to 2.6
    "remix": {"alpha": log(0.1, 2.0), "gamma": log(0.3, 3.0), "warmup": Range(2, 20)},
    "aug": {"residual": Range(0.1, 1.0), "every": Range(5, 40), "tolerance": log(1e-3, 0.1)},
    "miles": {
        "threshold": log(0.03, 0.5),
        "reduction": Range(0.1, 0.9),
        "unimodal": log(0.1, 10.0),
    },
    "bss": {
        "fused": log(0.05, 1.0),  # its code: 0.1 and 1
        "unimodal": log(0.3, 3.0),  # 0.9 and 1
        "start": Range(0.05, 0.5, only={"pace": ("curriculum",)}),
        "grow": Range(10, 100, only={"pace": ("curriculum",)}),
    },
    "rolling_q": {"beta": Range(0.05, 0.5), "rho": log(0.3, 10.0), "times": Range(1, 3)},
    "midas": {"weight": log(0.2, 20.0), "rate": log(0.01, 0.2), "warmup": Range(1, 20)},
    "mnl": {"weight": log(0.1, 10.0)},
    "tcmax": {},
    "pggb": {"alpha": log(0.1, 1.0), "unimodal": log(0.1, 10.0)},
    "pdmp": {"prioritised": Range(1.0, 3.0), "rest": Range(0.1, 1.0)},
    # the paper searches 0 to 30,000, with Adam
    "awc": {"strong": log(1e3, 1e5), "weak": log(1e3, 1e5), "window": Range(5, 30)},
    "balm": {"rho": Range(1.0, 2.0), "tau": log(0.03, 1.0)},  # its code: 1.1 to 1.6, 0.2 to 0.8
}
"""Each method's own settings, around the values of its paper and code; others have none."""


@dataclass(frozen=True)
class Space:
    """The search space of one method of a study.

    Attributes:
        method: The method as the user named it; settings given there are not searched.
        ranges: Ranges by setting: the shared ones first, then the method's own.
        given: Values without a search by setting, which may lie outside their ranges.
    """

    method: str
    ranges: Mapping[str, Range]
    given: Mapping[str, Number]

    @staticmethod
    def of(training: Training, method: str) -> "Space":
        """The space of a method in a training.

        Raises:
            ValueError: If the method or a setting is unknown, or a setting is of another type.
        """
        own = method_settings(Cell(training, method, 0))  # this checks all names
        spec, *others = together(method)
        if others:
            raise UserError(
                f"'evenly tune' searches one method at a time; found '{method}'. Tune each "
                "method, then combine them with the settings it found."
            )
        info = method_named(spec.name).info
        optimizer = parse(training.optimizer).name
        if optimizer not in TRAINING:
            raise UserError(
                f"'evenly tune' has no range of learning rates for '{optimizer}'. Use one of "
                f"{', '.join(TRAINING)}."
            )
        ranges = dict(TRAINING[optimizer])
        settings = {**defaults(spec.name), **own}
        for name, found in METHOD.get(spec.name, {}).items():
            if name in spec.settings or not found.acts(settings):
                continue
            if name in info.in_epochs:
                low, high = (
                    in_run(int(end), info.epochs, training) for end in (found.low, found.high)
                )
                ranges[name] = replace(found, low=low, high=high)
            else:
                ranges[name] = found
        values = {"lr": training.lr, "weight_decay": training.weight_decay}
        values |= settings
        return Space(method, ranges, {name: values[name] for name in ranges})

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """The ranges in Optuna's terms, in their order."""
        return {name: found.distribution() for name, found in self.ranges.items()}

    @property
    def first(self) -> Tuned:
        """The settings of the first trial, exactly as given."""
        return self._named(self.given)

    def tuned(self, found: Mapping[str, Number]) -> Tuned:
        """The settings of a later trial, from Optuna's numbers."""
        return self._named({name: each.value(found[name]) for name, each in self.ranges.items()})

    def _named(self, values: Mapping[str, Number]) -> Tuned:
        own = dict(values)
        lr, weight_decay = own.pop("lr"), own.pop("weight_decay")
        spec = parse(self.method)
        return Tuned(Spec(spec.name, {**spec.settings, **own}).text, lr, weight_decay)
