"""Writes the pages that are made of the code: commands, data sets, and each method's class.

python docs/make_reference.py          # write them
python docs/make_reference.py --check  # fail if one is not what would be written
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import evenly
from evenly.cli.commands import parser
from evenly.cli.training import RECIPES
from evenly.data import DATASETS
from evenly.data.raw.sets import SETS
from evenly.methods import METHODS

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
MADE = "Made by `make pages` from {of}.\n"

# The heading above is the entry in the table of contents.
NO_ENTRY = ("    options:", "      show_root_toc_entry: false")
HIDDEN = ("help", "print_config")

COMMANDS_HEAD = f"""# Commands

{MADE.format(of="the command line itself; `evenly COMMAND --help` prints the same")}
A dash or an underscore in an option is the same: `--batch-size`, `--batch_size`. Where a setting is
"by modality", give a mapping, `--encoders '{{"audio": "resnet18"}}'`, or one entry,
`--encoders.audio resnet18`.
"""

DATASETS_HEAD = f"""# Data sets

{MADE.format(of="what is known of each; `evenly datasets NAME` prints the same")}
[Your own data](data.md) says how to use them, and how to make one.
"""

METHODS_HEAD = f"""# Methods as classes

{MADE.format(of="the methods' docstrings")}
Each is a class of `evenly.methods`, called from a loop as [Your own loop](loop.md) shows. Papers,
costs and limits are in the [list of methods](methods.md).
"""


def commands():
    """A section for each command, an entry for each option; those of a training once."""
    known = {
        name: {(a.dest, a.help): a for a in one._actions if a.dest not in HIDDEN}
        for name, one in parser()._subcommands_action.choices.items()
    }
    training = {key: a for key, a in known["compare"].items() if key in known["train"]}
    lines = [COMMANDS_HEAD]
    for name, one in parser()._subcommands_action.choices.items():
        trains = training.keys() <= known[name].keys()
        own = [a for key, a in known[name].items() if not (trains and key in training)]
        places = [place(a) for a in own if not a.option_strings]
        usage = " ".join(["evenly", name, *places, *["[options]"] * (len(own) > len(places))])
        about, _, more = one.description.partition("\n\n")
        lines += [f"## evenly {name}", "", f"`{usage}`", "", escaped(about), ""]
        lines += ["```text", more, "```", ""] if more else []
        lines += map(entry, own)
        lines += ["- and the [settings of a training](#settings-of-a-training)."] * trains
        lines.append("")
    lines += ["## Settings of a training", "", "What all methods of a comparison share.", ""]
    return "\n".join([*lines, *map(entry, training.values())])


def place(argument):
    """An argument without a name, in square brackets where it may be left out."""
    return f"[{argument.dest.upper()}]" if argument.nargs == "?" else argument.dest.upper()


def entry(argument):
    """One option: its name, what it does, its values, its default."""
    name = argument.option_strings[-1] if argument.option_strings else place(argument)
    facts = [escaped(" ".join(argument.help.split()).rstrip("."))]
    if values := choices(argument):
        facts.append("one of " + ", ".join(f"`{value}`" for value in values))
    plain = argument.default is None or argument.default is False or argument.default == {}
    if "(default:" not in argument.help and not plain:
        facts.append(f"default `{argument.default}`")
    return f"- **`{name}`**: {'; '.join(facts)}."


def choices(argument):
    """The values that an option is chosen from, if they are few."""
    kind = getattr(argument, "_typehint", None)
    found = get_args(kind) if get_origin(kind) is Literal else argument.choices or ()
    return list(found)


def datasets():
    """A section for each data set, converter and recipe."""
    lines = [DATASETS_HEAD]
    lines += ["## Built in", "", "By name, for `--data`; nothing else is needed.", ""]
    for name, known in DATASETS.items():
        lines += [*described(name, known), *settings(known), ""]
    lines += ["## From their official downloads", ""]
    lines += ["You get the files; `evenly prepare NAME --folder DIR --out STORE` reads them.", ""]
    for name, known in SETS.items():
        lines += described(name, known)
        lines += ["- the folder holds: " + ", ".join(f"`{path}`" for path in known.layout)]
        lines += [*settings(known), ""]
    lines += ["## Converters", ""]
    lines += ["Programs in `examples/`, for data that we may not ship; they tell of leaks.", ""]
    for path in sorted([*EXAMPLES.glob("convert_*.py"), *EXAMPLES.glob("*_table.py")]):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        lines += [f"### {path.name}", "", text, ""]
    lines += ["## Recipes", ""]
    lines += ["Published settings, for `--recipe NAME`; other options change them.", ""]
    for name, path in sorted(RECIPES.items()):
        lines += [f"### {name}", "", "```yaml", path.read_text(encoding="utf-8").strip(), "```", ""]
    return "\n".join(lines)


def described(name, known):
    facts = ("modalities", "samples", "licence", "source")
    return [
        f"### {name}",
        "",
        f"**{known.title}**",
        "",
        *(f"- {fact}: {linked(getattr(known, fact))}" for fact in facts),
    ]


def settings(known):
    lines = [
        f"    - `{name}={known.defaults[name]}`: {text}" for name, text in known.settings.items()
    ]
    return ["- settings:", "", *lines] if lines else []


def methods():
    """The class of each method, from its docstrings."""
    lines = [METHODS_HEAD]
    for name, kind in METHODS.items():
        lines += [f"## {name}", ""]
        if kind.__name__ in evenly.__all__:
            lines += [f"[`evenly.{kind.__name__}`](api.md#evenly.{kind.__name__})", ""]
        else:
            lines += [f"::: evenly.methods.{kind.__name__}", *NO_ENTRY, ""]
    return "\n".join(lines)


def escaped(text):
    """Text of the command line as Markdown: what it quotes is code, and no sign is markup."""
    parts = re.split(r"(?<!\w)'([^']+)'(?!\w)", text)
    for place, part in enumerate(parts):
        parts[place] = f"`{part}`" if place % 2 else re.sub(r"([*<\[])", r"\\\1", part)
    return "".join(parts)


def linked(text):
    return re.sub(r"https://[^\s,;)]+", r"<\g<0>>", text)


PAGES = {"commands.md": commands, "datasets.md": datasets, "api-methods.md": methods}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    for name, made in PAGES.items():
        page, text = HERE / name, made().rstrip() + "\n"
        if not check:
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"{page} is out of date. Run: make pages")


if __name__ == "__main__":
    main()
