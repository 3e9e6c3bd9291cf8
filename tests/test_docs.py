"""The pages say what is so: what programs write is current, what runs gives the output shown."""

import re
import shlex
from pathlib import Path

import make_fidelity
import pytest
import run_pages
import torch
from torch import nn

import forked
from evenly import METHODS
from evenly.cli import main
from hubs import dataset, on_the_hub, picture, tone
from stores import pack

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def check(program, *arguments):
    done = forked.run(forked.script, DOCS / program, "--check", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["make_methods.py", "make_fidelity.py", "make_reference.py"])
def test_the_pages_made_of_the_code_are_up_to_date(program):
    check(program)


@pytest.mark.parametrize(
    ("noted", "is_other"),
    [
        ({"a": {"difference": 3e-15, "ran": ["x"]}}, False),
        ({"a": {"difference": 3e-5, "ran": ["x"]}}, True),
        ({"a": {"difference": 1e-15, "ran": ["y"]}}, True),
        ({}, True),
    ],
)
def test_the_last_bits_of_another_processor_are_no_other_fidelity(noted, is_other):
    found = {"a": {"difference": 1e-15, "ran": ["x"]}}
    assert make_fidelity.differs(noted, found) == is_other


@pytest.mark.slow
@pytest.mark.parametrize("page", run_pages.pages(), ids=lambda page: page.stem)
def test_a_page_gives_the_output_that_it_shows(page):
    check("run_pages.py", page)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/results.md"])
def test_every_command_of_a_page_is_understood(page):
    assert run_pages.problems(ROOT / page) == []


class Net(nn.Module):
    """A model as the README has it before evenly comes."""

    def __init__(self):
        super().__init__()
        self.audio, self.visual = nn.Linear(4, 3), nn.Linear(5, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, sound, frames):
        return self.head(torch.cat([self.audio(sound), self.visual(frames)], 1))


def test_the_code_of_the_readme_runs():
    """Its forward and its lines in a loop, on small data."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (forward,) = (b.code for b in run_pages.blocks(text) if b.language == "python")
    fence = next(fence for fence in run_pages.FENCE.finditer(text) if fence[2] == "diff")
    loop = "".join(line[1:] + "\n" for line in fence[3].splitlines() if line[0] in "+ ")
    label = torch.arange(12) % 2
    batch = {"sound": torch.randn(12, 4), "frames": torch.randn(12, 5), "label": label}
    model = Net()
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_loader": [batch],
        "val_loader": [batch],
    }
    for code in (forward, loop):
        exec(code, names)
    assert list(names["method"].history) == [21, 41, 61]


@pytest.mark.slow
def test_the_commands_on_files_of_the_readme_run(tmp_path, monkeypatch):
    """Each but those that need CREMA-D, in order, on files of the names that they give."""
    monkeypatch.chdir(tmp_path)
    on_the_hub(Path("pets"), train=[dataset(range(12)), dataset(range(12, 24))])
    clips = ["look,sound,label"]
    guests = ["age,fare,port,remark,label"]
    for row in range(40):
        member = {"png": picture(row), "wav": tone(row / 100), "cls": str(row % 2)}
        for ending, value in member.items():
            Path(f"{row}.{ending}").write_bytes(value.encode() if ending == "cls" else value)
        clips.append(f"{row}.png,{row}.wav,{'ab'[row % 2]}")
        guests.append(f"{20 + row},{row / 2},{('Cork', 'Oslo')[row % 2]},fine,{'ab'[row % 2]}")
    for shard in range(10):
        rows = range(2 * shard, 2 * shard + 2)
        endings = ("png", "wav", "cls")
        members = [
            (f"{row}.{end}", Path(f"{row}.{end}").read_bytes()) for row in rows for end in endings
        ]
        pack(Path(f"pets-{shard:06}.tar"), members)
    Path("clips.csv").write_text("\n".join(clips))
    Path("new.csv").write_text("\n".join(clips[:5]))
    Path("guests.csv").write_text("\n".join(guests))
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## I have files")[2]
    lines = [
        line for b in run_pages.blocks(text) if b.language == "sh" for line in b.code.splitlines()
    ]
    ran = []
    for line in lines:
        command = shlex.split(line, comments=True)
        if command[0] != "evenly" or "cremad" in line:
            continue
        if command[1] == "compare":
            command += ["--methods", "joint,relearn", "--seeds", "1", "--epochs", "2"]
        command += ["--workers", "1"] if command[1] == "prepare" else []
        assert main(command[1:]) in (0, None), line
        ran.append(command[1])
    assert ran == ["prepare", "compare", "checkup", "predict", "export", *["prepare"] * 3]
    assert len(Path("found.csv").read_text().splitlines()) == 5
    for store in ("store", "pets-store", "pets-shards", "guests"):
        assert Path(store, "dataset.json").exists()


def test_the_readme_names_every_method_under_its_category():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip(): cells[1]
        for line in text.splitlines()
        if line.startswith("|") and len(cells := line.strip("|").split("|")) == 2
    }
    names = {"forward": "forward pass"}
    for name, kind in METHODS.items():
        category = names.get(kind.info.category, kind.info.category)
        assert f"`{name}`" in rows["baselines"] + rows[category], (name, category)


PAGE = """# A page

```python
a = 1
print("a is", a + 0.5)
```

```text
a is {shown}
```

1. In a list

    ```python
    print("and", a)
    ```
{more}
```sh
evenly methods joint --loud
make nothing
python examples/none.py
evenly compare --epochs 3   # fine
```
"""
AND = "\n    ```text\n    and 1\n    ```\n"


@pytest.fixture
def page(tmp_path):
    def write(shown="1.5", more=AND):
        path = tmp_path / "page.md"
        path.write_text(PAGE.format(shown=shown, more=more))
        return path

    return write


def test_a_page_is_right_to_the_tolerance(page):
    assert run_pages.difference(page()) == ""
    assert run_pages.difference(page("1.54")) == ""


@pytest.mark.parametrize("shown", ["1.6", "2", "1.5 or so", ""])
def test_another_output_is_seen(page, shown):
    wrong = run_pages.difference(page(shown))
    assert "page.md:4: the page shows \na is" in wrong
    assert wrong.endswith("printed\na is 1.5\n")


def test_an_output_that_is_not_shown_is_seen(page):
    assert "page.md:15: the page shows nothing" in run_pages.difference(page(more=""))


def test_outputs_are_written_where_they_belong(page):
    path = page("7.0", more="")
    run_pages.write(path)
    assert path.read_text() == PAGE.format(shown="1.5", more=AND)


def test_commands_that_are_not_there_are_named(page):
    loud, nothing, none = run_pages.problems(page())
    assert loud.startswith("page.md: evenly methods joint --loud: ")
    assert re.search("unknown option --loud", loud)
    assert nothing.endswith("the Makefile has no such target")
    assert none.endswith("there is no examples/none.py")
