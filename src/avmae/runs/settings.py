"""The values of the config files, and plain values to classes of settings."""

import difflib
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml

from avmae.errors import InputError

Spec = TypeVar("Spec")
CONF = str(Path(__file__).parents[1] / "conf")
"""The folder of all config files."""


def choices(group: str) -> list[str]:
    """What ``GROUP=`` can be."""
    return sorted(file.stem for file in Path(CONF, group).glob("*.yaml"))


def read_choice(group: str, name: str) -> dict[str, Any]:
    """The settings of ``GROUP=NAME``, for groups whose files start from no other group.

    Raises:
        InputError: there is no such choice.
    """
    if name not in (known := choices(group)):
        raise InputError(f"{group}={name} is unknown; {did_you_mean(str(name), known)}choose from {', '.join(known)}")
    own = yaml.safe_load(Path(CONF, group, f"{name}.yaml").read_text(encoding="utf-8"))
    bases = own.pop("defaults", [])
    return {key: value for base in bases for key, value in read_choice(group, base).items()} | own


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """``did you mean NAME? `` for the nearest of what is known, if one is near; else nothing."""
    near = difflib.get_close_matches(typed, list(known), 1)
    return f"did you mean {near[0]}? " if near else ""


def spec(cls: type[Spec], key: str, values: Mapping[str, Any]) -> Spec:
    """Build a settings class from the part of the config that lies below a key.

    Raises:
        InputError: see `refuse_wrong`.
    """
    refuse_wrong(key, values, signature(cls).parameters)
    return cls(**values)


def refuse_wrong(key: str, values: Mapping[str, Any], known: Mapping[str, Parameter]) -> None:
    """Check the settings below a key of the config before something is called with them.

    Raises:
        InputError: one that is not taken, or a text where a number should be.
    """
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"unknown key {key}.{unknown[0]}; {key} has {', '.join(sorted(known))}")
    for name, value in values.items():
        kinds = {*get_args(known[name].annotation)} or {known[name].annotation}
        if kinds <= {int, float, NoneType} and isinstance(value, str):
            raise InputError(f"{key}.{name} must be a number, not '{value}'")
        if kinds <= {int, NoneType} and isinstance(value, float):
            raise InputError(f"{key}.{name} must be a whole number, not {value}")
