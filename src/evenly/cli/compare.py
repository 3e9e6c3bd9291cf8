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

HELP = "the main job: methods over seeds, with a report"


def arguments() -> Parser:
    """What it takes."""
    one = Parser("Trains every method over the seeds, selects by validation, tests once, reports.")
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
    add_pool(one)
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
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Trains, and prints the table and where the report is."""
    from evenly.lab.many.compare import compare
    from evenly.lab.many.local import forker
    from evenly.lab.many.pools import followed
    from evenly.lab.many.tuned import Tuning
    from evenly.lab.run.logs import Logs
    from evenly.lab.statistics.tables import table

    training = training_of(options)
    pool = pool_of(options)
    forker()
    if followed(training, options.cluster):
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
            raise UserError("--settings published goes without --tuned, which names others.")
        own = "published"
    report = compare(options.methods, seeds, training, out, pool, own, logs)
    print(table(out))
    print(f"\nreport: {report}")


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
