"""Runs the blocks of the pages and shows below each what it printed.

    python docs/run_pages.py [PAGE ...]          # write what came
    python docs/run_pages.py --check [PAGE ...]  # fail where a page shows something else

The ```python blocks of a page run in order, in one namespace and one empty folder. What a block
prints stands in the ```text block that follows it. The `evenly` commands of a ```sh block run in
the same folder where a ```text block follows; those of the others must be such that it
understands them. A block with the fence ```python title="NAME.py" is written to that file, for the
blocks after it. Blocks that are a file of the repository, with the fence ```{.python}, are left
out: tests run those files, and what is in examples/ can be imported.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$\n?", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'^ *```python title="([\w.]+)"\n')
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
FOLDERS = ("benchmarks/", "docs/", "examples/", "tests/")
# Sums in another order, as on another processor, end in other digits, and a training on them
# takes one sample for another class; a page says nothing that hangs on less than this.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: Of its fence.
        code: Without the fence and its indent.
        line: Of the page, where the code begins, from 1.
        end: Position in the page behind the fence.
        indent: Of the fence.
        shown: What the page shows as its output; None where it shows nothing.
        shown_end: Position in the page behind that.
        title: Of the file that it is; None where it is run.
    """

    language: str
    code: str
    line: int
    end: int
    indent: str
    shown: str | None
    shown_end: int
    title: str | None


def blocks(text: str) -> list[Block]:
    """The python and sh blocks of a page, with the output that it shows of each."""
    fences = list(FENCE.finditer(text))
    found = []
    for fence, after in zip(fences, [*fences[1:], None], strict=False):
        indent, language, body = fence.groups()
        if language not in ("python", "sh"):
            continue
        shown = None
        if after and after[2] == "text" and not text[fence.end() : after.start()].strip():
            shown = after
        line = text.count("\n", 0, fence.start(3)) + 1
        found.append(
            Block(
                language,
                textwrap.dedent(body),
                line,
                fence.end(),
                indent,
                textwrap.dedent(shown[3]) if shown else None,
                shown.end() if shown else fence.end(),
                titled[1] if (titled := TITLE.match(fence[0])) else None,
            )
        )
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a sh block, as words; comments are passed over."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def runs(block: Block) -> bool:
    """Whether a block is run, not only looked at."""
    return block.language == "python" or block.shown is not None


def outputs(page: Path) -> Iterator[tuple[Block, str]]:
    """Runs a page; each block that runs, with what it printed."""
    import torch

    torch.set_num_threads(1)
    namespace = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.title:
                Path(block.title).write_text(block.code, encoding="utf-8")
            elif block.language == "python":
                yield block, _python(block, page, namespace)
            elif runs(block):
                yield block, "".join(_evenly(words) for words in commands(block))


def _python(block: Block, page: Path, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def _evenly(words: list[str]) -> str:
    if words[0] != "evenly":
        raise ValueError(f"a page runs evenly's commands only; found {shlex.join(words)}")
    from evenly.cli import main

    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        status = main(words[1:])
    if status:
        raise RuntimeError(f"{shlex.join(words)}: {said.getvalue()}")
    return printed.getvalue()


def alike(shown: str, came: str) -> bool:
    """Whether two outputs are the same: words, lines and whole numbers, others to the tolerance."""
    if _words(shown) != _words(came):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(came), strict=True)
    return all(
        abs(float(one) - float(other)) <= (TOLERANCE if "." in one and "." in other else 0)
        for one, other in pairs
    )


def _words(text: str) -> list[list[str]]:
    """The words of each line, a sign in place of each number; columns may be of any width."""
    return [line.split() for line in NUMBER.sub("#", text).strip().splitlines()]


def problems(page: Path) -> list[str]:
    """What the sh blocks of a page name that the command, the Makefile or the house lacks."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w[\w-]*):", makefile, re.MULTILINE))
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        for program, *rest in commands(block) if block.language == "sh" else ():
            line = shlex.join([program, *rest])
            if program == "evenly" and (wrong := _not_understood(rest)):
                found.append(f"{line}: {wrong}")
            if program == "make" and not targets.issuperset(rest):
                found.append(f"{line}: the Makefile has no such target")
            files = [word for word in rest if word.startswith(FOLDERS)]
            found += [f"{line}: there is no {word}" for word in files if not (ROOT / word).exists()]
    return [f"{page.name}: {text}" for text in found]


def _not_understood(words: list[str]) -> str:
    """What the command line has against some arguments; empty where they are fine."""
    from evenly.cli.commands import introduced
    from evenly.cli.options import parsed

    if introduced(words):
        return ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parsed(words)
    except SystemExit as stopped:
        return said.getvalue() if stopped.code else ""
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def difference(page: Path) -> str:
    """The first output of a page that is not what it shows, in words; empty where all are."""
    for block, came in outputs(page):
        if not alike(block.shown or "", came):
            shown = "nothing" if block.shown is None else f"\n{block.shown}"
            return f"{page}:{block.line}: the page shows {shown}\nbut the block printed\n{came}"
    return ""


def write(page: Path) -> None:
    """Puts what came below each block; an output that the page shows to the tolerance stays."""
    text = page.read_text(encoding="utf-8")
    for block, came in reversed(list(outputs(page))):
        if not alike(block.shown or "", came):
            fence = f"\n```text\n{came.rstrip()}\n```\n"
            fence = textwrap.indent(fence, block.indent)
            text = text[: block.end] + fence + text[block.shown_end :]
    page.write_text(text, encoding="utf-8")


def pages() -> list[Path]:
    """The pages that run: those written by hand that have python, or commands with an output."""
    found = {page: page.read_text(encoding="utf-8") for page in sorted(HERE.glob("*.md"))}
    return [
        page
        for page, text in found.items()
        if "<!-- Generated by `" not in text and any(map(runs, blocks(text)))
    ]


def main() -> None:
    sys.path.append(str(ROOT / "examples"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, default=pages(), metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported
    for page in map(Path.resolve, options.pages):
        if not options.check:
            write(page)
        elif wrong := difference(page) or "\n".join(problems(page)):
            sys.exit(f"{wrong}\nIf the page is right otherwise: make pages")


if __name__ == "__main__":
    main()
