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
    """Prepares a store of a data set that is at hand in Python, or goes on with it, and opens it.

    Pictures, sound and video are decoded once, from their files as they are stored in the data set,
    whatever its format or transform. `--data` takes the store, too.

    Args:
        dataset: A `datasets.Dataset`, or a `datasets.DatasetDict` by split.
        out: The store's folder.
        modalities: The columns that are modalities; by default all but the label and other classes.
        readers: By modality, how it is read, such as 'image(size=[64,64])'; the others by their
            features, or as found out.
        label: The column of the labels; by default `label`, or the only one of class numbers.
        splits: By `train`, `val` and `test`, the data set's own name of a split, or several joined
            by +; by default those that are called so.
        task: What the labels are; by default it is found out.
        workers: Processes that decode; by default one for each core.
        skip_broken: Leave out samples whose files are missing or broken, and say so in the notes.

    Raises:
        ValueError: If it is no such data set, or cannot be prepared, with the reason.
    """
    from evenly.child import cores
    from evenly.data.raw import prepare

    source = source_of(
        dataset, modalities=modalities, readers=readers, label=label, splits=splits, task=task
    )
    prepare(source, Path(out), workers=workers or cores(), skip_broken=skip_broken)
    return open_store(Path(out))


def source_of(dataset: Any, **options: Any) -> "Source":
    """What a data set holds, before it is prepared.

    Args:
        dataset: As above.
        options: As `table` has them.
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
