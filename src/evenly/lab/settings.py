"""The settings of a run, typed and documented once: the command's help is made of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from evenly.files import write_text
from evenly.spec import parse

Precision = Literal["auto", "bf16", "32"]


@dataclass(frozen=True)
class Training:
    """What every method of a comparison shares.

    Args:
        data: A built-in name with settings if wanted, such as 'digits' or 'digits(noise=2)', or
            a .npz file. 'evenly datasets' lists them.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        optimizer: SGD with momentum 0.9, or AdamW.
        lr: Learning rate, constant.
        weight_decay: Weight decay.
        precision: bf16 autocast, 32-bit floats, or auto: bf16 where the hardware is fast at it.
        width: Features per modality.
        encoders: By modality, an nn.Module by import path with settings, such as
            '{"audio": "my.models.Net(depth=3)"}'; the others are chosen by the shape of the data.
        threads: CPU threads of each run. Sums in another order differ in their last bits, so
            figures depend on it slightly (and not on the number of jobs).
        diagnose_every: Epochs between two measurements of purity and gap, for the figures; 0 is
            never, by default ten in a run.
    """

    data: str = "digits"
    epochs: int = 30
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    precision: Precision = "auto"
    width: int = 64
    encoders: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    diagnose_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "width", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is at least 1; found {getattr(self, name)}.")
        if self.lr <= 0:
            raise ValueError(f"--lr is above 0; found {self.lr}.")

    @property
    def measure_every(self) -> int:
        """Epochs between two measurements of purity and gap; 0 is never."""
        if self.diagnose_every is None:
            return max(1, self.epochs // 10)
        return self.diagnose_every


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a method, written as 'name' or 'name(setting=value)', and a seed."""

    training: Training
    method: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of the run's folder: METHOD-SEED, without characters that a shell would take."""
        text = parse(self.method).text
        for old, new in (("(", "_"), (")", ""), (" ", ""), (",", "_"), ("/", "-")):
            text = text.replace(old, new)
        return f"{text}-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """All settings, for the run's config.yaml."""
        return {"method": self.method, "seed": self.seed, **asdict(self.training)}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a config.yaml."""
    write_text(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises if a folder holds results of other settings, which must not be mixed.

    Args:
        path: The folder's config.yaml, which need not exist.
        settings: What is about to run.
    """
    if not path.is_file():
        return
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if name in found and found[name] != value:
            raise ValueError(
                f"{path.parent} holds runs with {name} = {found[name]!r}, but {value!r} is asked "
                "for now. Choose another folder with --out, or remove this one."
            )
