"""UPMC Food-101: 101 dishes, each with a picture and text from the web (Wang et al., ICMEW 2015).

The layout is that of https://www.kaggle.com/datasets/gianmarco96/upmcfood101, according to public
loaders; the authors' own page has had other versions. The files, their licence and the authors'
counts were not available.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SplitName, stratified
from evenly.data.raw.readers import Image, Reader
from evenly.data.raw.sets.official import leaks, misread, needed, passed_over, rows, text
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes

LISTS: dict[str, SplitName] = {"train": "train", "test": "test"}


def food101(
    folder: Path, size: tuple[int, int] = (224, 224), tokenizer: str = "", length: int = 512
) -> Source:
    """The pictures and titles of the official split (67,988 / 22,716).

    `texts/train_titles.csv` and `texts/test_titles.csv` hold a line for each sample, without a
    header: the picture's file, the title of its web page, and the class. Pictures are
    `images/train/CLASS/FILE`, and likewise for the test split. The lists have no validation split:
    it is a stratified 15 % of the training samples (seed 0).

    The pages were found by searching for the class, so most titles name it: a note says how many.

    Args:
        folder: Where `images` and `texts` are.
        size: Size of the pictures.
        tokenizer: A Transformers tokenizer, by folder or name; without one, words are numbered by
            the training titles.
        length: Tokens after which a title is cut off.
    """
    opened = [needed(folder, f"texts/{part}_titles.csv") for part in LISTS]
    listed: list[tuple[SplitName, Path, str, str]] = []
    for (part, split), path in zip(LISTS.items(), opened, strict=True):
        for line, row in rows(path):
            if len(row) != 3 or not (row[0] and row[2]):
                raise misread(path, line, row, "the file of a picture, its title and its class")
            file, title, kind = row
            listed.append((split, folder / "images" / part / kind / file, title, kind))
    classes = sorted({kind for *_, kind in listed})
    training = [n for n, (split, *_) in enumerate(listed) if split == "train"]
    labels = torch.tensor([classes.index(listed[n][3]) for n in training])
    drawn = {training[n] for n in stratified(labels, (VALIDATION,))[0].tolist()}
    samples = [
        Sample(
            path.stem,
            classes.index(kind),
            "val" if n in drawn else split,
            {"image": path, "text": title or None},
        )
        for n, (split, path, title, kind) in enumerate(listed)
    ]
    known = {path for _, path, *_ in listed}
    others = [path for path in sorted(folder.glob("images/*/*/*")) if path not in known]
    notes = [
        *passed_over(others, "as one of the listed pictures"),
        *_naming([(title, kind) for *_, title, kind in listed]),
        *leaks("titles", ((str(s.cells["text"]), s.split) for s in samples if s.cells["text"])),
        f"Validation split: {VALIDATION:.0%} of the training samples, stratified, seed 0.",
    ]
    titles = (sample.cells["text"] for sample in samples if sample.split == "train")
    readers: dict[str, Reader] = {"image": Image(size), "text": text(titles, tokenizer, length)}
    return Source("food101", readers, samples, Classes(classes), notes, opened)


def _naming(titles: Sequence[tuple[str, str]]) -> list[str]:
    """A note on titles that name their class, if any do."""
    count = sum(kind.replace("_", " ").lower() in title.lower() for title, kind in titles)
    if not count:
        return []
    return [
        f"{count:,} of {len(titles):,} titles name their class, as the pages were found by "
        "searching for it."
    ]
