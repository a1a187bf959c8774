"""`-h` of every command is a page whose lines can be typed."""

import importlib
from pathlib import Path

import pytest
from commands import error, run
from hydra import compose, initialize_config_dir

from avmae.__main__ import COMMANDS
from avmae.cli.config import CONF
from avmae.cli.help import page

STAND_IN = {"???": "given"}


def settings(text: str) -> dict[str, str]:
    lines = text[text.index("Settings, as KEY=VALUE:") :].splitlines()[1:]
    assignments = [line.split()[0] for line in lines if line.strip() and not line.strip().startswith("#")]
    return dict(assignment.split("=", 1) for assignment in assignments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_on_the_page_can_be_typed(command: str) -> None:
    importlib.import_module(f"avmae.{command}")
    shown = {key: STAND_IN.get(value, value) for key, value in settings(page(CONF, command, [])).items()}
    typed = [f"{key}={value}" for key, value in shown.items() if value != "[...]"]
    given = [f"{key}={value}" for key, value in shown.items() if value == "given"]
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose(command, typed) == compose(command, given)
    assert not [key for key in shown if "_target_" in key]


def test_the_page_says_what_is_chosen_given_and_meant(tmp_path: Path) -> None:
    printed = run("train", "-h", "experiment=demo_finetune", "clip.frames=4", cwd=tmp_path)
    assert printed.startswith("Pretrain a masked autoencoder")
    assert "size        base, demo*, huge" in printed
    assert "\n  clip.frames=4\n" in printed
    lines = {line.split("=")[0].strip(): line for line in printed.splitlines() if "=" in line}
    assert "continue a run: a checkpoint's path, or last" in lines["resume"]
    assert lines["seed"].split() == ["seed=0"]
    assert not list(tmp_path.iterdir()), "help makes no folder"
    assert "must be given" in run("predict", "--help", cwd=tmp_path)


def test_help_on_something_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert "demo_pretrain" in error(run("train", "-h", "experiment=nope", cwd=tmp_path, ok=False))


def test_choices_that_change_other_groups_are_explained_too() -> None:
    assert "a mirrored digit is no digit" in (printed := page(CONF, "study", ["study=digits"]))
    assert "shares of the training clips that are fine-tuned on" in printed
    assert "data   avdigits*," in printed
    for choice in ("search=optuna", "cluster=slurm"):
        assert "Settings, as KEY=VALUE:" in page(CONF, "train", [choice])
