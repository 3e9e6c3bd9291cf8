"""evenly datasets: lists every data set, shows one, or looks whether a folder holds it."""

import sys
from typing import Any

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import official_source
from evenly.errors import UserFileNotFoundError
from evenly.spec import parse
from evenly.suggest import unknown

HELP = "list every data set, or show one"

NPZ = """The .npz form: 'labels' (N), 'split' (N; train, val, test or 0, 1, 2), and every other
array whose first axis is N is a modality; NAME with NAME_offset (N + 1) is a modality of unequal
lengths; 'class_names' is optional. The shape of a sample tells what a modality is: (d) a vector,
(time, features) a sequence, (channels, height, width) or 8-bit integers in (height, width) an
image, (time, channels, height, width) a video. 'NAME_kind' says otherwise: 'image', for a
spectrogram of floats, (bands, frames), which would be taken for a sequence; 'text', for the numbers
of words, 0 after the last; 'vector', 'sequence' or 'video'."""


def arguments() -> Parser:
    """What it takes."""
    one = Parser("Lists every data set, or shows one.")
    one.add_argument("name", nargs="?", help="a data set to show")
    one.add_argument("folder", nargs="?", help="a folder, to see if the files are there")
    return one


def run(options: Namespace) -> None:
    """Prints the list, one data set, or what of it is in a folder."""
    from evenly.data import DATASETS
    from evenly.data.raw.sets import SETS

    if options.name is None:
        print("built in, for --data:")
        for name, known in DATASETS.items():
            print(f"  {name:16}  {known.title} ({known.samples})")
        print("\nfrom their official downloads, for 'evenly prepare NAME --folder DIR':")
        for name, official in SETS.items():
            print(f"  {name:16}  {official.title}")
        print(f"\n'evenly datasets NAME' shows one. --data also takes your own file:\n{NPZ}")
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
        print(f"\nevenly datasets {name} DIR             looks whether it does")
        print(f"evenly prepare {name} --folder DIR --out STORE")
        print(f"\nsettings, as in '{name}(name=value)':")
    else:
        print(f"\nsettings, as in --data '{name}(name=value)':")
    for setting, meaning in info.settings.items():
        print(f"  {setting}={info.defaults[setting]}  {meaning}")


def _check(text: str, folder: str) -> None:
    """Prints what of a data set is in a folder."""
    from evenly.data.raw.sets.official import check

    source = official_source(text, folder)
    found = check(source)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    for split, (whole, count) in found.splits.items():
        print(f"{split:6} {whole:,} of {count:,} samples that are listed or found are whole")
    if found.missing:
        listed = "".join(f"\n  {path}" for path in found.missing[:5])
        more = f"\n  and {len(found.missing) - 5:,} more" if len(found.missing) > 5 else ""
        raise UserFileNotFoundError(
            f"{len(found.missing):,} of {found.files:,} files are missing or empty:{listed}{more}"
        )
