"""Errors that a user can mend. Commands print their message alone, without a traceback."""


class InputError(ValueError):
    """Something given from outside cannot be used; the message names the file, key or shape and the remedy."""


class MediaError(InputError):
    """A media file cannot be read; the message starts with its path."""
