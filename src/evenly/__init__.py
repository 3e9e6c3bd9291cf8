"""Balanced multimodal learning: how well each modality is learnt, and how to repair it.

The names load when they are first used, so `import evenly` costs nothing and the command
answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenly.capture import Capture, capture
    from evenly.diagnosis.gap import Diagnosis, diagnose
    from evenly.diagnosis.kmeans import kmeans
    from evenly.diagnosis.purity import purity
    from evenly.integrations.lightning import Balance
    from evenly.method import Info, Method
    from evenly.methods import METHODS
    from evenly.methods.ogm_ge import OGMGE
    from evenly.methods.relearn import Relearn, soft_reinit_
    from evenly.output import Output, split_linear
    from evenly.probe import Features, Probe

_HOME = {
    "Balance": "evenly.integrations.lightning",
    "Capture": "evenly.capture",
    "Diagnosis": "evenly.diagnosis.gap",
    "Features": "evenly.probe",
    "Info": "evenly.method",
    "METHODS": "evenly.methods",
    "Method": "evenly.method",
    "OGMGE": "evenly.methods.ogm_ge",
    "Output": "evenly.output",
    "Probe": "evenly.probe",
    "Relearn": "evenly.methods.relearn",
    "capture": "evenly.capture",
    "diagnose": "evenly.diagnosis.gap",
    "kmeans": "evenly.diagnosis.kmeans",
    "purity": "evenly.diagnosis.purity",
    "soft_reinit_": "evenly.methods.relearn",
    "split_linear": "evenly.output",
}

__all__ = [
    "METHODS",
    "OGMGE",
    "Balance",
    "Capture",
    "Diagnosis",
    "Features",
    "Info",
    "Method",
    "Output",
    "Probe",
    "Relearn",
    "capture",
    "diagnose",
    "kmeans",
    "purity",
    "soft_reinit_",
    "split_linear",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evenly' has no attribute '{name}'")
    # Not stored in globals: a submodule of the same name (capture) must not shadow the function.
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
