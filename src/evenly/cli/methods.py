"""evenly methods: lists the methods, or shows one."""

import textwrap
from collections.abc import Iterable
from fnmatch import fnmatchcase

from jsonargparse import Namespace

from evenly.cli.parser import Parser
from evenly.imported import is_own
from evenly.lab.run.noted import catalogue, measured
from evenly.suggest import unknown

CATEGORIES = {
    "data": "which samples are drawn, and how they are mixed",
    "forward": "the forward pass: features, fusion and head",
    "objective": "the loss",
    "optimisation": "gradients, weights and learning rates",
}
"""What methods change, by category."""

START = """Columns: name, cost, year, title. Cost is the time of a training step, as a multiple of
joint training's, on a pair of ResNet-18s.
Include the baselines in every comparison: unimodal, joint, multi_loss, ensemble, finetune and
modality_dropout. 'evenly checkup' names methods for what is wrong with your model.
'evenly methods NAME' shows a method's paper, settings and limits; a pattern such as 'og*' lists
the methods that match."""


def arguments() -> Parser:
    """The command's arguments."""
    one = Parser("Lists the methods by what they change, or shows one.")
    one.add_argument(
        "name",
        nargs="?",
        help="a method to show, by name or the import path of your own, or a pattern such as 'og*'",
    )
    return one


def run(options: Namespace) -> None:
    """Prints the list, or one method."""
    known = catalogue()
    name = options.name or "*"
    if name in known or is_own(name):
        _show(name)
        return
    found = [each for each in known if fnmatchcase(each, name.lower())]
    if not found:
        raise unknown("method", name, known)
    print("\n\n".join([*_listed(found), START]))


def _listed(names: Iterable[str]) -> list[str]:
    """A line for each method, by category."""
    known, costs = catalogue(), measured().get("methods", {})
    width = max(map(len, known))
    parts = []
    for category, changes in CATEGORIES.items():
        lines = [f"{category}: {changes}"]
        for name in names:
            method = known[name]
            if method["category"] == category:
                cost = f"{costs[name]['time']:.2f}x" if name in costs else ""
                year = method["year"] or ""
                lines.append(f"  {name:{width}}  {cost:>5}  {year:4}  {method['title']}")
        parts += ["\n".join(lines)] if len(lines) > 1 else []
    return parts


def _show(name: str) -> None:
    """Prints everything known about a method."""
    from evenly.lab.many.space import METHOD
    from evenly.lab.run.describe import about, defaults, facts
    from evenly.methods import method_named

    info = method_named(name).info
    print(f"{name}: {info.title}\n")
    print(about(name), "\n")
    for heading, text in facts(name).items():
        line = f"{heading}: {text}"
        # addresses stay whole
        fill = textwrap.fill(
            line, 92, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        print(fill)
    settings = defaults(name)
    if tried := METHOD.get(name):
        ranges = "; ".join(f"{setting} {found}" for setting, found in tried.items())
        line = f"searched by 'evenly tune': {ranges}"
        print(textwrap.fill(line, 92, subsequent_indent="  "))
    print("\nsettings and their defaults:")
    for setting, value in settings.items():
        print(f"  {setting}={value}")
    if "seed" in settings:
        print("  (seed: 'compare' and 'train' use the run's seed unless you set it)")
    if info.in_epochs:
        print(
            f"  ({', '.join(info.in_epochs)}: defaults for {info.epochs} epochs of training; "
            "'compare', 'tune' and 'train' scale them to --epochs unless you set them)"
        )
