"""Plain values to classes of settings."""

from collections.abc import Mapping
from inspect import Parameter, signature
from types import NoneType
from typing import Any, TypeVar, get_args

from avmae.errors import InputError

Spec = TypeVar("Spec")


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
