"""Plain values to classes of settings."""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeVar, get_args

from avmae.errors import InputError

Spec = TypeVar("Spec")


def spec(cls: type[Spec], key: str, values: Mapping[str, Any]) -> Spec:
    """Build a settings class from a part of the config.

    Args:
        cls: a dataclass.
        key: of the part in the config, for messages.
        values: of the part.

    Raises:
        InputError: a key that the class does not have, or a text where a number should be.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"unknown key {key}.{unknown[0]}; {key} has {', '.join(names)}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value, kinds = values.get(field.name), {*get_args(field.type)} or {field.type}
        if kinds <= {int, float, NoneType} and isinstance(value, str):
            raise InputError(f"{key}.{field.name} must be a number, not '{value}'")
        if kinds <= {int, NoneType} and isinstance(value, float):
            raise InputError(f"{key}.{field.name} must be a whole number, not {value}")
    return cls(**values)
