"""Keeps passwords in addresses out of whatever is written or shown."""

import re

_END = r"(?=[)\]}>'\",.:;]*(?:\s|$))"
"""The end of an address in a sentence, which may be before final punctuation."""
_ADDRESS = re.compile(rf"([\w+.-]+://)(\S*?){_END}")
_COLLAPSED = re.compile(rf"(?<![\w/+.-])([\w+.-]+:/)(?!/)(\S*?){_END}")
"""An address that was mistaken for a path and lost one of its slashes."""
_BARE = re.compile(r"(?<![\w/:])([\w.+-]+):[^\s/]+@(?=[\w.-])")
"""NAME:PASSWORD@HOST."""
_SETTING = re.compile(
    r"\b(\w*(?:password|passwd|pwd)=)('[^']*'|\"[^\"]*\"|[^\s&,;)'\"]+)", re.IGNORECASE
)
_LOGIN = re.compile(r"([\w.@-]*:)[^@]*(@[^@?]*)(\?.*)?", re.DOTALL)
"""NAME:PASSWORD@PLACE?SETTINGS, if it can be read in one way only."""


def hidden(text: str) -> str:
    """A text without passwords in addresses, otherwise unchanged.

    It finds `scheme://NAME:PASSWORD@HOST` up to the next blank, the same with one slash or no
    scheme, and `password=PASSWORD`. In addresses with a scheme, it also hides the settings after
    the question mark. If the text is a single argument of a command, an address extends to its end:
    see `hidden_argument`.
    """
    text = _BARE.sub(r"\1:***@", text)
    text = _ADDRESS.sub(lambda found: found[1] + _place(found[2]), text)
    text = _COLLAPSED.sub(lambda found: found[1] + _login(found[2]), text)
    return _SETTING.sub(r"\1***", text)


def hidden_argument(text: str) -> str:
    """An argument of a command, with any address in it, whatever its characters, hidden."""
    start = re.search(r"[\w+.-]+://", text)
    if start is None:
        return hidden(text)
    return text[: start.start()] + hidden_address(text[start.start() :])


def hidden_address(address: str) -> str:
    """An address without its password and the settings after its question mark.

    If a password is written so that it reads as something else, everything is hidden.
    """
    scheme, slashes, rest = address.partition("://")
    return scheme + slashes + _place(rest)


def _place(rest: str) -> str:
    """What follows a scheme, without secrets."""
    if _LOGIN.fullmatch(rest):
        return _login(rest)
    name = re.match(r"([^/@?]*)@", rest)
    odd_name = name and not re.fullmatch(r"[\w.-]*", name[1])
    odd_port = re.match(r"[^/?\[]*:(?!\d*(?:[/?]|$))", rest)
    if odd_name or odd_port or re.search(r":.*@", rest, re.DOTALL):
        return "***"
    place, mark, _ = rest.partition("?")
    return place + ("?***" if mark else "")


def _login(rest: str) -> str:
    if (found := _LOGIN.fullmatch(rest)) is None:
        return rest
    return f"{found[1]}***{found[2]}" + ("?***" if found[3] else "")


def is_torn(address: str) -> bool:
    """Whether a character within a name or password may have been taken for its end."""
    from sqlalchemy.engine import make_url

    url = make_url(address)
    return any("@" in (part or "") for part in (url.host, url.database))
