"""What goes wrong through no fault of this package."""


class UserError(ValueError):
    """What the user can mend, told in one sentence.

    The command prints the sentence. Anything else but an error of the system is our own mistake and
    keeps its traceback.
    """


class UserRuntimeError(UserError, RuntimeError):
    """The same of a call out of turn, or of something else that is lacking or does not answer."""


class UserFileNotFoundError(FileNotFoundError, UserError):  # as its `__new__` is the one to call
    """The same of a file or folder that is not there."""
