"""Every name of evenly's in a docstring or on a page is there, as it is written."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").glob("*.py"),
    *(ROOT / "src").rglob("*.py"),
]
FILES = {"evenly.json", "evenly.pt"}

# What follows a module that nothing has imported yet is looked for as `import` would.
RESOLVE = """
import sys
from importlib import import_module
import evenly

for name in sys.argv[1:]:
    found = evenly
    path = "evenly"
    for part in name.split(".")[1:]:
        path += "." + part
        try:
            found = getattr(found, part)
        except AttributeError:
            if found is evenly:  # its own names are there after `import evenly`
                print(name)
                break
            try:
                found = import_module(path)
            except ImportError:
                print(name)
                break
"""


def outcome(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_every_name_in_the_texts_is_there():
    imported = re.compile(r"^\s*(?:from|import) evenly[\w.]*", re.MULTILINE)
    names = {
        name
        for path in TEXTS
        # An import statement names modules, which need not be attributes of the package.
        for name in re.findall(r"\bevenly(?:\.\w+)+", imported.sub("", path.read_text("utf-8")))
    }
    assert len(names) > 40
    assert outcome(RESOLVE, *sorted(names - FILES)) == []


def test_the_packages_are_there_after_import_evenly_and_load_when_they_are_used():
    loaded = "sorted({m.split('.')[1] for m in sys.modules if m.startswith('evenly.')})"
    program = f"import sys, evenly; print({loaded}); evenly.nn.LateFusion; evenly.methods.SMV; "
    program += "print([n for n in dir(evenly) if getattr(evenly, n) is None])"
    assert outcome(program) == ["[]", "[]"]


def test_import_evenly_costs_little_over_torch():
    """In the processor's time, in which neither the disk nor a busy machine has a part."""
    program = (
        "import torch, time; begin = time.process_time(); import evenly; "
        "print(time.process_time() - begin)"
    )
    assert any(float(outcome(program)[0]) < 0.3 for _ in range(3))
