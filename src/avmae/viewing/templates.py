"""Templates of this folder to HTML that needs no other file; every text in it is escaped."""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The text of a template with the values that it names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_text"] = as_text
    return environment.get_template(template).render(values)


def as_text(value: Any) -> str:
    """A setting as text: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def data_address(kind: str, content: bytes) -> str:
    """A `data:` address that holds a file of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
