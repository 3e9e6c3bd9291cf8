"""evenly study: repeats an experiment of the paper on any data."""

import textwrap
from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import prepared
from evenly.cli.training import (
    add_pool,
    add_training,
    folder_name,
    methods_in,
    out_folder,
    pool_of,
    seeds_of,
    training_of,
)
from evenly.suggest import unknown


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Repeats an experiment of the Diagnosing & Re-learning paper (Wei et al., ECCV 2024) on\n"
        "any data, with table, figure and report."
    )
    one.add_argument("name", nargs="?", help="the study; leave it out to list all")
    one.add_argument(
        "--seeds",
        type=int | None,
        help="number of seeds: 0 to N - 1 (default: 5; 1 with --protocol paper)",
    )
    one.add_argument(
        "--out", type=str | None, help="folder of all results (default: runs/DATA-STUDY)"
    )
    add_pool(one)
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Prints the list, or makes one and prints its table."""
    from evenly.lab.many.compare import compare
    from evenly.lab.many.local import forker
    from evenly.lab.many.pools import followed
    from evenly.lab.many.studies import STUDIES, planned, write_study
    from evenly.lab.run.logs import Logs

    if options.name is None:
        for name, known in STUDIES.items():
            print(f"{name:13} {known.title}")
            print(textwrap.indent(textwrap.fill(f"{known.shows}.", 78), " " * 14))
        print("\n'evenly study NAME --data D' runs one on any data.")
        return
    if options.name not in STUDIES:
        raise unknown("study", options.name, STUDIES)
    asked = STUDIES[options.name]
    training = training_of(options)
    pool = pool_of(options)
    forker()
    if followed(training, options.cluster, options.jobs, options.runs_per_device):
        return
    given = folder_name(options, training)
    out = out_folder(options, Path("runs") / f"{given}-{options.name}")
    logs = Logs.of(options.logger, out)
    training = prepared(training, out, options, methods_in(asked.methods(training)))
    training, methods = planned(asked, training, options.given)
    seeds = seeds_of(options, training, 5)
    report = compare(",".join(methods), seeds, training, out, pool, logs=logs)
    files = write_study(options.name, out, methods)
    print(files[0].read_text(encoding="utf-8"))
    print(f"{asked.title}: {', '.join(map(str, files))}\nreport: {report}")
