"""The values of the config files, and plain values to classes of settings."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml

from avmae.errors import InputError
from avmae.runs.history import flat

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


def arguments(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> str:
    """What to add to a command line, for some settings to be as they were.

    Args:
        then: by dotted key.
        now: the same.
        keys: that differ. Those of a model or size that has a name become ``size=NAME``.
    """
    added, rest = [], list(keys)
    for group in ("model", "size"):
        name, other = then.get(f"{group}.name"), now.get(f"{group}.name")
        if name == other or name not in choices(group):
            continue
        added.append(f"{group}={name}")
        chosen = flat({group: read_choice(group, name)})
        # What differs from its own choice was typed, and would stay.
        default = flat({group: read_choice(group, other)}) if other in choices(group) else {}
        rest = [
            key
            for key in rest
            if not key.startswith(f"{group}.") or then[key] != chosen.get(key) or now[key] != default.get(key)
        ]
        rest = [key for key in rest if key != f"{group}.name"]
    return " ".join([*added, *(shlex.quote(f"{key}={_typed(then[key])}") for key in rest)])


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(item)}" for key, item in value.items()) + "}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


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
        hint = did_you_mean(unknown[0], known)
        raise InputError(f"unknown key {key}.{unknown[0]}; {hint}{key} has {', '.join(sorted(known))}")
    for name, value in values.items():
        kinds = {*get_args(known[name].annotation)} or {known[name].annotation}
        if kinds <= {int, float, NoneType} and isinstance(value, str):
            raise InputError(f"{key}.{name} must be a number, not '{value}'")
        if kinds <= {int, NoneType} and isinstance(value, float):
            raise InputError(f"{key}.{name} must be a whole number, not {value}")
