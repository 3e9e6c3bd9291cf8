"""The pages that a program writes are what it would write now."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_methods.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
