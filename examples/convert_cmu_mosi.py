"""CMU-MOSI to one .npz file: modalities `text`, `audio` and `video`, negative or positive.

One vector per utterance (text CNN, openSMILE, C3D). The text and video vectors were learnt with
labels on the training videos of the bc-LSTM split, so this split is used and no other: on the
official one they leak. It has no validation part. 15 % of the training utterances become one here,
drawn by video and not by utterance, so that no speaker is on both sides.

This validation part is far too easy: the networks that made its text and video vectors saw its
labels (logistic regression: text .996 there against .762 on test, video .933 against .527). It
tells when a model has broken, but cannot choose between good epochs, and a gap between training
and validation measured on it is close to nothing. Only the test part is clean.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def hold_out_videos(split: np.ndarray, video: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Moves whole training videos to validation until it has its share of the utterances.

    Args:
        split: (n) 0 for train, 1 for test.
        video: (n) which video the utterance is from.
        share: Of the training utterances.
        seed: Of the order in which videos are taken.

    Returns:
        (n) 0 train, 1 validation, 2 test.
    """
    train = split == 0
    result = np.where(train, 0, 2)
    for taken in np.random.default_rng(seed).permutation(np.unique(video[train])):
        if (result == 1).sum() >= share * train.sum():
            break
        result[train & (video == taken)] = 1
    return result


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "cmu_mosi"), argv, "cmu_mosi_utterance.npz")
    split = hold_out_videos(source["split_bclstm"], source["video_index"], share=0.15, seed=0)
    modalities = {
        "text": source["text_cnn"],
        "audio": source["audio_opensmile"],
        "video": source["video_c3d"],
    }
    save_npz(
        arguments.out,
        source["label"],
        split,
        modalities,
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(split)
    print(f"{arguments.out}: {train} / {val} / {test} utterances, text, audio and video")


if __name__ == "__main__":
    main()
