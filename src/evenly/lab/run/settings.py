"""The settings of a run, typed and documented once: the command's help is made of them."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
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
Fusion = Literal["concat", "sum", "film", "gated", "lowrank", "attention", "mbt", "mult"]


@dataclass(frozen=True)
class Training:
    """What every method of a comparison shares.

    Args:
        data: A built-in name with settings if wanted, such as 'digits' or 'digits(noise=2)'; a
            store that 'evenly prepare' made; what it makes one of, such as a table, .csv, .tsv,
            .parquet, .feather or .jsonl, or a folder of files; or a .npz file. 'evenly datasets'
            lists them.
        task: What labels are: classes, one of several for each sample; labels, any number of them;
            number, to regress on; by default what the data hold, see the page of tasks.
        epochs: Passes over the training split.
        patience: Epochs without a better one, by the metric that selects, after which a run ends;
            by default it goes on to the last.
        batch_size: Samples per step; with --accumulate, per pass.
        accumulate: Batches whose gradients make a step, of the mean loss over all their samples;
            where one batch does not fit into memory.
        optimizer: Any of torch.optim's by name, with settings if wanted: sgd, with momentum 0.9
            unless it is given; 'sgd(nesterov=true)'; 'adamw(betas=[0.9,0.98])'; muon, which trains
            the matrices of hidden layers, and AdamW all else.
        lr: Learning rate.
        schedule: How the learning rate goes on: step, divided by ten every --lr_step epochs;
            cosine, from --lr to 0 over the epochs, a little with each step; plateau, divided by ten
            after --lr_step epochs without a lower validation loss.
        lr_step: Epochs after which the learning rate is divided by ten, see --schedule; 0 is never.
        warmup: Epochs before the schedule begins, in which the learning rate rises from 0 to --lr,
            a little with each step.
        lr_scale: By modality, the learning rate of its encoder over --lr: '{"audio": 0.1}'; of the
            others it is 1. A method that changes learning rates itself multiplies them by its own.
        clip: The total norm to which gradients are cut down, after what the method does to them and
            of all parameters, on several devices of all of them together; by default they are left.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is judged,
            selected and kept in their place; by default there is none.
        weight_decay: Weight decay.
        class_weights: balanced, n / (k n_c) of the k classes of the training split, n_c of whose n
            samples are of class c, so that rare classes count as much as common ones; or equal.
            The mean of a batch divides by the sum of its weights.
        label_smoothing: Share of each label that is spread evenly over all classes.
        focal: γ of the focal loss, in which what is known already counts less; 0 is cross-entropy.
        loss: Of numbers, mae, the mean absolute error, or mse, the mean squared one, both in
            standard deviations of the training split.
        select: The metric by which the epoch is selected, and the trial of a search: the highest,
            or the lowest loss or error; by default accuracy, or of numbers their mean absolute
            error, mae. Of classes loss, accuracy, balanced_accuracy and macro_f1; of labels
            micro_f1 and mean_average_precision, too; of numbers rmse, pearson and concordance; of
            sentiment acc_2, acc_2_nonzero, acc_5, acc_7, f1 and f1_nonzero; or one of --metrics.
        metrics: Metrics of your own that are measured as well, functions by import path with
            settings, separated by commas: 'my.metrics.top_k(k=3)'.
        precision: bf16 autocast, 32-bit floats, or auto: the one in which a few steps of the model
            take less time here. What was chosen is written down, and stays when a run goes on.
        width: Features per modality.
        fusion: How the features become logits, for the methods that are not made for a head of
            their own: concat, sum, film, gated, lowrank, attention, mbt, mult, or a head by import
            path with settings, such as 'my.heads.Bilinear(rank=4)'.
        encoders: By modality, an encoder by name (resnet18, transformer, ast, vit, bert, wav2vec;
            'auto(pretrained=FOLDER)' for any of Transformers) or, by import path with settings,
            what makes an nn.Module: '{"audio": "my.models.Net(depth=3)"}'; the others are chosen by
            the shape of the data.
        noise: By modality, white noise on its inputs in all three splits, in standard deviations
            of the training split, drawn once: '{"audio": 2}' makes it scarcely informative.
        missing: By modality, the share of training and validation samples that it is taken from,
            beside those that lack it, drawn once for a seed: '{"audio": 0.3}'. A sample keeps one.
        missing_test: Likewise of test samples, where it is another share: '{"audio": 0}'.
        missing_token: Whether a vector is learnt for each modality, zeros at first, that is fused
            in place of the features that are missing, which are passed over otherwise.
        augment: By modality, 'picture' (a random part of images or frames, mirrored every second
            time) or 'spectrum' (SpecAugment for spectrograms), for training batches only:
            '{"visual": "picture"}'.
        threads: CPU threads of each run. Sums in another order differ in their last bits, so
            figures depend on it slightly (and not on the number of jobs).
        devices: Processes that train a run together, on a GPU each if there are any. They share
            the samples of each batch, whose size is that of all of them.
        nodes: Machines with so many devices each; torchrun or srun starts the command on them.
        strategy: ddp, a copy of the model in each process; fsdp, a part of it; auto is ddp.
        checkpoint_every: Seconds between two checkpoints, after an epoch each; a run that is killed
            does the epochs since the last one again, and they come out as before.
        diagnose_every: Epochs between two measurements of purity and gap, for the figures; 0 is
            never, by default ten in a run.
        limit_samples: Samples of each split at most, of each class as many, and one of each class
            at least: to try things out.
        protocol: fair selects the epoch on the validation split and reads the test split once,
            after that; paper selects it on the test split, as most published tables do, for a
            comparison with those alone: every output says so.
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
                f"--batch_size is of all devices together, and {self.world} of them cannot share "
                f"{self.batch_size} samples evenly. Give a multiple of {self.world}."
            )
        if self.strategy != "auto" and self.world == 1:
            raise UserError(f"--strategy {self.strategy} is for several devices. Give --devices.")
        if not self.checkpoint_every >= 0:
            raise UserError(f"--checkpoint_every is at least 0; found {self.checkpoint_every}.")
        if self.lr_step < 0:
            raise UserError(f"--lr_step is at least 0; found {self.lr_step}.")
        if self.schedule == "cosine" and self.lr_step:
            raise UserError("--lr_step is for --schedule step and plateau, not cosine. Leave it 0.")
        if self.schedule == "plateau" and not self.lr_step:
            raise UserError(
                "--schedule plateau takes --lr_step, the epochs without a lower validation loss "
                "after which the learning rate falls. Give it, such as --lr_step 5."
            )
        if not 0 <= self.warmup < self.epochs:
            raise UserError(
                f"--warmup is at least 0 and below --epochs, {self.epochs}; found {self.warmup}."
            )
        if not 0 < self.lr < math.inf:
            raise UserError(f"--lr is above 0; found {self.lr}.")
        for name, scale in self.lr_scale.items():
            if not 0 < scale < math.inf:
                raise UserError(f"--lr_scale.{name} is above 0; found {scale}.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise UserError(f"--clip is above 0; found {self.clip}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema is between 0 and 1; found {self.ema}.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight_decay is at least 0; found {self.weight_decay}.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"--label_smoothing is at least 0 and below 1; found {self.label_smoothing}."
            )
        if not 0 <= self.focal < math.inf:
            raise UserError(f"--focal is at least 0; found {self.focal}.")
        if self.focal and self.label_smoothing:
            raise UserError(
                "--focal and --label_smoothing do not go together, as the focal loss is of whole "
                "labels. Leave one of them out."
            )
        for name, level in self.noise.items():
            if not 0 < level < math.inf:
                raise UserError(f"--noise.{name} is above 0; found {level}.")
        for name, rate in self.missing.items():
            if not 0 <= rate < 1:
                raise UserError(f"--missing.{name} is at least 0 and below 1; found {rate}.")
        for name, rate in self.missing_test.items():
            if not 0 <= rate <= 1:
                raise UserError(f"--missing_test.{name} is from 0 to 1; found {rate}.")
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
            raise UserError(f"--diagnose_every is at least 0; found {self.diagnose_every}.")

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
        """The metric by which the epoch is selected, and 1 if more of it is better, else -1."""
        metric = self.select or ("mae" if self.task == "number" else "accuracy")
        return metric, METRICS[metric].sign  # own ones are known once `measures` has imported them

    @property
    def lacking(self) -> "dict[SplitName, dict[str, float]]":
        """By split and modality, the share of the samples that it is taken from."""
        test = {**self.missing, **self.missing_test}
        return {"train": self.missing, "val": self.missing, "test": test}

    @property
    def measure_every(self) -> int:
        """Epochs between two measurements of purity and gap; 0 is never."""
        if self.diagnose_every is None:
            return max(1, self.epochs // 10)
        return self.diagnose_every

    def as_dict(self) -> dict[str, Any]:
        """All settings, for a config.yaml, with the fingerprint of the data if they are a file."""
        from evenly.data import data_file  # loads torch, for which the command's help cannot wait

        settings = asdict(self)
        del settings["checkpoint_every"]  # on which no figure depends
        file = data_file(self.data)
        if file is not None and file.is_dir():
            file = file / "dataset.json"  # of a prepared store
        if file is None or not file.is_file():
            return settings
        return {"data": settings.pop("data"), "data_sha256": sha256(file), **settings}


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
        # What is quoted, such as a modality's name, stays one of its own: 'a b' is not 'ab'.
        text = re.sub(
            r'"((?:[^"\\]|\\.)*)"',
            lambda quoted: re.sub(r"[^\w-]", lambda sign: f"~{ord(sign[0]):x}", quoted[1]),
            text,
        )
        for old, new in (("(", "_"), (")", ""), (" ", ""), (",", "_"), ("/", "-")):
            text = text.replace(old, new)
        return f"{text}-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """All settings, for the run's config.yaml."""
        named = {"method": self.method, "seed": self.seed}
        return with_code({**named, **self.training.as_dict()})


def own_parts(settings: Mapping[str, Any]) -> dict[str, str]:
    """What settings name by import path: the user's own code, whose import alone runs it.

    Args:
        settings: Of a run, a comparison or a search, or as a file has them that may be somebody
            else's.

    Returns:
        By import path, what it is to be.
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
    data = settings.get("data")  # which may be any path
    if isinstance(data, str) and is_own(name := data.partition("(")[0].strip()):
        from evenly.data import data_file  # loads torch, for which the command's help cannot wait

        if data_file(data) is None:
            found[name] = "data set"
    return {name: what for name, what in found.items() if is_own(name)}


def with_code(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with the checksums of the user's own modules that they name, if any."""
    code = checksums(own_parts(settings))
    return {**settings, "code": code} if code else dict(settings)


def check_trusted(settings: Mapping[str, Any], place: object, trusting: str) -> None:
    """Raises if settings name code outside this package, whose import alone would run it.

    Args:
        settings: As a file has them that may be somebody else's.
        place: The file.
        trusting: What to type in order to run the code nevertheless.
    """
    for name, what in own_parts(settings).items():
        raise UserError(
            f"{place} asks for '{name}' as the {what}. To import it is to run its code, whatever "
            f"that does. If you trust whoever made it, {trusting}."
        )


def check_counts(**counts: int | None) -> None:
    """Raises if an option that counts something, and is given, is below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is at least 1; found {value}.")


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes a config.yaml."""
    write_text(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def read_settings(path: Path, mark: str) -> dict[str, Any]:
    """A config.yaml that `write_settings` wrote; empty where there is none yet.

    Args:
        path: Of the file.
        mark: The setting by which it is known: 'methods' of a comparison, 'method' of a run.

    Raises:
        ValueError: If the file is another program's, which must not be overwritten.
    """
    if not path.is_file():
        return {}
    try:
        found = load_yaml(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"data", "epochs", mark} <= found.keys():
        raise UserError(
            f"{path} is not what this command writes, so it is left as it is. Choose another "
            "folder with --out."
        )
    return found


def check_same(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises if a folder holds results of other settings, which must not be mixed.

    Args:
        folder: For the error.
        found: Its settings so far; empty where it holds nothing.
        settings: What is about to run.
    """
    file = settings.get("data_sha256")
    # A setting that is younger than the folder was as it is by default.
    usual = {each.name: each.default for each in fields(Training) if each.default is not MISSING}
    usual |= {"task": "classes", "select": "accuracy"}  # of which there was nothing else
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
            what = f"the module {' and '.join(changed)} as it was before: it has changed since"
        elif name == "data_sha256":
            what = f"{settings['data']} as it was before: the file has changed since"
        else:
            what = f"{name} = {before!r}, but {value!r} is asked for now"
        raise UserError(
            f"{folder} holds runs with {what}. Ask for the same, choose another folder with --out, "
            "or remove this one."
        )


def fingerprint(settings: Mapping[str, Any]) -> str:
    """What tells settings from others, also on another machine, where a file may lie elsewhere."""
    kept = {k: v for k, v in settings.items() if k != "data" or "data_sha256" not in settings}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def check_folder(folder: Path) -> None:
    """Raises if there can be no folder of that name."""
    place = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if place is not None and not place.is_dir():
        raise UserError(
            f"{folder} cannot be a folder, as {place} is a file. Choose another with --out."
        )
    if "::" in str(folder.absolute()):
        raise UserError(
            f"{folder}: '::' in a path joins two file systems for those who write checkpoints. "
            "Choose another with --out."
        )
