"""Writes the tables of docs/results.md, all methods on real data, and the verdicts in checkup.md.

    python docs/make_results.py [--data ../shared/data] [--work runs/results] [--only htad leaves]

Stopped and started again it goes on where it was. It makes a checkup anew if its runs or evenly
have changed. Takes hours on two cores. With `--only` the other sets keep what the pages say of
them.
"""

import argparse
import csv
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import rankdata

import evenly
from evenly.data import load
from evenly.lab.statistics.paired import holm

HERE = Path(__file__).parent
EVENLY = Path(sys.executable).with_name("evenly")

# Data set, options of its converter and of the comparison, and what a reader must know of it; the
# cheap ones first.
SETS = [
    (
        "cmu_mosi",
        [],
        "--epochs 60",
        "Text, audio and video vectors of 2,199 utterances, two classes: 1,447 / 255 / 497. The "
        "text and video vectors were learnt with labels on the training videos, so validation is "
        "taken from the test videos, by video.",
    ),
    (
        "htad",
        [],
        "--epochs 60 --diagnose_every 20",
        "Statistics of sound and of a wrist's acceleration in windows of seven home tasks: "
        "831 / 207 / 348, contiguous parts of each recording. One standard error of the test "
        "split is 2.2 points.",
    ),
    (
        "leaves",
        [],
        "--epochs 60 --diagnose_every 30",
        "Margin, shape and texture of the leaves of 100 species: 1,000 / 200 / 400, ten leaves of "
        "each to learn from. The three say different things.",
    ),
    (
        "cremad_votes",
        [],
        "--epochs 30 --diagnose_every 10",
        "What listeners heard and viewers saw in CREMA-D's clips (votes, not sound and video), on "
        "the paper's split: 5,954 / 744 / 744, six emotions.",
    ),
    (
        "watch_exercises",
        [],
        "--epochs 12 --width 16 --diagnose_every 4",
        "Accelerometer and gyroscope of a smartwatch, windows of 128 steps, seven shoulder "
        "exercises, subjects apart: 1,044 / 397 / 392. Only two subjects test: they differ more "
        "than methods do.",
    ),
    (
        "emoji_tags",
        [],
        "--epochs 10 --width 32 --lr 0.03 --diagnose_every 3",
        "Pictures of emoji and the words that describe them, without those that name a category, "
        "nine categories, variants apart: 1,334 / 190 / 382.",
    ),
    (
        "ravdess_av",
        [],
        "--epochs 10 --width 32 --lr 0.03 --diagnose_every 3",
        "Speech spectrogram and facial action units, eight emotions, actors apart: "
        "944 / 240 / 240. One standard error of the test split is 3.2 points.",
    ),
    (
        "av_digits",
        ["--snr", "-5"],
        "--epochs 6 --width 32 --lr 0.03 --limit_samples 2000 --diagnose_every 2",
        "Spoken digits with white noise at -5 dB and handwritten digits, ten classes: "
        "2,000 of 6,000 / 1,000 / 1,500. The pairs are artificial: different people spoke and "
        "wrote.",
    ),
]
METRICS = ("accuracy", "macro_f1", "loss")
METHODS = "all,relearn(gap=stable)"
RULE = ("remedy", "relearn", "relearn(gap=stable)", "multi_loss")
SHOWN = ("joint", "relearn")  # whose purities are shown
SEEDS = 5
# What stands before this line is written by hand, what follows by this program.
MARK = "<!-- tables: make results -->"
PAGE = HERE / "results.md"
# A modality's row in the table of a checkup: its name, four figures with intervals, its verdict.
CHECKED = re.compile(r"^\| (\S+) (?:\| \S+ \[.+?\] ){4}\| (\S+) \|$", re.MULTILINE)
CHECKUP = HERE / "checkup.md"  # the verdicts stand between these marks
VERDICTS, END = "<!-- verdicts: make results -->", "<!-- end -->"
NUMBERS = HERE / "results"  # a file of numbers for each set, of which the overview is made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "results")
    names = [name for name, *_ in SETS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SET")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for one in SETS:
        if one[0] in arguments.only:
            write(one[0], section(arguments, *one))
    print(PAGE)


def write(name, text):
    """Puts what is said of a data set in its place on the page, and makes the overview anew."""
    written, _, tables = PAGE.read_text(encoding="utf-8").partition(MARK)
    said = {part.partition("\n")[0]: f"## {part}" for part in tables.split("\n## ")[1:]}
    said[name] = text
    found = {one: summary(kept(one)) for one, *_ in SETS if kept(one).exists()}
    decided = [rule(found)] if len(found) == len(SETS) else []  # which is of all sets
    parts = [glance(found), *decided, *(said[one] for one, *_ in SETS if one in said)]
    page = written + MARK + "\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"
    PAGE.write_text(page, encoding="utf-8")
    before, _, rest = CHECKUP.read_text(encoding="utf-8").partition(VERDICTS)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(
            f"{CHECKUP} lacks {VERDICTS} or {END}. Put both where the verdicts belong."
        )
    page = f"{before}{VERDICTS}\n\n{judged(said)}\n\n{end}{after}"
    CHECKUP.write_text(page, encoding="utf-8")


def judged(said):
    """The verdicts on the modalities of each set, taken from what is said of it."""
    lines = ["| data set | verdicts |", "| --- | --- |"]
    for name, *_ in SETS:
        if rows := CHECKED.findall(said.get(name, "")):
            verdicts = ", ".join(f"{modality} {verdict}" for modality, verdict in rows)
            lines.append(f"| [{name}](results.md#{name}) | {verdicts} |")
    return "\n".join(lines)


def section(arguments, name, options, training, about):
    """Converts, compares, and puts one data set's table into words."""
    file = converted(arguments.data, arguments.work, name, options)
    out = arguments.work / name
    command = comparison(METHODS, SEEDS, training)
    compared([EVENLY, *command, "--data", file, "--out", out], out)
    keep(out / "summary.csv", kept(name))
    shown = [
        shlex.join(["python", f"examples/convert_{name}.py", f"{name}.npz", *options]),
        shlex.join(["evenly", *command, "--data", f"{name}.npz", "--out", name]),
    ]
    config = settings(out)
    lines = [f"## {name}", "", about, "", "```sh", *shown, "```", "", *table(out, config), ""]
    lines += verdicts(out)
    lines += relearnings(out, config)
    lines += learnt(out, config)
    lines += [shares(file), ""]
    what = f"torch {config['versions']['torch']}; precision {precision(out)}"
    lines += [f"{config['hardware']}; {what}.", ""]
    return "\n".join(lines)


def comparison(methods, seeds, training):
    """The arguments of a set's comparison, without data and folder."""
    return ["compare", "--methods", methods, "--seeds", str(seeds), *training.split()]


def converted(data, work, name, options):
    """The .npz file of a data set."""
    file = work / f"{name}.npz"
    source = [data / name] if (data / name).is_dir() else []  # else scikit-learn brings it
    run([sys.executable, HERE.parent / f"examples/convert_{name}.py", *source, file, *options])
    return file


def run(command):
    subprocess.run([str(part) for part in command], check=True)


def compared(command, out):
    """Runs a comparison, of which runs may have diverged, but not failed otherwise."""
    done = subprocess.run([str(part) for part in command], check=False)
    errors = [path.read_text(encoding="utf-8") for path in out.glob("runs/*/error.txt")]
    if done.returncode and not (errors and all("diverged" in error for error in errors)):
        raise SystemExit(f"evenly compare ended with {done.returncode}, see above")


def kept(name):
    """The file of a set's numbers."""
    return NUMBERS / f"{name}.csv"


def keep(summary, path):
    """Writes the rows of a summary.csv that the page is made of."""
    with summary.open(encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    split, metric = head.index("split"), head.index("metric")
    shown = [row for row in rows if row[split] == "test" and row[metric].startswith(METRICS)]
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *shown])


def glance(found):
    """Every method that uses all modalities on every set, the best mean rank first."""
    names = list(found)
    lines = ["## At a glance", ""]
    lines += [
        "Points of test accuracy against joint training, the best mean rank first. Bold: p is "
        "below .05 after correction. †: the 95 % interval, which is not corrected, excludes 0. "
        f"As files: {', '.join(f'[{name}](results/{name}.csv)' for name in names)}.",
        "",
    ]
    lines += [f"| method | {' | '.join(names)} | above, below | mean rank |"]
    lines += ["|" + " --- |" * (len(names) + 3)]
    for method, rank in mean_ranks(found).items():
        cells = [cell(found[name].get((method, "accuracy"))) for name in names]
        signs = [sum(is_away(text, sign) for text in cells) for sign in "+-"]
        ends = [f"{signs[0]}, {signs[1]}", f"{rank:.1f}"]
        lines.append(f"| {' | '.join([method, *cells, *ends])} |")
    return "\n".join(lines)


def mean_ranks(found):
    """By method, its rank in accuracy, averaged over the sets; the best first."""
    methods = {method for rows in found.values() for method, _ in rows}
    methods = sorted(name for name in methods if not name.startswith("unimodal"))
    places = []
    for rows in found.values():
        of_set = [rows.get((method, "accuracy")) for method in methods]
        # Ties share a rank; what diverged is last.
        places.append(rankdata([-round(float(row["mean"]), 6) if row else 0 for row in of_set]))
    means = zip(methods, np.mean(places, 0), strict=True)
    return dict(sorted(means, key=lambda pair: pair[1]))


def rule(found):
    """The rule that follows from the verdicts, beside what it is made of and the best others."""
    best = [name for name in mean_ranks(found) if name not in ("joint", *RULE)][:3]
    rows = {name: of_few(of_set, [*RULE, *best]) for name, of_set in found.items()}
    lines = ["## Re-learning that uses its diagnosis", ""]
    lines += [
        f"Of the same runs, `remedy`, what it is made of, and the three methods of the best mean "
        f"ranks ({', '.join(f'`{name}`' for name in best)}), which are chosen by these results. "
        f"Marked as above, with p corrected over these {len(RULE) + 3} methods.",
        "",
        f"| method | {' | '.join(found)} | mean |",
        "|" + " --- |" * (len(found) + 2),
    ]
    for method in [*RULE, *best]:
        of_method = [rows[name].get(method) for name in found]
        mean = statistics.mean(float(row["difference"]) if row else math.nan for row in of_method)
        cells = [method, *map(cell, of_method), f"{100 * mean:+.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", recommended([cell(rows[name].get("remedy")) for name in found])])


def recommended(cells):
    """Whether `remedy` is to be recommended, by its differences to joint training on all sets."""
    (above, surely_above), (below, surely_below) = (
        [sum(is_so(text, sign) for text in cells) for is_so in (is_away, is_sure)] for sign in "+-"
    )
    is_it = not below and 2 * surely_above >= len(cells)
    return (
        f"Of {len(cells)} sets, `remedy` is above joint training by an interval that excludes 0 on "
        f"{above}, and after correction on {surely_above}. It is below on {below}, and after "
        f"correction on {surely_below}. We said beforehand that we would recommend it only if it "
        "were nowhere significantly below joint training, and above it on half of the sets. We "
        "read this strictly: no interval below 0, even uncorrected, and half of the sets above "
        f"after correction. By this, we {'recommend' if is_it else 'do not recommend'} it."
    )


def of_few(of_set, methods):
    """The accuracies of some methods, their p corrected over these alone."""
    rows = {method: of_set.get((method, "accuracy")) for method in methods}
    rows = {method: row for method, row in rows.items() if row}
    corrected = holm([float(row["p_value"]) for row in rows.values()])
    return {
        method: {**row, "p_holm": p}
        for (method, row), p in zip(rows.items(), corrected, strict=True)
    }


def cell(row):
    """A difference to joint training, marked by how sure it is."""
    if not row:
        return "diverged"
    if not row["difference"]:
        return ""
    text = f"{100 * float(row['difference']):+.1f}"
    if float(row["p_holm"]) < 0.05:
        return f"**{text}**"
    is_away = float(row["difference_low"]) > 0 or float(row["difference_high"]) < 0
    return f"{text}†" if is_away else text


def is_away(text, sign):
    """Whether a cell has this sign, and an interval that excludes 0."""
    return sign in text and text[-1] in "†*"


def is_sure(text, sign):
    """Whether a cell has this sign, and p below .05 after correction."""
    return text.startswith(f"**{sign}")


def settings(out):
    """The config.yaml of a comparison."""
    return yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))


def summary(path):
    """By method and metric, the rows of a file of numbers, of all seeds only."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["seeds"]) == SEEDS]
    return {(row["method"], row["metric"]): row for row in rows}


def table(out, config):
    """The test metrics of each method, as Markdown."""
    found = summary(kept(out.name))
    modalities = config["modalities"]
    seconds = times(out)
    head = ["method", "accuracy", "95 % interval", "macro-F1"]
    head += [f"{name} alone" for name in modalities] + ["against joint", "p", "time"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for method in config["methods"]:
        if (method, "accuracy") not in found:
            failed = len([*out.glob(f"runs/{method}-*/error.txt")])
            said = f"diverged in {failed} of {SEEDS} seeds"
            lines.append(" | ".join([method, said, *[""] * (len(head) - 2)]))
            continue
        accuracy = found[method, "accuracy"]
        cells = [method, spread(accuracy), f"{percent(accuracy['low'])} to "]
        cells[-1] += percent(accuracy["high"])
        cells += [spread(found[method, "macro_f1"])]
        # a model of one modality has no other
        alone = [found.get((method, f"accuracy/{name}")) for name in modalities]
        cells += [spread(row) if row else "" for row in alone]
        cells += [apart(accuracy)]
        cells += [probability(accuracy["p_holm"])]
        cells += [f"{seconds[method] / seconds['joint']:.1f}x"]
        lines.append(" | ".join(cells))
    return [f"| {line} |" for line in lines]


def times(out):
    """By method, the median seconds of a training, what the method does between epochs included."""
    found = {}
    for path in out.glob("runs/*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["method"], []).append(result["seconds"])
    return {method: statistics.median(values) for method, values in found.items()}


def verdicts(out):
    """What a checkup says of each modality of joint training, over all seeds."""
    folder = out / "checkup"
    runs = [out / "runs" / f"joint-{seed}" for seed in range(SEEDS)]
    rules = Path(evenly.__file__).parent.rglob("*.py")
    if not is_current(folder / "checkup.json", *(one / "result.json" for one in runs), *rules):
        run([EVENLY, "checkup", *runs, "--out", folder])
    found = json.loads((folder / "checkup.json").read_text(encoding="utf-8"))
    lines = [
        f"A [checkup](checkup.md) of joint training (`evenly checkup {out.name}/runs/joint-*`), on "
        "the validation split:",
        "",
        "| modality | there | learnt | used | gap | verdict |",
        "|---" * 6 + "|",
    ]
    for name, finding in found["findings"].items():
        shares = [interval(finding[key], 100) for key in ("there", "learnt", "contribution")]
        cells = [name, *shares, interval(finding["gap"], 1), finding["verdict"]["name"]]
        lines.append(f"| {' | '.join(cells)} |")
    together, best = interval(found["together"], 100), found["best"]
    return [*lines, "", f"The joint model less {best} alone: {together} points.", ""]


def is_current(made, *sources):
    """Whether a file is there, and no older than the files that it is made from."""
    return made.exists() and all(
        made.stat().st_mtime_ns >= one.stat().st_mtime_ns for one in sources
    )


def interval(figure, scale):
    """A figure of a checkup with its interval."""
    places = 1 if scale > 1 else 2
    value, low, high = (f"{scale * figure[key]:.{places}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def relearnings(out, config):
    """Mean strength of each re-learning, by modality."""
    moments = {}
    for folder in sorted((out / "runs").glob("relearn-*")):
        with (folder / "metrics.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name in config["modalities"]:
                    if strength := row.get(f"relearn_strength/{name}"):
                        moments.setdefault((int(row["epoch"]), name), []).append(float(strength))
    lines = ["Strength of the re-learnings (mean over seeds):", ""]
    epochs = sorted({epoch for epoch, _ in moments})
    head = ["before epoch", *map(str, epochs)]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in config["modalities"]:
        means = [sum(moments[epoch, name]) / len(moments[epoch, name]) for epoch in epochs]
        lines.append("| " + " | ".join([name, *(f"{mean:.2f}" for mean in means)]) + " |")
    return [*lines, ""]


def learnt(out, config):
    """Purities and gap of each encoder after the last epoch, by method."""
    keys = ("purity_train", "purity_val", "gap", "gap_error")
    found = {}
    for folder in sorted(f for name in SHOWN for f in (out / "runs").glob(f"{name}-*")):
        with (folder / "metrics.csv").open(encoding="utf-8") as file:
            *_, last = csv.DictReader(file)
        for name in config["modalities"]:
            # Runs made before gaps had errors lack that column.
            values = [float(last.get(f"{key}/{name}", "nan")) for key in keys]
            found.setdefault((folder.name.rpartition("-")[0], name), []).append(values)
    lines = ["After the last epoch (mean over seeds; ±: standard error of one seed's gap):", ""]
    lines += ["| method | modality | purity train | purity validation | gap |", "|---" * 5 + "|"]
    for method in SHOWN:
        for name in config["modalities"]:
            runs = found[method, name]
            means = [sum(values) / len(runs) for values in zip(*runs, strict=True)]
            train, val, gap, error = (f"{mean:.2f}" for mean in means)
            cells = [method, name, train, val, gap if error == "nan" else f"{gap} ± {error}"]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def shares(file):
    """The purity of chance: the share of the largest class in each split."""
    data = load(str(file))
    parts = []
    for name in ("train", "val", "test"):
        target = data.split(name).target
        parts.append(f"{name} {float(target.bincount().max()) / len(target):.2f}")
    return f"Share of the largest class: {', '.join(parts)}."


def precision(out):
    results = [json.loads(p.read_text(encoding="utf-8")) for p in out.glob("runs/*/result.json")]
    return " and ".join(sorted({result["precision"] for result in results}))


def spread(row):
    return f"{percent(row['mean'])} ± {percent(row['std'])}"


def apart(row):
    """The difference to joint training and its interval."""
    if not row["difference"]:
        return ""
    point, *ends = (
        f"{100 * float(row[key]):+.1f}"
        for key in ("difference", "difference_low", "difference_high")
    )
    return f"{point} [{', '.join(ends)}]"


def probability(text):
    if not text:
        return ""
    return "< 0.001" if float(text) < 0.001 else f"{float(text):.3f}"


def percent(value):
    return f"{100 * float(value):.1f}"


if __name__ == "__main__":
    main()
