"""evenly report: rebuilds the tables and the report of a comparison."""

from pathlib import Path

from jsonargparse import Namespace

from evenly.cli.parser import Parser


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser("Rebuilds results.csv, summary.csv and report.html from the finished runs.")
    one.add_argument("folder", help="the folder that 'evenly compare --out' wrote")
    one.add_argument("--figure", type=str | None, help="draw the main figure here: .svg or .png")
    one.add_argument(
        "--projection",
        default="tsne",
        choices=("tsne", "umap"),
        help="how the report projects the encoders' features to two dimensions; umap needs "
        "pip install '.[umap]' in evenly's clone",
    )
    one.add_argument(
        "--projection_figure",
        type=str | None,
        help="draw the features of joint training and of the first method that re-learns here: "
        ".svg or .png",
    )
    one.add_argument(
        "--format",
        type=str | None,
        help="also write tables and figures for papers and programs into the folder: "
        "md,latex,csv,json,png,svg",
    )
    return one


def run(options: Namespace) -> None:
    """Rebuilds everything, draws the requested figures, and prints the table and the files."""
    from evenly.lab.statistics.projection import project
    from evenly.lab.statistics.tables import table, write_tables

    project(Path(options.folder), options.projection)
    path = write_tables(Path(options.folder), options.projection)
    print(table(Path(options.folder)))
    print(f"\nreport: {path}")
    if options.format:
        from evenly.report import write_formats

        for file in write_formats(Path(options.folder), options.format.split(",")):
            print(f"written: {file}")
    if options.figure:
        from evenly.report import write_picture

        print(f"figure: {write_picture(Path(options.folder), Path(options.figure))}")
    if options.projection_figure:
        from evenly.report import write_projection_picture

        picture = write_projection_picture(
            Path(options.folder), Path(options.projection_figure), projection=options.projection
        )
        print(f"figure: {picture}")
