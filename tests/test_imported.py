import hashlib
import sys

import pytest

from evenly.imported import checksums, imported, is_own, packages


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with modules of names that no other folder on the path has (own_)."""
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
            "own_packed.inner.Part",
            r"there is no module 'own_packed\.inner'\. .* start the command in its folder",
        ),
        (
            "own_lacks.Part",
            r"the module own_lacks fails \(ModuleNotFoundError: No module named 'not_there'",
        ),
        (
            "own_broken.Part",
            r"the module own_broken fails \(SyntaxError: .*Run 'python -c \"import own_broken",
        ),
        ("own_leaves.Part", r"the module own_leaves fails \(SystemExit: 3\)"),
        (
            "own_whole.Prat",
            r"the module own_whole has no 'Prat' to be the part\. Did you mean Part\?",
        ),
    ],
)
def test_what_cannot_be_imported_is_a_sentence(name, message, here):
    (here / "own_packed").mkdir()
    (here / "own_packed" / "__init__.py").touch()
    (here / "own_lacks.py").write_text("import not_there\n")
    (here / "own_broken.py").write_text("class Part(:\n")
    (here / "own_leaves.py").write_text("raise SystemExit(3)\n")
    (here / "own_whole.py").write_text("class Part: pass\n_hidden = 1\n")
    with pytest.raises(ValueError, match=message) as raised:
        imported("part", name)
    assert "\n" not in str(raised.value)


def test_checksums_are_of_the_file_that_defines_a_part(here):
    (here / "own_front.py").write_text("from own_behind import Part\nfrom torch.nn import Linear\n")
    (here / "own_behind.py").write_text("class Part: pass\n")
    found = checksums({"own_front.Part": "part", "own_front.Linear": "part", "math.sin": "part"})
    assert found == {"own_behind": hashlib.sha256(b"class Part: pass\n").hexdigest()}


def test_packages_of_installed_parts_alone(here):
    (here / "own_mine.py").write_text("class Part: pass\n")
    assert packages({"own_mine.Part": "part", "math.sin": "part", "json.dumps": "part"}) == []
    assert packages({"own_mine.Part": "part", "yaml.SafeLoader": "part"}) == ["PyYAML"]
