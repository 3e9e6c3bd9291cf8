"""MVSA: tweets with a picture and text, and their sentiment (Niu et al., MMM 2016).

The layout is that of the authors' MVSA-Single and MVSA-Multiple, according to public loaders; the
archives were not available. The rule that merges two labels is the table of Xu and Mao,
"MultiSentiNet", CIKM 2017, https://github.com/xunan0812/MultiSentiNet.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from evenly.data.dataset import SplitName, stratified
from evenly.data.raw.readers import Image, Reader
from evenly.data.raw.sets.official import leaks, misread, needed, noted, passed_over, rows, text
from evenly.data.raw.source import Sample, Source
from evenly.data.tasks import Classes
from evenly.errors import UserError

FILE = "labelResultAll.txt"
CLASSES = ["negative", "neutral", "positive"]
SHARES = (0.1, 0.1)
"""Shares of the validation and the test split, as usual."""


def mvsa(
    folder: Path,
    size: tuple[int, int] = (224, 224),
    tokenizer: str = "",
    length: int = 512,
    seed: int = 0,
) -> Source:
    """MVSA-Single (4,511 of 4,869 tweets have a label) or MVSA-Multiple (17,024 of 19,600).

    `labelResultAll.txt` holds a line for each tweet: its number and the sentiment of text and
    picture by one or three annotators, such as `1<tab>positive,neutral`; the tweet is `data/1.txt`
    and `data/1.jpg`. Of three annotators, two must agree on the text, and two on the picture. If
    text and picture differ, the one that is not neutral counts. Tweets with one positive and one
    negative are left out, as are those without agreement.

    There is no official split: all labelled tweets are split into a stratified 80 / 10 / 10 %.

    Args:
        folder: Where the list and the folder `data` are.
        size: Size of the pictures.
        tokenizer: A Transformers tokenizer, by folder or name; without one, words are numbered by
            the training texts.
        length: Tokens after which a text is cut off.
        seed: Seed of the split.
    """
    path = needed(folder, FILE)
    listed = dict(_listed(path))
    kept = {number: label for number, label in listed.items() if label in CLASSES}
    if not kept:
        raise UserError(f"{path}: holds no tweet whose annotators agree. Download it again.")
    target = torch.tensor([CLASSES.index(label) for label in kept.values()])
    parts: Sequence[SplitName] = ("val", "test", "train")
    split: dict[int, SplitName] = {}
    for part, members in zip(parts, stratified(target, SHARES, seed), strict=True):
        split |= dict.fromkeys(members.tolist(), part)
    samples, texts, strange = [], [], []
    for n, number in enumerate(kept):
        file = folder / "data" / f"{number}.txt"
        content = file.read_bytes() if file.is_file() else b""
        words = content.decode("utf-8", "ignore")
        strange += [number] * (words.encode() != content)
        cells = {"image": folder / "data" / f"{number}.jpg", "text": words.strip() or None}
        samples.append(Sample(number, int(target[n]), split[n], cells))
        texts.append(file)
    known = {file for sample in samples for file in sample.files()} | set(texts)
    others = [
        file
        for file in sorted((folder / "data").glob("*"))
        if file not in known and file.stem not in listed
    ]
    lacking = [sample.name for sample in samples if sample.cells["text"] is None]
    notes = [
        *(
            note
            for why in (DISAGREEING, CONTRARY)
            for note in noted(f"Left out, as their {why}", [n for n in listed if listed[n] == why])
        ),
        *passed_over(others, "as one of the listed tweets, N.jpg or N.txt"),
        *noted("Without text, as its file is missing or empty", lacking),
        *noted("Not in UTF-8, so that a part of the text is lost", strange),
        *leaks("texts", ((str(s.cells["text"]), s.split) for s in samples if s.cells["text"])),
        f"Split: 80 / 10 / 10 %, stratified, seed {seed}, as there is no official one.",
    ]
    training = (sample.cells["text"] for sample in samples if sample.split == "train")
    readers: dict[str, Reader] = {"image": Image(size), "text": text(training, tokenizer, length)}
    opened = [path, *(file for file in texts if file.is_file())]
    return Source("mvsa", readers, samples, Classes(CLASSES), notes, opened)


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """Each tweet with its class, or the reason it has none."""
    for line, (number, *pairs) in rows(path, "\t", quoted=False):
        if number == "ID":
            continue
        votes = [tuple(word.strip() for word in pair.split(",")) for pair in pairs]
        if not votes or any(len(vote) != 2 or not set(vote) <= set(CLASSES) for vote in votes):
            row = [number, *pairs]
            raise misread(path, line, row, "a number and the sentiments of text and picture")
        yield number, _label(*map(_agreed, zip(*votes, strict=True)))


def _agreed(votes: Sequence[str]) -> str | None:
    """The opinion of more than half of the annotators."""
    ((label, count),) = Counter(votes).most_common(1)
    return label if 2 * count > len(votes) else None


DISAGREEING, CONTRARY = "annotators disagree", "text and picture are contrary"


def _label(words: str | None, picture: str | None) -> str:
    """The class of a tweet, or the reason it has none."""
    if words is None or picture is None:
        return DISAGREEING
    if {words, picture} == {"positive", "negative"}:
        return CONTRARY
    return picture if words == "neutral" else words
