"""The settings of a run, typed and documented once: the commands' help comes from here."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from evenly.errors import UserError
from evenly.files import sha256, write_text
from evenly.imported import checksums, is_own
from evenly.metrics import BUILT_IN, METRICS
from evenly.spec import load_yaml, parse, split, together
from evenly.suggest import unknown

if TYPE_CHECKING:
    from evenly.data import SplitName

Precision = Literal["auto", "bf16", "32"]
Strategy = Literal["auto", "ddp", "fsdp"]
Protocol = Literal["fair", "paper"]
CALLED: "dict[SplitName, str]" = {"train": "training", "val": "validation", "test": "test"}
"""The splits in words."""
Fusion = Literal["concat", "sum", "film", "gated", "lowrank", "attention", "mbt", "mult"]


@dataclass(frozen=True)
class Training:
    """What every method of a comparison shares.

    Args:
        data: A built-in data set, with settings if you like, such as 'digits(noise=2)'; a store
            made by 'evenly prepare'; a table (.csv, .tsv, .parquet, .feather, .jsonl) or a folder
            of files; or a .npz file. See 'evenly datasets'.
        task: What the labels are: classes (one per sample), labels (any number per sample), or
            number (a number to regress on); auto decides by the data.
        epochs: Passes over the training split.
        patience: Stop a run after N epochs without a better value of the selecting metric
            (default: never).
        batch_size: Samples per step; with --accumulate, samples per pass.
        accumulate: Batches per step, whose gradients are averaged over all their samples. Use it
            where one large batch does not fit into memory.
        optimizer: An optimiser of torch.optim, with settings if you like: sgd (momentum 0.9 unless
            given), 'sgd(nesterov=true)', 'adamw(betas=[0.9,0.98])', or muon, which trains the
            matrices of hidden layers and leaves the rest to AdamW.
        lr: Learning rate.
        schedule: step divides the learning rate by 10 every --lr-step epochs; cosine lowers it to 0
            over the run, step by step; plateau divides it by 10 after --lr-step epochs without a
            lower validation loss.
        lr_step: Divide the learning rate by 10 every N epochs (0: never). With --schedule plateau,
            the epochs without improvement.
        warmup: Raise the learning rate from 0 to --lr over the first N epochs; the schedule begins
            after them.
        lr_scale: By modality, a factor on its encoder's learning rate: '{"audio": 0.1}'. Factors
            that a method sets come on top.
        clip: Clip the total gradient norm of all parameters, over all devices, after the method has
            changed the gradients (default: no clipping).
        ema: Decay of an exponential moving average of the weights, such as 0.999. The average is
            evaluated, selected and kept in place of the weights (default: no averaging).
        weight_decay: Weight decay.
        class_weights: balanced weighs class c by n / (k n_c), for n training samples in k classes,
            n_c of them in c, so that rare classes count as much as common ones. A batch's loss is
            divided by the sum of its weights.
        label_smoothing: Share of each label that is spread evenly over all classes.
        focal: Gamma of the focal loss, which gives less weight to easy samples (0: cross-entropy).
        loss: For regression, mae (mean absolute error) or mse (mean squared error), in standard
            deviations of the training split.
        select: The metric that selects the epoch, and the best trial of a search (default:
            accuracy, or mae for regression), built in or one of --metrics.
        metrics: Metrics of your own to measure as well: functions by import path with settings,
            separated by commas: 'my.metrics.top_k(k=3)'.
        precision: bf16 autocast, 32-bit floats, or auto: bf16 if the machine has units for it and
            timed steps are at least 1.2 times as fast in it, else 32. The choice is kept when a run
            resumes.
        width: Features per modality.
        fusion: How features become logits, unless a method brings a head of its own: concat, sum,
            film, gated, lowrank, attention, mbt, mult, or a head by import path with settings, such
            as 'my.heads.Bilinear(rank=4)'.
        encoders: By modality, an encoder by name (resnet18, transformer, ast, vit, bert, wav2vec,
            mlp, tabular, temporal_conv, resnet, frame_mean, or 'auto(pretrained=FOLDER)' for any of
            Transformers) or, by import path, what makes an nn.Module:
            '{"audio": "my.models.Net(depth=3)"}'. The others follow from the shape of the data.
        noise: By modality, white noise added to its inputs in all splits, in standard deviations of
            the training split: '{"audio": 2}' leaves it hardly informative.
        missing: By modality, the share of training and validation samples to take it from, drawn
            once per seed: '{"audio": 0.3}'. Every sample keeps at least one modality.
        missing_test: The same for test samples, if their share differs: '{"audio": 0}'.
        missing_token: Whether to learn a vector per modality, initially zero, that stands in for
            missing features (true), or to skip these (false, the default).
        augment: By modality, 'picture' (random crops and mirroring of images or frames) or
            'spectrum' (SpecAugment of spectrograms), in training batches only: '{"visual":
            "picture"}'.
        threads: CPU threads per run. The order of sums depends on it, so rounding differs, and
            accuracies may change by some samples.
        devices: Processes that share one run, each on a GPU if there are any. They split every
            batch of --batch-size samples.
        nodes: Machines with that many devices each; start the command on each with torchrun or
            srun.
        strategy: ddp keeps a copy of the model in each process, fsdp shards it; auto is ddp.
        checkpoint_every: Seconds between checkpoints, which are written at the end of an epoch. A
            killed run repeats the epochs since its last one, with the same results.
        diagnose_every: Epochs between measurements of purity and gap, for the figures (0: never;
            default: a tenth of --epochs, rounded down, at least 1). The last epoch is always
            measured, unless N is 0.
        limit_samples: At most N samples per split, balanced over classes (at least one per class,
            and one with and one without each label).
        protocol: fair selects the epoch on the validation split and reads the test split once
            afterwards. paper selects on the test split, as most published tables do; every output
            then says so.
    """

    data: str = "digits"
    task: Literal["auto", "classes", "labels", "number"] = "auto"
    epochs: int = 30
    patience: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.01
    schedule: Literal["step", "cosine", "plateau"] = "step"
    lr_step: int = 0
    warmup: int = 0
    lr_scale: dict[str, float] = field(default_factory=dict)
    clip: float | None = None
    ema: float | None = None
    weight_decay: float = 1e-4
    class_weights: Literal["equal", "balanced"] = "equal"
    label_smoothing: float = 0.0
    focal: float = 0.0
    loss: Literal["mae", "mse"] = "mae"
    select: str | None = None
    metrics: str = ""
    precision: Precision = "auto"
    width: int = 64
    fusion: str = "concat"
    encoders: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    missing_test: dict[str, float] = field(default_factory=dict)
    missing_token: bool = False
    augment: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "auto"
    checkpoint_every: float = 10.0
    diagnose_every: int | None = None
    limit_samples: int | None = None
    protocol: Protocol = "fair"

    def __post_init__(self) -> None:
        counts = ("epochs", "patience", "batch_size", "accumulate", "width", "threads")
        counted = (*counts, "devices", "nodes", "limit_samples")
        check_counts(**{name: getattr(self, name) for name in counted})
        if self.batch_size % self.world:
            raise UserError(
                f"--batch-size counts the samples of all devices, and {self.world} devices "
                f"cannot share {self.batch_size} evenly. Use a multiple of {self.world}."
            )
        if self.strategy != "auto" and self.world == 1:
            raise UserError(f"--strategy {self.strategy} needs several devices. Give --devices.")
        if not self.checkpoint_every >= 0:
            raise UserError(
                f"--checkpoint-every must be at least 0; found {self.checkpoint_every}."
            )
        if self.lr_step < 0:
            raise UserError(f"--lr-step must be at least 0; found {self.lr_step}.")
        if self.schedule == "cosine" and self.lr_step:
            raise UserError(
                "--lr-step applies to --schedule step and plateau, not cosine. Leave it out."
            )
        if self.schedule == "plateau" and not self.lr_step:
            raise UserError(
                "--schedule plateau needs --lr-step, the epochs without a lower validation "
                "loss after which the learning rate falls, such as --lr-step 5."
            )
        if not 0 <= self.warmup < self.epochs:
            raise UserError(
                f"--warmup must be at least 0 and below --epochs, {self.epochs}; found "
                f"{self.warmup}."
            )
        if not 0 < self.lr < math.inf:
            raise UserError(f"--lr must be above 0; found {self.lr}.")
        for name, scale in self.lr_scale.items():
            if not 0 < scale < math.inf:
                raise UserError(f"--lr-scale.{name} must be above 0; found {scale}.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise UserError(f"--clip must be above 0; found {self.clip}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema must be between 0 and 1; found {self.ema}.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay must be at least 0; found {self.weight_decay}.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"--label-smoothing must be at least 0 and below 1; found {self.label_smoothing}."
            )
        if not 0 <= self.focal < math.inf:
            raise UserError(f"--focal must be at least 0; found {self.focal}.")
        if self.focal and self.label_smoothing:
            raise UserError(
                "--focal and --label-smoothing exclude each other: the focal loss needs hard "
                "labels. Leave one out."
            )
        for name, level in self.noise.items():
            if not 0 < level < math.inf:
                raise UserError(f"--noise.{name} must be above 0; found {level}.")
        for name, rate in self.missing.items():
            if not 0 <= rate < 1:
                raise UserError(f"--missing.{name} must be at least 0 and below 1; found {rate}.")
        for name, rate in self.missing_test.items():
            if not 0 <= rate <= 1:
                raise UserError(f"--missing-test.{name} must be from 0 to 1; found {rate}.")
        own = [spec.name.rpartition(".")[2] for spec in split(self.metrics)] if self.metrics else []
        for spec in split(self.metrics) if self.metrics else ():
            if not is_own(spec.name):
                raise UserError(
                    f"--metrics takes import paths, such as my.metrics.top_k; found '{spec.name}'. "
                    "All that is built in is measured without it."
                )
        if self.select is not None and self.select not in (*BUILT_IN, *own):
            raise unknown("metric", self.select, BUILT_IN, "or the name of one of --metrics")
        fusion = parse(self.fusion)
        if not is_own(fusion.name) and (self.fusion not in get_args(Fusion)):
            raise unknown("fusion", self.fusion, get_args(Fusion), "or a head by import path")
        if self.diagnose_every is not None and self.diagnose_every < 0:
            raise UserError(f"--diagnose-every must be at least 0; found {self.diagnose_every}.")

    @property
    def world(self) -> int:
        """Processes that train a run."""
        return self.devices * self.nodes

    @property
    def selects_on(self) -> "SplitName":
        """The split on which the epoch is selected."""
        return "test" if self.protocol == "paper" else "val"

    @property
    def selected_by(self) -> tuple[str, int]:
        """The metric that selects the epoch, and 1 if higher is better, else -1."""
        metric = self.select or ("mae" if self.task == "number" else "accuracy")
        return metric, METRICS[metric].sign  # own ones are known after `measures`

    @property
    def lacking(self) -> "dict[SplitName, dict[str, float]]":
        """The share of samples that lose each modality, by split and modality."""
        test = {**self.missing, **self.missing_test}
        return {"train": self.missing, "val": self.missing, "test": test}

    @property
    def measure_every(self) -> int:
        """Epochs between measurements of purity and gap (0: never)."""
        if self.diagnose_every is None:
            return max(1, self.epochs // 10)
        return self.diagnose_every

    def as_dict(self, checksum: str | None = None) -> dict[str, Any]:
        """All settings, for a config.yaml, with the checksum of the data if they are a file.

        Args:
            checksum: That of the data, if known; by default, it is computed.
        """
        from evenly.data import data_file  # loads torch, too slow for the command's help

        settings = asdict(self)
        del settings["checkpoint_every"]  # no result depends on it
        file = data_file(self.data)
        if file is not None and file.is_dir():
            file = file / "dataset.json"  # of a prepared store
        if file is None or not file.is_file():
            return settings
        checksum = checksum or sha256(file)
        return {"data": settings.pop("data"), "data_sha256": checksum, **settings}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a method, written as 'name' or 'name(setting=value)', and a seed."""

    training: Training
    method: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of the run's folder: METHOD-SEED, without characters special to a shell."""
        text = parse(self.method).text
        # Quoted parts, such as a modality's name, stay distinct: 'a b' is not 'ab'.
        text = re.sub(
            r'"((?:[^"\\]|\\.)*)"',
            lambda quoted: re.sub(r"[^\w-]", lambda sign: f"~{ord(sign[0]):x}", quoted[1]),
            text,
        )
        for old, new in (("(", "_"), (")", ""), (" ", ""), (",", "_"), ("/", "-")):
            text = text.replace(old, new)
        return f"{text}-{self.seed}"

    def as_dict(self, checksum: str | None = None) -> dict[str, Any]:
        """All settings, for the run's config.yaml.

        Args:
            checksum: That of the data, if known; by default, it is computed.
        """
        named = {"method": self.method, "seed": self.seed}
        return with_code({**named, **self.training.as_dict(checksum)})


def check_apart(methods: Iterable[str]) -> None:
    """Raises if two methods would share a folder, whose name replaces some characters."""
    taken: dict[str, str] = {}
    for method in methods:
        folder = Cell(Training(), method, 0).folder
        if (other := taken.setdefault(folder, method)) != method:
            raise UserError(
                f"{other} and {method} would both write into the folder {folder}. Give each to a "
                "command of its own, with its own --out."
            )


def own_parts(settings: Mapping[str, Any]) -> dict[str, str]:
    """What settings name by import path: the user's own code, which runs when imported.

    Args:
        settings: Settings of a run, a comparison or a search, or from a file that may be someone
            else's.

    Returns:
        The kind of thing, by import path.
    """
    found: dict[str, str] = {}
    for key in ("method", "methods"):
        texts = settings.get(key)
        texts = [texts] if isinstance(texts, str) else texts
        for text in texts if isinstance(texts, list) else ():
            for each in split(str(text)):
                found |= {spec.name: "method" for spec in together(each.text)}
    encoders = settings.get("encoders")
    for modality, text in encoders.items() if isinstance(encoders, dict) else ():
        found[parse(str(text)).name] = f"encoder of '{modality}'"
    if isinstance(fusion := settings.get("fusion"), str):
        found[parse(fusion).name] = "fusion"
    if isinstance(metrics := settings.get("metrics"), str) and metrics:
        found |= {spec.name: "metric" for spec in split(metrics)}
    data = settings.get("data")  # it may be any path
    if isinstance(data, str) and is_own(name := data.partition("(")[0].strip()):
        from evenly.data import data_file  # loads torch, too slow for the command's help

        if data_file(data) is None:
            found[name] = "data set"
    return {name: what for name, what in found.items() if is_own(name)}


def with_code(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with checksums of the user's own modules that they name, if any."""
    code = checksums(own_parts(settings))
    return {**settings, "code": code} if code else dict(settings)


def check_trusted(settings: Mapping[str, Any], place: object, trusting: str) -> None:
    """Raises if settings name code outside this package, which would run when imported.

    Args:
        settings: Settings from a file that may be someone else's.
        place: The file.
        trusting: What to type to run the code anyway.
    """
    for name, what in own_parts(settings).items():
        raise UserError(
            f"{place} asks for '{name}' as the {what}. Importing it runs its code. If you trust "
            f"its author, {trusting}."
        )


def check_counts(**counts: int | None) -> None:
    """Raises if a given option that counts something is below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; found {value}.")


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a config.yaml."""
    write_text(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def read_settings(path: Path, mark: str) -> dict[str, Any]:
    """A config.yaml written by `write_settings`; empty if there is none yet.

    Args:
        path: Path of the file.
        mark: The setting that identifies it: 'methods' of a comparison, 'method' of a run.

    Raises:
        ValueError: If the file belongs to another program and must not be overwritten.
    """
    if not path.is_file():
        return {}
    try:
        found = load_yaml(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"data", "epochs", mark} <= found.keys():
        raise UserError(
            f"{path} was not written by this command, so it is left untouched. Choose another "
            "folder with --out."
        )
    return found


def check_same(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises if a folder holds results from other settings, which must not be mixed.

    Args:
        folder: The folder, for the error.
        found: Its settings so far; empty if it holds nothing.
        settings: What is about to run.
    """
    file = settings.get("data_sha256")
    # A setting newer than the folder had its default value; of task and select, the only one.
    usual = asdict(Training()) | {"task": "classes", "select": "accuracy"}
    for name, value in settings.items():
        if name == "data" and file is not None and file == found.get("data_sha256"):
            continue  # the same file by another path
        before = found.get(name, usual.get(name, value))
        if not found or before == value:
            continue
        if name == "code":
            changed = [module for module in value if before.get(module, "") != value[module]]
            if not changed:
                continue
            what = f"the module {' and '.join(changed)} as it was before; it has changed since"
        elif name == "data_sha256":
            what = f"{settings['data']} as it was before; the file has changed since"
        else:
            what = f"{name} = {before!r}, but now {value!r} is asked for"
        raise UserError(
            f"{folder} holds runs with {what}. Use the same settings, choose another folder "
            "with --out, or remove this one."
        )


class Refused(UserError):
    """A run that was not done, because its files or packages are not those of its command."""


def check_unchanged(began: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises if a run would read another data file or module than the other runs of its command.

    Args:
        began: The run's settings with the checksums of when the command began, if known.
        settings: The same now.
    """
    data, code = began.get("data_sha256"), settings.get("code", {})
    changed = [settings["data"]] if data and settings.get("data_sha256", data) != data else []
    changed += [
        f"the module {name}"
        for name, checksum in began.get("code", {}).items()
        if code.get(name) != checksum
    ]
    if changed:
        raise Refused(
            f"{' and '.join(changed)} changed after this command began. Bring back what was there "
            "and run the command again, or choose another folder with --out."
        )


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A fingerprint of settings, valid on any machine, wherever a file may be there."""
    kept = {k: v for k, v in settings.items() if k != "data" or "data_sha256" not in settings}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def check_folder(folder: Path) -> None:
    """Raises if a folder of that name is impossible."""
    place = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if place is not None and not place.is_dir():
        raise UserError(
            f"{folder} cannot be a folder, because {place} is a file. Choose another with --out."
        )
    if "::" in str(folder.absolute()):
        raise UserError(
            f"{folder}: checkpoints cannot be written to a path with '::'. Choose another with "
            "--out."
        )
