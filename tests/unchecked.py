"""Runs code as a user does: in a process where annotations are not checked."""

import forked


def error_of(code):
    """The last line of what it prints when it fails."""
    ran = forked.run(forked.code, code)
    assert ran.returncode != 0
    return ran.stderr.strip().splitlines()[-1]
