import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

import pytest

from evenly.stop import Stopped, stoppable, unstopped

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(1)


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, 130, "stopped"),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
)
def test_a_signal_ends_the_block_and_says_so(number, status, words):
    before = [signal.getsignal(each) for each in ALL]
    with pytest.raises(Stopped, match=f"^{words}$") as caught, stoppable():
        send(number)
    assert caught.value.status == status
    assert [signal.getsignal(each) for each in ALL] == before


def test_several_signals_do_not_cut_the_clean_up_short():
    cleaned = []

    def work():
        try:
            send(signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Stopped, match="SIGHUP"), stoppable():
        work()
    assert cleaned == [True]


def test_ctrl_c_counts_where_it_was_ignored_and_hanging_up_does_not():
    """Shells ignore the first for what scripts start with `&`, and nohup the second."""

    def work():
        send(signal.SIGHUP)
        send(signal.SIGINT)

    before = [signal.signal(number, signal.SIG_IGN) for number in ALL]
    try:
        with pytest.raises(Stopped, match=r"^stopped$"), stoppable():
            work()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in zip(ALL, before, strict=True):
            signal.signal(number, handler)


def as_cpp_does():
    try:
        send(signal.SIGTERM)
    except Stopped:
        raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904


def test_what_others_make_of_it_is_still_a_stop():
    with pytest.raises(Stopped), stoppable():
        as_cpp_does()
    with pytest.raises(RuntimeError, match="another"), stoppable():
        raise RuntimeError("another")


def test_a_signal_waits_for_what_must_not_be_cut_short():
    done = []

    def work():
        with unstopped():
            send(signal.SIGTERM)
            done.append(True)
        raise AssertionError("nobody heard of it")

    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        work()
    assert done == [True]


def test_in_another_thread_no_signals_come():
    done = []

    def work():
        with stoppable():
            done.append(True)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


class Object:
    def __del__(self):
        send(signal.SIGHUP)


def clear_away():
    Object()
    time.sleep(5)
    raise AssertionError("nobody heard of it")


def catch_whatever_comes():
    with suppress(BaseException):
        send(signal.SIGHUP)
    time.sleep(5)
    raise AssertionError("nobody heard of it")


@pytest.mark.parametrize("meets", [clear_away, catch_whatever_comes])
def test_a_signal_that_goes_under_comes_again(meets, capsys):
    with pytest.raises(Stopped, match="SIGHUP"), stoppable():
        meets()
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_comes_again_where_threads_have_none_of_their_own(monkeypatch):
    """As on Windows, where `os.kill` ends the process."""
    monkeypatch.delattr(signal, "pthread_kill")
    with pytest.raises(Stopped, match="SIGHUP"), stoppable():
        catch_whatever_comes()


def test_a_terminal_that_closes_takes_no_more_words(tmp_path):
    """Last words to it would fail, in place of what was to be cleaned up."""
    script = f"""
import os, pty, sys, time
pid, terminal = pty.fork()
if not pid:
    from evenly.stop import Stopped, stoppable, unstopped
    try:
        with stoppable():
            print("ready", flush=True)
            time.sleep(60)
    except Stopped as stopped:
        print("one", flush=True)
        print("two", file=sys.stderr, flush=True)
        open({str(tmp_path / "said")!r}, "w").write(str(stopped))
    os._exit(0)
os.read(terminal, 5)
os.close(terminal)
os.waitpid(pid, 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert (tmp_path / "said").read_text() == "stopped by SIGHUP"
