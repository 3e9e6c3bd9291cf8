"""evenly datasets: lists the data sets, shows one, or checks a folder for its files."""

import sys
from typing import Any

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import official_source
from evenly.errors import UserFileNotFoundError
from evenly.spec import parse
from evenly.suggest import unknown

NPZ = """A .npz file holds 'labels' (N), 'split' (N; train, val, test or 0, 1, 2), optionally
'class_names', and one array per modality whose first axis is N. For variable lengths, concatenate
the samples and store N + 1 start positions in 'NAME_offset'.
The shape of a sample tells the kind of a modality: (d) is a vector, (time, features) a sequence,
(channels, height, width) or 8-bit (height, width) an image, (time, channels, height, width) a
video. Set 'NAME_kind' where the shape misleads: 'image' for a spectrogram of floats, (bands,
frames), which looks like a sequence; 'text' for word numbers, padded with 0; or 'vector',
'sequence', 'video'."""


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser("Lists the data sets, shows one, or checks a folder for its files.")
    one.add_argument("name", nargs="?", help="the data set to show")
    one.add_argument("folder", nargs="?", help="the folder to check for its files")
    return one


def run(options: Namespace) -> None:
    """Prints the list, one data set, or how much of it is in a folder."""
    from evenly.data import DATASETS
    from evenly.data.raw.sets import SETS

    if options.name is None:
        print("built in, for --data:")
        for name, known in DATASETS.items():
            print(f"  {name:16}  {known.title} ({known.samples})")
        print("\nfrom official downloads, for 'evenly prepare NAME --folder DIR':")
        for name, official in SETS.items():
            print(f"  {name:16}  {official.title}")
        print(f"\n'evenly datasets NAME' shows one. --data also takes your own files:\n\n{NPZ}")
        return
    name = parse(options.name).name
    if options.folder is not None:
        _check(options.name, options.folder)
        return
    if name not in {**DATASETS, **SETS}:
        raise unknown("data set", name, {**DATASETS, **SETS})
    info: Any = DATASETS.get(name) or SETS[name]
    print(f"{name}: {info.title}\n")
    for fact in ("modalities", "samples", "licence", "source"):
        print(f"{fact}: {getattr(info, fact)}")
    if name in SETS:
        print("\nthe folder holds:", *info.layout, sep="\n  ")
        print(f"\nevenly datasets {name} DIR             checks that it does")
        print(f"evenly prepare {name} --folder DIR --out STORE")
        print(f"\nsettings, as in '{name}(name=value)':")
    else:
        print(f"\nsettings, as in --data '{name}(name=value)':")
    for setting, meaning in info.settings.items():
        print(f"  {setting}={info.defaults[setting]}  {meaning}")


def _check(text: str, folder: str) -> None:
    """Prints how much of a data set is in a folder."""
    from evenly.data.raw.sets.official import check

    source = official_source(text, folder)
    found = check(source)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    for split, (whole, count) in found.splits.items():
        print(f"{split:6} {whole:,} of {count:,} samples are complete")
    if found.missing:
        listed = "".join(f"\n  {path}" for path in found.missing[:5])
        more = f"\n  and {len(found.missing) - 5:,} more" if len(found.missing) > 5 else ""
        raise UserFileNotFoundError(
            f"{len(found.missing):,} of {found.files:,} files are missing or empty:{listed}{more}\n"
            f"'evenly datasets {source.name}' says where to get them."
        )
