"""CMU-MOSI's words and sound to one .npz file: modalities `text` and `audio`, negative or positive.

`text` is the transcript as up to 50 word numbers, for a network that learns its own embeddings;
`audio` is one vector of openSMILE statistics per utterance. Unlike the vectors of
convert_cmu_mosi.py, neither has seen a label, so you can use the standard folds of 52, 10 and 31
videos. Video is left out: its vectors were learnt with labels on videos that these folds test on.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "cmu_mosi"), argv, "cmu_mosi_utterance.npz")
    split = source["split_official"]
    save_npz(
        arguments.out,
        source["label"],
        split,
        {
            "text": source["tokens"],
            "text_kind": np.array("text"),
            "audio": source["audio_opensmile"],
        },
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(split)
    print(f"{arguments.out}: {train} / {val} / {test} utterances, text and audio")


if __name__ == "__main__":
    main()
