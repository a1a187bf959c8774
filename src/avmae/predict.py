"""`python -m avmae.predict ckpt=PATH input=FILE`: the most probable classes of a video."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.table import print_table
from avmae.errors import InputError, printable


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of a video: `class`, `label` and `score` of the first classes, best first."""

    has_audio: bool
    classes: list[dict[str, Any]]


def predict(ckpt: str | Path, input: str | Path, *, top: int = 5, segments: int = 5, crops: int = 3) -> Prediction:
    """Average the class probabilities over evenly spaced windows and square crops of each; return the first few.

    Raises:
        InputError: a number is out of range, the checkpoint is no classifier, or the video cannot be read.
    """
    for key, value in {"top": top, "segments": segments, "crops": crops}.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}={value} must be a whole number from 1")
    import torch

    from avmae.data.decode.window import read_window
    from avmae.data.read import window_batch
    from avmae.viewing.systems import load_classifier, top_classes

    model, settings = load_classifier(ckpt)
    probabilities, has_audio = [], False
    for position in torch.linspace(0, 1, segments).tolist() if segments > 1 else [0.5]:
        window = read_window(input, model.clip, position, model.clip.canvas)
        has_audio |= window.has_audio
        with torch.inference_mode():
            probabilities.append(model(window_batch(window, model.clip, crops)).softmax(-1).mean(0))
    return Prediction(has_audio, top_classes(torch.stack(probabilities).mean(0), settings["class_names"], top))


@command("predict")
def main(config: dict[str, Any]) -> None:
    """Predict, and print a table or JSON."""
    if config["format"] not in ("table", "json"):
        raise InputError(f"format={config['format']} is unknown; choose table or json")
    found = predict(**{key: config[key] for key in ("ckpt", "input", "top", "segments", "crops")})
    if config["format"] == "json":
        print(json.dumps({"input": str(config["input"]), **dataclasses.asdict(found)}, indent=2))
    else:
        print(f"{printable(config['input'])} ({'with audio' if found.has_audio else 'silent'})")
        print_table(["class", "score"], [[row["class"], f"{row['score']:.3f}"] for row in found.classes])


if __name__ == "__main__":
    main()
