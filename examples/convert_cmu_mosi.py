"""CMU-MOSI to one .npz file: modalities `text`, `audio` and `video`, negative or positive.

With `--task number`, labels are the sentiment itself, from -3 to 3; as a class, 0 is positive.

One vector per utterance (text CNN, openSMILE, C3D). The text and video vectors were learnt with
labels on the 62 training videos of the bc-LSTM split, so use only this split: on the official one
they leak.

The split has no validation part, and none can be taken from its training part, because the networks
that made the vectors saw those labels too (logistic regression: text .996 on training videos that
it was not fitted on, .762 on test videos; video .933 against .527). Such a validation part could
not choose between epochs, and a gap measured on it would be close to zero. So validation takes
whole videos of the 31 test videos, until it has at least a third of their utterances. No speaker is
on both sides.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def hold_out_videos(split: np.ndarray, video: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Moves whole test videos to validation until it has its share of their utterances.

    Args:
        split: (n) 0 for train, 1 for test.
        video: (n) the video of each utterance.
        share: Share of the test utterances.
        seed: Seed of the order in which videos are taken.

    Returns:
        (n) 0 train, 1 validation, 2 test.
    """
    held = split == 1
    result = np.where(held, 2, 0)
    for taken in np.random.default_rng(seed).permutation(np.unique(video[held])):
        if (result == 1).sum() >= share * held.sum():
            break
        result[video == taken] = 1
    return result


def main(argv: Sequence[str] | None = None) -> None:
    command = parser(__doc__, "cmu_mosi")
    command.add_argument("--task", choices=("classes", "number"), default="classes")
    arguments, source = read(command, argv, "cmu_mosi_utterance.npz")
    split = hold_out_videos(source["split_bclstm"], source["video_index"], share=1 / 3, seed=0)
    modalities = {
        "text": source["text_cnn"],
        "audio": source["audio_opensmile"],
        "video": source["video_c3d"],
    }
    if arguments.task == "number":
        modalities["labels_kind"] = np.array("sentiment")
        save_npz(arguments.out, source["score"], split, modalities, ["sentiment"])
    else:
        save_npz(arguments.out, source["label"], split, modalities, source["class_names"].tolist())
    train, val, test = np.bincount(split)
    print(f"{arguments.out}: {train} / {val} / {test} utterances, text, audio and video")


if __name__ == "__main__":
    main()
