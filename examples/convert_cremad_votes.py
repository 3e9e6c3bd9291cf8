"""CREMA-D human ratings to one .npz file: modalities `audio` and `visual`, 6 emotions.

What people thought who only heard the voice, or only saw the face: of each emotion the share of
the votes and the mean level (0 to 100), 12 values per modality. Where nobody voted for an emotion
its level is missing in the source and 0 here. The split is that of the D&R paper; all actors are
in every part. The ratings of people who both heard and saw are left out: they are the answer of
the two together, not a third modality.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def votes_and_levels(votes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(n, 12): shares of the votes, then levels with 0 for none."""
    shares = votes / votes.sum(1, keepdims=True)
    return np.hstack([shares, np.nan_to_num(levels)]).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    arguments, source = read(parser(__doc__, "cremad_votes"), argv, "cremad_votes.npz")
    modalities = {
        name: votes_and_levels(source[f"{name}_votes"], source[f"{name}_level"])
        for name in ("audio", "visual")
    }
    save_npz(
        arguments.out,
        source["label"],
        source["split_paper"],
        modalities,
        class_names=source["class_names"].tolist(),
    )
    print(f"{arguments.out}: {len(source['label'])} clips, audio and visual, 12 values each")


if __name__ == "__main__":
    main()
