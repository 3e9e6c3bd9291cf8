"""Emoji to one .npz file: modalities `image` and `tags`, 9 categories.

`image` is the picture, 64×64 pixels in colour; `tags` are the numbers of words that describe it,
for a network that learns its own embeddings. Variants of one emoji are in the same split. Words
that name a category, such as "flag", are removed; --named keeps them.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "emoji_tags")
    command.add_argument("--named", action="store_true", help="keep words that name a category")
    arguments, source = read(command, argv, "emoji_tags.npz")
    modalities = {
        "image": source["image"],
        "tags": source["tokens" if arguments.named else "tokens_blind"],
        "tags_kind": np.array("text"),
    }
    save_npz(
        arguments.out,
        source["label"],
        source["split"],
        modalities,
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(source["split"])
    print(f"{arguments.out}: {train} / {val} / {test} emoji, image and tags")


if __name__ == "__main__":
    main()
