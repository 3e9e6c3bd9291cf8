"""The settings that each method's authors publish for a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from evenly.errors import UserError
from evenly.lab.run.settings import Training
from evenly.spec import Spec, load_yaml, parse, together

FILE = "published.yaml"
NONE = "no published settings found"


@dataclass(frozen=True)
class Own:
    """A method as its authors train it.

    Attributes:
        method: A text 'name(setting=value)' with published and user-given settings.
        training: The published training settings; the rest is common to all methods.
        source: Where they are published; empty if we have found them nowhere.
    """

    method: str
    training: Mapping[str, Any]
    source: str

    @property
    def changes(self) -> dict[str, Any]:
        """The method's own part of the training settings, for config.yaml."""
        source = self.source or f"{NONE}; common settings"
        return {**self.training, "source": source}

    def of(self, training: Training) -> Training:
        """A training with these settings."""
        return replace(training, **self.training)


@dataclass(frozen=True)
class Published:
    """What we have found published for a data set, by method.

    Attributes:
        data: The data set.
        methods: What is published, by method: its name, or 'name(setting=value)' for a variant.
        common: The training whose settings hold where nothing is published.
    """

    data: str
    methods: Mapping[str, Mapping[str, Any]]
    common: Training

    @staticmethod
    def of_data(name: str, common: Training) -> "Published":
        """What is published for a data set.

        Args:
            name: Name of the data set, as recorded by `evenly prepare`.
            common: The training whose settings hold where nothing is published.

        Raises:
            ValueError: If nothing is known about it.
        """
        known = load_yaml(files("evenly.lab.many").joinpath(FILE).read_text(encoding="utf-8"))
        for data, methods in known.items():
            if name == data or name.startswith((f"{data}(", f"{data}-")):
                return Published(data, methods, common)
        raise UserError(
            f"--settings published: no published settings are known for '{name}', only for "
            f"{' and '.join(known)}. Use --settings common, or 'evenly tune'."
        )

    def of(self, method: str) -> Own:
        """A method as its authors train it; the user's own settings stay.

        If they do not publish the length of training, what they count in epochs scales from the
        length that the method's schedule is made for, as its defaults do.

        Each of several methods in one keeps its own settings. They train as published only if that
        is the same for all of them, else as is common, and what counts epochs scales to that.
        """
        parts = together(method)
        alone = [self._alone(spec) for spec in parts]
        if len(parts) == 1:
            return alone[0]
        training = alone[0].training
        agreed = bool(training) and all(own.training == training for own in alone)
        if not agreed:
            training, alone = {}, [self._alone(spec, own_length=False) for spec in parts]
        name = parse("+".join(own.method for own in alone)).name
        if not any(own.source for own in alone):
            return Own(name, training, "")
        sources = "; ".join(
            f"{spec.name}: {own.source or NONE}" for spec, own in zip(parts, alone, strict=True)
        )
        if not agreed:
            sources += "; no training is published for all of them, so the common one"
        return Own(name, training, sources)

    def _alone(self, asked: Spec, *, own_length: bool = True) -> Own:
        """One method as its authors train it.

        Args:
            asked: The method with the user's settings.
            own_length: Whether it trains for the published number of epochs, if there is one, and
                not for the common one.
        """
        # loads torch, too slow for the command's help
        from evenly.lab.run.build import in_run
        from evenly.methods import method_named

        found = self._entry(asked)
        if not found:
            return Own(asked.text, {}, "")
        settings, training = dict(found.get("settings", {})), dict(found.get("training", {}))
        if "lr_step" in training:  # whose epochs are those of no other schedule
            training.setdefault("schedule", "step")
        info = method_named(asked.name).info
        length = training.get("epochs", info.epochs)
        if length and not (own_length and "epochs" in training):
            for counted, names in ((settings, info.in_epochs), (training, ("lr_step",))):
                for name in counted.keys() & set(names):
                    counted[name] = in_run(counted[name], length, self.common)
        return Own(Spec(asked.name, settings | asked.settings).text, training, found["source"])

    def _entry(self, asked: Spec) -> Mapping[str, Any] | None:
        """What is published of a method, or of the variant that the user's settings make of it."""
        known = [spec for spec in map(parse, self.methods) if spec.name == asked.name]
        fitting = [spec for spec in known if spec.settings.items() <= asked.settings.items()]
        if not fitting:
            return None
        return self.methods[max(fitting, key=lambda spec: len(spec.settings)).text]

    @property
    def shared(self) -> dict[str, Any]:
        """What config.yaml says instead of the settings that differ by method."""
        differ = sorted({key for each in self.methods.values() for key in each.get("training", ())})
        return {
            **dict.fromkeys(differ, "published"),
            "settings": f"published for {self.data}",
            "common": {key: getattr(self.common, key) for key in differ},
        }
