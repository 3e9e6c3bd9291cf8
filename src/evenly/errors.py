"""Errors that are not this package's fault."""


class UserError(ValueError):
    """A problem that the user can fix, explained in one sentence.

    The command prints the sentence. Anything else, except a system error, is our own bug and keeps
    its traceback.
    """


class UserRuntimeError(UserError, RuntimeError):
    """The same for a call out of turn, or for something that is missing or does not respond."""


class UserFileNotFoundError(FileNotFoundError, UserError):  # first, for its `__new__`
    """The same for a file or folder that does not exist."""
