"""RAVDESS speech to one .npz file: modalities `voice` and `face`, 8 emotions.

`voice` is a log-mel spectrogram (64 bands, 176 frames, 8 bit), `face` the 35 action units of the
video, averaged over the clip. Actors 1-16 are for training, 17-20 for validation, 21-24 for
testing: no actor is in two splits. The 16 clips without sound are left out: all are from two actors
and two emotions, so an empty spectrogram would reveal the emotion.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "ravdess_av"), argv, "ravdess_av.npz")
    keep = source["has_audio"]
    save_npz(
        arguments.out,
        source["label"][keep],
        source["split"][keep],
        {"voice": source["logmel"][keep], "face": source["face_au"][keep]},
        class_names=source["class_names"].tolist(),
    )
    train, val, test = np.bincount(source["split"][keep])
    print(f"{arguments.out}: {train} / {val} / {test} clips, voice and face")


if __name__ == "__main__":
    main()
