"""Errors that are the user's to mend, and text that is safe to print in their messages."""

import unicodedata

UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode's categories of what a terminal obeys or cannot show: controls, marks of direction, halves of pairs."""


class InputError(ValueError):
    """Something given from outside cannot be used; the message names the file, key or shape and the remedy."""


class MediaError(InputError):
    """A media file cannot be read; the message starts with its path."""


class Interrupted(SystemExit):
    """A signal ended the run after its state was saved; the code is 128 + the signal's number."""


def printable(text: object, keep: str = "\n") -> str:
    r"""Text with its control characters escaped, as ``\x1b``.

    Names of files and classes come from whoever made the data; printed raw, they could move the cursor, clear the
    screen or rewrite what was printed before.

    Args:
        text: anything; its ``str`` counts.
        keep: characters that stay.
    """
    return "".join(
        c.encode("unicode_escape").decode() if c not in keep and unicodedata.category(c) in UNSEEN else c
        for c in str(text)
    )
