import csv
import json

import pytest
from PIL import Image

from evenly.lab.statistics.tables import table
from evenly.report import FORMATS, write_formats
from evenly.report.folder import read_comparison
from evenly.report.page import _columns

HEAD = [
    "method",
    "accuracy (%)",
    "95 % interval",
    "macro-F1 (%)",
    "top's own logits (%)",
    "bottom's own logits (%)",
    "against joint (points)",
]


def test_every_format_is_a_file_in_the_folder(folder):
    files = write_formats(folder, list(FORMATS))
    assert all(file.is_file() and file.parent == folder for file in files)
    assert len(set(files)) == len(FORMATS)
    with Image.open(folder / "figure.png") as picture:
        assert picture.width > 1000
    assert (folder / "figure.svg").read_text().startswith("<?xml")


def test_markdown_is_the_ranking(folder):
    (path,) = write_formats(folder, ["md"])
    found = read_comparison(folder)
    lines = [line.strip("| ").split(" | ") for line in path.read_text().splitlines()]
    assert lines[0] == [*HEAD, "p (Holm)"]
    assert [line[0] for line in lines[2:5]] == found.ranking
    estimate = found.estimate("relearn", "accuracy")
    row = next(line for line in lines if line[0] == "relearn")
    assert row[1] == f"{100 * estimate.mean:.1f} ± {100 * estimate.std:.1f}"
    assert row[2] == f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
    difference = f"{100 * estimate.difference:+.1f} "
    assert difference in row[6]
    assert ("**" in row[6]) == (estimate.p_holm < 0.05)
    text = path.read_text()
    assert "The epoch is selected on validation." in text
    assert "covers other seeds on this test split, not other test samples. Differences: int" in text
    assert "“Own logits” scores what one modality adds to the fused logits" in text
    assert "Methods finished different seeds" not in text
    assert "Without a result" not in text
    assert "in %" not in text  # a metric of the user's may be no share


def test_seeds_are_those_that_were_run(tmp_path, write):
    folder = write(tmp_path, methods=["joint", "relearn"], seeds=2, epochs=6)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seeds: 2", "seeds: 5"))  # asked for at first
    (path,) = write_formats(folder, ["md"])
    assert "over 2 seeds" in path.read_text()


def test_seeds_that_differ_between_methods(tmp_path, write):
    """joint has 0, 1, 2 and relearn 1, 2, 3: together four, and two pairs."""
    folder = write(tmp_path, methods=["joint", "relearn", "pmr"], seeds=4, epochs=6,
                   missing=[("joint", 3), ("relearn", 0)])  # fmt: skip
    (path,) = write_formats(folder, ["md"])
    text = path.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| relearn"))
    assert row.endswith("[too few seeds] |  |")
    assert "mean ± standard deviation over 3 to 4 seeds." in text
    assert "over those that it shares with joint." in text


def test_methods_without_a_result_are_named(tmp_path, write):
    folder = write(tmp_path, methods=["joint", "m2", "m3"], seeds=3, epochs=6,
                   missing=[("m2", 2)], failed=[("m3", seed) for seed in range(3)])  # fmt: skip
    for path in write_formats(folder, ["md", "latex"]):
        assert "Without a result: m3 (0 of 3 seeds). " in path.read_text()
    assert "\n\nWithout a result: m3 (0 of 3 seeds).\n" in table(folder)


def test_the_ranking_metric_is_said_where_another_selects(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "select: macro_f1\n")
    (path,) = write_formats(folder, ["md"])
    assert (
        "The epoch is selected by macro-F1; methods are still ranked and tested by accuracy."
        in path.read_text()
    )


def test_what_selects_is_a_column_of_every_ranking(folder):
    for name in ("config.yaml", "summary.csv"):
        path = folder / name
        text = path.read_text().replace("test,macro_f1,", "test,balanced_accuracy,")
        path.write_text(text + "select: balanced_accuracy\n" * (name == "config.yaml"))
    mean = read_comparison(folder).estimate("joint", "balanced_accuracy").mean
    write_formats(folder, ["md", "latex"])
    for name, cell, share in (("table.md", "|", "(%)"), ("table.tex", "&", r"(\%)")):
        title = f"balanced accuracy {share}"
        lines = [line.split(cell) for line in (folder / name).read_text().splitlines()]
        head = next(line for line in lines if title in map(str.strip, line))
        place = [text.strip() for text in head].index(title)
        row = next(line for line in lines if "joint" in map(str.strip, line))
        assert row[place].strip().startswith(f"{100 * mean:.1f} ")
    assert "Balanced accuracy" in [title for title, _ in _columns(read_comparison(folder))]


def test_names_do_not_break_the_tables(tmp_path, write):
    name = "relearn(a=1|b_c=50%,d={e})"
    folder = write(tmp_path, methods=["joint", name], seeds=2, epochs=6)
    write_formats(folder, ["md", "latex"])
    rows = (folder / "table.md").read_text().splitlines()[2:4]
    assert any(r"relearn(a=1\|b_c=50%,d={e})" in row for row in rows)
    text = (folder / "table.tex").read_text()
    assert r"relearn(a=1|b\_c=50\%,d=\{e\})" in text
    assert text.count(r"\\") == 3
    assert text.count("&") == 3 * 7
    assert r"$\pm$" in text


@pytest.mark.parametrize("name", ["md", "latex"])
def test_only_a_cell_that_is_significant_is_bold(tmp_path, write, name):
    """b and c have the same difference and, rounded, the same p, of which only one is below .05."""
    folder = write(tmp_path, methods=["joint", "b", "c"], modalities=[], seeds=3, epochs=6)
    head = (folder / "summary.csv").read_text().partition("\n")[0]
    rows = [
        "joint,test,accuracy,0.8,0.01,0.7,0.9,3,3,,,,,",
        "b,test,accuracy,0.9,0.01,0.8,1.0,3,3,0.1,0.0,0.2,0.01,0.0499",
        "c,test,accuracy,0.9,0.01,0.8,1.0,3,3,0.1,0.0,0.2,0.01,0.0501",
    ]
    (folder / "summary.csv").write_text("\n".join([head, *rows, ""]))
    (path,) = write_formats(folder, [name])
    first, second = [line for line in path.read_text().splitlines() if "+10.0" in line]
    bold = ("**{}**" if name == "md" else r"\textbf{{{}}}").format
    assert bold("0.050") in first
    assert bold("+10.0 [+0.0 to +20.0]") in first
    assert "0.050" in second
    assert bold("")[:2] not in second


def test_json_holds_the_settings_and_every_number(folder):
    (path,) = write_formats(folder, ["json"])
    found = json.loads(path.read_text())
    assert found["settings"]["methods"] == ["joint", "relearn", "ogm_ge"]
    with (folder / "summary.csv").open() as file:
        assert len(found["summary"]) == len(list(csv.DictReader(file)))
    row = next(r for r in found["results"] if (r["method"], r["metric"]) == ("joint", "accuracy"))
    assert set(row["by_seed"]) == {"0", "1", "2"}


def test_an_unknown_format_writes_nothing(folder):
    with pytest.raises(ValueError, match="unknown format 'pdf'"):
        write_formats(folder, ["md", "pdf"])
    assert not (folder / "table.md").exists()
