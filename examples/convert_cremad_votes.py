"""CREMA-D human ratings to one .npz file: modalities `audio` and `visual`, 6 emotions.

The ratings of people who only heard the voice, or only saw the face: for each emotion, its share of
the votes and its mean level (0 to 100), 12 values per modality. If nobody voted for an emotion, its
level is missing in the source and 0 here. The split is that of the D&R paper; all actors are in
every split. The ratings of people who both heard and saw are left out: they answer for the two
together, not for a third modality.
"""

from collections.abc import Sequence

import numpy as np
from _convert import parser, read

from evenly.data import save_npz


def votes_and_levels(votes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(n, 12): shares of the votes, then levels, 0 if missing."""
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
