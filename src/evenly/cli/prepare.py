"""evenly prepare: raw files to a store, decoded once."""

import sys
from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import add_reading, make_store, source_of
from evenly.errors import UserError
from evenly.lab.run.settings import check_counts

HELP = "raw files to a store, decoded once"

TABLE = """The table has a row for each sample and the columns 'label'; 'split' (train, val, test;
optional: what is lacking is drawn); 'name' (optional); and one for each modality. A cell holds a
number, a text, the path of a file or folder, relative to the table's folder, or in Parquet the
bytes of a file. An empty cell is a modality that the sample lacks. Files that make one table:

  data/            of train-00000-of-00002.parquet, validation-..., test-..., as the Hub has them;
                   of what save_to_disk wrote; of CLASS/ or train/CLASS/ with pictures, sounds or
                   clips; or of such files and a metadata.csv or .jsonl with a column file_name
  a-{000..009}.tar a WebDataset: 0001.jpg, 0001.txt and 0001.cls (or .json with a label) are one
                   sample; extensions are the columns

What a column holds is said by the files or found out from its first cells; --readers says
otherwise, with the names and settings

  video(frames=2,size=[224,224],pick=uniform)   pick: uniform, random, or rate with fps=
  image(size=[224,224])
  flow(frames=3,size=[224,224],method=dis)      method: dis or farneback; layout: images or stacked
  spectrogram(front=fbank,seconds=3)            front: fbank, mel or stft; sample_rate=16000
                                                (22050 for the stft of OGM-GE)
  wave(seconds=3,sample_rate=16000)             sound as it is
  array(kind=vector)                            kind: sequence, image or video; ragged=true
  text(length=512)                              words; or tokenizer=FOLDER, a Transformers one
  tabular(numbers=[a,b],categories=[c])         columns that are one modality together, under a
                                                name of its own

Of a file that has several, stream=1 takes the second (video, image, flow, spectrogram, wave).
Of a cell that has several files, several=true takes all (image, spectrogram)."""


def arguments() -> Parser:
    """What it takes."""
    one = Parser(f"Decodes raw files once, into a store that training reads fast.\n\n{TABLE}")
    one.add_argument(
        "source",
        help="a table, .csv, .tsv, .parquet, .feather or .jsonl; a WebDataset, .tar, or a range of "
        "them in braces; a folder of such files, or of pictures, sounds and clips; or a data set "
        "by name, with settings if wanted, such as 'cremad(split=actors)' ('evenly datasets' lists "
        "them)",
    )
    one.add_argument("--out", required=True, help="the store's folder; then: --data FOLDER")
    one.add_argument("--workers", type=int | None, help="processes that decode (default: cores)")
    one.add_argument(
        "--task",
        default="auto",
        choices=("auto", "classes", "labels", "number"),
        help="what the labels of a table are, where it is not as found out",
    )
    add_reading(one)
    return one


def run(options: Namespace) -> None:
    """Makes the store, and prints what it holds."""
    from evenly.data.catalogue import TABLES

    out = Path(options.out)
    if out.name.lower().endswith((*TABLES, ".npz")):
        raise UserError(
            f"--out {out}: a store is a folder, and by this name would be taken for a file. Choose "
            "another name."
        )
    check_counts(workers=options.workers)
    about = make_store(
        source_of(options.source, options, options.task), out, options.workers, options.skip_broken
    )
    for note in about.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, field in about.modalities.items():
        lack = f", missing in {field.missing}" if field.missing else ""
        units = f", {field.units}" if field.units else ""
        print(f"{name:12} {field.kind} {tuple(field.shape)} {field.dtype}{units}{lack}")
    counts = ", ".join(f"{name} {count}" for name, count in about.splits.items())
    count = len(about.task["names"])
    numbers = f"number{'s' * (count > 1)} to regress on"
    what = numbers if about.task["name"] == "number" else about.task["name"]
    print(f"{counts}; {count} {what}\n\nstore: {out}")
