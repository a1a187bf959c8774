"""Paths that come from a file: a list, a manifest, an index."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avmae.errors import InputError

PATHS = ("root", "train", "val", "test")
"""Settings of data that name a file or a folder."""
OR_PATHS = (*PATHS, "classes")
"""And one that may name a file, as text, or say something else, as a number or a list."""


def absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of data, their paths as they are from any folder; addresses stay."""
    return {
        key: os.path.abspath(os.path.expanduser(value))
        if key in OR_PATHS and isinstance(value, str) and "://" not in value
        else value
        for key, value in settings.items()
    }


@functools.lru_cache(maxsize=4096)
def _resolved(folder: Path) -> Path:
    """Kept, for lists have hundreds of thousands of lines and few folders."""
    return folder.resolve()


def identity(path: Path) -> Path:
    """One name of a file, however its folder is reached."""
    return _resolved(path.parent) / path.name


def within(base: Path, name: str) -> Path:
    """The file of a relative path, which must be in the folder that the path starts from; nothing need be there.

    Neither ``..`` nor a symbolic link may lead out of it: whoever made the list is not always who owns the machine.

    Raises:
        InputError: it leads out of the folder.
    """
    path = base / name
    plain = path.name != ".." and not path.is_symlink()
    target = identity(path) if plain else path.resolve()
    if Path(name).is_absolute() or not target.is_relative_to(_resolved(base)):
        raise InputError(f"{path} leads out of {base} (to {target}); move it there, or list its absolute path")
    return path
