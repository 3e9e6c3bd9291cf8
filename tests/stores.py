"""Stores that hold the same, and archives that they are made of."""

import io
import tarfile

import numpy as np
import torch

from evenly.data.dataset import Padded


def assert_same(one, two):
    for split in ("train", "val", "test"):
        x, y = (d.split(split).__getitems__(range(len(d.split(split)))) for d in (one, two))
        assert torch.equal(x["target"], y["target"])
        for name in x["inputs"]:
            a, b = x["inputs"][name], y["inputs"][name]
            pairs = zip(a, b, strict=True) if isinstance(a, Padded) else [(a, b)]
            assert all(torch.equal(p, q) for p, q in pairs)
    for name, modality in one.modalities.items():
        other = two.modalities[name]
        assert (modality.kind, modality.shape) == (other.kind, other.shape)
        assert torch.equal(modality.mean, other.mean)
        assert torch.equal(modality.std, other.std)


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def pack(path, members):
    """An archive of members, in order, as pairs of a name and bytes or text."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path
