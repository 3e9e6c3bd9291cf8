"""evenly methods: lists every method, or shows one."""

import textwrap

from jsonargparse import Namespace

from evenly.cli.parser import Parser

HELP = "list every method, or show one"


def arguments() -> Parser:
    """What it takes."""
    one = Parser("Lists every method, or shows one.")
    one.add_argument(
        "name", nargs="?", help="a method to show, by name or by the import path of your own"
    )
    return one


def run(options: Namespace) -> None:
    """Prints the list, or one method."""
    from evenly.lab.many.space import METHOD
    from evenly.lab.run.describe import about, defaults, facts
    from evenly.methods import METHODS, method_named

    if options.name is None:
        width = max(map(len, METHODS))
        for name, kind in METHODS.items():
            info = kind.info
            print(f"{name:{width}}  {info.year or '':4}  {info.category:12}  {info.title}")
        print("\n'evenly methods NAME' shows a method's paper, settings and limits.")
        return
    info = method_named(options.name).info
    print(f"{options.name}: {info.title}\n")
    print(about(options.name), "\n")
    for heading, text in facts(options.name).items():
        line = f"{heading}: {text}"
        # addresses stay whole
        fill = textwrap.fill(
            line, 92, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        print(fill)
    settings = defaults(options.name)
    if tried := METHOD.get(options.name):
        ranges = "; ".join(f"{name} {found}" for name, found in tried.items())
        line = f"searched by 'evenly tune': {ranges}"
        print(textwrap.fill(line, 92, subsequent_indent="  "))
    print("\nsettings and their defaults:")
    for setting, value in settings.items():
        print(f"  {setting}={value}")
    if "seed" in settings:
        print("  (seed: 'compare' and 'train' take that of the run unless you give it)")
    if info.in_epochs:
        print(
            f"  ({', '.join(info.in_epochs)} for {info.epochs} epochs of training; 'compare', "
            "'tune' and 'train' scale them to --epochs unless you give them)"
        )
