"""Positions of test samples in the plane, from the encoders' features.

A run keeps the features of a few samples; their positions are computed when a report is written.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from evenly import child
from evenly.errors import UserRuntimeError
from evenly.files import read_npz, reading, replacing, sha256
from evenly.lab.run.result import Result
from evenly.pool import Lost, pool
from evenly.report import Projected

COMPONENTS = 50  # of the features for t-SNE and UMAP, as their authors use
NEIGHBOURS = 15
PERPLEXITY = 30.0
STEPS = 500
"""Iterations of t-SNE, half of scikit-learn's default, since it starts at principal components."""
MANY = 2000
"""Samples over all planes from which several processes compute them."""


def project(directory: Path, kind: Projected = "tsne") -> None:
    """Computes the positions of each finished run's samples, and keeps them in projection.npz.

    Existing results are not computed again, unless the run's features have changed. On the same
    machine, the same features give the same positions.

    Args:
        directory: The folder of a comparison.
        kind: Kind of projection.

    Raises:
        ValueError: If a run's features are missing or damaged.
        RuntimeError: If UMAP is asked for and not installed.
    """
    if kind == "umap":
        _umap()
    runs = _open(directory, kind)
    if not runs:
        return
    places = _placed([x for run in runs for x in run.features], kind)
    name = {"tsne": "t-SNE", "umap": "UMAP"}[kind]
    for run in tqdm(runs, name, unit="run", disable=None, leave=False):
        run.write(kind, [next(places) for _ in run.features])


def project_meanwhile(directory: Path, enough: Connection) -> None:
    """The body of a process that does the work of `project` while the last runs are going on.

    Args:
        directory: The folder of a comparison.
        enough: Closed at the other end when the process should end; `project` does the rest, and
            reports what is wrong with a run.
    """
    child.serve()
    with suppress(Exception):
        runs = _open(directory, "tsne")
        if sum(len(x) for run in runs for x in run.features) < MANY:
            return
        for run in runs:
            if enough.poll():
                return
            run.write("tsne", [coordinates(x, "tsne") for x in run.features])


def coordinates(x: Float[np.ndarray, "n d"], kind: Projected) -> Float[np.ndarray, "n 2"]:
    """Positions of samples in the plane, by t-SNE or UMAP on their principal components.

    van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; McInnes, Healy and
    Melville, "UMAP", 2018, https://arxiv.org/abs/1802.03426. Both start at the first two principal
    components. For fewer than four samples, and for features that vary along at most one axis,
    these are the result.
    """
    if len(x) == 0:
        return np.zeros((0, 2))
    import sklearn.manifold  # noqa: F401, limits are of libraries that are loaded
    from threadpoolctl import threadpool_limits

    # Several threads would sum in a different order each time.
    with threadpool_limits(1):
        components = _principal(x.astype(np.float64))
        start = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
        if len(x) < 4 or not start[:, 1].any():
            return start
        places: np.ndarray = (_tsne if kind == "tsne" else _umapped)(components, start)
    return places.astype(np.float64)


def _placed(features: Sequence[np.ndarray], kind: Projected) -> Iterator[np.ndarray]:
    """The positions of each, by several processes if that saves more time than it costs."""
    place = partial(coordinates, kind=kind)
    if sum(map(len, features)) < MANY:
        yield from map(place, features)
        return
    with pool(place, min(child.cores(), len(features)), __name__) as submit:
        for future in [submit(x) for x in features]:
            try:
                yield future.result()
            except Lost as error:
                raise UserRuntimeError(
                    "a process that projected features was killed, perhaps out of memory. Run "
                    "the same command again to continue."
                ) from error


def _principal(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
    """The samples along their principal axes; an axis without variation is zero."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    s[s < 1e-6 * s.max(initial=0.0)] = 0.0
    found: np.ndarray = (u * s)[:, :COMPONENTS]
    return found


def _tsne(x: Float[np.ndarray, "n k"], start: Float[np.ndarray, "n 2"]) -> np.ndarray:
    from sklearn.manifold import TSNE

    found: np.ndarray = TSNE(
        perplexity=min(PERPLEXITY, (len(x) - 1) / 3),
        init=1e-4 * start / start[:, 0].std(),
        max_iter=STEPS,
        random_state=0,
    ).fit_transform(x)
    return found


def _umapped(x: Float[np.ndarray, "n k"], start: Float[np.ndarray, "n 2"]) -> np.ndarray:
    # Starting from the graph's spectrum, its default, it cannot place disconnected samples.
    found: np.ndarray = _umap()(
        n_neighbors=min(NEIGHBOURS, len(x) - 1), init="pca", random_state=0, n_jobs=1
    ).fit_transform(x)
    return found


def _umap() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # about a part that needs TensorFlow
            from umap import UMAP
    except ModuleNotFoundError as error:
        raise UserRuntimeError(
            "UMAP needs the package umap-learn. Install it with pip install '.[umap]' in evenly's "
            "clone, or use t-SNE, the default."
        ) from error
    return UMAP


def _open(directory: Path, kind: Projected) -> list["_Planes"]:
    """The finished runs with features but without this projection."""
    finished = [result.parent for result in sorted((directory / "runs").glob("*/result.json"))]
    for folder in finished:
        if (result := Result.read(folder)) is not None:
            result.check(folder / "features.npz")
    having = [folder for folder in finished if (folder / "features.npz").is_file()]
    kept = {folder: _kept(folder) for folder in having}
    return [
        _Planes.read(folder, found) for folder, found in kept.items() if f"{kind}_0" not in found
    ]


def _kept(folder: Path) -> dict[str, np.ndarray]:
    """The projections so far; empty if the features have changed since."""
    path = folder / "projection.npz"
    if not path.is_file():
        return {}
    try:
        found = read_npz(path)
        return found if str(found["source"]) == sha256(folder / "features.npz") else {}
    except Exception as error:  # whatever a damaged archive causes
        tqdm.write(
            f"note: {path} is damaged ({error or type(error).__name__}) and will be rebuilt.",
            file=sys.stderr,
        )
        path.unlink()
        return {}


@dataclass(frozen=True)
class _Planes:
    """What to draw for a run.

    Attributes:
        folder: Folder of the run.
        arrays: What is already known: everything in its features.npz but the features, and
            projections of other kinds.
        here: Which samples have each modality.
        features: Features of those samples.
    """

    folder: Path
    arrays: dict[str, np.ndarray]
    here: list[np.ndarray]
    features: list[np.ndarray]

    @staticmethod
    def read(folder: Path, kept: Mapping[str, np.ndarray]) -> "_Planes":
        source = folder / "features.npz"
        arrays = {**kept, "source": np.array(sha256(source))}
        with reading(source):
            found = read_npz(source)
            seen = [found[f"features_{place}"] for place in range(len(found["modalities"]))]
            arrays |= {name: x for name, x in found.items() if not name.startswith("features_")}
        whole = np.ones(len(found["target"]), dtype=bool)
        here = [found.get(f"present_{place}", whole) for place in range(len(seen))]
        features = [x[rows] for x, rows in zip(seen, here, strict=True)]
        return _Planes(folder, arrays, here, features)

    def write(self, kind: Projected, places: Sequence[np.ndarray]) -> None:
        """Keeps the positions of the samples for each modality."""
        arrays = dict(self.arrays)
        for number, (rows, found) in enumerate(zip(self.here, places, strict=True)):
            arrays[f"{kind}_{number}"] = np.full((len(rows), 2), np.nan, dtype=np.float32)
            arrays[f"{kind}_{number}"][rows] = found
        with replacing(self.folder / "projection.npz") as new:
            np.savez_compressed(new, allow_pickle=False, **arrays)
