"""Writes docs/methods.md: every method with its paper, needs, cost and doubts.

python docs/make_methods.py          # write it
python docs/make_methods.py --check  # fail if it is not what would be written
"""

import argparse
import sys
from pathlib import Path

from evenly.lab.run.describe import about, defaults, facts, measured
from evenly.methods import METHODS

PAGE = Path(__file__).parent / "methods.md"
HEAD = """# Methods

Made by `make methods` from what each method declares; `evenly methods NAME` prints the same.
"""
MEASURED = """
"Time" and "memory" are those of a training step over joint training's, measured by
`benchmarks/overhead.py` on a pair of ResNet-18, "MLP" is the time on a pair of small MLPs, whose
step is so short that whatever a method adds weighs more; budgets are for the ResNets. Joint
training over itself shows the noise. What a method does between epochs (a look at whole splits,
teachers, trial runs) comes on top and is named under its needs.

Measured on {dates}: {threads} threads of {hardware}; torch {torch}.
"""


def page():
    note = measured()
    noted = note.get("methods", {})
    head = ["method", "title", "year", "category", "writes"]
    head += ["time", "memory", "MLP"] * bool(noted)
    days = sorted({cost["date"] for cost in noted.values()})
    dates = " to ".join(dict.fromkeys(days[:1] + days[-1:]))
    about_costs = MEASURED.format(**note, dates=dates) if noted else ""
    lines = [HEAD + about_costs, "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * len(head))
    for name, kind in METHODS.items():
        info = kind.info
        cost = noted.get(name, {})
        cells = [
            f"[`{name}`](#{name})",
            info.title,
            str(info.year or ""),
            info.category,
            info.writes,
        ]
        if noted:
            cells += [f"{cost[key]:.2f}" if cost else "" for key in ("time", "memory", "mlp_time")]
        lines.append("| " + " | ".join(cells) + " |")
    for name in METHODS:
        lines += ["", f"## {name}", "", f"**{METHODS[name].info.title}**", "", about(name), ""]
        lines += [f"- {heading}: {text}" for heading, text in facts(name).items() if text != "-"]
        settings = ", ".join(f"`{key}={value}`" for key, value in defaults(name).items())
        lines.append(f"- settings: {settings or 'none'}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is out of date. Run: make methods")
        return
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
