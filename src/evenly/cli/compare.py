"""evenly compare: methods over seeds, selected by validation, tested once, with a report."""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Literal

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
from evenly.errors import UserError
from evenly.spec import converted, load_yaml


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Compares methods: trains each with every seed on the same data, selects the epoch on the\n"
        "validation split, reads the test split once, prints a table and writes a report.\n"
        "Without options: three methods on the built-in digits, in a few minutes.\n"
        "Run the same command again to continue after a stop.\n\n"
        "  evenly compare --data my.npz --methods joint,relearn,ogm_ge --seeds 5\n"
        "  evenly compare --data my.npz --methods 'joint,relearn,relearn(gap=shared)'\n"
        "  evenly compare --data my.npz --methods all"
    )
    one.add_argument(
        "--methods",
        default="joint,relearn,ogm_ge",
        help="methods to compare, with settings if you like: 'joint,relearn(every=10,gap=shared)'. "
        "'all' is every method, 'unimodal' each modality alone, 'relearn+ogm_ge' both in one "
        "training (if they write different things; see 'evenly methods NAME')",
    )
    one.add_argument(
        "--seeds",
        type=int | None,
        help="number of seeds: 0 to N - 1 (default: 3; 1 with --protocol paper)",
    )
    one.add_argument("--out", type=str | None, help="folder of all results (default: runs/DATA)")
    add_pool(one)
    one.add_argument(
        "--tuned",
        type=_Mapping(),
        help="learning rate, weight decay and own settings by method, from the best.yaml that "
        "'evenly tune' writes",
    )
    one.unlisted.add("tuned")
    one.hints["tuned"] = dict[str, Any] | None
    one.add_argument(
        "--settings",
        type=Literal["common", "published"],
        default="common",
        help="common (default): all methods share one training, each with its usual settings; "
        "published: each method uses its authors' settings for this data set (CREMA-D, "
        "Kinetics-Sounds), and the common ones where we found none",
    )
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Trains, and prints the table and the report's path."""
    from evenly.lab.many.compare import compare
    from evenly.lab.many.local import forker
    from evenly.lab.many.pools import followed
    from evenly.lab.many.tuned import Tuning
    from evenly.lab.run.logs import Logs
    from evenly.lab.run.prepare import say
    from evenly.lab.statistics.tables import table
    from evenly.report.comparison import doubtful
    from evenly.report.folder import read_curves

    training = training_of(options)
    pool = pool_of(options)
    forker()
    if followed(training, options.cluster, options.jobs, options.runs_per_device):
        return
    out = out_folder(options, Path("runs") / folder_name(options, training))
    logs = Logs.of(options.logger, out)
    training = prepared(training, out, options, methods_in(options.methods))
    seeds = seeds_of(options, training, 3)
    own: Tuning | Literal["published"] | None = None
    if options.tuned is not None:
        own = Tuning.read(options.tuned)
    if options.settings == "published":
        if own is not None:
            raise UserError(
                "--settings published and the tuned settings of best.yaml exclude each other. "
                "Leave one out."
            )
        own = "published"
    report = compare(options.methods, seeds, training, out, pool, own, logs)
    print(table(out))
    print(f"\nreport: {report}")
    begun = sorted(path.parent for path in (out / "runs").glob("*/config.yaml"))
    say(filter(None, [doubtful(map(read_curves, begun))]))


class _Mapping:
    """A mapping of any values; with a type, jsonargparse would import classes named in it."""

    def __call__(self, given: Any) -> Any:
        try:
            found = load_yaml(given) if isinstance(given, str) else given
            return converted("it", found, dict[str, Any] | None)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    def __repr__(self) -> str:  # shown by --help
        return "mapping"
