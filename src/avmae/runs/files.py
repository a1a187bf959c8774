"""Files of results."""

import json
from pathlib import Path
from typing import Any

from avmae.errors import InputError


def write_json(file: Path, content: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise InputError(f"output={file} cannot be written: {error.strerror}; choose another") from error
