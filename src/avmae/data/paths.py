"""Paths that come from a file: a list, a manifest, an index."""

from pathlib import Path

from avmae.errors import InputError


def within(base: Path, name: str) -> Path:
    """The file of a relative path, which must be in the folder that the path starts from.

    Neither ``..`` nor a symbolic link may lead out of it: whoever made the list is not always who owns the machine.

    Args:
        base: the folder; may be a link itself.
        name: relative path; nothing need be there.

    Raises:
        InputError: it leads out of the folder.
    """
    path = base / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(base.resolve()):
        raise InputError(
            f"{path} leads out of {base} (to {path.resolve()}); move the file into the folder, "
            "or write its absolute path into the list if that is what you mean"
        )
    return path
