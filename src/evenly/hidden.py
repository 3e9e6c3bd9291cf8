"""Passwords that stand in addresses, kept out of whatever is written or shown."""

import re


def hidden(text: str) -> str:
    """A text in which no address shows a password, whatever form it has.

    An address begins with `scheme://` and goes on to the next blank, or, where the text is one
    argument of a command, to its end: `hidden_argument`.
    """
    # One without a scheme: name:password@host.
    text = re.sub(r"(?<![\w/:])([\w.+-]+):[^\s/:@]+@(?=[\w.-])", r"\1:***@", text)
    # Of an address that was taken for a path, one of two slashes is left.
    return re.sub(
        r"([\w+.-]+:)//?(\S*)", lambda found: hidden_address(f"{found[1]}//{found[2]}"), text
    )


def hidden_argument(text: str) -> str:
    """An argument of a command, which may hold an address with any characters in it."""
    start = re.search(r"[\w+.-]+://", text)
    return text if start is None else text[: start.start()] + hidden_address(text[start.start() :])


def hidden_address(address: str) -> str:
    """An address without its password and the settings behind its question mark.

    What of it is a password is for SQLAlchemy to say, as it opens the address. Where a password was
    written so that it is read as something else, all is hidden.
    """
    if not {"@", "?"} & set(address) and not re.search(r"://[^/]*:", address):
        return address
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme = address.partition("://")[0]
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # the second of a port that is no number
        return f"{scheme}://***"
    if is_torn(address) or not re.fullmatch(r"[\w.@-]*", url.username or ""):
        return f"{scheme}://***"
    shown: str = url.set(query={}).render_as_string()
    return shown + ("?***" if url.query or "?" in address.rpartition("@")[2] else "")


def is_torn(address: str) -> bool:
    """Whether a character of a name or password may have been taken for the end of it."""
    from sqlalchemy.engine import make_url

    url = make_url(address)
    return any("@" in (part or "") for part in (url.host, url.database))
