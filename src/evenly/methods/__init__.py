"""One file per method, one method per file."""

from evenly.method import Method
from evenly.methods.multi_loss import MultiLoss
from evenly.methods.ogm import OGM
from evenly.methods.ogm_ge import OGMGE
from evenly.methods.relearn import Relearn

METHODS: dict[str, type[Method]] = {
    # reference rows
    "joint": Method,
    "multi_loss": MultiLoss,
    # methods, by year
    "ogm": OGM,
    "ogm_ge": OGMGE,
    "relearn": Relearn,
}
"""By the name that the command uses. Every method in here goes through the contract tests."""
