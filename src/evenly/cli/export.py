"""evenly export: a trained run as a program that needs only torch."""

from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser, add_trust


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser(
        "Saves a trained run as a torch.export program, which needs only torch and computes in 32 "
        "bits."
    )
    one.add_argument("run", help="the folder of a run, such as runs/digits/runs/joint-0")
    one.add_argument("--out", default="model.pt2", help="file of the program")
    one.add_argument(
        "--without",
        type=str | None,
        help="modalities that the program does not take, because they are missing: audio,text",
    )
    add_trust(one, "the run")
    return one


def run(options: Namespace) -> None:
    """Writes the program."""
    from evenly.lab.trained.export import export
    from evenly.lab.trained.load import load_run

    without = options.without.split(",") if options.without else []
    export(load_run(Path(options.run), trust=options.trust), Path(options.out), without)
    print(f"program: {options.out}")
