"""MM-IMDb: posters and plots of movies, with their genres (Arevalo et al., ICLR workshop 2017).

The layout is that of mmimdb.tar.gz, as read by https://github.com/johnarevalo/gmu-mmimdb and
https://github.com/facebookresearch/mmbt; the archive itself was not available. The paper's 23
genres are inferred from the four that others leave out.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Image, Reader
from evenly.data.raw.sets.official import leaks, needed, noted, text
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Labels
from evenly.errors import UserError

GENRES = [
    "Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama",
    "Family", "Fantasy", "Film-Noir", "History", "Horror", "Music", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Short", "Sport", "Thriller", "War", "Western",
]  # fmt: skip
"""All but Adult, News, Reality-TV and Talk-Show, which are too rare."""
SPLITS: dict[str, SplitName] = {"train": "train", "dev": "val", "test": "test"}


def mm_imdb(
    folder: Path, size: tuple[int, int] = (224, 224), tokenizer: str = "", length: int = 512
) -> Source:
    """The 25,959 movies of the official split (15,552 / 2,608 / 7,799), each with several genres.

    `split.json` holds the movies of `train`, `dev` and `test`; `dataset/ID.json` holds a movie's
    plots, of which the longest is used, and its genres; `dataset/ID.jpeg` is its poster. Each of 23
    genres is a label; rarer ones are not predicted.

    Args:
        folder: Where `split.json` and the folder `dataset` are.
        size: Size of the posters.
        tokenizer: A Transformers tokenizer, by folder or name; without one, words are numbered by
            the training plots.
        length: Tokens after which a plot is cut off.
    """
    path = needed(folder, "split.json")
    samples, broken, rare = [], [], []
    for split, movies in _listed(path).items():
        for movie in movies:
            try:
                plot, genres = _movie(folder / "dataset" / f"{movie}.json")
            except (OSError, ValueError, KeyError, TypeError):
                broken.append(movie)
                continue
            if not set(genres) & set(GENRES):
                rare.append(movie)
            label = tuple(float(genre in genres) for genre in GENRES)
            cells = {"image": folder / "dataset" / f"{movie}.jpeg", "text": plot or None}
            samples.append(Sample(movie, label, split, cells))
    if not samples:
        raise UserError(
            f"{folder / 'dataset'}: holds none of the {len(broken):,} movies of split.json, such "
            f"as {broken[0]}.json with plot and genres. Unpack mmimdb.tar.gz there."
        )
    notes = [
        *noted("Left out, as their .json is missing or lacks plot or genres", broken),
        *noted("Without plot", [s.name for s in samples if s.cells["text"] is None]),
        *noted("With none of the 23 genres", rare),
        *leaks("plots", ((str(s.cells["text"]), s.split) for s in samples if s.cells["text"])),
    ]
    plots = (sample.cells["text"] for sample in samples if sample.split == "train")
    readers: dict[str, Reader] = {"image": Image(size), "text": text(plots, tokenizer, length)}
    return Source("mm_imdb", readers, samples, Labels(GENRES), notes, [path])


def _listed(path: Path) -> Mapping[SplitName, list[str]]:
    """The movies of each split."""
    try:
        content = json.loads(path.read_bytes())
        found = {ours: [str(movie) for movie in content[name]] for name, ours in SPLITS.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: holds no lists of movies under train, dev and test. Take it from "
            "mmimdb.tar.gz."
        ) from error
    if not any(found.values()):
        raise UserError(f"{path}: lists no movie. Take it from mmimdb.tar.gz.")
    return found


def _movie(path: Path) -> tuple[str, list[str]]:
    """The longest plot of a movie, and its genres."""
    content = json.loads(path.read_bytes())
    plots, genres = content["plot"], content["genres"]
    if not (isinstance(plots, list) and isinstance(genres, list)):
        raise TypeError
    return max(map(str, plots), key=len, default="").strip(), [*map(str, genres)]
