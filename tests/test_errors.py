"""Errors that a user can mend."""

import pickle
from pathlib import Path

import pytest

from evenly.data.media.error import MediaError, NoStream
from evenly.errors import UserError, UserFileNotFoundError, UserRuntimeError
from evenly.lab.many.compare import Failed
from evenly.lab.run.hold import TakenOver


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (UserError("a"), ValueError),
        (UserRuntimeError("a"), RuntimeError),
        (UserFileNotFoundError("a"), FileNotFoundError),
        (Failed("a"), RuntimeError),
        (TakenOver("a"), RuntimeError),
        (MediaError(Path("a"), "is empty"), ValueError),
        (NoStream(Path("a"), "is silent"), ValueError),
    ],
)
def test_what_comes_out_of_another_process_is_the_same(error, also):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert isinstance(found, UserError)
    assert isinstance(found, also)
    assert getattr(found, "reason", "") == getattr(error, "reason", "")
