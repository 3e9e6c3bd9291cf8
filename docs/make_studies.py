"""Writes docs/studies.md: the paper's experiments on real data, with their commands and pictures.

    python docs/make_studies.py [--data ../shared/data] [--work runs/studies] [--only figure4]

Stopped and started again it goes on where it was, and takes the runs that `make results` has made
beside it (../results). Takes hours on two cores, fewer after these.
"""

import argparse
import shlex
import shutil
from pathlib import Path

import yaml
from make_results import EVENLY, HERE, SEEDS, SETS, converted, precision, run

from evenly.lab.many.studies import STUDIES

ALL = [name for name, *_ in SETS]
# By study, the data sets and what each asks for beyond the set's own options.
PLAN = {
    "diagnosis": {name: [] for name in ALL},
    "figure4": {name: [] for name in ALL},
    "figure5": {name: [] for name in ALL},
    "figure1": {name: [] for name in ALL},
    "figure3": {"cremad_votes": [], "cmu_mosi": [], "av_digits": []},
    "table": {name: [] for name in ALL},
    "scarce": {
        "cremad_votes": ["--noise.audio", "4"],
        "cmu_mosi": ["--noise.video", "4"],
        "av_digits": ["--noise.speech", "2"],
        "htad": ["--noise.audio", "4"],
        "watch_exercises": ["--noise.gyroscope", "4"],
    },
    "modalities": {"cmu_mosi": [], "leaves": [], "breast_cancer": []},
    "transformers": {"cmu_mosi_words": [], "ravdess_av": ["--seeds", "3"], "av_digits": []},
}
OWN_FOLDER = ("scarce", "transformers")  # trained otherwise than the rest
MARK = "<!-- studies: make studies -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "studies")
    parser.add_argument("--only", choices=PLAN, help="run this study and write no page")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        section(arguments, arguments.only)
        return
    parts = [data(), *(section(arguments, study) for study in PLAN)]
    page = HERE / "studies.md"
    written, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(written + MARK + "\n\n" + "\n".join(parts), encoding="utf-8")
    print(page)


def data():
    """What the data sets are, and how each is made."""
    lines = ["## The data", ""]
    for name, options, _, about in [*SETS, *MORE]:
        convert = shlex.join(["python", f"examples/convert_{name}.py", f"{name}.npz", *options])
        lines += [f"- `{name}`, by `{convert}`: {about}"]
    return "\n".join([*lines, ""])


def section(arguments, study):
    """A study on each of its data sets."""
    known = STUDIES[study]
    lines = [f"## {known.title[0].upper()}{known.title[1:]}", "", f"`evenly study {study}` shows "]
    lines[-1] += f"{known.shows}."
    for name, own in PLAN[study].items():
        lines += ["", *of_set(arguments, study, name, own)]
    return "\n".join([*lines, ""])


def of_set(arguments, study, name, own):
    """Runs a study on a data set; its command, picture and table."""
    _, options, training, _ = next(entry for entry in [*SETS, *MORE] if entry[0] == name)
    file = converted(arguments.data, arguments.work, name, options)
    out = arguments.work / (f"{name}-{study}" if study in OWN_FOLDER else name)
    done = arguments.work.parent / "results" / name
    if study not in OWN_FOLDER and done.exists() and not out.exists():
        shutil.copytree(done, out)
    seeds = [] if "--seeds" in own else ["--seeds", str(SEEDS)]
    command = ["study", study, *seeds, *training, *own]
    run([EVENLY, *command, "--data", file, "--out", out])
    picture = HERE / "studies" / f"{study}-{name}.svg"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(out / f"{study}.svg", picture)
    shown = shlex.join(["evenly", *command, "--data", f"{name}.npz"])
    table, _, _ = (out / f"{study}.md").read_text(encoding="utf-8").partition("\n\n")
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    machine = f"{config['hardware']}; torch {config['versions']['torch']}; {precision(out)}."
    alt = f"{STUDIES[study].title}, {name}"
    return [f"### {name}: {study}", "", "```sh", shown, "```", "",
            f"![{alt}](studies/{picture.name})", "", table, "", machine]  # fmt: skip


# As make_results.SETS, of data that only studies use.
MORE = [
    (
        "breast_cancer",
        [],
        ["--epochs", "60"],
        "Ten measurements of cell nuclei: their means, deviations and worst values as three "
        "modalities of 569 tumours, two classes (scikit-learn's copy of the Wisconsin data).",
    ),
    (
        "cmu_mosi_words",
        [],
        ["--epochs", "20", "--width", "32"],
        "Words and sound of CMU-MOSI on its standard folds, 1,284 / 229 / 686 utterances, two "
        "classes: neither has seen a label before.",
    ),
]

if __name__ == "__main__":
    main()
