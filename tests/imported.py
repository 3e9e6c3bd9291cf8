"""What the process has imported that tests fork theirs from."""

import lightning  # noqa: F401

import evenly.lab.many.preloaded  # noqa: F401
