"""Which settings are numbers, by what the config files say."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from avmae.errors import InputError

GLOBAL = "# @package _global_\n"


def refuse_words(config: Mapping[str, Any], files: Mapping[Path, str]) -> None:
    """Refuse a text for a setting that is a number in the config files.

    Args:
        config: of a command, resolved.
        files: the config files that it is made of, and below which key each one's settings are.

    Raises:
        InputError: there is one; names the key.
    """
    defaults = [pair for file, key in files.items() for pair in _defaults(file, key)]
    words = {key for key, value in defaults if isinstance(value, str) and value != "???"}
    numbers = {key for key, value in defaults if isinstance(value, int | float) and not isinstance(value, bool)} - words
    for key, value in _flat(config, ""):
        if key in numbers and isinstance(value, str):
            raise InputError(f"{key} must be a number, not '{value}'")


def _defaults(file: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """What a config file, and the files of its folder that it starts from, give its settings."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for base in content.pop("defaults", []) if prefix else []:
        if isinstance(base, str) and base != "_self_":
            yield from _defaults(file.with_stem(base.partition("@")[0]), prefix)
    yield from _flat(content, "" if file.read_text(encoding="utf-8").startswith(GLOBAL) else prefix)


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
