"""Runs our methods beside what their authors' code gave, and writes down how far they differ.

python docs/make_fidelity.py          # src/evenly/lab/run/fidelity.json and docs/fidelity.md
python docs/make_fidelity.py --check  # fail if they are not what would be written
"""

import argparse
import json
import math
import sys
from pathlib import Path

from evenly.lab.run.describe import ran
from evenly.methods import METHODS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from golden.compare import COMPARISONS, DEPARTURES, largest, recording  # noqa: E402

NOTED = HERE.parent / "src" / "evenly" / "lab" / "run" / "fidelity.json"
PAGE = HERE / "fidelity.md"
HEAD = """# Fidelity

Made by `make methods`: how far our methods are from the code that their authors released.

That code ran on tiny models in float64, and what it made of weights and batches was recorded. Our
methods start from the same weights, see the same batches and go through the hooks that a training
loop calls. The table has the largest difference in any loss, gradient or coefficient. Where we
depart from the code on purpose, the table is about what is left, or about our rule with theirs put
in for one part; the [departures](#departures) have their reasons, their settings where there are
any, and their sizes where they were recorded. "Others'" marks a re-implementation, where the
authors' own code is not known or not in PyTorch; where no commit is named, none was noted.

To run it anew: `make methods` measures and writes this page, and
`pytest tests/methods/test_published.py` holds each method to 1e-8 and each departure to its size.
The recorded numbers are in `tests/golden`, cut out of the recordings by `extract.py` there. Where
arrays were not kept, the number is that of a comparison by hand, of one to five steps with SGD.
`evenly methods NAME` prints a method's line.
"""

DEPARTURES_HEAD = """Where a method departs from the released code or from the paper, why, and what
could not be verified. A number is the largest difference that a departure made in the recording."""

# Compared by hand, arrays not kept: repository, largest difference, and what was special.
BY_HAND = {
    "relearn": ("GeWu-Lab/Diagnosing_Relearning_ECCV2024", 4e-16, "epochs 21, 41 and 61"),
    "pmr": ("fanyunfeng-bit/Modal-Imbalance-PMR", 7e-12, "hard weights, each of its own batch"),
    "greedy": (
        "nyukat/greedy_multimodal_learning",
        4e-16,
        "30 steps, with the same gates and averages in both",
    ),
    "qmf": ("QingyangZhang/QMF", 6e-17, ""),
    "smv": ("GeWu-Lab/Valuate-and-Enhance-Multimodal-Cooperation", 0.0, ""),
    "mlb": ("kkontras/MLB", 8e-9, ""),
    "di_mml": ("fanyunfeng-bit/DI-MML", 7e-18, "at the temperature 1"),
    "g2d": ("rAIson-Lab/G2D", 6e-17, ""),
    "inforeg": ("GeWu-Lab/InfoReg_CVPR2025", 2e-12, ""),
    "aug": ("njustkmg/NeurIPS25-AUG", 4e-16, ""),
}
DATE = "2026-11-28"
RELEASED, OTHERS = "the released code", "a re-implementation"
REIMPLEMENTED = ("g_blending", "mslr")
# Read, not run: our methods are tested against slow forms of their formulas.
READ = {
    "bss": "njustkmg/IJCAI25-BSS",
    "rolling_q": "GeWu-Lab/QueRo_ICML2025",
    "mnl": "BaoquanGong/Multimodal-Negative-Learning",
    "tcmax": "hubaak/TCMax",
    "pggb": "VuVoCodes/AsynchronousFunction",
    "balm": "np4s/BALM_CVPR2026",
}
NOT_FOUND = ("umt", "mbsd", "amco", "midas", "miles", "pdmp")
RAISES = {"arl": "shicaiwei123/ICCV2025-ARL"}
HEADS = {"film": "the head `film`"}  # of what is compared, what is no method


def measured():
    """All that is known of each method, and of the head that is compared by itself."""
    found = {name: {"none": "no released code was compared"} for name in METHODS}
    found |= {name: {"none": "no released code was found"} for name in NOT_FOUND}
    for name, where in READ.items():
        found[name] = {"none": "the released code was read, not run", "repository": where}
    for name, where in RAISES.items():
        why = "not compared, as the released code raises an error"
        found[name] = {"none": why, "repository": where}
    for name, (repository, difference, how) in BY_HAND.items():
        facts = {"of": RELEASED, "repository": repository, "difference": difference}
        found[name] = {**facts, "ran": [how] * bool(how), "by_hand": DATE}
    for method in dict.fromkeys(comparison.method for comparison in COMPARISONS.values()):
        found[method] = compared(method)
    return found


def compared(method):
    """What the recordings tell of a method."""
    mine = {name: c for name, c in COMPARISONS.items() if c.method == method}
    recordings = [recording(name) for name in mine]
    return {
        "of": OTHERS if method in REIMPLEMENTED else RELEASED,
        "repository": recordings[0].repository,
        "commit": recordings[0].commit,
        "difference": max(largest(comparison.pairs()) for comparison in mine.values()),
        "ran": [recorded.ran for recorded in recordings],
        "given": [comparison.given for comparison in mine.values() if comparison.given],
        "departures": {d.says: largest(d.pairs()) for d in DEPARTURES if d.recording in mine},
    }


def page(found):
    """The page, of what was measured."""
    lines = [HEAD, "| method | code | largest difference | what was run |", "|---|---|---|---|"]
    for name in [*METHODS, *HEADS]:
        entry = found[name]
        title = HEADS.get(name) or f"[`{name}`](methods.md#{name})"
        known = ["", entry["none"]] if "none" in entry else [size(entry), ran(entry)]
        cells = [title, code(entry), *known]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Departures", "", DEPARTURES_HEAD]
    for name, kind in METHODS.items():
        if kind.info.doubts:
            lines += ["", f"### {name}", "", kind.info.doubts]
            sizes = found[name].get("departures", {})
            lines += [""] * bool(sizes)
            lines += [f"- {says}: {difference:.2g}" for says, difference in sizes.items()]
    return "\n".join(lines) + "\n"


def code(entry):
    repository = entry.get("repository")
    link = f"[{repository}](https://github.com/{repository})" if repository else "none known"
    others = "(others')" if entry.get("of") == OTHERS else ""
    return " ".join(part for part in (link, entry.get("commit"), others) if part)


def size(entry):
    return f"{entry['difference']:.0e}" if entry.get("difference") else "0"


def differs(noted, found):
    """Whether two notes differ by more than another processor's last bits."""
    if isinstance(found, dict):
        return noted.keys() != found.keys() or any(differs(noted[k], found[k]) for k in found)
    if isinstance(found, float):
        return not math.isclose(noted, found, rel_tol=0.01, abs_tol=1e-8)
    return noted != found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    found = measured()
    if check:
        noted = json.loads(NOTED.read_text(encoding="utf-8")) if NOTED.is_file() else {}
        written = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        if differs(noted, found) or written != page(noted):
            sys.exit(f"{NOTED.name} or {PAGE} is out of date. Run: make methods")
        return
    text = json.dumps(found, ensure_ascii=False, indent=1)
    NOTED.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print(NOTED, PAGE, sep="\n")


if __name__ == "__main__":
    main()
