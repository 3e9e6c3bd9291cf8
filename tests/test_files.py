import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evenly.errors import UserError
from evenly.files import held, locked, naming, remove_leftovers, replacing
from full import no_file_above


def test_what_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    path = tmp_path / "weights.ckpt"
    path.write_text("before")
    with (
        no_file_above(1000),
        pytest.raises(OSError, match=r"File too large: '.*/weights\.ckpt'"),
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(torch.zeros(1000), file)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["weights.ckpt"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"), replacing(tmp_path):
        raise AssertionError("something was written")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "there" / "x.csv")
    for text in ("one", "two"):
        with replacing(tmp_path / "link.csv") as made:
            made.write_text(text)
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "there" / "x.csv").read_text() == text
    assert [*tmp_path.rglob(".*")] == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    """As a device does: /dev/null must not become a file."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    with replacing(pipe) as made:
        made.write_text("a,b\n")
    assert reader.communicate()[0] == "a,b\n"
    assert pipe.is_fifo()
    assert [*tmp_path.iterdir()] == [pipe]


def test_an_error_that_has_a_name_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nothing'"), naming(tmp_path):
        Path("nothing").read_text()
    with pytest.raises(ValueError, match="else"), naming(tmp_path):
        raise ValueError("something else")


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path):
    kept = [".notes.bad.txt", ".cafe.txt", ".env", "a.0123abcd.txt"]
    for name in kept:
        (tmp_path / name).touch()
    for name in ("weights.ckpt", "result", "a.b.csv"):
        with replacing(tmp_path / name) as temporary:
            temporary.touch()
            os.link(temporary, copy := tmp_path / "copy")
        copy.rename(temporary)  # as a kill leaves it
        (tmp_path / name).unlink()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


HOLD = "import sys; from pathlib import Path; from evenly.files import held\n"
HOLD += "with held(Path(sys.argv[1]), shared=bool(sys.argv[2:])): print('held')"


def other(folder, *shared):
    """What another process says that would hold the folder."""
    ran = subprocess.run(
        [sys.executable, "-c", HOLD, str(folder), *shared],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_a_folder_is_held_by_one_command_or_by_those_that_share_it(tmp_path):
    folder = tmp_path / "a" / "b"
    with held(folder):
        assert "another command is at work in this folder. Wait" in other(folder)
    assert not (tmp_path / "a").exists()  # nothing was written
    with held(folder, shared=True):
        assert other(folder, "shared") == "held\n"
        assert "another command is at work" in other(folder)
        (folder / "result").touch()
    assert (folder / "result").exists()


def test_an_open_file_is_locked_by_one_or_by_those_that_share_it(tmp_path):
    path = tmp_path / "a"
    path.touch()
    with path.open() as first, path.open() as second:
        assert locked(first, shared=True)
        assert locked(second, shared=True)
        assert not locked(second)
    with path.open() as third:
        assert locked(third, wait=True)


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path), (tmp_path / "a").open("w") as file:
        assert locked(file)
        assert locked(file, wait=True)
