import hashlib
import sys

import pytest

from evenly.imported import checksums, imported, is_own


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with modules, which no other test finds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "own"),
    [("a.B", True), ("a.b.C", True), ("joint", False), ("a..b", False), (".a", False),
     ("a.", False), ("./a.npz", False), ("a b.c", False), ("a.1", False), ("", False)],
)  # fmt: skip
def test_what_is_an_import_path(name, own):
    assert is_own(name) == own


def test_the_current_folder_is_looked_into(here):
    (here / "of_mine.py").write_text("class Part: pass\n")
    part = imported("part", "of_mine.Part")
    assert part.__name__ == "Part"
    assert imported("part", "of_mine.Part") is part


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere_at_all.Part",
            r"^'nowhere_at_all.Part' .* as the part, .* no module 'nowhere_at_all'\.",
        ),
        (
            "packed.inner.Part",
            r"there is no module 'packed\.inner'\. .* start the command in its folder",
        ),
        (
            "lacks.Part",
            r"the module lacks fails \(ModuleNotFoundError: No module named 'not_there'",
        ),
        ("broken.Part", r"the module broken fails \(SyntaxError: .*Run 'python -c \"import broken"),
        ("leaves.Part", r"the module leaves fails \(SystemExit: 3\)"),
        (
            "whole.Prat",
            r"the module whole has no 'Prat' to be the part\. Did you mean Part\?",
        ),
    ],
)
def test_what_cannot_be_imported_is_a_sentence(name, message, here):
    (here / "packed").mkdir()
    (here / "packed" / "__init__.py").touch()
    (here / "lacks.py").write_text("import not_there\n")
    (here / "broken.py").write_text("class Part(:\n")
    (here / "leaves.py").write_text("raise SystemExit(3)\n")
    (here / "whole.py").write_text("class Part: pass\n_hidden = 1\n")
    with pytest.raises(ValueError, match=message) as raised:
        imported("part", name)
    assert "\n" not in str(raised.value)


def test_checksums_are_of_the_file_that_defines_a_part(here):
    (here / "front.py").write_text("from behind import Part\nfrom torch.nn import Linear\n")
    (here / "behind.py").write_text("class Part: pass\n")
    found = checksums({"front.Part": "part", "front.Linear": "part", "math.sin": "part"})
    assert found == {"behind": hashlib.sha256(b"class Part: pass\n").hexdigest()}
