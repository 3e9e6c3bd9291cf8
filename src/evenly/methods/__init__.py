"""One file per method, one method per file."""

from evenly.method import Method
from evenly.methods.ogm_ge import OGMGE
from evenly.methods.relearn import Relearn

METHODS: dict[str, type[Method]] = {
    "joint": Method,
    "relearn": Relearn,
    "ogm_ge": OGMGE,
}
"""By the name that the command uses. Every method in here goes through the contract tests."""
