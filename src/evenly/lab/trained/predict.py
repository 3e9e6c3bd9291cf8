"""A trained run, loaded anywhere: its predictions on new data, and its export."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import child
from evenly.data import Data, Padded, SplitName, data_file, load, load_npz
from evenly.data.catalogue import TABLES
from evenly.errors import UserError, UserFileNotFoundError, UserRuntimeError
from evenly.files import replacing
from evenly.lab.run.build import check_names, fused, made_encoders
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, Training, check_trusted, read_settings
from evenly.lab.run.stored import Stored
from evenly.lab.trained.intake import Intake
from evenly.nn import ENCODERS, LateFusion
from evenly.spec import Spec, converted, parse

if TYPE_CHECKING:
    from evenly.data.raw import Reader

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
        modalities: That it takes, by name: how the run's data held them.
        class_names: By class number.
        read: By modality, how its files were read, where the data came from files.
        noise: By modality, the noise that the run's data were given, in standard deviations.
    """

    folder: Path
    model: LateFusion
    modalities: Mapping[str, Stored]
    class_names: Sequence[str]
    read: Mapping[str, str]
    noise: Mapping[str, float]

    def probabilities(
        self,
        inputs: Mapping[str, Tensor | Padded],
        present: Mapping[str, Tensor] | None = None,
        alike: Collection[str] = (),
    ) -> Float[Tensor, "n c"]:
        """The probability of each class.

        Args:
            inputs: By modality, as stored; those that are left out are missing in all samples.
            present: By modality, which samples have it; the others' inputs count for nothing.
            alike: Modalities that were read from files as the run's were.

        Raises:
            ValueError: If an input is not like those that the run was trained on, or none of the
                run's modalities is there.
        """
        intakes = self._intakes(alike)
        found = self._probabilities(inputs, present or {}, intakes)
        _doubts(intakes)
        return found

    @torch.no_grad()
    def _probabilities(
        self,
        inputs: Mapping[str, Tensor | Padded],
        present: Mapping[str, Tensor],
        intakes: Mapping[str, Intake],
    ) -> Float[Tensor, "n c"]:
        names = [name for name in inputs if name in self.modalities]
        if not names:
            raise UserError(
                f"{self.folder} was trained on {', '.join(self.modalities)}; the data have "
                f"{', '.join(inputs) or 'none'}. Give at least one of its modalities."
            )
        here = {name: mask for name, mask in present.items() if name in names}
        used = {name: intakes[name](inputs[name], here.get(name)) for name in names}
        try:
            logits: Tensor = self.model(used, here).logits
        except Exception as error:
            kinds = {type(encoder) for encoder in self.model.encoders.values()}
            own = [kind.__name__ for kind in kinds if not kind.__module__.startswith("evenly.")]
            if not own:
                raise
            raise UserError(
                f"{self.folder}: its model, with the encoders {', '.join(sorted(own))} of your "
                f"own, cannot take these data ({type(error).__name__}: {error})."
            ) from error
        return logits.softmax(1)

    def _intakes(self, alike: Collection[str]) -> dict[str, Intake]:
        """By modality, what takes new data in; `alike` are read from files as the run's were."""
        return {
            name: Intake(self.folder, name, known, self._longest(name), name in alike)
            for name, known in self.modalities.items()
        }

    def predict(
        self, data: Data, split: SplitName, without: Collection[str] = ()
    ) -> Float[Tensor, "n c"]:
        """The probabilities of every sample of a split, in its order.

        Args:
            data: With some of the run's modalities.
            split: Which part of them.
            without: Modalities that are left out.
        """
        intakes = self._intakes(self._fit(data, without))
        found = [self._probabilities(*batch, intakes) for batch in _batches(data, split, without)]
        _doubts(intakes)
        return torch.cat(found)

    def _fit(self, data: Data, without: Collection[str]) -> list[str]:
        """The modalities of data that are read as the run's were.

        Raises:
            ValueError: If one was read otherwise, or is of another kind.
        """
        alike = []
        for name in self.modalities.keys() & data.modalities.keys() - set(without):
            theirs, ours = data.read.get(name), self.read.get(name)
            kind, known = data.modalities[name].kind, self.modalities[name].kind
            if theirs and ours and theirs != ours:
                raise UserError(
                    f"{data.name}: '{name}' was read as {theirs[:90]}, but {self.folder} was "
                    f"trained on {ours[:90]}. Give the table of the files itself, which is read as "
                    "the run's were."
                )
            if kind != known:
                raise UserError(
                    f"{data.name}: '{name}' is of the kind {kind}, but {self.folder} was trained "
                    f"on the kind {known}. Give it as that."
                )
            if ours and kind == "text" and not theirs and not parse(ours).settings["tokenizer"]:
                raise UserError(
                    f"{data.name}: '{name}' holds numbers of tokens, but {self.folder} was trained "
                    "on texts, whose words it numbers itself. Give a table of the texts."
                )
            if theirs and ours and parse(ours).name != "array":
                alike.append(name)
        return alike

    def export(self, path: Path) -> None:
        """Writes the model as a `torch.export` program, which needs this package no more.

        It takes a mapping of inputs by modality, all of them, in the form and type in which the
        run's data held them (`modalities`), and returns logits. The number of samples is free.
        What is of unequal lengths is padded, and comes with its lengths: `(values, length)`; of
        it, and of other sequences where their encoder allows, the number of steps is free, too, up
        to as many as the encoder takes.

        Raises:
            ValueError: If there can be no such file.
            RuntimeError: If an encoder of the user's own decides by values, which no program can.
        """
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{path}: no file can be written there. Give the name of a new one.")
        example = {name: _example(known) for name, known in self.modalities.items()}
        n = torch.export.Dim("n")
        shapes: dict[str, Any] = {name: {0: n} for name in example}
        for number, (name, known) in enumerate(self.modalities.items()):
            if known.ragged:
                steps = torch.export.Dim(f"steps_{number}", max=self._longest(name))
                shapes[name] = ({0: n, 1: steps}, {0: n})
            elif known.kind == "sequence":
                shapes[name] = {0: n, 1: torch.export.Dim.AUTO}
        try:
            with warnings.catch_warnings():
                # Recurrent layers and MMTM note tensors that the program has no need of.
                warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during exp")
                program = torch.export.export(
                    _Logits(self.model), (example,), dynamic_shapes=(shapes,), **_DEFERRED
                )
        except Exception as error:
            kinds = ", ".join(type(encoder).__name__ for encoder in self.model.encoders.values())
            said = str(error).strip().partition("\n")[0]
            raise UserRuntimeError(
                f"{self.folder}: torch.export cannot trace its model, of the encoders {kinds} "
                f"({type(error).__name__}: {said[:200]}). 'evenly predict' needs no export."
            ) from error
        _drop_guesses(program.graph_module)
        with replacing(path) as new:
            torch.export.save(program, new)

    def _longest(self, name: str) -> int | None:
        """Steps of a sequence or text that an encoder takes at most; None for any."""
        found: int | None = getattr(self.model.encoders[name], "longest", None)
        return found


def _drop_guesses(program: torch.fx.GraphModule) -> None:
    """Removes what torch asserts of layouts of memory, which hold for two samples or more.

    It compares products of sizes while it traces, and writes down that they differed; nothing that
    is computed rests on that.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and (
            "expression Ne(" in str(node.args[1])
        ):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


def _batches(
    data: Data, split: SplitName, without: Collection[str]
) -> Iterator[tuple[dict[str, Tensor | Padded], dict[str, Tensor]]]:
    """Inputs by modality, and which samples have them, of a split in its order."""
    part = data.split(split)
    for start in range(0, len(part), BATCH):
        batch = part.__getitems__(range(start, min(start + BATCH, len(part))))
        inputs = {name: x for name, x in batch["inputs"].items() if name not in without}
        yield inputs, batch["present"]


class _Logits(nn.Module):
    """Only the logits, which is what an exported program can return."""

    def __init__(self, model: LateFusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Any]) -> Float[Tensor, "n c"]:
        whole = {name: Padded(*x) if isinstance(x, tuple) else x for name, x in inputs.items()}
        logits: Tensor = self.model(whole).logits
        return logits


def _example(known: Stored) -> Tensor | tuple[Tensor, Tensor]:
    shape = known.shape[:1] if known.kind == "text" else known.shape
    values = torch.zeros(2, *shape, dtype=known.type)
    return (values, torch.full((2,), shape[0])) if known.ragged else values


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
            them and their reasons. That values are of another scale shows after the last sample.
    """
    from evenly.lab.run.prepare import say  # which needs run.py, which needs this

    if data.lower().endswith(TABLES):
        found = _of_table(run, Path(data), without, skip_broken)
    else:
        found = _of_data(run, data, split, without)
    noisy = [name for name in run.noise if name in run.modalities and name not in without]
    say(
        f"'{name}' of {run.folder} was trained with noise of {run.noise[name]:g} standard "
        "deviations (--noise), of which these data get none."
        for name in noisy
    )
    known = {"", *run.class_names}
    said = False
    for prediction in found:
        if prediction.label not in known and not said:
            say([_strange(run, prediction.label)])
            said = True
        yield prediction


def _strange(run: Trained, label: str) -> str:
    """What a user should hear of a label that the run has never seen."""
    known = ", ".join(run.class_names[:8]) + (" ..." if len(run.class_names) > 8 else "")
    return (
        f"some labels, such as '{label}', are none of the classes that {run.folder} was trained "
        f"on, {known}. They are written down as they are."
    )


def _of_data(
    run: Trained, data: str, split: SplitName, without: Collection[str]
) -> Iterator[Prediction]:
    """Of arrays, a store or a built-in data set."""
    from evenly.lab.run.prepare import say  # which needs run.py, which needs this

    path = data_file(data)
    if path is not None and path.suffix.lower() == ".npz":
        # What has more axes than a vector is none, though it could be flattened.
        known = {name: each.kind for name, each in run.modalities.items() if each.kind != "vector"}
        found = load_npz(path, labelled=False, kinds=known)
    else:
        found = load(data)
    say(_differing(run, data, found.modalities, without))
    intakes = run._intakes(run._fit(found, without))
    part = found.split(split)
    if not len(part):
        raise UserError(f"{data}: its {split} split holds no sample. Choose another with --split.")
    names = [found.names[row] for row in part.rows.tolist()] if found.names else range(len(part))
    samples = zip(names, part.target.tolist(), strict=True)
    for inputs, present in _batches(found, split, without):
        of_each = run._probabilities(inputs, present, intakes).tolist()
        for probabilities, (name, number) in zip(of_each, samples, strict=False):
            label = found.class_names[number] if number >= 0 else ""
            yield Prediction(str(name), label, probabilities)
    say(_doubts(intakes))


def _doubts(intakes: Mapping[str, Intake]) -> list[str]:
    """What a user should hear of all that was taken in; raises where it cannot be right."""
    return [said for intake in intakes.values() if (said := intake.doubt())]


def _differing(
    run: Trained, data: str, given: Iterable[str], without: Collection[str]
) -> list[str]:
    """What new data have that the run does not know, and what they lack."""
    lacking = [name for name in run.modalities if name not in {*given, *without}]
    unknown = [name for name in given if name not in run.modalities]
    notes = []
    if lacking:
        notes.append(f"{data} holds no {', '.join(lacking)}: taken as missing from all samples.")
    if unknown:
        notes.append(f"{data}: the run knows nothing of {', '.join(unknown)}: not read.")
    return notes


def _of_table(
    run: Trained, path: Path, without: Collection[str], skip_broken: bool
) -> Iterator[Prediction]:
    """Of a table."""
    from evenly.data.raw import READERS, batches, listed, table
    from evenly.data.raw.columns import RESERVED, read_columns
    from evenly.data.raw.readers import Array
    from evenly.lab.run.prepare import say

    columns = read_columns(path)
    names = [name for name in run.modalities if name in columns.cells and name not in without]
    if not names:
        raise UserError(
            f"{path}: has none of the columns {', '.join(run.modalities)}, which {run.folder} was "
            "trained on."
        )
    readers = {name: run.read[name] for name in names if name in run.read}
    for name, reader in readers.items():
        if parse(reader).name not in READERS:
            raise UserError(
                f"{path}: '{name}' of {run.folder} was read as {reader[:90]}, from files of its "
                "data set that no table can name. Prepare a store of such files with 'evenly "
                "prepare', and give it as --data."
            )
    others = [name for name in columns.cells if name not in (*RESERVED, *columns.indices)]
    say(_differing(run, str(path), others, without))
    source = table(path, names, readers, labelled=False, columns=columns)
    say(source.notes)
    for name, found in source.readers.items():
        _check_numbers(run, path, name, found)
    intakes = run._intakes(
        [name for name, found in source.readers.items() if not isinstance(found, Array)]
    )
    broken: list[tuple[str, str]] = []
    shapes = {name: run.modalities[name].shape for name in names}
    for samples, inputs, present in batches(source, BATCH, child.cores(), broken, shapes):
        if broken and not skip_broken:
            continue  # only to find what else is broken
        of_each = run._probabilities(inputs, present, intakes).tolist()
        for sample, probabilities in zip(samples, of_each, strict=True):
            label = source.classes[sample.label] if sample.label >= 0 else ""
            yield Prediction(sample.name, label, probabilities)
    if broken and not skip_broken:
        raise UserError(
            f"{path}: {len(broken)} of {len(source.samples)} rows cannot be predicted:\n"
            f"{listed(broken)}\nMend these files, or leave the rows out with --skip-broken."
        )
    if broken:
        say([f"{len(broken)} rows were left out as broken:\n{listed(broken)}"])
    say(_doubts(intakes))


def _check_numbers(run: Trained, path: Path, name: str, reader: "Reader") -> None:
    """Raises if a column is no numbers of the run's kind, and the run does not say how to read it.

    What a run has learnt from arrays came from nobody knows which files.
    """
    from evenly.data.raw.readers import Array, spelled

    known = run.modalities[name]
    if name in run.read or (isinstance(reader, Array) and reader.kind == known.kind):
        return
    found = reader.kind if isinstance(reader, Array) else spelled(reader).partition("(")[0]
    raise UserError(
        f"{path}: '{name}' is read as {found}, but {run.folder} was trained on arrays, of the kind "
        f"{known.kind} and the shape {tuple(known.shape)}. Give such arrays, in an .npz file."
    )


def load_run(folder: Path, *, trust: bool = False) -> Trained:
    """The model of a run, wherever its folder is now; its data are not needed.

    Args:
        folder: Of the run.
        trust: Whether encoders that its settings name by import path are imported, which runs their
            code. Say so only of a folder whose settings are your own, or that you have looked at.

    Raises:
        FileNotFoundError: If the folder holds no run with a best checkpoint.
        ValueError: If its files are damaged, an encoder by import path is not trusted or cannot be
            imported, or weights are not in the folder itself.
    """
    path = folder / "best.ckpt"
    if (folder / "runs").is_dir() and not path.is_file():
        some = min((folder / "runs").glob("*/"), default=folder / "runs" / "joint-0")
        raise UserFileNotFoundError(
            f"{folder}: holds a comparison. Give one of its runs, such as {some}."
        )
    try:
        settings = read_settings(folder / "config.yaml", "method")
    except ValueError as error:
        raise UserError(
            f"{folder / 'config.yaml'}: is damaged, or not of a run. Train again."
        ) from error
    if not settings or not path.is_file():
        raise UserFileNotFoundError(
            f"{folder}: holds no run. Give the folder of one, such as runs/digits/runs/joint-0."
        )
    result = Result.read(folder)
    if result is not None:
        result.check(path)
    encoders = settings.get("encoders")
    if not trust and isinstance(encoders, dict):
        check_trusted(
            {str(name): str(text) for name, text in encoders.items()},
            folder / "config.yaml",
            "add --trust (in Python: load_run(folder, trust=True))",
        )
    try:
        best = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}). Train again.") from error
    cell = _cell(folder / "config.yaml", settings)
    about = _about(path, best)
    try:
        return _loaded(folder, cell, about)
    except Exception as error:  # whatever settings and weights of different runs bring about
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{folder}: no model can be made of its config.yaml and best.ckpt ({said[:300]}). If "
            "they are not of one run, train again."
        ) from error


def _cell(path: Path, settings: Mapping[str, Any]) -> Cell:
    """What a run's settings say, each of its type."""
    hints = get_type_hints(Training) | {"method": str, "seed": int}
    try:
        if lacking := hints.keys() - settings.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}.")
        given = {name: converted(name, settings[name], hint) for name, hint in hints.items()}
        method, seed = given.pop("method"), given.pop("seed")
        parse(method)
        return Cell(Training(**given), method, seed)
    except ValueError as error:
        raise UserError(f"{path}: is not as the run wrote it: {error} Train again.") from error


@dataclass(frozen=True)
class _About:
    """What stands in a best checkpoint beside the weights, see `about`."""

    state_dict: Mapping[str, Any]
    modalities: Mapping[str, Stored]
    configurations: Mapping[str, Mapping[str, Any]]
    class_names: list[str]
    read: Mapping[str, str]


def _about(path: Path, best: Any) -> _About:
    """What a checkpoint holds, each of its type."""
    hints = get_type_hints(Stored)
    try:
        for name in ("state_dict", "modalities"):
            if not isinstance(best[name], dict):
                raise ValueError(f"{name} is of the type {type(best[name]).__name__}")
        modalities = {
            name: Stored(**{key: converted(key, known[key], hints[key]) for key in hints})
            for name, known in best["modalities"].items()
        }
        return _About(
            best["state_dict"],
            modalities,
            converted("configurations", best["configurations"], dict[str, dict[str, Any]]),
            converted("class_names", best["class_names"], list[str]),
            converted("read", best["read"], dict[str, str]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not as the run wrote it ({type(error).__name__}: {error}). Train again."
        ) from error


def _loaded(folder: Path, cell: Cell, about: _About) -> Trained:
    training = replace(
        cell.training, encoders=_at_hand(folder, cell.training.encoders, about.configurations)
    )
    cell = replace(cell, training=training)
    check_names(cell, str(folder), about.modalities)
    modalities = {name: known.modality(name) for name, known in about.modalities.items()}
    model = fused(made_encoders(modalities, cell), len(about.class_names), cell)
    model.load_state_dict(about.state_dict)
    known = {name: about.modalities[name] for name in model.encoders}
    return Trained(folder, model.eval(), known, about.class_names, about.read, training.noise)


def _at_hand(folder: Path, encoders: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """The encoders without the folders and names that their first weights came from.

    These may be anybody's, on another machine or on the hub: a run is loaded from its own folder.
    """
    found = dict(encoders)
    if foreign := sorted(known.keys() - encoders.keys()):
        raise ValueError(f"best.ckpt configures {', '.join(foreign)}, and config.yaml does not")
    for name, text in encoders.items():
        spec = parse(text)
        if name in known:
            found[name] = Spec(spec.name, {**spec.settings, "pretrained": known[name]}).text
        elif spec.name in ENCODERS and isinstance(spec.settings.get("pretrained") or {}, str):
            raise UserError(
                f"{folder / 'config.yaml'} starts the encoder of '{name}' from weights elsewhere "
                f"({text[:90]}), of which best.ckpt knows nothing. A run is loaded from its own "
                "folder alone; train again."
            )
    return found
