"""`avmae COMMAND` beside `python -m avmae.COMMAND`."""

import json
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from commands import Process, error, run, tiny_arguments

import avmae
from avmae.__main__ import COMMANDS


def script(*arguments: str, cwd: Path, code: int = 0) -> str:
    """What `avmae ARGUMENTS` printed."""
    with tempfile.NamedTemporaryFile("r") as output:
        assert Process("-m", "avmae", *arguments, cwd=cwd, output=Path(output.name)).wait() == code
        return output.read()


def test_the_console_script_is_this_function() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["avmae"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_alone_it_lists_every_command_and_says_its_version(tmp_path: Path) -> None:
    printed = script(cwd=tmp_path)
    assert [line.split()[1] for line in printed.splitlines()[: len(COMMANDS)]] == list(COMMANDS)
    assert script("-h", cwd=tmp_path) == printed
    assert script("--version", cwd=tmp_path) == f"avmae {avmae.__version__}\n"


@pytest.mark.parametrize(("typed", "hint"), [("trian", "did you mean avmae train?"), ("xyz", "choose from prepare, ")])
def test_a_command_that_does_not_exist_is_an_error(typed: str, hint: str, tmp_path: Path) -> None:
    assert error(script(typed, "seed=1", cwd=tmp_path, code=1)).startswith(f"error: unknown command {typed}; {hint}")


@pytest.mark.parametrize("arguments", [("-h",), ("--cfg", "job", "top=3")])
def test_what_a_command_prints_is_the_same(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert script("predict", *arguments, cwd=tmp_path) == run("predict", *arguments, cwd=tmp_path)


def test_a_refusal_is_the_same(tmp_path: Path) -> None:
    message = script("predict", "ckpt=gone.ckpt", "input=clip.mp4", cwd=tmp_path, code=1)
    assert message == run("predict", "ckpt=gone.ckpt", "input=clip.mp4", cwd=tmp_path, ok=False)
    assert "gone.ckpt does not exist" in error(message)


def test_a_multirun_trains_and_records_a_command_that_can_be_repeated(miniature: Path, tmp_path: Path) -> None:
    arguments = tiny_arguments(("-m", "seed=0,1", "trainer.max_steps=1", "hydra.sweep.dir=sweep"), miniature)
    script("train", *arguments, cwd=tmp_path)
    for job in ("0", "1"):
        (start,) = json.loads((tmp_path / "sweep" / job / "environment.json").read_text())
        assert " -m avmae.train -m " in start["command"]
    assert (tmp_path / "sweep/sweep.csv").is_file()
