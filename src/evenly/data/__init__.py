"""Data sets: built in, generated, or read from an `.npz` file."""

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
    "load",
    "load_npz",
    "save_npz",
    "stratified",
]
