"""The one error that a user is meant to read."""


class UserError(Exception):
    """A mistake in what the user gave: an argument, a file or a folder.

    The message is one sentence that names the argument, the value and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """
