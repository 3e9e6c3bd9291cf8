"""What turns features into logits: one head a file. A method names the one that it is made for."""

from evenly.nn.heads.base import Head
from evenly.nn.heads.concat import ConcatHead
from evenly.nn.heads.ensemble import EnsembleHead
from evenly.nn.heads.late import LateHead
from evenly.nn.heads.multi import MultiHead
from evenly.nn.heads.shared import SharedHead

HEADS: dict[str, type[Head]] = {
    "concat": ConcatHead,
    "multi": MultiHead,
    "late": LateHead,
    "ensemble": EnsembleHead,
    "shared": SharedHead,
}
"""By the name that `Info.head` uses."""

__all__ = [
    "HEADS",
    "ConcatHead",
    "EnsembleHead",
    "Head",
    "LateHead",
    "MultiHead",
    "SharedHead",
]
