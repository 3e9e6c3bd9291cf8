"""Versions of the packages that results depend on: of a process, of a run, of several runs."""

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evenly.imported import packages
from evenly.lab.run.settings import own_parts

PACKAGES = {
    "evenly": "evenly",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "kornia": "kornia",
    "av": "av",
    "soundfile": "soundfile",
    "PIL": "pillow",
}
"""What reads inputs, changes them, or computes with them: names for pip, by names for import."""

DECODERS = ("av", "soundfile", "pillow")
"""Those of PACKAGES that only the process which prepares the data loads, for all of its runs."""

MIXED = "runs use several versions of "
"""How the note of `mixed` begins."""


def versions(settings: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the packages that results depend on, as far as this process has loaded them.

    Args:
        settings: Settings of a run, whose model is built. Installed packages that define the user's
            own parts count, too.
    """
    names = [package for module, package in PACKAGES.items() if module in sys.modules]
    found = {name: version_of(name) for name in [*names, *packages(own_parts(settings))]}
    return {name: known for name, known in found.items() if known}


def version_of(package: str) -> str:
    """The version of an installed package, by its name for pip; empty if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def of_run(folder: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """What a finished run used; otherwise what it will use, and has used if it resumes.

    Args:
        folder: Folder of the run.
        known: Its config.yaml so far; empty if there is none.
        settings: Its settings.
    """
    before: dict[str, str] = known.get("versions", {})
    if (folder / "result.json").is_file():
        return before
    resumes = (folder / "last.ckpt").is_file()
    return joined([before if resumes else {}, versions(settings)])


def joined(found: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """All versions of each package in the order of their use, as '2.12.0; 2.13.0'."""
    every: dict[str, dict[str, None]] = {}
    for each in found:
        for name, text in each.items():
            every.setdefault(name, {}).update(dict.fromkeys(text.split("; ")))
    return {name: "; ".join(known) for name, known in every.items()}


def mixed(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A note for each package of which runs use several versions.

    Args:
        found: What each run uses, by its name.
    """
    by_package: dict[str, dict[str, list[str]]] = {}
    for run, known in found.items():
        for name, text in known.items():
            by_package.setdefault(name, {}).setdefault(text, []).append(run)
    return [
        f"{MIXED}{name}, which may change results: "
        + "; ".join(
            f"{text.replace('; ', ', then ')} in {_listed(runs)}" for text, runs in groups.items()
        )
        + "."
        for name, groups in by_package.items()
        if len(groups) > 1 or "; " in next(iter(groups))
    ]


def _listed(runs: list[str]) -> str:
    if len(runs) > _SHOWN:
        return f"{', '.join(runs[:_SHOWN])} and {len(runs) - _SHOWN} more"
    return " and ".join(filter(None, [", ".join(runs[:-1]), runs[-1]]))


_SHOWN = 8
"""Runs that a note names; each run's config.yaml has its versions."""
