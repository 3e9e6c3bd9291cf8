"""A method in words, for `evenly methods` and the page of methods."""

import inspect
from collections.abc import Mapping
from typing import Any

from evenly.lab.run.build import settings_of
from evenly.lab.run.noted import measured, noted
from evenly.method import Info, Method
from evenly.methods import method_named
from evenly.targets import in_words

_PARTS = {
    "unimodal": "unimodal logits",
    "index": "sample positions",
    "fuse": "fused logits of changed features",
    "ablate": "fused logits without some inputs",
}
_TAKES = {"optimizer": "the optimiser", "head": "the head", "sampler": "a Resampler"}


def about(name: str) -> str:
    """What a method does: its class's docstring without the attributes."""
    return inspect.cleandoc(method_named(name).__doc__ or "").partition("\n\nAttributes:")[0]


def facts(name: str) -> dict[str, str]:
    """What a user should know about a method before choosing it, by heading."""
    kind = method_named(name)
    info = kind.info
    return {
        "paper": info.paper or "-",
        "link": info.url or "-",
        "category": info.category,
        "writes": info.writes,
        "targets": in_words(info.targets),
        "needs": needs(kind),
        "head": info.head,
        "cost of a step": cost(name),
        "modalities": info.modalities,
        "batches with missing modalities": "yes" if info.missing else "no",
        "sharded parameters (FSDP2)": "yes" if info.sharded else "no",
        "equals joint training with": neutral(info),
        "fidelity": fidelity(name),
        "doubts": info.doubts or "-",
    }


def needs(kind: type[Method]) -> str:
    """What a method needs from model, loop and loaders."""
    info = kind.info
    takes = inspect.signature(kind).parameters
    parts = [_PARTS[part] for part in info.needs]
    parts += ["encoders that do not see each other"] * info.separate
    parts += ["fused logits that are the sum of the unimodal ones"] * info.sums
    for name, what in _TAKES.items():
        if name in takes:
            some = "" if takes[name].default is inspect.Parameter.empty else " (for some settings)"
            parts.append(what + some)
    parts += ["a pass over whole splits between epochs"] * info.needs_probe
    parts += ["each batch once per modality"] * (kind.repeats is not Method.repeats)
    parts += ["find_unused_parameters=True under DDP"] * info.partial
    return ", ".join(parts) or "only a loss"


def neutral(info: Info) -> str:
    """The settings that equal joint training, or why there are none."""
    if isinstance(info.neutral, str):
        return f"no settings: {info.neutral}"
    return ", ".join(f"{key}={value}" for key, value in info.neutral.items()) or "-"


def cost(name: str) -> str:
    """What a step computes beyond joint training's, and its measured cost."""
    info = method_named(name).info
    found = measured().get("methods", {}).get(name)
    if found is None:
        return info.cost
    whole = found.get("time_at_224")
    again = f" ({whole:.2f}x at 224 x 224)" if whole else ""
    return (
        f"{info.cost}; measured against joint training, two ResNet-18s at 112 x 112 pixels take "
        f"{found['time']:.2f}x the time{again} and {found['memory']:.2f}x the memory, two small "
        f"MLPs {found['mlp_time']:.2f}x the time"
    )


def fidelity(name: str) -> str:
    """How far a method differs from its authors' code, as `docs/make_fidelity.py` measured it."""
    found = noted("fidelity.json").get(name, {"none": "not compared"})
    if "none" in found:
        where = f" ({found['repository']})" if "repository" in found else ""
        return f"{found['none']}{where}"
    where = ", ".join(part for part in (found["repository"], found.get("commit")) if part)
    difference = f"within {x:.0e}" if (x := found["difference"]) else "to the last bit"
    aside = " apart from the doubts below" if method_named(name).info.doubts else ""
    return f"equal to {found['of']} ({where}) {difference}{aside}: {ran(found)}"


def ran(found: Mapping[str, Any]) -> str:
    """What was run, for a compared entry of `fidelity.json`."""
    parts = list(found["ran"])
    if found.get("given"):
        parts.append(f"with {' and '.join(found['given'])} supplied")
    if "by_hand" in found:
        parts.append(f"measured by hand on {found['by_hand']}")
    return "; ".join(parts)


def defaults(name: str) -> dict[str, Any]:
    """The settings of a method and their defaults; '...' if one is required."""
    kind = method_named(name)
    parameters = inspect.signature(kind).parameters
    found = {key: parameters[key].default for key in settings_of(kind)}
    return {
        key: "..." if value is inspect.Parameter.empty else value for key, value in found.items()
    }
