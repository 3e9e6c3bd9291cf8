"""The pages that a program writes are what it would write now."""

import subprocess
import sys
from pathlib import Path

from evenly import METHODS

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_methods.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_method_under_its_category():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip(): cells[1]
        for line in text.splitlines()
        if line.startswith("|") and len(cells := line.strip("|").split("|")) == 2
    }
    names = {"forward": "forward pass"}
    for name, kind in METHODS.items():
        category = names.get(kind.info.category, kind.info.category)
        assert f"`{name}`" in rows["reference rows"] + rows[category], (name, category)
