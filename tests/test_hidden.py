"""No password in what is written or shown."""

import pytest

from evenly.hidden import hidden, hidden_argument

SHOWN = {
    "postgresql://me:s3cr/et@host/db": "postgresql://me:***@host/db",
    "postgresql://me:s3?cr#et@host/db": "postgresql://me:***@host/db",
    "postgresql://me:s3%40cr@host:54/db": "postgresql://me:***@host:54/db",
    "postgresql://me:s3 cr'et\"@host/db": "postgresql://me:***@host/db",
    "postgresql://:s3cret@[::1]/db": "postgresql://:***@[::1]/db",
    "postgresql://host/db?user=me&password=s3cret": "postgresql://host/db?***",
    "postgresql://me:s3cret@host/db?sslpassword=s3cret": "postgresql://me:***@host/db?***",
    "mysql+pymysql://me:s3cret@host/db?charset=s3": "mysql+pymysql://me:***@host/db?***",
    # What SQLAlchemy takes for host or database may be half of the password.
    "postgresql://me:aaa@s3cret@host/db": "postgresql://***",
    "postgresql://me/x:s3cret@host/db": "postgresql://***",
    "postgresql://me:a@s3:cret@host/db": "postgresql://***",
    "postgresql://me%3As3cret@host/db": "postgresql://***",
    "sqlite:///me:s3cret@host/x.db": "sqlite://***",
    "https://me:s3cret@host:80/api?token=s3cret": "https://me:***@host:80/api?***",
    "sqlite:////runs/tune.db": "sqlite:////runs/tune.db",
    "postgresql://host/db": "postgresql://host/db",
    "postgresql://me:s3cret": "postgresql://***",
    "postgresql://me@corp:s3cret@host/db": "postgresql://me@corp:***@host/db",
    "postgresql://me%40corp@host/db": "postgresql://***",
    "sqlite:////tmp/a@b/x.db": "sqlite:////tmp/a@b/x.db",
    "http://localhost:5000": "http://localhost:5000",
}


@pytest.mark.parametrize("address", SHOWN)
def test_an_argument(address):
    for before in ("", "--storage=", "'"):
        found = hidden_argument(before + address)
        assert found == before + SHOWN[address]
        assert hidden_argument(found) == found


def test_other_arguments_stay():
    for text in ("relearn(every=5)", "my@data.npz", '{"a": "b.C(x=1)"}', "a?b", "://", ""):
        assert hidden_argument(text) == text


LESS = {
    "me:s3cret@host/db": "me:***@host/db",
    "me:s3:cr@et@host/db": "me:***@host/db",
    "postgresql:/me:s3cret@host/db?x=1": "postgresql:/me:***@host/db?***",
    "host=h password=s3cret user=me": "host=h password=*** user=me",
    "host=h sslpassword='s3 cret'": "host=h sslpassword=***",
}
"""Addresses that lack something, in sentences and arguments alike."""


@pytest.mark.parametrize("address", LESS)
def test_an_address_that_lacks_something(address):
    for before, after in (("", ""), ("(", ")"), ("found '", "'.")):
        if before == "(" or " " not in address:
            assert hidden(before + address + after) == before + LESS[address] + after
    assert hidden_argument(f"--storage={address}") == f"--storage={LESS[address]}"
    assert hidden(LESS[address]) == LESS[address]


@pytest.mark.parametrize(
    "text",
    [
        "C:/Users/x", "PATH /a:/b:/c", "-v /a:/b:ro", "file:/tmp/x", "file:///tmp/a@b",
        "(host:/export/data) C:/Users/me", "sqlite:////tmp/a@b/x.db", "/data/a:b@c.npz",
        "http://[::1]:5000/x, (http://localhost:5000).", "a@b: c@d",
    ],
)  # fmt: skip
def test_a_text_without_a_secret_stays_as_it_is(text):
    assert hidden(text) == hidden_argument(text) == text


def test_marks_around_an_address_stay():
    assert hidden("see http://x.org: it says") == "see http://x.org: it says"
    said = "at (postgresql://me:s3cret@h/db), 'https://h/api?key=s3cret', https://h/a@b."
    assert hidden(said) == "at (postgresql://me:***@h/db), 'https://h/api?***', https://h/a@b."


def test_a_sentence():
    said = (
        "request to https://me:s3cret@host/api?key=s3cret failed, as did a@b: see https://x.org/y."
    )
    shown = "request to https://me:***@host/api?*** failed, as did a@b: see https://x.org/y."
    assert hidden(said) == shown


def test_an_address_without_a_scheme_in_a_sentence():
    assert hidden("what is me:s3cret@host/db for?") == "what is me:***@host/db for?"
