"""Files of results."""

import json
from pathlib import Path
from typing import Any

from avmae.errors import InputError


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all, and the folder for it.

    Raises:
        InputError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise InputError(f"output={file} cannot be written: {error.strerror}; choose another") from error


def write_json(file: Path, content: Any) -> None:
    """See `write_text`."""
    write_text(file, json.dumps(content, indent=2))
