"""What is said of command lines that cannot be understood."""

import re
import shlex

import pytest

from avmae.cli.typos import nearest, refuse_typos
from avmae.errors import InputError


@pytest.mark.parametrize(
    ("command", "typed", "said"),
    [
        ("train", "mask.ration=0.5", "unknown key mask.ration; did you mean mask.ratio?"),
        ("train", "batch_size=4", "unknown key batch_size; did you mean data.batch_size?"),
        ("train", "optim.max_epochs=4", "did you mean trainer.max_epochs?"),
        ("train", "modle=videomae", "unknown key modle; did you mean model?"),
        ("train", "xyzzy=4", "unknown key xyzzy; -h shows all keys"),
        ("train", "size=bsae", "unknown choice size=bsae; did you mean base? there are base, demo"),
        ("train", "experiment=demo_pretrian", "did you mean demo_pretrain?"),
        ("predict", "segment=3", "did you mean segments?"),
        ("predict", "inptu=clip.mp4", "did you mean input?"),
    ],
)
def test_the_nearest_is_named(command: str, typed: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        refuse_typos(command, [typed])


@pytest.mark.parametrize("value", ["my clip, 2.mp4", "a,b.mp4", "a=b.mp4", "it's (1).mp4", "Übung;1.mp4"])
def test_what_it_says_to_quote_can_be_typed(value: str) -> None:
    with pytest.raises(InputError, match="quote it: ") as raised:
        refuse_typos("predict", [f"input={value}"])
    (typed,) = shlex.split(str(raised.value).partition("quote it: ")[2])
    refuse_typos("predict", [typed])


@pytest.mark.parametrize(
    "arguments",
    [
        ["input=clip.mp4", "ckpt=hf://org/name@main"],
        ["hydra.run.dir=run"],
        ["--config-dir=elsewhere", "+mine=1"],
        [],
    ],
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    refuse_typos("predict", arguments)


def test_what_a_multirun_sweeps_over_passes() -> None:
    refuse_typos("train", ["-m", "mask.ratio=0.5,0.75", "model=avmae,videomae"])
    with pytest.raises(InputError, match=r"trainer\.max_epochs"):
        refuse_typos("train", ["-m", "mask.ratio=0.5,0.75", "trainer.max_epoch=3"])


def test_of_keys_in_several_sections_the_nearer_name_wins() -> None:
    assert nearest("a.x", ["a.xy", "b.x", "c.x"]) == "a.xy"
    assert nearest("x", ["a.x", "b.x"]) == "a.x"
    assert nearest("qqq", ["a.x"]) is None
