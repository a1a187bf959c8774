"""Errors that a user can mend. Commands print their message alone, without a traceback."""


class InputError(ValueError):
    """Something given from outside cannot be used; the message names the file, key or shape and the remedy."""


class MediaError(InputError):
    """A media file cannot be read; the message starts with its path."""


class Interrupted(SystemExit):
    """A signal ended the run after its state was saved; the code is 128 + the signal's number."""
