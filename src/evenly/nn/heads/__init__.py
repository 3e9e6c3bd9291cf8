"""Heads turn features into logits, one per file. A method names the one it is made for."""

from evenly.nn.heads.amco import AMCoHead
from evenly.nn.heads.attention import AttentionHead
from evenly.nn.heads.balm import BALMHead
from evenly.nn.heads.base import Head
from evenly.nn.heads.boosted import BoostedHead
from evenly.nn.heads.certainty import CertaintyHead
from evenly.nn.heads.concat import ConcatHead
from evenly.nn.heads.configurable import ConfigurableHead
from evenly.nn.heads.cosine import CosineHead
from evenly.nn.heads.decoding import DecodingHead
from evenly.nn.heads.energy import EnergyHead
from evenly.nn.heads.ensemble import EnsembleHead
from evenly.nn.heads.film import FiLMHead
from evenly.nn.heads.gated import GatedHead
from evenly.nn.heads.late import LateHead
from evenly.nn.heads.lowrank import LowRankHead
from evenly.nn.heads.mbt import BottleneckHead
from evenly.nn.heads.mmtm import MMTMHead
from evenly.nn.heads.mult import CrossModalHead
from evenly.nn.heads.multi import MultiHead
from evenly.nn.heads.rolling import RollingHead
from evenly.nn.heads.shared import SharedHead
from evenly.nn.heads.sum import SumHead
from evenly.nn.heads.total import TotalHead

FUSIONS: dict[str, type[Head]] = {
    "concat": ConcatHead,
    "sum": SumHead,
    "film": FiLMHead,
    "gated": GatedHead,
    "lowrank": LowRankHead,
    "attention": AttentionHead,
}
"""Ways to fuse features, any of which serves a method made for 'concat'."""

TOKEN_FUSIONS: dict[str, type[Head]] = {"mbt": BottleneckHead, "mult": CrossModalHead}
"""Likewise for encoders that return tokens, which meet before pooling."""

HEADS: dict[str, type[Head]] = {
    **FUSIONS,
    **TOKEN_FUSIONS,
    "multi": MultiHead,
    "total": TotalHead,
    "late": LateHead,
    "ensemble": EnsembleHead,
    "energy": EnergyHead,
    "shared": SharedHead,
    "boosted": BoostedHead,
    "configurable": ConfigurableHead,
    "cosine": CosineHead,
    "amco": AMCoHead,
    "balm": BALMHead,
    "mmtm": MMTMHead,
    "decoding": DecodingHead,
    "certainty": CertaintyHead,
    "rolling": RollingHead,
}
"""Heads by the name that `Info.head` uses."""

__all__ = [
    "FUSIONS",
    "HEADS",
    "TOKEN_FUSIONS",
    "AMCoHead",
    "AttentionHead",
    "BALMHead",
    "BoostedHead",
    "BottleneckHead",
    "CertaintyHead",
    "ConcatHead",
    "ConfigurableHead",
    "CosineHead",
    "CrossModalHead",
    "DecodingHead",
    "EnergyHead",
    "EnsembleHead",
    "FiLMHead",
    "GatedHead",
    "Head",
    "LateHead",
    "LowRankHead",
    "MMTMHead",
    "MultiHead",
    "RollingHead",
    "SharedHead",
    "SumHead",
    "TotalHead",
]
