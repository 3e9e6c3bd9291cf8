"""Writes docs/studies.md: the paper's experiments on real data, with their commands and pictures.

    python docs/make_studies.py [--data ../shared/data] [--work runs/studies] [--only htad leaves]

Stopped and started again it goes on where it was, and takes the runs that `make results` has made
beside it (../results), also those made anew since. Takes hours on two cores, fewer after these.
With `--only` the other sets keep what the page says of them.
"""

import argparse
import re
import shlex
import shutil
from pathlib import Path

import yaml
from make_results import EVENLY, HERE, SEEDS, SETS, converted, is_current, precision, run

from evenly.lab.many.studies import STUDIES

ALL = [name for name, *_ in SETS]
CHEAP = ["cmu_mosi", "htad", "leaves", "cremad_votes"]
# By study, the data sets and what each asks for beyond the set's own options.
PLAN = {
    "diagnosis": {name: [] for name in [*CHEAP, "ravdess_av"]},
    "figure4": {name: [] for name in ALL},
    "figure5": {name: [] for name in CHEAP},
    "figure1": {name: [] for name in ALL},
    "figure3": {name: [] for name in ("cmu_mosi", "cremad_votes", "av_digits")},
    "table": {name: [] for name in ALL},
    "scarce": {
        "cmu_mosi": ["--noise.video", "4"],
        "htad": ["--noise.audio", "4"],
        "cremad_votes": ["--noise.audio", "4"],
    },
    "modalities": {"cmu_mosi": [], "leaves": [], "breast_cancer": []},
    "transformers": {"cmu_mosi_words": [], "ravdess_av": ["--seeds", "3"]},
}
OWN_FOLDER = ("scarce", "transformers")  # trained otherwise than the rest
PAGE = HERE / "studies.md"
MARK = "<!-- studies: make studies -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "studies")
    names = [name for name, *_ in [*SETS, *MORE]]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SET")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        for study in (study for study, sets in PLAN.items() if name in sets):
            write(name, study, of_set(arguments, study, name, PLAN[study][name]))
    print(PAGE)


def write(name, study, text):
    """Puts what a study says of a data set in its place on the page."""
    written, _, shown = PAGE.read_text(encoding="utf-8").partition(MARK)
    blocks = re.findall(r"^### (.+: .+)\n((?:(?!##).*\n)*)", shown, re.MULTILINE)
    said = {title: f"### {title}\n{block}".strip() for title, block in blocks}
    said[f"{name}: {study}"] = text
    parts = [data({title.partition(":")[0] for title in said})]
    for study, sets in PLAN.items():
        of_sets = [said[title] for name in sets if (title := f"{name}: {study}") in said]
        parts += [heading(study), *of_sets] if of_sets else []
    page = written + MARK + "\n\n" + "\n\n".join(parts) + "\n"
    PAGE.write_text(page, encoding="utf-8")


def data(names):
    """What the data sets are, and how each is made."""
    lines = ["## The data", ""]
    for name, options, _, about in [*SETS, *MORE]:
        convert = shlex.join(["python", f"examples/convert_{name}.py", f"{name}.npz", *options])
        lines += [f"- `{name}`, by `{convert}`: {about}"] if name in names else []
    return "\n".join(lines)


def heading(study):
    known = STUDIES[study]
    title = known.title[0].upper() + known.title[1:]
    return f"## {title}\n\n`evenly study {study}` shows {known.shows}."


def of_set(arguments, study, name, own):
    """Runs a study on a data set; its command, picture and table."""
    _, options, training, _ = next(entry for entry in [*SETS, *MORE] if entry[0] == name)
    file = converted(arguments.data, arguments.work, name, options)
    out = arguments.work / (f"{name}-{study}" if study in OWN_FOLDER else name)
    done = arguments.work.parent / "results" / name
    if study not in OWN_FOLDER and done.exists():
        taken(done, out)
    seeds = [] if "--seeds" in own else ["--seeds", str(SEEDS)]
    command = ["study", study, *seeds, *training.split(), *own]
    run([EVENLY, *command, "--data", file, "--out", out])
    picture = HERE / "studies" / f"{study}-{name}.svg"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(out / f"study-{study}.svg", picture)
    shown = shlex.join(["evenly", *command, "--data", f"{name}.npz"])
    table, _, _ = (out / f"study-{study}.md").read_text(encoding="utf-8").partition("\n\n")
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    what = f"torch {config['versions']['torch']}; precision {precision(out)}"
    machine = f"{config['hardware']}; {what}."
    alt = f"{STUDIES[study].title}, {name}"
    lines = [f"### {name}: {study}", "", "```sh", shown, "```", ""]
    lines += [f"![{alt}](studies/{picture.name})", "", table.strip(), "", machine]
    return "\n".join(lines)


def taken(done, out):
    """Copies a comparison for studies; if they have it, the runs that are finished since."""
    if not out.exists():
        shutil.copytree(done, out)
        return
    for result in sorted((done / "runs").glob("*/result.json")):
        own = out / "runs" / result.parent.name
        if not is_current(own / result.name, result):
            if own.exists():
                shutil.rmtree(own)
            shutil.copytree(result.parent, own)


# As make_results.SETS, of data that only studies use.
MORE = [
    (
        "breast_cancer",
        [],
        "--epochs 60",
        "Ten measurements of cell nuclei: their means, deviations and worst values as three "
        "modalities of 569 tumours, two classes (scikit-learn's copy of the Wisconsin data).",
    ),
    (
        "cmu_mosi_words",
        [],
        "--epochs 20 --width 32",
        "Words and sound of CMU-MOSI on its standard folds, 1,284 / 229 / 686 utterances, two "
        "classes: neither has seen a label before.",
    ),
]

if __name__ == "__main__":
    main()
