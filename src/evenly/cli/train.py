"""evenly train: one run, with checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.cli.sources import prepared
from evenly.cli.training import add_training, folder_name, out_folder, training_of
from evenly.errors import UserError, UserRuntimeError
from evenly.files import held

if TYPE_CHECKING:
    from evenly.lab.many.job import Job
    from evenly.lab.run.result import Result


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser("Trains one model, with checkpoints.")
    one.add_argument(
        "--method",
        default="relearn",
        help="a method, with settings if you like, such as 'relearn(every=10)'",
    )
    one.add_argument(
        "--seed", type=int, default=0, help="seed of the initial weights and the order of the data"
    )
    one.add_argument(
        "--out", type=str | None, help="folder of the run (default: runs/DATA/METHOD-SEED)"
    )
    one.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_training(one)
    return one


def run(options: Namespace) -> None:
    """Trains, and prints the metrics of the chosen epoch."""
    from tqdm import tqdm

    from evenly.lab.many.job import Job
    from evenly.lab.many.pools import followed
    from evenly.lab.run.logs import Logs
    from evenly.lab.run.precision import decided
    from evenly.lab.run.prepare import prepare, say
    from evenly.lab.run.result import is_headline
    from evenly.lab.run.run import run_cell
    from evenly.lab.run.settings import CALLED, Cell, check_folder, check_same, read_settings
    from evenly.lab.run.versions import mixed, of_run
    from evenly.metrics import metric_of
    from evenly.report.comparison import PAPER, doubtful
    from evenly.report.folder import read_curves
    from evenly.report.names import in_words

    cell = Cell(training_of(options), options.method, options.seed)
    if followed(cell.training):
        return
    folder = out_folder(options, Path("runs") / folder_name(options, cell.training) / cell.folder)
    check_folder(folder)
    logs = Logs.of(options.logger, folder)
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise UserError(
            f"{folder} is not empty. Continue the run in it with --resume, or choose another "
            "folder with --out."
        )
    cell = replace(
        cell, training=prepared(cell.training, folder, options, lambda _: [options.method])
    )
    known = read_settings(folder / "config.yaml", "method")
    cell, found, decision = decided(cell, known)
    began = cell.as_dict()
    check_same(folder, known, began)
    data, notes = prepare([cell], found)
    logs.prepare()
    say([*notes, *decision, *mixed({folder.name: of_run(folder, known, began)})])
    with held(folder):
        if cell.training.world == 1:
            with tqdm(total=cell.training.epochs, unit="epoch", disable=None) as bar:

                def tell(epoch: int, value: float) -> None:
                    bar.update(epoch + 1 - bar.n)
                    bar.set_postfix_str(f"val {value:.3f}")

                result = run_cell(cell, folder, tell, data, logs=logs, began=began)
        else:
            result = _on_devices(Job(cell, folder, logs, began=began))
    chosen = CALLED[cell.training.selects_on]
    asked, (select, _) = cell.training.epochs, cell.training.selected_by
    if result.epochs < asked:
        print(f"stopped by --patience after {result.epochs} of {asked} epochs")
    print(
        f"best epoch {result.best_epoch} of {result.epochs}, chosen by {chosen} {in_words(select)}"
    )
    for split, metrics in result.metrics.items():
        shown = {x: value for x, value in metrics.items() if is_headline(x) or x == select}
        said = (f"{name} {metric_of(name).written(value)}" for name, value in shown.items())
        print(f"{split:5}", "  ".join(said))
    if cell.training.protocol == "paper":
        print(f"\n{PAPER}")
    print(f"\nrun: {folder}")
    say(filter(None, [doubtful([read_curves(folder)])]))


def _on_devices(job: "Job") -> "Result":
    """A run on several processes; each of them builds its own model."""
    from evenly.lab.many.engine import Listed, carry
    from evenly.lab.many.pools import pool
    from evenly.lab.run.result import Result

    source = Listed([job])
    carry(source, pool(job.cell.training))
    if source.failures:
        ((name, why),) = source.failures.items()
        raise UserRuntimeError(
            f"{name}: {why}. Run the same command again with --resume to continue from its last "
            "checkpoint."
        )
    result = Result.read(job.folder)
    assert result is not None
    return result
