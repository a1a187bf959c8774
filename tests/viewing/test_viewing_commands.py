"""The commands as functions: their defaults are those of the command line."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from avmae.cli.config import CONF
from avmae.viewing.systems import reconstruct_files


@pytest.mark.parametrize("name", ["predict", "reconstruct", "report", "demo", "dashboard"])
def test_a_function_and_its_config_have_the_same_defaults(name: str) -> None:
    config = yaml.safe_load(Path(CONF, f"{name}.yaml").read_text())
    function = getattr(importlib.import_module(f"avmae.{name}"), name)
    parameters = dict(inspect.signature(function).parameters)
    if parameters.pop("how", None):
        passed_on = inspect.signature(reconstruct_files).parameters
        parameters |= {key: p for key, p in passed_on.items() if p.default is not inspect.Parameter.empty}
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert key == "sections" or config[key] == "???", key
        elif key == "mask":
            assert parameter.default is None
            assert set(config[key].values()) == {None}
        else:
            assert config[key] == parameter.default, key
