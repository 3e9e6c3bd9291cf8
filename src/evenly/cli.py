"""The command `evenly`. Torch and all else load when a command needs them, so help is instant."""

import io
import os
import re
import select
import shlex
import signal
import sys
import textwrap
import traceback
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_type_hints

try:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

    from evenly.files import FULL, held
    from evenly.hidden import hidden, hidden_argument
    from evenly.lab.run.settings import Training, check_counts, check_trusted
    from evenly.spec import converted, load_yaml, numbers, parse, wanted
    from evenly.stop import Stopped, stoppable
    from evenly.suggest import unknown
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.startswith("evenly"):
        raise
    sys.exit(f"evenly: the command needs {missing.name}: pip install 'evenly[lab]'")

if TYPE_CHECKING:
    from evenly.data.raw import Source
    from evenly.data.store import Description

DESCRIPTION = """Balanced multimodal learning: train, diagnose and compare models that learn from
several modalities.

  evenly compare                       three methods on built-in data, two minutes
  evenly compare --data my.npz --methods joint,relearn,ogm_ge --seeds 5
  evenly compare --methods 'joint,relearn,relearn(gap=shared)'
  evenly compare --methods all --seeds 5
  evenly prepare clips.csv --out clips   files and labels to a store; then compare --data clips
  evenly study figure4 --data my.npz   an experiment of the paper, on any data
  evenly diagnose features.npz         how well each encoder is learnt, no training
  evenly COMMAND --help                what a command takes
"""

NPZ = """The .npz form: 'labels' (N), 'split' (N; train, val, test or 0, 1, 2), and every other
array whose first axis is N is a modality; NAME with NAME_offset (N + 1) is a modality of unequal
lengths; 'class_names' is optional. The shape of a sample tells what a modality is: (d) a vector,
(time, features) a sequence, (channels, height, width) or 8-bit integers in (height, width) an
image, (time, channels, height, width) a video. 'NAME_kind' says otherwise: 'image', for a
spectrogram of floats, (bands, frames), which would be taken for a sequence; 'text', for the numbers
of words, 0 after the last; 'vector', 'sequence' or 'video'."""

TABLE = """The table has a row for each sample and the columns 'label'; 'split' (train, val, test;
optional: what is lacking is drawn); 'name' (optional); and one for each modality. A cell holds a
number, a text, or the path of a file or folder, relative to the table's folder. An empty cell is a
modality that the sample lacks. What a column holds is found out from its first cells; --readers
says otherwise, with the names and settings

  video(frames=2,size=[224,224],pick=uniform)   pick: uniform, random, or rate with fps=
  image(size=[224,224])
  flow(frames=3,size=[224,224],method=dis)      method: dis or farneback; layout: images or stacked
  spectrogram(front=fbank,seconds=3)            front: fbank, mel or stft; sample_rate=16000
                                                (22050 for the stft of OGM-GE)
  wave(seconds=3,sample_rate=16000)             sound as it is
  array(kind=vector)                            kind: sequence, image or video; ragged=true
  text(length=512)                              words; or tokenizer=FOLDER, a Transformers one

Of a file that has several, stream=1 takes the second (video, image, flow, spectrogram, wave)."""

TUNE = """Tries settings of every method, as many trials for each, and keeps the best by validation
accuracy. The test split is not read.

All methods are tried with learning rates from 1e-4 to 0.1 and weight decays from 1e-6 to 0.01
(AdamW: from 1e-5 to 0.01, and from 1e-4 to 1), and with settings of their own, which
'evenly methods NAME' lists. The first trial of each is what you give. At the end stands the command
that compares the methods at their best, on the test split.

Stopped or killed, the same command goes on. The same command on other machines, with the same
--storage, takes its share of the trials: a worker that is killed loses the one that it was at, and
another takes its place. Each machine writes the trials that it does into its own folder, and the
same tables in the end. Of the trials, metrics and logs stay, checkpoints do not. With --jobs 1 on
one machine, the same search tries the same settings again.

  evenly tune --data my.npz --methods joint,relearn,ogm_ge --trials 20
  evenly tune --data my.npz --methods all --storage postgresql://me:secret@host/tuning
  CUDA_VISIBLE_DEVICES=1 evenly tune ...     one worker for each GPU"""

CONTINUED = {
    "compare": " The same command continues where this one was.",
    "tune": " The same command continues where this one was.",
    "study": " The same command continues where this one was.",
    "prepare": " The same command continues where this one was.",
    "train": " The same command with --resume continues where this one was.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    command = ""
    if arguments is None:
        sys.excepthook = _print_traceback
    try:
        with stoppable():
            options = parsed(sys.argv[1:] if arguments is None else arguments)
            command = options.command
            COMMANDS[command](options[command])
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)  # a library's
        print(f"\nevenly: {stopped}.{CONTINUED.get(command, '')}", file=sys.stderr)
        return stopped.status
    except BrokenPipeError:
        if not _has_no_reader():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("evenly"):
            raise
        print(f"evenly: this needs {error.name}: pip install 'evenly[lab]'", file=sys.stderr)
        return 1
    except OSError as error:
        said = hidden(_sentence(error, CONTINUED.get(command, "")))
        print(f"evenly: {said}", file=sys.stderr)
        return 1
    except Exception as error:
        if not _is_said_by_us(error):
            raise
        print(f"evenly: {hidden(str(error))}", file=sys.stderr)
        return 1
    return 0


def _print_traceback(kind: Any, error: BaseException, frames: Any) -> None:
    """As Python prints it, without passwords: it is what people send around."""
    print(hidden("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _has_no_reader() -> bool:
    """Whether the reader of our output, such as head, has enough of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    # Where nothing is left to flush, the pipe itself tells.
    watched = select.poll()
    watched.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _sentence(error: OSError, continued: str) -> str:
    """What is wrong with a file, in the words of this package or the system's."""
    if error.errno is None:
        return str(error)
    path = error.filename2 or error.filename  # the second is where a file was to be moved to
    place = f" ({path})" if path else ""
    if error.errno in FULL:
        return f"{error.strerror}{place}. Make room for what is to be written.{continued}"
    return f"{error.strerror}{place}. Check the path, and that you may read and write there."


def _is_said_by_us(error: Exception) -> bool:
    """Whether an error is a sentence for the user: a `raise` statement of this package.

    Anything else is our own mistake and keeps its traceback.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        isinstance(error, ValueError | RuntimeError)
        and Path(last.filename).is_relative_to(Path(__file__).parent)
        # C functions, torch's and Python's own, leave no frame, so the last one is their caller's.
        and (last.line or "").startswith("raise")
    )


def compare(options: Namespace) -> None:
    """The main job."""
    from evenly.lab.many.compare import compare
    from evenly.lab.many.jobs import forker
    from evenly.lab.many.tuned import Tuning
    from evenly.lab.run.logs import Logs
    from evenly.lab.statistics.tables import table

    training = _training(options)
    out = _out(options, Path("runs") / _short(options, training))
    logs = Logs.of(options.logger, out)
    forker()
    training = _prepared(training, out, options, _several(options.methods))
    jobs, seeds = _jobs(options, training), _seeds(options, training, 3)
    own: Tuning | Literal["published"] | None = None
    if options.tuned is not None:
        own = Tuning.read(options.tuned)
    if options.settings == "published":
        if own is not None:
            raise ValueError("--settings published goes without --tuned, which names others.")
        own = "published"
    report = compare(options.methods, seeds, training, out, jobs, own, options.workers, logs)
    print(table(out))
    print(f"\nreport: {report}")


def tune(options: Namespace) -> None:
    """A search for the best settings of each method."""
    from evenly.lab.many.compare import named
    from evenly.lab.many.jobs import forker
    from evenly.lab.many.trials import Search
    from evenly.lab.many.tune import tune
    from evenly.lab.run.logs import Logs
    from evenly.spec import split

    training = _training(options)
    out = _out(options, Path("runs") / f"{_short(options, training)}-tune")
    logs = Logs.of(options.logger, out)
    forker()
    training = _prepared(training, out, options, _several(options.methods))
    methods, _ = named(split(options.methods), training)
    search = Search(training, methods, options.trials, options.seeds, options.seed, out, logs)
    print(tune(search, _jobs(options, training), options.storage))
    best = ["--config", str(out / "best.yaml"), "--out", str(out / "compare")]
    if any("." in parse(text).name for text in training.encoders.values()):
        best.append("--trust")  # of the encoders, whose code has just run
    print(f"\nevery trial: {out / 'tune.csv'}, {out / 'tune.html'}")
    print("the best of each method against each other, on the test split:")
    print(f"evenly compare {shlex.join(best)} --seeds 5")


def study(options: Namespace) -> None:
    """An experiment of the paper."""
    from evenly.lab.many.compare import compare
    from evenly.lab.many.jobs import forker
    from evenly.lab.many.studies import STUDIES, planned, write_study
    from evenly.lab.run.logs import Logs

    if options.name is None:
        for name, known in STUDIES.items():
            print(f"{name:13} {known.title}")
            print(textwrap.indent(textwrap.fill(f"{known.shows}.", 78), " " * 14))
        print("\n'evenly study NAME --data D' makes its table and picture of any data.")
        return
    if options.name not in STUDIES:
        raise unknown("study", options.name, STUDIES)
    asked = STUDIES[options.name]
    training = _training(options)
    given = _short(options, training)
    out = _out(options, Path("runs") / f"{given}-{options.name}")
    logs = Logs.of(options.logger, out)
    forker()
    training = _prepared(training, out, options, _several(asked.methods(training)))
    training, methods = planned(asked, training)
    jobs, seeds = _jobs(options, training), _seeds(options, training, 5)
    report = compare(",".join(methods), seeds, training, out, jobs, logs=logs)
    files = write_study(options.name, out, methods)
    print(files[0].read_text(encoding="utf-8"))
    print(f"{asked.title}: {', '.join(map(str, files))}\nreport: {report}")


def train(options: Namespace) -> None:
    """One run."""
    from tqdm import tqdm

    from evenly.lab.many.jobs import CALLED
    from evenly.lab.run.logs import Logs
    from evenly.lab.run.prepare import prepare, say
    from evenly.lab.run.result import is_headline
    from evenly.lab.run.run import run_cell
    from evenly.lab.run.settings import Cell, check_folder
    from evenly.report.folder import PAPER

    cell = Cell(_training(options), options.method, options.seed)
    folder = _out(options, Path("runs") / _short(options, cell.training) / cell.folder)
    check_folder(folder)
    logs = Logs.of(options.logger, folder)
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise FileExistsError(
            f"{folder} is not empty. Continue the run in it with --resume, or choose another "
            "folder with --out."
        )
    cell = replace(
        cell, training=_prepared(cell.training, folder, options, lambda _: [options.method])
    )
    data, notes = prepare([cell])
    logs.prepare()
    say(notes)
    with tqdm(total=cell.training.epochs, unit="epoch", disable=None) as bar:

        def tell(epoch: int, accuracy: float) -> None:
            bar.update(epoch + 1 - bar.n)
            bar.set_postfix_str(f"val {accuracy:.3f}")

        with held(folder):
            result = run_cell(cell, folder, tell, data, logs=logs)
    chosen = CALLED[cell.training.selects_on]
    print(f"best epoch {result.best_epoch} of {result.epochs}, chosen by {chosen} accuracy")
    for split, metrics in result.metrics.items():
        shown = {name: value for name, value in metrics.items() if is_headline(name)}
        print(f"{split:5}", "  ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    if cell.training.protocol == "paper":
        print(f"\n{PAPER}")
    print(f"\nrun: {folder}")


def prepare(options: Namespace) -> None:
    """Raw files to a store."""
    from evenly.data.catalogue import TABLES

    out = _out(options)
    if out.name.lower().endswith((*TABLES, ".npz")):
        raise ValueError(
            f"--out {out}: a store is a folder, and by this name would be taken for a file. Choose "
            "another name."
        )
    check_counts(workers=options.workers)
    about = _store(_source(options.source, options), out, options.workers, options.skip_broken)
    for note in about.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, field in about.modalities.items():
        lack = f", missing in {field.missing}" if field.missing else ""
        units = f", {field.units}" if field.units else ""
        print(f"{name:12} {field.kind} {tuple(field.shape)} {field.dtype}{units}{lack}")
    counts = ", ".join(f"{name} {count}" for name, count in about.splits.items())
    print(f"{counts}; {len(about.classes)} classes\n\nstore: {out}")


def _source(text: str, options: Namespace) -> "Source":
    """What raw files to read, and how: of a table, or of a data set in the user's folder."""
    from evenly.data.catalogue import TABLES
    from evenly.data.raw import table

    if text.lower().endswith(TABLES):
        if options.folder:
            raise ValueError("--folder goes with a data set by name; a table knows its files.")
        modalities = options.modalities.split(",") if options.modalities else None
        return table(Path(text), modalities, options.readers)
    _check_reading(text, options)
    return _official(text, options.folder)


def _check_reading(text: str, options: Namespace) -> None:
    """Raises if it is said how a table is read where there is none."""
    for option in ("modalities", "readers"):
        if options[option]:
            raise ValueError(
                f"--{option} goes with a table, .csv, .tsv or .parquet; found '{text}'. A data set "
                "by name has settings instead: 'evenly datasets NAME' lists them."
            )


def _official(text: str, folder: str | None) -> "Source":
    """A data set in the folder where the user has it."""
    from evenly.data.raw.sets import SETS
    from evenly.spec import parse

    spec = parse(text)
    if spec.name not in SETS:
        raise unknown("data set with files", spec.name, SETS, "or a table, .csv, .tsv or .parquet")
    if folder is None:
        raise ValueError(
            f"{spec.name}: say where its files are, with --folder. 'evenly datasets {spec.name}' "
            "tells where to get them."
        )
    return SETS[spec.name].open(Path(folder), spec)


def _store(source: "Source", out: Path, workers: int | None, skip_broken: bool) -> "Description":
    """Prepares a store, and says how it is read."""
    from evenly.child import cores
    from evenly.data.raw import prepare, spelled

    asked = {name: spelled(reader) for name, reader in source.readers.items()}
    brief = {name: text if len(text) < 90 else f"{text[:86]}...)" for name, text in asked.items()}
    read = "; ".join(f"{name} as {text}" for name, text in brief.items())
    print(f"note: read: {read}.", file=sys.stderr)
    made_by = shlex.join(["evenly", *map(hidden_argument, sys.argv[1:])])
    return prepare(
        source, out, workers=workers or cores(), skip_broken=skip_broken, made_by=made_by
    )


def predict(options: Namespace) -> None:
    """Predictions of a run, as CSV."""
    import csv

    from evenly.files import write_text
    from evenly.lab.trained.predict import load_run, predictions

    run = load_run(Path(options.run), trust=options.trust)
    without = options.without.split(",") if options.without else []
    for name in without:
        if name not in run.modalities:
            raise unknown(f"modality of {options.run}", name, run.modalities)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "label", "predicted", *run.class_names])
    said = predictions(run, options.data, options.split, without, skip_broken=options.skip_broken)
    for found in said:
        best = max(range(len(run.class_names)), key=found.probabilities.__getitem__)
        rounded = [f"{p:.6g}" for p in found.probabilities]
        writer.writerow([found.sample, found.label, run.class_names[best], *rounded])
    if options.out:
        write_text(Path(options.out), text.getvalue())
        print(f"predictions: {options.out}")
    else:
        print(text.getvalue(), end="")


def export(options: Namespace) -> None:
    """A run as a program that needs torch alone."""
    from evenly.lab.trained.predict import load_run

    load_run(Path(options.run), trust=options.trust).export(Path(options.out))
    print(f"program: {options.out}")


def diagnose(options: Namespace) -> None:
    """Purity, gap and strength of features from any model."""
    from evenly import Features
    from evenly import diagnose as measure
    from evenly.data import Split, load_npz

    data = load_npz(Path(options.file), needed=("train", "val"))
    for name, modality in data.modalities.items():
        if modality.kind != "vector":
            raise ValueError(
                f"'{name}' in {options.file} holds samples of shape {modality.shape}, but a "
                "diagnosis is of features, one vector per sample. Save the encoder's pooled "
                "output, (samples, width)."
            )

    def features(split: Split) -> Features:
        inputs: Any = split.__getitems__(range(len(split)))["inputs"]  # vectors, as checked
        return Features({name: x.float() for name, x in inputs.items()}, split.target)

    found = measure(
        features(data.split("train")),
        features(data.split("val")),
        gap=options.gap,
        restarts=options.restarts,
        sample=options.sample,
        seed=options.seed,
    )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    print(found)


def methods(options: Namespace) -> None:
    """Lists the methods, or shows one."""
    from evenly.lab.many.space import METHOD
    from evenly.lab.run.describe import about, defaults, facts
    from evenly.methods import METHODS

    if options.name is None:
        width = max(map(len, METHODS))
        for name, kind in METHODS.items():
            info = kind.info
            print(f"{name:{width}}  {info.year or '':4}  {info.category:12}  {info.title}")
        print("\n'evenly methods NAME' shows a method's paper, settings and limits.")
        return
    if options.name not in METHODS:
        raise unknown("method", options.name, METHODS)
    info = METHODS[options.name].info
    print(f"{options.name}: {info.title}\n")
    print(about(options.name), "\n")
    for heading, text in facts(options.name).items():
        line = f"{heading}: {text}"
        # addresses stay whole
        fill = textwrap.fill(
            line, 92, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        print(fill)
    settings = defaults(options.name)
    if METHOD[options.name]:
        ranges = "; ".join(f"{name} {found}" for name, found in METHOD[options.name].items())
        line = f"searched by 'evenly tune': {ranges}"
        print(textwrap.fill(line, 92, subsequent_indent="  "))
    print("\nsettings and their defaults:")
    for setting, value in settings.items():
        print(f"  {setting}={value}")
    if "seed" in settings:
        print("  (seed: 'compare' and 'train' take that of the run unless you give it)")
    if info.in_epochs:
        print(
            f"  ({', '.join(info.in_epochs)} for {info.epochs} epochs of training; 'compare', "
            "'tune' and 'train' scale them to --epochs unless you give them)"
        )


def datasets(options: Namespace) -> None:
    """Lists the data sets, shows one, or looks whether a folder holds it."""
    from evenly.data import DATASETS
    from evenly.data.raw.sets import SETS
    from evenly.spec import parse

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
    """Says what of a data set is in a folder."""
    from evenly.data.raw.sets.official import check

    source = _official(text, folder)
    found = check(source)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    for split, (whole, count) in found.splits.items():
        print(f"{split:6} {whole:,} of {count:,} samples that are listed or found are whole")
    if found.missing:
        listed = "".join(f"\n  {path}" for path in found.missing[:5])
        more = f"\n  and {len(found.missing) - 5:,} more" if len(found.missing) > 5 else ""
        raise FileNotFoundError(
            f"{len(found.missing):,} of {found.files:,} files are missing or empty:{listed}{more}"
        )


def report(options: Namespace) -> None:
    """Rebuilds tables and report."""
    from evenly.lab.statistics.projection import project
    from evenly.lab.statistics.tables import table, write_tables

    project(Path(options.folder), options.projection)
    path = write_tables(Path(options.folder), options.projection)
    print(table(Path(options.folder)))
    print(f"\nreport: {path}")
    if options.format:
        from evenly.report import write_formats

        for file in write_formats(Path(options.folder), options.format.split(",")):
            print(f"written: {file}")
    if options.figure:
        from evenly.report import write_picture

        print(f"figure: {write_picture(Path(options.folder), Path(options.figure))}")
    if options.projection_figure:
        from evenly.report import write_projection_picture

        picture = write_projection_picture(
            Path(options.folder), Path(options.projection_figure), projection=options.projection
        )
        print(f"figure: {picture}")


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "compare": compare,
    "tune": tune,
    "study": study,
    "train": train,
    "prepare": prepare,
    "predict": predict,
    "export": export,
    "diagnose": diagnose,
    "report": report,
    "methods": methods,
    "datasets": datasets,
}


def parser() -> "_Parser":
    """The command line."""
    top = _parser(DESCRIPTION)
    top.add_argument("--version", action="version", version=f"evenly {version('evenly')}")
    subcommands = top.add_subcommands(required=True, dest="command")

    def add(name: str, one: _Parser, about: str) -> None:
        subcommands.add_subcommand(name, one, help=about)
        one.prog = f"evenly {name}"  # as it is typed
        top.commands[name] = one

    one = _parser("Trains every method over the seeds, selects by validation, tests once, reports.")
    one.add_argument(
        "--methods",
        default="joint,relearn,ogm_ge",
        help="names, with settings if wanted: 'joint,relearn(every=10,gap=shared)' (every=10 acts "
        "before epochs 11, 21 and 31, from 0; first=10 before 10, 20 and 30); 'evenly "
        "methods' lists them; 'all' is every one, 'unimodal' each modality alone; "
        "'relearn+ogm_ge' runs both in one training, as those may that write different things",
    )
    one.add_argument(
        "--seeds",
        type=int | None,
        help="how many seeds: 0, 1, ... (default: 3, or 1 by --protocol paper)",
    )
    one.add_argument("--out", type=str | None, help="folder for everything (default: runs/DATA)")
    _add_jobs(one)
    one.add_argument(
        "--workers",
        type=str | None,
        help="address of a database, such as postgresql://USER:PASSWORD@HOST/NAME: the same "
        "command, in other processes or on other machines, takes its share of the runs; --out is a "
        "folder that all of them see. What a killed worker was at is taken up by another",
    )
    one.add_argument(
        "--tuned",
        type=_Mapping(),
        help="learning rate, weight decay and own settings by method: not to be written by hand, "
        "but given with all else as --config FOLDER/best.yaml, the file that 'evenly tune' writes",
    )
    one.hints["tuned"] = dict[str, Any] | None
    one.add_argument(
        "--settings",
        type=Literal["common", "published"],
        default="common",
        help="common: all methods train alike, with the defaults of their own settings; published: "
        "each as its authors publish it for this data set (CREMA-D, Kinetics-Sounds), and as given "
        "here where they do not",
    )
    _add_training(one)
    add("compare", one, "the main job: methods over seeds, with a report")

    one = _parser(TUNE)
    one.add_argument(
        "--methods",
        default="joint,relearn,ogm_ge",
        help="as 'evenly compare' takes them; settings given, as in 'relearn(every=5)', stay",
    )
    one.add_argument("--trials", type=int, default=20, help="of each method")
    one.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="runs of each trial, with seeds from 0 on, whose mean counts",
    )
    one.add_argument("--seed", type=int, default=0, help="of the search")
    one.add_argument(
        "--out",
        type=str | None,
        help="folder for everything, whose name is that of the search in the database (default: "
        "runs/DATA-tune)",
    )
    one.add_argument(
        "--jobs",
        type=int | None,
        help="trials at the same time (default: cores / threads, or 1 on a GPU)",
    )
    one.add_argument(
        "--storage",
        type=str | None,
        help="address of the database, such as postgresql://USER:PASSWORD@HOST/NAME, which other "
        "machines reach, too (default: FOLDER/tune.db, of SQLite, for processes of one machine)",
    )
    _add_training(one)
    add("tune", one, "the best settings of each method, equal budgets")

    one = _parser("Repeats an experiment of the paper on any data: table, picture and report.")
    one.add_argument("name", nargs="?", help="a study; without one, all are listed")
    one.add_argument(
        "--seeds",
        type=int | None,
        help="how many seeds: 0, 1, ... (default: 5, or 1 by --protocol paper)",
    )
    one.add_argument("--out", type=str | None, help="folder (default: runs/DATA-STUDY)")
    _add_jobs(one)
    _add_training(one)
    add("study", one, "an experiment of the paper: table and picture")

    one = _parser("One run, with checkpoints.")
    one.add_argument("--method", default="relearn", help="name, with settings if wanted")
    one.add_argument("--seed", type=int, default=0, help="of weights and order of the data")
    one.add_argument("--out", type=str | None, help="its folder (default: runs/DATA/METHOD-SEED)")
    one.add_argument("--resume", action="store_true", help="continue the run in the folder")
    _add_training(one)
    add("train", one, "one run, with checkpoints")

    one = _parser(f"Decodes raw files once, into a store that training reads fast.\n\n{TABLE}")
    one.add_argument(
        "source",
        help="a table, .csv, .tsv or .parquet; or a data set by name, with settings if wanted, "
        "such as 'cremad(split=actors)' ('evenly datasets' lists them)",
    )
    one.add_argument("--out", required=True, help="the store's folder; then: --data FOLDER")
    one.add_argument("--workers", type=int | None, help="processes that decode (default: cores)")
    _add_reading(one)
    add("prepare", one, "raw files to a store, decoded once")

    one = _parser(
        "Predictions of a trained run: a line for each sample, the classes' probabilities."
    )
    one.add_argument("run", help="folder of a run, such as runs/digits/runs/joint-0")
    one.add_argument(
        "--data",
        required=True,
        help="what 'evenly compare --data' takes; labels may be missing from a table or .npz file, "
        "and so may modalities",
    )
    one.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="of data that have one"
    )
    one.add_argument("--without", type=str | None, help="modalities to leave out: audio,text")
    _add_skipping(one)
    _add_trust(one, "the run")
    one.add_argument("--out", type=str | None, help="a .csv file (default: the screen)")
    add("predict", one, "predictions of a trained run, as CSV")

    one = _parser("Writes a trained run as a torch.export program, which needs torch alone.")
    one.add_argument("run", help="folder of a run, such as runs/digits/runs/joint-0")
    one.add_argument("--out", default="model.pt2", help="the program")
    _add_trust(one, "the run")
    add("export", one, "a trained run as a program for torch alone")

    one = _parser(f"Purity, gap and strength of features from any model. No training.\n\n{NPZ}")
    one.add_argument("file", help=".npz of features, one vector per sample and modality")
    one.add_argument(
        "--gap", default="paper", choices=("paper", "matched", "shared"), help="the estimator"
    )
    one.add_argument("--restarts", type=int, default=10, help="of each k-means")
    one.add_argument(
        "--sample", type=int | None, help="rows that the restarts see, where a split has more"
    )
    one.add_argument("--seed", type=int, default=0, help="of the clusterings")
    add("diagnose", one, "how well the encoders of any model are learnt")

    one = _parser("Rebuilds results.csv, summary.csv and report.html from the finished runs.")
    one.add_argument("folder", help="what 'evenly compare --out' wrote")
    one.add_argument("--figure", type=str | None, help="draw the main figure here: .svg or .png")
    one.add_argument(
        "--projection",
        default="tsne",
        choices=("tsne", "umap"),
        help="how the report lays the encoders' features out in the plane; umap needs "
        "'evenly[umap]'",
    )
    one.add_argument(
        "--projection_figure",
        type=str | None,
        help="draw the features of joint training and the first method that re-learns here: .svg "
        "or .png",
    )
    one.add_argument(
        "--format",
        type=str | None,
        help="for papers and programs, into the folder: md,latex,csv,json,png,svg",
    )
    add("report", one, "rebuild tables and report of a comparison")

    for name, what in (("methods", "method"), ("datasets", "data set")):
        one = _parser(f"Lists every {what}, or shows one.")
        one.add_argument("name", nargs="?", help=f"a {what} to show")
        if name == "datasets":
            one.add_argument("folder", nargs="?", help="a folder, to see if the files are there")
        add(name, one, f"list every {what}, or show one")
    return top


class _Parser(ArgumentParser):
    """One command: it knows the type of each option, and says in a sentence what is wrong.

    Attributes:
        hints: The type of each option, by its name.
        commands: By name, the parsers of the commands, if this is the one of all.
    """

    def __init__(self, **settings: Any) -> None:
        self.hints: dict[str, Any] = {}
        self.commands: dict[str, _Parser] = {}
        super().__init__(prog="evenly", allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """As argparse has it."""
        added = super().add_argument(*names, **settings)
        usual: Any = str | None if settings.get("nargs") == "?" else str
        flag = settings.get("action") == "store_true"
        self.hints[added.dest] = bool if flag else settings.get("type", usual)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and ends the command."""
        one = getattr(ex, "subcommand_parser", None) or self
        key = re.search(r'Parser key "([^"]+)"', message)
        value = re.search(r"(?:Given value|Got value): (.*)", message)
        if key and value:
            takes = wanted(one.hints[key[1].partition(".")[0]])
            said = f"--{key[1]} takes {takes}, found {hidden_argument(value[1])!r}."
        else:
            names = "|".join(self.commands) or "(?!)"  # a command has none of its own
            said = re.sub(rf"\b({names})\.(?=\w)", "", hidden(message.strip()))
            said = f"{said.rstrip('.')}. 'evenly COMMAND --help' tells what it takes."
        print(f"evenly: {said}", file=sys.stderr)
        sys.exit(2)


def _parser(description: str) -> _Parser:
    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the line breaks of a description."""

    return _Parser(description=description, formatter_class=Formatter)


class _Mapping:
    """A mapping of any values; where the type says so, jsonargparse imports classes named in it."""

    def __call__(self, given: Any) -> Any:
        try:
            found = load_yaml(given) if isinstance(given, str) else given
            return converted("it", found, dict[str, Any] | None)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    def __repr__(self) -> str:  # as --help shows it
        return "mapping"


def _add_jobs(one: ArgumentParser) -> None:
    one.add_argument(
        "--jobs",
        type=int | None,
        help="runs at the same time; figures do not depend on it (default: cores / threads, or 1 "
        "on a GPU)",
    )


def _add_training(one: _Parser) -> None:
    one.add_class_arguments(Training, as_group=False)
    one.hints |= get_type_hints(Training)
    one.add_argument(
        "--config",
        action="config",
        help="a YAML file of these settings, which other options change, such as what "
        "--print_config prints",
    )
    _add_trust(one, "the file of --config")
    one.add_argument(
        "--logger",
        default="tensorboard",
        help="tensorboard, wandb, mlflow, or several with commas: settings, metrics of each epoch "
        "and what a run ends with. Weights & Biases stays offline, in the folder's wandb "
        "('wandb sync' sends it), unless WANDB_MODE=online; MLflow writes the folder's mlflow.db, "
        "unless MLFLOW_TRACKING_URI is another place",
    )
    one.add_argument(
        "--recipe",
        type=str | None,
        help="published settings of a data set, which other options change: "
        f"{', '.join(sorted(RECIPES))}; with --folder, or with --data and a store",
    )
    one.add_argument(
        "--source",
        type=str | None,
        help="a data set by name, as 'evenly prepare' takes it; it and a table as --data are "
        "prepared into a store beside the results",
    )
    _add_reading(one)


def _add_reading(one: ArgumentParser) -> None:
    """How raw files are read."""
    one.add_argument("--folder", type=str | None, help="where the data set's files are")
    one.add_argument(
        "--modalities",
        type=str | None,
        help="the columns of a table that are modalities (default: all)",
    )
    one.add_argument(
        "--readers",
        type=dict[str, str],
        default={},
        help="how a column of a table is read, where it is not as found out: "
        '\'{"audio": "spectrogram(front=mel,seconds=5)"}\'; see "evenly prepare --help"',
    )
    _add_skipping(one)


def _add_trust(one: ArgumentParser, place: str) -> None:
    one.add_argument(
        "--trust",
        action="store_true",
        help=f"import the encoders that {place} names by import path, which runs their code; "
        "say so only of what is your own, or what you have looked at",
    )


def _add_skipping(one: ArgumentParser) -> None:
    one.add_argument(
        "--skip-broken", action="store_true", help="leave out samples whose files are broken"
    )


RECIPES = {path.stem: path for path in (Path(__file__).parent / "lab" / "recipes").glob("*.yaml")}


def _underscored(arguments: Sequence[str]) -> list[str]:
    """Options as they are registered: '--limit-samples' is '--limit_samples'."""
    found = []
    for text in arguments:
        name, equals, value = text.partition("=")
        plain = name.startswith("--")
        option, dot, key = name[2:].partition(".")  # a key is a modality, and stays as it is
        option = option.replace("-", "_").replace("skip_broken", "skip-broken")
        found.append(f"--{option}{dot}{key}{equals}{value}" if plain else text)
    return found


PATHS = ("out", "data", "folder", "run", "file", "figure", "projection_figure")
"""Options that are paths, or may be."""


def parsed(arguments: Sequence[str]) -> Namespace:
    """The options of a command: those given, and where they say nothing, those of files.

    A `~` is the home, which a shell leaves to the program in --out=~/runs, and a file does.
    """
    options = _parsed(arguments)
    one = options[options.command]
    for name in PATHS:
        if isinstance(text := one.get(name), str):
            one[name] = os.path.expanduser(text)
    return options


def _parsed(arguments: Sequence[str]) -> Namespace:
    given = _underscored(arguments)
    for text in given:
        if text != text.encode(errors="replace").decode():
            raise ValueError(f"{text!r} is no text in UTF-8. Give what it names another name.")
    top = parser()
    one = top.commands.get(given[0]) if given else None
    if one is None or "config" not in one.hints:
        return top.parse_args(given)
    given, paths = _taken("--config", given)
    files = {path: _settings(Path(path).expanduser(), given[0], one.hints) for path in paths}
    settings = {name: value for each in files.values() for name, value in each.items()}
    recipes = [*filter(None, [settings.get("recipe")]), *_taken("--recipe", given)[1]]
    if recipes:
        if recipes[-1] not in RECIPES:
            raise unknown("recipe", recipes[-1], sorted(RECIPES))
        settings = _settings(RECIPES[recipes[-1]], given[0], one.hints) | settings
    one.set_defaults(settings)
    options = top.parse_args(given)
    if files and not options[given[0]].trust:
        _check_files(files, options[given[0]].encoders, _named(given))
    return options


def _taken(option: str, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without an option, and the values that it is given."""
    rest, values = [], []
    arguments = iter(given)
    for text in arguments:
        name, equals, value = text.partition("=")
        follows = name == option and not equals
        if name != option or (follows and (value := next(arguments, "")) == ""):
            rest.append(text)  # where it lacks a value, the parser says so
        else:
            values.append(value)
    return rest, values


def _settings(path: Path, command: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command that a file holds."""
    try:
        found = load_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} holds no settings: {error}. Write YAML, 'name: value'."
        ) from error
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else "nothing" if found is None else "a value"
        raise ValueError(f"{path} holds {kind} in place of settings. Write YAML, 'name: value'.")
    known = sorted(hints.keys() - {"help", "config", "print_config"})
    settings = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(f"{path}: {unknown(f'setting of evenly {command}', str(key), known)}")
        if name in settings:
            raise ValueError(f"{path} has '{name}' twice, with a dash and without. Give it once.")
        settings[name] = converted(f"{path}: {name}", numbers(value, hints[name]), hints[name])
    if settings.get("trust"):
        raise ValueError(f"{path} asks to be trusted. Only --trust, typed by yourself, does that.")
    return settings


def _named(given: Sequence[str]) -> set[str]:
    """The encoders that the command line itself names."""
    texts: list[Any] = []
    for at, text in enumerate(given):
        option, equals, value = text.partition("=")
        if option.startswith("--encoders"):
            value = value if equals else "".join(given[at + 1 : at + 2])
            asked = value if "." in option else load_yaml(value)
            texts += asked.values() if isinstance(asked, dict) else [asked]
    return {parse(str(text)).name for text in texts}


def _check_files(
    files: Mapping[str, Mapping[str, Any]], encoders: Mapping[str, str], named: Collection[str]
) -> None:
    """Raises if an encoder that only a file names is code from elsewhere."""
    for path, settings in files.items():
        theirs = settings.get("encoders", {})
        for name, text in encoders.items():
            if theirs.get(name) == text and parse(text).name not in named:
                typed = shlex.join([f"--encoders.{name}", text])
                check_trusted({name: text}, path, f"add --trust, or {typed}")


def _training(options: Namespace) -> Training:
    names = Training.__dataclass_fields__
    training = Training(**{name: getattr(options, name) for name in names})
    _check_source(training, options)
    return training


def _out(options: Namespace, usual: Path = Path()) -> Path:
    """Where a command writes."""
    return Path(options.out) if options.out else usual


def _jobs(options: Namespace, training: Training) -> int:
    from evenly.lab.many.jobs import default_jobs

    return default_jobs(training.threads) if options.jobs is None else int(options.jobs)


def _seeds(options: Namespace, training: Training, usual: int) -> int:
    """Those asked for; published tables have one."""
    if options.seeds is not None:
        return int(options.seeds)
    return 1 if training.protocol == "paper" else usual


def _several(text: str) -> Callable[[Iterable[str]], list[str]]:
    """The methods that a text asks for, of data with some modalities."""

    def methods(modalities: Iterable[str]) -> list[str]:
        from evenly.lab.run.build import expanded
        from evenly.spec import split

        return expanded(split(text), modalities)

    return methods


def _check_source(training: Training, options: Namespace) -> None:
    """Raises if data, source and folder do not go together."""
    from evenly.data.catalogue import TABLES

    if options.source is not None and options.source.lower().endswith(TABLES):
        raise ValueError(
            f"--source is a data set by name; found {options.source}. Give a table as --data."
        )
    if options.folder is not None and options.source is None:
        raise ValueError("--folder goes with --source, or with a --recipe that names one.")
    if options.folder is not None and training.data != Training.data:
        raise ValueError(
            f"--folder asks for the files of {options.source}, and --data for {training.data}. "
            "Give one of them."
        )


def _prepared(
    training: Training,
    out: Path,
    options: Namespace,
    methods: Callable[[Iterable[str]], list[str]],
) -> Training:
    """The same training; of a table or a folder, it reads a store made beside its results.

    Args:
        training: As asked for.
        out: The folder of the results.
        options: How raw files are read.
        methods: What is to be trained on data of some modalities; the names are looked at before
            anything is decoded.
    """
    from evenly.data.catalogue import TABLES

    if options.folder is not None:
        source = _source(options.source, options)
    elif training.data.lower().endswith(TABLES):
        source = _source(training.data, options)
    elif options.source is not None and training.data == Training.data:
        raise ValueError(
            f"{options.source}: say where its files are, with --folder, or give the store that "
            "'evenly prepare' made of them, with --data."
        )
    else:
        _check_reading(training.data, options)
        return training
    _check_asked(training, source, options, methods)
    if getattr(options, "workers", None) or getattr(options, "storage", None):
        raise ValueError(
            "several workers read one store: make it first, with 'evenly prepare', and give it as "
            "--data."
        )
    if training.limit_samples is not None:
        source = source.limited(training.limit_samples)
    _store(source, out / "store", None, options.skip_broken)
    return replace(training, data=str(out / "store"))


def _check_asked(
    training: Training,
    source: "Source",
    options: Namespace,
    methods: Callable[[Iterable[str]], list[str]],
) -> None:
    """Raises if a method, an encoder or the like is unknown, or a number cannot be."""
    from evenly.lab.run.build import check_names
    from evenly.lab.run.settings import Cell

    check_counts(**{name: getattr(options, name, None) for name in ("seeds", "jobs", "trials")})
    for method in methods(source.readers):
        check_names(Cell(training, method, 0), source.name, source.readers)


def _short(options: Namespace, training: Training) -> str:
    """A folder name: the recipe's, or the data set's, or that of its file or folder.

    A trial on few samples has a folder of its own.
    """
    from evenly.data.catalogue import TABLES

    data = options.recipe or (options.source if options.folder else training.data)
    file = data.lower().endswith((".npz", *TABLES))
    name = Path(data).stem if file else Path(data.partition("(")[0]).name
    return name if training.limit_samples is None else f"{name}-{training.limit_samples}"


if __name__ == "__main__":
    sys.exit(main())
