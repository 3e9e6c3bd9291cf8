"""Runs code as a user does: in a process where annotations are not checked."""

import subprocess
import sys


def error_of(code):
    """The last line of what it prints when it fails."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    return ran.stderr.strip().splitlines()[-1]
