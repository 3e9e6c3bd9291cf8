"""Data sets of the Hugging Face library `datasets`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenly.data.dataset import Data
from evenly.data.store import open_store
from evenly.data.tasks import Asked
from evenly.errors import UserError

if TYPE_CHECKING:
    from evenly.data.raw import Source


def from_datasets(
    dataset: Any,
    out: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    readers: Mapping[str, str] | None = None,
    label: str | None = None,
    splits: Mapping[str, str] | None = None,
    task: Asked = "auto",
    workers: int | None = None,
    skip_broken: bool = False,
) -> Data:
    """Prepares a store from a data set in Python, or continues one, and opens it.

    Pictures, sound and video are decoded once, from the files stored in the data set, whatever its
    format or transform. `--data` takes the store, too.

    Args:
        dataset: A `datasets.Dataset`, or a `datasets.DatasetDict` by split.
        out: The store's folder.
        modalities: The columns that are modalities; by default all but the label and other classes.
        readers: By modality, how to read it, such as 'image(size=[64,64])'; the others are read
            according to their features or content.
        label: The column of the labels; by default `label`, or the only column of class numbers.
        splits: For `train`, `val` and `test`, the data set's own name of the split, or several
            joined by +; by default the splits with these names.
        task: What the labels are; by default, this is detected.
        workers: Processes that decode; by default one per core.
        skip_broken: Leave out samples whose files are missing or broken, and say so in the notes.

    Raises:
        ValueError: If it is not such a data set, or cannot be prepared, with the reason.
    """
    from evenly.child import cores
    from evenly.data.raw import prepare

    source = source_of(
        dataset, modalities=modalities, readers=readers, label=label, splits=splits, task=task
    )
    prepare(source, Path(out), workers=workers or cores(), skip_broken=skip_broken)
    return open_store(Path(out))


def source_of(dataset: Any, **options: Any) -> "Source":
    """A data set's source, before it is prepared.

    Args:
        dataset: As above.
        options: See `table`.
    """
    from evenly.data.raw import table
    from evenly.data.raw.arrow import rows_columns
    from evenly.data.raw.rows import DatasetRows

    parts = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    for part in parts.values():
        if not (hasattr(part, "select_columns") and hasattr(part, "__len__")):
            raise UserError(
                "from_datasets takes a datasets.Dataset or DatasetDict; found "
                f"{type(part).__name__}. Load a data set without streaming, or make one by "
                "Dataset.from_dict."
            )
    if not parts:
        raise UserError("from_datasets: the DatasetDict has no splits. Add at least one.")
    shards = [DatasetRows.of(part) for part in parts.values()]
    first = next(iter(parts.values()))
    path = Path(getattr(first.info, "dataset_name", None) or "dataset")
    splits = [*parts] if len(parts) > 1 else None
    columns = rows_columns(path, shards, splits, root=Path(), opened=())
    return table(path, columns=columns, **options)
