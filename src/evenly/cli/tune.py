"""evenly tune: searches for the best settings of each method, on equal budgets."""

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

TUNE = """Searches for the best settings of each method, with the same number of trials for all, by
validation accuracy or the metric of --select. It never reads the test split.

The search covers learning rates from 1e-4 to 0.1 and weight decays from 1e-6 to 0.01 (for Adam and
its relatives rates from 1e-5 to 0.01; for AdamW and Muon also decays from 1e-4 to 1), and settings
of the methods themselves, which 'evenly methods NAME' lists. The first trial uses your settings. At
the end, it prints the command that compares the tuned methods on the test split.

Run the same command again to continue after a stop. To use several machines, give --cluster, or
start the same command on each of them with the same --storage: each takes a share of the trials,
writes them to its own folder, and ends with the same tables. If one is killed, its trial is lost
and another replaces it. Metrics and logs of trials are kept, checkpoints are not. With one command
and --jobs 1, a search can be repeated exactly.

  evenly tune --data my.npz --methods joint,relearn,ogm_ge --trials 20
  evenly tune --data my.npz --methods all --storage postgresql://me:secret@host/tuning
  evenly tune --data my.npz --methods all --cluster tcp://head:8786"""


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(TUNE)
    one.add_argument(
        "--methods",
        default="joint,relearn,ogm_ge",
        help="methods as for 'evenly compare'; settings you give, 'relearn(every=5)', stay fixed",
    )
    one.add_argument("--trials", type=int, default=20, help="trials per method")
    one.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="runs per trial, with seeds 0, 1, ...; their mean counts",
    )
    one.add_argument("--seed", type=int, default=0, help="seed of the search")
    one.add_argument(
        "--out",
        type=str | None,
        help="folder of all results; its name is the name of the search in the database (default: "
        "runs/DATA-tune)",
    )
    add_pool(one)
    one.add_argument(
        "--storage",
        type=str | None,
        help="database of the search, such as postgresql://USER:PASSWORD@HOST/NAME, to share it "
        "between machines (default: an SQLite file in the output folder, for one machine)",
    )
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Searches; prints the best settings, and the command that compares the methods with them."""
    from evenly.lab.many.compare import named
    from evenly.lab.many.local import forker
    from evenly.lab.many.pools import followed
    from evenly.lab.many.trials import Search
    from evenly.lab.many.tune import tune
    from evenly.lab.run.logs import Logs

    training = training_of(options)
    pool = pool_of(options)
    forker()
    if followed(training, options.cluster, options.jobs, options.runs_per_device):
        return
    out = out_folder(options, Path("runs") / f"{folder_name(options, training)}-tune")
    logs = Logs.of(options.logger, out)
    training = prepared(training, out, options, methods_in(options.methods))
    methods, _ = named(split(options.methods), training)
    search = Search(training, methods, options.trials, options.seeds, options.seed, out, logs)
    print(tune(search, pool, options.storage))
    best = ["--config", str(out / "best.yaml"), "--out", str(out / "compare")]
    if own_parts({**asdict(training), "methods": options.methods}):
        best.append("--trust")  # for code that has just run
    print(f"\nall trials: {out / 'tune.csv'}, {out / 'tune.html'}")
    print("to compare the tuned methods on the test split:")
    print(f"evenly compare {shlex.join(best)} --seeds 5")
