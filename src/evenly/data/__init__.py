"""Data sets: built in, generated, read from an `.npz` file, or prepared from raw files.

`evenly.data.raw` prepares them.
"""

from evenly.data.arrays import load_npz, save_npz
from evenly.data.catalogue import DATASETS, DatasetInfo, data_file, load
from evenly.data.dataset import (
    Batch,
    Data,
    Kind,
    Modality,
    Padded,
    Ragged,
    Split,
    SplitName,
    collate,
    stratified,
)
from evenly.data.datasets import from_datasets
from evenly.data.store import open_store

__all__ = [
    "DATASETS",
    "Batch",
    "Data",
    "DatasetInfo",
    "Kind",
    "Modality",
    "Padded",
    "Ragged",
    "Split",
    "SplitName",
    "collate",
    "data_file",
    "from_datasets",
    "load",
    "load_npz",
    "open_store",
    "save_npz",
    "stratified",
]
