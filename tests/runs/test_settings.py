"""Settings as they are typed."""

from avmae.runs.history import flat
from avmae.runs.settings import arguments, read_choice


def config(size: str = "base", model: str = "avmae", **other: object) -> dict[str, object]:
    return flat({"size": read_choice("size", size), "model": read_choice("model", model)}) | other


def added(then: dict[str, object], now: dict[str, object]) -> str:
    return arguments(then, now, [key for key in then if then[key] != now[key]])


def test_what_one_choice_mends_is_that_choice() -> None:
    assert added(config("tiny"), config("base")) == "size=tiny"
    assert added(config("tiny", "videomae"), config("base")) == "model=videomae size=tiny"


def test_what_was_typed_besides_is_typed_again() -> None:
    then, now = config("tiny", **{"size.depth": 3}), config("base", seed=1)
    assert added(then | {"seed": 0}, now) == "size=tiny size.depth=3 seed=0"
    # It would stay, whatever the size.
    assert added(config("tiny"), config("base", **{"size.dim": 48})) == "size=tiny size.dim=192"


def test_values_are_written_as_the_shell_and_hydra_take_them() -> None:
    then = {"model.video_patch": [2, 8, 8], "data.only": None, "mask.video": {"tube": 0.5}, "a": True}
    said = arguments(then, dict.fromkeys(then), then)
    assert said == "'model.video_patch=[2,8,8]' data.only=null 'mask.video={tube:0.5}' a=true"


def test_names_that_are_no_choice_are_left_out() -> None:
    then, now = config(**{"size.name": "768x12", "size.depth": 11}), config("small")
    assert added(then, now).startswith("size.name=768x12 size.dim=768 size.depth=11")
