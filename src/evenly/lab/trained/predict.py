"""Predictions of a trained run on new data."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from evenly import child
from evenly.data import Data, Padded, SplitName, data_file, load, load_npz
from evenly.data.catalogue import is_raw
from evenly.data.dataset import bare
from evenly.data.tabular import columns_of, layout_of
from evenly.data.tasks import Task
from evenly.errors import UserError
from evenly.lab.run.stored import Stored
from evenly.lab.trained.intake import Intake, odd_columns
from evenly.nn import LateFusion
from evenly.spec import parse

if TYPE_CHECKING:
    from evenly.data.raw import Reader
    from evenly.data.raw.columns import Columns

BATCH = 64


@dataclass(frozen=True)
class Trained:
    """The model of a run, with the weights that validation selected, in 32 bits.

    Attributes:
        folder: Folder of the run.
        model: The model in evaluation mode, on the CPU.
        modalities: How the run's data stored its modalities, by name.
        task: What it predicts.
        read: By modality, how its files were read, if the data came from files.
        label_columns: The columns that held the labels, if the data came from a table.
        noise: Noise added to the run's data by modality, in standard deviations.
        missing: By modality, the share of the run's test samples that it was taken from.
        notes: What a user of its weights should know: that the run has not finished.
    """

    folder: Path
    model: LateFusion
    modalities: Mapping[str, Stored]
    task: Task
    read: Mapping[str, str]
    label_columns: Sequence[str]
    noise: Mapping[str, float]
    missing: Mapping[str, float]
    notes: Sequence[str]

    def answers(
        self,
        inputs: Mapping[str, Tensor | Padded],
        present: Mapping[str, Tensor] | None = None,
        alike: Collection[str] = (),
    ) -> Float[Tensor, "n c"]:
        """The probability of each class or label, or the numbers in the data's units.

        Args:
            inputs: Inputs by modality, as stored; those left out are missing in all samples.
            present: By modality, which samples have it; the others' inputs are ignored.
            alike: Modalities read from files like the run's.

        Raises:
            ValueError: If an input is unlike those that the run was trained on, or a sample has
                none of the run's modalities.
        """
        names = [name for name in inputs if name in self.modalities]
        lost = bare(names, present or {})
        if lost is not None and lost.any():
            raise UserError(f"{_lacking(int(lost.nonzero()[0]), names)}. Leave such samples out.")
        intakes = self._intakes(alike)
        found = self._answers(inputs, present or {}, intakes)
        _doubts(intakes)
        return found

    @torch.no_grad()
    def _answers(
        self,
        inputs: Mapping[str, Tensor | Padded],
        present: Mapping[str, Tensor],
        intakes: Mapping[str, Intake],
    ) -> Float[Tensor, "n c"]:
        names = [name for name in inputs if name in self.modalities]
        if not names:
            raise UserError(
                f"{self.folder} was trained on {', '.join(self.modalities)}; the data has "
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
                f"{self.folder}: its model, with your own encoders {', '.join(sorted(own))}, "
                f"cannot take this data ({type(error).__name__}: {error}). Give data of the form "
                "that the run was trained on."
            ) from error
        return self.task.answers(logits)

    def _intakes(self, alike: Collection[str]) -> dict[str, Intake]:
        """The intakes of new data by modality; `alike` are read from files like the run's."""
        return {
            name: Intake(self.folder, name, known, self.longest(name), name in alike)
            for name, known in self.modalities.items()
        }

    def predict(
        self, data: Data, split: SplitName, without: Collection[str] = ()
    ) -> Float[Tensor, "n c"]:
        """The result of `answers` for every sample of a split, in order.

        Args:
            data: Data with some of the run's modalities.
            split: Which split of them.
            without: Modalities to leave out.

        Raises:
            ValueError: As `answers` does.
        """
        if lost := self._bare(data, split, without):
            raise UserError(f"{data.name}: {next(iter(lost.values()))}. Leave such samples out.")
        intakes = self._intakes(self._fit(data, without))
        found = [self._answers(*batch, intakes) for batch in _batches(data, split, without)]
        _doubts(intakes)
        return torch.cat(found)

    def _bare(self, data: Data, split: SplitName, without: Collection[str]) -> dict[int, str]:
        """The samples of a split that have none of the used modalities, each in words."""
        names = [name for name in data.modalities if name in self.modalities.keys() - set(without)]
        called = _called(data, split)
        return {place: _lacking(called[place], names) for place in data.bare(split, names).tolist()}

    def _fit(self, data: Data, without: Collection[str]) -> list[str]:
        """The modalities of data that are read like the run's.

        Raises:
            ValueError: If one was read differently, or has another kind.
        """
        alike = []
        for name in self.modalities.keys() & data.modalities.keys() - set(without):
            theirs, ours = data.read.get(name), self.read.get(name)
            kind, known = data.modalities[name].kind, self.modalities[name].kind
            if theirs and ours and theirs != ours:
                raise UserError(
                    f"{data.name}: '{name}' was read as {theirs[:90]}, but {self.folder} was "
                    f"trained on {ours[:90]}. Give the table of the original files, so that "
                    "they are read the same way."
                )
            if kind != known:
                raise UserError(
                    f"{data.name}: '{name}' has the kind {kind}, but {self.folder} was trained "
                    f"on the kind {known}. Use that kind."
                )
            if ours and kind == "text" and not theirs and not parse(ours).settings["tokenizer"]:
                raise UserError(
                    f"{data.name}: '{name}' holds token numbers, but {self.folder} was trained "
                    "on texts and numbers words itself. Give a table of the texts."
                )
            if ours and not theirs and layout_of(ours):
                raise UserError(
                    f"{data.name}: '{name}' is an array, but {self.folder} was trained on "
                    "columns of a table and standardises them itself. Give a table of them."
                )
            if theirs and ours and parse(ours).name != "array":
                alike.append(name)
        return alike

    def longest(self, name: str) -> int | None:
        """Maximum steps of a sequence or text that an encoder takes; None for any."""
        found: int | None = getattr(self.model.encoders[name], "longest", None)
        return found


def _called(data: Data, split: SplitName) -> list[str]:
    """The samples of a split by their names, or else by their rows in the data, from 0."""
    rows = data.split(split).rows.tolist()
    return [data.names[row] for row in rows] if data.names else [str(row) for row in rows]


def _lacking(sample: object, names: Iterable[str]) -> str:
    return f"sample {sample} has none of the modalities {', '.join(names)}"


def _batches(
    data: Data, split: SplitName, without: Collection[str]
) -> Iterator[tuple[dict[str, Tensor | Padded], dict[str, Tensor]]]:
    """Inputs by modality, and which samples have them, for a split in order."""
    part = data.split(split)
    for start in range(0, len(part), BATCH):
        batch = part.__getitems__(range(start, min(start + BATCH, len(part))))
        inputs = {name: x for name, x in batch["inputs"].items() if name not in without}
        yield inputs, batch["present"]


@dataclass(frozen=True)
class Prediction:
    """A run's prediction for one sample.

    Attributes:
        sample: Its name, or else its row in the data: "row 1" is the first of a table, "0" the
            first of anything else.
        label: Its class, if known; its labels or numbers separated by semicolons.
        answers: The probability of each class or label, or the numbers.
    """

    sample: str
    label: str
    answers: list[float]


def predictions(
    run: Trained,
    data: str,
    split: SplitName | None = None,
    without: Collection[str] = (),
    *,
    skip_broken: bool = False,
) -> Iterator[Prediction]:
    """A run's predictions for any data that `--data` takes, also without labels.

    Args:
        run: A run from `load_run`.
        data: A name, a store, an `.npz` file or a table. All rows of a table are predicted, with
            files read like the run's; likewise all rows of an `.npz` file without `split`.
        split: Which split, `test` by default; not for a table.
        without: Modalities to leave out.
        skip_broken: Leave out samples without any of the run's modalities, and rows of a table
            whose files are missing or broken, with a note.

    Raises:
        ValueError: If the data do not fit the run, a sample has none of its modalities, or files of
            a table are broken, with a list and reasons. A wrong scale of values shows only after
            the last sample.
    """
    from evenly.lab.run.prepare import say  # it loads the training engine

    if is_raw(data):
        if split is not None:
            raise UserError(
                f"{data} is a table, and all rows of a table are predicted, so there is no split "
                "to choose. Leave --split out, or give a table of the rows that you want."
            )
        found = _of_table(run, Path(data), without, skip_broken)
    else:
        found = _of_data(run, data, split or "test", without, skip_broken)
    say(run.notes)
    say(_unlike_its_test(run, without))
    known = {"", *run.task.names}
    said = run.task.name != "classes"
    for prediction in found:
        if prediction.label not in known and not said:
            say([_strange(run, prediction.label)])
            said = True
        yield prediction


def _unlike_its_test(run: Trained, without: Collection[str]) -> Iterator[str]:
    """Notes on what the run did to its own data, which new data are spared."""
    for name in (name for name in run.modalities if name not in without):
        if level := run.noise.get(name):
            yield (
                f"'{name}' of {run.folder} was trained with noise of {level:g} standard "
                "deviations (--noise); this data gets none."
            )
        if share := run.missing.get(name):
            yield (
                f"'{name}' was taken from {100 * share:g} % of the test samples of {run.folder} "
                "(--missing or --missing-test); none is taken from this data."
            )


def _strange(run: Trained, label: str) -> str:
    """A note on a label that the run has never seen."""
    names = run.task.names
    known = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
    return (
        f"some labels, such as '{label}', are not among the classes that {run.folder} was "
        f"trained on, {known}. They are written unchanged."
    )


def _of_data(
    run: Trained, data: str, split: SplitName, without: Collection[str], skip_broken: bool
) -> Iterator[Prediction]:
    """Predictions for arrays, a store or a built-in data set."""
    from evenly.lab.run.prepare import say  # it loads the training engine

    path = data_file(data)
    if path is not None and path.suffix.lower() == ".npz":
        # Anything with more axes is not a vector, even if it could be flattened.
        kinds = {name: each.kind for name, each in run.modalities.items()}
        known = {name: None if kind == "vector" else kind for name, kind in kinds.items()}
        found = load_npz(path, labelled=False, kinds=known, task=run.task.name)
        say(found.notes if split != "test" else ())  # they are about the others
    else:
        found = load(data)
    say(_differing(run, data, found.modalities, without))
    intakes = run._intakes(run._fit(found, without))
    part = found.split(split)
    if not len(part):
        raise UserError(f"{data}: its {split} split is empty. Choose another with --split.")
    lost = run._bare(found, split, without)
    if lost:
        some = f"{data}: {next(iter(lost.values()))}"
        others = f", as {len(lost)} samples in all" if len(lost) > 1 else ""
        if not skip_broken:
            raise UserError(f"{some}{others}. Leave out such samples with --skip-broken.")
        say([f"{some}{others}: left out."])
    samples = enumerate(zip(_called(found, split), part.target, strict=True))
    for inputs, present in _batches(found, split, without):
        of_each = run._answers(inputs, present, intakes).tolist()
        for answers, (place, (name, target)) in zip(of_each, samples, strict=False):
            if place not in lost:
                yield Prediction(name, found.task.called(target), answers)
    say(_doubts(intakes))


def _doubts(intakes: Mapping[str, Intake]) -> list[str]:
    """Notes on all intakes; raises if data cannot be right."""
    return [said for intake in intakes.values() if (said := intake.doubt())]


def _differing(
    run: Trained, data: str, given: Iterable[str], without: Collection[str]
) -> list[str]:
    """What new data have that the run does not know, and what they lack, as notes."""
    lacking = [name for name in run.modalities if name not in {*given, *without}]
    unknown = [name for name in given if name not in run.modalities]
    notes = []
    if lacking:
        notes.append(
            f"{data} lacks {', '.join(lacking)}, which counts as missing from every sample."
        )
    if unknown:
        notes.append(f"{data}: the run does not use {', '.join(unknown)}: ignored.")
    return notes


def _of_table(
    run: Trained, path: Path, without: Collection[str], skip_broken: bool
) -> Iterator[Prediction]:
    """Predictions for a table."""
    from evenly.data.raw import READERS, batches, listed, table
    from evenly.data.raw.columns import RESERVED
    from evenly.data.raw.forms import read_columns
    from evenly.data.raw.readers import Array, Tabular
    from evenly.data.raw.source import target_of
    from evenly.lab.run.prepare import say  # it loads the training engine

    columns = read_columns(path)
    made_of = {name: columns_of(name, run.read.get(name, "")) for name in run.modalities}
    there = {name for name, parts in made_of.items() if not columns.cells.keys().isdisjoint(parts)}
    names = [name for name in run.modalities if name in there and name not in without]
    if not names:
        wanted = ", ".join(column for parts in made_of.values() for column in parts)
        raise UserError(
            f"{path}: has none of the columns {wanted} that {run.folder} was trained on. Rename "
            "the columns, or add one of these."
        )
    readers = {name: run.read[name] for name in names if name in run.read}
    for name, reader in readers.items():
        if parse(reader).name not in READERS:
            raise UserError(
                f"{path}: '{name}' of {run.folder} was read as {reader[:90]}, from files of its "
                "data set, which a table cannot name. Prepare a store of such files with "
                "'evenly prepare', and give it as --data."
            )
    columns, label, remarks = _with_labels_of(run, path, columns, made_of)
    aside = (*RESERVED, *columns.aside, *columns.named_labels, *run.label_columns)
    parts = {column: name for name in there for column in made_of[name]}
    others = dict.fromkeys(
        parts.get(name, name) for name in columns.cells if name in parts or name not in aside
    )
    say(_differing(run, str(path), others, without))
    source = table(
        path,
        names,
        readers,
        label=label,
        labelled=False,
        task=run.task.name,
        columns=columns,
    )
    say([*remarks, *source.notes])
    if "split" in columns.cells:
        say([f"{path}: all rows are predicted, whatever their split."])
    for name, found in source.readers.items():
        _check_numbers(run, path, name, found)
        if isinstance(found, Tabular):
            cells = (sample.cells[name] for sample in source.samples)
            say(odd_columns(run.folder, name, run.modalities[name], found, cells))
    intakes = run._intakes(
        [name for name, found in source.readers.items() if not isinstance(found, Array)]
    )
    broken: list[tuple[str, str]] = []
    task = source.task
    shapes = {name: run.modalities[name].shape for name in names}
    for samples, inputs, present in batches(source, BATCH, child.cores(), broken, shapes):
        if broken and not skip_broken:
            continue  # continues only to find what else is broken
        of_each = run._answers(inputs, present, intakes).tolist()
        for sample, answers in zip(samples, of_each, strict=True):
            yield Prediction(sample.name, task.called(target_of([sample])[0]), answers)
    if broken and not skip_broken:
        raise UserError(
            f"{path}: {len(broken)} of {len(source.samples)} rows cannot be "
            f"predicted:\n{listed(broken)}\nRepair these files, or leave the rows out with "
            "--skip-broken."
        )
    if broken:
        say([f"{len(broken)} broken rows were left out:\n{listed(broken)}"])
    say(_doubts(intakes))


def _with_labels_of(
    run: Trained, path: Path, columns: "Columns", made_of: Mapping[str, Collection[str]]
) -> "tuple[Columns, str | None, list[str]]":
    """The columns of a table without others that could pass for the labels of a run.

    Args:
        run: The run, which knows the columns of its own labels if it was trained on a table.
        path: Path of the table.
        columns: Columns of the table.
        made_of: By modality of the run, its columns.

    Returns:
        The columns; which of them holds the labels, if the run's were in one that the table has;
        and notes.
    """
    from evenly.data.raw.columns import PLAIN

    wanted = run.label_columns
    if not wanted:
        return columns, None, []
    alike = PLAIN if wanted[0] in PLAIN else ()
    there = [name for name in dict.fromkeys((*wanted, *alike)) if name in columns.cells]
    if len(wanted) == 1 and there:
        return columns, there[0], []
    kept = {*wanted, *(column for parts in made_of.values() for column in parts)}
    candidates = dict.fromkeys((*PLAIN, *columns.labels, *columns.named_labels))
    others = [name for name in candidates if name in columns.cells and name not in kept]
    cells = {name: x for name, x in columns.cells.items() if name not in others}
    if len(wanted) == 1:
        cells["label"] = [None] * columns.rows
    columns = replace(columns, cells=cells, labels=("label",))
    if there or not others:
        return columns, None, []
    note = (
        f"{path.name}: has no column '{wanted[0]}', which held the labels of {run.folder}, so the "
        f"labels stay empty. If '{others[0]}' holds the same, rename it."
    )
    return columns, None, [note]


def _check_numbers(run: Trained, path: Path, name: str, reader: "Reader") -> None:
    """Raises if a column does not hold numbers of the run's kind, and the run has no reader for it.

    A run trained on arrays does not know what files they came from.
    """
    from evenly.data.raw.readers import Array, spelled

    known = run.modalities[name]
    if name in run.read or (isinstance(reader, Array) and reader.kind == known.kind):
        return
    found = reader.kind if isinstance(reader, Array) else spelled(reader).partition("(")[0]
    raise UserError(
        f"{path}: '{name}' is read as {found}, but {run.folder} was trained on arrays of kind "
        f"{known.kind} and shape {tuple(known.shape)}. Give such arrays in an .npz file."
    )
