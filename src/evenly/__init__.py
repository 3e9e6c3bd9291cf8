"""Balanced multimodal learning: how well each modality is learnt, and how to repair it.

Names load on first use, so `import evenly` costs nothing and the command answers at once.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenly import data as data
    from evenly import diagnosis as diagnosis
    from evenly import integrations as integrations
    from evenly import methods as methods
    from evenly import nn as nn
    from evenly.criteria import (
        BinaryCrossEntropy,
        CrossEntropy,
        Focal,
        SigmoidFocal,
        balanced_weights,
    )
    from evenly.diagnosis.checkup import checkup
    from evenly.diagnosis.findings import Checkup
    from evenly.diagnosis.gap import Diagnosis, diagnose
    from evenly.diagnosis.kmeans import kmeans
    from evenly.diagnosis.purity import purity
    from evenly.features import Features
    from evenly.integrations.lightning import Balance
    from evenly.method import Info, Method
    from evenly.methods import METHODS
    from evenly.methods.composed import Composed
    from evenly.methods.ogm_ge import OGMGE
    from evenly.methods.relearn import Relearn
    from evenly.output import Output, split_linear
    from evenly.probe import Probe
    from evenly.reinit import soft_reinit_
    from evenly.resampling import Repeated, Resampler
    from evenly.taps import Taps, capture

_HOME = {
    "Balance": "evenly.integrations.lightning",
    "BinaryCrossEntropy": "evenly.criteria",
    "Checkup": "evenly.diagnosis.findings",
    "Composed": "evenly.methods.composed",
    "CrossEntropy": "evenly.criteria",
    "Diagnosis": "evenly.diagnosis.gap",
    "Features": "evenly.features",
    "Focal": "evenly.criteria",
    "Info": "evenly.method",
    "METHODS": "evenly.methods",
    "Method": "evenly.method",
    "OGMGE": "evenly.methods.ogm_ge",
    "Output": "evenly.output",
    "Probe": "evenly.probe",
    "Relearn": "evenly.methods.relearn",
    "Repeated": "evenly.resampling",
    "Resampler": "evenly.resampling",
    "SigmoidFocal": "evenly.criteria",
    "Taps": "evenly.taps",
    "balanced_weights": "evenly.criteria",
    "capture": "evenly.taps",
    "checkup": "evenly.diagnosis.checkup",
    "diagnose": "evenly.diagnosis.gap",
    "kmeans": "evenly.diagnosis.kmeans",
    "purity": "evenly.diagnosis.purity",
    "soft_reinit_": "evenly.reinit",
    "split_linear": "evenly.output",
}

_PACKAGES = ("data", "diagnosis", "integrations", "methods", "nn")

__all__ = [
    "METHODS",
    "OGMGE",
    "Balance",
    "BinaryCrossEntropy",
    "Checkup",
    "Composed",
    "CrossEntropy",
    "Diagnosis",
    "Features",
    "Focal",
    "Info",
    "Method",
    "Output",
    "Probe",
    "Relearn",
    "Repeated",
    "Resampler",
    "SigmoidFocal",
    "Taps",
    "balanced_weights",
    "capture",
    "checkup",
    "diagnose",
    "kmeans",
    "purity",
    "soft_reinit_",
    "split_linear",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME and find_spec(f"evenly.{name}"):
        return import_module(f"evenly.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'evenly' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
