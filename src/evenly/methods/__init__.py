"""One file per method, one method per file."""

from evenly.errors import UserError
from evenly.imported import imported, is_own
from evenly.method import Method
from evenly.methods.agm import AGM
from evenly.methods.amco import AMCo
from evenly.methods.arl import ARL
from evenly.methods.aug import AUG
from evenly.methods.awc import AWC
from evenly.methods.balm import BALM
from evenly.methods.bss import BSS
from evenly.methods.cggm import CGGM
from evenly.methods.cml import CML
from evenly.methods.dgl import DGL
from evenly.methods.di_mml import DIMML
from evenly.methods.ensemble import Ensemble
from evenly.methods.finetune import Finetune
from evenly.methods.g2d import G2D
from evenly.methods.g_blending import GBlending
from evenly.methods.greedy import Greedy
from evenly.methods.inforeg import InfoReg
from evenly.methods.lfm import LFM
from evenly.methods.masked_transformer import MaskedTransformer
from evenly.methods.mbsd import MBSD
from evenly.methods.mcr import MCR
from evenly.methods.midas import MIDAS
from evenly.methods.miles import MILES
from evenly.methods.mla import MLA
from evenly.methods.mlb import MLB
from evenly.methods.mmcosine import MMCosine
from evenly.methods.mmpareto import MMPareto
from evenly.methods.mnl import MNL
from evenly.methods.modality_dropout import ModalityDropout
from evenly.methods.mslr import MSLR
from evenly.methods.multi_loss import MultiLoss
from evenly.methods.ogm import OGM
from evenly.methods.ogm_ge import OGMGE
from evenly.methods.opm import OPM
from evenly.methods.pdmp import PDMP
from evenly.methods.pggb import PGGB
from evenly.methods.pmr import PMR
from evenly.methods.qmf import QMF
from evenly.methods.reconboost import ReconBoost
from evenly.methods.relearn import Relearn
from evenly.methods.remedy import Remedy
from evenly.methods.remix import DataRemixing
from evenly.methods.rolling_q import RollingQ
from evenly.methods.smv import SMV
from evenly.methods.tcmax import TCMax
from evenly.methods.umt import UMT
from evenly.methods.unimodal import Unimodal
from evenly.suggest import unknown

METHODS: dict[str, type[Method]] = {
    # baselines
    "unimodal": Unimodal,
    "joint": Method,
    "multi_loss": MultiLoss,
    "ensemble": Ensemble,
    "finetune": Finetune,
    "modality_dropout": ModalityDropout,
    # fusions
    "masked_transformer": MaskedTransformer,
    "qmf": QMF,
    # methods, by year
    "g_blending": GBlending,
    "ogm": OGM,
    "ogm_ge": OGMGE,
    "mslr": MSLR,
    "mbsd": MBSD,
    "amco": AMCo,
    "mmcosine": MMCosine,
    "cml": CML,
    "umt": UMT,
    "pmr": PMR,
    "agm": AGM,
    "greedy": Greedy,
    "relearn": Relearn,
    "smv": SMV,
    "mmpareto": MMPareto,
    "mla": MLA,
    "reconboost": ReconBoost,
    "lfm": LFM,
    "opm": OPM,
    "mlb": MLB,
    "cggm": CGGM,
    "di_mml": DIMML,
    "dgl": DGL,
    "g2d": G2D,
    "arl": ARL,
    "mcr": MCR,
    "inforeg": InfoReg,
    "remix": DataRemixing,
    "aug": AUG,
    "bss": BSS,
    "miles": MILES,
    "rolling_q": RollingQ,
    "midas": MIDAS,
    "mnl": MNL,
    "tcmax": TCMax,
    "pggb": PGGB,
    "pdmp": PDMP,
    "awc": AWC,
    "balm": BALM,
    "remedy": Remedy,
}
"""Methods by the name that the command uses. Each of them passes the contract tests."""


def method_named(name: str) -> type[Method]:
    """Returns a method by its name in `METHODS`, or a user's class by its import path.

    Raises:
        ValueError: If nothing has that name, or it is not a method.
    """
    if name in METHODS:
        return METHODS[name]
    if not is_own(name):
        raise unknown("method", name, METHODS, "or the import path of a class, my.module.Name")
    found = imported("method", name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(
            f"'{name}' is of the type {type(found).__name__}, and a method is a class that derives "
            "from evenly.Method. Give the path of such a class."
        )
    if found.info is Method.info:
        raise UserError(
            f"'{name}' declares no `info`, so nobody knows what it writes and needs. Give it "
            "`info = evenly.Info(title=..., writes=...)`."
        )
    return found
