"""The settings that each method's authors publish for a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from evenly.errors import UserError
from evenly.lab.run.settings import Training
from evenly.spec import Spec, load_yaml, parse

FILE = "published.yaml"


@dataclass(frozen=True)
class Own:
    """A method as its authors train it.

    Attributes:
        method: A text 'name(setting=value)' with published and user-given settings.
        training: The published training settings; the rest is common to all methods.
        source: Where they are published; empty if nowhere.
    """

    method: str
    training: Mapping[str, Any]
    source: str

    @property
    def changes(self) -> dict[str, Any]:
        """The method's own part of the training settings, for config.yaml."""
        source = self.source or "nothing published; common settings"
        return {**self.training, "source": source}

    def of(self, training: Training) -> Training:
        """A training with these settings."""
        return replace(training, **self.training)


@dataclass(frozen=True)
class Published:
    """What is published for a data set, by method.

    Attributes:
        data: The data set.
        methods: What is published, by name of the method.
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
        """
        # loads torch, too slow for the command's help
        from evenly.lab.run.build import in_run
        from evenly.methods import method_named

        asked = parse(method)
        found = self.methods.get(asked.name, {})
        settings, training = dict(found.get("settings", {})), dict(found.get("training", {}))
        info = method_named(asked.name).info if found else None
        if info and info.epochs and "epochs" not in training:
            for counted, names in ((settings, info.in_epochs), (training, ("lr_step",))):
                for name in counted.keys() & set(names):
                    counted[name] = in_run(counted[name], info.epochs, self.common)
        spec = Spec(asked.name, {**settings, **asked.settings})
        return Own(spec.text, training, found.get("source", ""))

    @property
    def shared(self) -> dict[str, Any]:
        """What config.yaml says instead of the settings that differ by method."""
        differ = sorted({key for each in self.methods.values() for key in each.get("training", ())})
        return {
            **dict.fromkeys(differ, "published"),
            "settings": f"published for {self.data}",
            "common": {key: getattr(self.common, key) for key in differ},
        }
