"""evenly tune: the best settings of each method, with equal budgets."""

import shlex
from dataclasses import asdict
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
    training_of,
)
from evenly.lab.run.settings import own_parts
from evenly.spec import split

HELP = "the best settings of each method, equal budgets"

TUNE = """Tries settings of every method, as many trials for each, and keeps the best by validation
accuracy, or what --select says. The test split is not read.

All methods are tried with learning rates from 1e-4 to 0.1 and weight decays from 1e-6 to 0.01
(Adam and its kin: rates from 1e-5 to 0.01; AdamW and Muon: also decays from 1e-4 to 1), and with
settings of their own, which 'evenly methods NAME' lists. The first trial of each is what you give.
At the end stands the command that compares the methods at their best, on the test split.

Stopped or killed, the same command goes on. With --cluster the runs are done on other machines. Or
the same command is started on each of them, with the same --storage, and takes its share of the
trials: one that is killed loses the trial that it was at, and another takes its place. Each writes
the trials that it does into its own folder, and the same tables in the end. Of the trials, metrics
and logs stay, checkpoints do not. With --jobs 1 and one command, the same search tries the same
settings again.

  evenly tune --data my.npz --methods joint,relearn,ogm_ge --trials 20
  evenly tune --data my.npz --methods all --storage postgresql://me:secret@host/tuning
  evenly tune --data my.npz --methods all --cluster tcp://head:8786"""


def arguments() -> Parser:
    """What it takes."""
    one = Parser(TUNE)
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
    add_pool(one)
    one.add_argument(
        "--storage",
        type=str | None,
        help="address of the database of the search, such as postgresql://USER:PASSWORD@HOST/NAME, "
        "which commands on other machines share (default: FOLDER/tune.db, of SQLite, for commands "
        "on one machine)",
    )
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Searches; prints what was best, and the command that compares the methods with it."""
    from evenly.lab.many.compare import named
    from evenly.lab.many.local import forker
    from evenly.lab.many.pools import followed
    from evenly.lab.many.trials import Search
    from evenly.lab.many.tune import tune
    from evenly.lab.run.logs import Logs

    training = training_of(options)
    pool = pool_of(options)
    forker()
    if followed(training, options.cluster):
        return
    out = out_folder(options, Path("runs") / f"{folder_name(options, training)}-tune")
    logs = Logs.of(options.logger, out)
    training = prepared(training, out, options, methods_in(options.methods))
    methods, _ = named(split(options.methods), training)
    search = Search(training, methods, options.trials, options.seeds, options.seed, out, logs)
    print(tune(search, pool, options.storage))
    best = ["--config", str(out / "best.yaml"), "--out", str(out / "compare")]
    if own_parts({**asdict(training), "methods": options.methods}):
        best.append("--trust")  # of code that has just run
    print(f"\nevery trial: {out / 'tune.csv'}, {out / 'tune.html'}")
    print("the best of each method against each other, on the test split:")
    print(f"evenly compare {shlex.join(best)} --seeds 5")
