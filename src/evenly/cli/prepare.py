"""evenly prepare: decodes raw files once, into a store."""

import sys
from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import add_reading, make_store, source_of
from evenly.errors import UserError
from evenly.lab.run.settings import check_counts

TABLE = """A table has one row per sample, a column 'label', optional columns 'split' (train, val,
test; missing splits are drawn) and 'name', and one column per modality. A cell holds a number, a
text, the path of a file or folder (relative to the table), or in Parquet the bytes of a file. An
empty cell means that the sample lacks the modality. These also count as one table:

  data/            a folder of train-00000-of-00002.parquet, validation-..., test-..., as on the
                   Hub; of what save_to_disk wrote; of CLASS/ or train/CLASS/ with pictures, sounds
                   or clips; or of such files and a metadata.csv or .jsonl with a file_name column
  a-{000..009}.tar a WebDataset: 0001.jpg, 0001.txt and 0001.cls (or .json with a label) make one
                   sample, and the extensions are the columns

The type of a column comes from its files or its first cells. --readers overrides it, with these
readers and settings:

  video(frames=2,size=[224,224],pick=uniform)   pick: uniform, random, or rate with fps=
  image(size=[224,224])
  flow(frames=3,size=[224,224],method=dis)      method: dis or farneback; layout: images or stacked
  spectrogram(front=fbank,seconds=3)            front: fbank, mel or stft; sample_rate=16000
                                                (22050 for OGM-GE's stft)
  wave(seconds=3,sample_rate=16000)             the raw waveform
  array(kind=vector)                            kind: sequence, image or video; ragged=true
  text(length=512)                              words, or with tokenizer=FOLDER a tokenizer of
                                                Transformers
  tabular(numbers=[a,b],categories=[c])         several columns as one modality, under a new name

If a file has several streams, stream=1 takes the second (video, image, flow, spectrogram, wave).
If a cell has several files, several=true takes all of them (image, spectrogram)."""


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(f"Decodes raw files once, into a store that training reads fast.\n\n{TABLE}")
    one.add_argument(
        "source",
        help="a table (.csv, .tsv, .parquet, .feather, .jsonl), a WebDataset (.tar, or a range in "
        "braces), a folder of such files or of pictures, sounds and clips, or a data set by name, "
        "such as 'cremad(split=actors)' (see 'evenly datasets')",
    )
    one.add_argument("--out", required=True, help="folder of the store, to be used as --data")
    one.add_argument("--workers", type=int | None, help="decoding processes (default: cores)")
    one.add_argument(
        "--task",
        default="auto",
        choices=("auto", "classes", "labels", "number"),
        help="what the labels of a table are, if the detected task is wrong",
    )
    add_reading(one)
    return one


def run(options: Namespace) -> None:
    """Makes the store, and prints what it holds."""
    from evenly.data.catalogue import TABLES

    out = Path(options.out)
    if out.name.lower().endswith((*TABLES, ".npz")):
        raise UserError(
            f"--out {out} looks like a file, but a store is a folder. Choose another name."
        )
    check_counts(workers=options.workers)
    source = source_of(options.source, options, options.task)
    about = make_store(source, out, options.workers, options)
    for note in about.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, field in about.modalities.items():
        lack = f", missing in {field.missing}" if field.missing else ""
        units = f", {field.units}" if field.units else ""
        stays = ", streamed" if field.streamed else ""
        print(f"{name:12} {field.kind} {tuple(field.shape)} {field.dtype}{units}{lack}{stays}")
    counts = ", ".join(f"{name} {count}" for name, count in about.splits.items())
    count = len(about.task["names"])
    numbers = f"number{'s' * (count > 1)} to regress on"
    what = numbers if about.task["name"] == "number" else about.task["name"]
    print(f"{counts}; {count} {what}\n\nstore: {out}")
