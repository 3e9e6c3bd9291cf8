"""A trained run, loaded anywhere: its predictions on new data, and its export."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import child
from evenly.data import Data, Modality, Padded, SplitName, data_file, load, load_npz
from evenly.data.catalogue import TABLES
from evenly.lab.build import fused, made_encoders
from evenly.lab.settings import Cell, Training, read_settings
from evenly.nn import LateFusion
from evenly.nn.pretrained import configurations
from evenly.spec import Spec, parse

BATCH = 64
# What torch cannot prove of free sizes, a program checks when it runs; older ones have no choice.
_DEFERRED: Any = (
    {"prefer_deferred_runtime_asserts_over_guards": True}
    if ("prefer_deferred_runtime_asserts_over_guards" in signature(torch.export.export).parameters)
    else {}
)


@dataclass(frozen=True)
class Trained:
    """The model of a run, with the weights that validation selected.

    Attributes:
        folder: Of the run.
        model: In evaluation mode, on the CPU.
        modalities: By name: what it takes.
        dtypes: By modality, the type in which the run's data were stored.
        class_names: By class number.
        read: By modality, how its files were read, where the data came from files.
    """

    folder: Path
    model: LateFusion
    modalities: Mapping[str, Modality]
    dtypes: Mapping[str, torch.dtype]
    class_names: Sequence[str]
    read: Mapping[str, str]

    @torch.no_grad()
    def probabilities(
        self, inputs: Mapping[str, Tensor | Padded], present: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "n c"]:
        """The probability of each class.

        Args:
            inputs: By modality, as stored; those that are left out are missing in all samples.
            present: By modality, which samples have it; the others' inputs count for nothing.

        Raises:
            ValueError: If an input has another shape than the run was trained on, or none of the
                run's modalities is there.
        """
        used = {name: x for name, x in inputs.items() if name in self.modalities}
        if not used:
            raise ValueError(
                f"{self.folder} was trained on {', '.join(self.modalities)}; the data have "
                f"{', '.join(inputs) or 'none'}. Give at least one of its modalities."
            )
        for name, x in used.items():
            self._check(name, x)
        here = {name: mask for name, mask in (present or {}).items() if name in used}
        logits: Tensor = self.model(used, here).logits
        return logits.softmax(1)

    def predict(
        self, data: Data, split: SplitName, without: Collection[str] = ()
    ) -> Float[Tensor, "n c"]:
        """The probabilities of every sample of a split, in its order.

        Args:
            data: With some of the run's modalities.
            split: Which part of them.
            without: Modalities that are left out.
        """
        part, found = data.split(split), []
        for start in range(0, len(part), BATCH):
            batch = part.__getitems__(range(start, min(start + BATCH, len(part))))
            inputs = {name: x for name, x in batch["inputs"].items() if name not in without}
            found.append(self.probabilities(inputs, batch["present"]))
        return torch.cat(found)

    def export(self, path: Path) -> None:
        """Writes the model as a `torch.export` program, which needs this package no more.

        It takes a mapping of inputs by modality, all of them, in the type in which they are stored
        (`dtypes`), and returns logits. The number of samples is free, and the number of steps of
        sequences and texts (which are padded, and come with their lengths: `(values, length)`).

        Raises:
            ValueError: If there can be no such file.
            RuntimeError: If an encoder decides by values, as wav2vec does, which no program can.
        """
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{path}: no file can be written there. Give the name of a new one.")
        example = {
            name: _example(modality, self.dtypes[name])
            for name, modality in self.modalities.items()
        }
        n = torch.export.Dim("n")
        shapes: dict[str, Any] = dict.fromkeys(example, {0: n})
        for number, (name, x) in enumerate(example.items()):
            if isinstance(x, tuple):
                steps = torch.export.Dim(f"steps_{number}", max=self._longest(name))
                shapes[name] = ({0: n, 1: steps}, {0: n})
        try:
            program = torch.export.export(
                _Logits(self.model), (example,), dynamic_shapes=(shapes,), **_DEFERRED
            )
        except Exception as error:
            kinds = ", ".join(type(encoder).__name__ for encoder in self.model.encoders.values())
            said = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"{self.folder}: torch.export cannot trace its model, of the encoders {kinds} "
                f"({type(error).__name__}: {said[:200]}). 'evenly predict' needs no export."
            ) from error
        torch.export.save(program, path)

    def _longest(self, name: str) -> int | None:
        """Steps of a sequence or text that an encoder takes at most; None for any."""
        found: int | None = getattr(self.model.encoders[name], "longest", None)
        return found

    def _check(self, name: str, x: Tensor | Padded) -> None:
        known = self.modalities[name]
        found = tuple((x.values if isinstance(x, Padded) else x).shape[1:])
        same = found == known.shape
        if known.kind in ("sequence", "text"):  # any length, and unknown tokens
            same = len(found) == 1 if known.kind == "text" else found[1:] == known.shape[1:]
        if not same:
            raise ValueError(
                f"'{name}' has the shape {found}, but {self.folder} was trained on {known.shape}. "
                "Prepare the data as those it was trained on."
            )


class _Logits(nn.Module):
    """Only the logits, which is what an exported program can return."""

    def __init__(self, model: LateFusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Any]) -> Float[Tensor, "n c"]:
        whole = {name: Padded(*x) if isinstance(x, tuple) else x for name, x in inputs.items()}
        logits: Tensor = self.model(whole).logits
        return logits


def _example(modality: Modality, dtype: torch.dtype) -> Tensor | tuple[Tensor, Tensor]:
    longest = torch.full((2,), modality.shape[0])
    shape = modality.shape[:1] if modality.kind == "text" else modality.shape
    values = torch.zeros(2, *shape, dtype=dtype)
    return (values, longest) if modality.kind in ("sequence", "text") else values


@dataclass(frozen=True)
class Prediction:
    """What a run says of one sample.

    Attributes:
        sample: Its name, or its row in the split.
        label: Its class, where it is known.
        probabilities: Of each class.
    """

    sample: str
    label: str
    probabilities: list[float]


def predictions(
    run: Trained,
    data: str,
    split: SplitName = "test",
    without: Collection[str] = (),
    *,
    skip_broken: bool = False,
) -> Iterator[Prediction]:
    """What a run says of data that `--data` takes; of tables and files without labels, too.

    Args:
        run: Loaded by `load_run`.
        data: A name, a store, an `.npz` file or a table. Of a table every row is predicted, its
            files read as those of the run were; of an `.npz` file without `split`, too.
        split: Which part of data that have one.
        without: Modalities that are left out.
        skip_broken: Leave out rows of a table whose files are missing or broken, and say so.

    Raises:
        ValueError: If the data do not fit the run, or files of a table are broken, with a list of
            them and their reasons.
    """
    if data.endswith(TABLES):
        yield from _of_table(run, Path(data), without, skip_broken)
        return
    path = data_file(data)
    is_file = path is not None and path.suffix == ".npz"
    found = load_npz(path, labelled=False) if path is not None and is_file else load(data)
    for name in run.modalities.keys() - set(without):
        theirs, ours = found.read.get(name), run.read.get(name)
        if theirs and ours and theirs != ours:
            raise ValueError(
                f"{data}: '{name}' was read as {theirs[:90]}, but {run.folder} was trained on "
                f"{ours[:90]}. Give the table of the files itself, which is read as the run's were."
            )
    part = found.split(split)
    if not len(part):
        raise ValueError(f"{data}: its {split} split holds no sample. Choose another with --split.")
    names = [found.names[row] for row in part.rows.tolist()] if found.names else range(len(part))
    of_each = run.predict(found, split, without).tolist()
    for name, number, probabilities in zip(names, part.target.tolist(), of_each, strict=True):
        label = found.class_names[number] if number >= 0 else ""
        yield Prediction(str(name), label, probabilities)


def _of_table(
    run: Trained, path: Path, without: Collection[str], skip_broken: bool
) -> Iterator[Prediction]:
    from evenly.data.raw import READERS, batches, columns_of, listed, table
    from evenly.lab.prepare import say

    names = [name for name in run.modalities if name in columns_of(path)]
    if not names:
        raise ValueError(
            f"{path}: has none of the columns {', '.join(run.modalities)}, which {run.folder} was "
            "trained on."
        )
    readers = {name: run.read[name] for name in names if name in run.read}
    for name, reader in readers.items():
        if parse(reader).name not in READERS:
            raise ValueError(
                f"{path}: '{name}' of {run.folder} was read as {reader[:90]}, from files of its "
                "data set that no table can name. Prepare a store of such files with 'evenly "
                "prepare', and give it as --data."
            )
    source = table(path, names, readers, labelled=False)
    broken: list[tuple[str, str]] = []
    shapes = {name: run.modalities[name].shape for name in names}
    for samples, inputs, present in batches(source, BATCH, child.cores(), broken, shapes):
        if broken and not skip_broken:
            continue  # only to find what else is broken
        used = {name: x for name, x in inputs.items() if name not in without}
        of_each = run.probabilities(used, present).tolist()
        for sample, probabilities in zip(samples, of_each, strict=True):
            label = source.classes[sample.label] if sample.label >= 0 else ""
            yield Prediction(sample.name, label, probabilities)
    if broken and not skip_broken:
        raise ValueError(
            f"{path}: {len(broken)} of {len(source.samples)} rows cannot be predicted:\n"
            f"{listed(broken)}\nMend these files, or leave the rows out with --skip-broken."
        )
    if broken:
        say([f"{len(broken)} rows were left out as broken:\n{listed(broken)}"])


def load_run(folder: Path) -> Trained:
    """The model of a run, wherever its folder is now; its data are not needed.

    Raises:
        FileNotFoundError: If the folder holds no run with a best checkpoint.
        ValueError: If its files are damaged, or an encoder of the user's own cannot be imported.
    """
    path = folder / "best.ckpt"
    if (folder / "runs").is_dir() and not path.is_file():
        some = min((folder / "runs").glob("*/"), default=folder / "runs" / "joint-0")
        raise FileNotFoundError(
            f"{folder}: holds a comparison. Give one of its runs, such as {some}."
        )
    settings = read_settings(folder / "config.yaml", "method")
    if not settings or not path.is_file():
        raise FileNotFoundError(
            f"{folder}: holds no run. Give the folder of one, such as runs/digits/runs/joint-0."
        )
    try:
        best = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}). Train again.") from error
    try:
        return _loaded(folder, settings, best)
    except (KeyError, TypeError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{folder}: its config.yaml and best.ckpt are not of one run ({said[:200]}). Train "
            "again."
        ) from error


def _loaded(folder: Path, settings: Mapping[str, Any], best: Mapping[str, Any]) -> Trained:
    modalities = {
        name: Modality(name, kind, tuple(shape), torch.zeros(width), torch.ones(width))
        for name, (kind, shape, width, _) in best["modalities"].items()
    }
    dtypes = {name: getattr(torch, dtype) for name, (*_, dtype) in best["modalities"].items()}
    names = Training.__dataclass_fields__
    training = Training(**{name: settings[name] for name in names if name in settings})
    training = replace(training, encoders=_at_hand(training.encoders, best["configurations"]))
    cell = Cell(training, settings["method"], settings["seed"])
    model = fused(made_encoders(modalities, cell), len(best["class_names"]), cell)
    model.load_state_dict(best["state_dict"])
    return Trained(folder, model.eval(), modalities, dtypes, best["class_names"], best["read"])


def _at_hand(encoders: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """The encoders without the folders and names that their first weights came from."""
    found = dict(encoders)
    for name, configuration in known.items():
        spec = parse(encoders[name])
        found[name] = Spec(spec.name, {**spec.settings, "pretrained": configuration}).text
    return found


def about(data: Data, model: LateFusion) -> dict[str, Any]:
    """What `load_run` must know beside the weights, for a checkpoint."""
    first = data.noisy({}).split("train").__getitems__([0])["inputs"]  # as they are stored
    return {
        "modalities": {
            name: (modality.kind, list(modality.shape), len(modality.mean), _dtype(first[name]))
            for name, modality in data.modalities.items()
        },
        "configurations": configurations(model.encoders),
        "class_names": data.class_names,
        "read": dict(data.read),
    }


def _dtype(x: Tensor | Padded) -> str:
    values = x.values if isinstance(x, Padded) else x
    return str(values.dtype).removeprefix("torch.")
